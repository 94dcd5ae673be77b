"""Turns an unexpected exception into a 500 with nothing but its code and request id."""

from __future__ import annotations

import traceback

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from errors import InternalError
from observability.logs import get_logger

log = get_logger()


class UnhandledErrors:
    """Catches before the framework does: its traceback shows messages, and so what was sent."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, note_start)
        except ClientDisconnect:
            log.info("http.client_disconnected")  # while it sent its body; no answer is needed
        except Exception as error:
            # Where it happened, without the message: that may hold a value of the request.
            frames = traceback.extract_tb(error.__traceback__)[-12:]
            trace = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
            log.error("http.unhandled_error", error=type(error).__name__, trace=trace)
            if started:
                raise
            body = InternalError().body(scope["state"]["request_id"])
            await send(
                {
                    "type": "http.response.start",
                    "status": 500,
                    "headers": [
                        (b"content-type", b"application/problem+json"),
                        (b"content-length", str(len(body)).encode()),
                    ],
                }
            )
            await send({"type": "http.response.body", "body": body})
