"""Verifies a sandbox webhook, then reads it strictly."""

import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from domain.money import EXPONENTS, MAX_AMOUNT
from domain.states import ChargeStatus, RefundStatus
from gateways import base
from gateways.sandbox.signature import verify


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError
    return text


def _known(currency: str) -> str:
    if currency not in EXPONENTS:
        raise ValueError
    return currency


def _iso_8601(value: Any) -> datetime:
    if not isinstance(value, str):
        raise ValueError
    return datetime.fromisoformat(value)


Text = Annotated[
    str, StringConstraints(min_length=1, max_length=base.MAX_TEXT), AfterValidator(_printable)
]
Url = Annotated[
    str, StringConstraints(min_length=1, max_length=base.MAX_URL), AfterValidator(_printable)
]
Id = Annotated[int, Field(gt=0, lt=2**63)]
Amount = Annotated[int, Field(ge=0, le=MAX_AMOUNT)]
Currency = Annotated[str, AfterValidator(_known)]
# In the years that PostgreSQL and Python both store in every time zone.
Moment = Annotated[
    AwareDatetime,
    BeforeValidator(_iso_8601),
    Field(ge=datetime(1970, 1, 1, tzinfo=timezone.utc)),
    Field(lt=datetime(9999, 1, 1, tzinfo=timezone.utc)),
]


class Part(BaseModel):
    """A part of the JSON. Types are strict; unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True)


class DeclinePart(Part):
    code: Text
    raw: Text | None = None


class ChargePart(Part):
    reference: Text
    status: ChargeStatus
    amount: Amount
    currency: Currency
    amount_captured: Amount = 0
    capture_before: Moment | None = None
    redirect_url: Url | None = None
    decline: DeclinePart | None = None


class RefundPart(Part):
    reference: Text
    status: RefundStatus
    amount: Amount
    currency: Currency


class DisputePart(Part):
    reference: Text
    status: Literal["open", "won", "lost"]
    amount: Amount
    currency: Currency
    reason: Text


class Payload(Part):
    """The body of a webhook."""

    id: Text
    type: Text
    payment_id: Id | None
    reference: Text
    charge: ChargePart | None = None
    refund: RefundPart | None = None
    refund_id: Id | None = None  # the service's id; None for a refund in the dashboard
    dispute: DisputePart | None = None
    evidence_due_at: Moment | None = None


def read(secret: str, headers: Mapping[str, str], body: bytes) -> base.GatewayEvent:
    """Verify a webhook and read it. Raises SignatureInvalid."""
    verify(secret, headers.get("sandbox-signature", ""), body, int(time.time()))
    try:
        payload = Payload.model_validate_json(body)
    except ValidationError:
        raise base.SignatureInvalid from None
    charge, refund, dispute = payload.charge, payload.refund, payload.dispute
    return base.GatewayEvent(
        id=payload.id,
        type=payload.type,
        payment_id=payload.payment_id,
        reference=payload.reference,
        charge=_charge(charge) if charge else None,
        refund=base.Refund(**dict(refund), refund_id=payload.refund_id) if refund else None,
        dispute=base.Dispute(**dict(dispute), evidence_due_at=payload.evidence_due_at)
        if dispute
        else None,
    )


def _charge(part: ChargePart) -> base.Charge:
    decline = base.Decline(part.decline.code, part.decline.raw) if part.decline else None
    return base.Charge(**dict(part) | {"decline": decline})
