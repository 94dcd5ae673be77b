"""Refunds. Their payment, and its order, are locked before them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, func, insert, select
from sqlalchemy.orm import Session

import schemas
from crud.paging import is_id, page_of
from database import age, seconds_from_now
from domain.states import RefundOrigin
from errors import NotFound
from models import Dispute, Payment, Refund

REFUND_COLUMNS = Refund.__table__.c
PAYMENT_COLUMNS = Payment.__table__.c


def open_refund(
    session: Session,
    payment: Payment,
    *,
    amount: int,
    reason: str | None,
    lookup_after: float,
    origin: RefundOrigin = "service",
) -> Refund:
    """Reserve the amount. The payment is locked, and the caller has checked what is left of it;
    a trigger and a CHECK refuse more than was captured all the same."""
    refund = session.scalars(
        insert(Refund)
        .values(
            payment_id=payment.id,
            gateway=payment.gateway,
            gateway_key=str(uuid.uuid4()),
            amount=amount,
            currency=payment.currency,
            reason=reason,
            origin=origin,
            next_lookup_at=seconds_from_now(lookup_after),
        )
        .returning(Refund)
    ).one()
    session.refresh(payment, ["refund_reserved"])
    return refund


def get_blocking_dispute(session: Session, payment_id: int) -> int | None:
    """The id of a dispute of this payment that is open or lost: its money goes back, or may."""
    return session.scalar(
        select(Dispute.id)
        .where(Dispute.payment_id == payment_id, Dispute.status.in_(("open", "lost")))
        .order_by(Dispute.id.desc())
        .limit(1)
    )


def lock_refund(session: Session, refund_id: int, payment_id: int) -> Refund | None:
    """The refund, locked, if it is one of this payment."""
    return session.scalar(
        select(Refund)
        .where(
            Refund.id == (refund_id if is_id(refund_id) else None), Refund.payment_id == payment_id
        )
        .with_for_update()
        .execution_options(populate_existing=True)
    )


def lock_refund_of_state(
    session: Session, payment_id: int, reference: str, refund_id: int | None
) -> Refund | None:
    """The refund of this payment that its gateway means, locked: the one that it calls so, or
    else the one whose id of ours it shows."""
    named = session.scalar(
        select(Refund)
        .where(Refund.payment_id == payment_id, Refund.gateway_reference == reference)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    if named is not None or refund_id is None:
        return named
    return lock_refund(session, refund_id, payment_id)


def lock_pending_refunds(session: Session, payment_id: int) -> Sequence[Refund]:
    """The refunds of this payment that are not settled, locked."""
    return session.scalars(
        select(Refund)
        .where(Refund.payment_id == payment_id, Refund.status == "pending")
        .order_by(Refund.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).all()


def require_refund(session: Session, payment_id: int, refund_id: int) -> Row[Any]:
    row = session.execute(
        select(*REFUND_COLUMNS).where(
            REFUND_COLUMNS.id == (refund_id if is_id(refund_id) else None),
            REFUND_COLUMNS.payment_id == payment_id,
        )
    ).one_or_none()
    if row is None:
        raise NotFound
    return row


def require_refund_to_look_up(session: Session, refund_id: int) -> Row[Any]:
    """The refund, with its ages in seconds; see `require_payment_to_look_up`."""
    looked_at = func.greatest(REFUND_COLUMNS.requested_at, PAYMENT_COLUMNS.reviewed_at)
    return session.execute(
        select(
            *[
                *REFUND_COLUMNS,
                age(REFUND_COLUMNS.requested_at).label("open_for"),
                age(looked_at).label("unreviewed_for"),
            ]
        )
        .join(PAYMENT_COLUMNS.id.table, PAYMENT_COLUMNS.id == REFUND_COLUMNS.payment_id)
        .where(REFUND_COLUMNS.id == refund_id)
    ).one()


def get_refund_of_key(session: Session, gateway_key: str) -> Row[Any] | None:
    return session.execute(
        select(*REFUND_COLUMNS).where(REFUND_COLUMNS.gateway_key == gateway_key)
    ).one_or_none()


def list_refunds(session: Session, payment_id: int, page: schemas.Page) -> Sequence[Row[Any]]:
    rows = select(*REFUND_COLUMNS).where(REFUND_COLUMNS.payment_id == payment_id)
    return page_of(session, rows, REFUND_COLUMNS.id, page)
