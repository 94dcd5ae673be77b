"""The guard before a gateway: time, number, repeats, breaker. A call is a plain function here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from gateways import guard as guards
from gateways.base import NotExecuted, OutcomeNotShown, OutcomeUnknown, Refused, RetryLater
from gateways.guard import ATTEMPTS, FAILURES, WAITING_PER_SLOT, GatewayGuard

Make = Callable[..., GatewayGuard]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[GatewayGuard] = []

    def make(*, timeout: float = 30.0, concurrency: int = 4) -> GatewayGuard:
        made.append(GatewayGuard("acme", timeout=timeout, concurrency=concurrency))
        return made[-1]

    yield make
    for guard in made:
        guard.close()


class Calls:
    """A call that raises what it is given, one after the other, and then answers "done"."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.count = list(errors), 0

    def __call__(self) -> str:
        self.count += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def fail(guard: GatewayGuard, times: int, error: Exception | None = None) -> None:
    for _ in range(times):
        with pytest.raises((OutcomeUnknown, NotExecuted)):
            guard.run(Calls(error or OutcomeUnknown("no answer")))


def test_a_call_gives_what_it_returns(make: Make) -> None:
    assert make().run(Calls()) == "done"


def test_what_surely_was_not_done_is_repeated(make: Make) -> None:
    call = Calls(RetryLater("refused"), RetryLater("HTTP 429", retry_after=0.0))
    assert make().run(call) == "done"
    assert call.count == ATTEMPTS == 3


def test_it_is_repeated_twice_at_most(make: Make) -> None:
    call = Calls(*[RetryLater("HTTP 429")] * 4)
    with pytest.raises(RetryLater):
        make().run(call)
    assert call.count == ATTEMPTS


@pytest.mark.parametrize(
    "error", [OutcomeUnknown("HTTP 500"), Refused("no"), NotExecuted("HTTP 401")]
)
def test_nothing_else_is_repeated(make: Make, error: Exception) -> None:
    call = Calls(error)
    with pytest.raises(type(error)):
        make().run(call)
    assert call.count == 1


def test_a_repeat_that_would_come_too_late_is_not_made(make: Make) -> None:
    call = Calls(RetryLater("HTTP 429", retry_after=2.0))
    with pytest.raises(RetryLater):
        make().run(call, seconds=1.0)
    assert call.count == 1


def test_a_call_that_does_not_end_in_time_is_unknown(make: Make) -> None:
    release = threading.Event()
    try:
        with pytest.raises(OutcomeUnknown, match="in time"):
            make(timeout=0.05).run(lambda: release.wait(30))
    finally:
        release.set()


def test_without_any_time_left_nothing_is_asked(make: Make) -> None:
    call = Calls()
    with pytest.raises(NotExecuted):
        make().run(call, seconds=-1.0)
    assert call.count == 0


def test_who_finds_all_slots_taken_is_told_that_nothing_was_done(make: Make) -> None:
    guard, release = make(concurrency=2), threading.Event()
    started = threading.Semaphore(0)

    def stall() -> None:
        started.release()
        release.wait(30)

    threads = [threading.Thread(target=guard.run, args=(stall,)) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        for _ in threads:
            assert started.acquire(timeout=10)
        call = Calls()
        with pytest.raises(NotExecuted, match="ended in time"):
            guard.run(call, seconds=0.05)
        assert call.count == 0
    finally:
        release.set()
        for thread in threads:
            thread.join(10)
    assert guard.run(Calls()) == "done"


def test_no_more_than_a_few_wait_for_a_slot(make: Make) -> None:
    guard, release = make(concurrency=1), threading.Event()
    here = 1 + WAITING_PER_SLOT
    threads = [
        threading.Thread(target=guard.run, args=(lambda: release.wait(30),)) for _ in range(here)
    ]
    try:
        for thread in threads:
            thread.start()
        call, refused = Calls(), threading.Event()
        while not refused.is_set():  # ends with the first that finds no place
            try:
                guard.run(call, seconds=0.01)
            except NotExecuted as error:
                if "too many" in str(error):
                    refused.set()
        assert call.count == 0
    finally:
        release.set()
        for thread in threads:
            thread.join(10)
    assert guard.run(Calls()) == "done"


def test_a_call_that_nobody_waits_for_any_more_still_holds_its_slot(make: Make) -> None:
    guard, release = make(concurrency=1), threading.Event()
    try:
        with pytest.raises(OutcomeUnknown):
            guard.run(lambda: release.wait(30), seconds=0.05)
        with pytest.raises(NotExecuted, match="ended in time"):
            guard.run(Calls(), seconds=0.05)
    finally:
        release.set()


def test_a_gateway_that_fails_again_and_again_is_left_alone(make: Make) -> None:
    guard = make()
    fail(guard, FAILURES)
    call = Calls()
    with pytest.raises(NotExecuted, match="circuit breaker"):
        guard.run(call)
    assert call.count == 0


def test_a_single_answer_between_failures_keeps_the_circuit_closed(make: Make) -> None:
    guard = make()
    fail(guard, FAILURES - 1)
    assert guard.run(Calls()) == "done"
    fail(guard, FAILURES - 1)
    assert guard.run(Calls()) == "done"


@pytest.mark.parametrize(
    "error", [Refused("no"), OutcomeNotShown("not in the books"), NotExecuted("401")]
)
def test_a_gateway_that_answers_is_well_whatever_it_says(make: Make, error: Exception) -> None:
    guard = make()
    fail(guard, FAILURES + 1, error)
    assert guard.run(Calls()) == "done"


def test_after_its_pause_the_circuit_lets_one_call_find_out(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "PAUSE", timedelta(microseconds=1))
    guard = make()
    fail(guard, FAILURES)
    assert guard.run(Calls()) == "done"
    fail(guard, FAILURES - 1)
    assert guard.run(Calls()) == "done"


def test_what_was_bound_for_the_logs_is_known_inside_the_call(make: Make) -> None:
    from observability import logs

    logs.bind_request({"request_id": "of-this-request"})
    try:
        assert make().run(lambda: logs.get_bound("request_id")) == "of-this-request"
    finally:
        logs.bind_request({})


def test_after_its_pause_only_one_call_at_a_time_finds_out(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "PAUSE", timedelta(microseconds=1))
    guard, started, release = make(), threading.Event(), threading.Event()
    fail(guard, FAILURES)

    def probe() -> str:
        started.set()
        release.wait(30)
        return "done"

    probing = threading.Thread(target=guard.run, args=(probe,))
    probing.start()
    try:
        assert started.wait(10)
        call = Calls()
        with pytest.raises(NotExecuted, match="circuit breaker"):
            guard.run(call)
        assert call.count == 0
    finally:
        release.set()
        probing.join(10)
    assert guard.run(Calls()) == "done"


@pytest.mark.parametrize(
    "error", [OutcomeNotShown("not in the books"), Refused("too many decimals")]
)
def test_what_may_not_even_have_been_asked_does_not_hide_failures(
    make: Make, error: Exception
) -> None:
    guard = make()
    fail(guard, FAILURES - 1)
    fail(guard, 1, error)
    fail(guard, 1)
    with pytest.raises(NotExecuted, match="circuit breaker"):
        guard.run(Calls())
