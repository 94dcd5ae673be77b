"""What gateways tell us: their events, each stored once, and disputes."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from models import Dispute, GatewayEvent


def add_gateway_event(
    session: Session, gateway: str, event_id: str, event_type: str, payment_id: int | None
) -> bool:
    """Store an event; False when it was stored before."""
    stored = session.scalar(
        upsert(GatewayEvent)
        .values(gateway=gateway, event_id=event_id, type=event_type, payment_id=payment_id)
        .on_conflict_do_nothing()
        .returning(GatewayEvent.id)
    )
    return stored is not None


def save_dispute(
    session: Session,
    *,
    payment_id: int,
    gateway: str,
    gateway_reference: str,
    status: str,
    amount: int,
    currency: str,
    reason: str,
) -> Dispute | None:
    """Write down a dispute; None when it is known to be so, or closed, already."""
    created: Dispute | None = session.scalar(
        upsert(Dispute)
        .values(
            payment_id=payment_id,
            gateway=gateway,
            gateway_reference=gateway_reference,
            status=status,
            amount=amount,
            currency=currency,
            reason=reason,
        )
        .on_conflict_do_nothing()
        .returning(Dispute)
    )
    if created is not None:
        return created
    dispute = session.scalars(
        select(Dispute)
        .where(Dispute.gateway == gateway, Dispute.gateway_reference == gateway_reference)
        .with_for_update()
    ).one()
    if status in ("open", dispute.status):
        return None  # what was won may still be lost, but is never open again
    dispute.status = status
    session.flush()
    return dispute
