"""Who may move money, what may not be moved, and races for it."""

from __future__ import annotations

import secrets
from typing import Any

import httpx
import pytest

from gateways.sandbox import SandboxGateway
from tests.support.clients import Api
from tests.support.shop import (
    ACTION,
    MANAGES,
    Bearer,
    Shop,
    problem,
    settle,
    together,
    unreachable,
    until,
)

pytestmark = pytest.mark.usefixtures("invariants_hold")


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
