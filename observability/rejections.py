"""Counts what is refused before it is a request to an endpoint, and logs a sample of it."""

from __future__ import annotations

import time
from typing import Final

from prometheus_client import CollectorRegistry, Counter

from observability.logs import get_logger

log = get_logger()

# One line for each reason in so many seconds: whoever attacks does not fill the disk as well.
SECONDS_BETWEEN_LINES: Final = 10.0

# Of this process, unlike the metrics that are read from the database.
registry = CollectorRegistry()
_refused = Counter(
    "estore_requests_rejected",
    "Connections and requests that this process refused before any endpoint, by reason.",
    ["reason"],
    registry=registry,
)
_lines: dict[str, tuple[float, int]] = {}  # when the last line was written, how many came since


def count(reason: str, address: str) -> None:
    """Count a refusal. The first of its kind is logged, then one every ten seconds."""
    _refused.labels(reason).inc()
    now = time.monotonic()
    last, since = _lines.get(reason, (-SECONDS_BETWEEN_LINES, 0))
    if now - last < SECONDS_BETWEEN_LINES:
        _lines[reason] = (last, since + 1)
        return
    _lines[reason] = (now, 0)
    log.warning("http.rejected", reason=reason, address=address, refused=since + 1)
