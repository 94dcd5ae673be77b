"""No card twice, and which method is the default."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.support.clients import code, ids
from tests.support.factories import VISA, card
from tests.support.payment_methods import (
    AMEX,
    MASTERCARD,
    bank,
    by,
    paypal,
    save,
    token,
)


def default_of(client: httpx.Client) -> int:
    """The one default method."""
    methods = client.get("/payment-methods").json()
    [default] = [method["id"] for method in methods if method["is_default"]]
    return int(default)


# --- No card twice ----------------------------------------------------------------------------


def duplicate_of(answer: httpx.Response) -> Any:
    assert code(answer) == (409, "duplicate_payment_method"), answer.text
    return answer.json()["payment_method_id"]


@pytest.mark.parametrize(
    "typed",
    [
        VISA,
        "4242 4242 4242 4242",
        "4242-4242-4242-4242",
        "4242 4242-4242 4242",
        "42 42 42 42 42 42 42 42",
        "4 2 4 2 4 2 4 2 4 2 4 2 4 2 4 2",
        "424242 4242424242",
        "4242  4242  4242  4242",
        " 4242424242424242",
        "4242424242424242 ",
    ],
)
def test_a_card_spaced_differently_is_the_same_card(alice: httpx.Client, typed: str) -> None:
    method = save(alice, card(typed))
    for again in (VISA, "4242-4242 4242 4242", typed):
        assert duplicate_of(alice.post("/payment-methods", json=card(again))) == method["id"]
    assert ids(alice.get("/payment-methods").json()) == [method["id"]]


@pytest.mark.parametrize(
    "changes",
    [
        {"exp_month": 1},
        {"exp_year": 2041},
        {"exp_month": 2, "exp_year": 2050},
        {"cvc": "999"},
        {"cvc": None},
        {"cardholder_name": "Somebody Else"},
    ],
)
def test_a_card_with_other_particulars_is_the_same_card(
    alice: httpx.Client, changes: dict[str, Any]
) -> None:
    method = save(alice, card())
    answer = alice.post("/payment-methods", json=card(details=by(**changes)))
    assert duplicate_of(answer) == method["id"]
    assert alice.get(f"/payment-methods/{method['id']}").json() == method


@pytest.mark.parametrize("make", [card, paypal, bank, token])
def test_a_duplicate_is_one_whatever_its_type(alice: httpx.Client, make: Any) -> None:
    method = save(alice, make())
    again = make() | {"is_default": True, "gateway": "sandbox"}
    assert duplicate_of(alice.post("/payment-methods", json=again)) == method["id"]


def test_a_duplicate_changes_no_default(alice: httpx.Client) -> None:
    first, second = save(alice, card()), save(alice, card(MASTERCARD))
    answer = alice.post("/payment-methods", json=card(MASTERCARD, is_default=True))
    assert duplicate_of(answer) == second["id"]
    assert default_of(alice) == first["id"]


@pytest.mark.parametrize("make", [card, paypal, bank, token])
def test_another_user_may_save_the_same(alice: httpx.Client, bob: httpx.Client, make: Any) -> None:
    assert save(alice, make())["id"] != save(bob, make())["id"]


@pytest.mark.parametrize("make", [card, paypal, bank, token])
def test_what_was_removed_may_be_saved_again(alice: httpx.Client, make: Any) -> None:
    known = set()
    for _ in range(3):
        method = save(alice, make())
        assert duplicate_of(alice.post("/payment-methods", json=make())) == method["id"]
        assert alice.delete(f"/payment-methods/{method['id']}").status_code == 204
        known.add(method["id"])
    assert len(known) == 3


def test_cards_with_the_same_last_four_are_different(alice: httpx.Client) -> None:
    ends = {save(alice, card(digits))["details"]["last4"] for digits in (VISA, "4000000000024242")}
    assert ends == {"4242"}


def test_a_manager_learns_which_method_a_user_has(manager: httpx.Client, user: str) -> None:
    method = save(manager, card(user_id=user))
    assert duplicate_of(manager.post("/payment-methods", json=card(user_id=user))) == method["id"]


# --- The default ------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [None, True, False])
def test_the_first_method_is_the_default(alice: httpx.Client, asked: bool | None) -> None:
    assert save(alice, card(is_default=asked))["is_default"] is True


@pytest.mark.parametrize("changes", [{}, {"is_default": False}, {"is_default": None}])
def test_a_second_method_is_not_the_default(alice: httpx.Client, changes: dict[str, Any]) -> None:
    first = save(alice, card())
    assert save(alice, card(MASTERCARD, **changes))["is_default"] is False
    assert default_of(alice) == first["id"]


def test_a_method_may_be_saved_as_the_default(alice: httpx.Client) -> None:
    first = save(alice, card())
    second = save(alice, card(MASTERCARD, is_default=True))
    assert second["is_default"] is True
    assert default_of(alice) == second["id"]
    assert alice.get(f"/payment-methods/{first['id']}").json()["is_default"] is False


def test_patch_moves_the_default(alice: httpx.Client) -> None:
    methods = [save(alice, card(digits))["id"] for digits in (VISA, MASTERCARD, AMEX)]
    for method in (*methods, *reversed(methods)):
        answer = alice.patch(f"/payment-methods/{method}", json={"is_default": True})
        assert answer.status_code == 200
        assert answer.json()["is_default"] is True
        assert default_of(alice) == method


def test_making_the_default_the_default_changes_nothing(alice: httpx.Client) -> None:
    method = save(alice, card())
    answer = alice.patch(f"/payment-methods/{method['id']}", json={"is_default": True})
    assert answer.json() == method


def test_the_default_cannot_be_given_up_but_only_passed_on(alice: httpx.Client) -> None:
    first, second = save(alice, card()), save(alice, card(MASTERCARD))
    answer = alice.patch(f"/payment-methods/{first['id']}", json={"is_default": False})
    assert answer.status_code in (200, 400)
    assert default_of(alice) in (first["id"], second["id"])
    answer = alice.patch(f"/payment-methods/{second['id']}", json={"is_default": False})
    assert answer.status_code in (200, 400)
    assert default_of(alice) in (first["id"], second["id"])


def test_removing_the_default_makes_another_one_the_default(alice: httpx.Client) -> None:
    methods = [save(alice, card(digits))["id"] for digits in (VISA, MASTERCARD, AMEX)]
    while methods:
        default = default_of(alice)
        assert default in methods
        assert alice.delete(f"/payment-methods/{default}").status_code == 204
        methods.remove(default)
    assert alice.get("/payment-methods").json() == []
    assert save(alice, card())["is_default"] is True


def test_removing_another_method_leaves_the_default(alice: httpx.Client) -> None:
    first, second = save(alice, card()), save(alice, card(MASTERCARD))
    alice.delete(f"/payment-methods/{second['id']}")
    assert default_of(alice) == first["id"]


def test_the_users_defaults_are_their_own(alice: httpx.Client, bob: httpx.Client) -> None:
    mine, theirs = save(alice, card()), save(bob, card())
    save(bob, card(MASTERCARD, is_default=True))
    alice.delete(f"/payment-methods/{mine['id']}")
    assert default_of(bob) != theirs["id"]
