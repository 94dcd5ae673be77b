"""Webhooks of the sandbox that are signed and still odd: every field with every kind of value."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from gateways.sandbox import sign
from tests.support.factories import pay, place_order, save_card

Payload = dict[str, Any]

ODD: list[Any] = [
    *("text", "", "\0", "\ud800", "\x85", "x" * 256, "5", "captured", "USD", "usd"),
    *(
        "2026-01-01T00:00:00+00:00",
        "2026-01-01T00:00:00",
        "2026-01-01",
        "2026-13-01T00:00:00+00:00",
    ),
    *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "1e9", 1e300),
    *(0, 1, -1, 2**63 - 1, 2**63, -(2**63) - 1, 10**400, 10**12, 1.0, 0.5, True, False),
    *(
        None,
        float("nan"),
        float("inf"),
        [],
        [1],
        {},
        {"a": 1},
        [[]],
        "https://a.example/" + "x" * 4096,
    ),
]


def is_text(value: Any, most: int = 255) -> bool:
    return isinstance(value, str) and 0 < len(value) <= most and value.isprintable()


def is_integer(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


# What each kind of field may be.
KINDS: dict[str, Callable[[Any], bool]] = {
    "text": is_text,
    "url": lambda value: value is None or is_text(value, 4096),
    "id": lambda value: value is None or is_integer(value, 1, 2**63 - 1),
    "amount": lambda value: is_integer(value, 0, 999_999_999_999),
    "currency": lambda value: value == "USD",
    "status": lambda value: value == "captured",
    "refund status": lambda _: False,
    "dispute status": lambda _: False,
    "moment": lambda value: value in (None, "2026-01-01T00:00:00+00:00"),
    "part": lambda value: value is None,
}
EVERY = {"id": "text", "type": "text", "payment_id": "id", "reference": "text"}
CHARGE = {
    "charge": "part",
    "charge.reference": "text",
    "charge.status": "status",
    "charge.amount": "amount",
    "charge.currency": "currency",
    "charge.amount_captured": "amount",
    "charge.capture_before": "moment",
    "charge.redirect_url": "url",
    "charge.decline": "part",
    "charge.decline.code": "text",
    "charge.decline.raw": "text or none",
}
REFUND = {
    "refund": "part",
    "refund_id": "id",
    "refund.reference": "text",
    "refund.status": "refund status",
    "refund.amount": "amount",
    "refund.currency": "currency",
}
DISPUTE = {
    "dispute": "part",
    "evidence_due_at": "moment",
    "dispute.reference": "text",
    "dispute.status": "dispute status",
    "dispute.amount": "amount",
    "dispute.currency": "currency",
    "dispute.reason": "text",
}
KINDS["text or none"] = lambda value: value is None or is_text(value)
FIELDS = EVERY | CHARGE | REFUND | DISPUTE


@pytest.fixture
def send(base_url: str, engine: sa.Engine) -> Iterator[Callable[[Payload], httpx.Response]]:
    with engine.connect() as connection:
        secret = str(
            connection.execute(sa.text("SELECT webhook_secret FROM sandbox.account")).scalar_one()
        )
    with httpx.Client(base_url=base_url, timeout=60) as client:

        def deliver(payload: Payload) -> httpx.Response:
            body = json.dumps(payload).encode()
            headers = sign(secret, body, int(time.time()))
            return client.post("/webhooks/sandbox", content=body, headers=headers)

        yield deliver


def event_about(payment: dict[str, Any], field: str) -> Payload:
    """An event that is in order, and has this field."""
    money = {"amount": payment["amount"], "currency": payment["currency"]}
    payload: Payload = {
        "id": f"evt_{secrets.token_hex(8)}",
        "type": "charge.captured",
        "payment_id": payment["id"],
        "reference": payment["gateway_reference"],
    }
    if field in CHARGE:
        payload["charge"] = {
            "reference": payment["gateway_reference"],
            "status": "captured",
            **money,
            "amount_captured": payment["amount"],
            "capture_before": None,
            "redirect_url": None,
            "decline": {"code": "generic_decline", "raw": None} if "decline" in field else None,
        }
    if field in REFUND:
        payload["refund"] = {"reference": "re_1", "status": "succeeded", **money}
        payload["refund_id"] = 2**60
    if field in DISPUTE:
        payload["dispute"] = {"reference": "dp_1", "status": "open", **money, "reason": "fraud"}
        payload["evidence_due_at"] = None
    return payload


def put(payload: Payload, field: str, value: Any) -> None:
    *parents, name = field.split(".")
    for parent in parents:
        payload = payload[parent]
    payload[name] = value


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_with_a_value_that_it_cannot_have_is_400_and_nothing_is_stored(
    send: Callable[[Payload], httpx.Response], alice: httpx.Client, engine: sa.Engine, field: str
) -> None:
    save_card(alice)
    payment = pay(alice, place_order(alice)["id"])
    assert send(event_about(payment, field)).status_code == 200
    refused = []
    for value in ODD:
        payload = event_about(payment, field)
        put(payload, field, value)
        answer = send(payload)
        if KINDS[FIELDS[field]](value):
            # 409: it may be about a payment whose answer is still to come; so it is sent again.
            assert answer.status_code in (200, 409), (value, answer.text)
        else:
            assert answer.status_code == 400, (value, answer.text)
            assert answer.json()["code"] == "invalid_signature"
            refused.append(payload["id"])
    assert refused
    with engine.connect() as connection:
        stored = connection.scalars(sa.text("SELECT event_id FROM gateway_events")).all()
    assert {name for name in refused if isinstance(name, str)}.isdisjoint(stored)


@pytest.mark.parametrize("field", [field for field in FIELDS if FIELDS[field] != "part"])
def test_a_field_that_is_missing_is_no_server_error(
    send: Callable[[Payload], httpx.Response], alice: httpx.Client, field: str
) -> None:
    save_card(alice)
    payment = pay(alice, place_order(alice)["id"])
    payload = event_about(payment, field)
    part = payload
    *parents, name = field.split(".")
    for parent in parents:
        part = part[parent]
    del part[name]
    assert send(payload).status_code in (200, 400)


def test_what_a_later_release_adds_to_a_webhook_is_passed_over(
    send: Callable[[Payload], httpx.Response], alice: httpx.Client
) -> None:
    save_card(alice)
    payment = pay(alice, place_order(alice)["id"])
    for field in ("charge", "refund", "dispute"):
        payload = event_about(payment, field) | {"added": [1]}
        payload[field]["added"] = {"a": 1}
        assert send(payload).status_code == 200
