"""What is locked for a change of money, and changes of status, each written with its event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy.orm import Session

import crud
import schemas
from database import NOW
from domain.events import Actor, EventType
from domain.states import OrderStatus, PaymentStatus, RefundStatus, ReviewReason
from gateways.base import Gateway
from models import Dispute, Order, Payment, PaymentMethod, Refund
from rows import PaymentRow
from settlement.context import CallContext

Shown = TypeVar("Shown", bound=schemas.Out)

PAYMENT_EVENTS: dict[PaymentStatus, EventType] = {
    "requires_action": "payment.requires_action",
    "pending": "payment.pending",  # the shopper has acted
    "authorized": "payment.authorized",
    "captured": "payment.captured",
    "failed": "payment.failed",
    "voided": "payment.voided",
    "canceled": "payment.canceled",
}
REFUND_EVENTS: dict[RefundStatus, EventType] = {
    "pending": "refund.created",
    "succeeded": "refund.succeeded",
    "failed": "refund.failed",
}


@dataclass(frozen=True, slots=True)
class ChangedBy:
    """Who made a change, and under which request, if it was one."""

    actor: Actor
    request_id: str | None

    @classmethod
    def caller(cls, context: CallContext) -> ChangedBy:
        return cls(context.actor, context.request_id)

    @classmethod
    def gateway(cls, name: str, request_id: str | None = None) -> ChangedBy:
        return cls(Actor(type="gateway", id=name), request_id)

    @classmethod
    def service(cls, name: str) -> ChangedBy:
        return cls(Actor(type="service", id=name), None)


@dataclass(frozen=True, slots=True)
class LockedPayment:
    """A payment and its order, locked until the transaction ends, and who changes them."""

    session: Session
    by: ChangedBy
    order: Order
    payment: Payment
    can_retrieve: bool = True  # whether the gateway can be asked about what contradicts our row


def lock_payment(
    session: Session, by: ChangedBy, known: Payment | PaymentRow, gateway: Gateway | None = None
) -> LockedPayment:
    """Lock the order, then the payment. Another sequence could deadlock.

    `gateway` is the one that may be asked about what contradicts our row.
    """
    can_retrieve = gateway is None or gateway.capabilities.can_retrieve
    order = crud.lock_order(session, known.user_id, known.order_id)
    payment = crud.lock_payment(session, known.user_id, known.id)
    return LockedPayment(session, by, order, payment, can_retrieve)


def lock_refund(
    session: Session,
    by: ChangedBy,
    known: Payment | PaymentRow,
    refund_id: int,
    gateway: Gateway | None = None,
) -> tuple[LockedPayment, Refund]:
    """Lock the order, the payment, then this refund of it."""
    locked = lock_payment(session, by, known, gateway)
    refund = crud.lock_refund(session, known.user_id, known.id, refund_id)
    assert refund is not None  # rows of money are never deleted
    return locked, refund


# Each of these flushes. The database refuses an illegal transition.


def record_payment_method_event(
    session: Session, by: ChangedBy, event_type: EventType, method: PaymentMethod
) -> schemas.PaymentMethod:
    shown = schemas.PaymentMethod.model_validate(method)
    _add(session, by, event_type, shown, method.user_id)
    return shown


def transition_order(
    session: Session, by: ChangedBy, order: Order, status: OrderStatus
) -> schemas.Order:
    order.status = status
    return _record(session, by, "order.status_changed", order, schemas.Order, order)


def transition_payment(locked: LockedPayment, status: PaymentStatus) -> None:
    locked.payment.status = status
    _record_payment(locked, PAYMENT_EVENTS[status])


def flag_for_review(locked: LockedPayment, reason: ReviewReason) -> None:
    """Flag a payment for a person: a machine cannot settle it without guessing."""
    locked.payment.needs_review, locked.payment.review_reason = True, reason
    _record_payment(locked, "payment.needs_review")


def record_review_ended(locked: LockedPayment, *, resolution: str, note: str) -> None:
    """End the review of a payment; the event says who ended it, what they found and why."""
    payment = locked.payment
    review = {"reason": payment.review_reason, "resolution": resolution, "note": note}
    payment.needs_review, payment.review_reason = False, None
    payment.reviewed_at = NOW
    _record_payment(locked, "payment.reviewed", review=review)


def transition_refund(locked: LockedPayment, refund: Refund, status: RefundStatus) -> None:
    """Set the status of a refund; for a new one that is `pending`."""
    refund.status = status
    event_type = REFUND_EVENTS[status]
    _record(locked.session, locked.by, event_type, locked.order, schemas.Refund, refund)


def record_dispute_event(locked: LockedPayment, dispute: Dispute) -> None:
    event_type: EventType = "dispute.opened" if dispute.status == "open" else "dispute.closed"
    _record(locked.session, locked.by, event_type, locked.order, schemas.Dispute, dispute)


def _record_payment(locked: LockedPayment, event_type: EventType, **more: Any) -> None:
    payment = schemas.Payment
    _record(locked.session, locked.by, event_type, locked.order, payment, locked.payment, **more)


def _record(
    session: Session,
    by: ChangedBy,
    event_type: EventType,
    order: Order,
    schema: type[Shown],
    row: object,
    **more: Any,
) -> Shown:
    """Flush a change, and write its event: the row as the API shows it now."""
    order.last_sequence += 1
    session.flush()
    shown = schema.model_validate(row)
    _add(session, by, event_type, shown, order.user_id, order, **more)
    return shown


def _add(
    session: Session,
    by: ChangedBy,
    event_type: EventType,
    shown: schemas.Out,
    user_id: str,
    order: Order | None = None,
    **more: Any,
) -> None:
    crud.add_event(
        session,
        event_type,
        user_id=user_id,
        order=order,
        actor=by.actor,
        request_id=by.request_id,
        data=shown.model_dump(mode="json") | more,
    )
