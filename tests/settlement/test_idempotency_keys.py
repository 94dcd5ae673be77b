"""What is kept under an Idempotency-Key, and for how long."""

from __future__ import annotations

import secrets
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

import database
import idempotency_keys
from config import Settings
from settlement import idempotency
from tests.support.factories import card, order, pay, place_order, save_card


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    """Nobody settles in the background what a test leaves open."""
    return settings.model_copy(update={"run_workers": False})


@pytest.fixture
def key() -> str:
    return f"key-{secrets.token_hex(8)}"


def send(client: httpx.Client, path: str, key: str, body: Any, fault: str = "") -> httpx.Response:
    headers = {"Idempotency-Key": key} | ({"Sandbox-Fault": fault} if fault else {})
    return client.post(path, json=body, headers=headers)


def age(engine: sa.Engine, key: str, hours: int) -> None:
    """Let so many hours pass for a key."""
    shift = (
        "UPDATE idempotency_keys SET created_at = created_at - make_interval(hours => :hours), "
        "owned_until = owned_until - make_interval(hours => :hours) WHERE key = :key"
    )
    with engine.begin() as connection:
        assert connection.execute(sa.text(shift), {"hours": hours, "key": key}).rowcount == 1


def fingerprint(engine: sa.Engine, key: str) -> str:
    query = sa.text("SELECT fingerprint FROM idempotency_keys WHERE key = :key")
    with engine.connect() as connection:
        stored: str = connection.execute(query, {"key": key}).scalar_one()
    return stored


# Open outcomes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["error_after_charge", "error_500"])
def test_a_refund_whose_outcome_is_open_is_never_made_twice(
    alice: httpx.Client, manager: httpx.Client, engine: sa.Engine, key: str, fault: str
) -> None:
    save_card(alice)
    path = f"/payments/{pay(alice, place_order(alice)['id'])['id']}/refunds"
    first = send(manager, path, key, {"amount": 400}, fault)
    assert first.status_code == 202
    for hours in (73, 24 * 365):
        age(engine, key, hours)
        again = send(manager, path, key, {"amount": 400})
        assert (again.status_code, again.json()) == (202, first.json())
        assert again.headers["Idempotent-Replayed"] == "true"
        other = send(manager, path, key, {"amount": 401})
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert [refund["id"] for refund in manager.get(path).json()] == [first.json()["id"]]


def test_a_charge_whose_outcome_is_open_keeps_its_key(
    alice: httpx.Client, engine: sa.Engine, key: str
) -> None:
    save_card(alice)
    path = f"/orders/{place_order(alice)['id']}/payments"
    first = send(alice, path, key, {}, "error_after_charge")
    age(engine, key, 73)
    again = send(alice, path, key, {})
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json()


# The CVC ----------------------------------------------------------------------------------------


def with_cvc(cvc: str | None) -> dict[str, Any]:
    body = card()
    body["details"] |= {"cvc": cvc}
    return body


def test_requests_that_differ_only_in_the_cvc_are_the_same(alice: httpx.Client, key: str) -> None:
    first = send(alice, "/payment-methods", key, with_cvc("123"))
    assert first.status_code == 201
    without = card()
    del without["details"]["cvc"]
    for body in (with_cvc("987"), with_cvc("1234"), with_cvc(None), without):
        again = send(alice, "/payment-methods", key, body)
        assert (again.status_code, again.content) == (201, first.content)
    other = with_cvc("123")
    other["details"]["exp_year"] += 1
    assert send(alice, "/payment-methods", key, other).status_code == 422


def test_the_stored_fingerprint_does_not_tell_the_cvc(
    alice: httpx.Client, manager: httpx.Client, engine: sa.Engine
) -> None:
    stored = set()
    for client, cvc in ((alice, "123"), (manager, "987")):
        key = f"key-{secrets.token_hex(8)}"
        assert send(client, "/payment-methods", key, with_cvc(cvc)).status_code == 201
        stored.add(fingerprint(engine, key))
    assert len(stored) == 1


@pytest.mark.parametrize(
    "body", [None, [], "cvc", 1, {}, {"details": None}, {"details": ["cvc"]}, {"cvc": "123"}]
)
def test_every_json_value_has_a_fingerprint(body: Any) -> None:
    read = idempotency.read_key(["k"], "PATCH", "/payment-methods/1", body, [b"secret"])
    assert read is not None
    assert len(read.fingerprints) == 1


def test_the_cvc_is_left_out_whatever_else_a_body_holds() -> None:
    def fingerprints(details: dict[str, Any], method: str) -> list[str]:
        body = {"details": details, "is_default": True}
        read = idempotency.read_key(["k"], method, "/payment-methods/1", body, [b"a", b"b"])
        assert read is not None
        return read.fingerprints

    for method in ("POST", "PUT", "PATCH"):
        one = fingerprints({"cvc": "123", "exp_year": 2040}, method)
        assert one == fingerprints({"exp_year": 2040, "cvc": "124"}, method)
        assert one == fingerprints({"exp_year": 2040}, method)
        assert one != fingerprints({"exp_year": 2041, "cvc": "123"}, method)


# Forgetting -------------------------------------------------------------------------------------


def test_a_key_that_is_taken_anew_is_not_forgotten_by_a_reaper_that_saw_it_expired(
    alice: httpx.Client, engine: sa.Engine, key: str
) -> None:
    assert send(alice, "/orders", key, order()).status_code == 201
    age(engine, key, 73)
    with database.new_session(engine) as session:
        with database.phase(session):
            found = idempotency_keys.find_expired(session, limit=1000)
        anew = send(alice, "/orders", key, order(quantity=2))
        assert anew.status_code == 201
        for old in found:
            with database.phase(session):
                database.delete_old(session, old)
    again = send(alice, "/orders", key, order(quantity=2))
    assert (again.status_code, again.json()) == (201, anew.json())
    assert again.headers["Idempotent-Replayed"] == "true"
