"""Limits each connection: how much it sends, how slowly, and how many connections there are.

uvicorn's parser has no limits and no deadlines, and ASGI middleware only runs when it is done.
`install()` makes uvicorn use `LimitedProtocol` for our application, however uvicorn was started.
"""

import asyncio
import ipaddress
import resource
import uuid
from collections.abc import Iterable, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from errors import (
    BodyTooLarge,
    HeadersTooLarge,
    InvalidRequest,
    Overloaded,
    RateLimited,
    RequestTimeout,
    ServiceError,
)
from observability import rejections
from observability.logs import get_logger

log = get_logger()

# Bytes in a row that are no body: a request's head to the byte; the extensions of a chunk, and the
# trailers, with what came in the same segment as body.
MAX_SECTION: Final = 16 * 1024
MAX_HEADERS: Final = 100
# One request with everything: a body of 64 KiB (`MAX_BODY` in request_layer.py) takes 384 KiB in
# chunks of one byte. Also what is still read, and thrown away, of a request that has been answered.
MAX_REQUEST: Final = 512 * 1024
MAX_PIPELINED: Final = 16  # requests that wait for the answer to an earlier one of their connection

RECEIVE_SECONDS: Final = 10.0  # from the first byte of a request to its last
LINGER_SECONDS: Final = 2.0  # for a refusal to arrive while the client is still sending
# A client that reads less than this in RECEIVE_SECONDS does not read.
MIN_READ: Final = 16 * 1024

MAX_CONNECTIONS: Final = 2048  # some 10 KiB each
RESERVED_FILES: Final = 128  # for the database, the gateways and the log

ANSWER_WHOLE: Final = "estore.answer_whole"  # an ASGI extension of ours (see request_layer.py)
Headers = Sequence[tuple[bytes, bytes]]


