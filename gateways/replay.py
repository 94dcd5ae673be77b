"""Replay: learn the outcome of a lost request by sending it again under its idempotency key.

A gateway that remembers the key answers with the outcome of the first request, or carries the
request out now. Either way it happens once. A gateway that has forgotten the key would carry it
out a second time, so each adapter knows for how long its gateway remembers keys.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from gateways.base import NotExecuted, OutcomeNotShown, OutcomeUnknown, Refused, RetryLater

T = TypeVar("T")


def replay(call: Callable[[], T]) -> T | None:
    """Send a request again, by `call`.

    None: the gateway refuses it, so the first one had no effect either. Raises NotExecuted and
    OutcomeUnknown.
    """
    try:
        return call()
    except Refused:
        return None


@contextmanager
def looking_up() -> Iterator[None]:
    """In a look-up NotExecuted becomes OutcomeUnknown: it says nothing about the first request.

    Unless it is RetryLater, it says nothing against the health of the gateway either.
    """
    try:
        yield
    except RetryLater as error:
        raise OutcomeUnknown(str(error)) from None
    except NotExecuted as error:
        raise OutcomeNotShown(str(error)) from None


def require_remembered(age: timedelta, key_lifetime: timedelta) -> None:
    """Raises OutcomeNotShown if the gateway may have forgotten the key of a request so old."""
    if age > key_lifetime:
        raise OutcomeNotShown("the gateway may have forgotten the key")
