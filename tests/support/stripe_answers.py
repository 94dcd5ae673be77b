"""Answers that no double gives."""

from __future__ import annotations

from typing import Any

from conformance.doubles.server import Answer
from gateways.base import (
    Charge,
    MethodRequest,
)


def by_number(number: str) -> MethodRequest:
    details = {"exp_month": 7, "exp_year": 2040, "cardholder_name": "Ann"}
    return MethodRequest("card", "ann", details, card_number=number, cvc="123")


INTENT = {
    "id": "pi_1",
    "object": "payment_intent",
    "status": "succeeded",
    "amount": 1099,
    "amount_received": 1099,
    "currency": "usd",
    "created": 1_800_000_000,
}


CHARGED = Charge("pi_1", "captured", 1099, "USD", 1099)


def error(status: int, kind: str = "invalid_request_error", **fields: Any) -> Answer:
    return Answer(status, {"error": {"type": kind, "message": "echo 4242", **fields}})
