"""The benchmarks work: tiny runs, from the first statement to the table."""

from __future__ import annotations

import os
import xml.etree.ElementTree
from pathlib import Path

import pytest

import database
from benchmarks import bench, cost, growth_by_size, report, touched
from benchmarks.bench import Plan
from benchmarks.growth_by_size import Size
from benchmarks.limit import find_pgbench
from benchmarks.load import send
from benchmarks.operations import OPERATIONS
from benchmarks.results import PERFORMANCE, Results, read
from benchmarks.servers import Postgres, Secrets, cpu_seconds, memory_mib
from benchmarks.touched import Touched
from tests.support.paths import ROOT

TINY = Plan(
    connections=(2,),
    workers=(1,),
    rounds=1,
    seconds=0.2,
    counted=3,
    users=3,
    orders_each=5,
    primed=6,
)


@pytest.fixture(scope="module")
def postgres(postgres_url: str) -> Postgres:
    return Postgres(postgres_url, None)


@pytest.fixture(scope="module")
def measured(postgres: Postgres) -> Results:
    told: list[str] = []
    results = bench.measure(TINY, postgres, told.append)
    assert any("round 1: charge service, 2 connections" in line for line in told)
    return results


def test_every_operation_is_measured_at_both_servers_and_at_the_limit(measured: Results) -> None:
    expected = {
        (server, name)
        for name, operation in OPERATIONS.items()
        for server, does in (
            ("service", True),
            ("naive", operation.naive),
            ("limit", operation.limit and find_pgbench() is not None),
        )
        if does
    }
    assert {(figure.server, figure.operation) for figure in measured.figures} == expected
    for figure in measured.figures:
        assert figure.errors == 0, figure
        assert figure.per_second > 0
        # pgbench looks at its clock once for all of its connections that are ready.
        assert figure.p50_ms > 0 or figure.server == "limit"
        assert figure.p50_ms <= figure.p99_ms
        assert (figure.cpu_us is None) == (figure.server == "limit")
        compared = figure.server == "service" and OPERATIONS[figure.operation].naive
        assert (figure.cpu_to_naive is not None) == compared
    assert measured.memory_mib.keys() == {"service 1", "naive 1"}


def test_a_read_is_one_statement_and_one_round_trip(measured: Results) -> None:
    for name in ("get", "list"):
        counts = measured.counts["service"][name]
        assert (counts.statements, counts.gateway_statements, counts.round_trips) == (1, 0, 1)
    # BEGIN, SELECT, ROLLBACK; the last comes after the answer, and may count for the next request.
    assert round(measured.counts["naive"]["get"].round_trips) == 3


def test_a_charge_counts_what_the_sandbox_sends_too(measured: Results) -> None:
    charge = measured.counts["service"]["charge"]
    assert charge.statements > 3
    assert charge.gateway_statements > 1
    assert charge.round_trips > charge.statements
    assert charge.wal_bytes > 1000


def test_the_table_has_a_line_for_each_figure(measured: Results) -> None:
    shown = report.text(measured)
    for operation in OPERATIONS.values():
        assert f"| {operation.label} | 2 | 1 | service |" in shown
    assert len(report.ratios(measured).splitlines()) == 2 + len(OPERATIONS)


def test_the_picture_has_two_bars_for_each_operation_that_can_be_compared() -> None:
    kept = read(Results, PERFORMANCE)
    root = xml.etree.ElementTree.fromstring(report.picture(kept))
    bars = root.findall("{http://www.w3.org/2000/svg}rect")
    comparable = [operation for operation in OPERATIONS.values() if operation.naive]
    assert len(bars) == 1 + 2 * len(comparable)  # and the background
    assert (ROOT / "docs/performance.svg").read_text() == report.picture(kept)


def test_an_order_costs_what_its_rows_say(postgres: Postgres) -> None:
    variant = cost.Variant("with room", "ALTER TABLE orders SET (fillfactor = 90)", vacuum=True)
    found, counts = cost.measure(postgres, 10, variant, send, lambda _: None)
    assert found.orders == 10
    tables = found.tables
    assert tables["public.orders"].inserts == tables["public.payments"].inserts == 1
    assert tables["public.idempotency_keys"].inserts == 2
    assert tables["sandbox.charges"].inserts == 1
    assert tables["public.orders"].hot <= tables["public.orders"].updates
    assert found.wal_bytes > 2000
    assert counts.statements > 4


def test_what_a_request_touches_is_read_from_the_plans(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.create()
    try:
        database.migrate(url)
        found = {of.operation: of for of in touched.measure(url, Secrets.make(tmp_path), print)}
    finally:
        postgres.drop(url)
    assert found.keys() == OPERATIONS.keys()
    assert found["get"].statements == 1
    assert 2 <= found["get"].pages < 20
    assert found["charge"].pages > found["create"].pages > found["get"].pages


def test_an_operation_that_touches_twice_as_much_with_more_orders_is_named() -> None:
    def size(orders: int, pages: float) -> Size:
        return Size(orders, 1.0, [], [], [Touched("get", 1.0, pages, 0.1)])

    assert growth_by_size.find_growing([size(10, 4.0), size(1000, 8.0)]) == []
    [named] = growth_by_size.find_growing([size(10, 4.0), size(1000, 8.5)])
    assert named == "get an order: 4 pages with 10 orders, 8 with 1,000"
    shown = growth_by_size.requests([size(10, 4.0), size(1000, 8.0)])
    assert "| get an order | 1 | 4 pages, 0.1 ms | 8 pages, 0.1 ms |" in shown


def test_cpu_and_memory_are_those_of_a_process_and_its_children() -> None:
    before = cpu_seconds(os.getpid())
    assert before is not None
    assert before > 0
    assert cpu_seconds(None) is None
    assert memory_mib(os.getpid())[0] > 1
