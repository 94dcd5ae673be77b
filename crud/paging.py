"""Keyset pages, and which integers can be ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, Select
from sqlalchemy.orm import Session

import schemas
from errors import InvalidRequest
from schemas import MAX_ID


def is_id(value: int | None) -> bool:
    """Whether a row can have this id; PostgreSQL refuses to compare with larger numbers."""
    return value is not None and 0 < value <= MAX_ID


def page_of(
    session: Session, query: Select[Any], key: Any, page: schemas.Page
) -> Sequence[Row[Any]]:
    """One page, newest first, and one row more when there is a next page (keyset pagination)."""
    if page.cursor is not None:
        if not (page.cursor.isascii() and page.cursor.isdigit() and is_id(int(page.cursor))):
            raise InvalidRequest.of(
                "cursor", "cursor", "Use the cursor of a `Link` header, unchanged"
            )
        query = query.where(key < int(page.cursor))
    return session.execute(query.order_by(key.desc()).limit(page.limit + 1)).all()
