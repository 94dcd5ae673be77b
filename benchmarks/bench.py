"""The service beside a naive one and beside the limit of its database: `make bench`.

    python -m benchmarks.bench [--quick] [--only get,list] [--conns 1,16] [--workers 1,2]

Starts a PostgreSQL that goes away afterwards, both services on it, and measures in rounds: the
service, the naive one, pgbench with the service's own statements, the service again. What is shown
is the median of the rounds. A full or a quick run is kept in benchmarks/results/performance.json,
and docs/performance.md is written anew; a run of some operations is only shown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import database
from benchmarks import report, servers
from benchmarks.counting import Traffic, listen
from benchmarks.limit import find_pgbench, send_scripts
from benchmarks.load import Load, Outcome, apart
from benchmarks.operations import OPERATIONS, PRIMED, Operation, Shop, refuse_errors
from benchmarks.results import PERFORMANCE, Figure, Place, Results, keep, median
from benchmarks.servers import Postgres, Secrets, Server
from tests.support.postgres_proxy import PostgresProxy

# Of requests that cannot be sent twice, so many are made for each second. No server takes more.
MOST_PER_SECOND: Final = 1500
# With more connections the naive service waits for itself: its threads for connections of the pool,
# and the requests that hold those for threads.
MOST_FOR_NAIVE: Final = 64
WARM_CONNECTIONS: Final = 8  # for a moment before the first round, which is not kept

Tell = Callable[[str], None]
Send = Callable[[Load], Outcome]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and for how long."""

    operations: tuple[str, ...] = tuple(OPERATIONS)
    connections: tuple[int, ...] = (1, 16, 64, 200)
    workers: tuple[int, ...] = (1, 2)
    rounds: int = 3
    seconds: float = 3.0
    counted: int = 50  # requests of each operation whose statements are counted
    users: int = 500
    orders_each: int = 40
    primed: int = PRIMED


QUICK: Final = Plan(connections=(16,), workers=(1,), seconds=0.8, counted=20, users=200)


@dataclass(frozen=True, slots=True)
class Side:
    """A server and the shop on its database."""

    name: str
    server: Server
    shop: Shop


def measure(plan: Plan, postgres: Postgres, tell: Tell) -> Results:
    """Measure everything on databases of our own."""
    with tempfile.TemporaryDirectory(prefix="estore-bench-") as name, ExitStack() as stack:
        secret = Secrets.make(Path(name))
        tell(f"{plan.users * plan.orders_each:,} orders")
        shops = stack.enter_context(open_shops(plan, postgres, secret))
        pgbench = find_pgbench()
        if pgbench is None:
            tell("no pgbench: the limit is not measured")
        traffic = count(plan, shops, secret, tell)
        send = stack.enter_context(apart())
        figures: list[Figure] = []
        memory: dict[str, list[float]] = {}
        for workers in plan.workers:
            with running(shops, secret, workers) as sides:
                for side in sides:
                    side.shop.prime(side.server.port, plan.primed)
                    side.shop.drain()
                    tell(f"workers {workers}: warming {side.name} up")
                    for name, _ in asked_of(side, plan):
                        place = (side.name, name, WARM_CONNECTIONS, workers)
                        measure_once(place, side, plan.seconds / 4, postgres, send)
                limit = Limit(pgbench, traffic["service"], postgres) if pgbench else None
                figures += measure_rounds(plan, workers, sides, limit, postgres, send, tell)
                memory |= {
                    f"{side.name} {workers}": servers.memory_mib(side.server.pid) for side in sides
                }
        counts = {
            name: {operation: traffic.counts() for operation, traffic in of.items()}
            for name, of in traffic.items()
        }
        machine = servers.machine(postgres)
        return Results(machine, plan.rounds, plan.seconds, figures, counts, memory)


@contextmanager
def open_shops(plan: Plan, postgres: Postgres, secret: Secrets) -> Iterator[dict[str, Shop]]:
    """Two databases with the same in them: one for each service."""
    urls: list[str] = []
    try:
        urls.append(postgres.create())
        database.migrate(urls[0])
        shop = Shop(urls[0], secret, plan.users)
        shop.seed(plan.orders_each)
        urls.append(postgres.create(template=urls[0]))
        yield {"service": shop, "naive": Shop(urls[1], secret, plan.users)}
    finally:
        for url in urls:
            postgres.drop(url)


@contextmanager
def running(
    shops: dict[str, Shop], secret: Secrets, workers: int, urls: dict[str, str] | None = None
) -> Iterator[list[Side]]:
    """Both servers, each on the database of its shop, or at another address of it."""
    start = {"service": servers.service, "naive": servers.naive}
    with ExitStack() as stack:
        sides = []
        for name, shop in shops.items():
            url = urls[name] if urls else shop.url
            server = stack.enter_context(start[name](url, secret, workers))
            sides.append(Side(name, server, shop))
        yield sides


# Statements -------------------------------------------------------------------------------------


def count(
    plan: Plan, shops: dict[str, Shop], secret: Secrets, tell: Tell
) -> dict[str, dict[str, Traffic]]:
    """What each operation sends to PostgreSQL, by server and operation."""
    found: dict[str, dict[str, Traffic]] = defaultdict(dict)
    with ExitStack() as stack:
        proxies = {
            name: stack.enter_context(PostgresProxy(shop.url, pooler=True))
            for name, shop in shops.items()
        }
        urls = {name: proxy.url for name, proxy in proxies.items()}
        for side in stack.enter_context(running(shops, secret, 1, urls)):
            side.shop.prime(side.server.port, plan.primed)
            side.shop.drain()
            for name, operation in asked_of(side, plan):
                tell(f"statements: {side.name}, {operation.label}")
                found[side.name][name] = listen(
                    proxies[side.name],
                    side.server,
                    side.shop,
                    operation,
                    plan.counted,
                    # The naive service ends its transactions once it has answered.
                    in_background=operation.in_background or side.name == "naive",
                )
    return dict(found)


