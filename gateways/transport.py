"""HTTP for adapters without an SDK: one request, and which of its failures leave no doubt.

Whatever fails before the first byte of the request was sent is `Busy`; everything after that is
`Unknown`. Whole answers below 500 go back to the adapter, which knows its gateway's words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from gateways.base import Busy, Unknown

CONNECT_SECONDS = 3.05  # just over TCP's first retransmission
# Idle connections are dropped before gateways drop them: a request on a connection that was just
# closed would be an unknown outcome.
KEEPALIVE_SECONDS = 4.0

# The connection was never made, so nothing was sent.
NOT_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
    httpx.InvalidURL,
    httpx.ProxyError,
)


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer below 500: its status, its JSON object, and its headers."""

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str]


class Transport:
    """A connection pool to one gateway."""

    def __init__(self, base_url: str, *, timeout: float) -> None:
        self._client = httpx.Client(
            base_url=base_url.rstrip("/"),
            timeout=httpx.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout)),
            limits=httpx.Limits(keepalive_expiry=KEEPALIVE_SECONDS),
            follow_redirects=False,
        )

    def close(self) -> None:
        self._client.close()

    def send(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        form: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
    ) -> Reply:
        """Raises Busy when nothing was sent, or for 429; Unknown for everything but a whole JSON
        answer below 300 or between 400 and 499."""
        try:
            answer = self._client.request(
                method,
                path,
                headers=dict(headers or {}),
                json=body,
                data=form,
                auth=auth or httpx.USE_CLIENT_DEFAULT,
            )
        except NOT_SENT as error:
            raise Busy(type(error).__name__) from None
        except httpx.HTTPError as error:
            raise Unknown(type(error).__name__) from None
        if answer.status_code == 429:
            raise Busy("HTTP 429", retry_after(answer.headers.get("retry-after")))
        if answer.status_code >= 500 or 300 <= answer.status_code < 400:
            raise Unknown(f"HTTP {answer.status_code}")
        try:
            found = json.loads(answer.content) if answer.content else {}
        except (ValueError, RecursionError):
            raise Unknown("the answer is not JSON") from None
        if not isinstance(found, dict):
            raise Unknown("the answer is not a JSON object")
        return Reply(answer.status_code, found, answer.headers)


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header; None for a date or none."""
    return float(value) if value and value.isascii() and value.isdigit() else None
