"""What stands between the service and its gateway while scenarios run.

`FaultProxy` passes requests on to the gateway and on demand loses, delays or garbles them.
`Relay` passes webhooks on to the service, or keeps them for a while.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

import httpx

from conformance.local_server import LocalServer, write

NOT_PASSED_ON: Final = {"host", "connection", "content-length", "accept-encoding", "keep-alive"}
NOT_PASSED_BACK: Final = {"connection", "content-length", "transfer-encoding", "date", "server"}
HTML: Final = b"<html><body><h1>Be right back</h1></body></html>"
FOLLOWED: Final = "/followed-a-redirect"


@dataclass
class Fault:
    """What goes wrong with the next `times` requests to a path.

    kind                  reaches the gateway   what the caller gets
    drop_before           no                    a closed connection
    drop_after            yes                   a closed connection
    status_before         no                    the status, with the gateway's kind of body
    status_after          yes                   the status
    html_after            yes                   200 with a page
    truncated_after       yes                   200 with half of the JSON, whole by its length
    cut_after             yes                   half of the answer, then a closed connection
    empty_after           yes                   200 with {}
    redirect_before       no                    307 to another path
    stall_before          after `seconds`       its answer, late
    stall_after           yes                   its answer, `seconds` late
    hold_after            yes                   its answer, once `release` is set
    replace_after         yes                   its answer with `old` replaced by `new`
    """

    kind: str
    path: re.Pattern[str]
    times: int = 1
    status: int = 500
    seconds: float = 0.0
    old: bytes = b""
    new: bytes = b""
    method: str = "POST"
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Exchange:
    """A request that came through, and the answer of the gateway if it was asked."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    status: int | None
    answer: bytes


class FaultProxy(LocalServer):
    """A reverse proxy before one gateway. `log` holds every request that came through."""

    def __init__(self, upstream: str) -> None:
        super().__init__()
        self.log: list[Exchange] = []
        self._client = httpx.Client(base_url=upstream, timeout=30, trust_env=False)
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()
        for fault in self._faults:
            fault.release.set()
        super().stop()
        self._client.close()

    def arm(self, kind: str, path: str, **options: Any) -> Fault:
        """From now on this goes wrong, as often as `times` says."""
        fault = Fault(kind, re.compile(path), **options)
        with self._lock:
            self._faults.append(fault)
        return fault

    def disarm(self) -> None:
        with self._lock:
            for fault in self._faults:
                fault.times = 0
                fault.release.set()

    def handle(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        fault = self._take(handler)
        kind = fault.kind if fault is not None else ""
        if fault is not None:
            fault.reached.set()
        if fault is not None and kind.endswith("_before") and kind != "stall_before":
            self._log(handler, body, None, b"")
            if kind == "drop_before":
                handler.close_connection = True
            elif kind == "redirect_before":
                write(handler, 307, {"Location": f"{self.url}{FOLLOWED}"}, b"")
            else:
                write(handler, fault.status, {"Content-Type": "application/json"}, b"{}")
            return
        if fault is not None and kind == "stall_before":
            self._stopping.wait(fault.seconds)
        answer = self._client.request(
            handler.command,
            handler.path,
            headers={
                name: value
                for name, value in handler.headers.items()
                if name.lower() not in NOT_PASSED_ON
            },
            content=body,
        )
        self._log(handler, body, answer.status_code, answer.content)
        self._answer(handler, fault, answer)

    def _answer(
        self, handler: BaseHTTPRequestHandler, fault: Fault | None, answer: httpx.Response
    ) -> None:
        kind = fault.kind if fault is not None else ""
        status, content = answer.status_code, answer.content
        headers = {k: v for k, v in answer.headers.items() if k.lower() not in NOT_PASSED_BACK}
        headers.pop("content-encoding", None)  # httpx has decoded it
        if fault is not None and kind == "stall_after":
            self._stopping.wait(fault.seconds)
        if fault is not None and kind == "hold_after":
            fault.release.wait(30)
        if kind == "drop_after":
            handler.close_connection = True
        elif fault is not None and kind == "status_after":
            write(handler, fault.status, {"Content-Type": "application/json"}, b"{}")
        elif kind == "html_after":
            write(handler, 200, {"Content-Type": "text/html"}, HTML)
        elif kind == "empty_after":
            write(handler, status, headers, b"{}")
        elif kind == "truncated_after":
            write(handler, status, headers, content[: len(content) // 2])
        elif kind == "cut_after":
            write(handler, status, headers, content[: len(content) // 2], length=len(content))
            handler.close_connection = True
        elif fault is not None and kind == "replace_after":
            write(handler, status, headers, content.replace(fault.old, fault.new))
        else:
            write(handler, status, headers, content)

    def _take(self, handler: BaseHTTPRequestHandler) -> Fault | None:
        path = handler.path.partition("?")[0]
        with self._lock:
            for fault in self._faults:
                if (
                    fault.times > 0
                    and fault.method == handler.command
                    and fault.path.fullmatch(path)
                ):
                    fault.times -= 1
                    return fault
        return None

    def _log(
        self, handler: BaseHTTPRequestHandler, body: bytes, status: int | None, answer: bytes
    ) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        path = handler.path.partition("?")[0]
        self.log.append(Exchange(handler.command, path, headers, body, status, answer))


@dataclass(frozen=True)
class Delivery:
    """A webhook as the gateway sent it."""

    headers: Mapping[str, str]
    body: bytes


class Relay(LocalServer):
    """Takes a gateway's webhooks and remembers them; passes them on unless `holds` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.target: str | None = None
        self.deliveries: list[Delivery] = []
        self.holds = False
        self._client = httpx.Client(timeout=60, trust_env=False)

    def stop(self) -> None:
        super().stop()
        self._client.close()

    def handle(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        headers = {
            name: value
            for name, value in handler.headers.items()
            if name.lower() not in NOT_PASSED_ON
        }
        delivery = Delivery(headers, body)
        self.deliveries.append(delivery)
        status = 200
        if not self.holds:
            try:
                status = self.post(delivery).status_code
            except httpx.HTTPError:
                status = 503
        write(handler, status, {}, b"")

    def post(self, delivery: Delivery) -> httpx.Response:
        """Give the service a webhook."""
        assert self.target is not None
        return self._client.post(self.target, headers=dict(delivery.headers), content=delivery.body)

    def about(self, *words: str) -> Sequence[Delivery]:
        """What was sent with one of these words in it, in the order it was sent."""
        return [
            delivery
            for delivery in self.deliveries
            if any(word.encode() in delivery.body for word in words)
        ]
