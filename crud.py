"""Every SQL statement of the service. Functions flush and never commit: services own the commits.

`get_x` returns a row or None, `require_x` a row or raises NotFound, `lock_x` holds the row until
the transaction ends. Where a reader is given, None means that everybody's rows may be seen.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, Select, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

import schemas
from domain.events import Actor, EventType
from domain.states import DEAD_PAYMENT_STATUSES, CaptureMethod, OrderStatus
from errors import InvalidRequest, NotFound
from models import Event, Order, Payment, PaymentMethod
from schemas import MAX_ID

# Reads bypass the ORM's identity map: a row is read once, shown and forgotten.
METHOD_COLUMNS = PaymentMethod.__table__.c
ORDER_COLUMNS = Order.__table__.c
EVENT_COLUMNS = Event.__table__.c
PAYMENT_COLUMNS = Payment.__table__.c


def _is_id(value: int | None) -> bool:
    """Whether a row can have this id; PostgreSQL refuses to compare with larger numbers."""
    return value is not None and 0 < value <= MAX_ID


def _page(session: Session, query: Select[Any], key: Any, page: schemas.Page) -> Sequence[Row[Any]]:
    """One page, newest first, and one row more when there is a next page (keyset pagination)."""
    if page.cursor is not None:
        if not (page.cursor.isascii() and page.cursor.isdigit() and _is_id(int(page.cursor))):
            raise InvalidRequest.of(
                "cursor", "cursor", "Use the cursor of a `Link` header, unchanged"
            )
        query = query.where(key < int(page.cursor))
    return session.execute(query.order_by(key.desc()).limit(page.limit + 1)).all()


# Payment methods --------------------------------------------------------------------------------


def lock_user(session: Session, user_id: str) -> None:
    """Let one transaction at a time change which methods a user has, and which is the default.

    There is no row to lock for a user who has none yet. The lock ends with the transaction.
    """
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(user_id, 0))))


def find_payment_method(
    session: Session, user_id: str, fingerprints: Sequence[str]
) -> Row[Any] | None:
    """The user's active method with one of these fingerprints."""
    return session.execute(
        select(METHOD_COLUMNS.id).where(
            METHOD_COLUMNS.user_id == user_id,
            METHOD_COLUMNS.fingerprint.in_(fingerprints),
            METHOD_COLUMNS.is_active,
        )
    ).first()


def create_payment_method(session: Session, **values: Any) -> PaymentMethod | None:
    """Insert a method; None when the user already has an active one with its fingerprint."""
    return session.scalar(
        upsert(PaymentMethod).values(**values).on_conflict_do_nothing().returning(PaymentMethod)
    )


def get_payment_method(session: Session, method_id: int, reader: str | None) -> Row[Any] | None:
    """An active method that the reader may see."""
    if not _is_id(method_id):
        return None
    query = select(*METHOD_COLUMNS).where(METHOD_COLUMNS.id == method_id, METHOD_COLUMNS.is_active)
    if reader is not None:
        query = query.where(METHOD_COLUMNS.user_id == reader)
    return session.execute(query).one_or_none()


def require_payment_method(session: Session, method_id: int, reader: str | None) -> Row[Any]:
    row = get_payment_method(session, method_id, reader)
    if row is None:
        raise NotFound
    return row


def get_default_payment_method(session: Session, user_id: str) -> Row[Any] | None:
    return session.execute(
        select(*METHOD_COLUMNS).where(
            METHOD_COLUMNS.user_id == user_id, METHOD_COLUMNS.is_active, METHOD_COLUMNS.is_default
        )
    ).one_or_none()


def lock_payment_method(session: Session, method_id: int, user_id: str) -> PaymentMethod:
    """The user's active method. Raises NotFound."""
    method = session.scalar(
        select(PaymentMethod)
        .where(
            PaymentMethod.id == method_id,
            PaymentMethod.user_id == user_id,
            PaymentMethod.is_active,
        )
        .with_for_update()
    )
    if method is None:
        raise NotFound
    return method


