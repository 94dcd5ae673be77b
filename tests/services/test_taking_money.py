"""Taking money over HTTP, declines and actions, and both sets of books after each."""

from __future__ import annotations

import time
from datetime import datetime, timezone

import pytest
import sqlalchemy as sa

from gateways import base
from gateways.sandbox import SandboxGateway
from tests.support.database import sql
from tests.support.shop import (
    ACTION,
    CURRENCIES,
    INSUFFICIENT,
    Shop,
    problem,
    until,
)

pytestmark = pytest.mark.usefixtures("invariants_hold")


# Taking money -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("currency", "amount"), CURRENCIES)
def test_an_automatic_payment_is_captured_at_once_and_the_order_is_paid(
    shop: Shop, currency: str, amount: int
) -> None:
    payment = shop.paid(amount, currency)
    assert payment["status"] == "captured"
    assert (payment["amount"], payment["amount_captured"], payment["amount_refunded"]) == (
        amount,
        amount,
        0,
    )
    assert payment["currency"] == currency
    assert payment["capture_before"] is None
    assert payment["next_action"] is None
    assert payment["failure"] is None
    assert payment["needs_review"] is False
    assert shop.status(payment) == ("captured", "paid")
    (entry,) = shop.books(payment["order_id"])
    assert (entry["status"], entry["amount_captured"], entry["currency"]) == (
        "captured",
        amount,
        currency,
    )
    assert entry["reference"] == payment["gateway_reference"]


def test_the_response_of_a_payment_has_the_fields_of_the_contract(shop: Shop) -> None:
    assert set(shop.paid()) == {
        "id",
        "order_id",
        "user_id",
        "payment_method_id",
        "gateway",
        "gateway_reference",
        "status",
        "amount",
        "amount_captured",
        "amount_refunded",
        "currency",
        "capture_method",
        "capture_before",
        "next_action",
        "failure",
        "needs_review",
        "review_reason",
        "created_at",
        "updated_at",
    }


@pytest.mark.parametrize(("currency", "amount"), CURRENCIES)
def test_a_manual_payment_holds_the_money_until_it_is_captured(
    shop: Shop, currency: str, amount: int
) -> None:
    payment = shop.authorized(amount, currency)
    assert (payment["status"], payment["capture_method"]) == ("authorized", "manual")
    assert payment["amount_captured"] == 0
    assert datetime.fromisoformat(payment["capture_before"].replace("Z", "+00:00")) > datetime.now(
        timezone.utc
    )
    assert shop.status(payment) == ("authorized", "authorized")
    captured = shop.do(payment, "capture")
    assert captured.status_code == 200, captured.text
    assert (captured.json()["status"], captured.json()["amount_captured"]) == ("captured", amount)
    assert shop.status(payment) == ("captured", "paid")
    assert [entry["amount_captured"] for entry in shop.books(payment["order_id"])] == [amount]


@pytest.mark.parametrize(("currency", "amount"), CURRENCIES)
def test_a_partial_capture_releases_the_rest(shop: Shop, currency: str, amount: int) -> None:
    payment = shop.authorized(amount, currency)
    part = amount // 3
    captured = shop.do(payment, "capture", amount=part)
    assert captured.status_code == 200, captured.text
    assert (captured.json()["amount"], captured.json()["amount_captured"]) == (amount, part)
    assert shop.status(payment) == ("captured", "paid")
    # The rest is gone: it can be neither captured nor refunded.
    assert problem(shop.do(payment, "capture", amount=1)) == (409, "invalid_status_transition")
    over = shop.do(payment, "refunds", amount=part + 1)
    assert problem(over) == (409, "amount_exceeds_remaining")
    assert over.json()["remaining"] == part
    assert shop.do(payment, "refunds").json()["amount"] == part
    assert shop.status(payment) == ("refunded", "refunded")


@pytest.mark.parametrize(("currency", "amount"), CURRENCIES)
def test_a_void_releases_all_of_it_and_cancels_the_order(
    shop: Shop, currency: str, amount: int
) -> None:
    payment = shop.authorized(amount, currency)
    voided = shop.do(payment, "void")
    assert (voided.status_code, voided.json()["status"]) == (200, "voided")
    assert shop.status(payment) == ("voided", "canceled")
    assert [entry["status"] for entry in shop.books(payment["order_id"])] == ["voided"]
    assert shop.told(payment["order_id"]) == [
        "payment.authorized",
        "order.status_changed",
        "payment.voided",
        "order.status_changed",
    ]


def test_a_manager_who_cancels_an_authorized_order_voids_its_payment(shop: Shop) -> None:
    payment = shop.authorized()
    assert problem(shop.move(shop.shopper, payment["order_id"], "canceled")) == (403, "forbidden")
    canceled = shop.move(shop.manager, payment["order_id"], "canceled")
    assert (canceled.status_code, canceled.json()["status"]) == (200, "canceled")
    assert shop.status(payment) == ("voided", "canceled")


def test_an_authorization_that_expires_is_voided_and_its_order_canceled(
    shop: Shop, engine: sa.Engine
) -> None:
    payment = shop.authorized()
    past = "now() - interval '1 minute'"
    sql(
        engine,
        f"UPDATE payments SET capture_before = {past}, check_at = {past} WHERE id = :id",
        id=payment["id"],
    )
    sql(
        engine,
        f"UPDATE sandbox.charges SET capture_before = {past} WHERE payment_id = :id",
        id=payment["id"],
    )
    until(lambda: shop.status(payment) == ("voided", "canceled"), "the authorization expires")
    assert shop.told(payment["order_id"])[-2:] == ["payment.voided", "order.status_changed"]
    assert problem(shop.do(payment, "capture")) == (409, "invalid_status_transition")


