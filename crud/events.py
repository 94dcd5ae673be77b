"""Events: written with the change they tell of, never changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, insert, select
from sqlalchemy.orm import Session

import schemas
from crud.paging import page_of
from domain.events import Actor, EventType
from models import Event, Order

EVENT_COLUMNS = Event.__table__.c


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

    With an order, which the caller has locked, its sequence is the order's `last_sequence`: the
    change that it tells of has counted it up, and so the two are one UPDATE.
    """
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
    return page_of(session, rows, EVENT_COLUMNS.sequence, page)
