"""Placing an order, the method it names, and who sees it."""

from __future__ import annotations

import httpx
import pytest

from tests.support.clients import (
    ABSENT,
    JSON,
    Api,
    but_request_id,
    code,
    fields,
)
from tests.support.factories import order, place_order, save_card
from tests.support.orders import STATUSES, move, read

SHAPE = {
    *("id", "user_id", "product_id", "quantity", "total_amount", "currency", "status"),
    *("payment_method_id", "metadata", "created_at", "updated_at"),
}


# --- Placing ----------------------------------------------------------------------------------


def test_a_placed_order_shows_what_was_sent_and_what_was_added(
    alice: httpx.Client, user: str
) -> None:
    method = save_card(alice)
    sent = {
        "product_id": "sku-42",
        "quantity": 3,
        "total_amount": 1099,
        "currency": "EUR",
        "payment_method_id": method["id"],
        "metadata": {"cart": "c-1", "note": "gift 🎁"},
    }
    placed = place_order(alice, **sent)
    assert placed.keys() == SHAPE
    added = {name: placed[name] for name in ("id", "created_at", "updated_at")}
    assert placed == sent | added | {"user_id": user, "status": "pending"}
    assert read(alice, placed["id"]) == placed
    assert alice.get("/orders").json() == [placed]


def test_what_is_left_out_has_its_default(alice: httpx.Client) -> None:
    body = {"product_id": "a", "quantity": 1, "total_amount": 1}
    placed = alice.post("/orders", json=body).json()
    assert placed["currency"] == "USD"
    assert placed["payment_method_id"] is None
    assert placed["metadata"] == {}
    assert placed["status"] == "pending"


@pytest.mark.parametrize("amount", [1, 2, 99, 100, 2**31 - 1, 2**31, 2**32, 999_999_999_999])
@pytest.mark.parametrize("currency", ["USD", "JPY", "KWD"])
def test_an_amount_is_1_to_999_999_999_999_minor_units(
    alice: httpx.Client, amount: int, currency: str
) -> None:
    placed = place_order(alice, total_amount=amount, currency=currency)
    assert (placed["total_amount"], placed["currency"]) == (amount, currency)


@pytest.mark.parametrize(
    "amount",
    [
        *("0", "-1", "-0", "1000000000000", str(2**63 - 1), str(2**63), "9" * 30, "-" + "9" * 30),
        *("10.99", "1099.0", "1e3", "0.1", '"1099"', '"10.99"', "true", "null", "[1]", "1e-9"),
    ],
)
def test_another_amount_is_refused(alice: httpx.Client, amount: str) -> None:
    body = f'{{"product_id": "a", "quantity": 1, "total_amount": {amount}}}'
    assert fields(alice.post("/orders", content=body, headers=JSON)) == {"total_amount"}
    assert alice.get("/orders").json() == []


@pytest.mark.parametrize("quantity", [1, 2, 1000, 2**31, 2**53 - 1])
def test_a_quantity_is_at_least_1(alice: httpx.Client, quantity: int) -> None:
    assert place_order(alice, quantity=quantity)["quantity"] == quantity


@pytest.mark.parametrize("quantity", [0, -1, -(2**31), -(2**63), -(10**30), 2**63, 10**30])
def test_another_quantity_is_refused(alice: httpx.Client, quantity: int) -> None:
    assert fields(alice.post("/orders", json=order(quantity=quantity))) == {"quantity"}


@pytest.mark.parametrize(
    "currency",
    [
        *("USD", "EUR", "GBP", "JPY", "KRW", "CLP", "ISK", "VND", "XOF", "KWD", "BHD", "JOD"),
        *("OMR", "TND", "IQD", "LYD", "CHF", "SEK", "INR", "BRL", "CNY", "ZAR", "UGX", "MRU"),
    ],
)
def test_a_currency_is_one_of_iso_4217_whatever_its_decimals(
    alice: httpx.Client, currency: str
) -> None:
    assert place_order(alice, currency=currency, total_amount=1)["currency"] == currency


@pytest.mark.parametrize(
    "currency",
    [
        *(
            "usd",
            "Usd",
            "UsD",
            "",
            " ",
            "US",
            "USDD",
            "USD ",
            " USD",
            "U$D",
            "$",
            "€",
            "840",
            "ZZZ",
        ),
        *(
            "XXX",
            "XTS",
            "AAA",
            "BTC",
            "ＵＳＤ",
            "US\u0405",
            "USD\n",
            "dollar",
            "<USD>",
            "😀",
            "ΑUD",
        ),
    ],
    ids=ascii,
)
def test_another_currency_is_refused(alice: httpx.Client, currency: str) -> None:
    assert fields(alice.post("/orders", json=order(currency=currency))) == {"currency"}


@pytest.mark.parametrize(
    "name", ["id", "status", "created_at", "updated_at", "last_sequence", "amount", "total"]
)
def test_what_the_service_decides_cannot_be_sent(alice: httpx.Client, name: str) -> None:
    assert fields(alice.post("/orders", json=order(**{name: "paid"}))) == {name}


# --- The method it names ----------------------------------------------------------------------


def unknown_method(answer: httpx.Response) -> None:
    assert code(answer) == (400, "payment_method_not_found"), answer.text


