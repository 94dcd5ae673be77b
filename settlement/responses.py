"""The responses of money requests: while the outcome is open, and once it is known."""

from collections.abc import Callable
from typing import Any, Final

import schemas
from domain.states import PaymentOperation
from errors import GatewayUnavailable, InvalidStatusTransition, PaymentDeclined
from idempotency_keys import StoredResponse
from rows import OrderRow, PaymentRow, RefundRow

NOT_CHARGED: Final = "not_charged"  # the failure code of a charge that never happened

Show = Callable[[type[schemas.Out], Any], str]


def show(schema: type[schemas.Out], row: Any) -> str:
    """A row as the API shows it, as JSON."""
    return schema.model_validate(row).model_dump_json()


def charge_response(payment: PaymentRow, request_id: str, show: Show = show) -> StoredResponse:
    """The response to the request that opened this payment."""
    if payment.status == "failed" and payment.failure is not None:
        failure = payment.failure
        if failure["code"] == NOT_CHARGED:
            not_charged = GatewayUnavailable(
                failure["message"], payment_id=payment.id, retryable=failure.get("retryable", True)
            )
            return StoredResponse.problem(not_charged, request_id)
        declined = PaymentDeclined(
            failure["message"],
            decline_code=failure["decline_code"],
            payment_id=payment.id,
            retryable=failure.get("retryable", False),
        )
        return StoredResponse.problem(declined, request_id)
    status = 202 if payment.status == "pending" else 201
    return StoredResponse.json(status, show(schemas.Payment, payment), f"/payments/{payment.id}")


def operation_response(
    order: OrderRow,
    payment: PaymentRow,
    operation: PaymentOperation,
    amount: int,
    request_id: str,
    show: Show = show,
) -> StoredResponse:
    """The response to a capture of `amount`, a void, or a cancellation, once it is decided."""
    if payment.status in ("authorized", "requires_action"):  # surely not executed
        problem = GatewayUnavailable(
            "The gateway did not execute it; the payment is unchanged", payment_id=payment.id
        )
        return StoredResponse.problem(problem, request_id)
    if operation == "capture":
        done = payment.amount_captured == amount
    else:
        done = payment.status in ("voided", "canceled")
    if not done:
        moved = InvalidStatusTransition(
            f"The payment is {payment.status}", current_status=payment.status, allowed_statuses=[]
        )
        return StoredResponse.problem(moved, request_id)
    if operation == "cancel":
        return StoredResponse.json(200, show(schemas.Order, order))
    return StoredResponse.json(200, show(schemas.Payment, payment))


def refund_response(refund: RefundRow, show: Show = show) -> StoredResponse:
    """The response to a refund request: 201 once the gateway has accepted it."""
    location = f"/payments/{refund.payment_id}/refunds/{refund.id}"
    status = 202 if refund.gateway_reference is None else 201
    return StoredResponse.json(status, show(schemas.Refund, refund), location)


def refund_not_made_response(
    payment: PaymentRow, refund: RefundRow, request_id: str, *, refused: bool
) -> StoredResponse:
    """The response to a refund request that was surely not executed."""
    problem = GatewayUnavailable(
        "The gateway did not execute it; nothing was refunded",
        payment_id=payment.id,
        refund_id=refund.id,
        retryable=not refused,
    )
    return StoredResponse.problem(problem, request_id)
