"""Limits the calls to one gateway over the network, so that a slow one does not stop the others.

Each process has a guard for each gateway. The bulkhead limits how many calls run at a time. Each
call has a time limit, however slowly its bytes arrive. After consecutive failures the circuit
breaker makes further calls fail at once. The guard repeats a request only if it was not executed;
look-ups find the outcome of all others.
"""

import contextlib
import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NoResult
from datetime import timedelta
from functools import partial
from typing import Final, TypeVar

from circuitbreaker import STATE_HALF_OPEN, STATE_OPEN, CircuitBreaker
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
)

from gateways.base import NotExecuted, OutcomeNotShown, OutcomeUnknown, RetryLater
from greenlets import in_thread
from observability.logs import get_logger

T = TypeVar("T")
log = get_logger()

# Ten consecutive failures open the breaker. Five seconds later one call tries whether the gateway
# works again.
FAILURES: Final = 10
PAUSE: Final = timedelta(seconds=5)
# If all slots are taken, at most this many calls for each slot wait. That is enough for a burst at
# a gateway that answers, and leaves the other gateways their threads if one does not answer (see
# greenlets.py). A call waits for at most half of its time.
WAITING_PER_SLOT: Final = 5
SHARE_FOR_WAITING: Final = 0.5
ATTEMPTS: Final = 3  # of a request that was not executed
FIRST_PAUSE: Final = 0.1  # seconds before the second attempt, doubled before the third
LONGEST_PAUSE: Final = 2.0  # seconds, whatever a gateway's Retry-After says


class GatewayGuard:
    """The guard of one gateway. `timeout` in seconds is for a call with all its attempts."""

    def __init__(self, name: str, *, timeout: float, concurrency: int) -> None:
        self._name = name
        self._timeout = timeout
        self._places = threading.BoundedSemaphore(concurrency * (1 + WAITING_PER_SLOT))
        self._slots = threading.BoundedSemaphore(concurrency)
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix=f"gateway-{name}")
        self._probe = threading.Lock()  # held by the one call that tries a half-open breaker
        self._breaker = CircuitBreaker(
            failure_threshold=FAILURES,
            recovery_timeout=PAUSE.total_seconds(),
            expected_exception=(OutcomeUnknown, RetryLater),
            name=name,
        )

    def run(self, call: Callable[[], T], seconds: float | None = None) -> T:
        """Make the call. Raises what the call raises, NotExecuted if it was not made, and
        OutcomeUnknown if it did not end in time."""
        budget = self._timeout if seconds is None else min(seconds, self._timeout)
        return in_thread(partial(self._run, call, time.monotonic() + budget))

    def _run(self, call: Callable[[], T], deadline: float) -> T:
        attempts = Retrying(
            retry=retry_if_exception_type(RetryLater),
            stop=stop_after_attempt(ATTEMPTS)
            | stop_before_delay(max(0.0, deadline - time.monotonic())),
            wait=_pause,
            reraise=True,
        )
        if not self._places.acquire(blocking=False):
            raise NotExecuted("too many calls to this gateway are waiting")
        try:
            result: T = attempts(self._attempt, call, deadline)
        finally:
            self._places.release()
        return result

    def close(self) -> None:
        """Take no more calls."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _attempt(self, call: Callable[[], T], deadline: float) -> T:
        state = self._breaker.state
        probes = state == STATE_HALF_OPEN
        if state == STATE_OPEN or (probes and not self._probe.acquire(blocking=False)):
            raise NotExecuted("the circuit breaker is open")
        try:
            return self._call(call, deadline)
        finally:
            if probes:
                self._probe.release()

    def _call(self, call: Callable[[], T], deadline: float) -> T:
        wait = (deadline - time.monotonic()) * SHARE_FOR_WAITING
        if wait <= 0 or not self._slots.acquire(timeout=wait):
            raise NotExecuted("no call to this gateway has ended in time")
        # The thread holds the slot, even after we stop waiting for the call.
        running = self._threads.submit(contextvars.copy_context().run, call)
        running.add_done_callback(lambda _: self._slots.release())
        try:
            result = running.result(max(0.0, deadline - time.monotonic()))
        except NoResult:
            self._count(error := OutcomeUnknown("no answer in time"))
            raise error from None
        except (OutcomeNotShown, NotExecuted) as error:
            if isinstance(error, RetryLater):
                self._count(error)
            raise  # the others say nothing about the health of the gateway
        except Exception as error:
            self._count(error)
            raise
        self._count(None)
        return result

    def _count(self, error: Exception | None) -> None:
        """Report the end of a call to the breaker."""
        was_closed = self._breaker.closed
        with contextlib.suppress(Exception), self._breaker:
            if error is not None:
                raise error
        if was_closed and not self._breaker.closed:
            log.error("gateway.circuit_open", gateway=self._name, seconds=PAUSE.seconds)


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.retry_after if isinstance(error, RetryLater) else None
    pause = FIRST_PAUSE * 2.0 ** (state.attempt_number - 1) if asked is None else asked
    return min(LONGEST_PAUSE, pause)