def test_an_order_names_an_active_method_of_its_user(
    alice: httpx.Client, bob: httpx.Client
) -> None:
    mine, theirs = save_card(alice)["id"], save_card(bob)["id"]
    assert place_order(alice, payment_method_id=mine)["payment_method_id"] == mine
    unknown_method(alice.post("/orders", json=order(payment_method_id=theirs)))
    alice.delete(f"/payment-methods/{mine}")
    unknown_method(alice.post("/orders", json=order(payment_method_id=mine)))
    unknown_method(alice.post("/orders", json=order(payment_method_id=ABSENT)))


def test_a_foreign_method_is_as_unknown_as_one_that_never_was(
    alice: httpx.Client, bob: httpx.Client
) -> None:
    theirs = save_card(bob)["id"]
    answers = []
    for number in (theirs, ABSENT):
        answer = alice.post("/orders", json=order(payment_method_id=number))
        unknown_method(answer)
        problem = answer.json()
        assert problem.pop("request_id") == answer.headers["x-request-id"]
        answers.append(problem)
    assert answers[0] == answers[1]


def test_a_managers_order_for_a_user_names_a_method_of_that_user(
    alice: httpx.Client, manager: httpx.Client, user: str
) -> None:
    theirs = save_card(alice)["id"]
    own = save_card(manager, "378282246310005")["id"]
    placed = place_order(manager, user_id=user, payment_method_id=theirs)
    assert (placed["user_id"], placed["payment_method_id"]) == (user, theirs)
    unknown_method(manager.post("/orders", json=order(user_id=user, payment_method_id=own)))
    unknown_method(manager.post("/orders", json=order(payment_method_id=theirs)))
    manager.delete(f"/payment-methods/{own}")


# --- Whose ------------------------------------------------------------------------------------


def test_ones_own_user_id_is_accepted_and_anothers_is_not(alice: httpx.Client, user: str) -> None:
    assert place_order(alice, user_id=user)["user_id"] == user
    for name in (f"{user}-bob", user.upper(), f" {user}", "manager", "*"):
        assert code(alice.post("/orders", json=order(user_id=name))) == (403, "forbidden")
    assert len(alice.get("/orders").json()) == 1


@pytest.mark.parametrize("scope", ["payments:manage", "webhooks:manage", "Orders:Manage", "orders"])
def test_only_the_right_scope_places_for_a_user(api: Api, user: str, scope: str) -> None:
    answer = api(f"{user}-eve", scope).post("/orders", json=order(user_id=user))
    assert code(answer) == (403, "forbidden")


def test_a_manager_places_for_a_user(alice: httpx.Client, manager: httpx.Client, user: str) -> None:
    placed = place_order(manager, user_id=user)
    assert placed["user_id"] == user
    assert alice.get("/orders").json() == [placed]


READS = ["/orders/{}", "/orders/{}/events", "/orders/{}/payments"]


@pytest.mark.parametrize("scope", ["", "webhooks:manage", "orders:read"])
@pytest.mark.parametrize("path", READS)
def test_a_foreign_order_is_as_absent_as_one_that_never_was(
    api: Api, alice: httpx.Client, user: str, path: str, scope: str
) -> None:
    foreign, stranger = place_order(alice)["id"], api(f"{user}-eve", scope)
    there, nowhere = stranger.get(path.format(foreign)), stranger.get(path.format(ABSENT))
    assert code(there) == (404, "not_found")
    assert but_request_id(there) == but_request_id(nowhere)


@pytest.mark.parametrize("scope", ["", "webhooks:manage", "payments:manage"])
def test_a_foreign_order_is_not_moved(api: Api, alice: httpx.Client, user: str, scope: str) -> None:
    placed, stranger = place_order(alice), api(f"{user}-eve", scope)
    for status in STATUSES:
        there, nowhere = move(stranger, placed["id"], status), move(stranger, ABSENT, status)
        assert code(there) == (404, "not_found")
        assert but_request_id(there) == but_request_id(nowhere)
    assert read(alice, placed["id"]) == placed


def test_a_manager_reads_every_users_orders(
    alice: httpx.Client, manager: httpx.Client, user: str
) -> None:
    placed = place_order(alice)
    assert read(manager, placed["id"]) == placed
    assert manager.get("/orders", params={"user_id": user}).json() == [placed]
    assert manager.get("/orders", params={"limit": 1}).json() == [placed]
    for path in READS:
        there = manager.get(path.format(placed["id"]))
        assert there.json() == alice.get(path.format(placed["id"])).json()


def test_a_shopper_lists_only_their_own(alice: httpx.Client, bob: httpx.Client, user: str) -> None:
    mine = place_order(alice)
    place_order(bob)
    assert alice.get("/orders").json() == [mine]
    assert alice.get("/orders", params={"user_id": user}).json() == [mine]
    assert code(alice.get("/orders", params={"user_id": f"{user}-bob"})) == (403, "forbidden")


def test_the_payments_scope_lists_no_foreign_orders(
    api: Api, alice: httpx.Client, user: str
) -> None:
    place_order(alice)
    cashier = api(f"{user}-cashier", "payments:manage")
    assert cashier.get("/orders").json() == []
    assert code(cashier.get("/orders", params={"user_id": user})) == (403, "forbidden")