class LimitedProtocol(HttpToolsProtocol):
    """One connection. It *waits* while no request of it is complete or being answered."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.access_log = False  # uvicorn's own; it would format each line, and throw it away
        self.open: Connections = app_state["connections"]
        self.address = ""
        self.since = 0.0  # when this connection began to wait, or its request to arrive
        self.received = 0  # bytes of the request that is arriving
        self.section = 0  # of these, since the last byte of body
        self.in_head = True
        self.arriving = False  # whether a request has begun and not ended
        self.ignores_input = False  # whether input is discarded
        self.problem: ServiceError | None = None  # raised in a callback of the parser
        self.unsent: tuple[float, int] | None = None  # how much the client had not read, and when

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.ignores_input:
            self.received += len(data)
            if self.received > MAX_REQUEST:
                self.transport.abort()
            return
        self._unset_keepalive_if_required()
        if len(data) <= MAX_SECTION:
            self._parse(data)
            return
        # In parts, because the parser reports a header only when it has all of it.
        for start in range(0, len(data), MAX_SECTION):
            if not self.ignores_input:
                self._parse(data[start : start + MAX_SECTION])

    def _parse(self, data: bytes) -> None:
        if not self.received:
            self.since = self.loop.time()
        self.received += len(data)
        self.section += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # we speak nothing else: the request is answered, and the connection closed
        except httptools.HttpParserError:
            self.refuse(self.problem or _invalid("request", "This is not HTTP"))
        else:
            if self.section > MAX_SECTION:
                self.refuse(HeadersTooLarge())
            elif self.received > MAX_REQUEST:
                self.refuse(BodyTooLarge())

    # Callbacks of the parser. What they raise arrives as HttpParserError above.

    def on_message_begin(self) -> None:
        self.in_head = self.arriving = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= MAX_HEADERS:
            raise self._because(HeadersTooLarge(f"A request has at most {MAX_HEADERS} headers"))
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.section > MAX_SECTION and self._head_size() > MAX_SECTION:
            raise self._because(HeadersTooLarge())
        if len(self.pipeline) >= MAX_PIPELINED:
            raise self._because(Overloaded())
        if not self.url.startswith(b"/"):
            self._check_absolute_target()
        upgrade = self.parser.should_upgrade()
        if upgrade and any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in self.headers
        ):
            # The parser takes the body for the other protocol, and the request would have none.
            raise self._because(_invalid("Upgrade", "Send a body without an Upgrade header"))
        super().on_headers_complete()
        self.scope["extensions"] = {ANSWER_WHOLE: partial(answer_whole, self.cycle)}  # type: ignore[dict-item]
        self.in_head = False
        self.headers = []  # trailers follow, which the service does not read
        if upgrade:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self.section = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.arriving = False
        self.received = self.section = 0
        if self.cycle.response_complete:  # it was answered before all of it had come
            self.since = self.loop.time()
        else:
            self.open.waiting.pop(self, None)

    def _should_upgrade_to_ws(self) -> bool:
        return False

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _check_absolute_target(self) -> None:
        """A target like http://host/path names the host that the Host header names."""
        if self.url == b"*" and self.parser.get_method() == b"OPTIONS":
            return
        scheme, _, rest = self.url.lower().partition(b"://")
        authority = rest.partition(b"/")[0]
        if scheme not in (b"http", b"https") or [authority] != [
            value.lower() for name, value in self.headers if name == b"host"
        ]:
            raise self._because(_invalid("Host", "The request line names another host"))

    def _because(self, problem: ServiceError) -> ServiceError:
        self.problem = problem
        return problem

    # What ends a connection.

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self.cycle.response_complete or self.arriving:
            self.since = self.loop.time()
            self.open.waiting[self] = None

    def refuse(self, problem: ServiceError) -> None:
        """Answer with the problem, unless another answer is due first, and close."""
        rejections.count(problem.code, self.address)
        self.ignores_input = True
        self.since = self.loop.time()
        self.open.waiting[self] = None
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            can_answer = self.in_head
        else:
            can_answer = not (self.in_head or self.pipeline or cycle.response_started)
            cycle.disconnected = True
            cycle.message_event.set()
        if not can_answer:
            self.transport.close()
            return
        self.transport.write(self._rendered(problem))
        # Closing now would reset the connection while the client is still sending, and lose the
        # answer. We end our side only; the client, or LINGER_SECONDS, ends the other.
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.flow.resume_reading()  # or nobody would notice that the client ends it
        else:
            self.transport.close()

    def reject(self, problem: ServiceError) -> None:
        """Answer that there is no room for this connection, and close."""
        rejections.count(problem.code, self.address)
        self.ignores_input = True
        self.transport.write(self._rendered(problem))
        self.transport.close()

    def drop(self, reason: str) -> None:
        """End a connection whose client would not read an answer."""
        rejections.count(reason, self.address)
        self.transport.abort()

    def _rendered(self, problem: ServiceError) -> bytes:
        request_id = uuid.uuid4().hex
        body = problem.body(request_id)
        headers = {
            "content-type": "application/problem+json",
            "content-length": str(len(body)),
            "x-request-id": request_id,
            "x-content-type-options": "nosniff",
            "cache-control": "no-store",
            "connection": "close",
            **problem.headers,
        }
        lines = [
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}".encode(),
            *(b"%b: %b" % header for header in self.server_state.default_headers),
            *(f"{name}: {value}".encode() for name, value in headers.items()),
        ]
        return b"\r\n".join([*lines, b"", body])


def answer_whole(cycle: RequestResponseCycle, status: int, headers: Headers, body: bytes) -> bool:
    """Send an answer with one write: two would be two packets, and each would wake the client.

    False for what is uvicorn's `send` to do: the answer to HEAD, one in chunks or without a body,
    the last one of a connection, and one that has to wait for its client to read.
    """
    names = {name for name, _ in headers}
    if (
        b"content-length" not in names
        or b"connection" in names
        or cycle.disconnected
        or cycle.response_started
        or cycle.flow.write_paused
        or not cycle.keep_alive
        or cycle.scope["method"] == "HEAD"
    ):
        return False
    lines = [b"%b: %b\r\n" % header for header in (*cycle.default_headers, *headers)]
    head = b"".join(lines)
    if not len(lines) == head.count(b"\n") == head.count(b"\r"):
        raise RuntimeError("a header holds a line break")
    cycle.response_started = cycle.response_complete = True
    cycle.message_event.set()
    cycle.transport.write(b"".join((STATUS_LINE[status], head, b"\r\n", body)))
    cycle.on_response()
    return True


