"""What a gateway is asked, made from our rows alone: so every repeat is the same, by whomever."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Row

from domain.states import PaymentOperation
from gateways.base import (
    ChangeRequest,
    ChargeOperation,
    ChargeRequest,
    LookUp,
    RefundLookUp,
    RefundRequest,
)
from models import Payment, Refund

# To a gateway, a payment that is canceled with its order is one that is voided.
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
    """The charge that this payment is. The last two are for the sandbox, which repeats nothing."""
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
    """The capture or void that is claimed on this payment."""
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
        charged=payment.amount,
        capture=payment.capture_method == "automatic",
        fault=fault,
    )


def completion_request(
    payment: Payment | Row[Any], returned: Mapping[str, str] | None = None
) -> ChangeRequest:
    """To go on with a charge that its shopper has approved; part of the charge, so with its key."""
    assert payment.gateway_reference is not None
    return ChangeRequest(
        operation="complete",
        key=payment.gateway_key,
        reference=payment.gateway_reference,
        payment_id=payment.id,
        amount=payment.amount,
        currency=payment.currency,
        charged=payment.amount,
        capture=payment.capture_method == "automatic",
        returned=returned or {},
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


def about_charge(payment: Payment | Row[Any], method: Row[Any]) -> LookUp:
    """What became of the charge?"""
    return LookUp(charge_request(payment, method), payment.gateway_reference, payment.created_at)


def about_operation(payment: Payment | Row[Any]) -> LookUp:
    """What became of the capture or void that is claimed?"""
    return LookUp(operation_request(payment), payment.gateway_reference, payment.asked_at)


def about_refund(payment: Row[Any], refund: Row[Any]) -> RefundLookUp:
    """What became of the refund?"""
    return RefundLookUp(
        refund_request(payment, refund), refund.gateway_reference, refund.created_at
    )
