"""Bodies of requests, and the shortest ways to a saved card, an order, a payment."""

from __future__ import annotations

import random
from typing import Any

import httpx

VISA = "4242424242424242"


def card(number: str = VISA, **changes: Any) -> dict[str, Any]:
    """The body that saves a card."""
    details = {"card_number": number, "exp_month": 12, "exp_year": 2040, "cvc": "123"}
    return {"payment_type": "card", "details": details} | changes


def order(**changes: Any) -> dict[str, Any]:
    """The body that places an order."""
    return {"product_id": "sku-1", "quantity": 1, "total_amount": 1099, "currency": "USD"} | changes


def save_card(client: httpx.Client, number: str = VISA) -> dict[str, Any]:
    return _created(client.post("/payment-methods", json=card(number)))


def place_order(client: httpx.Client, **changes: Any) -> dict[str, Any]:
    return _created(client.post("/orders", json=order(**changes)))


def pay(client: httpx.Client, order_id: int, **body: Any) -> dict[str, Any]:
    return _created(client.post(f"/orders/{order_id}/payments", json=body))


def _created(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 201, answer.text
    created: dict[str, Any] = answer.json()
    return created


def check_digit(digits: str) -> str:
    """The digit that makes a number pass Luhn's check."""
    doubled = (2 * int(digit) for digit in digits[::-2])
    total = sum(value // 10 + value % 10 for value in doubled)
    return str(-(total + sum(int(digit) for digit in digits[-2::-2])) % 10)


def number(prefix: str, length: int) -> str:
    """A card number that nobody else has."""
    rest = "".join(random.choices("0123456789", k=length - 1 - len(prefix)))
    return prefix + rest + check_digit(prefix + rest)
