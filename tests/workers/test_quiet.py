"""Quiet when idle: what a process with its workers asks PostgreSQL, as PostgreSQL receives it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

import database
from config import Settings
from gateways.registry import Gateways
from tests.support.database import sql
from tests.support.factories import pay, place_order, save_card
from tests.support.paths import ROOT
from tests.support.postgres_proxy import PostgresProxy
from tests.support.processes import Service, copy_sources, wait_for
from tests.support.quiet import resources
from workers.roles import due_roles

POLL = "WITH RECURSIVE "  # how the statement begins that the poll sends


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    """The service of this module has no workers: others find what it makes."""
    return settings.model_copy(update={"run_workers": False})


@pytest.fixture
def proxy(settings: Settings, base_url: str) -> Iterator[PostgresProxy]:
    assert settings.database_url is not None
    with PostgresProxy(settings.database_url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("sources") / "service")


@pytest.fixture
def start(sources: Path, tmp_path: Path, proxy: PostgresProxy) -> Callable[..., Service]:
    """Starts a process of its own on the same database, through the proxy."""

    def start(*command: str) -> Service:
        return Service(
            sources, tmp_path / "data", command, DATABASE_URL=proxy.url, RECONCILE_AFTER=1
        )

    return start


@pytest.fixture
def due(engine: sa.Engine, app: FastAPI) -> Callable[[], set[str]]:
    """Which roles have something to do, once nothing that came before has."""
    settle(engine)
    gateways = app.state.gateways
    return lambda: due_roles(resources(engine, gateways))


def settle(engine: sa.Engine) -> None:
    sql(
        engine,
        "UPDATE payments SET check_at = now() + interval '7 days' WHERE check_at IS NOT NULL",
    )
    sql(
        engine, "UPDATE refunds SET check_at = now() + interval '7 days' WHERE check_at IS NOT NULL"
    )
    sql(engine, "UPDATE comparisons SET next_at = now() + interval '7 days'")
    sql(engine, "UPDATE sandbox.webhooks SET delivered_at = now() WHERE delivered_at IS NULL")


def wait_until_idle(proxy: PostgresProxy) -> None:
    """The roles have looked once at the start; from then on only the poll does."""

    def is_idle() -> bool:
        last = proxy.statements[-6:]
        return sum(text.startswith(POLL) for text in last) >= 3 and "BEGIN" not in last

    wait_for(is_idle, "the process to be idle")


def lose_answer(client: httpx.Client, fault: str) -> dict[str, Any]:
    """A payment whose outcome the service did not hear."""
    order = place_order(client)
    headers = {"Sandbox-Fault": fault}
    answer = client.post(f"/orders/{order['id']}/payments", json={}, headers=headers)
    assert answer.status_code == 202, answer.text
    pending: dict[str, Any] = answer.json()
    return pending


# Processes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("main.py",), ("-m", "workers")], ids=["service", "workers"])
def test_an_idle_process_sends_at_most_three_statements_a_second(
    command: tuple[str, ...], start: Callable[..., Service], proxy: PostgresProxy
) -> None:
    with start(*command):
        wait_until_idle(proxy)
        before, begun = len(proxy.statements), time.monotonic()
        # How long these take: a slow machine sends fewer in the same time.
        wait_for(lambda: len(proxy.statements) >= before + 8, "statements")
        took = time.monotonic() - begun
        sent = proxy.statements[before:]
    assert len(sent) <= 3 * took, sent
    state = ("BEGIN", "SET", "LISTEN", "SELECT pg_advisory")  # of a transaction, or of a session
    assert [text for text in sent if text.startswith(state)] == []


def test_another_process_finds_what_is_due(
    start: Callable[..., Service],
    proxy: PostgresProxy,
    alice: httpx.Client,
    engine: sa.Engine,
) -> None:
    def status(payment: dict[str, Any]) -> Any:
        return alice.get(f"/payments/{payment['id']}").json()["status"]

    with start("-m", "workers"):
        save_card(alice)
        wait_until_idle(proxy)
        told = lose_answer(alice, "timeout_after_charge")  # the sandbox's webhook tells
        asked = lose_answer(alice, "timeout_before_charge")  # only a look-up finds out
        wait_for(lambda: status(told) == "captured", "the webhook", 30)
        wait_for(lambda: status(asked) == "failed", "the look-up", 30)
        wait_until_idle(proxy)


def test_a_process_whose_database_was_away_goes_on_when_it_is_back(
    start: Callable[..., Service], proxy: PostgresProxy, alice: httpx.Client
) -> None:
    with start("-m", "workers") as workers:
        save_card(alice)
        wait_until_idle(proxy)
        proxy.switch("cut")
        wait_for(lambda: workers.text.count("worker.failed") >= 2, "the poll to fail")
        lost = lose_answer(alice, "timeout_after_charge")
        proxy.switch("forward")
        path = f"/payments/{lost['id']}"
        wait_for(lambda: alice.get(path).json()["status"] == "captured", "the webhook")
        assert workers.stop() == 0


# What is due ------------------------------------------------------------------------------------


def test_nothing_is_due_where_nothing_waits(due: Callable[[], set[str]]) -> None:
    assert due() == set()


@pytest.mark.parametrize(
    ("gateway", "where"), [("sandbox", "sandbox"), ("paypal", "off")], ids=["on", "off"]
)
@pytest.mark.parametrize("kind", ["open", "waiting", "refund"])
def test_a_look_up_that_is_due_wakes_the_role_of_its_gateway_and_lane_only(
    kind: str,
    gateway: str,
    where: str,
    due: Callable[[], set[str]],
    alice: httpx.Client,
    manager: httpx.Client,
    engine: sa.Engine,
) -> None:
    def make(gateway: str, when: str) -> None:
        capture_method = "manual" if kind == "waiting" else "automatic"
        payment = pay(alice, place_order(alice)["id"], capture_method=capture_method)
        if kind == "refund":
            answer = manager.post(f"/payments/{payment['id']}/refunds", json={})
            assert answer.status_code == 201, answer.text
        which = {
            "open": "payments SET operation = 'void', operation_key = id, operation_amount = 1,",
            "waiting": "payments SET",
            "refund": "refunds SET",
        }
        key = "payment_id" if kind == "refund" else "id"
        sql(
            engine,
            f"UPDATE {which[kind]} gateway = :gateway, check_at = {when} WHERE {key} = :id",
            gateway=gateway,
            id=payment["id"],
        )

    save_card(alice)
    for other in ("aaa", "qqq", "zzz"):  # before and behind it in the index
        make(other, "now() + interval '1 hour'")
    make(gateway, "now()")
    sql(engine, "UPDATE sandbox.webhooks SET delivered_at = now()")
    assert due() == {f"lookup-{'waiting' if kind == 'waiting' else 'open'}-{where}"}


def test_a_comparison_that_is_due_wakes_the_role_of_its_gateway(
    due: Callable[[], set[str]], engine: sa.Engine
) -> None:
    sql(
        engine,
        "INSERT INTO comparisons SELECT unnest(ARRAY['sandbox', 'paypal']), now(), now()"
        " ON CONFLICT (gateway) DO UPDATE SET next_at = now()",
    )
    assert due() == {"compare-sandbox"}  # the other is off
    sql(engine, "UPDATE comparisons SET next_at = now() + interval '1 minute'")
    assert due() == set()


def test_a_webhook_of_the_sandbox_wakes_its_role_where_there_is_one(
    due: Callable[[], set[str]], alice: httpx.Client, engine: sa.Engine
) -> None:
    save_card(alice)
    pay(alice, place_order(alice)["id"])
    assert due() == {"sandbox"}
    off = Gateways([])
    assert due_roles(resources(engine, off)) == set()


# What it costs ----------------------------------------------------------------------------------

ROWS = 20_000
GROW = [
    "INSERT INTO orders (user_id, product_id, quantity, total_amount, currency)"
    f" SELECT 'many', 'sku', 1, 100, 'USD' FROM generate_series(1, {ROWS})",
    "INSERT INTO payments (order_id, user_id, payment_method_id, gateway, gateway_key, amount,"
    " currency, capture_method, check_at)"
    " SELECT o.id, 'many', m.id, (ARRAY['sandbox', 'paypal'])[1 + o.id % 2], 'key-' || o.id,"
    " 100, 'USD', 'manual', now() - interval '1 day'"
    " FROM orders o, payment_methods m WHERE o.user_id = 'many' AND m.user_id = 'many'",
    "UPDATE payments SET status = 'authorized' WHERE user_id = 'many' AND id % 4 = 0",
    "UPDATE payments SET status = 'captured', amount_captured = 100"
    " WHERE user_id = 'many' AND id % 4 = 1",
    "INSERT INTO refunds (payment_id, gateway, gateway_key, amount, currency, check_at)"
    " SELECT id, gateway, gateway_key, 100, 'USD', check_at FROM payments"
    " WHERE user_id = 'many' AND status = 'captured'",
    "INSERT INTO sandbox.charges (reference, order_id, payment_id, idempotency_key, amount,"
    " currency, outcome, capture, status, capture_before)"
    " SELECT gateway_key, order_id, id, gateway_key, 100, 'USD', '', false, 'authorized',"
    " now() - interval '1 day' FROM payments WHERE user_id = 'many'",
    "INSERT INTO sandbox.webhooks (payload) SELECT '{}' FROM payments WHERE user_id = 'many'",
]
# As GROW leaves them everything is due; then nothing is.
PUT_OFF = [
    "UPDATE payments SET check_at = now() + interval '7 days' WHERE user_id = 'many'",
    "UPDATE refunds SET check_at = now() + interval '7 days'",
    "UPDATE sandbox.charges SET capture_before = now() + interval '7 days'",
    "UPDATE sandbox.webhooks SET delivered_at = now()",
]
TABLES = {"payments", "refunds", "charges", "webhooks"}


def explain(engine: sa.Engine, ask: Callable[[], object]) -> dict[str, Any]:
    """How PostgreSQL ran the one statement that `ask` sends."""
    sent: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        sent.append((statement, parameters))

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        ask()
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
    ((statement, parameters),) = sent
    with engine.connect() as connection:
        explained = connection.exec_driver_sql(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters
        )
        plan: dict[str, Any] = explained.scalar_one()[0]["Plan"]
    return plan


def tables_read_whole(plan: dict[str, Any]) -> set[str]:
    found = {plan["Relation Name"]} if plan["Node Type"] == "Seq Scan" else set()
    return found.union(*(tables_read_whole(inner) for inner in plan.get("Plans", [])))


def test_the_poll_reads_no_more_when_the_tables_have_grown(
    engine: sa.Engine,
    due: Callable[[], set[str]],
    api: Callable[..., httpx.Client],
) -> None:
    save_card(api("many"))
    for statement in GROW:
        sql(engine, statement)

    tables = "payments, refunds, sandbox.charges, sandbox.webhooks"
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(f"VACUUM ANALYZE {tables}"))
    for statement in PUT_OFF:
        sql(engine, statement)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(f"VACUUM {tables}"))  # the statistics stay as they were
    assert due() == set()
    plan = explain(engine, due)
    assert not TABLES & tables_read_whole(plan)
    # A few pages of each index for each of five gateways; the tables have thousands.
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 200


def test_the_runbook_names_every_setting_that_pgbouncer_does_not_pass_on() -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    limits = database.SERVING
    seconds = {"statement_timeout": limits.statement, "lock_timeout": limits.lock}
    options = {name: f"{limit:g}s" for name, limit in seconds.items()} | database.SESSION_OPTIONS
    for name, value in options.items():
        assert f"ALTER ROLE estore SET {name} = '{value}';" in runbook
