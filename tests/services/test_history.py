"""What the history of an order tells of its money, and what goes to a person."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

import crud
import database
from domain.states import ChargeStatus
from gateways import base
from gateways.sandbox import SandboxGateway
from settlement import apply
from settlement.transitions import ChangedBy, lock_refund, locked_payment
from tests.support.database import sql
from tests.support.shop import (
    DECLINED,
    DISPUTED,
    REFUND_FAILS,
    Shop,
    seen,
    tell,
    unreachable,
    until,
    webhook,
)

pytestmark = pytest.mark.usefixtures("invariants_hold")


# History ----------------------------------------------------------------------------------------


def test_the_history_tells_who_did_what_under_which_request(shop: Shop, user: str) -> None:
    order_id = shop.place(1000)
    payment = shop.pay(order_id, headers={"X-Request-Id": "the-payment"}, capture_method="manual")
    shop.do(payment, "capture", {"X-Request-Id": "the-capture"}, amount=800)
    shop.do(payment, "refunds", {"X-Request-Id": "the-refund"})
    clerk = {"type": "user", "id": f"clerk-{user}"}
    gateway = {"type": "gateway", "id": "sandbox"}
    events = shop.events(order_id)
    assert events[0]["actor"] == {"type": "user", "id": user}
    assert [
        (event["type"], event["actor"], event["request_id"], event["data"]["status"])
        for event in events[1:]
    ] == [
        ("payment.authorized", gateway, "the-payment", "authorized"),
        ("order.status_changed", gateway, "the-payment", "authorized"),
        ("payment.captured", clerk, "the-capture", "captured"),
        ("order.status_changed", clerk, "the-capture", "paid"),
        ("refund.created", clerk, "the-refund", "pending"),
        ("refund.succeeded", clerk, "the-refund", "succeeded"),
        ("order.status_changed", clerk, "the-refund", "refunded"),
    ]
    assert events[1]["data"] == payment | {"updated_at": events[1]["data"]["updated_at"]}
    assert set(events[0]) == {
        "id",
        "type",
        "created_at",
        "user_id",
        "order_id",
        "actor",
        "request_id",
        "sequence",
        "data",
    }


def test_what_the_reconciler_settles_is_told_in_its_name(
    shop: Shop, sandbox: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = shop.try_pay(shop.place(), headers={"Sandbox-Fault": "timeout_before_charge"})
    assert answer.status_code == 202
    payment = answer.json()
    until(lambda: shop.status(payment) == ("failed", "pending"), "it is settled")
    event = shop.events(payment["order_id"])[-1]
    assert event["type"] == "payment.failed"
    assert event["actor"] == {"type": "service", "id": "reconciler"}
    assert event["request_id"] is None


def test_a_dispute_is_told_when_it_opens_and_when_it_closes(shop: Shop, engine: sa.Engine) -> None:
    payment = shop.paid(number=DISPUTED)
    order_id = payment["order_id"]
    until(lambda: "dispute.opened" in shop.told(order_id), "the dispute opens")
    sql(
        engine,
        "UPDATE sandbox.disputes SET closes_at = '2020-01-01' WHERE charge = :charge",
        charge=payment["gateway_reference"],
    )
    until(lambda: "dispute.closed" in shop.told(order_id), "the dispute closes")
    assert shop.told(order_id)[2:] == ["dispute.opened", "dispute.closed"]
    opened, closed = shop.events(order_id)[-2:]
    assert set(opened["data"]) == {"id", "payment_id", "amount", "currency", "status", "reason"}
    assert (opened["data"]["payment_id"], opened["data"]["amount"]) == (payment["id"], 1099)
    assert (opened["data"]["status"], closed["data"]["status"]) == ("open", "won")
    assert opened["data"]["id"] == closed["data"]["id"]
    assert opened["actor"] == {"type": "gateway", "id": "sandbox"}
    assert shop.status(payment) == ("captured", "paid")


# What a machine cannot settle -------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [{"amount": 1100}, {"amount_captured": 1}, {"currency": "EUR"}], ids=str
)
def test_an_amount_that_is_not_ours_goes_to_a_person_and_moves_nothing(
    shop: Shop, sandbox: SandboxGateway, change: dict[str, Any]
) -> None:
    with unreachable(sandbox):
        answer = shop.try_pay(shop.place(), headers={"Sandbox-Fault": "timeout_after_charge"})
        assert answer.status_code == 202
        payment = answer.json()
        (entry,) = shop.books(payment["order_id"])
        known = payment | {"gateway_reference": entry["reference"]}
        tell(shop.engine, payment, replace(seen(known, "captured", 1099), **change))
        after = shop.payment(payment)
        assert (after["status"], after["needs_review"]) == ("pending", True)
        assert shop.order(payment["order_id"])["status"] == "pending"
        assert shop.told(payment["order_id"]) == ["payment.needs_review"]
    until(lambda: shop.status(payment) == ("captured", "paid"), "the true amount is found")
    assert shop.payment(payment)["needs_review"] is True  # until a person has looked


def test_a_captured_amount_that_is_not_what_we_captured_goes_to_a_person(shop: Shop) -> None:
    payment = shop.authorized()
    assert shop.do(payment, "capture", amount=500).status_code == 200
    tell(shop.engine, payment, seen(payment, "captured", 700))
    after = shop.payment(payment)
    assert (after["status"], after["amount_captured"]) == ("captured", 500)
    assert after["needs_review"] is True


def test_money_that_is_held_for_a_payment_we_gave_up_goes_to_a_person(
    shop: Shop, engine: sa.Engine
) -> None:
    payment = shop.authorized()
    assert shop.do(payment, "void").status_code == 200
    reference = payment["gateway_reference"]
    books = (
        "UPDATE sandbox.charges SET status = :status, amount_captured = :amount "
        "WHERE reference = :r"
    )
    told = "SELECT count(*) FROM sandbox.webhooks WHERE delivered_at IS NULL"
    until(lambda: sql(engine, told)[0][0] == 0, "the gateway has told all it knew")
    sql(engine, books, status="captured", amount=1099, r=reference)
    charge = {"reference": reference, "status": "captured", "amount": 1099, "currency": "USD"}
    charge |= {"amount_captured": 1099, "capture_before": None, "redirect_url": None}
    body, headers = webhook(
        engine,
        {
            "id": f"evt_{secrets.token_hex(8)}",
            "type": "charge.captured",
            "payment_id": payment["id"],
            "reference": reference,
            "charge": charge | {"decline": None},
        },
    )
    try:
        answer = shop.manager.post("/webhooks/sandbox", content=body, headers=headers)
        assert answer.status_code == 200, answer.text
        until(lambda: shop.payment(payment)["needs_review"], "a person is asked")
        assert shop.status(payment) == ("voided", "canceled")
        assert shop.told(payment["order_id"])[-1] == "payment.needs_review"
    finally:
        sql(engine, books, status="voided", amount=0, r=reference)


@pytest.mark.parametrize("status", ["processing", "requires_action", "authorized"])
def test_older_news_of_a_captured_payment_moves_nothing_back(
    shop: Shop, status: ChargeStatus
) -> None:
    payment = shop.paid()
    before, history = shop.payment(payment), shop.told(payment["order_id"])
    for hint in (True, False):
        tell(shop.engine, payment, seen(payment, status), hint=hint)
        assert shop.payment(payment) == before
        assert shop.told(payment["order_id"]) == history


def test_a_webhook_that_contradicts_a_decline_makes_us_ask_and_changes_nothing(
    shop: Shop,
) -> None:
    declined = shop.try_pay(shop.place(), DECLINED)
    payment = shop.payment({"id": declined.json()["payment_id"]})
    tell(shop.engine, payment, seen(payment, "captured", 1099), hint=True)
    until(
        lambda: sql(
            shop.engine,
            "SELECT 1 FROM payments WHERE id = :id AND check_at IS NULL",
            id=payment["id"],
        ),
        "the gateway is asked",
    )
    after = shop.payment(payment)
    assert (after["status"], after["needs_review"]) == ("failed", False)
    assert shop.order(payment["order_id"])["status"] == "pending"


def test_a_void_or_a_decline_of_captured_money_goes_to_a_person(shop: Shop) -> None:
    """The gateway's books say that the money we count as taken is not there."""
    for status in ("voided", "declined"):
        payment = shop.paid()
        tell(shop.engine, payment, seen(payment, status))
        after = shop.payment(payment)
        assert after["status"] == "captured", status
        assert after["needs_review"] is True, status


def test_a_refund_that_failed_here_and_succeeded_there_goes_to_a_person(
    shop: Shop, engine: sa.Engine
) -> None:
    payment = shop.paid(1000, number=REFUND_FAILS)
    refund = shop.do(payment, "refunds", amount=400).json()
    until(lambda: shop.refunds(payment)[0]["status"] == "failed", "the refund fails")
    state = base.Refund(refund["gateway_reference"], "succeeded", 400, "USD")
    with database.new_session(engine) as session:
        row = crud.require_payment(session, payment["id"], payment["user_id"])
        with locked_payment(session, ChangedBy.service("test"), row) as locked:
            refund_row = lock_refund(locked, refund["id"])
            assert refund_row is not None
            apply.settle_refund(locked, refund_row, state, "answer")
    assert shop.payment(payment)["needs_review"] is True
