"""A different card number in every place that a client can fill; then all that was written is read.

The service runs as it does for people, on an embedded server of its own, with LOG_LEVEL=DEBUG.
What the contract leaves to the store, its product ids and user ids, is found where it belongs, and
nothing else anywhere: tables, files and log of PostgreSQL, the service's log, its answers.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jose import jwt

import auth
from config import Settings
from gateways.sandbox import sign
from tests.support.factories import VISA, order
from tests.support.leaks import (
    Fields,
    Way,
    Witness,
    changed,
    database_of,
    get,
    leaks_in,
    leaks_of,
    post,
    save,
    spaced,
    tables_of,
)
from tests.support.processes import Service, copy_sources, wait_until_gone

REFUSED = {400}
REVIEW = {"resolution": "accepted", "note": "looked at it"}
IBAN = "DE89 3704 0044 0532 0130 00"


@pytest.fixture(params=["development", "production"])
def witness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Witness]:
    data_dir = tmp_path / "data"
    variables: Fields = {
        "SECRET_KEY": secrets.token_urlsafe(48),
        "FINGERPRINT_KEY": secrets.token_urlsafe(48),
        "ENVIRONMENT": request.param,
        "LOG_LEVEL": "DEBUG",
        "GATEWAYS": "sandbox",
        "ORDERS_BY": "anyone",
        "PUBLIC_URL": "https://pay.example",
        "ALLOWED_HOSTS": "127.0.0.1",
    }
    settings = Settings(_env_file=None, secret_key=variables["SECRET_KEY"])
    sources = copy_sources(tmp_path / "service")
    with Service(sources, data_dir, **variables) as service:
        service.wait_until_ready()
        with Witness(service, settings) as witness:
            yield witness
    wait_until_gone(data_dir)


class Caller:
    """Somebody's requests, with a token that says what a test wants it to say."""

    def __init__(self, witness: Witness) -> None:
        self.witness = witness
        scope = "orders:manage payments:manage"
        self.manager = f"Bearer {auth.mint(witness.settings, 'manager', scope)}"
        with database_of(witness.service.data_dir) as engine, engine.connect() as connection:
            query = "SELECT webhook_secret FROM sandbox.account"
            self.webhook_secret = str(connection.exec_driver_sql(query).scalar_one())

    def bearer(self, headers: Fields | None = None, **claims: Any) -> str:
        now = int(time.time())
        said = {"sub": "alice", "iat": now, "exp": now + 600} | claims
        return f"Bearer {jwt.encode(said, self.witness.settings.signing_key, headers=headers)}"

    def webhook(self, **payload: Any) -> Fields:
        plain = {"id": "evt_1", "type": "charge.captured", "payment_id": None, "reference": "ch_1"}
        body = json.dumps(plain | payload).encode()
        headers = sign(self.webhook_secret, body, int(time.time()))
        headers |= {"Content-Type": "application/json"}
        return {"method": "POST", "url": "/webhooks/sandbox", "content": body, "headers": headers}


