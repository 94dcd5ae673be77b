"""Writing down what a gateway's books show: payment, refund, order, events and answers at once.

Whoever learns of an outcome comes through here: the request that asked, a webhook, and the
reconciler. The order and the payment are locked, in that order. A state that is older than ours
changes nothing; one that contradicts ours, or an amount that is not ours, goes to a person.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Final

from sqlalchemy.orm import Session

import crud
import schemas
from domain.declines import WORTH_ANOTHER_TRY, decline_message
from domain.states import (
    CHARGE_MOVES,
    DEAD_PAYMENT_STATUSES,
    REFUND_MOVES,
    OrderStatus,
    PaymentOperation,
    PaymentStatus,
)
from errors import GatewayUnavailable, InvalidStatusTransition, PaymentDeclined
from gateways import base
from models import Order, Payment, Refund
from observability.logs import get_logger
from services.context import Answer, conclude
from services.history import (
    By,
    ask_for_review,
    move_order,
    move_payment,
    move_refund,
    tell_dispute,
)

log = get_logger()

# What a state in the gateway's books makes of our payment; see `_target` for the exceptions.
TARGETS: Final[dict[base.ChargeStatus, PaymentStatus]] = {
    "processing": "pending",
    "approved": "pending",
    "requires_action": "requires_action",
    "authorized": "authorized",
    "captured": "captured",
    "declined": "failed",
    "voided": "voided",
}
MONEY_HELD: Final = ("authorized", "captured")
# A payment that waits for its shopper is looked up this soon, and then less and less often: no
# webhook may ever tell that the shopper has acted.
ACTION_CHECK_SECONDS: Final = 5
NOT_CHARGED: Final = "not_charged"
REFUSED: Final = "The gateway refuses this request by its own rules; nothing was charged."


# Charges ----------------------------------------------------------------------------------------


def settle_charge(
    session: Session,
    by: By,
    order: Order,
    payment: Payment,
    charge: base.Charge,
    *,
    hint: bool = False,
) -> Answer:
    """Apply the state of a charge, whichever request it is the outcome of.

    A `hint` (a webhook) may be old news: where it contradicts us, the gateway is asked instead.
    Returns the answer to the request that opened the payment.
    """
    target = _target(payment, charge)
    if payment.gateway_reference in (None, charge.replaces):
        payment.gateway_reference = charge.reference
    ours = _is_ours(payment, charge)
    given_up = payment.status in DEAD_PAYMENT_STATUSES
    moves = target is not None and (payment.status, target) in CHARGE_MOVES
    gone = charge.status in ("declined", "voided") and not given_up and not moves
    contradicts = not ours or gone or (given_up and charge.status in MONEY_HELD)
    if charge.reference != payment.gateway_reference:
        # Another charge than the one we know of. If it holds money, the shopper is charged twice,
        # and no look-up of the first will show it.
        if charge.status in MONEY_HELD:
            log.error("payment.charged_twice", payment_id=payment.id, other=charge.reference)
            ask_for_review(session, by, order, payment)
        return charged(payment, by.request_id or "")
    declined = charge.status == "declined" and payment.operation == "capture"
    if declined and payment.status == "authorized" and not hint:
        return operation_not_done(session, by, payment)  # the money is held as before
    # That a gateway works on it may be old news by now; that the shopper agreed never is.
    asks = hint and (contradicts or (moves and charge.status == "processing"))
    if ours and moves and target is not None and not asks:
        _apply(session, by, order, payment, charge, target)
    elif charge.status == payment.status == "authorized" and not hint:
        # An event may not have told it exactly.
        payment.capture_before = charge.capture_before or payment.capture_before
    elif contradicts and not hint:
        log.error("payment.contradicted", payment_id=payment.id, gateway_status=charge.status)
        ask_for_review(session, by, order, payment)
    _close_operation(session, by, order, payment)
    if moves or not hint:  # old news calls no look-up off
        _schedule(session, payment, moved=moves)
    session.flush()
    if asks or (hint and charge.status == "approved"):
        crud.check_now(session, payment)
    elif moves and charge.status == "approved":
        crud.schedule_check(session, payment, ACTION_CHECK_SECONDS)  # if we die before we go on
    if payment.status == "pending":
        return charged(payment, by.request_id or "")
    return conclude(session, payment.gateway_key, by.request_id, lambda id: charged(payment, id))


def expect_completion(session: Session, by: By, order: Order, payment: Payment) -> None:
    """The shopper has acted: until the gateway has answered, the outcome is open."""
    payment.next_action = None
    move_payment(session, by, order, payment, "pending")
    crud.schedule_check(session, payment, ACTION_CHECK_SECONDS)


def expect_action(
    session: Session, by: By, order: Order, payment: Payment, page: dict[str, Any]
) -> None:
    """The shopper has not acted on this payment after all."""
    payment.next_action = page
    move_payment(session, by, order, payment, "requires_action")
    crud.schedule_check(session, payment, ACTION_CHECK_SECONDS)


def charge_not_done(
    session: Session, by: By, order: Order, payment: Payment, why: base.NotDone | None = None
) -> Answer:
    """The gateway surely never took this charge, and never will: the order may be paid again."""
    if payment.status == "pending":
        refused = isinstance(why, base.Refused)
        payment.failure = {
            "code": NOT_CHARGED,
            "decline_code": None,
            "message": REFUSED if refused else "The gateway was not reached; nothing was charged.",
            "retryable": not refused,
        }
        move_payment(session, by, order, payment, "failed")
    _schedule(session, payment, moved=True)
    session.flush()
    return conclude(session, payment.gateway_key, by.request_id, lambda id: charged(payment, id))


def operation_not_done(session: Session, by: By, payment: Payment) -> Answer:
    """The gateway surely never did this capture or void; the payment is as it was."""
    assert payment.operation_key is not None
    key = payment.operation_key
    payment.operation = payment.operation_key = payment.operation_amount = None
    _schedule(session, payment, moved=True)
    session.flush()
    problem = _not_operated(payment)
    return conclude(session, key, by.request_id, lambda id: Answer.problem(problem, id))


def _not_operated(payment: Payment) -> GatewayUnavailable:
    return GatewayUnavailable(
        "The gateway did not do it; the payment is as it was", payment_id=payment.id
    )


def charged(payment: Payment, request_id: str) -> Answer:
    """What the request that opened this payment is told."""
    if payment.status == "failed" and payment.failure is not None:
        if payment.failure["code"] == NOT_CHARGED:
            not_charged = GatewayUnavailable(
                payment.failure["message"],
                payment_id=payment.id,
                retryable=payment.failure.get("retryable", True),
            )
            return Answer.problem(not_charged, request_id)
        declined = PaymentDeclined(
            payment.failure["message"],
            decline_code=payment.failure["decline_code"],
            payment_id=payment.id,
            retryable=payment.failure.get("retryable", False),
        )
        return Answer.problem(declined, request_id)
    shown = schemas.Payment.model_validate(payment)
    status = 202 if payment.status == "pending" else 201
    return Answer.resource(status, shown, f"/payments/{payment.id}")


def operated(
    order: Order, payment: Payment, operation: PaymentOperation, request_id: str
) -> Answer:
    """What the request for a capture, a void, or a cancellation is told once it is decided."""
    done = ("captured",) if operation == "capture" else ("voided", "canceled")
    if payment.status == "authorized":  # the gateway has told that it was not done
        return Answer.problem(_not_operated(payment), request_id)
    if payment.status not in done:
        problem = InvalidStatusTransition(
            f"The payment is {payment.status}", current_status=payment.status, allowed_statuses=[]
        )
        return Answer.problem(problem, request_id)
    if operation == "cancel":
        return Answer.resource(200, schemas.Order.model_validate(order))
    return Answer.resource(200, schemas.Payment.model_validate(payment))


def _apply(
    session: Session,
    by: By,
    order: Order,
    payment: Payment,
    charge: base.Charge,
    target: PaymentStatus,
) -> None:
    payment.next_action = None
    if target == "requires_action":
        payment.next_action = {"type": "redirect", "url": charge.redirect_url}
    elif target == "authorized":
        payment.capture_before = charge.capture_before
    elif target == "captured":
        payment.amount_captured = charge.amount_captured
    elif target == "failed":
        decline = charge.decline or base.Decline("generic_decline")
        log.info("payment.declined", payment_id=payment.id, gateway_code=decline.raw)
        payment.failure = {
            "code": "payment_declined",
            "decline_code": decline.code,
            "message": decline_message(decline.code),
            # For those who run the store; shoppers are shown the three above.
            "gateway_code": decline.raw,
            "retryable": decline.code in WORTH_ANOTHER_TRY,
        }
    move_payment(session, by, order, payment, target)
    follows: OrderStatus | None = None
    if target == "captured" and order.status in ("pending", "authorized"):
        follows = "paid"
    elif target == "authorized" and order.status == "pending":
        follows = "authorized"
    elif target == "voided" and order.status == "authorized":
        follows = "canceled"
    if follows is not None:
        move_order(session, by, order, follows)


def _target(payment: Payment, charge: base.Charge) -> PaymentStatus | None:
    """The status that this state makes of our payment; None: it tells us nothing new."""
    if charge.status in ("processing", "approved"):
        # Once the shopper has acted the outcome is open; unless we are giving the payment up.
        waits = payment.status == "requires_action" and payment.operation is None
        return "pending" if waits else None
    if charge.status == "requires_action" and payment.gateway_reference is not None:
        return None  # the shopper has acted since; a gateway that cannot be read says it again
    if charge.status == "voided" and payment.status != "authorized":
        return "canceled"
    return TARGETS[charge.status]


def _is_ours(payment: Payment, charge: base.Charge) -> bool:
    """Whether the gateway speaks of our amount: what we asked for, or asked to capture."""
    if (charge.amount, charge.currency) != (payment.amount, payment.currency):
        return False
    if charge.status != "captured":
        return True
    if payment.amount_captured:
        return charge.amount_captured == payment.amount_captured
    if payment.operation == "capture":
        return charge.amount_captured == payment.operation_amount
    if payment.capture_method == "manual":
        return 0 < charge.amount_captured <= payment.amount
    return charge.amount_captured == payment.amount


def _close_operation(session: Session, by: By, order: Order, payment: Payment) -> None:
    """End the capture or void that the new state decides, and answer whoever asked for it."""
    if payment.operation is None or payment.operation_key is None:
        return
    if payment.status in ("authorized", "requires_action"):
        return  # not decided yet
    key, operation = payment.operation_key, payment.operation
    payment.operation = payment.operation_key = payment.operation_amount = None
    if operation == "cancel" and payment.status == "canceled" and order.status == "pending":
        move_order(session, by, order, "canceled")
    session.flush()
    conclude(session, key, by.request_id, lambda id: operated(order, payment, operation, id))


def _schedule(session: Session, payment: Payment, *, moved: bool) -> None:
    """When the gateway is asked next, by the state the payment is in now."""
    if payment.status == "pending" or payment.operation is not None:
        return  # as the claim, or the last look-up, has set it
    if payment.status == "requires_action":
        if moved:
            crud.schedule_check(session, payment, ACTION_CHECK_SECONDS)
        return  # else as the last look-up has set it
    expires = payment.capture_before if payment.status == "authorized" else None
    if expires is not None and expires <= datetime.now(timezone.utc):
        return  # the gateway has not expired it yet; the last look-up has set the next
    payment.checks = 0
    payment.check_at = expires


# Refunds ----------------------------------------------------------------------------------------


def settle_refund(
    session: Session,
    by: By,
    order: Order,
    payment: Payment,
    refund: Refund,
    state: base.Refund,
    *,
    hint: bool = False,
) -> Answer:
    """Apply the state of a refund. All three rows are locked. A `hint` may be old news."""
    if refund.gateway_reference is None:
        refund.gateway_reference = state.reference
    if state.reference != refund.gateway_reference:
        # Another refund than the one we know of: if it was made, the money went back twice.
        if state.status != "failed":
            log.error("refund.made_twice", refund_id=refund.id, other=state.reference)
            ask_for_review(session, by, order, payment)
    elif (state.amount, state.currency) != (refund.amount, refund.currency):
        log.error("refund.amount_differs", payment_id=payment.id, refund_id=refund.id)
        ask_for_review(session, by, order, payment)
    elif (refund.status, state.status) in REFUND_MOVES:
        change = refund.amount if state.status == "succeeded" else 0
        change -= refund.amount if refund.status == "succeeded" else 0
        refund.check_at = None
        move_refund(session, by, order, refund, state.status)
        _count_refund(session, payment, change)
        if payment.status == "refunded" and order.status in ("paid", "shipped", "delivered"):
            move_order(session, by, order, "refunded")
        if payment.status != "refunded" and order.status == "refunded":
            # The money came back to us after the order had ended; what to do is a person's call.
            ask_for_review(session, by, order, payment)
    elif refund.status == "failed" and (
        state.status == "succeeded" or (state.status == "pending" and not hint)
    ):  # money may have gone back all the same; a gateway that cannot be read never says more
        refund.check_at = None
        if hint:
            crud.check_now(session, refund)
        else:
            ask_for_review(session, by, order, payment)
    elif refund.status != "pending" and not hint:  # old news calls no look-up off
        refund.check_at = None
    session.flush()
    return conclude(session, refund.gateway_key, by.request_id, lambda id: refunded(refund))


def refund_not_done(
    session: Session,
    by: By,
    order: Order,
    payment: Payment,
    refund: Refund,
    why: base.NotDone | None = None,
) -> Answer:
    """The gateway surely never made this refund; its amount is free again."""
    if refund.status == "pending":
        refund.check_at = None
        move_refund(session, by, order, refund, "failed")
        session.refresh(payment, ["refund_reserved"])
    problem = GatewayUnavailable(
        "The gateway did not do it; nothing was refunded",
        payment_id=payment.id,
        refund_id=refund.id,
        retryable=not isinstance(why, base.Refused),
    )
    return conclude(
        session, refund.gateway_key, by.request_id, lambda id: Answer.problem(problem, id)
    )


def refunded(refund: Refund) -> Answer:
    """What the request for a refund is told. One that the gateway works on is made all the same."""
    location = f"/payments/{refund.payment_id}/refunds/{refund.id}"
    status = 202 if refund.gateway_reference is None else 201
    return Answer.resource(status, schemas.Refund.model_validate(refund), location)


def _count_refund(session: Session, payment: Payment, amount: int) -> None:
    session.refresh(payment, ["refund_reserved"])
    payment.amount_refunded += amount
    if payment.amount_refunded == 0:
        payment.status = "captured"
    elif payment.amount_refunded == payment.amount_captured:
        payment.status = "refunded"
    else:
        payment.status = "partially_refunded"
    session.flush()


# Disputes ---------------------------------------------------------------------------------------


def settle_dispute(
    session: Session, by: By, order: Order, payment: Payment, state: base.Dispute
) -> None:
    """Write down a dispute, and tell of it once when it opens and once when it closes."""
    dispute = crud.save_dispute(
        session,
        payment_id=payment.id,
        gateway=payment.gateway,
        gateway_reference=state.reference,
        status=state.status,
        amount=state.amount,
        currency=state.currency,
        reason=state.reason,
    )
    if dispute is not None:
        tell_dispute(session, by, order, dispute)
