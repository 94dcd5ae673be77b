"""What time does at the sandbox, at what cost, and which webhooks are delivered when."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from gateways import base
from gateways.base import Charge
from gateways.sandbox import SandboxGateway
from tests.support.database import sql
from tests.support.sandbox import give_back, has_due_work, make, statements, told


def expiring(sandbox: SandboxGateway, engine: sa.Engine) -> Charge:
    charge = make(sandbox, capture=False)
    sql(engine, "UPDATE sandbox.charges SET capture_before = now()")
    return charge


def failing(sandbox: SandboxGateway, engine: sa.Engine) -> Charge:
    charge = make(sandbox, "tok_refund_fails")
    give_back(sandbox, charge, 400)
    sql(engine, "UPDATE sandbox.refunds SET fails_at = now()")
    return charge


def closing(sandbox: SandboxGateway, engine: sa.Engine) -> Charge:
    charge = make(sandbox, "tok_dispute")
    sql(engine, "UPDATE sandbox.disputes SET closes_at = now()")
    return charge


Due = Callable[[SandboxGateway, sa.Engine], Charge]
DUE: dict[str, tuple[Due, str, str]] = {
    "an authorization": (expiring, "charge.voided", "SELECT status FROM sandbox.charges"),
    "a refund": (failing, "refund.failed", "SELECT status FROM sandbox.refunds"),
    "a dispute": (closing, "dispute.closed", "SELECT status FROM sandbox.disputes"),
}


@pytest.mark.parametrize("what", DUE)
def test_what_is_due_is_done_once_and_told(
    lone: SandboxGateway, lone_engine: sa.Engine, what: str
) -> None:
    make_due, event, query = DUE[what]
    make_due(lone, lone_engine)
    before = len(told(lone_engine))
    assert [lone.tick(), lone.tick()] == [1, 0]
    assert [webhook["type"] for webhook in told(lone_engine)[before:]] == [event]
    assert sql(lone_engine, query)[0][0] in ("voided", "failed", "won")


def test_what_is_not_due_yet_stays(lone: SandboxGateway, lone_engine: sa.Engine) -> None:
    make(lone, capture=False)
    give_back(lone, make(lone, "tok_refund_fails"), 400)
    make(lone, "tok_dispute")
    assert lone.tick() == 0


def test_a_tick_with_nothing_due_is_one_statement(
    lone: SandboxGateway, lone_engine: sa.Engine
) -> None:
    make(lone, capture=False)
    with statements(lone_engine) as sent:
        assert lone.tick() == 0
    assert len(sent) == 1


def test_a_tick_takes_a_batch(lone: SandboxGateway, lone_engine: sa.Engine) -> None:
    for _ in range(120):
        make(lone, capture=False)
    sql(lone_engine, "UPDATE sandbox.charges SET capture_before = now()")
    assert [lone.tick() for _ in range(4)] == [50, 50, 20, 0]


@pytest.mark.parametrize("what", DUE)
def test_a_charge_that_somebody_changes_is_left_for_the_next_tick(
    lone: SandboxGateway, lone_engine: sa.Engine, what: str
) -> None:
    charge = DUE[what][0](lone, lone_engine)
    with lone_engine.begin() as other:
        other.execute(
            sa.text("SELECT FROM sandbox.charges WHERE reference = :reference FOR UPDATE"),
            {"reference": charge.reference},
        )
        assert lone.tick() == 0
    assert lone.tick() == 1


def test_time_and_a_person_who_close_a_dispute_at_once_close_it_once(
    lone: SandboxGateway, lone_engine: sa.Engine
) -> None:
    for _ in range(20):
        charge = closing(lone, lone_engine)
        start = threading.Barrier(2)

        def person(charge: Charge = charge, start: threading.Barrier = start) -> int:
            start.wait(30)
            try:
                lone.dashboard.close_dispute(charge.reference, won=False)
            except base.NotExecuted:
                return 0
            return 1

        def time(start: threading.Barrier = start) -> int:
            start.wait(30)
            return lone.tick()

        with ThreadPoolExecutor(2) as pool:
            closed = [future.result() for future in (pool.submit(person), pool.submit(time))]
        assert sum(closed) == 1
    types = [webhook["type"] for webhook in told(lone_engine)]
    assert types.count("dispute.closed") == 20


# Whether there is work --------------------------------------------------------------------------


def deliver_all(sandbox: SandboxGateway, engine: sa.Engine) -> None:
    sql(engine, "UPDATE sandbox.webhooks SET due_at = now() WHERE delivered_at IS NULL")
    while due := sandbox.due_webhooks():
        for webhook_id, _, _ in due:
            sandbox.delivered(webhook_id)


@pytest.mark.parametrize("what", DUE)
def test_there_is_work_when_something_is_due(
    lone: SandboxGateway, lone_engine: sa.Engine, what: str
) -> None:
    assert not has_due_work(lone_engine)
    DUE[what][0](lone, lone_engine)
    deliver_all(lone, lone_engine)
    assert has_due_work(lone_engine)
    lone.tick()
    deliver_all(lone, lone_engine)
    assert not has_due_work(lone_engine)


def test_a_webhook_is_work_once_it_is_due_and_not_while_it_is_held_back(
    lone: SandboxGateway, lone_engine: sa.Engine
) -> None:
    make(lone)
    assert has_due_work(lone_engine)
    sql(lone_engine, "UPDATE sandbox.webhooks SET due_at = now() + interval '1 hour'")
    assert not has_due_work(lone_engine)
    sql(lone_engine, "UPDATE sandbox.webhooks SET due_at = now()")
    lone.dashboard.hold_webhooks()
    assert not has_due_work(lone_engine)
    lone.dashboard.hold_webhooks(False)
    assert has_due_work(lone_engine)
    deliver_all(lone, lone_engine)
    assert not has_due_work(lone_engine)


# Webhooks ---------------------------------------------------------------------------------------


def test_webhooks_that_are_held_back_are_delivered_in_order_when_they_are_released(
    lone: SandboxGateway, lone_engine: sa.Engine
) -> None:
    lone.dashboard.hold_webhooks()
    charge = make(lone)
    lone.dashboard.refund(charge.reference, 400)
    lone.dashboard.open_dispute(charge.reference)
    assert lone.due_webhooks() == []
    other = SandboxGateway(lone_engine, timeout=1)  # another process
    assert other.due_webhooks() == []
    other.dashboard.hold_webhooks(False)
    types = [json.loads(body)["type"] for _, _, body in lone.due_webhooks()]
    assert types == ["charge.created", "charge.captured", "refund.succeeded", "dispute.opened"]


def test_the_secret_is_read_once(lone: SandboxGateway, lone_engine: sa.Engine) -> None:
    make(lone)
    (first, *_) = lone.due_webhooks()
    with statements(lone_engine) as sent:
        lone.due_webhooks()
        assert len(sent) == 1
        lone.parse_webhook(*first[1:])
        assert len(sent) == 1
