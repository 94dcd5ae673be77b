"""What every request passes before its endpoint, and every answer after it: one thin ASGI layer.

Before: the request id, HTTP taken literally (one Host, paths of one meaning, no encodings, HEAD
where there is GET), the limit of the body. After: the headers that all answers carry, a problem
document for whatever was raised, one log line.
"""

from __future__ import annotations

import os
import re
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from errors import (
    BodyTooLarge,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    ServiceError,
    UnsupportedMediaType,
)
from observability import logs, rejections
from observability.redaction import redact

log = logs.get_logger()

MAX_BODY: Final = 64 * 1024  # bytes

# Headers that are read here, each by its first value.
_REQUEST_ID: Final = b"x-request-id"
_TRACE: Final = b"traceparent"
_HOST: Final = b"host"
_ENCODING: Final = b"content-encoding"
_LENGTH: Final = b"content-length"
_RANGES: Final = frozenset((b"range", b"if-range"))
_READ_HERE: Final = frozenset((_REQUEST_ID, _TRACE, _HOST, _ENCODING, _LENGTH)) | _RANGES

_GOOD_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_TRACEPARENT = re.compile(  # W3C Trace Context
    r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII
)
# A name or an IPv6 address, and a port. It is never part of a link; see PUBLIC_URL.
_HOST_NAME = re.compile(
    r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?", re.ASCII
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SLASH = re.compile(rb"%2f", re.IGNORECASE)

# A word of ours, or an id after one. Anything else in a path may be a secret.
_WORD = re.compile(r"[a-z][a-z_-]{0,39}", re.ASCII)
_ID = re.compile(r"[0-9]{1,11}", re.ASCII)  # card numbers have twelve digits or more

# New request ids are written in letters, so that none looks like a card number to the log.
_LETTERS: Final = str.maketrans("0123456789", "ghijklmnop")
# An ASGI extension of ours: it sends a whole answer, and says whether it did. LimitedProtocol in
# connection_limits.py has it, under the same name.
_ANSWER_WHOLE: Final = "estore.answer_whole"
_NO_SNIFF: Final = (b"x-content-type-options", b"nosniff")
_NO_STORE: Final = (b"cache-control", b"no-store")


class RequestLayer:
    """The outermost application. `problem_of` says what an exception means to the caller, or None
    for one that nobody foresaw; `cors` wraps what is inside the log line, where it is on."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        problem_of: Callable[[Scope, Exception], ServiceError | None],
        allowed_hosts: Iterable[str],
        cors: Callable[[ASGIApp], ASGIApp] | None = None,
    ) -> None:
        self.app = app
        self._problem_of = problem_of
        self._answer: ASGIApp = self._checked if cors is None else cors(self._checked)
        names = frozenset(allowed_hosts)
        endings = tuple(name[1:] for name in names if name.startswith("*."))

        # Clients use few hosts; one that tries many only fills this cache.
        @lru_cache(maxsize=256)
        def answers_to(value: bytes) -> bool:
            match = _HOST_NAME.fullmatch(value.decode("latin-1"))
            if match is None:
                return False
            name = match.group(1).lower()
            return not names or name in names or name.endswith(endings)

        self._answers_to = answers_to

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        try:
            await self._answer(scope, exchange.receive, exchange.send)
        finally:
            logs.access(
                scope["method"],
                path_for_log(scope["path"]),
                exchange.status,
                time.perf_counter() - exchange.started,
            )

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, with a problem document whatever is raised."""
        exchange: _Exchange = scope["exchange"]
        try:
            self._require_strict_http(scope, exchange)
            if not _RANGES.isdisjoint(exchange.headers):
                # Answers are whole, whatever part of them was asked for.
                headers = [header for header in scope["headers"] if header[0] not in _RANGES]
                scope = {**scope, "headers": headers}
            if _CONTROL.search(scope["path"]):
                # As if it were not UTF-8: then the path names no resource.
                scope = {**scope, "path": _CONTROL.sub("\ufffd", scope["path"])}
            if scope["method"] == "HEAD":
                exchange.has_body = False
                scope = {**scope, "method": "GET"}
            await self.app(scope, receive, send)
        except ClientDisconnect:
            log.info("http.client_disconnected")  # nobody waits for an answer
        except Exception as error:
            problem = self._problem_of(scope, error)
            if problem is None:
                _log_unhandled(error)
                problem = InternalError()
            if exchange.status:  # the answer had begun
                raise
            if isinstance(problem, MethodNotAllowed) and scope["method"] == "OPTIONS":
                await send_answer(204, problem.headers, b"", send)
            else:
                await send_problem(problem, exchange.request_id, send)

    def _require_strict_http(self, scope: Scope, exchange: _Exchange) -> None:
        """Raises the problem that a request has which could be understood in two ways."""
        found = exchange.headers
        if scope["http_version"] not in ("1.0", "1.1"):
            raise _rejected(scope, "http_version", _invalid("request", "Use HTTP/1.1"))
        if _HOST not in found or _HOST in exchange.repeated:
            raise _rejected(scope, "host", _invalid("Host", "A request has one Host header"))
        if not self._answers_to(found[_HOST]):
            raise _rejected(
                scope, "host", _invalid("Host", "The service does not answer to this name")
            )
        raw_path = scope.get("raw_path") or b""
        if b"%" in raw_path and _SLASH.search(raw_path):
            raise _rejected(scope, "path", NotFound())
        if _ENCODING in found and (
            _ENCODING in exchange.repeated
            or found[_ENCODING].strip().lower() not in (b"", b"identity")
        ):
            raise _rejected(
                scope,
                "content_encoding",
                UnsupportedMediaType(
                    "Bodies are read without any Content-Encoding",
                    headers={"Accept-Encoding": "identity"},
                ),
            )


class _Exchange:
    """One request and its answer, on their way through the layer."""

    __slots__ = (
        "_answer_whole",
        "_head",
        "_receive",
        "_received",
        "_send",
        "has_body",
        "headers",
        "repeated",
        "request_id",
        "started",
        "status",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.started = time.perf_counter()
        self.status = 0  # until the answer begins
        self.has_body = True  # the answer to HEAD has none
        self._receive, self._send, self._received = receive, send, 0
        self._head: Message | None = None
        self._answer_whole = scope.get("extensions", {}).get(_ANSWER_WHOLE)
        self.headers: dict[bytes, bytes] = {}
        self.repeated: list[bytes] = []
        for name, value in scope["headers"]:
            if name in _READ_HERE:
                if name in self.headers:
                    self.repeated.append(name)
                else:
                    self.headers[name] = value
        self.request_id = _request_id(self.headers.get(_REQUEST_ID))
        bound = {"request_id": self.request_id}
        if _TRACE in self.headers:
            trace = _TRACEPARENT.fullmatch(self.headers[_TRACE].decode("latin-1"))
            if trace and redact(trace[1]) == trace[1]:
                bound["trace_id"] = trace[1]
        logs.bind_request(bound)
        scope["exchange"] = self
        scope.setdefault("state", {})["request_id"] = self.request_id

    async def receive(self) -> Message:
        """The next part of the body. Raises BodyTooLarge, before a byte is read if it can."""
        declared = self.headers.get(_LENGTH, b"0")
        if declared.isdigit() and int(declared) > MAX_BODY:
            raise BodyTooLarge
        message = await self._receive()
        self._received += len(message.get("body", b""))
        if self._received > MAX_BODY:
            raise BodyTooLarge
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer. Its head waits for its body, or for the first part of it."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            headers.append((_REQUEST_ID, self.request_id.encode()))
            headers.append(_NO_SNIFF)
            if not any(name == b"cache-control" for name, _ in headers):
                headers.append(_NO_STORE)
            message["headers"] = headers
            self._head = message
            return
        head, self._head = self._head, None
        if head is not None:
            if (
                self._answer_whole is not None
                and not message.get("more_body")
                and self._answer_whole(self.status, head["headers"], message["body"])
            ):
                return
            await self._send(head)
        if not self.has_body:
            message = {**message, "body": b""}
        await self._send(message)


async def send_problem(problem: ServiceError, request_id: str, send: Send) -> None:
    """Answer with a problem document (RFC 9457)."""
    headers = {"Content-Type": "application/problem+json", **problem.headers}
    await send_answer(problem.status, headers, problem.body(request_id), send)


async def send_answer(status: int, headers: Mapping[str, str], body: bytes, send: Send) -> None:
    """Answer with all of a body at once."""
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    if status != 204:
        raw.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


@lru_cache(maxsize=1024)
def path_for_log(path: str) -> str:
    """The path, with what may be a secret replaced."""
    shown: list[str] = []
    for part in path.split("/"):
        is_id = _ID.fullmatch(part) and shown and _WORD.fullmatch(shown[-1])
        shown.append(part if not part or _WORD.fullmatch(part) or is_id else "…")
    return "/".join(shown)


def _request_id(given: bytes | None) -> str:
    """The caller's id if it is a good one, or a new one.

    The id is kept with what the request does, so it is none that the logs would not show.
    """
    text = given.decode("latin-1") if given is not None else ""
    if _GOOD_ID.fullmatch(text) and redact(text) == text:
        return text
    return os.urandom(16).hex().translate(_LETTERS)


def _log_unhandled(error: Exception) -> None:
    """Where it happened, without the message: that may hold a value of the request."""
    frames = traceback.extract_tb(error.__traceback__)[-12:]
    trace = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    log.error("http.unhandled_error", error=type(error).__name__, trace=trace)


def _rejected(scope: Scope, reason: str, problem: ServiceError) -> ServiceError:
    client = scope.get("client")
    rejections.count(reason, client[0] if client else "")
    return problem


def _invalid(field: str, message: str) -> ServiceError:
    return InvalidRequest.of(field, "http", message)
