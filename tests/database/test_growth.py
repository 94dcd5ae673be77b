"""What statements cost does not grow: plans on 20,000 orders, as the benchmark makes them.

`make bench-growth` shows the same on up to 10,000,000.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

import crud
import database
from benchmarks.dataset import OPEN_PAYMENTS, fill
from benchmarks.growth import Line, measure, table
from gateways.registry import Gateways
from invariants import INVARIANTS, find_violations
from services import audit


@pytest.fixture(scope="module")
def grown(make_database: Callable[[], str]) -> Iterator[sa.Engine]:
    url = make_database()
    database.migrate(url)
    fill(url, 20_000, lambda _: None)
    engine = database.create_engine(url, pool_size=2)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def lines(grown: sa.Engine) -> list[Line]:
    return measure(grown, lambda _: None)


def test_no_statement_touches_more_pages_than_its_limit(lines: list[Line]) -> None:
    assert len(lines) > 150
    failing = [line for line in lines if line.fails]
    assert not failing, table(failing)


def test_a_list_is_read_from_its_own_index_and_nothing_is_thrown_away(lines: list[Line]) -> None:
    lists = [
        line
        for line in lines
        if line.name.startswith(("orders", "payments")) and "review" not in line.name
    ]
    assert len(lists) > 150
    # What is less than a page may be sorted: then all of it was found by the index.
    wasteful = [
        line
        for line in lists
        if line.plan.removed or ("SORT" in line.plan.scans and line.plan.rows > 50)
    ]
    assert not wasteful, table(wasteful)


def test_no_table_that_grows_is_read_from_end_to_end(lines: list[Line]) -> None:
    whole = [
        line
        for line in lines
        if "SEQ SCAN" in line.plan.scans.replace("SEQ SCAN account", "")  # it has one row
        and line.plan.pages > 50  # here some tables are smaller
        and not line.name.startswith(("window", "reap keys"))  # a good part of the table here
    ]
    assert not whole, table(whole)


def test_what_is_open_is_counted_up_to_a_limit(grown: sa.Engine) -> None:
    with database.new_session(grown) as session:
        assert crud.count_open(session) == OPEN_PAYMENTS
        assert crud.count_open(session, 100) == 100
        review = crud.count_needs_review(session)
        assert 10 < review < OPEN_PAYMENTS
        assert crud.count_needs_review(session, 10) == 10


def test_every_window_of_the_invariants_is_checked(grown: sa.Engine) -> None:
    with database.new_session(grown) as session:
        counts = {
            name: session.scalar(sa.text(f"SELECT count(*) FROM {name}"))
            for name in ("orders", "payments", "refunds", "payment_methods")
        }
        checked = list(find_violations(session, window=3_000))
    assert {step.table: step.rows for step in checked} == counts
    assert len([step for step in checked if step.table == "orders"]) == 20_000 // 3_000 + 1
    assert [step.violations for step in checked] == [{}] * len(checked)


@pytest.mark.parametrize("name", INVARIANTS)
def test_each_invariant_reads_its_window_only(name: str) -> None:
    assert INVARIANTS[name].count(":after") == INVARIANTS[name].count(":until") >= 1


def test_a_violation_in_the_last_window_is_reported_once_with_few_of_its_rows(
    grown: sa.Engine,
) -> None:
    steps: list[tuple[str, int]] = []
    with grown.begin() as connection:
        connection.execute(sa.text("UPDATE orders SET last_sequence = 99 WHERE id % 400 = 0"))
    try:
        with database.new_session(grown) as session:
            found = audit.check(session, Gateways([]), lambda *step: steps.append(step))
    finally:
        with grown.begin() as connection:
            connection.execute(
                sa.text(
                    "UPDATE orders o SET last_sequence = "
                    "(SELECT count(*) FROM events e WHERE e.order_id = o.id) WHERE id % 400 = 0"
                )
            )
    ids = [400 * number for number in range(1, 21)]
    assert found == [{"invariant": "events_have_no_gaps", "ids": ids}]
    assert ("orders checked", 10_000) in steps
    assert ("orders checked", 20_000) in steps


def test_rows_of_orders_that_are_not_there_are_checked_too(grown: sa.Engine) -> None:
    with database.new_session(grown) as session:
        session.execute(sa.text("SET LOCAL session_replication_role = replica"))
        session.execute(sa.text("DROP INDEX uq_payments_live"))
        session.execute(
            sa.text(
                "UPDATE payments SET order_id = 987654321 WHERE id IN "
                "(SELECT id FROM payments WHERE status = 'captured' AND user_id = 'user-0' "
                "ORDER BY id DESC LIMIT 2)"
            )
        )
        found = [step.violations for step in find_violations(session)]
        session.rollback()
    assert [987654321] in [step.get("one_live_payment_per_order") for step in found]
