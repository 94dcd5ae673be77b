"""Whose payment methods, and the events that tell who did what."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from tests.support.clients import ABSENT, Api, but_request_id, code, fields, ids
from tests.support.factories import VISA, card
from tests.support.payment_methods import (
    AMEX,
    MASTERCARD,
    SHAPE,
    bank,
    paypal,
    save,
    token,
)

# --- Whose ------------------------------------------------------------------------------------


def test_lists_show_the_newest_first_and_ones_own_only(
    alice: httpx.Client, bob: httpx.Client
) -> None:
    mine = [save(alice, card(digits))["id"] for digits in (VISA, MASTERCARD, AMEX)]
    save(bob, card())
    listed = alice.get("/payment-methods").json()
    assert ids(listed) == mine[::-1]
    assert all(method.keys() == SHAPE and method["is_active"] for method in listed)


@pytest.mark.parametrize("scope", ["", "payments:manage", "webhooks:manage", "orders:read"])
def test_a_foreign_method_is_as_absent_as_one_that_never_was(
    api: Api, alice: httpx.Client, user: str, scope: str
) -> None:
    foreign, stranger = save(alice, card())["id"], api(f"{user}-eve", scope)
    for method, body in (("GET", None), ("PATCH", {"is_default": True}), ("DELETE", None)):
        there = stranger.request(method, f"/payment-methods/{foreign}", json=body)
        nowhere = stranger.request(method, f"/payment-methods/{ABSENT}", json=body)
        assert code(there) == (404, "not_found")
        assert but_request_id(there) == but_request_id(nowhere)
    assert ids(alice.get("/payment-methods").json()) == [foreign]


def test_a_manager_reads_every_users_methods(
    alice: httpx.Client, manager: httpx.Client, user: str
) -> None:
    method = save(alice, card())
    assert manager.get(f"/payment-methods/{method['id']}").json() == method
    assert manager.get("/payment-methods", params={"user_id": user}).json() == [method]


def test_a_manager_names_the_user_whose_methods_to_list(manager: httpx.Client) -> None:
    assert fields(manager.get("/payment-methods")) == {"user_id"}
    assert manager.get("/payment-methods", params={"user_id": "nobody"}).json() == []


def test_a_shopper_may_name_only_themselves(alice: httpx.Client, user: str) -> None:
    method = save(alice, card())
    assert alice.get("/payment-methods", params={"user_id": user}).json() == [method]
    answer = alice.get("/payment-methods", params={"user_id": f"{user}-bob"})
    assert code(answer) == (403, "forbidden")


def test_a_manager_may_not_change_what_is_a_users(
    alice: httpx.Client, manager: httpx.Client
) -> None:
    method = save(alice, card())
    path = f"/payment-methods/{method['id']}"
    assert code(manager.patch(path, json={"is_default": True})) == (403, "forbidden")
    assert code(manager.delete(path)) == (403, "forbidden")
    assert alice.get(path).json() == method


@pytest.mark.parametrize("make", [card, paypal, bank, token])
def test_a_manager_saves_for_a_user(api: Api, manager: httpx.Client, user: str, make: Any) -> None:
    method = save(manager, make() | {"user_id": user})
    assert (method["user_id"], method["is_default"]) == (user, True)
    assert api(user).get("/payment-methods").json() == [method]


def test_ones_own_user_id_is_accepted_and_anothers_is_not(alice: httpx.Client, user: str) -> None:
    assert save(alice, card(user_id=user))["user_id"] == user
    for name in (f"{user}-bob", user.upper(), f"{user} ", "manager"):
        answer = alice.post("/payment-methods", json=card(MASTERCARD, user_id=name))
        assert code(answer) == (403, "forbidden")


@pytest.mark.parametrize("scope", ["payments:manage", "webhooks:manage", "ORDERS:MANAGE", "orders"])
def test_only_the_right_scope_saves_for_a_user(api: Api, user: str, scope: str) -> None:
    answer = api(f"{user}-eve", scope).post("/payment-methods", json=card(user_id=user))
    assert code(answer) == (403, "forbidden")


# --- Events -----------------------------------------------------------------------------------


def events_of(engine: sa.Engine, user: str) -> list[sa.Row[Any]]:
    with engine.connect() as connection:
        return list(
            connection.execute(
                sa.text("SELECT * FROM events WHERE user_id = :user ORDER BY id"), {"user": user}
            )
        )


def test_every_change_is_an_event(alice: httpx.Client, engine: sa.Engine, user: str) -> None:
    created = alice.post("/payment-methods", json=card())
    method = created.json()
    path = f"/payment-methods/{method['id']}"
    changed = alice.patch(path, json={"details": {"exp_year": 2050}})
    alice.patch(path, json={"is_default": True})  # no change, no event
    removed = alice.delete(path)
    events = events_of(engine, user)
    assert [event.type for event in events] == [
        "payment_method.created",
        "payment_method.updated",
        "payment_method.deleted",
    ]
    answers = (created, changed, removed)
    for event, answer in zip(events, answers, strict=True):
        assert event.actor == {"type": "user", "id": user}
        assert event.request_id == answer.headers["x-request-id"]
        assert (event.order_id, event.sequence) == (None, None)
    assert events[0].data == method
    assert events[1].data == changed.json()
    assert events[2].data["is_active"] is False
    assert events[2].data["id"] == method["id"]


def test_a_default_that_moves_is_an_event_of_both_methods(
    alice: httpx.Client, engine: sa.Engine, user: str
) -> None:
    first, second = save(alice, card()), save(alice, card(MASTERCARD))
    alice.patch(f"/payment-methods/{second['id']}", json={"is_default": True})
    told = {
        event.data["id"]: event.data["is_default"]
        for event in events_of(engine, user)
        if event.type == "payment_method.updated"
    }
    assert told == {first["id"]: False, second["id"]: True}


def test_what_was_refused_is_no_event(alice: httpx.Client, engine: sa.Engine, user: str) -> None:
    save(alice, card())
    alice.post("/payment-methods", json=card())
    alice.post("/payment-methods", json=card("4242424242424241"))
    alice.post("/payment-methods", json=card(MASTERCARD, user_id=f"{user}-bob"))
    assert [event.type for event in events_of(engine, user)] == ["payment_method.created"]


def test_a_manager_is_the_actor_of_what_a_manager_does(
    manager: httpx.Client, engine: sa.Engine, user: str
) -> None:
    save(manager, card(user_id=user))
    [event] = events_of(engine, user)
    assert event.actor == {"type": "user", "id": "manager"}
