"""Reads Stripe's objects as charges, refunds, disputes and payment methods of the contract.

Nothing here calls Stripe. Every reader raises OutcomeUnknown for an object that lacks a field.
"""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Final, Literal

from domain.declines import STRIPE, normalize_decline_code
from domain.states import ChargeStatus, RefundStatus
from gateways.base import (
    Charge,
    ChargeRequest,
    Decline,
    Dispute,
    OutcomeUnknown,
    Refund,
    SavedMethod,
)
from gateways.stripe.amounts import from_stripe
from gateways.stripe.client import Fields, plain_code

# PaymentIntent.status: https://docs.stripe.com/payments/paymentintents/lifecycle
# We create with a card and confirm at once, so one that wants a card again was declined.
CHARGES: Final[Mapping[str, ChargeStatus]] = {
    "succeeded": "captured",
    "requires_capture": "authorized",
    "requires_action": "requires_action",
    "processing": "processing",
    "canceled": "voided",
    "requires_payment_method": "declined",
}
REFUNDS: Final[Mapping[str, RefundStatus]] = {
    "succeeded": "succeeded",
    "failed": "failed",
    "canceled": "failed",
}
# An inquiry that is closed took no money.
DISPUTES: Final[Mapping[str, Literal["won", "lost"]]] = {
    "won": "won",
    "warning_closed": "won",
    "lost": "lost",
}

# For most cards: https://docs.stripe.com/payments/place-a-hold-on-a-payment-method. The Charge
# object holds the exact time, where the answer includes it.
AUTHORIZATION_LIFETIME = timedelta(days=7)

# The ids that we write into metadata are BIGINTs. Anything else was written by somebody else.
OUR_ID: Final = re.compile(r"[1-9][0-9]{0,18}")
MAX_ID: Final = 2**63 - 1
KEY: Final = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)  # as ours are


def charge(intent: Fields, decline: Decline | None = None) -> Charge:
    """The charge that a PaymentIntent is; `decline` is the reason in the error that held it."""
    status = CHARGES.get(text(intent, "status"), "processing")
    redirect_url = nested(intent, "next_action", "redirect_to_url", "url")
    if not isinstance(redirect_url, str) or status != "requires_action":
        redirect_url = None
    if status == "requires_action" and redirect_url is None:
        status = "processing"  # it waits for something that is no redirect
    return Charge(
        reference=text(intent, "id"),
        status=status,
        amount=minor_units(intent, "amount"),
        currency=currency(intent),
        amount_captured=minor_units(intent, "amount_received") if status == "captured" else 0,
        capture_before=_capture_before(intent) if status == "authorized" else None,
        redirect_url=redirect_url,
        decline=(decline or _last_decline(intent)) if status == "declined" else None,
        refunds=_refunds(intent),
    )


def expired(gateway_charge: Fields) -> Charge:
    """The charge behind an expired Charge object, by its PaymentIntent."""
    return Charge(
        reference=text(gateway_charge, "payment_intent"),
        status="voided",
        amount=minor_units(gateway_charge, "amount"),
        currency=currency(gateway_charge),
    )


def refund(found: Fields) -> Refund:
    return Refund(
        reference=text(found, "id"),
        status=REFUNDS.get(text(found, "status"), "pending"),
        amount=minor_units(found, "amount"),
        currency=currency(found),
        refund_id=id_in_metadata(found, "refund_id"),
    )


def dispute(found: Fields) -> Dispute:
    return Dispute(
        reference=text(found, "id"),
        status=DISPUTES.get(text(found, "status"), "open"),
        amount=minor_units(found, "amount"),
        currency=currency(found),
        reason=plain_code(found.get("reason")) or "general",
        # 0 if the bank takes no evidence.
        evidence_due_at=_moment(nested(found, "evidence_details", "due_by")),
    )


def saved_method(method: Fields, customer: str) -> SavedMethod:
    """A PaymentMethod of type card. The same card number has the same fingerprint."""
    name = nested(method, "billing_details", "name")
    return SavedMethod(
        token=text(method, "id"),
        details={
            **card_details(method),
            "cardholder_name": name if isinstance(name, str) and name else None,
        },
        identity=plain_code(nested(method, "card", "fingerprint")),
        customer=customer,
    )


def card_details(method: Fields) -> dict[str, Any]:
    """What may be stored and shown of a PaymentMethod of type card."""
    card = nested(method, "card")
    if not isinstance(card, Mapping):
        raise OutcomeUnknown("a payment method without a card")
    return {
        "brand": text(card, "brand"),
        "last4": text(card, "last4"),
        "exp_month": integer(card, "exp_month"),
        "exp_year": integer(card, "exp_year"),
    }


def charge_metadata(request: ChargeRequest) -> dict[str, str]:
    """Metadata by which a charge is found. Systems that share an account have the same small ids,
    so it includes the idempotency key."""
    return {
        "payment_id": str(request.payment_id),
        "order_id": str(request.order_id),
        "key": request.key,
    }


def idempotency_key(fields: Fields) -> str | None:
    """The key in the metadata of an object; None for one that this service did not make."""
    found = nested(fields, "metadata", "key")
    return found if isinstance(found, str) and KEY.fullmatch(found) else None


def id_in_metadata(fields: Fields, name: str) -> int | None:
    """An id that we wrote into the metadata of an object; None if there is none."""
    value = nested(fields, "metadata", name)
    if not isinstance(value, str) or not OUR_ID.fullmatch(value):
        return None
    return number if (number := int(value)) <= MAX_ID else None


def text(fields: Fields, name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise OutcomeUnknown(f"an answer without {name}")
    return value


def integer(fields: Fields, name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise OutcomeUnknown(f"an answer without {name}")
    return value


def currency(fields: Fields) -> str:
    return text(fields, "currency").upper()


def minor_units(fields: Fields, name: str) -> int:
    """An amount in minor units of ISO 4217, which Stripe counts otherwise for some currencies."""
    amount = from_stripe(integer(fields, name), currency(fields))
    if amount is None or amount < 0:
        raise OutcomeUnknown(f"{name} is not an amount of our minor units")
    return amount


def nested(fields: Fields, *path: str) -> Any:
    """The value at the end of a path, or None."""
    found: Any = fields
    for name in path:
        if not isinstance(found, Mapping):
            return None
        found = found.get(name)
    return found


def _refunds(intent: Fields) -> tuple[Refund, ...] | None:
    """All refunds of a PaymentIntent; None where the answer does not show all of them."""
    if "latest_charge" in intent and intent["latest_charge"] is None:
        return ()  # nothing was ever charged
    listed = nested(intent, "latest_charge", "refunds")
    if not isinstance(listed, Mapping) or listed.get("has_more") is not False:
        return None
    return tuple(refund(found) for found in listed.get("data", ()) if isinstance(found, Mapping))


def _capture_before(intent: Fields) -> datetime | None:
    exact = nested(intent, "latest_charge", "payment_method_details", "card", "capture_before")
    created = _moment(intent.get("created"))
    return _moment(exact) or (created and created + AUTHORIZATION_LIFETIME)


def _moment(seconds: object) -> datetime | None:
    if not isinstance(seconds, int) or not 0 < seconds < 2**32:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc)


def _last_decline(intent: Fields) -> Decline:
    error = nested(intent, "last_payment_error")
    raw = plain_code(nested(error, "decline_code")) or plain_code(nested(error, "code"))
    return Decline(normalize_decline_code(STRIPE, raw), raw)
