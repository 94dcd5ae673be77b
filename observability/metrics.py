"""Metrics, each declared once, in the text format of Prometheus.

What matters here is in the database and the same for every process, so it is read when somebody
asks; any process may be scraped, and one is enough.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


def render(*, payments_open: int, payments_need_review: int) -> bytes:
    """The page that Prometheus scrapes."""
    registry = CollectorRegistry()
    Gauge(
        "estore_payments_open",
        "Payments and refunds whose outcome is not known yet; they are being looked up.",
        registry=registry,
    ).set(payments_open)
    Gauge(
        "estore_payments_needs_review",
        "Payments that no machine can settle and a person has to look at.",
        registry=registry,
    ).set(payments_need_review)
    return generate_latest(registry)
