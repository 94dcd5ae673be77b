"""Path ids and pages: what all resources share in their addresses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode

from fastapi import Path, Request
from pydantic import BeforeValidator

import schemas
from statements import Listed


def _id(value: Any) -> int:
    # An id that no row can have is simply not found: the error handler makes 404 of a path error.
    if re.fullmatch(r"[1-9][0-9]{0,18}", str(value), re.ASCII) and int(value) <= schemas.MAX_ID:
        return int(value)
    raise ValueError


Id = Annotated[int, BeforeValidator(_id), Path(examples=[1])]


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of a list as JSON, and the headers that lead to the next one."""

    json: str
    headers: Mapping[str, str]


def next_page(request: Request, listed: Listed, page: schemas.Page) -> ListPage:
    """This page, with a link to the next one if there is one."""
    is_last = listed.number <= page.limit
    headers = {} if is_last else link_to_next(request, listed.last)
    return ListPage(listed.page(page.limit), headers)


def link_to_next(request: Request, cursor: object) -> Mapping[str, str]:
    """The `Link` header to the page that begins after this place (RFC 8288)."""
    path: str = request.scope["path"]  # of a route of ours: words and ids
    filters = _filters(request.scope["query_string"])
    return {"Link": f'<{path}?{filters}cursor={cursor}>; rel="next"'}


@lru_cache(maxsize=256)  # few lists are asked for in many ways
def _filters(query: bytes) -> str:
    """A query without its cursor, for another one to follow."""
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    return "".join([f"{urlencode([pair])}&" for pair in pairs if pair[0] != "cursor"])
