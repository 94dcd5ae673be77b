"""Disputes: shoppers who asked their banks for the money back. Their payment is locked first."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

import schemas
from crud.paging import is_id, page_of
from errors import NotFound
from models import Dispute, Payment

DISPUTE_COLUMNS = Dispute.__table__.c


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
    evidence_due_at: datetime | None = None,
) -> Dispute | None:
    """Write down a dispute; None when it is known to be so, or closed, already.

    A later `evidence_due_at` is kept in any case; an earlier one is old news, for gateways
    only prolong it.
    """
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
            evidence_due_at=evidence_due_at,
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
        .execution_options(populate_existing=True)
    ).one()
    due_at = dispute.evidence_due_at
    if evidence_due_at is not None and (due_at is None or evidence_due_at > due_at):
        dispute.evidence_due_at = evidence_due_at
    closes = status not in ("open", dispute.status)  # a won one may be lost, none is reopened
    if closes:
        dispute.status = status
    session.flush()
    return dispute if closes else None


def require_dispute(session: Session, dispute_id: int) -> Row[Any]:
    """The dispute, with its payment's order. Raises NotFound."""
    row = session.execute(
        _with_order().where(DISPUTE_COLUMNS.id == (dispute_id if is_id(dispute_id) else None))
    ).one_or_none()
    if row is None:
        raise NotFound
    return row


def list_disputes(session: Session, query: schemas.DisputeQuery) -> Sequence[Row[Any]]:
    """Disputes, each with its payment's order."""
    rows = _with_order()
    if query.payment_id is not None:
        if not is_id(query.payment_id):
            return []
        rows = rows.where(DISPUTE_COLUMNS.payment_id == query.payment_id)
    if query.status is not None:
        rows = rows.where(DISPUTE_COLUMNS.status == query.status)
    return page_of(session, rows, DISPUTE_COLUMNS.id, query)


def _with_order() -> Select[Any]:
    return select(*DISPUTE_COLUMNS, Payment.order_id).join(
        Payment, Payment.id == DISPUTE_COLUMNS.payment_id
    )
