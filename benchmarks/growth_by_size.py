"""What statements touch with ever more orders: it stays the same. `make bench-growth`.

    python -m benchmarks.growth_by_size [--orders 10000,1000000,3000000]

For each size a PostgreSQL that goes away is filled with so many orders and all that belongs to
them. Then every list, look-up and reaper is explained (`growth.py`), and every operation of the
API, among them the charge (`touched.py`). Exits 1 when a statement touches more pages than its
limit, or a request twice as many as with the fewest orders. Three million orders take 20 minutes
and 16 GB of disk, ten million an hour or more and 60. What was measured is kept in
benchmarks/results/growth.json, and docs/growth.md is written anew.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import database
from benchmarks import growth, report, servers, touched
from benchmarks.bench import Tell, numbers, teller
from benchmarks.dataset import fill
from benchmarks.operations import OPERATIONS
from benchmarks.results import FOLDER, keep, read
from benchmarks.servers import Postgres, Secrets
from benchmarks.touched import Touched

KEPT: Final = FOLDER / "growth.json"
SIZES: Final = "10000,1000000,3000000"  # the history of an order has 4.6 rows on average
MOST_TIMES: Final = 2.0  # a B-tree gets one level more for each hundredfold or so


@dataclass(frozen=True, slots=True)
class Worst:
    """The statement of a kind that touched the most pages."""

    kind: str
    statements: int
    pages: int
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Size:
    """What was measured with so many orders."""

    orders: int
    gib: float
    worst: list[Worst]
    failures: list[str]  # statements that touched more pages than their limit
    requests: list[Touched]


@dataclass(frozen=True, slots=True)
class Kept:
    machine: dict[str, Any]
    sizes: list[Size]


def measure(postgres: Postgres, orders: int, tell: Tell) -> Size:
    """On a database of its own."""
    url = postgres.create()
    try:
        database.migrate(url)
        fill(url, orders, tell)
        with servers.connect(url) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_database_size(current_database()) / 2.0 ^ 30")
            gib = float(cursor.fetchone()[0])
        engine = database.create_engine(url)
        lines = growth.measure(engine, tell)
        engine.dispose()
        with tempfile.TemporaryDirectory(prefix="estore-growth-") as name:
            requests = list(touched.measure(url, Secrets.make(Path(name)), tell))
    finally:
        postgres.drop(url)
    return Size(
        orders,
        round(gib, 2),
        list(_worst(lines)),
        [line.name for line in lines if line.fails],
        requests,
    )


def _worst(lines: list[growth.Line]) -> list[Worst]:
    by_kind: dict[str, list[growth.Line]] = {}
    for line in lines:
        by_kind.setdefault(line.kind, []).append(line)
    return [
        Worst(
            kind,
            len(of),
            max(line.plan.pages for line in of),
            max(line.plan.milliseconds for line in of),
        )
        for kind, of in by_kind.items()
    ]


def find_growing(sizes: list[Size]) -> list[str]:
    """Operations that touch over MOST_TIMES as many pages as with the fewest orders."""
    fewest = {of.operation: of.pages for of in sizes[0].requests}
    return [
        f"{OPERATIONS[of.operation].label}: {fewest[of.operation]:.0f} pages with"
        f" {sizes[0].orders:,} orders, {of.pages:.0f} with {size.orders:,}"
        for size in sizes[1:]
        for of in size.requests
        if of.pages > fewest[of.operation] * MOST_TIMES
    ]


# Showing ----------------------------------------------------------------------------------------


def requests(sizes: list[Size]) -> str:
    rows = [
        [
            OPERATIONS[first.operation].label,
            f"{first.statements:.0f}",
            *(_cell(of.pages, of.milliseconds) for of in every),
        ]
        for first, *_ in zip(*(size.requests for size in sizes), strict=True)
        for every in [
            [of for size in sizes for of in size.requests if of.operation == first.operation]
        ]
    ]
    return report.table(("request", "statements", *_heads(sizes)), rows)


def statements(sizes: list[Size]) -> str:
    rows = [
        [first.kind, str(first.statements), *(_cell(of.pages, of.milliseconds) for of in every)]
        for first, *_ in zip(*(size.worst for size in sizes), strict=True)
        for every in [[of for size in sizes for of in size.worst if of.kind == first.kind]]
    ]
    return report.table(("the worst of", "statements", *_heads(sizes)), rows)


def _heads(sizes: list[Size]) -> list[str]:
    return [f"{size.orders:,} orders ({size.gib:.1f} GiB)" for size in sizes]


def _cell(pages: float, milliseconds: float) -> str:
    return f"{pages:,.0f} pages, {milliseconds:,.1f} ms"


def _part(make: Callable[[list[Size]], str]) -> Callable[[], str]:
    return lambda: make(read(Kept, KEPT).sizes)


PARTS: Final = {make.__name__: _part(make) for make in (requests, statements)}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth_by_size", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--orders", type=numbers, default=numbers(SIZES), help=SIZES)
    tell, sizes = teller(), []
    for orders in sorted(parser.parse_args().orders):
        tell(f"{orders:,} orders")
        with servers.throwaway_postgres() as postgres:  # its disk is free again for the next
            sizes.append(measure(postgres, orders, tell))
            machine = servers.machine(postgres)
    keep(KEPT, Kept(machine, sizes))
    report.write_docs()
    print(f"{requests(sizes)}\n\n{statements(sizes)}\n")
    print(f"Kept in {KEPT.name}; docs/growth.md is written anew.")
    failures = [f"{size.orders:,} orders: {name}" for size in sizes for name in size.failures]
    failures += find_growing(sizes)
    for failure in failures:
        print(f"touches too many pages: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
