"""Charging an order exactly once: claim, call, settle.

1. Claim: the payment's row, with the key we will send, is committed before anyone is asked.
2. Call: the gateway is asked, outside any transaction.
3. Settle: what the gateway's books show is written, with the order and the events, at once.

Whatever dies in between leaves a claimed row whose key finds the truth in the gateway's books.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row
from sqlalchemy.orm import Session

import crud
import schemas
from database import phase
from domain.declines import decline_message
from domain.events import Actor, EventType
from domain.states import PAYMENT_MOVES, OrderStatus, PaymentStatus
from errors import (
    GatewayUnavailable,
    InvalidRequest,
    InvalidStatusTransition,
    OrderAlreadyPaid,
    PaymentDeclined,
    PaymentInProgress,
    PaymentMethodNotFound,
)
from gateways.base import Charge, ChargeRequest, ChargeStatus, NotDone, Unknown
from gateways.registry import Gateways
from models import Order, Payment
from observability.logs import get_logger
from services import orders
from services.context import Answer, Context

log = get_logger()

# What a state in the gateway's books makes of our payment. Nothing: it tells us nothing new.
TARGETS: dict[ChargeStatus, PaymentStatus | None] = {
    "processing": None,
    "requires_action": "requires_action",
    "authorized": "authorized",
    "captured": "captured",
    "declined": "failed",
    "voided": "voided",
}
ORDER_FOLLOWS: dict[PaymentStatus, OrderStatus] = {"authorized": "authorized", "captured": "paid"}
TOLD_AS: dict[PaymentStatus, EventType] = {
    "requires_action": "payment.requires_action",
    "authorized": "payment.authorized",
    "captured": "payment.captured",
    "failed": "payment.failed",
    "voided": "payment.voided",
    "canceled": "payment.canceled",
}


def pay(
    session: Session,
    context: Context,
    gateways: Gateways,
    order_id: int,
    data: schemas.PaymentCreate,
) -> Answer:
    """Charge an order with one of its user's payment methods.

    201 when the money is taken, 402 when it was declined, 202 when the outcome is not known yet.
    Raises NotFound, OrderAlreadyPaid, PaymentInProgress, PaymentMethodNotFound.
    """
    with phase(session):  # claim
        order = crud.lock_order(session, order_id, context.principal.orders_of)
        _refuse_unpayable(session, order)
        method = _method(session, order, data.payment_method_id)
        gateway = gateways.get(method.gateway)
        if gateway is None:
            raise GatewayUnavailable(f"The gateway {method.gateway} is switched off")
        payment = crud.open_payment(session, order, method, "automatic")
        if payment is None:
            raise PaymentInProgress
        request = ChargeRequest(
            key=payment.gateway_key,
            payment_id=payment.id,
            order_id=order.id,
            amount=payment.amount,
            currency=payment.currency,
            token=method.gateway_token,
            capture=payment.capture_method == "automatic",
        )
    try:
        charge: Charge | NotDone = gateway.charge(request)  # call
    except NotDone as error:
        charge = error
    except Unknown as error:
        log.warning("payment.unknown", payment_id=payment.id, gateway=gateway.name, why=str(error))
        return Answer.resource(202, schemas.Payment.model_validate(payment), _location(payment))
    with phase(session):  # settle
        order = crud.lock_order(session, order_id)
        payment = crud.lock_payment(session, payment.id)
        actor = Actor(type="gateway", id=payment.gateway)
        if isinstance(charge, NotDone):
            fail_uncharged(session, order, payment, actor, context.request_id)
        else:
            settle(session, order, payment, charge, actor, context.request_id)
        return answer(payment, context.request_id)


def answer(payment: Payment, request_id: str) -> Answer:
    """What the request that opened this payment is told."""
    if payment.status == "failed" and payment.failure is not None:
        if payment.failure["code"] == "not_charged":
            return Answer.problem(GatewayUnavailable(payment_id=payment.id), request_id)
        return Answer.problem(
            PaymentDeclined(
                payment.failure["message"],
                decline_code=payment.failure["decline_code"],
                payment_id=payment.id,
            ),
            request_id,
        )
    shown = schemas.Payment.model_validate(payment)
    return Answer.resource(202 if payment.status == "pending" else 201, shown, _location(payment))


def settle(
    session: Session,
    order: Order,
    payment: Payment,
    charge: Charge,
    actor: Actor,
    request_id: str | None,
) -> None:
    """Write down what the gateway's books show. Order and payment are locked.

    A state that is older than ours changes nothing; one that contradicts ours, or an amount that
    is not ours, is left to a person.
    """
    if payment.gateway_reference is None:
        payment.gateway_reference = charge.reference
    target = TARGETS[charge.status]
    if target == "voided" and payment.status != "authorized":
        target = "canceled"
    if target is None or target == payment.status:
        session.flush()
        return
    ours = charge.amount == payment.amount and charge.currency == payment.currency
    if (payment.status, target) not in PAYMENT_MOVES or not ours:
        if not ours or (payment.status == "failed" and target in ("authorized", "captured")):
            payment.needs_review = True
            log.error("payment.needs_review", payment_id=payment.id, gateway_status=charge.status)
        session.flush()
        return
    payment.status = target
    if target == "captured":
        payment.amount_captured = charge.amount_captured
    if target == "failed":
        code = charge.decline.code if charge.decline else "generic_decline"
        payment.failure = {
            "code": "payment_declined",
            "decline_code": code,
            "message": decline_message(code),
        }
    _tell(session, order, payment, actor, request_id)
    follow = ORDER_FOLLOWS.get(target)
    if follow is not None and order.status != follow:
        orders.move(session, order, follow, actor=actor, request_id=request_id)


def fail_uncharged(
    session: Session, order: Order, payment: Payment, actor: Actor, request_id: str | None
) -> None:
    """The gateway was surely never asked; the order may be paid again."""
    payment.status = "failed"
    payment.failure = {
        "code": "not_charged",
        "decline_code": None,
        "message": "The gateway was not reached; nothing was charged.",
    }
    _tell(session, order, payment, actor, request_id)


def _tell(
    session: Session, order: Order, payment: Payment, actor: Actor, request_id: str | None
) -> None:
    session.flush()
    crud.add_event(
        session,
        TOLD_AS[payment.status],
        user_id=payment.user_id,
        order=order,
        actor=actor,
        request_id=request_id,
        data=schemas.Payment.model_validate(payment).model_dump(mode="json"),
    )


def _refuse_unpayable(session: Session, order: Order) -> None:
    live = crud.get_live_payment(session, order.id)
    if live is not None and live.status in ("pending", "requires_action"):
        raise PaymentInProgress(payment_id=live.id)
    if order.status == "canceled":
        raise InvalidStatusTransition(
            "A canceled order cannot be paid", current_status="canceled", allowed_statuses=[]
        )
    if order.status != "pending" or live is not None:
        members = {"payment_id": live.id} if live is not None else {}
        raise OrderAlreadyPaid(**members)


def _method(session: Session, order: Order, named: int | None) -> Row[Any]:
    method_id = named if named is not None else order.payment_method_id
    if method_id is None:
        method = crud.get_default_payment_method(session, order.user_id)
        if method is None:
            raise InvalidRequest.of(
                "payment_method_id", "missing", "Name a payment method, or save one first"
            )
        return method
    method = crud.get_payment_method(session, method_id, order.user_id)
    if method is None:
        raise PaymentMethodNotFound(payment_method_id=method_id)
    return method


def _location(payment: Payment) -> str:
    return f"/payments/{payment.id}"
