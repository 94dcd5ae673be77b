"""Faults on demand, by the Sandbox-Fault header."""

import re
import time
from collections.abc import Callable
from typing import Final, TypeVar

from gateways.base import OutcomeUnknown

T = TypeVar("T")

FAULTS: Final = frozenset(
    {
        "timeout_before_charge",
        "timeout_after_charge",
        "error_500",
        "error_after_charge",
        "duplicate_webhook",
        "late_webhook",
        "reordered_webhooks",
    }
)
SLOW: Final = "slow="
SLOW_PATTERN: Final = SLOW + r"(1[01][0-9]|120|[0-9]{1,2})(\.[0-9]{1,3})?"


def parse_fault(value: str) -> str | None:
    """A valid Sandbox-Fault header, or None. `slow=` takes up to about 120 seconds."""
    return value if value in FAULTS or re.fullmatch(SLOW_PATTERN, value) else None


def with_fault(fault: str | None, timeout: float, work: Callable[[], T]) -> T:
    """Do the work, or lose the request or the answer as a network does.

    The caller waits for at most `timeout` seconds.
    """
    if fault in ("timeout_before_charge", "error_500"):
        raise OutcomeUnknown("no answer" if fault == "timeout_before_charge" else "HTTP 500")
    result = work()
    if fault in ("timeout_after_charge", "error_after_charge"):
        raise OutcomeUnknown("no answer" if fault == "timeout_after_charge" else "HTTP 500")
    if fault is not None and fault.startswith(SLOW):
        seconds = float(fault.removeprefix(SLOW))
        time.sleep(min(seconds, timeout))
        if seconds >= timeout:
            raise OutcomeUnknown("no answer in time")
    return result
