"""Gives every request its id, and every answer the headers that all answers carry."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from observability import logs
from observability.redaction import redact

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_TRACEPARENT = re.compile(  # W3C Trace Context
    r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII
)


class RequestContext:
    """The outermost middleware: what it binds is in every log line of the request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        # The id is stored with what the request does, so redaction must not change it in the log.
        is_good = _REQUEST_ID.fullmatch(given) and redact(given) == given
        request_id = given if is_good else _new_id()
        scope.setdefault("state", {})["request_id"] = request_id
        logs.clear()
        logs.bind(request_id=request_id)
        trace = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
        if trace and redact(trace[1]) == trace[1]:
            logs.bind(trace_id=trace[1])

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                answer["X-Request-Id"] = request_id
                answer["X-Content-Type-Options"] = "nosniff"
                answer.setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, send_with_headers)


def _new_id() -> str:
    """A new id that redaction leaves alone: a few in ten thousand look like a card number."""
    while redact(made := uuid.uuid4().hex) != made:
        pass
    return made
