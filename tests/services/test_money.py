"""The whole life of a payment over HTTP, and both sets of books after every scenario."""

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

import crud
import database
from domain.states import ChargeStatus
from gateways import base
from gateways.sandbox import SandboxGateway
from services import payments
from settlement import apply
from settlement.transitions import ChangedBy
from tests.support.clients import Api
from tests.support.database import sql
from tests.support.shop import (
    ACTION,
    CURRENCIES,
    DECLINED,
    DISPUTED,
    INSUFFICIENT,
    MANAGES,
    REFUND_FAILS,
    Bearer,
    Shop,
    problem,
    seen,
    settle,
    tell,
    together,
    unreachable,
    until,
    webhook,
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


# Refunds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("currency", "amount"), CURRENCIES)
def test_several_partial_refunds_add_up_to_what_was_captured(
    shop: Shop, currency: str, amount: int
) -> None:
    payment = shop.paid(amount, currency)
    first = shop.do(payment, "refunds", amount=amount // 4, reason="one came back broken")
    assert first.status_code == 201, first.text
    refund = first.json()
    assert set(refund) == {
        "id",
        "payment_id",
        "amount",
        "currency",
        "status",
        "reason",
        "origin",
        "gateway_reference",
        "created_at",
        "updated_at",
    }
    assert (refund["payment_id"], refund["amount"], refund["currency"]) == (
        payment["id"],
        amount // 4,
        currency,
    )
    assert (refund["status"], refund["reason"]) == ("succeeded", "one came back broken")
    location = first.headers["Location"]
    assert shop.shopper.get(location).json() == refund
    assert shop.status(payment) == ("partially_refunded", "paid")
    second = shop.do(payment, "refunds", amount=1).json()
    assert second["reason"] is None
    left = amount - amount // 4 - 1
    over = shop.do(payment, "refunds", amount=left + 1)
    assert problem(over) == (409, "amount_exceeds_remaining")
    assert over.json()["remaining"] == left
    assert shop.payment(payment)["amount_refunded"] == amount // 4 + 1
    last = shop.do(payment, "refunds").json()
    assert last["amount"] == left
    assert shop.payment(payment)["amount_refunded"] == amount
    assert shop.status(payment) == ("refunded", "refunded")
    assert [row["id"] for row in shop.refunds(payment)] == [last["id"], second["id"], refund["id"]]
    nothing = shop.do(payment, "refunds")
    assert problem(nothing) == (409, "amount_exceeds_remaining")
    assert nothing.json()["remaining"] == 0
    (entry,) = shop.books(payment["order_id"])
    assert entry["amount_refunded"] == amount
    assert [row["amount"] for row in entry["refunds"]] == [amount // 4, 1, left]
    refunded = ["refund.created", "refund.succeeded"]
    assert shop.told(payment["order_id"]) == [
        "payment.captured",
        "order.status_changed",
        *refunded,
        *refunded,
        *refunded,
        "order.status_changed",
    ]


def test_the_list_of_refunds_is_paged_newest_first(shop: Shop) -> None:
    payment = shop.paid()
    ids = [shop.do(payment, "refunds", amount=10).json()["id"] for _ in range(5)]
    seen: list[int] = []
    url: str | None = f"/payments/{payment['id']}/refunds?limit=2"
    while url:
        page = shop.shopper.get(url)
        seen += [row["id"] for row in page.json()]
        url = page.links.get("next", {}).get("url")
    assert seen == ids[::-1]


@pytest.mark.parametrize("until_status", ["shipped", "delivered"])
def test_an_order_that_went_out_is_refunded_all_the_same(shop: Shop, until_status: str) -> None:
    payment = shop.paid()
    assert shop.move(shop.manager, payment["order_id"], "shipped").status_code == 200
    if until_status == "delivered":
        assert shop.move(shop.manager, payment["order_id"], "delivered").status_code == 200
    assert shop.do(payment, "refunds", amount=99).status_code == 201
    assert shop.status(payment) == ("partially_refunded", until_status)
    assert shop.do(payment, "refunds").status_code == 201
    assert shop.status(payment) == ("refunded", "refunded")


def test_a_refund_that_stays_pending_holds_its_amount_until_it_fails(
    shop: Shop, engine: sa.Engine
) -> None:
    payment = shop.paid(1000, number=REFUND_FAILS)
    pending = shop.do(payment, "refunds", amount=400)
    assert (pending.status_code, pending.json()["status"]) == (201, "pending")
    assert shop.status(payment) == ("captured", "paid")
    over = shop.do(payment, "refunds", amount=601)
    assert problem(over) == (409, "amount_exceeds_remaining")
    assert over.json()["remaining"] == 600
    until(lambda: shop.refunds(payment)[0]["status"] == "failed", "the refund fails")
    assert shop.payment(payment)["amount_refunded"] == 0
    assert shop.status(payment) == ("captured", "paid")
    again = shop.do(payment, "refunds", amount=1000)  # all of it is free again
    assert (again.status_code, again.json()["status"]) == (201, "pending")
    until(lambda: shop.refunds(payment)[0]["status"] == "failed", "the second refund fails")
    assert shop.told(payment["order_id"])[2:] == ["refund.created", "refund.failed"] * 2
    (entry,) = shop.books(payment["order_id"])
    assert [row["status"] for row in entry["refunds"]] == ["failed", "failed"]
    assert entry["amount_refunded"] == 0


def fail_refund_later(shop: Shop, payment: dict[str, Any], refund: dict[str, Any]) -> None:
    """The gateway takes a refund back that it had made, and tells us."""
    reference = refund["gateway_reference"]
    sql(
        shop.engine,
        "UPDATE sandbox.refunds SET status = 'failed' WHERE reference = :reference",
        reference=reference,
    )
    state = {"reference": reference, "status": "failed"}
    state |= {"amount": refund["amount"], "currency": refund["currency"]}
    body, headers = webhook(
        shop.engine,
        {
            "id": f"evt_{secrets.token_hex(8)}",
            "type": "refund.failed",
            "payment_id": payment["id"],
            "reference": payment["gateway_reference"],
            "refund": state,
            "refund_id": refund["id"],
        },
    )
    answer = shop.manager.post("/webhooks/sandbox", content=body, headers=headers)
    assert answer.status_code == 200, answer.text


def test_a_full_refund_that_fails_after_it_succeeded_goes_to_a_person(shop: Shop) -> None:
    payment = shop.paid(1000)
    refund = shop.do(payment, "refunds").json()
    assert shop.status(payment) == ("refunded", "refunded")
    fail_refund_later(shop, payment, refund)
    after = shop.payment(payment)
    assert (after["status"], after["amount_refunded"]) == ("captured", 0)
    assert after["needs_review"] is True
    assert shop.refunds(payment)[0]["status"] == "failed"
    assert shop.told(payment["order_id"])[-2:] == ["refund.failed", "payment.needs_review"]
    listed = shop.shopper.get("/payments?needs_review=true").json()
    assert [row["id"] for row in listed] == [payment["id"]]
    assert shop.shopper.get("/payments?needs_review=false").json() == []


def test_a_partial_refund_that_fails_after_it_succeeded_frees_its_amount(shop: Shop) -> None:
    payment = shop.paid(1000)
    lost = shop.do(payment, "refunds", amount=300).json()
    assert shop.do(payment, "refunds", amount=200).status_code == 201
    fail_refund_later(shop, payment, lost)
    after = shop.payment(payment)
    assert (after["status"], after["amount_refunded"]) == ("partially_refunded", 200)
    assert shop.do(payment, "refunds", amount=801).json()["remaining"] == 800
    assert shop.do(payment, "refunds", amount=800).status_code == 201
    assert shop.status(payment) == ("refunded", "refunded")


def test_fifty_parallel_refunds_of_30_on_100_are_exactly_three(
    shop: Shop, crowd: list[httpx.Client], bearer: Bearer
) -> None:
    payment = shop.paid(100_00)
    path = f"/payments/{payment['id']}/refunds"
    headers = bearer("clerk", MANAGES)
    answers = together(
        50, lambda number: crowd[number].post(path, json={"amount": 30_00}, headers=headers)
    )
    made = [answer for answer in answers if answer.status_code == 201]
    assert len(made) == 3, [answer.text for answer in answers if answer.status_code != 409]
    refused = [answer for answer in answers if answer.status_code != 201]
    assert {problem(answer) for answer in refused} == {(409, "amount_exceeds_remaining")}
    assert {answer.json()["remaining"] for answer in refused} == {10_00}
    assert shop.payment(payment)["amount_refunded"] == 90_00
    assert [row["status"] for row in shop.refunds(payment)] == ["succeeded"] * 3
    (entry,) = shop.books(payment["order_id"])
    assert [row["amount"] for row in entry["refunds"]] == [30_00] * 3


# Who may, and what may not ----------------------------------------------------------------------


OPERATIONS = ["capture", "void", "refunds"]


@pytest.mark.parametrize("what", OPERATIONS)
def test_money_is_moved_by_those_who_manage_payments_only(shop: Shop, api: Api, what: str) -> None:
    payment = shop.authorized() if what != "refunds" else shop.paid()
    before = shop.payment(payment)
    path = f"/payments/{payment['id']}/{what}"
    stranger = f"stranger-{secrets.token_hex(4)}"
    assert problem(shop.shopper.post(path, json={})) == (403, "forbidden")
    assert problem(api(stranger).post(path, json={})) == (404, "not_found")
    assert problem(api(stranger, "orders:manage").post(path, json={})) == (403, "forbidden")
    assert problem(api(stranger, "webhooks:manage").post(path, json={})) == (404, "not_found")
    assert problem(api().post(path, json={})) == (401, "unauthenticated")
    assert shop.payment(payment) == before
    allowed = api(stranger, "payments:manage").post(path, json={})
    assert allowed.status_code in (200, 201), allowed.text


def test_an_id_that_no_payment_has_is_not_found(shop: Shop) -> None:
    for unknown in ("0", "-1", str(2**63 - 1), str(2**63), str(10**30), "abc"):
        for what in OPERATIONS:
            answer = shop.manager.post(f"/payments/{unknown}/{what}", json={})
            assert problem(answer) == (404, "not_found"), (unknown, what)


@pytest.mark.parametrize("what", ["capture", "refunds"])
def test_an_amount_that_is_none_is_refused(shop: Shop, what: str) -> None:
    payment = shop.authorized() if what == "capture" else shop.paid()
    amounts: list[Any] = [0, -1, 10**12, 1.0, "5", True, 2**63, [1]]
    for amount in amounts:
        answer = shop.do(payment, what, amount=amount)
        assert problem(answer) == (400, "invalid_request"), amount


def test_moves_that_a_payment_cannot_make_are_409(shop: Shop) -> None:
    captured, authorized, voided = shop.paid(), shop.authorized(), shop.authorized()
    waiting = shop.pay(shop.place(), ACTION)
    shop.do(voided, "void")
    illegal = (409, "invalid_status_transition")
    for payment, what in [
        (captured, "capture"),
        (captured, "void"),
        (voided, "capture"),
        (voided, "void"),
        (voided, "refunds"),
        (waiting, "capture"),
        (waiting, "refunds"),
        (authorized, "refunds"),
    ]:
        before = shop.status(payment)
        answer = shop.do(payment, what)
        assert problem(answer) == illegal, (payment["status"], what)
        assert answer.json()["current_status"] == before[0]
        assert shop.status(payment) == before
    over = shop.do(authorized, "capture", amount=1100)
    assert problem(over) == (409, "amount_exceeds_remaining")
    assert over.json()["remaining"] == 1099


def test_an_order_is_charged_once(shop: Shop) -> None:
    captured, authorized = shop.paid(), shop.authorized()
    for payment in (captured, authorized):
        again = shop.try_pay(payment["order_id"])
        assert problem(again) == (409, "order_already_paid")
        assert again.json()["payment_id"] == payment["id"]
        assert len(shop.books(payment["order_id"])) == 1
    shop.do(captured, "refunds")
    assert problem(shop.try_pay(captured["order_id"])) == (409, "order_already_paid")
    outside = shop.place()
    assert shop.move(shop.manager, outside, "paid").status_code == 200
    assert problem(shop.try_pay(outside)) == (409, "order_already_paid")


def test_a_canceled_order_cannot_be_paid(shop: Shop) -> None:
    order_id = shop.place()
    assert shop.move(shop.shopper, order_id, "canceled").status_code == 200
    assert problem(shop.try_pay(order_id)) == (409, "invalid_status_transition")
    assert shop.books(order_id) == []


def test_a_paid_order_cannot_be_canceled(shop: Shop) -> None:
    payment = shop.paid()
    for client in (shop.shopper, shop.manager):
        answer = shop.move(client, payment["order_id"], "canceled")
        assert problem(answer) == (409, "invalid_status_transition")
    assert answer.json()["allowed_statuses"] == ["shipped"]


def test_an_order_whose_payment_is_open_cannot_be_canceled(
    shop: Shop, sandbox: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    with unreachable(sandbox):
        order_id = shop.place()
        answer = shop.try_pay(order_id, headers={"Sandbox-Fault": "timeout_before_charge"})
        assert (answer.status_code, answer.json()["status"]) == (202, "pending")
        for client in (shop.shopper, shop.manager):
            refused = shop.move(client, order_id, "canceled")
            assert problem(refused) == (409, "payment_in_progress")
        assert problem(shop.try_pay(order_id)) == (409, "payment_in_progress")
        for what in ("capture", "void"):
            assert problem(shop.do(answer.json(), what)) == (409, "payment_in_progress")
    until(lambda: shop.status(answer.json()) == ("failed", "pending"), "nothing was charged")
    assert shop.payment(answer.json())["failure"]["code"] == "not_charged"
    assert shop.status(shop.pay(order_id)) == ("captured", "paid")


def test_payments_are_listed_by_order_status_and_user(shop: Shop, api: Api, user: str) -> None:
    captured, authorized = shop.paid(), shop.authorized()
    listed = shop.shopper.get("/payments").json()
    assert [row["id"] for row in listed] == [authorized["id"], captured["id"]]
    by_order = shop.shopper.get("/payments", params={"order_id": captured["order_id"]}).json()
    assert [row["id"] for row in by_order] == [captured["id"]]
    by_status = shop.shopper.get("/payments?status=authorized").json()
    assert [row["id"] for row in by_status] == [authorized["id"]]
    by_user = shop.manager.get("/payments", params={"user_id": user}).json()
    assert [row["id"] for row in by_user] == [authorized["id"], captured["id"]]
    stranger = api(f"stranger-{secrets.token_hex(4)}")
    assert stranger.get("/payments").json() == []
    assert problem(stranger.get("/payments", params={"user_id": user})) == (403, "forbidden")
    assert problem(stranger.get(f"/payments/{captured['id']}")) == (404, "not_found")
    assert problem(stranger.get(f"/payments/{captured['id']}/refunds")) == (404, "not_found")
    of_order = f"/orders/{captured['order_id']}/payments"
    assert problem(stranger.get(of_order)) == (404, "not_found")
    assert problem(shop.shopper.get("/payments?status=nonsense")) == (400, "invalid_request")


# Races ------------------------------------------------------------------------------------------


def test_distinct_keys_on_one_order_make_one_live_payment(
    shop: Shop, crowd: list[httpx.Client], bearer: Bearer, user: str
) -> None:
    order_id, method = shop.place(), shop.method()
    headers = bearer(user)

    def pay(number: int) -> httpx.Response:
        return crowd[number].post(
            f"/orders/{order_id}/payments",
            json={"payment_method_id": method},
            headers=headers | {"Idempotency-Key": f"{order_id}-{number}"},
        )

    answers = together(50, pay)
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 49
    refused = {problem(answer)[1] for answer in answers if answer.status_code == 409}
    assert refused <= {"payment_in_progress", "order_already_paid"}
    assert len(shop.books(order_id)) == 1


def test_capture_against_void_has_one_winner(
    shop: Shop, crowd: list[httpx.Client], bearer: Bearer
) -> None:
    headers = bearer("clerk", MANAGES)
    for _ in range(20):
        payment = shop.authorized()
        paths = [f"/payments/{payment['id']}/{what}" for what in ("capture", "void")]

        def act(number: int, paths: list[str] = paths) -> httpx.Response:
            return crowd[number].post(paths[number], json={}, headers=headers)

        answers = together(2, act)
        codes = [answer.status_code for answer in answers]
        assert sorted(codes) == [200, 409], [answer.text for answer in answers]
        loser = answers[codes.index(409)]
        assert problem(loser)[1] in ("payment_in_progress", "invalid_status_transition")
        won = ("captured", "paid") if codes[0] == 200 else ("voided", "canceled")
        assert shop.status(payment) == won
        assert [entry["status"] for entry in shop.books(payment["order_id"])] == [won[0]]


def test_approval_against_cancellation_has_one_winner(
    shop: Shop, crowd: list[httpx.Client], bearer: Bearer, user: str
) -> None:
    headers = bearer(user)
    shop.method(ACTION)
    for _ in range(20):
        payment = shop.pay(shop.place(), ACTION)
        page = httpx.URL(payment["next_action"]["url"]).path

        def act(number: int, page: str = page, payment: dict[str, Any] = payment) -> httpx.Response:
            if number == 0:
                return crowd[0].post(f"{page}/approve")
            return crowd[1].put(
                f"/orders/{payment['order_id']}/status",
                json={"status": "canceled"},
                headers=headers,
            )

        approved, canceled = together(2, act)
        assert approved.status_code == 200, approved.text
        assert canceled.status_code in (200, 409), canceled.text
        # Both books say the same, and what each was told is what happened.
        settle(shop.engine)
        won = ("canceled",) * 2 if canceled.status_code == 200 else ("captured", "paid")
        assert shop.status(payment) == won
        (entry,) = shop.books(payment["order_id"])
        assert entry["status"] == ("voided" if canceled.status_code == 200 else "captured")
        assert ("approved" in approved.text) == (canceled.status_code == 409)


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
    with database.new_session(engine) as session, database.phase(session):
        order_row, row = payments.lock(
            session, payment["user_id"], payment["order_id"], payment["id"]
        )
        refund_row = crud.lock_refund(session, payment["user_id"], payment["id"], refund["id"])
        assert refund_row is not None
        apply.settle_refund(
            session, ChangedBy.service("test"), order_row, row, refund_row, state, "answer"
        )
    assert shop.payment(payment)["needs_review"] is True
