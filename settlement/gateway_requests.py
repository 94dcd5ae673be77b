"""Builds requests to gateways from stored rows only, so every retry is identical.

RowSnapshot remembers the row at that moment: it decides whether the answer is an answer or a hint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Row

from domain.settlement import Source
from domain.states import PaymentOperation
from gateways.base import (
    ChangeRequest,
    ChargeLookup,
    ChargeOperation,
    ChargeRequest,
    RefundLookup,
    RefundRequest,
)
from models import Payment, Refund

# A gateway only knows void; `cancel` also cancels our order.
OPERATIONS: Final[dict[PaymentOperation, ChargeOperation]] = {
    "capture": "capture",
    "void": "void",
    "cancel": "void",
}


def charge_request(
    payment: Payment | Row[Any],
    method: Row[Any],
    *,
    service_url: str | None = None,
    fault: str | None = None,
) -> ChargeRequest:
    """The request that makes this payment's charge.

    `service_url` and `fault` are for the sandbox, to which nothing is resent.
    """
    return ChargeRequest(
        key=payment.gateway_key,
        payment_id=payment.id,
        order_id=payment.order_id,
        amount=payment.amount,
        currency=payment.currency,
        token=method.gateway_token,
        capture=payment.capture_method == "automatic",
        return_url=payment.return_url or "",
        customer=method.gateway_customer,
        off_session=payment.off_session,
        service_url=service_url,
        fault=fault,
    )


def operation_request(payment: Payment | Row[Any], fault: str | None = None) -> ChangeRequest:
    """The request for the capture or void that is claimed on this payment."""
    assert payment.operation is not None
    assert payment.operation_key is not None
    assert payment.operation_amount is not None
    assert payment.gateway_reference is not None
    return ChangeRequest(
        operation=OPERATIONS[payment.operation],
        key=payment.operation_key,
        reference=payment.gateway_reference,
        payment_id=payment.id,
        amount=payment.operation_amount,
        currency=payment.currency,
        charge_amount=payment.amount,
        capture=payment.capture_method == "automatic",
        fault=fault,
    )


def completion_request(
    payment: Payment | Row[Any], returned: Mapping[str, str] | None = None
) -> ChangeRequest:
    """The request to complete a charge that its shopper has approved, under the charge's key."""
    assert payment.gateway_reference is not None
    return ChangeRequest(
        operation="complete",
        key=payment.gateway_key,
        reference=payment.gateway_reference,
        payment_id=payment.id,
        amount=payment.amount,
        currency=payment.currency,
        charge_amount=payment.amount,
        capture=payment.capture_method == "automatic",
        redirect_params=returned or {},
    )


def refund_request(
    payment: Payment | Row[Any], refund: Refund | Row[Any], fault: str | None = None
) -> RefundRequest:
    assert payment.gateway_reference is not None
    return RefundRequest(
        key=refund.gateway_key,
        reference=payment.gateway_reference,
        payment_id=payment.id,
        refund_id=refund.id,
        amount=refund.amount,
        currency=refund.currency,
        reason=refund.reason,
        fault=fault,
    )


def charge_lookup(
    payment: Payment | Row[Any], method: Row[Any], *, resend: bool = False
) -> ChargeLookup:
    """Ask what became of the charge. `resend`: the look-up may send the request again."""
    request = charge_request(payment, method)
    return ChargeLookup(request, payment.gateway_reference, payment.created_at, resend)


def operation_lookup(payment: Payment | Row[Any], *, resend: bool = False) -> ChargeLookup:
    """Ask what became of the claimed capture or void."""
    request = operation_request(payment)
    return ChargeLookup(request, payment.gateway_reference, payment.requested_at, resend)


def completion_lookup(
    request: ChangeRequest, reference: str, requested_at: datetime
) -> ChargeLookup:
    """Ask what became of a completion, without sending it again."""
    return ChargeLookup(request, reference, requested_at, resend=False)


def refund_lookup(payment: Row[Any], refund: Row[Any], *, resend: bool = False) -> RefundLookup:
    """Ask what became of the refund."""
    request = refund_request(payment, refund)
    return RefundLookup(request, refund.gateway_reference, refund.created_at, resend)


# The columns that change when a row changes status, or when a look-up of it begins
# (`next_lookup_at`).
TRACKED_PAYMENT_COLUMNS: Final = (
    "status",
    "operation_key",
    "gateway_reference",
    "amount_captured",
    "amount_refunded",
    "refund_reserved",
    "next_lookup_at",
)
TRACKED_REFUND_COLUMNS: Final = ("status", "gateway_reference", "next_lookup_at")


@dataclass(frozen=True, slots=True)
class RowSnapshot:
    """A row as it was when its gateway was asked.

    If the row has changed since, the answer is a hint. The same goes for a row that another process
    has begun to look up: that look-up may have sent the request that we could not.
    """

    row: Mapping[str, Any]

    @classmethod
    def of_payment(cls, payment: Payment | Row[Any]) -> RowSnapshot:
        return cls({name: getattr(payment, name) for name in TRACKED_PAYMENT_COLUMNS})

    @classmethod
    def of_refund(cls, refund: Refund | Row[Any]) -> RowSnapshot:
        return cls({name: getattr(refund, name) for name in TRACKED_REFUND_COLUMNS})

    def source(self, locked: Payment | Refund) -> Source:
        """`hint` when the locked row has changed since the snapshot, else `answer`."""
        moved = any(getattr(locked, name) != value for name, value in self.row.items())
        return "hint" if moved else "answer"
