"""What all doubles have in common: an HTTP server, a log of requests, webhooks to one address."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WEBHOOK_PAUSES = (0.0, 0.3, 1.0, 3.0)  # seconds before each try to deliver a webhook


@dataclass(frozen=True)
class Request:
    """One request that arrived. Header names are in lower case."""

    method: str
    path: str  # without the query
    query: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any = None  # bytes as they are, None for no body, anything else as JSON
    headers: Mapping[str, str] = ()  # type: ignore[assignment]


@dataclass(frozen=True)
class BookEntry:
    """A charge in a double's books, in minor units as ISO 4217 counts them."""

    reference: str
    payment_id: int
    amount: int
    currency: str
    status: str  # requires_action, authorized, captured, voided, declined
    amount_captured: int
    amount_refunded: int


class Double:
    """One double, on a port of its own. One request at a time changes its books."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.requests: list[Request] = []
        self.violations: list[str] = []  # what a client must not do, and did
        self.webhook_url: str | None = None
        self.sent: list[tuple[dict[str, str], bytes]] = []  # every webhook: headers and body
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                path, _, query = self.path.partition("?")
                request = Request(
                    self.command, path, query, _lower(self.headers), self.rfile.read(length)
                )
                with double.lock:
                    double.requests.append(request)
                    answer = double.answer(request)
                self._write(answer)

            do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = do

            def _write(self, answer: Answer) -> None:
                body = answer.body
                if body is None:
                    raw = b""
                else:
                    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(answer.status)
                for name, value in {
                    "Content-Type": "application/json",
                    "Content-Length": str(len(raw)),
                    **dict(answer.headers),
                }.items():
                    self.send_header(name, value)
                # One write for all: no pause of the kernel between the head and the body.
                self._headers_buffer.append(b"\r\n" + raw)  # type: ignore[attr-defined]
                self.flush_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Double:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    # What a double of a gateway says ------------------------------------------------------------

    def answer(self, request: Request) -> Answer:
        """Answer one request. The lock is held."""
        raise NotImplementedError

    def approve(self, reference: str, *, yes: bool) -> None:
        """What the shopper says on the gateway's page."""
        raise NotImplementedError

    def books(self) -> list[BookEntry]:
        raise NotImplementedError

    # Webhooks -----------------------------------------------------------------------------------

    def send_webhook(self, headers: Mapping[str, str], body: bytes) -> None:
        """Remember a signed webhook, and deliver it until somebody takes it."""
        self.sent.append((dict(headers), body))
        if self.webhook_url is not None:
            threading.Thread(
                target=_deliver, args=(self.webhook_url, dict(headers), body), daemon=True
            ).start()


def _lower(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _deliver(url: str, headers: dict[str, str], body: bytes) -> None:
    for pause in WEBHOOK_PAUSES:
        threading.Event().wait(pause)
        request = urllib.request.Request(url, body, headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=30):
                return
        except (urllib.error.URLError, OSError):
            continue
