"""What is read to compare our books with a gateway's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Row, Table, any_, func, literal, or_, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY, TEXT
from sqlalchemy.orm import Session

from models import Comparison, Dispute, Payment, Refund

COMPARISONS = cast(Table, Comparison.__table__)
PAYMENTS = Payment.__table__.c
REFUNDS = Refund.__table__.c
DISPUTES = Dispute.__table__.c


def read_clock(session: Session) -> datetime:
    """The time by the database's clock."""
    now: datetime = session.execute(select(func.now())).scalar_one()
    return now


def list_payments_of_charges(
    session: Session, gateway: str, keys: Sequence[str], references: Sequence[str]
) -> Sequence[Row[Any]]:
    """The payments that charges in a gateway's list are, by our key or its reference."""
    return session.execute(
        select(*PAYMENTS).where(
            PAYMENTS.gateway == gateway,
            or_(
                PAYMENTS.gateway_key == any_(literal(list(keys), ARRAY(TEXT))),
                PAYMENTS.gateway_reference == any_(literal(list(references), ARRAY(TEXT))),
            ),
        )
    ).all()


def list_refunds_of_payments(session: Session, payment_ids: Sequence[int]) -> Sequence[Row[Any]]:
    return session.execute(select(*REFUNDS).where(REFUNDS.payment_id.in_(payment_ids))).all()


def list_disputes_by_reference(
    session: Session, gateway: str, references: Sequence[str]
) -> Sequence[Row[Any]]:
    return session.execute(
        select(*DISPUTES).where(
            DISPUTES.gateway == gateway, DISPUTES.gateway_reference.in_(references)
        )
    ).all()


def list_recent_payments(
    session: Session, gateway: str, since: datetime | None, after: Row[Any] | None, limit: int
) -> Sequence[Row[Any]]:
    """A page of this gateway's payments since then, newest first, after the last one seen."""
    query = select(*PAYMENTS).where(PAYMENTS.gateway == gateway)
    if since is not None:
        query = query.where(PAYMENTS.created_at >= since)
    if after is not None:
        place = tuple_(after.created_at, after.id)
        query = query.where(tuple_(PAYMENTS.created_at, PAYMENTS.id) < place)
    # By time, as the index of a gateway's payments is: by id the newest of all would be walked
    # through, and a gateway that was switched off long ago has none among them.
    newest = (PAYMENTS.created_at.desc(), PAYMENTS.id.desc())
    return session.execute(query.order_by(*newest).limit(limit)).all()