def asked_of(side: Side, plan: Plan) -> Iterator[tuple[str, Operation]]:
    for name in plan.operations:
        if OPERATIONS[name].naive or side.name == "service":
            yield name, OPERATIONS[name]


# Rounds -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limit:
    """pgbench with what the service sent."""

    pgbench: str
    traffic: dict[str, Traffic]
    postgres: Postgres

    def measure(self, url: str, name: str, connections: int, seconds: float) -> Figure:
        before = servers.cpu_seconds(self.postgres.pid)
        scripts = self.traffic[name].scripts()
        outcome = send_scripts(self.pgbench, url, scripts, connections, seconds)
        used = each_us(before, servers.cpu_seconds(self.postgres.pid), outcome.answers)
        return _figure(("limit", name, connections, 1), outcome, None, used)


def measure_rounds(
    plan: Plan,
    workers: int,
    sides: Sequence[Side],
    limit: Limit | None,
    postgres: Postgres,
    send: Send,
    tell: Tell,
) -> list[Figure]:
    """The medians of all rounds with so many workers."""
    rounds: dict[Place, list[Figure]] = defaultdict(list)

    def note(figure: Figure, number: int) -> None:
        rounds[figure.place].append(figure)
        cpu = "" if figure.cpu_us is None else f", CPU {figure.cpu_us:,.0f} µs each"
        tell(
            f"workers {workers}, round {number}: {figure.operation} {figure.server},"
            f" {figure.connections} connections: {figure.per_second:,.0f}/s{cpu}"
        )

    for number in range(1, plan.rounds + 1):
        for name in plan.operations:
            operation = OPERATIONS[name]
            for connections in plan.connections:
                for side in sides:
                    naive = side.name == "naive"
                    if naive and (not operation.naive or connections > MOST_FOR_NAIVE):
                        continue
                    place = (side.name, name, connections, workers)
                    note(measure_once(place, side, plan.seconds, postgres, send), number)
                if limit is not None and operation.limit and workers == 1:
                    url = sides[0].shop.url
                    note(limit.measure(url, name, connections, plan.seconds), number)
    return [
        median(figures, rounds.get(("naive", *place[1:]), []) if place[0] == "service" else [])
        for place, figures in rounds.items()
    ]


def measure_once(
    place: Place, side: Side, seconds: float, postgres: Postgres, send: Send
) -> Figure:
    """One operation for some seconds; its CPU counts until nothing of it is left to be done."""
    _, name, connections, _ = place
    operation = OPERATIONS[name]
    most = 2000 if operation.repeats else int(MOST_PER_SECOND * seconds)
    load = Load(
        side.server.port,
        operation.requests(side.shop, most),
        operation.repeats,
        connections,
        seconds,
        operation.status,
    )
    cpu, of_postgres = servers.cpu_seconds(side.server.pid), servers.cpu_seconds(postgres.pid)
    outcome = send(load)
    if side.name == "service":
        side.shop.drain()
        refuse_errors(f"{operation.label}, {connections} connections", outcome)
    return _figure(
        place,
        outcome,
        each_us(cpu, servers.cpu_seconds(side.server.pid), outcome.answers),
        each_us(of_postgres, servers.cpu_seconds(postgres.pid), outcome.answers),
    )


def each_us(before: float | None, after: float | None, number: int) -> float | None:
    """Microseconds for each of so many requests; None where the CPU is not known."""
    if before is None or after is None or not number:
        return None
    return (after - before) / number * 1e6


def _figure(
    place: Place, outcome: Outcome, cpu_us: float | None, postgres_cpu_us: float | None
) -> Figure:
    return Figure(
        *place,
        per_second=round(outcome.answers / outcome.seconds, 1),
        p50_ms=round(outcome.percentile(50) * 1e3, 2),
        p99_ms=round(outcome.percentile(99) * 1e3, 2),
        cpu_us=None if cpu_us is None else round(cpu_us),
        postgres_cpu_us=None if postgres_cpu_us is None else round(postgres_cpu_us),
        errors=outcome.errors,
    )


# The command ------------------------------------------------------------------------------------


def teller() -> Tell:
    """Shows progress, with the seconds since the start."""
    began = time.monotonic()

    def tell(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {what}", file=sys.stderr, flush=True)

    return tell


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="a minute or two; 16 connections")
    parser.add_argument("--only", help=f"some of {','.join(OPERATIONS)}; nothing is kept then")
    parser.add_argument("--conns", type=numbers, help="such as 1,16")
    parser.add_argument("--workers", type=numbers, help="such as 1,2")
    parser.add_argument("--seconds", type=float, help="of each measurement")
    parser.add_argument("--rounds", type=int)
    chosen = parser.parse_args()
    only = chosen.only.split(",") if chosen.only else list(OPERATIONS)
    if unknown := set(only) - set(OPERATIONS):
        parser.error(f"no such operation: {', '.join(sorted(unknown))}")
    plan = QUICK if chosen.quick else Plan()
    plan = replace(
        plan,
        operations=tuple(only),
        connections=chosen.conns or plan.connections,
        workers=chosen.workers or plan.workers,
        seconds=chosen.seconds or plan.seconds,
        rounds=chosen.rounds or plan.rounds,
    )
    with servers.throwaway_postgres() as postgres:
        results = measure(plan, postgres, teller())
    print(report.text(results))
    if chosen.only:
        print("Some operations only: nothing is kept.")
    else:
        keep(PERFORMANCE, results)
        report.write_docs()
        print(f"Kept in {PERFORMANCE.name}; docs/performance.md and its picture are written anew.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
