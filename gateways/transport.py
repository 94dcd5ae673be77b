"""HTTP for adapters without an SDK.

A failure before the first byte was sent raises `RetryLater`, any later one `OutcomeUnknown`. A
complete answer below 500 is returned, for the adapter to read.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from gateways.base import OutcomeUnknown, RetryLater

Body = Mapping[str, Any] | Sequence[Mapping[str, Any]]  # sent as JSON

CONNECT_SECONDS = 3.05  # just over TCP's first retransmission
# We close idle connections before gateways do. A request on a connection that was just closed has
# an unknown outcome.
KEEPALIVE_SECONDS = 4.0
MAX_BYTES = 8_000_000  # a list of a hundred charges has less than one

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
    """A complete answer below 500: its status, its JSON object and its headers."""

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str]


class Transport:
    """A connection pool to one gateway."""

    def __init__(self, base_url: str, *, timeout: float) -> None:
        self._timeout = timeout
        self._client = new_client(timeout, base_url)

    def close(self) -> None:
        self._client.close()

    def send(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        form: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
    ) -> Reply:
        """Raises RetryLater if nothing was sent or for 429, OutcomeUnknown for everything but a
        complete JSON object with a status below 300 or from 400 to 499."""
        status, answered, content = fetch(
            self._client,
            self._timeout,
            method,
            path,
            headers=dict(headers or {}),
            json=body,
            data=form,
            auth=auth or httpx.USE_CLIENT_DEFAULT,
        )
        if status == 429:
            raise RetryLater("HTTP 429", retry_after(answered.get("retry-after")))
        if status >= 500 or 300 <= status < 400:
            raise OutcomeUnknown(f"HTTP {status}")
        try:
            found = json.loads(content) if content else {}
        except (ValueError, RecursionError):
            raise OutcomeUnknown("the answer is not JSON") from None
        if not isinstance(found, dict):
            raise OutcomeUnknown("the answer is not a JSON object")
        return Reply(status, found, answered)


def new_client(timeout: float, base_url: str = "") -> httpx.Client:
    """A connection pool with the time limits of all gateways. It follows no redirects."""
    return httpx.Client(
        base_url=base_url.rstrip("/"),
        timeout=httpx.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout)),
        limits=httpx.Limits(keepalive_expiry=KEEPALIVE_SECONDS),
        follow_redirects=False,
    )


def fetch(
    client: httpx.Client, seconds: float, method: str, url: str, **request: Any
) -> tuple[int, Mapping[str, str], bytes]:
    """The status, headers and body of a complete answer, in about so many seconds.

    Raises RetryLater if nothing was sent, OutcomeUnknown if no complete answer came.
    """
    deadline, content = time.monotonic() + seconds, bytearray()
    try:
        with client.stream(method, url, **request) as answer:
            for part in answer.iter_bytes():
                content += part
                if len(content) > MAX_BYTES:
                    raise OutcomeUnknown("the answer is too large")
                if time.monotonic() > deadline:  # the client's own limit is for each part
                    raise OutcomeUnknown("the answer is too slow")
            return answer.status_code, answer.headers, bytes(content)
    except NOT_SENT as error:
        raise RetryLater(type(error).__name__) from None
    except httpx.HTTPError as error:
        raise OutcomeUnknown(type(error).__name__) from None


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header; None for a date or none."""
    return float(value) if value and value.isascii() and value.isdigit() else None
