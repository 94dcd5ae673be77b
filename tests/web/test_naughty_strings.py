"""The Big List of Naughty Strings in every text field, query, path and header: never a 5xx."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI

import auth
from config import Settings
from errors import catalog
from tests.support.asgi import JSON, Reply, Wire, wire
from tests.support.corpora import naughty_strings
from tests.support.factories import card, order, place_order, save_card

STRINGS = naughty_strings()


@pytest.fixture(scope="module")
def direct(base_url: str, app: FastAPI) -> Iterator[Wire]:
    with wire(app) as opened:
        yield opened


@pytest.fixture(scope="module")
def bearer(settings: Settings) -> tuple[str, str]:
    scope = "orders:manage payments:manage webhooks:manage"
    return ("Authorization", f"Bearer {auth.mint(settings, 'manager', scope)}")


def check(answer: Reply, naughty: str) -> Reply:
    """Taken, or refused with a documented problem."""
    if answer.status >= 400:
        assert answer.headers["content-type"] == "application/problem+json", naughty
        problem = answer.json()
        assert answer.status == problem["status"] == catalog()[problem["code"]].status
        assert answer.status < 500, naughty
    return answer


def in_card(**details: str) -> dict[str, Any]:
    """A card with one detail that is another."""
    return card() | {"details": card()["details"] | details}


def paypal(**details: str) -> dict[str, Any]:
    return {"payment_type": "paypal", "details": details}


def account(**details: str) -> dict[str, Any]:
    whole = {"iban": "DE89370400440532013000", "account_holder": "Alice"} | details
    return {"payment_type": "bank_account", "details": whole}


def review(**fields: str) -> dict[str, Any]:
    return {"resolution": "accepted", "note": "seen"} | fields


Body = Callable[[str], dict[str, Any]]
METHODS = ("POST", "/payment-methods")
ORDERS = ("POST", "/orders")
FIELDS: dict[str, tuple[tuple[str, str], Body]] = {
    "product_id": (ORDERS, lambda text: order(product_id=text)),
    "currency": (ORDERS, lambda text: order(currency=text)),
    "user_id of an order": (ORDERS, lambda text: order(user_id=text)),
    "metadata value": (ORDERS, lambda text: order(metadata={"a": text})),
    "metadata key": (ORDERS, lambda text: order(metadata={text: "a"})),
    "unknown field": (ORDERS, lambda text: order() | {text: text}),
    "status": (("PUT", "/orders/{order}/status"), lambda text: {"status": text}),
    "return_url": (("POST", "/orders/{order}/payments"), lambda text: {"return_url": text}),
    "capture_method": (("POST", "/orders/{order}/payments"), lambda text: {"capture_method": text}),
    "returned value": (("POST", "/payments/1/confirm"), lambda text: {"returned": {"a": text}}),
    "returned name": (("POST", "/payments/1/confirm"), lambda text: {"returned": {text: "a"}}),
    "reason": (("POST", "/payments/1/refunds"), lambda text: {"reason": text}),
    "note": (("POST", "/payments/1/review"), lambda text: review(note=text)),
    "resolution": (("POST", "/payments/1/review"), lambda text: review(resolution=text)),
    "reference": (("POST", "/payments/1/review"), lambda text: review(gateway_reference=text)),
    "payment_type": (METHODS, lambda text: card(payment_type=text)),
    "gateway": (METHODS, lambda text: card(gateway=text)),
    "country": (METHODS, lambda text: card(country=text)),
    "currency of a method": (METHODS, lambda text: card(currency=text)),
    "user_id of a method": (METHODS, lambda text: card(user_id=text, gateway="none")),
    "card_number": (METHODS, lambda text: in_card(card_number=text)),
    "cvc": (METHODS, lambda text: in_card(cvc=text)),
    "cardholder_name": (METHODS, lambda text: in_card(cardholder_name=text)),
    "token": (METHODS, lambda text: card(details={"token": text}, gateway="sandbox")),
    "email": (METHODS, lambda text: paypal(email=text)),
    "iban": (METHODS, lambda text: account(iban=text)),
    "account_holder": (METHODS, lambda text: account(account_holder=text)),
    "new cardholder_name": (
        ("PATCH", "/payment-methods/{method}"),
        lambda text: {"details": {"cardholder_name": text}},
    ),
}
QUERIES = [
    *("/orders?status=", "/orders?created_after=", "/orders?created_before=", "/orders?cursor="),
    *("/orders?payment_method_id=", "/orders?user_id=", "/orders?limit=", "/orders?"),
    *("/payments?needs_review=", "/payments?status=", "/payments?order_id="),
    *("/payment-methods?user_id=", "/disputes?payment_id=", "/sandbox/charges?cursor="),
    *("/sandbox/charges?order_id=", "/sandbox?cursor=", "/sandbox?refused="),
]
PATHS = [
    *("/%s", "/orders/%s", "/orders/%s/events", "/payment-methods/%s", "/payments/%s"),
    *("/payments/1/refunds/%s", "/disputes/%s", "/errors/%s", "/docs/assets/%s"),
    "/sandbox/actions/%s",
]
POSTED = ["/webhooks/%s", "/sandbox/actions/%s/approve", "/sandbox/charges/%s/refund"]
PAY = "/orders/{order}/payments"
# Where each header is read; those that nobody reads, or that refuse nothing, are sent together.
HEADERS = {
    "Idempotency-Key": PAY,
    "Sandbox-Fault": PAY,
    "Authorization": PAY,
    "Content-Type": PAY,
    "Content-Length": PAY,
    "Sandbox-Signature": "/webhooks/sandbox",
    "Origin": "/sandbox/switches/webhooks/deliver",
    "Sec-Fetch-Site": "/sandbox/switches/webhooks/deliver",
    "X-Request-Id traceparent Accept User-Agent Cookie Range If-None-Match Origin": "/orders",
}


@pytest.fixture(scope="module")
def ids(base_url: str, bearer: tuple[str, str]) -> dict[str, int]:
    """An order that nobody can pay, and a card."""
    with httpx.Client(base_url=base_url, headers=dict([bearer])) as client:
        method = save_card(client)["id"]
        placed = place_order(client)["id"]
        assert client.put(f"/orders/{placed}/status", json={"status": "canceled"}).is_success
    return {"order": placed, "method": method}


@pytest.mark.parametrize(("operation", "body"), FIELDS.values(), ids=FIELDS.keys())
def test_no_text_breaks_a_field(
    direct: Wire,
    bearer: tuple[str, str],
    ids: dict[str, int],
    operation: tuple[str, str],
    body: Body,
) -> None:
    method, path = operation[0], operation[1].format(**ids)
    for naughty in STRINGS:
        content = json.dumps(body(naughty)).encode()
        check(direct.send(method, path, content, [bearer, JSON]), naughty)


@pytest.mark.parametrize("query", QUERIES)
def test_no_text_breaks_a_query(direct: Wire, bearer: tuple[str, str], query: str) -> None:
    for naughty in STRINGS:
        check(direct.send("GET", query + quote(naughty, safe=""), headers=[bearer]), naughty)


@pytest.mark.parametrize(
    ("method", "path"), [("GET", path) for path in PATHS] + [("POST", path) for path in POSTED]
)
def test_no_text_breaks_a_path(
    direct: Wire, bearer: tuple[str, str], method: str, path: str
) -> None:
    for naughty in STRINGS:
        target = path.replace("%s", quote(naughty, safe=""))
        check(direct.send(method, target, b"{}", [bearer, JSON]), naughty)


@pytest.mark.parametrize(("names", "path"), HEADERS.items())
def test_no_text_breaks_a_header(
    direct: Wire, bearer: tuple[str, str], ids: dict[str, int], names: str, path: str
) -> None:
    sent = names.split()
    others = [header for header in (bearer, JSON) if header[0] not in sent]
    for naughty in STRINGS:
        own = [(name, naughty.encode()) for name in sent]
        check(direct.send("POST", path.format(**ids), b"{}", [*others, *own]), naughty)


def test_text_comes_back_as_it_was_sent(direct: Wire, bearer: tuple[str, str]) -> None:
    for naughty in STRINGS:
        if 0 < len(naughty) <= 255:
            content = json.dumps(order(product_id=naughty)).encode()
            answer = check(direct.send("POST", "/orders", content, [bearer, JSON]), naughty)
            assert answer.json()["product_id"] == naughty
