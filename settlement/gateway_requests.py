"""Builds requests to gateways from stored rows only, so every retry is identical.

RowSnapshot remembers the row at that moment: it decides whether the answer is an answer or a hint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from domain.settlement import Source
from domain.states import PaymentOperation
from gateways import base
from rows import PaymentMethodRow, PaymentRow, RefundRow

# A gateway only knows void; `cancel` also cancels our order.
OPERATIONS: Final[dict[PaymentOperation, base.ChargeOperation]] = {
    "capture": "capture",
    "void": "void",
    "cancel": "void",
}


def charge_request(
    payment: PaymentRow,
    method: PaymentMethodRow,
    *,
    service_url: str | None = None,
    fault: str | None = None,
) -> base.ChargeRequest:
    """The request that makes this payment's charge.

    `service_url` and `fault` are for the sandbox, to which nothing is resent.
    """
    return base.ChargeRequest(
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


def operation_request(payment: PaymentRow, fault: str | None = None) -> base.ChangeRequest:
    """The request for the capture or void that is claimed on this payment."""
    assert payment.operation is not None
    assert payment.operation_key is not None
    assert payment.operation_amount is not None
    operation, amount = OPERATIONS[payment.operation], payment.operation_amount
    return _change(payment, operation, payment.operation_key, amount, fault=fault)


def completion_request(
    payment: PaymentRow, returned: Mapping[str, str] | None = None
) -> base.ChangeRequest:
    """The request to complete a charge that its shopper has approved, under the charge's key."""
    params = returned or {}
    return _change(payment, "complete", payment.gateway_key, payment.amount, redirect_params=params)


def _change(
    payment: PaymentRow,
    operation: base.ChargeOperation,
    key: str,
    amount: int,
    **more: Any,
) -> base.ChangeRequest:
    assert payment.gateway_reference is not None
    return base.ChangeRequest(
        operation=operation,
        key=key,
        reference=payment.gateway_reference,
        payment_id=payment.id,
        amount=amount,
        currency=payment.currency,
        charge_amount=payment.amount,
        capture=payment.capture_method == "automatic",
        **more,
    )


def refund_request(
    payment: PaymentRow, refund: RefundRow, fault: str | None = None
) -> base.RefundRequest:
    assert payment.gateway_reference is not None
    return base.RefundRequest(
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
    payment: PaymentRow, method: PaymentMethodRow, *, resend: bool = False
) -> base.ChargeLookup:
    """Ask what became of the charge. `resend`: the look-up may send the request again."""
    request = charge_request(payment, method)
    return base.ChargeLookup(request, payment.gateway_reference, payment.created_at, resend)


def operation_lookup(payment: PaymentRow, *, resend: bool = False) -> base.ChargeLookup:
    """Ask what became of the claimed capture or void."""
    request = operation_request(payment)
    return base.ChargeLookup(request, payment.gateway_reference, payment.requested_at, resend)


def refund_lookup(
    payment: PaymentRow, refund: RefundRow, *, resend: bool = False
) -> base.RefundLookup:
    """Ask what became of the refund."""
    request = refund_request(payment, refund)
    return base.RefundLookup(request, refund.gateway_reference, refund.created_at, resend)


@dataclass(frozen=True, slots=True)
class RowSnapshot:
    """A row as it was when its gateway was asked.

    If the row has changed since, the answer is a hint. The same goes for a row that another process
    has begun to look up: that look-up may have sent the request that we could not.
    """

    row: tuple[object, ...]

    @classmethod
    def of_payment(cls, payment: PaymentRow) -> RowSnapshot:
        return cls(_of_payment(payment))

    @classmethod
    def of_refund(cls, refund: RefundRow) -> RowSnapshot:
        return cls(_of_refund(refund))

    def source(self, locked: PaymentRow | RefundRow) -> Source:
        """`hint` when the locked row has changed since the snapshot, else `answer`."""
        now = _of_payment(locked) if isinstance(locked, PaymentRow) else _of_refund(locked)
        return "answer" if now == self.row else "hint"


# What changes when a row moves, or when somebody begins to look it up (`next_lookup_at`).


def _of_payment(payment: PaymentRow) -> tuple[object, ...]:
    return (
        payment.status,
        payment.operation_key,
        payment.gateway_reference,
        payment.amount_captured,
        payment.amount_refunded,
        payment.refund_reserved,
        payment.next_lookup_at,
    )


def _of_refund(refund: RefundRow) -> tuple[object, ...]:
    return (refund.status, refund.gateway_reference, refund.next_lookup_at)