def list_payment_methods(
    session: Session, query: schemas.PaymentMethodQuery, user_id: str
) -> Sequence[Row[Any]]:
    rows = select(*METHOD_COLUMNS).where(
        METHOD_COLUMNS.user_id == user_id, METHOD_COLUMNS.is_active
    )
    return _page(session, rows, METHOD_COLUMNS.id, query)


def clear_default_payment_method(session: Session, user_id: str) -> PaymentMethod | None:
    """Take the default away from the method that has it, and return that method."""
    return session.scalar(
        update(PaymentMethod)
        .where(PaymentMethod.user_id == user_id, PaymentMethod.is_active, PaymentMethod.is_default)
        .values(is_default=False)
        .returning(PaymentMethod)
    )


def promote_newest_payment_method(session: Session, user_id: str) -> PaymentMethod | None:
    """Make the user's newest active method the default one."""
    newest = (
        select(func.max(METHOD_COLUMNS.id))
        .where(METHOD_COLUMNS.user_id == user_id, METHOD_COLUMNS.is_active)
        .scalar_subquery()
    )
    return session.scalar(
        update(PaymentMethod)
        .where(PaymentMethod.id == newest)
        .values(is_default=True)
        .returning(PaymentMethod)
    )


# Orders -----------------------------------------------------------------------------------------


def create_order(
    session: Session, data: schemas.OrderCreate, *, user_id: str, currency: str
) -> Order | None:
    """Insert an order; None when its payment method is not an active one of the same user."""
    values: dict[str, Any] = {
        "user_id": user_id,
        "product_id": data.product_id,
        "quantity": data.quantity,
        "total_amount": data.total_amount,
        "currency": currency,
        "payment_method_id": data.payment_method_id,
        "metadata": data.metadata,
    }
    if data.payment_method_id is not None:
        method = get_payment_method(session, data.payment_method_id, user_id)
        if method is None:
            return None
    return session.scalar(insert(Order).values(values).returning(Order))


def get_order(session: Session, order_id: int, reader: str | None) -> Row[Any] | None:
    if not _is_id(order_id):
        return None
    query = select(*ORDER_COLUMNS).where(ORDER_COLUMNS.id == order_id)
    if reader is not None:
        query = query.where(ORDER_COLUMNS.user_id == reader)
    return session.execute(query).one_or_none()


def require_order(session: Session, order_id: int, reader: str | None) -> Row[Any]:
    row = get_order(session, order_id, reader)
    if row is None:
        raise NotFound
    return row


def lock_order(session: Session, order_id: int, reader: str | None = None) -> Order:
    """The order, locked. Payments and refunds are only ever locked after it. Raises NotFound."""
    query = select(Order).where(Order.id == order_id)
    if reader is not None:
        query = query.where(Order.user_id == reader)
    order = (
        session.scalar(query.with_for_update().execution_options(populate_existing=True))
        if _is_id(order_id)
        else None
    )
    if order is None:
        raise NotFound
    return order


def list_orders(
    session: Session, query: schemas.OrderQuery, user_id: str | None
) -> Sequence[Row[Any]]:
    rows = select(*ORDER_COLUMNS)
    if user_id is not None:
        rows = rows.where(ORDER_COLUMNS.user_id == user_id)
    if query.status is not None:
        rows = rows.where(ORDER_COLUMNS.status == query.status)
    if query.created_after is not None:
        rows = rows.where(ORDER_COLUMNS.created_at > query.created_after)
    if query.created_before is not None:
        rows = rows.where(ORDER_COLUMNS.created_at < query.created_before)
    if query.payment_method_id is not None:
        if not _is_id(query.payment_method_id):
            return []
        rows = rows.where(ORDER_COLUMNS.payment_method_id == query.payment_method_id)
    return _page(session, rows, ORDER_COLUMNS.id, query)


