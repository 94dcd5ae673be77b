"""What gateways tell us: their events, each stored once."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from models import GatewayEvent


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
