"""What a payment and a refund show beside their amounts and states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from domain.states import REVIEW_REASONS
from tests.support.factories import pay, place_order, save_card

PAYMENT = {
    *("id", "order_id", "user_id", "payment_method_id", "gateway", "gateway_reference", "status"),
    *("amount", "amount_captured", "amount_refunded", "currency", "capture_method"),
    *("capture_before", "next_action", "failure", "needs_review", "review_reason"),
    *("created_at", "updated_at"),
}
REFUND = {
    *("id", "payment_id", "amount", "currency", "status", "reason", "origin"),
    *("gateway_reference", "created_at", "updated_at"),
}

Write = Callable[..., None]


@pytest.fixture
def write(engine: sa.Engine) -> Write:
    """Change a row behind the service's back."""

    def run(statement: str, **values: Any) -> None:
        with engine.begin() as connection:
            assert connection.execute(sa.text(statement), values).rowcount == 1

    return run


@pytest.fixture
def paid(alice: httpx.Client) -> dict[str, Any]:
    save_card(alice)
    return pay(alice, place_order(alice)["id"])


def test_a_payment_says_why_it_needs_review(
    alice: httpx.Client, paid: dict[str, Any], write: Write
) -> None:
    path = f"/payments/{paid['id']}"
    assert paid.keys() == alice.get(path).json().keys() == PAYMENT
    assert paid["review_reason"] is None
    for reason in REVIEW_REASONS:
        write(
            "UPDATE payments SET needs_review = true, review_reason = :reason WHERE id = :id",
            reason=reason,
            id=paid["id"],
        )
        assert alice.get(path).json()["review_reason"] == reason
        (listed,) = alice.get("/payments?needs_review=true").json()
        assert listed["review_reason"] == reason


def test_a_refund_says_where_it_was_made(
    alice: httpx.Client, manager: httpx.Client, paid: dict[str, Any], write: Write
) -> None:
    path = f"/payments/{paid['id']}/refunds"
    made = manager.post(path, json={"amount": 400}).json()
    assert made.keys() == REFUND
    assert made["origin"] == "service"
    write("UPDATE refunds SET origin = 'gateway' WHERE id = :id", id=made["id"])
    (listed,) = alice.get(path).json()
    assert listed.keys() == REFUND
    assert listed["origin"] == alice.get(f"{path}/{made['id']}").json()["origin"] == "gateway"


def test_events_tell_both(alice: httpx.Client, manager: httpx.Client, paid: dict[str, Any]) -> None:
    manager.post(f"/payments/{paid['id']}/refunds", json={"amount": 400})
    events = alice.get(f"/orders/{paid['order_id']}/events").json()
    data = {event["type"]: event["data"] for event in events}
    assert data["payment.captured"]["review_reason"] is None
    assert data["refund.created"]["origin"] == "service"
