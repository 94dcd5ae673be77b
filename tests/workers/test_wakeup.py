"""Who wakes the background roles: a process its own, right after the COMMIT, and the poll all."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

import crud
import database
import leases
import locks
import main
import wakeup
from config import Settings
from gateways.sandbox.webhooks import announcing
from services import reconciliation
from settlement.transitions import ChangedBy, locked_payment
from tests.support.database import sql
from tests.support.factories import card, pay, place_order, save_card
from tests.support.processes import wait_for
from workers import loop

ACTION = "4000002760003184"
HOUR = 3600.0
UNDELIVERED = "SELECT FROM sandbox.webhooks WHERE delivered_at IS NULL"


@pytest.fixture(scope="module")
def app(settings: Settings) -> Iterator[FastAPI]:
    """A service whose poll looks once an hour: what happens sooner, somebody was woken for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "POLL_SECONDS", HOUR)
        yield main.create_app(settings)


@pytest.fixture
def woken() -> Iterator[threading.Event]:
    """Set when the workers of this process are woken."""
    event = threading.Event()
    wakeup.listen(event)
    yield event
    wakeup.unlisten(event)


@pytest.fixture
def delivers() -> Iterator[threading.Event]:
    """Set when the sandbox of this process is woken."""
    event = threading.Event()
    wakeup.listen(event, "sandbox")
    yield event
    wakeup.unlisten(event)


def wait_until_asleep(engine: sa.Engine) -> None:
    """Until no role has anything to do any more. None looks again before it is woken."""
    last = time.monotonic()

    def note(*_: Any) -> None:
        nonlocal last
        last = time.monotonic()

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        wait_for(lambda: time.monotonic() > last + 5 * loop.MIN_IDLE_SECONDS, "silence")
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


# Own work, without waiting for a poll ----------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"Sandbox-Fault": "timeout_after_charge"}])
def test_a_webhook_of_the_sandbox_wakes_its_delivery(
    headers: dict[str, str], alice: httpx.Client, engine: sa.Engine
) -> None:
    save_card(alice)
    order = place_order(alice)
    wait_until_asleep(engine)
    answer = alice.post(f"/orders/{order['id']}/payments", json={}, headers=headers)
    assert answer.status_code == (202 if headers else 201), answer.text
    wait_for(lambda: not sql(engine, UNDELIVERED), "the delivery", 30)
    assert alice.get(f"/payments/{answer.json()['id']}").json()["status"] == "captured"


def test_what_a_shopper_answers_wakes_the_delivery(alice: httpx.Client, engine: sa.Engine) -> None:
    assert alice.post("/payment-methods", json=card(ACTION)).status_code == 201
    payment = pay(alice, place_order(alice)["id"])
    wait_until_asleep(engine)
    answer = httpx.post(f"{payment['next_action']['url']}/approve")
    assert answer.status_code < 400, answer.text
    wait_for(lambda: not sql(engine, UNDELIVERED), "the delivery", 30)


def test_what_somebody_does_in_the_dashboard_of_the_sandbox_wakes_the_delivery(
    alice: httpx.Client, engine: sa.Engine, app: FastAPI
) -> None:
    dashboard = app.state.gateways.get("sandbox").dashboard
    save_card(alice)
    payment = pay(alice, place_order(alice)["id"])
    wait_until_asleep(engine)
    dashboard.refund(payment["gateway_reference"], 100)
    wait_for(lambda: not sql(engine, UNDELIVERED), "the delivery", 30)
    dashboard.hold_webhooks()
    dashboard.refund(payment["gateway_reference"], 100)
    wait_until_asleep(engine)
    assert sql(engine, UNDELIVERED)
    dashboard.hold_webhooks(False)
    wait_for(lambda: not sql(engine, UNDELIVERED), "what was held back", 30)


@contextlib.contextmanager
def looked_up_now(engine: sa.Engine, payment: dict[str, Any]) -> Iterator[None]:
    """A transaction that schedules a look-up for now."""
    by = ChangedBy.service("test")
    with database.new_session(engine) as session:
        row = crud.require_payment(session, payment["id"], payment["user_id"])
        with locked_payment(session, by, row) as locked:
            leases.schedule_lookup(session, locked.payment, locked.now, "now")
            yield


def test_what_is_to_be_asked_now_wakes_the_look_ups(alice: httpx.Client, engine: sa.Engine) -> None:
    save_card(alice)
    payment = pay(alice, place_order(alice)["id"])
    wait_until_asleep(engine)
    with looked_up_now(engine, payment):
        pass
    waiting = "SELECT FROM payments WHERE id = :id AND check_at IS NOT NULL"
    wait_for(lambda: not sql(engine, waiting, id=payment["id"]), "the look-up", 30)


def test_what_is_to_be_read_again_wakes_the_look_ups(
    alice: httpx.Client, engine: sa.Engine, woken: threading.Event
) -> None:
    save_card(alice)
    pay(alice, place_order(alice)["id"])
    wait_until_asleep(engine)
    now, day = datetime.now(timezone.utc), timedelta(days=1)
    for gateway, found in (("paypal", False), ("sandbox", True)):
        woken.clear()
        with database.new_session(engine) as session:
            list(reconciliation.schedule_rereads(session, gateway, now - day, now + day))
        assert woken.is_set() is found


def test_nobody_is_woken_before_the_commit(
    alice: httpx.Client, engine: sa.Engine, woken: threading.Event, delivers: threading.Event
) -> None:
    save_card(alice)
    payment = pay(alice, place_order(alice)["id"])
    wait_until_asleep(engine)
    woken.clear()
    with looked_up_now(engine, payment):
        assert not woken.is_set()
    assert woken.is_set()
    woken.clear()
    with database.new_session(engine) as session, database.phase(session):  # that makes no work
        locks.lock_order(session, payment["user_id"], payment["order_id"])
    assert not woken.is_set()
    delivers.clear()
    with announcing(engine):
        assert not delivers.is_set()
    assert delivers.is_set()


def test_nobody_is_woken_for_what_is_rolled_back(
    alice: httpx.Client, engine: sa.Engine, woken: threading.Event, delivers: threading.Event
) -> None:
    save_card(alice)
    payment = pay(alice, place_order(alice)["id"])
    wait_until_asleep(engine)
    woken.clear()
    delivers.clear()
    with contextlib.suppress(ZeroDivisionError), looked_up_now(engine, payment):
        raise ZeroDivisionError
    with contextlib.suppress(ZeroDivisionError), announcing(engine):
        raise ZeroDivisionError
    assert not woken.is_set()
    assert not delivers.is_set()


# The statement of the poll ---------------------------------------------------------------------


def test_a_connection_that_the_poll_used_has_transactions_again(
    make_database: Callable[[], str],
) -> None:
    engine = database.create_engine(make_database(), pool_size=1)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE kept (id integer)"))
    for fails in (False, True):
        try:
            with database.autocommit(engine) as session:
                session.execute(sa.text("SELECT 1 / :divisor"), {"divisor": 0 if fails else 1})
        except sa.exc.DataError:
            assert fails
        with engine.connect() as connection:
            connection.execute(sa.text("INSERT INTO kept VALUES (1)"))
            connection.rollback()
        assert sql(engine, "SELECT * FROM kept") == []
    engine.dispose()
