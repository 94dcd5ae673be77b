"""Deleting what has had its time, a batch at a time."""

from __future__ import annotations

from sqlalchemy import BigInteger, ColumnElement, Table, any_, delete, func, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session


def delete_oldest(session: Session, table: Table, is_old: ColumnElement[bool], limit: int) -> int:
    """Delete rows that are old, the oldest first, at most so many; return how many.

    Others skip what is taken (SKIP LOCKED), so any number of workers may do this at once.
    """
    oldest = (
        select(table.c.id)
        .where(is_old)
        .order_by(table.c.created_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    # As an array it is read once; in a join it may be read again, and the limit with it.
    ids = func.array(oldest.scalar_subquery(), type_=ARRAY(BigInteger))
    deleted = session.execute(delete(table).where(table.c.id == any_(ids)).returning(table.c.id))
    return len(deleted.all())
