"""Metrics, each declared once, in the text format of Prometheus.

What matters here is in the database and the same for every process, so it is read when somebody
asks; any process may be scraped, and one is enough. Only what was refused is counted
by each process for itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from observability import rejections

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

# A count costs what is counted. Whether it is more than this changes nothing for who is called.
MAX_COUNTED = 10_000


class CachedPage:
    """The page as it was at most `seconds` ago: however many ask, it is made once in that time."""

    def __init__(self, seconds: float = 5.0) -> None:
        self.seconds = seconds
        self._page = b""
        self._made = float("-inf")
        self._making = threading.Lock()

    def get(self, make: Callable[[], bytes]) -> bytes:
        """The page; `make` makes a new one. While that lasts others get the last one."""
        if not self._making.acquire(blocking=not self._page):
            return self._page
        try:
            if time.monotonic() - self._made >= self.seconds:
                self._page = make()
                self._made = time.monotonic()
            return self._page
        finally:
            self._making.release()


def render(*, payments_open: int, payments_need_review: int) -> bytes:
    """The page that Prometheus scrapes."""
    registry = CollectorRegistry()
    Gauge(
        "estore_payments_open",
        "Payments and refunds whose outcome is not known yet; they are being looked up. "
        f"Of each {MAX_COUNTED} at most are counted.",
        registry=registry,
    ).set(payments_open)
    Gauge(
        "estore_payments_needs_review",
        "Payments that no machine can settle and a person has to look at. "
        f"{MAX_COUNTED} at most are counted.",
        registry=registry,
    ).set(payments_need_review)
    return generate_latest(registry) + generate_latest(rejections.registry)
