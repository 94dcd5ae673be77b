"""The loop that runs the background roles, with roles made up for each test and no database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

import wakeup
from gateways.registry import Gateways
from tests.support.processes import wait_for
from tests.support.quiet import resources
from workers import loop
from workers.loop import Workers
from workers.roles import Resources, Role

HOUR = 3600.0


class Team:
    """Roles made up for a test, and a poll that finds due what the test says."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.due: set[str] = set()
        self.looks = 0
        self.fails = False
        self.runs: dict[str, int] = {}
        self.work: dict[str, Callable[[], int]] = {}
        patch.setattr(loop, "roles", lambda _: {name: self._role(name) for name in self.work})
        patch.setattr(loop, "due_roles", self._look)
        patch.setattr(loop, "is_migrated", lambda _: True)

    def _role(self, name: str) -> Role:
        def run(_: Resources) -> int:
            self.runs[name] = self.runs.get(name, 0) + 1
            return self.work[name]()

        return Role(run)

    def _look(self, _: Resources) -> set[str]:
        self.looks += 1
        if self.fails:
            raise OSError
        return set(self.due)


@pytest.fixture
def team(monkeypatch: pytest.MonkeyPatch) -> Team:
    monkeypatch.setattr(loop, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(loop, "MIN_IDLE_SECONDS", 0.01)
    monkeypatch.setattr(loop, "FIRST_PAUSE", 0.01)
    return Team(monkeypatch)


@pytest.fixture
def start(team: Team) -> Iterator[Callable[[], Workers]]:
    """Starts the roles of the team; they are stopped at the end."""
    started: list[Workers] = []

    def start() -> Workers:
        engine = sa.create_engine("postgresql+psycopg2://nowhere/")
        gateways = Gateways([])
        started.append(Workers(resources(engine, gateways)))
        started[-1].start()
        return started[-1]

    yield start
    for workers in started:
        stop(workers)


def stop(workers: Workers) -> None:
    thread = threading.Thread(target=workers.stop, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "the workers do not stop"


def failing() -> int:
    raise OSError


def test_what_others_made_is_found_within_a_second() -> None:
    assert loop.POLL_SECONDS + loop.MIN_IDLE_SECONDS < 1
    assert 1 / (loop.POLL_SECONDS * 0.9 + loop.MIN_IDLE_SECONDS) < 3  # statements a second


def test_a_role_works_until_it_finds_nothing_and_sleeps_until_there_is_something(
    team: Team, start: Callable[[], Workers]
) -> None:
    left = [1, 2, 3]
    team.work = {"busy": lambda: left.pop() if left else 0, "idle": lambda: 0}
    start()
    wait_for(lambda: team.runs.get("busy") == 4, "the work to be done")
    looks = team.looks
    wait_for(lambda: team.looks > looks + 5, "more looks")
    assert team.runs == {"busy": 4, "idle": 1}
    team.due = {"busy"}
    wait_for(lambda: team.runs["busy"] > 4, "the role to be woken")
    assert team.runs["idle"] == 1


def test_a_role_with_a_time_of_its_own_needs_nobody_to_wake_it(
    team: Team, start: Callable[[], Workers], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []

    def reap(_: Resources) -> int:
        done.append(1)
        return 0

    monkeypatch.setattr(loop, "roles", lambda _: {"reaper": Role(reap, pause=0.01)})
    start()
    wait_for(lambda: len(done) >= 3, "the reaper")


def test_a_role_that_fails_is_tried_again_and_stops_no_other(
    team: Team, start: Callable[[], Workers]
) -> None:
    team.work = {"broken": failing, "sound": lambda: 0}
    team.due = {"sound"}
    start()
    wait_for(lambda: team.runs.get("broken", 0) >= 3, "the role to be tried again")
    wait_for(lambda: team.runs["sound"] >= 3, "the other role")
    team.work["broken"] = lambda: 0
    team.due = {"broken"}
    before = team.runs["broken"]
    wait_for(lambda: team.runs["broken"] >= before + 3, "the role to be woken like any other")


def test_a_role_that_fails_is_not_hurried_by_the_poll(
    team: Team, start: Callable[[], Workers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "FIRST_PAUSE", HOUR)
    monkeypatch.setattr(loop, "LONGEST_PAUSE", HOUR)
    team.work = {"broken": failing}
    team.due = {"broken"}
    start()
    wait_for(lambda: team.looks > 10, "the poll")
    assert team.runs["broken"] == 1


class Log:
    """Instead of the log: the pauses that it is told."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def error(self, _: str, *, pause: float, **__: object) -> None:
        self.pauses.append(pause)


def test_the_pauses_of_a_role_that_fails_grow_up_to_a_limit_however_long_it_fails(
    team: Team, start: Callable[[], Workers], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log()
    monkeypatch.setattr(loop, "log", log)
    monkeypatch.setattr(loop, "FIRST_PAUSE", 0.0001)
    monkeypatch.setattr(loop, "LONGEST_PAUSE", 0.0003)
    team.work = {"broken": failing}
    start()
    wait_for(lambda: len(log.pauses) > 1100, "so many that 2 ** failures is no float any more")
    assert log.pauses[:4] == [0.0001, 0.0002, 0.0003, 0.0003]


def test_a_poll_that_failed_goes_on(team: Team, start: Callable[[], Workers]) -> None:
    team.work = {"role": lambda: 0}
    team.due = {"role"}
    team.fails = True
    start()
    wait_for(lambda: team.looks >= 3, "the poll to be tried again")
    assert team.runs == {"role": 1}
    team.fails = False
    wait_for(lambda: team.runs["role"] >= 3, "the role to be woken")


def test_work_that_comes_while_a_role_looks_is_not_missed(
    team: Team, start: Callable[[], Workers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "POLL_SECONDS", HOUR)
    wake_at_work = iter([True])

    def work() -> int:
        if next(wake_at_work, False):
            team.due = {"role"}
            looks = team.looks
            wakeup.wake()
            wait_for(lambda: team.looks > looks, "the poll to look while the role works")
        return 0

    team.work = {"role": work}
    start()
    wait_for(lambda: team.runs.get("role", 0) >= 2, "the role to look again")


def test_a_role_that_finds_nothing_though_woken_does_not_spin(
    team: Team, start: Callable[[], Workers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "MIN_IDLE_SECONDS", 0.05)
    team.work = {"blocked": lambda: 0}  # others hold the locks, say
    team.due = {"blocked"}
    begun = time.monotonic()
    start()

    def runs_ten_times() -> bool:
        wakeup.wake()
        return team.runs.get("blocked", 0) >= 10

    wait_for(runs_ten_times, "ten runs")
    took = time.monotonic() - begun
    assert took >= 9 * loop.MIN_IDLE_SECONDS
    assert team.looks <= took / loop.MIN_IDLE_SECONDS + 2


def test_sleeping_roles_stop_at_once(
    team: Team, start: Callable[[], Workers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "POLL_SECONDS", HOUR)
    team.work = {"idle": lambda: 0, "broken": failing}
    monkeypatch.setattr(loop, "FIRST_PAUSE", HOUR)
    listeners = dict(wakeup._listeners)
    workers = start()
    wait_for(lambda: team.runs.keys() == {"idle", "broken"} and team.looks == 1, "their sleep")
    stop(workers)
    assert wakeup._listeners == listeners
