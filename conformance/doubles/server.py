"""The base of all doubles: an HTTP server, a log of requests, webhooks to one address."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler
from typing import Any

from conformance.local_server import LocalServer, write

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
    """A charge in the books of a gateway, in minor units of ISO 4217."""

    reference: str
    payment_id: int
    amount: int
    currency: str
    status: str  # requires_action, authorized, captured, voided, declined
    amount_captured: int
    amount_refunded: int


class Double(LocalServer):
    """One double, on a port of its own. One request at a time changes its books."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.RLock()
        self.requests: list[Request] = []
        self.violations: list[str] = []  # what a client did that the gateway forbids
        self.webhook_url: str | None = None
        self.sent: list[tuple[dict[str, str], bytes]] = []  # every webhook: headers and body
        self.base_url = self.url

    def __enter__(self) -> Double:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def handle(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        path, _, query = handler.path.partition("?")
        request = Request(handler.command, path, query, _lower(handler.headers), body)
        with self.lock:
            self.requests.append(request)
            answer = self.answer(request)
        content = answer.body
        if content is None:
            content = b""
        elif not isinstance(content, bytes):
            content = json.dumps(content).encode()
        headers = {"Content-Type": "application/json", **dict(answer.headers)}
        write(handler, answer.status, headers, content)

    # What each double implements ----------------------------------------------------------------

    def answer(self, request: Request) -> Answer:
        """Answer one request. The lock is held."""
        raise NotImplementedError

    def approve(self, reference: str, *, yes: bool) -> None:
        """Approve or refuse a charge as the shopper does on the gateway's page."""
        raise NotImplementedError

    def books(self) -> list[BookEntry]:
        raise NotImplementedError

    # Webhooks -----------------------------------------------------------------------------------

    def send_webhook(self, headers: Mapping[str, str], body: bytes) -> None:
        """Store a signed webhook, and deliver it until the receiver accepts it."""
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
