"""Path ids and pages: what all resources share in their addresses."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeVar
from urllib.parse import urlencode

from fastapi import Path, Request
from pydantic import BeforeValidator

import schemas

T = TypeVar("T")


class HasId(Protocol):
    @property
    def id(self) -> int: ...


def by_id(row: HasId) -> int:
    return row.id


def _id(value: Any) -> int:
    # An id that no row can have is simply not found: the error handler makes 404 of a path error.
    if re.fullmatch(r"[1-9][0-9]{0,18}", str(value), re.ASCII) and int(value) <= schemas.MAX_ID:
        return int(value)
    raise ValueError


Id = Annotated[int, BeforeValidator(_id), Path(examples=[1])]


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of a list, and the headers that lead to the next one."""

    rows: Sequence[Any]
    headers: Mapping[str, str]


def next_page(
    request: Request, rows: Sequence[T], page: schemas.Page, cursor: Callable[[T], object]
) -> ListPage:
    """The rows of this page; a `Link` header leads to the next one (RFC 8288).

    `cursor` tells where a row is in the list.
    """
    shown = rows[: page.limit]
    if len(rows) <= page.limit:
        return ListPage(shown, {})
    query = {**request.query_params, "cursor": str(cursor(shown[-1]))}
    return ListPage(shown, {"Link": f'<{request.url.path}?{urlencode(query)}>; rel="next"'})
