"""Medians and ratios of what was measured, and what became slower since."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import check
from benchmarks.bench import Plan
from benchmarks.results import (
    Counts,
    Figure,
    Results,
    find_slower,
    is_same_machine,
    keep,
    median,
    read,
)

MACHINE = {"cpu": "C", "cores": 2, "system": "Linux x86_64", "python": "3.13.1"}
MACHINE |= {"postgresql": "18.6", "memory_gib": 8.0, "date": "2026-11-25"}
COUNTS = Counts(statements=2.0, gateway_statements=0.0, round_trips=4.0, wal_bytes=1000.0)


def figure(server: str, operation: str, cpu_us: float | None, **changes: Any) -> Figure:
    values: dict[str, Any] = {"connections": 16, "workers": 1, "per_second": 100.0}
    values |= {"p50_ms": 1.0, "p99_ms": 9.0, "postgres_cpu_us": 50.0, "errors": 0}
    return Figure(server, operation, cpu_us=cpu_us, **values | changes)


def results(*figures: Figure, counts: Counts = COUNTS, **machine: Any) -> Results:
    return Results(MACHINE | machine, 3, 1.0, list(figures), {"service": {"get": counts}})


def run(get: float, naive: float, replay: float = 300.0, **others: Any) -> Results:
    """GET at both, and a replay, which only the service can do."""
    return results(
        figure("service", "get", get, cpu_to_naive=get / naive),
        figure("naive", "get", naive),
        figure("service", "replay", replay),
        **others,
    )


BEFORE = run(get=250.0, naive=1000.0)


def what(before: Results, now: Results) -> list[tuple[str, str]]:
    return [(change.operation, change.what.split(" at ")[0]) for change in find_slower(before, now)]


def test_the_median_of_rounds_is_taken_of_each_number_and_errors_are_added() -> None:
    rounds = [
        figure("service", "get", 300.0, per_second=1.0, errors=1),
        figure("service", "get", 100.0, per_second=9.0, errors=2),
        figure("service", "get", 200.0, per_second=5.0),
    ]
    middle = median(rounds)
    assert (middle.cpu_us, middle.per_second, middle.errors) == (200.0, 5.0, 3)


def test_a_number_that_no_round_has_stays_unknown() -> None:
    assert median([figure("limit", "get", None)] * 2).cpu_us is None


def test_rounds_of_different_places_have_no_median() -> None:
    with pytest.raises(AssertionError):
        median([figure("service", "get", 1.0), figure("service", "get", 1.0, workers=2)])


def rounds(server: str, *cpu_us: float, **changes: Any) -> list[Figure]:
    return [figure(server, "get", each, **changes) for each in cpu_us]


def test_the_ratio_to_naive_is_taken_within_each_round() -> None:
    """The machine becomes four times as slow, and the ratio stays."""
    service, naive = rounds("service", 200.0, 800.0, 820.0), rounds("naive", 1000.0, 4000.0, 4000.0)
    assert median(service, naive).cpu_to_naive == 0.2
    assert median(service).cpu_to_naive is None
    assert median(naive).cpu_to_naive is None


def test_a_round_in_which_the_naive_service_failed_gives_no_ratio() -> None:
    naive = rounds("naive", 1000.0) + rounds("naive", 9.0, errors=1)
    assert median(rounds("service", 200.0, 250.0), naive).cpu_to_naive == 0.2
    failed = rounds("naive", 9.0, errors=1)
    assert median(rounds("service", 200.0), failed).cpu_to_naive is None


def test_rounds_that_do_not_belong_together_have_no_ratio() -> None:
    with pytest.raises(ValueError, match="zip"):
        median(rounds("service", 200.0, 250.0), rounds("naive", 1000.0))


def test_results_are_read_back_as_they_were_kept(tmp_path: Path) -> None:
    path = tmp_path / "results" / "performance.json"
    keep(path, BEFORE)
    assert read(Results, path) == BEFORE


def test_what_takes_over_15_percent_more_of_the_naive_cpu_is_named() -> None:
    assert what(BEFORE, run(get=287.0, naive=1000.0)) == []
    assert what(BEFORE, run(get=290.0, naive=1000.0)) == [("get", "CPU to naive")]
    [change] = find_slower(BEFORE, run(get=500.0, naive=1000.0))
    assert str(change) == (
        "get: CPU to naive at 16 connections, 1 worker(s), 0.25 before, 0.50 now (+100 %)"
    )


def test_a_machine_that_is_busy_makes_nothing_slower() -> None:
    assert what(BEFORE, run(get=500.0, naive=2000.0, replay=600.0)) == []


def test_what_the_naive_service_cannot_do_is_compared_at_its_pace() -> None:
    slower = what(BEFORE, run(get=500.0, naive=2000.0, replay=700.0))
    assert slower == [("replay", "CPU µs,")]


def test_on_another_machine_only_ratios_to_the_naive_service_count() -> None:
    other = run(get=500.0, naive=1000.0, replay=9000.0, cpu="D")
    assert not is_same_machine(BEFORE, other)
    assert what(BEFORE, other) == [("get", "CPU to naive")]


def test_the_version_of_postgresql_and_the_day_make_no_other_machine() -> None:
    assert is_same_machine(BEFORE, run(1.0, 1.0, date="2027-01-01", postgresql="18.7"))


@pytest.mark.parametrize("name", ["statements", "round_trips", "wal_bytes"])
def test_what_is_sent_to_postgresql_is_compared_on_any_machine(name: str) -> None:
    more = replace(COUNTS, **{name: getattr(COUNTS, name) * 1.5})
    now = run(get=250.0, naive=1000.0, counts=more, cpu="D")
    assert what(BEFORE, now) == [("get", name.replace("_", " "))]


def test_what_was_not_measured_before_is_not_compared() -> None:
    assert what(results(), run(get=9000.0, naive=1.0, counts=COUNTS)) == []


# The check --------------------------------------------------------------------------------------


class Runs:
    """Gives these results one after the other, and notes which operations were asked for."""

    def __init__(self, *runs: Results) -> None:
        self.runs, self.asked, self.told = list(runs), [], []  # type: ignore[var-annotated]

    def __call__(self, plan: Plan) -> Results:
        self.asked.append(plan.operations)
        return self.runs.pop(0)

    def check(self) -> list[str]:
        plan = Plan(operations=("get", "list", "replay"))
        found = check.check(BEFORE, plan, self, self.told.append)
        return [change.operation for change in found]


def test_what_is_slower_twice_is_named_and_only_it_is_measured_again() -> None:
    slow = run(get=250.0, naive=1000.0, replay=900.0)
    runs = Runs(slow, slow)
    assert runs.check() == ["replay"]
    assert runs.asked == [("get", "list", "replay"), ("get", "replay")]


def test_what_is_slower_once_is_not_named() -> None:
    assert Runs(run(get=900.0, naive=1000.0), BEFORE).check() == []


def test_nothing_is_measured_again_when_nothing_is_slower() -> None:
    runs = Runs(BEFORE)
    assert runs.check() == []
    assert len(runs.asked) == 1
    assert runs.told == []


def test_another_machine_is_told() -> None:
    runs = Runs(run(get=250.0, naive=1000.0, cpu="D"))
    runs.check()
    [told] = runs.told
    assert told.startswith("another machine")


def test_a_few_bytes_more_of_the_log_are_no_change() -> None:
    now = replace(BEFORE, counts={"service": {"get": replace(COUNTS, wal_bytes=1190.0)}})
    assert find_slower(BEFORE, now) == []
    now = replace(BEFORE, counts={"service": {"get": replace(COUNTS, wal_bytes=1210.0)}})
    assert [change.what for change in find_slower(BEFORE, now)] == ["wal bytes"]