class Connections:
    """The open connections of one server: makes room for new ones, and ends those that hang.

    Without room it closes the connection that has waited longest: a silent or idle one, never one
    whose request is being answered.
    """

    def __init__(
        self, per_address: int, trusted: Iterable[str], at_most: int | None = None
    ) -> None:
        self.per_address = per_address
        self.at_most = at_most or _room_for_connections()
        # A proxy has many clients behind one address; a process on this machine can do worse.
        self.unlimited = _Networks([*trusted, "127.0.0.0/8", "::1"])
        self.all: dict[LimitedProtocol, None] = {}
        self.waiting: dict[LimitedProtocol, None] = {}  # longest first
        self.by_address: dict[str, dict[LimitedProtocol, None]] = {}

    def add(self, connection: LimitedProtocol) -> None:
        connection.since = connection.loop.time()
        address = connection.address
        same = self.by_address.get(address, {})
        problem: ServiceError | None = None
        if len(same) >= self.per_address and address not in self.unlimited:
            if not self._make_room(same, "evicted_for_address"):
                detail = f"One address may have {self.per_address} connections"
                problem = RateLimited(detail, headers={"Retry-After": "1"})
        elif len(self.all) >= self.at_most and not self._make_room(self.waiting, "evicted"):
            problem = Overloaded()
        self.all[connection] = self.waiting[connection] = None
        self.by_address.setdefault(address, {})[connection] = None
        if problem is not None:
            connection.reject(problem)

    def remove(self, connection: LimitedProtocol) -> None:
        self.all.pop(connection, None)
        self.waiting.pop(connection, None)
        same = self.by_address.get(connection.address, {})
        same.pop(connection, None)
        if not same:
            self.by_address.pop(connection.address, None)

    def _make_room(self, among: dict[LimitedProtocol, None], reason: str) -> bool:
        for connection in among:
            if connection in self.waiting and not connection.transport.is_closing():
                connection.drop(reason)
                self.remove(connection)
                return True
        return False

    async def watch(self) -> None:
        """Check the deadlines every second until canceled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1)
            try:
                self.end_overdue(loop.time())
            except Exception as error:  # or no connection would be checked again
                log.error("http.connection_check_failed", error=type(error).__name__)

    def end_overdue(self, now: float) -> None:
        """End every connection that missed a deadline: to send a request, to send anything, or to
        read."""
        for connection in list(self.all):
            if _is_slow_reader(connection, now):
                connection.drop("slow_reader")
        for connection in list(self.waiting):
            if connection.ignores_input:
                if now - connection.since > LINGER_SECONDS:
                    connection.transport.abort()
            elif now - connection.since <= RECEIVE_SECONDS or connection.transport.is_closing():
                continue
            elif connection.arriving:
                connection.refuse(RequestTimeout())
            else:
                rejections.count("idle", connection.address)
                connection.transport.close()


def _is_slow_reader(connection: LimitedProtocol, now: float) -> bool:
    unsent = connection.transport.get_write_buffer_size()
    if not unsent:
        connection.unsent = None
    elif connection.unsent is None or unsent <= connection.unsent[1] - MIN_READ:
        connection.unsent = (now, unsent)
    else:
        return now - connection.unsent[0] > RECEIVE_SECONDS
    return False


class _Networks:
    """Addresses, in the notation of TRUSTED_PROXIES."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self.networks = [network for name in self.names if (network := _network(name))]

    def __contains__(self, address: str) -> bool:
        if not address or address in self.names or "*" in self.names:  # no address: a Unix socket
            return True
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self.networks)


def _network(name: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(name)
    except ValueError:
        return None


def _invalid(field: str, message: str) -> ServiceError:
    return InvalidRequest.of(field, "http", message)


def _room_for_connections() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(16, min(MAX_CONNECTIONS, files - RESERVED_FILES))


def install() -> None:
    """Make uvicorn use LimitedProtocol in the place of its own class, for applications of ours.

    It changes uvicorn's class itself, because uvicorn has chosen it before it imports `main`.
    """

    def make(
        cls: type[asyncio.Protocol], *_: Any, app_state: dict[str, Any], **options: Any
    ) -> Any:
        if "connections" not in app_state:
            return object.__new__(cls)
        if issubclass(LimitedProtocol, cls):
            return object.__new__(LimitedProtocol)  # Python goes on to its __init__
        return LimitedProtocol(app_state=app_state, **options)

    for cls in (HttpToolsProtocol, H11Protocol):
        cls.__new__ = make  # type: ignore[method-assign,assignment]
