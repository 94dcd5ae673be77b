"""Counts connections and requests that are rejected before any endpoint, and logs a sample."""

import time
from typing import Final

from prometheus_client import CollectorRegistry, Counter

from observability.logs import get_logger

log = get_logger()

# One line per reason in so many seconds, so that an attack does not fill the disk.
SECONDS_BETWEEN_LINES: Final = 10.0

# Counted by this process, unlike the metrics that are read from the database.
registry = CollectorRegistry()
_refused = Counter(
    "estore_requests_rejected",
    "Connections and requests that this process refused before any endpoint, by reason.",
    ["reason"],
    registry=registry,
)
# When the last line of a reason was written, and how many rejections came since.
_lines: dict[str, tuple[float, int]] = {}


def count(reason: str, address: str) -> None:
    """Count a rejection. The first of its reason is logged, then one every ten seconds."""
    _refused.labels(reason).inc()
    now = time.monotonic()
    last, since = _lines.get(reason, (-SECONDS_BETWEEN_LINES, 0))
    if now - last < SECONDS_BETWEEN_LINES:
        _lines[reason] = (last, since + 1)
        return
    _lines[reason] = (now, 0)
    log.warning("http.rejected", reason=reason, address=address, refused=since + 1)