def places(caller: Caller, method: int, placed: int, payment: int) -> list[Way]:
    """Where a card number has no business."""
    saved, orders, payments = f"/payment-methods/{method}", f"/orders/{placed}", "/payments"
    as_manager = {"auth": caller.manager}

    def wallet(details: Fields) -> Fields:
        return changed("", payment_type="paypal", details=details)

    def account(**details: Any) -> Fields:
        details = {"iban": IBAN, "account_holder": "Alice"} | details
        return changed("", payment_type="bank_account", details=details)

    def with_headers(**headers: str) -> Fields:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return post("/orders", order(), headers=named)

    def patch(details: Fields) -> Fields:
        return post(saved, {"details": details}, method="PATCH")

    def pay(**fields: Any) -> Fields:
        return post(f"{orders}/payments", fields)

    def refund(**fields: Any) -> Fields:
        return post(f"{payments}/{payment}/refunds", fields) | as_manager

    def review(**fields: Any) -> Fields:
        return post(f"{payments}/{payment}/review", REVIEW | fields) | as_manager

    def confirm(**returned: str) -> Fields:
        return post(f"{payments}/{payment}/confirm", {"returned": returned})

    return [
        # What people type
        Way("cardholder_name", REFUSED, lambda n: save(VISA, cardholder_name=n)),
        Way("cardholder_name, changed", REFUSED, lambda n: patch({"cardholder_name": spaced(n)})),
        Way("account_holder", REFUSED, lambda n: account(account_holder=f"Alice {n}")),
        Way("email", REFUSED, lambda n: wallet({"email": f"{n}@example.com"})),
        Way("metadata", REFUSED, lambda n: post("/orders", order(metadata={"note": spaced(n)}))),
        Way("metadata key", REFUSED, lambda n: post("/orders", order(metadata={n: "note"}))),
        Way("return_url", REFUSED, lambda n: pay(return_url=f"https://a.example/{n}")),
        Way(
            "return_url, encoded",
            REFUSED,
            lambda n: pay(return_url=f"https://a.example/?card={spaced(n, '%20')}"),
        ),
        Way("reason", REFUSED, lambda n: refund(reason=spaced(n, "-"))),
        Way("note", REFUSED, lambda n: review(note=f"card {n}")),
        Way("gateway_reference", REFUSED, lambda n: review(gateway_reference=n)),
        # Other fields
        Way("iban", REFUSED, lambda n: account(iban=n)),
        Way("cvc", REFUSED, lambda n: save(VISA, cvc=n)),
        Way("token", REFUSED, lambda n: changed("", gateway="sandbox", details={"token": n})),
        Way("gateway", REFUSED, lambda n: changed(VISA, gateway=n)),
        Way("currency", REFUSED, lambda n: post("/orders", order(currency=n))),
        Way("country", REFUSED, lambda n: changed(VISA, country=n)),
        Way("amount", REFUSED, lambda n: refund(amount=int(n))),
        Way("status", REFUSED, lambda n: post(f"{orders}/status", {"status": n}, method="PUT")),
        Way("capture_method", REFUSED, lambda n: pay(capture_method=n)),
        Way("no such field", REFUSED, lambda n: pay(**{n: n})),
        Way("returned", {200}, lambda n: confirm(redirectResult=n)),
        Way("returned name", {200}, lambda n: confirm(**{n: "x"})),
        # Queries
        Way("limit", REFUSED, lambda n: get(f"/orders?limit={n}")),
        Way("cursor", {200}, lambda n: get(f"/orders?cursor={n}")),
        Way("created_after", REFUSED, lambda n: get(f"/orders?created_after={n}")),
        Way("user_id, asked for", {200}, lambda n: get(f"/orders?user_id={n}") | as_manager),
        Way("order_id", {200}, lambda n: get(f"/sandbox/charges?order_id={n}") | as_manager),
        Way("no such query", REFUSED, lambda n: get(f"/payments?card={spaced(n, '%20')}")),
        # Paths
        Way("order", {404}, lambda n: get(f"/orders/{n}")),
        Way("method", {404}, lambda n: get(f"/payment-methods/{n}", method="DELETE")),
        Way("payment", {404}, lambda n: post(f"/payments/{n}/capture", {}) | as_manager),
        Way("action", {404}, lambda n: get(f"/sandbox/actions/{spaced(n, '-')}")),
        Way("error", {404}, lambda n: get(f"/errors/{spaced(n, '_')}")),
        Way("no such path", {404}, lambda n: get(f"/cards/{spaced(n, '.')}")),
        Way("gateway of a webhook", {404}, lambda n: post(f"/webhooks/{n}", {})),
        # Headers
        Way("Idempotency-Key", REFUSED, lambda n: with_headers(Idempotency_Key=n)),
        Way("X-Request-Id", {201}, lambda n: with_headers(X_Request_Id=n)),
        Way("X-Request-Id, dotted", {201}, lambda n: with_headers(X_Request_Id=spaced(n, "."))),
        Way("traceparent", {201}, lambda n: with_headers(traceparent=f"00-{n}{n}-{n}-01")),
        Way("tracestate", {201}, lambda n: with_headers(tracestate=n, baggage=n)),
        Way("Sandbox-Fault", REFUSED, lambda n: pay() | {"headers": {"Sandbox-Fault": n}}),
        Way("User-Agent", {201}, lambda n: with_headers(User_Agent=n, Referer=n, Cookie=n)),
        Way("Content-Type", {415}, lambda n: with_headers(Content_Type=f"text/{n}")),
        Way("password", {401}, lambda n: get("/orders", auth=f"Basic {n}")),
        # Claims
        Way("scope", {200}, lambda n: get("/orders", auth=caller.bearer(scope=f"a {n}"))),
        Way("jti", {200}, lambda n: get("/orders", auth=caller.bearer(jti=n, name=n))),
        Way("iss", {201}, lambda n: post("/orders", order(), auth=caller.bearer(iss=n, aud=n))),
        Way("kid", {200}, lambda n: get("/orders", auth=caller.bearer({"kid": n}))),
        Way("typ", {401}, lambda n: get("/orders", auth=caller.bearer({"typ": n}))),
        Way("exp", {401}, lambda n: get("/orders", auth=caller.bearer(exp=int(n)))),
        # Webhooks
        Way("webhook without a signature", REFUSED, lambda n: post("/webhooks/sandbox", {n: n})),
        Way("webhook", {200}, lambda n: caller.webhook(id=f"evt_{n}", reference=f"ch_{n}")),
        Way("webhook's member", {200}, lambda n: caller.webhook(card=n)),
    ]


def left_to_the_store(caller: Caller) -> list[Way]:
    """Identifiers of the store's own."""
    as_manager = {"auth": caller.manager}
    return [
        Way("product_id", {201}, lambda n: post("/orders", order(product_id=n))),
        Way("user_id", {201}, lambda n: post("/orders", order(user_id=n)) | as_manager),
        Way("sub", {201}, lambda n: post("/orders", order(), auth=caller.bearer(sub=n))),
    ]


def test_a_number_sent_to_any_place_is_found_in_none(witness: Witness) -> None:
    caller = Caller(witness)
    method = witness.ask(save(VISA)).json()["id"]
    placed = witness.ask(post("/orders", order(payment_method_id=method))).json()["id"]
    paid = witness.ask(post(f"/orders/{placed}/payments", {}))
    assert paid.status_code == 201, paid.text
    ways = places(caller, method, placed, paid.json()["id"])
    assert len(ways) >= 39
    for way in ways:
        witness.go(way)
    sent, witness.sent = witness.sent, {}
    for way in left_to_the_store(caller):
        witness.go(way)
    left, witness.sent = witness.sent, sent

    tables = tables_of(witness.service.data_dir)
    assert leaks_in(tables, left) == set(left.values()), "else the search finds nothing"
    assert witness.service.text.count("http.request") >= len(ways), "else nothing is logged"
    assert leaks_of(witness) == {}