def set_order_status(session: Session, order: Order, status: OrderStatus) -> None:
    order.status = status
    session.flush()


# Events -----------------------------------------------------------------------------------------


def add_event(
    session: Session,
    event_type: EventType,
    *,
    user_id: str,
    actor: Actor,
    request_id: str | None,
    data: dict[str, Any],
    order: Order | None = None,
) -> None:
    """Write an event into the transaction of the change it tells of.

    With an order, which the caller has locked, it takes the order's next sequence number.
    """
    if order is not None:
        order.last_sequence += 1
    session.execute(
        insert(Event).values(
            type=event_type,
            user_id=user_id,
            order_id=order.id if order is not None else None,
            sequence=order.last_sequence if order is not None else None,
            actor=actor,
            request_id=request_id,
            data=data,
        )
    )


def list_order_events(session: Session, order_id: int, page: schemas.Page) -> Sequence[Row[Any]]:
    """The order's history; its sequence is the cursor."""
    rows = select(*EVENT_COLUMNS).where(EVENT_COLUMNS.order_id == order_id)
    return _page(session, rows, EVENT_COLUMNS.sequence, page)


# Payments ---------------------------------------------------------------------------------------


def open_payment(
    session: Session,
    order: Order,
    method: Row[Any],
    capture_method: CaptureMethod,
) -> Payment | None:
    """Claim the one live payment that an order can have; None when it has one already."""
    return session.scalar(
        upsert(Payment)
        .values(
            order_id=order.id,
            user_id=order.user_id,
            payment_method_id=method.id,
            gateway=method.gateway,
            gateway_key=str(uuid.uuid4()),
            amount=order.total_amount,
            currency=order.currency,
            capture_method=capture_method,
        )
        .on_conflict_do_nothing()
        .returning(Payment)
    )


def get_live_payment(session: Session, order_id: int) -> Row[Any] | None:
    """The payment of this order that holds, took or may yet take money."""
    return session.execute(
        select(*PAYMENT_COLUMNS).where(
            PAYMENT_COLUMNS.order_id == order_id,
            PAYMENT_COLUMNS.status.not_in(DEAD_PAYMENT_STATUSES),
        )
    ).one_or_none()


def get_payment(session: Session, payment_id: int, reader: str | None) -> Row[Any] | None:
    if not _is_id(payment_id):
        return None
    query = select(*PAYMENT_COLUMNS).where(PAYMENT_COLUMNS.id == payment_id)
    if reader is not None:
        query = query.where(PAYMENT_COLUMNS.user_id == reader)
    return session.execute(query).one_or_none()


def require_payment(session: Session, payment_id: int, reader: str | None) -> Row[Any]:
    row = get_payment(session, payment_id, reader)
    if row is None:
        raise NotFound
    return row


def lock_payment(session: Session, payment_id: int) -> Payment:
    """The payment, locked; its order was locked before it. Raises NotFound."""
    payment = session.scalar(
        select(Payment)
        .where(Payment.id == payment_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    if payment is None:
        raise NotFound
    return payment


def list_payments(
    session: Session, query: schemas.PaymentQuery, user_id: str | None
) -> Sequence[Row[Any]]:
    rows = select(*PAYMENT_COLUMNS)
    if user_id is not None:
        rows = rows.where(PAYMENT_COLUMNS.user_id == user_id)
    if query.order_id is not None:
        if not _is_id(query.order_id):
            return []
        rows = rows.where(PAYMENT_COLUMNS.order_id == query.order_id)
    if query.status is not None:
        rows = rows.where(PAYMENT_COLUMNS.status == query.status)
    if query.needs_review is not None:
        rows = rows.where(PAYMENT_COLUMNS.needs_review.is_(query.needs_review))
    return _page(session, rows, PAYMENT_COLUMNS.id, query)
