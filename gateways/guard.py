"""What stands between us and a gateway over the network, one for each gateway and process.

A slow or broken gateway must not take the others down: at most so many calls to it run at a time
(the bulkhead), a call has a time limit as a whole, however its bytes trickle in, and after some
failures in a row it is left alone for a moment (the circuit breaker). What surely was not done is
tried again, the very same request. Nothing else ever is: that is the reconciler's work.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NoResult
from datetime import timedelta
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
from observability.logs import get_logger

T = TypeVar("T")
log = get_logger()

# Ten consecutive failures open the breaker. Five seconds later one call finds out whether the
# gateway is well again.
FAILURES: Final = 10
PAUSE: Final = timedelta(seconds=5)
# Who finds all slots taken waits for one, with so many others for each slot at most: enough for a
# burst at a gateway that answers, few enough that one that does not leaves the others their
# threads (see web/route.py). Half of the time is kept for the call itself.
WAITING_PER_SLOT: Final = 5
SHARE_FOR_WAITING: Final = 0.5
ATTEMPTS: Final = 3  # of a request that surely was not done
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
        self._probe = threading.Lock()  # held by the one call that finds out whether it is over
        self._breaker = CircuitBreaker(
            failure_threshold=FAILURES,
            recovery_timeout=PAUSE.total_seconds(),
            expected_exception=(OutcomeUnknown, RetryLater),
            name=name,
        )

    def run(self, call: Callable[[], T], seconds: float | None = None) -> T:
        """Make the call. Raises what it raises; NotExecuted when it was not made at all;
        OutcomeUnknown when it did not end in time."""
        budget = self._timeout if seconds is None else min(seconds, self._timeout)
        deadline = time.monotonic() + budget
        attempts = Retrying(
            retry=retry_if_exception_type(RetryLater),
            stop=stop_after_attempt(ATTEMPTS) | stop_before_delay(max(0.0, budget)),
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
        # The slot is the thread's: a call that we do not wait for any longer still holds it.
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
            raise  # the others may not even have asked, and say nothing about its health
        except Exception as error:
            self._count(error)
            raise
        self._count(None)
        return result

    def _count(self, error: Exception | None) -> None:
        """Tell the breaker how a call ended."""
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
