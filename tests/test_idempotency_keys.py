"""What is kept under an Idempotency-Key, and for how long."""

from __future__ import annotations

import secrets
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from config import Settings
from tests.conftest import pay, place_order, save_card


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
