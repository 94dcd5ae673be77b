"""Orders. Whoever changes the money of an order locks it first, then its payment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, insert, select
from sqlalchemy.orm import Session

import schemas
from crud.paging import is_id, page_by_time
from crud.payment_methods import get_payment_method, is_method_of
from domain.states import OrderStatus
from errors import NotFound
from models import Order

ORDER_COLUMNS = Order.__table__.c


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
        "metadata_": data.metadata,
        "last_sequence": 1,  # the event of its creation, written right after
    }
    if data.payment_method_id is not None:
        method = get_payment_method(session, data.payment_method_id, user_id)
        if method is None:
            return None
    return session.scalar(insert(Order).values(values).returning(Order))


def get_order(session: Session, order_id: int, reader: str | None) -> Row[Any] | None:
    if not is_id(order_id):
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
        if is_id(order_id)
        else None
    )
    if order is None:
        raise NotFound
    return order


def list_orders(
    session: Session, query: schemas.OrderQuery, user_id: str | None
) -> Sequence[Row[Any]]:
    """The orders of one user, or of everybody."""
    rows = select(*ORDER_COLUMNS)
    if query.status is not None:
        rows = rows.where(ORDER_COLUMNS.status == query.status)
    if query.created_after is not None:
        rows = rows.where(ORDER_COLUMNS.created_at > query.created_after)
    if query.payment_method_id is not None:
        if not is_id(query.payment_method_id):
            return []
        rows = rows.where(ORDER_COLUMNS.payment_method_id == query.payment_method_id)
        if user_id is not None:  # all orders of a method are its user's
            rows = rows.where(is_method_of(query.payment_method_id, user_id))
    elif user_id is not None:
        rows = rows.where(ORDER_COLUMNS.user_id == user_id)
    of_one = user_id is not None or query.payment_method_id is not None
    return page_by_time(
        session,
        rows,
        Order.__table__,
        query,
        filters=of_one + (query.status is not None),
        user_id=user_id,
        before=query.created_before,
    )


def set_order_status(session: Session, order: Order, status: OrderStatus) -> None:
    """Move a locked order; the event that tells of it has the order's next sequence number."""
    order.status = status
    order.last_sequence += 1
    session.flush()
