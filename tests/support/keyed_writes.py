"""The writes that take an Idempotency-Key."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.support.database import sql
from tests.support.factories import card, order
from tests.support.shop import (
    Shop,
)


@dataclass(frozen=True)
class Write:
    """A write that a token authenticates."""

    client: httpx.Client
    method: str
    path: str
    body: dict[str, Any]
    other: dict[str, Any]  # another body that is as good
    status: int = 201

    def send(self, key: str, **changes: Any) -> httpx.Response:
        headers = {"Idempotency-Key": key} | changes.pop("headers", {})
        options = {"method": self.method, "url": self.path, "json": self.body} | changes
        return self.client.request(**options, headers=headers)


def save(shop: Shop) -> Write:
    return Write(shop.shopper, "POST", "/payment-methods", card(), card("5555555555554444"))


def place(shop: Shop) -> Write:
    return Write(shop.shopper, "POST", "/orders", order(), order(quantity=2))


def cancel(shop: Shop) -> Write:
    path = f"/orders/{shop.place()}/status"
    return Write(shop.shopper, "PUT", path, {"status": "canceled"}, {"status": "pending"}, 200)


def pay(shop: Shop) -> Write:
    path, body = f"/orders/{shop.place()}/payments", {"payment_method_id": shop.method()}
    return Write(shop.shopper, "POST", path, body, body | {"capture_method": "manual"})


def capture(shop: Shop) -> Write:
    path = f"/payments/{shop.authorized()['id']}/capture"
    return Write(shop.manager, "POST", path, {"amount": 900}, {"amount": 901}, 200)


def void(shop: Shop) -> Write:
    path = f"/payments/{shop.authorized()['id']}/void"
    return Write(shop.manager, "POST", path, {}, {}, 200)


def refund(shop: Shop) -> Write:
    path = f"/payments/{shop.paid()['id']}/refunds"
    return Write(shop.manager, "POST", path, {"amount": 300, "reason": "é"}, {"amount": 300})


WRITES = [save, place, cancel, pay, capture, void, refund]


AT_A_GATEWAY = [pay, capture, void, refund]


every_write = pytest.mark.parametrize("prepare", WRITES, ids=lambda write: write.__name__)


every_money_write = pytest.mark.parametrize(
    "prepare", AT_A_GATEWAY, ids=lambda write: write.__name__
)


Prepare = Callable[[Shop], Write]


def new_key() -> str:
    return f"key-{secrets.token_hex(8)}"


def same_answer(first: httpx.Response, again: httpx.Response) -> None:
    """`again` is a replay of `first`, to the byte."""
    assert (again.status_code, again.content) == (first.status_code, first.content)
    for name in ("Location", "Content-Type"):
        assert again.headers.get(name) == first.headers.get(name)
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["X-Request-Id"] != first.headers["X-Request-Id"]


def fault(name: str) -> dict[str, Any]:
    return {"headers": {"Sandbox-Fault": name}}


# What was refused before it began ---------------------------------------------------------------


def kept(shop: Shop, key: str) -> int:
    return int(
        sql(shop.engine, "SELECT count(*) FROM idempotency_keys WHERE key = :key", key=key)[0][0]
    )
