"""One log line for each request: method, path, status and milliseconds. Never a query or a body."""

from __future__ import annotations

import re
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from observability.logs import get_logger

log = get_logger()


# A word of ours, or an id after one. Anything else in a path may be a secret.
_WORD = re.compile(r"[a-z][a-z_-]{0,39}", re.ASCII)
_ID = re.compile(r"[0-9]{1,11}", re.ASCII)  # card numbers have twelve digits or more


def path_for_log(path: str) -> str:
    """The path, with what may be a secret replaced."""
    shown: list[str] = []
    for part in path.split("/"):
        is_id = _ID.fullmatch(part) and shown and _WORD.fullmatch(shown[-1])
        shown.append(part if not part or _WORD.fullmatch(part) or is_id else "…")
    return "/".join(shown)


class AccessLog:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, note_status)
        finally:
            log.info(
                "http.request",
                method=scope["method"],
                path=path_for_log(scope["path"]),
                status=status,
                milliseconds=round((time.perf_counter() - started) * 1000, 1),
            )
