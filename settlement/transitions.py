"""What is locked for a change of money, and changes of status, each written with its event."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import idempotency_keys
import locks
import schemas
from database import phase
from domain.events import Actor, EventType
from domain.states import OrderStatus, PaymentStatus, RefundStatus, ReviewReason
from gateways.base import Gateway
from idempotency_keys import StoredResponse, WaitingKey
from models import PaymentMethod
from rows import DisputeRow, OrderRow, PaymentMethodRow, PaymentRow, RefundRow, columns_of
from sessions import Session
from settlement import responses
from settlement.context import CallContext
from statements import Changes

Row = OrderRow | PaymentRow | RefundRow | DisputeRow

COUNTED_BY_A_TRIGGER = "refund_reserved"

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


@dataclass(slots=True)
class LockedOrder:
    """An order, locked until the transaction ends, and what changes of it and of its payment.

    Changes are made to the rows and kept in memory; `write` sends all of them as one statement.
    """

    session: Session
    by: ChangedBy
    now: datetime  # the begin of the transaction, by the database's clock
    order: OrderRow
    context: CallContext | None = None  # of the request that makes the change, if it is one
    _before: list[tuple[Row, tuple[Any, ...]]] = field(default_factory=list)
    _events: list[Mapping[str, Any]] = field(default_factory=list)
    _shown: dict[int, tuple[tuple[Any, ...], str]] = field(default_factory=dict)
    _changes: Changes = field(default_factory=Changes)
    _answer: int | None = None  # the part of the changes that answers the request itself
    _is_answered: bool = False  # once it is committed

    def __post_init__(self) -> None:
        self.watch(self.order)

    def watch(self, row: Row) -> None:
        """Write what changes of this row, which is locked, from now on."""
        self._before.append((row, _values_of(row)))

    def touch(self) -> None:
        """Date what has changed, before it is shown."""
        for row, before in self._before:
            if row.updated_at != self.now and _values_of(row) != before:
                row.updated_at = self.now

    def record(
        self, event_type: EventType, schema: type[schemas.Out], row: Row, **more: Any
    ) -> None:
        """Write an event with the change: the row as the API shows it now."""
        self.order.last_sequence += 1
        self.touch()
        shown = self.show(schema, row)
        self._events.append(
            locks.event_values(
                event_type,
                user_id=self.order.user_id,
                order=self.order,
                actor=self.by.actor,
                request_id=self.by.request_id,
                data=f"{shown[:-1]},{json.dumps(more)[1:]}" if more else shown,
            )
        )

    def show(self, schema: type[schemas.Out], row: Row) -> str:
        """The row as the API shows it, as JSON: once for its event, its key and its caller."""
        values = _values_of(row)
        known = self._shown.get(id(row))
        if known is not None and known[0] == values:
            return known[1]
        shown = responses.show(schema, row)
        self._shown[id(row)] = (values, shown)
        return shown

    def insert(self, table: Any, values: Mapping[str, Any], required: Exception) -> None:
        """Insert a row with the changes. `required` is raised by `write` if it is there already."""
        self._changes.insert(table, [values], required=required)

    def link_gateway_request(self, gateway_key: str) -> None:
        """The request that makes the change waits for the outcome of this gateway request.

        `write` raises IdempotencyInProgress when a repeat has taken its key over.
        """
        assert self.context is not None
        self.context.link_gateway_request(self._changes, gateway_key)

    def answer(self, gateway_key: str, render: Callable[[str], StoredResponse]) -> None:
        """Answer the requests that wait for the outcome of this gateway request: the request
        itself, and every Idempotency-Key. `render` takes the id of the request to answer."""
        context = self.context
        if context is None or context.gateway_key != gateway_key:
            for key in idempotency_keys.list_waiting_keys(self.session, gateway_key):
                self._store(key, render(key.request_id))
            return
        context.response = render(context.request_id)  # only it is linked to what it has asked for
        if context.key is not None:
            own = WaitingKey(context.key.value, context.principal.user_id, context.request_id)
            self._answer = self._store(own, context.response)

    def _store(self, key: WaitingKey, response: StoredResponse) -> int:
        return idempotency_keys.store_response(self._changes, key.user_id, key.key, response)

    def write(self) -> None:
        """Send what has changed, with its events. Raises what an insert requires."""
        self.touch()
        for row, before in self._before:
            changed = {
                name: getattr(row, name)
                for name, was in zip(_names(row), before, strict=True)
                if getattr(row, name) != was and name != COUNTED_BY_A_TRIGGER
            }
            if changed:
                is_it = {"user_id": row.user_id, "id": row.id}
                self._changes.update(locks.TABLES[type(row)], is_it, changed)
        if self._events:
            self._changes.insert(locks.EVENTS, self._events)
        changes, answer = self._changes, self._answer
        self._before = [(row, _values_of(row)) for row, _ in self._before]
        self._events, self._changes, self._answer = [], Changes(), None
        written = changes.send(self.session)
        if answer is not None:
            self._is_answered = bool(written[answer])

    def committed(self) -> None:
        """Tell the request whether it is answered. Until the commit it is not."""
        if self._is_answered and self.context is not None and self.context.key is not None:
            self.context.key.is_answered = True


@dataclass(slots=True)
class LockedPayment(LockedOrder):
    """A payment and its order, locked until the transaction ends, and what changes of them."""

    payment: PaymentRow = field(kw_only=True)
    can_retrieve: bool = True  # whether the gateway can be asked about what contradicts our row

    def __post_init__(self) -> None:
        LockedOrder.__post_init__(self)
        self.watch(self.payment)


def _names(row: Row) -> tuple[str, ...]:
    kind: type = type(row)
    return columns_of(kind)


def _values_of(row: Row) -> tuple[Any, ...]:
    return tuple([getattr(row, name) for name in _names(row)])


@contextmanager
def locked_order(
    session: Session, context: CallContext, user_id: str, order_id: int
) -> Iterator[LockedOrder]:
    """A transaction that has locked an order, and writes what changes of it."""
    with phase(session):
        now, order = locks.lock_order(session, user_id, order_id)
        locked = LockedOrder(session, ChangedBy.caller(context), now, order, context)
        yield locked
        locked.write()


@contextmanager
def locked_payment(
    session: Session,
    by: ChangedBy,
    known: PaymentRow,
    gateway: Gateway | None = None,
    context: CallContext | None = None,
) -> Iterator[LockedPayment]:
    """A transaction that has locked a payment and its order, and writes what changes of them.

    `gateway` is the one that may be asked about what contradicts our row.
    """
    can_retrieve = gateway is None or gateway.capabilities.can_retrieve
    with phase(session):
        now, order, payment = locks.lock_payment(session, known.user_id, known.order_id, known.id)
        locked = LockedPayment(
            session, by, now, order, context, payment=payment, can_retrieve=can_retrieve
        )
        yield locked
        locked.write()
    locked.committed()


def lock_refund(locked: LockedPayment, refund_id: int) -> RefundRow | None:
    """Lock a refund of a locked payment; None if it has no such refund."""
    payment = locked.payment
    refund = locks.lock_refund(locked.session, payment.user_id, payment.id, refund_id)
    if refund is not None:
        locked.watch(refund)
    return refund


# Each of these writes an event. The database refuses an illegal transition.


def record_payment_method_event(
    session: Session,
    by: ChangedBy,
    event_type: EventType,
    method: PaymentMethod | PaymentMethodRow,
) -> schemas.PaymentMethod:
    shown = schemas.PaymentMethod.model_validate(method)
    changes = Changes()
    event = locks.event_values(
        event_type,
        user_id=method.user_id,
        actor=by.actor,
        request_id=by.request_id,
        data=shown.model_dump_json(),
    )
    changes.insert(locks.EVENTS, [event])
    changes.send(session)
    return shown


def transition_order(locked: LockedOrder, status: OrderStatus) -> None:
    locked.order.status = status
    locked.record("order.status_changed", schemas.Order, locked.order)


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
    payment.reviewed_at = locked.now
    _record_payment(locked, "payment.reviewed", review=review)


def transition_refund(locked: LockedPayment, refund: RefundRow, status: RefundStatus) -> None:
    """Set the status of a locked refund; for a new one that is `pending`."""
    if status == "failed" and refund.status != "failed":
        locked.payment.refund_reserved -= refund.amount  # the database does so by a trigger
    refund.status = status
    locked.record(REFUND_EVENTS[status], schemas.Refund, refund)


def record_dispute_event(locked: LockedPayment, dispute: DisputeRow) -> None:
    event_type: EventType = "dispute.opened" if dispute.status == "open" else "dispute.closed"
    locked.record(event_type, schemas.Dispute, dispute)


def _record_payment(locked: LockedPayment, event_type: EventType, **more: Any) -> None:
    locked.record(event_type, schemas.Payment, locked.payment, **more)