def test_an_authorization_that_outlives_our_clock_is_not_looked_up_without_a_pause(
    shop: Shop, engine: sa.Engine, sandbox: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway has not expired it yet, by its own clock: it must not be asked in a hot loop."""
    payment = shop.authorized()
    asked: list[float] = []
    look_up = sandbox.look_up

    def counted(query: base.ChargeLookup) -> base.Charge | None:
        if query.request.payment_id == payment["id"]:
            asked.append(time.monotonic())
        return look_up(query)

    monkeypatch.setattr(sandbox, "look_up", counted)
    past = "now() - interval '1 minute'"
    sql(
        engine,
        f"UPDATE payments SET capture_before = {past}, check_at = {past} WHERE id = :id",
        id=payment["id"],
    )
    until(lambda: asked, "the reconciler asks")
    until(lambda: time.monotonic() > asked[0] + 1.5, "a while passes")
    looked_up = len(asked)
    assert shop.do(payment, "void").status_code == 200  # and it ends
    assert looked_up <= 5, f"asked {looked_up} times in 1.5 seconds"


# Declines and actions ---------------------------------------------------------------------------


def test_a_decline_leaves_the_order_pending_and_it_may_be_paid_again(shop: Shop) -> None:
    order_id = shop.place()
    declined = shop.try_pay(order_id, INSUFFICIENT)
    assert problem(declined) == (402, "payment_declined")
    assert declined.json()["decline_code"] == "insufficient_funds"
    failed = shop.payment({"id": declined.json()["payment_id"]})
    assert failed["status"] == "failed"
    assert failed["failure"]["code"] == "payment_declined"
    assert failed["failure"]["decline_code"] == "insufficient_funds"
    assert failed["failure"]["message"]
    assert shop.order(order_id)["status"] == "pending"
    payment = shop.pay(order_id)
    assert shop.status(payment) == ("captured", "paid")
    listed = shop.shopper.get(f"/orders/{order_id}/payments").json()
    assert [row["id"] for row in listed] == [payment["id"], failed["id"]]
    assert [entry["status"] for entry in shop.books(order_id)] == ["declined", "captured"]
    assert shop.told(order_id) == ["payment.failed", "payment.captured", "order.status_changed"]


@pytest.mark.parametrize(("currency", "amount"), CURRENCIES)
@pytest.mark.parametrize("capture_method", ["automatic", "manual"])
def test_an_approved_action_takes_or_holds_the_money(
    shop: Shop, currency: str, amount: int, capture_method: str
) -> None:
    payment = shop.pay(shop.place(amount, currency), ACTION, capture_method=capture_method)
    assert payment["status"] == "requires_action"
    assert payment["next_action"]["type"] == "redirect"
    assert shop.status(payment) == ("requires_action", "pending")
    assert shop.answer_page(payment, "approve").status_code == 200
    expected = ("captured", "paid") if capture_method == "automatic" else ("authorized",) * 2
    assert shop.status(payment) == expected
    approved = shop.payment(payment)
    assert approved["next_action"] is None
    assert (approved["capture_before"] is not None) == (capture_method == "manual")
    assert shop.told(payment["order_id"])[0] == "payment.requires_action"
    if capture_method == "manual":
        assert shop.do(payment, "capture").status_code == 200
    assert shop.do(payment, "refunds").status_code == 201
    assert shop.status(payment) == ("refunded", "refunded")


def test_a_declined_action_fails_the_payment_and_the_order_may_be_paid_again(shop: Shop) -> None:
    payment = shop.pay(shop.place(), ACTION)
    assert shop.answer_page(payment, "decline").status_code == 200
    assert shop.status(payment) == ("failed", "pending")
    failed = shop.payment(payment)
    assert failed["failure"]["code"] == "payment_declined"
    assert failed["failure"]["decline_code"] == "authentication_failed"
    assert failed["next_action"] is None
    assert shop.status(shop.pay(payment["order_id"])) == ("captured", "paid")


def test_a_payment_that_waits_for_the_shopper_is_canceled_with_its_order(shop: Shop) -> None:
    payment = shop.pay(shop.place(), ACTION)
    canceled = shop.move(shop.shopper, payment["order_id"], "canceled")
    assert (canceled.status_code, canceled.json()["status"]) == (200, "canceled")
    assert shop.status(payment) == ("canceled", "canceled")
    assert [entry["status"] for entry in shop.books(payment["order_id"])] == ["voided"]
    assert shop.told(payment["order_id"]) == [
        "payment.requires_action",
        "payment.canceled",
        "order.status_changed",
    ]
    assert shop.answer_page(payment, "approve").status_code == 200  # too late
    assert shop.status(payment) == ("canceled", "canceled")
    assert problem(shop.try_pay(payment["order_id"])) == (409, "invalid_status_transition")


def test_a_void_before_the_shopper_acts_cancels_the_payment_and_not_the_order(shop: Shop) -> None:
    payment = shop.pay(shop.place(), ACTION)
    voided = shop.do(payment, "void")
    assert (voided.status_code, voided.json()["status"]) == (200, "canceled")
    assert shop.status(payment) == ("canceled", "pending")
    assert shop.status(shop.pay(payment["order_id"])) == ("captured", "paid")
