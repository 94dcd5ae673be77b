"""What a run measured, as JSON, and what became slower since another run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")

FOLDER: Final = Path(__file__).parent / "results"
PERFORMANCE: Final = FOLDER / "performance.json"
SLOWER: Final = 1.15  # times as much as before
# The background writes as much by itself: so few bytes of the log say nothing of an operation.
WAL_NOISE: Final = 200.0
SAME_MACHINE: Final = ("cpu", "cores", "system", "python")

Place = tuple[str, str, int, int]  # server, operation, connections, workers


@dataclass(frozen=True, slots=True)
class Figure:
    """One operation at one server. CPU is that of all its processes, for each request."""

    server: str
    operation: str
    connections: int
    workers: int
    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: float | None
    postgres_cpu_us: float | None
    errors: int
    # The CPU of a request as a ratio to the naive service's: the median of the ratios within each
    # round, which a machine that becomes busy between two rounds changes little.
    cpu_to_naive: float | None = None

    @property
    def place(self) -> Place:
        return self.server, self.operation, self.connections, self.workers


@dataclass(frozen=True, slots=True)
class Counts:
    """What one request sends to PostgreSQL, on average; BEGIN and COMMIT are round trips, too."""

    statements: float  # of the service's own
    gateway_statements: float  # of the sandbox gateway, which stands for a gateway outside
    round_trips: float
    wal_bytes: float


@dataclass(frozen=True, slots=True)
class Results:
    """A run. The figures are medians of its rounds."""

    machine: dict[str, Any]
    rounds: int
    seconds: float
    figures: list[Figure]
    counts: dict[str, dict[str, Counts]]  # by server, by operation
    # Of each process, by server and number of workers.
    memory_mib: dict[str, list[float]] = field(default_factory=dict)

    @property
    def by_place(self) -> dict[Place, Figure]:
        return {figure.place: figure for figure in self.figures}


def keep(path: Path, measured: Any) -> None:
    """Write down what a run measured, a dataclass."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(asdict(measured), indent=1) + "\n")


def read(kind: type[T], path: Path) -> T:
    """What an earlier run measured."""
    return TypeAdapter(kind).validate_json(path.read_text())


def median(figures: Sequence[Figure], naive: Sequence[Figure] = ()) -> Figure:
    """One figure for all rounds of a place: each number's median, and all errors.

    `naive` are the naive service's in the same rounds, if it was asked.
    """
    first = figures[0]
    assert all(figure.place == first.place for figure in figures)

    def middle(name: str) -> float | None:
        values = [value for figure in figures if (value := getattr(figure, name)) is not None]
        return statistics.median(values) if values else None

    numbers = ("per_second", "p50_ms", "p99_ms", "cpu_us", "postgres_cpu_us")
    medians: dict[str, Any] = {name: middle(name) for name in numbers}
    ratios = [
        figure.cpu_us / other.cpu_us
        for figure, other in zip(figures, naive, strict=bool(naive))
        if figure.cpu_us is not None and other.cpu_us and not other.errors
    ]
    return Figure(
        *first.place,
        **medians,
        errors=sum(figure.errors for figure in figures),
        cpu_to_naive=round(statistics.median(ratios), 3) if ratios else None,
    )


# Comparing ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """A number that grew, by how many times."""

    operation: str
    what: str
    before: float
    now: float

    def __str__(self) -> str:
        more = (self.now / self.before - 1) * 100
        return (
            f"{self.operation}: {self.what} {self.before:,.2f} before, {self.now:,.2f} now"
            f" (+{more:.0f} %)"
        )


def is_same_machine(before: Results, now: Results) -> bool:
    return all(before.machine.get(name) == now.machine.get(name) for name in SAME_MACHINE)


def find_slower(before: Results, now: Results) -> list[Change]:
    """What takes more than SLOWER times as much as before.

    The naive service tells what a machine is worth at the moment. Where it can do an operation, the
    ratio to it is compared; where it cannot, CPU is, scaled by how much faster or slower it runs in
    all. That is only fair on the same machine. What is sent to PostgreSQL is compared on any.
    """
    numbers = [*_ratios(before, now), *_counts(before, now)]
    if is_same_machine(before, now):
        numbers += _own_cpu(before, now)
    return [change for change in numbers if change.now > change.before * SLOWER]


def _common(before: Results, now: Results, server: str) -> Iterator[tuple[Figure, Figure]]:
    old = before.by_place
    for figure in now.figures:
        if figure.server == server and figure.place in old:
            yield old[figure.place], figure


def _ratios(before: Results, now: Results) -> Iterator[Change]:
    for old, new in _common(before, now, "service"):
        if old.cpu_to_naive is not None and new.cpu_to_naive is not None:
            what = f"CPU to naive {_at(new)}"
            yield Change(new.operation, what, old.cpu_to_naive, new.cpu_to_naive)


def _own_cpu(before: Results, now: Results) -> Iterator[Change]:
    paces = [
        new.cpu_us / old.cpu_us
        for old, new in _common(before, now, "naive")
        if old.cpu_us and new.cpu_us
    ]
    pace = statistics.geometric_mean(paces) if paces else 1.0
    for old, new in _common(before, now, "service"):
        if new.cpu_to_naive is None and old.cpu_us and new.cpu_us:
            what = f"CPU µs, at the pace of before, {_at(new)}"
            yield Change(new.operation, what, old.cpu_us, new.cpu_us / pace)


def _at(figure: Figure) -> str:
    return f"at {figure.connections} connections, {figure.workers} worker(s),"


def _counts(before: Results, now: Results) -> Iterator[Change]:
    old = before.counts.get("service", {})
    for operation, new in now.counts.get("service", {}).items():
        if operation in old:
            for name in ("statements", "round_trips", "wal_bytes"):
                was, is_now = getattr(old[operation], name), getattr(new, name)
                if name != "wal_bytes" or is_now - was > WAL_NOISE:
                    yield Change(operation, name.replace("_", " "), was, is_now)
