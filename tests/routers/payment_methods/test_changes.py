"""Changing and removing a payment method."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from tests.support.clients import ABSENT, but_request_id, fields, ids
from tests.support.factories import card, pay, place_order
from tests.support.payment_methods import (
    MASTERCARD,
    SHAPE,
    bank,
    by,
    month_from_now,
    paypal,
    save,
    token,
)

# --- Changing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"exp_month": 3},
        {"exp_year": 2050},
        {"exp_month": 1, "exp_year": 2099},
        {"cardholder_name": "Alice Married"},
        {"cardholder_name": None},
        {"exp_month": 2, "exp_year": 2035, "cardholder_name": "名前"},
    ],
)
@pytest.mark.parametrize("make", [card, token])
def test_patch_changes_what_it_names_and_nothing_else(
    alice: httpx.Client, make: Any, changes: dict[str, Any]
) -> None:
    method = save(alice, make())
    path = f"/payment-methods/{method['id']}"
    answer = alice.patch(path, json={"details": changes})
    assert answer.status_code == 200, answer.text
    changed = answer.json()
    assert changed.keys() == SHAPE
    assert changed["details"] == method["details"] | changes
    assert changed == method | {
        "details": changed["details"],
        "updated_at": changed["updated_at"],
    }
    assert alice.get(path).json() == changed


@pytest.mark.parametrize("body", [{}, {"details": {}}, {"details": {"exp_month": 12}}])
def test_a_patch_without_a_change_changes_nothing(
    alice: httpx.Client, body: dict[str, Any]
) -> None:
    method = save(alice, card())
    answer = alice.patch(f"/payment-methods/{method['id']}", json=body)
    assert answer.status_code == 200
    assert answer.json() == method


def test_patch_does_both_at_once(alice: httpx.Client) -> None:
    save(alice, card())
    method = save(alice, card(MASTERCARD))
    body = {"details": {"exp_year": 2045}, "is_default": True}
    changed = alice.patch(f"/payment-methods/{method['id']}", json=body).json()
    assert (changed["details"]["exp_year"], changed["is_default"]) == (2045, True)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"details": {"card_number": MASTERCARD}}, "details.card_number"),
        ({"details": {"cvc": "123"}}, "details.cvc"),
        ({"details": {"token": "tok_success"}}, "details.token"),
        ({"details": {"brand": "visa"}}, "details.brand"),
        ({"details": {"fingerprint": "1111"}}, "details.fingerprint"),
        ({"details": {"exp_month": 0}}, "details.exp_month"),
        ({"details": {"exp_month": 13}}, "details.exp_month"),
        ({"details": {"exp_month": None}}, "details.exp_month"),
        ({"details": {"exp_year": None}}, "details.exp_year"),
        ({"details": {"exp_year": 35}}, "details.exp_year"),
        ({"details": {"exp_year": 10_000}}, "details.exp_year"),
        ({"details": {"cardholder_name": ""}}, "details.cardholder_name"),
        ({"details": {"cardholder_name": 1}}, "details.cardholder_name"),
        ({"details": []}, "details"),
        ({"details": "text"}, "details"),
        ({"payment_type": "card"}, "payment_type"),
        ({"gateway": "sandbox"}, "gateway"),
        ({"user_id": "somebody"}, "user_id"),
        ({"is_active": False}, "is_active"),
        ({"id": 1}, "id"),
    ],
)
def test_patch_refuses_what_cannot_be_changed(
    alice: httpx.Client, body: dict[str, Any], place: str
) -> None:
    method = save(alice, card())
    path = f"/payment-methods/{method['id']}"
    assert fields(alice.patch(path, json=body)) == {place}
    both = {"is_default": True, "details": {"exp_year": 2050}} | body
    assert place in fields(alice.patch(path, json=both))
    assert alice.get(path).json() == method


def test_patch_does_not_let_a_card_expire(alice: httpx.Client) -> None:
    method = save(alice, card(details=by(**month_from_now(1))))
    path = f"/payment-methods/{method['id']}"
    for changes in (month_from_now(-2), {"exp_year": month_from_now(-24)["exp_year"]}):
        [place] = fields(alice.patch(path, json={"details": changes}))
        assert place in ("details.exp_month", "details.exp_year")
    assert alice.get(path).json() == method


def test_the_name_on_an_expired_card_may_be_changed(alice: httpx.Client, engine: sa.Engine) -> None:
    method = save(alice, card())
    with engine.begin() as connection:  # time has passed
        connection.execute(
            sa.text(
                "UPDATE payment_methods SET details = details || '{\"exp_year\": 2020}' "
                "WHERE id = :id"
            ),
            {"id": method["id"]},
        )
    path = f"/payment-methods/{method['id']}"
    answer = alice.patch(path, json={"details": {"cardholder_name": "Alice"}})
    assert answer.status_code == 200
    assert alice.patch(path, json={"details": {"exp_year": 2044}}).status_code == 200


@pytest.mark.parametrize("make", [paypal, bank])
@pytest.mark.parametrize(
    "details", [{"exp_month": 1}, {"cardholder_name": "A"}, {"email": "b@example.com"}]
)
def test_only_a_cards_details_can_be_changed(
    alice: httpx.Client, make: Any, details: dict[str, Any]
) -> None:
    method = save(alice, make())
    path = f"/payment-methods/{method['id']}"
    assert fields(alice.patch(path, json={"details": details}))
    assert alice.get(path).json() == method
    assert alice.patch(path, json={"is_default": True}).status_code == 200


# --- Removing ---------------------------------------------------------------------------------


def test_a_removed_method_leaves_every_list_and_read(
    alice: httpx.Client, manager: httpx.Client, user: str
) -> None:
    method = save(alice, card())
    path = f"/payment-methods/{method['id']}"
    answer = alice.delete(path)
    assert (answer.status_code, answer.content) == (204, b"")
    absent = but_request_id(alice.get(f"/payment-methods/{ABSENT}"))
    for client in (alice, manager):
        assert but_request_id(client.get(path)) == absent
        assert but_request_id(client.delete(path)) == absent
        assert but_request_id(client.patch(path, json={"is_default": True})) == absent
    assert alice.get("/payment-methods").json() == []
    assert manager.get("/payment-methods", params={"user_id": user}).json() == []


def test_the_orders_and_payments_of_a_removed_method_stay(alice: httpx.Client) -> None:
    method = save(alice, card())
    placed = place_order(alice, payment_method_id=method["id"])
    payment = pay(alice, placed["id"])
    unpaid = place_order(alice, payment_method_id=method["id"])
    before = alice.get(f"/orders/{placed['id']}").json()
    alice.delete(f"/payment-methods/{method['id']}")
    assert alice.get(f"/orders/{placed['id']}").json() == before
    assert alice.get(f"/payments/{payment['id']}").json() == payment
    assert alice.get(f"/orders/{unpaid['id']}").json() == unpaid
    found = alice.get("/orders", params={"payment_method_id": method["id"]}).json()
    assert ids(found) == [unpaid["id"], placed["id"]]
