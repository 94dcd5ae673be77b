"""Changes of status, each written together with its event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

import crud
import schemas
from database import NOW
from domain.events import Actor, EventType
from domain.states import OrderStatus, PaymentStatus, RefundStatus, ReviewReason
from models import Dispute, Order, Payment, PaymentMethod, Refund
from settlement.context import CallContext

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


def record_payment_method_event(
    session: Session, by: ChangedBy, event_type: EventType, method: PaymentMethod
) -> schemas.PaymentMethod:
    shown = schemas.PaymentMethod.model_validate(method)
    crud.add_event(
        session,
        event_type,
        user_id=method.user_id,
        actor=by.actor,
        request_id=by.request_id,
        data=shown.model_dump(mode="json"),
    )
    return shown


def transition_order(
    session: Session, by: ChangedBy, order: Order, status: OrderStatus
) -> schemas.Order:
    """Set the status of a locked order. The database refuses an illegal transition."""
    crud.set_order_status(session, order, status)
    shown = schemas.Order.model_validate(order)
    _add(session, by, "order.status_changed", order, shown)
    return shown


def transition_payment(
    session: Session, by: ChangedBy, order: Order, payment: Payment, status: PaymentStatus
) -> None:
    """Set the status of a locked payment. The database refuses an illegal transition."""
    payment.status = status
    order.last_sequence += 1
    session.flush()
    _add(session, by, PAYMENT_EVENTS[status], order, schemas.Payment.model_validate(payment))


def flag_for_review(
    session: Session, by: ChangedBy, order: Order, payment: Payment, reason: ReviewReason
) -> None:
    """Flag a payment for a person: a machine cannot settle it without guessing."""
    payment.needs_review, payment.review_reason = True, reason
    order.last_sequence += 1
    session.flush()
    _add(session, by, "payment.needs_review", order, schemas.Payment.model_validate(payment))


def record_review_ended(
    session: Session,
    by: ChangedBy,
    order: Order,
    payment: Payment,
    *,
    resolution: str,
    note: str,
) -> None:
    """End the review of a payment; the event says who ended it, what they found and why."""
    reason = payment.review_reason
    payment.needs_review, payment.review_reason = False, None
    payment.reviewed_at = NOW
    order.last_sequence += 1
    session.flush()
    shown = schemas.Payment.model_validate(payment).model_dump(mode="json")
    told = {"review": {"reason": reason, "resolution": resolution, "note": note}}
    _add_data(session, by, "payment.reviewed", order, shown | told)


def transition_refund(
    session: Session, by: ChangedBy, order: Order, refund: Refund, status: RefundStatus
) -> None:
    """Set the status of a locked refund; for a new one that is `pending`."""
    refund.status = status
    order.last_sequence += 1
    session.flush()
    _add(session, by, REFUND_EVENTS[status], order, schemas.Refund.model_validate(refund))


def record_dispute_event(session: Session, by: ChangedBy, order: Order, dispute: Dispute) -> None:
    order.last_sequence += 1
    event_type: EventType = "dispute.opened" if dispute.status == "open" else "dispute.closed"
    _add(session, by, event_type, order, schemas.Dispute.model_validate(dispute))


def _add(
    session: Session, by: ChangedBy, event_type: EventType, order: Order, shown: schemas.Out
) -> None:
    _add_data(session, by, event_type, order, shown.model_dump(mode="json"))


def _add_data(
    session: Session, by: ChangedBy, event_type: EventType, order: Order, data: dict[str, Any]
) -> None:
    crud.add_event(
        session,
        event_type,
        user_id=order.user_id,
        order=order,
        actor=by.actor,
        request_id=by.request_id,
        data=data,
    )
