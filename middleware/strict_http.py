"""Takes HTTP literally: one Host, paths of one meaning, no encodings, HEAD where there is GET."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from errors import InvalidRequest, NotFound, ServiceError, UnsupportedMediaType
from observability import rejections

# A name or an IPv6 address, and a port. It is never part of a link; see PUBLIC_URL.
_HOST = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SLASH = re.compile(rb"%2f", re.IGNORECASE)
_RANGES: Final = (b"range", b"if-range")
_READ_HERE: Final = frozenset((b"host", b"content-encoding", *_RANGES))


class StrictHttp:
    def __init__(self, app: ASGIApp, allowed_hosts: Iterable[str]) -> None:
        self.app = app
        self.names = frozenset(allowed_hosts)
        self.endings = tuple(name[1:] for name in self.names if name.startswith("*."))
        # Clients use few hosts; one that tries many only fills this cache.
        self.answers_to = lru_cache(maxsize=256)(self._answers_to)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        found = [header for header in scope["headers"] if header[0] in _READ_HERE]
        refusal = self._refusal(scope, found)
        if refusal is not None:
            reason, problem = refusal
            client = scope.get("client")
            rejections.count(reason, client[0] if client else "")
            answer = Response(
                problem.body(scope["state"]["request_id"]),
                problem.status,
                problem.headers,
                media_type="application/problem+json",
            )
            await answer(scope, receive, send)
            return
        if len(found) > 1:  # answers are whole, whatever part of them was asked for
            headers = [header for header in scope["headers"] if header[0] not in _RANGES]
            scope = {**scope, "headers": headers}
        if _CONTROL.search(scope["path"]):
            # As if it were not UTF-8: then the path names no resource.
            scope = {**scope, "path": _CONTROL.sub("\ufffd", scope["path"])}
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        await self.app(scope, receive, send)

    def _refusal(
        self, scope: Scope, found: list[tuple[bytes, bytes]]
    ) -> tuple[str, ServiceError] | None:
        if scope["http_version"] not in ("1.0", "1.1"):
            return "http_version", _invalid("request", "Use HTTP/1.1")
        hosts = [value for name, value in found if name == b"host"]
        if len(hosts) != 1:
            return "host", _invalid("Host", "A request has one Host header")
        if not self.answers_to(hosts[0]):
            return "host", _invalid("Host", "The service does not answer to this name")
        raw_path = scope.get("raw_path") or b""
        if b"%" in raw_path and _SLASH.search(raw_path):
            return "path", NotFound()
        if any(
            name == b"content-encoding" and value.strip().lower() not in (b"", b"identity")
            for name, value in found
        ):
            return "content_encoding", UnsupportedMediaType(
                "Bodies are read without any Content-Encoding",
                headers={"Accept-Encoding": "identity"},
            )
        return None

    def _answers_to(self, value: bytes) -> bool:
        match = _HOST.fullmatch(value.decode("latin-1"))
        if match is None:
            return False
        name = match.group(1).lower()
        return not self.names or name in self.names or name.endswith(self.endings)


def _without_body(send: Send) -> Send:
    async def send_head(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return send_head


def _invalid(field: str, message: str) -> ServiceError:
    return InvalidRequest.of(field, "http", message)
