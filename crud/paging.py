"""Keyset pages, and which integers can be ids."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Row, Select, case, func, literal, select, text, tuple_
from sqlalchemy.orm import Session

import schemas
from models import LISTS_ALL, LISTS_BY_ONE_FILTER
from schemas import MAX_ID


def is_id(value: int | None) -> bool:
    """Whether a row can have this id; PostgreSQL refuses to compare with larger numbers."""
    return value is not None and 0 < value <= MAX_ID


def page_of(
    session: Session, query: Select[Any], key: Any, page: schemas.Page
) -> Sequence[Row[Any]]:
    """One page, newest first, and one row more when there is a next page (keyset pagination)."""
    cursor = _read_cursor(page)
    if cursor is not None:
        query = query.where(key < cursor)
    return session.execute(query.order_by(key.desc()).limit(page.limit + 1)).all()


def page_by_time(
    session: Session,
    query: Select[Any],
    table: Any,
    page: schemas.Page,
    *,
    filters: int,
    user_id: str | None,
    before: datetime | None = None,
) -> Sequence[Row[Any]]:
    """One page, newest first: by time, and by id where times are the same.

    Ids alone would not do: transactions end in another order than they begin, and clocks are set
    back. The cursor is the id of the last row that was shown, one of this user if one is given.
    `before` is where the list begins: a page begins there or at its cursor, whichever is earlier.
    `filters` is how many of the columns that have an index `query` compares (see `models`).
    """
    time, key = table.c.created_at, table.c.id
    cursor = _read_cursor(page)
    if cursor is not None:
        last = table.alias("last").c
        last_time, last_key = last.created_at, last.id
        if before is not None:  # ids begin at 1: what is under (before, 0) is what is before it
            last_time = func.least(last.created_at, before)
            last_key = case((last.created_at < before, last.id), else_=literal(0, BigInteger))
        if user_id is not None:  # a cursor of somebody else tells nothing of when that was
            last_time = case((last.user_id == user_id, last_time))
        place = select(last_time, last_key).where(last.id == cursor).scalar_subquery()
        query = query.where(tuple_(time, key) < place)
    elif before is not None:
        query = query.where(time < before)
    if filters <= 1:
        condition = LISTS_BY_ONE_FILTER if filters else LISTS_ALL
        query = query.where(text(f"{table.name}.{condition}"))
    query = query.order_by(time.desc(), key.desc()).limit(page.limit + 1)
    return session.execute(query).all()


def _read_cursor(page: schemas.Page) -> int | None:
    return None if page.cursor is None else min(int(page.cursor), MAX_ID)
