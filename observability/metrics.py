"""Metrics in the text format of Prometheus; docs/runbook.md lists them.

Most are counted in the database, the same for every process: scrape any one. Rejections are counted
by each process for itself.
"""

import threading
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from observability import rejections

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

# A count costs what is counted, and beyond this the number changes nothing for an operator.
MAX_COUNTED = 10_000


class CachedPage:
    """A page that is made at most once in `seconds`, however many requests there are."""

    def __init__(self, seconds: float = 5.0) -> None:
        self.seconds = seconds
        self._page = b""
        self._made = float("-inf")
        self._making = threading.Lock()

    def get(self, make: Callable[[], bytes]) -> bytes:
        """The page; `make` makes a new one. Meanwhile other requests get the old one."""
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
