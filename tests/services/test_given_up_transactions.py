"""Transactions that PostgreSQL gives up, or that end before they are committed."""

from __future__ import annotations

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from gateways import base
from gateways.sandbox import SandboxGateway
from services import webhooks
from sessions import Session
from settlement.transitions import LockedPayment
from tests.support.database import sql
from tests.support.shop import Shop, problem, unreachable, until, webhook

pytestmark = pytest.mark.usefixtures("invariants_hold")

WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted"


def captured_event(shop: Shop, payment: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    charge = {
        "reference": payment["gateway_reference"],
        "status": "captured",
        "amount": payment["amount"],
        "currency": payment["currency"],
        "amount_captured": payment["amount"],
        "capture_before": None,
        "redirect_url": None,
        "decline": None,
    }
    return webhook(
        shop.engine,
        {
            "id": f"evt_{secrets.token_hex(8)}",
            "type": "charge.captured",
            "payment_id": payment["id"],
            "reference": payment["gateway_reference"],
            "charge": charge,
        },
    )


def test_one_event_twice_at_once_is_taken_although_the_two_wait_for_each_other(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has locked the payment, and goes on to store the event. The second finds the
    payment settled, has stored the event, and waits for the payment: its foreign key."""
    payment = shop.paid()
    told = "SELECT count(*) FROM sandbox.webhooks WHERE delivered_at IS NULL"
    until(lambda: sql(shop.engine, told)[0][0] == 0, "the gateway has told all it knew")
    body, headers = captured_event(shop, payment)
    has_locked = threading.Event()
    is_old_news, apply_event = webhooks._is_old_news, webhooks._apply

    def first_reads_before_it_is_settled(*arguments: Any) -> bool:
        return has_locked.is_set() and is_old_news(*arguments)

    def wait_for_the_second(locked: LockedPayment, event: base.GatewayEvent) -> None:
        has_locked.set()
        until(lambda: sql(shop.engine, WAITING)[0][0] > 0, "the second waits")
        apply_event(locked, event)

    monkeypatch.setattr(webhooks, "_is_old_news", first_reads_before_it_is_settled)
    monkeypatch.setattr(webhooks, "_apply", wait_for_the_second)

    def send() -> httpx.Response:
        return shop.manager.post("/webhooks/sandbox", content=body, headers=headers)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(send)
        assert has_locked.wait(20)
        monkeypatch.setattr(webhooks, "_apply", apply_event)
        answers = [pool.submit(send).result(), first.result()]
    assert [answer.status_code for answer in answers] == [200, 200], [a.text for a in answers]
    assert shop.status(payment) == ("captured", "paid")


def test_a_repeat_of_a_request_whose_last_commit_failed_is_told_how_it_stands(
    shop: Shop, sandbox: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer was not stored, so its key is free for repeats at once, not after its lease."""
    order_id, key = shop.place(), {"Idempotency-Key": secrets.token_hex(8)}
    charge, commit = sandbox.charge, Session.commit
    charged: set[int] = set()

    def charge_and_tell(request: base.ChargeRequest) -> base.Charge:
        made = charge(request)
        charged.add(request.order_id)
        return made

    def lose(session: Session) -> None:
        if order_id in charged and session.in_transaction():
            charged.clear()
            raise OperationalError("COMMIT", None, Exception("lost"))
        commit(session)

    with unreachable(sandbox):
        monkeypatch.setattr(sandbox, "charge", charge_and_tell)
        monkeypatch.setattr(Session, "commit", lose)
        first = shop.try_pay(order_id, headers=key)
        assert first.status_code == 202, first.text
        repeat = shop.try_pay(order_id, headers=key)
        assert repeat.status_code == 202, problem(repeat)
        assert repeat.headers["Idempotent-Replayed"] == "true"
    until(lambda: shop.try_pay(order_id, headers=key).status_code == 201, "a look-up settles it")
    assert len(shop.books(order_id)) == 1
