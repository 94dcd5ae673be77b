"""What tests do with orders."""

from __future__ import annotations

from typing import Any

import httpx
import sqlalchemy as sa

STATUSES = ["pending", "authorized", "paid", "shipped", "delivered", "canceled", "refunded"]


# How an order comes to each status.
WAYS: dict[str, list[str]] = {
    "pending": [],
    "authorized": ["authorized"],
    "paid": ["paid"],
    "shipped": ["paid", "shipped"],
    "delivered": ["paid", "shipped", "delivered"],
    "canceled": ["canceled"],
    "refunded": ["paid", "refunded"],
}


def bring_to(engine: sa.Engine, order_id: int, status: str) -> None:
    """Move an order where the API alone cannot bring it."""
    with engine.begin() as connection:
        for step in WAYS[status]:
            connection.execute(
                sa.text("UPDATE orders SET status = :step WHERE id = :id"),
                {"step": step, "id": order_id},
            )


def move(client: httpx.Client, order_id: int, status: Any) -> httpx.Response:
    return client.put(f"/orders/{order_id}/status", json={"status": status})


def read(client: httpx.Client, order_id: int) -> dict[str, Any]:
    answer = client.get(f"/orders/{order_id}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found
