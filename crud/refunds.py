"""Refunds. Their payment, and its order, are locked before them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, insert, select, true
from sqlalchemy.orm import Session

import schemas
from crud.due import after, is_at, take_due
from crud.paging import is_id, page_of
from errors import NotFound
from models import Payment, Refund

REFUND_COLUMNS = Refund.__table__.c


def open_refund(
    session: Session, payment: Payment, *, amount: int, reason: str | None, check_after: float
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
            check_at=after(check_after),
        )
        .returning(Refund)
    ).one()
    session.refresh(payment, ["refund_reserved"])
    return refund


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


def lock_refund_by_reference(session: Session, payment_id: int, reference: str) -> Refund | None:
    """The refund of this payment that its gateway calls so, locked."""
    return session.scalar(
        select(Refund)
        .where(Refund.payment_id == payment_id, Refund.gateway_reference == reference)
        .with_for_update()
        .execution_options(populate_existing=True)
    )


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


def get_refund_of_key(session: Session, gateway_key: str) -> Row[Any] | None:
    return session.execute(
        select(*REFUND_COLUMNS).where(REFUND_COLUMNS.gateway_key == gateway_key)
    ).one_or_none()


def list_refunds(session: Session, payment_id: int, page: schemas.Page) -> Sequence[Row[Any]]:
    rows = select(*REFUND_COLUMNS).where(REFUND_COLUMNS.payment_id == payment_id)
    return page_of(session, rows, REFUND_COLUMNS.id, page)


def take_due_refunds(
    session: Session,
    limit: int,
    ids: Sequence[int] | None = None,
    *,
    of: str | None = None,
    but: Sequence[str] | None = None,
) -> Sequence[Row[Any]]:
    """Refunds whose gateway is to be asked now; see `take_due_payments`."""
    at_gateway: ColumnElement[bool] = true()
    if of is not None or but is not None:
        at_gateway = REFUND_COLUMNS.payment_id.in_(select(Payment.id).where(is_at(of, but)))
    return session.execute(take_due(Refund, limit, ids, at_gateway)).all()
