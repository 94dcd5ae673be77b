"""Path ids, pages, and the owner filter of lists: what all resources share in their addresses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar
from urllib.parse import urlencode

from fastapi import Path, Request, Response
from pydantic import BeforeValidator

import schemas
from errors import Forbidden

T = TypeVar("T")


def _id(value: Any) -> int:
    # An id that no row can have is simply not found: the error handler makes 404 of a path error.
    if re.fullmatch(r"[1-9][0-9]{0,18}", str(value), re.ASCII) and int(value) <= schemas.MAX_ID:
        return int(value)
    raise ValueError


Id = Annotated[int, BeforeValidator(_id), Path(examples=[1])]


def next_page(
    request: Request,
    response: Response,
    rows: Sequence[T],
    page: schemas.Page,
    key: str = "id",
) -> Sequence[T]:
    """The rows of this page; a `Link` header leads to the next one (RFC 8288)."""
    shown = rows[: page.limit]
    if len(rows) > page.limit:
        query = {**request.query_params, "cursor": str(getattr(shown[-1], key))}
        response.headers["Link"] = f'<{request.url.path}?{urlencode(query)}>; rel="next"'
    return shown


def owner_filter(user_id: str | None, visible: str | None) -> str | None:
    """Whose rows a list shows; None is everyone's.

    `user_id` is what the query asks for, `visible` the one user whose rows the caller may see,
    or None for every user's. Raises Forbidden for somebody else's.
    """
    if user_id is not None and visible is not None and user_id != visible:
        raise Forbidden("Listing another user's resources needs the scope orders:manage")
    return user_id if user_id is not None else visible
