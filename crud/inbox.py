"""What gateways tell us: their events, each stored once."""

from __future__ import annotations

from typing import cast

from sqlalchemy import Table, func, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from crud.reaping import delete_oldest
from models import GatewayEvent

EVENTS = cast(Table, GatewayEvent.__table__)


def add_gateway_event(
    session: Session,
    gateway: str,
    event_id: str,
    event_type: str,
    payment_id: int | None,
    delivery_id: str | None = None,
) -> bool:
    """Store an event; False when it was stored before, or came in a delivery that was."""
    stored = session.scalar(
        upsert(GatewayEvent)
        .values(
            gateway=gateway,
            event_id=event_id,
            delivery_id=delivery_id,
            type=event_type,
            payment_id=payment_id,
        )
        .on_conflict_do_nothing()
        .returning(GatewayEvent.id)
    )
    return stored is not None


def is_known_delivery(session: Session, gateway: str, delivery_id: str) -> bool:
    """Whether an event of this delivery was stored."""
    query = select(GatewayEvent.id).where(
        GatewayEvent.gateway == gateway, GatewayEvent.delivery_id == delivery_id
    )
    return session.scalar(query) is not None


def delete_old_gateway_events(session: Session, days: int, limit: int) -> int:
    """Forget events that are older than any repeat of them: the oldest, at most so many.

    Each was applied in the transaction that stored it. An event that did come again would be
    applied again, and, as a hint, move nothing back.
    """
    is_old = EVENTS.c.created_at < func.now() - func.make_interval(0, 0, 0, days)
    return delete_oldest(session, EVENTS, is_old, limit)
