"""A card number has no place where people type: refused by the field's name, never repeated."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

import schemas
from gateways.base import MethodRequest
from observability.card_numbers import holds_card_number
from observability.redaction import HIDDEN, redact, redact_value
from tests.support.clients import Api
from tests.support.factories import card, order, place_order, save_card
from tests.support.shop import problem

NUMBER = "4929123412341232"
WRITTEN = [
    NUMBER,
    "4929 1234 1234 1232",
    "4929-1234-1234-1232",
    "4929  1234 - 1234 1232",
    "4929\u00a01234\u00a01234\u00a01232",
    "4929\u20131234\u20131234\u20131232",
    "4929\u200b1234\u00ad1234\ufeff1232",  # as copied from a page: nobody sees what is between
    "4929\uff0d1234\ufe631234\u20431232",
    f"my card is {NUMBER}, thanks",
    f"card{NUMBER}x",
    f"2 {NUMBER} 12 30",  # other numbers beside it
    " ".join(NUMBER),
]
# One of each brand and length, as their owners publish them for tests.
BRANDS = [
    "5555555555554444",
    "2223003122003222",
    "378282246310005",
    "30569309025904",
    "36227206271667",
    "6011111111111117",
    "3530111333300000",
    "6200000000000005",
    "6759649826438453",
    "2200123456789019",
]
NO_CARD_NUMBERS = [
    "4929123412341231",  # a typing error: the check digit is wrong
    "49291234123412320",  # a digit more than Visa has
    "1234567812345670",  # the check digit is right, and no brand begins like this
    "492912341232",  # twelve digits
    "4929.1234.1234.1232",  # an amount, a version: people do not type cards like this
    "4929,1234,1234,1232",
    "４９２９１２３４１２３４１２３１",
    "+49 30 901820, 10-18 h",
    "2026-11-25 17:15:30",
    "9400 1000 0000 0000 0000 00",
    "12345678901234567890123456789012345678901234567890",
    "",
]


@pytest.mark.parametrize("text", [*WRITTEN, *BRANDS])
def test_a_card_number_is_found_however_it_is_typed(text: str) -> None:
    assert holds_card_number(text)


@pytest.mark.parametrize("text", NO_CARD_NUMBERS)
def test_what_is_no_card_number_is_left_alone(text: str) -> None:
    assert not holds_card_number(text)


def test_a_random_identifier_is_no_card_number() -> None:
    """One in seventy thousand random UUIDs has the digits of one."""
    assert not holds_card_number("49291234-1234-1232-ab12-0123456789ab")
    assert not holds_card_number("ab4929123412341232cdab4929123412")
    assert not any(holds_card_number(str(uuid.uuid4())) for _ in range(2000))


# The fields -------------------------------------------------------------------------------------


def paypal(text: str) -> dict[str, Any]:
    return {"payment_type": "paypal", "details": {"email": f"{text}@example.com"}}


def account(text: str) -> dict[str, Any]:
    details = {"iban": "DE89 3704 0044 0532 0130 00", "account_holder": text}
    return {"payment_type": "bank_account", "details": details}


def by(name: str) -> dict[str, Any]:
    details = card()["details"] | {"cardholder_name": name}
    return card() | {"details": details}


REVIEW = {"resolution": "accepted", "note": "looked at it"}
METHOD, PAYMENT, ORDER = "/payment-methods/1", "/payments/1", "/orders/1"
PLACES: list[tuple[str, str, str, Callable[[str], dict[str, Any]]]] = [
    ("POST", "/payment-methods", "details.cardholder_name", by),
    ("PATCH", METHOD, "details.cardholder_name", lambda n: {"details": {"cardholder_name": n}}),
    ("POST", "/payment-methods", "details.account_holder", account),
    ("POST", "/payment-methods", "details.email", paypal),
    ("POST", "/orders", "metadata.note", lambda n: order(metadata={"note": n})),
    ("POST", "/orders", "metadata", lambda n: order(metadata={n: "note"})),
    ("POST", f"{ORDER}/payments", "return_url", lambda n: {"return_url": f"https://a.example/{n}"}),
    ("POST", f"{PAYMENT}/refunds", "reason", lambda n: {"reason": n}),
    ("POST", f"{PAYMENT}/review", "note", lambda n: REVIEW | {"note": n}),
    ("POST", f"{PAYMENT}/review", "gateway_reference", lambda n: REVIEW | {"gateway_reference": n}),
]


def refused(answer: httpx.Response, field: str, number: str = NUMBER) -> None:
    assert problem(answer) == (400, "card_number_not_allowed")
    (error,) = answer.json()["errors"]
    assert (error["field"], error["code"]) == (field, "card_number_not_allowed")
    digits = "".join(sign for sign in f"{answer.text} {answer.headers}" if sign.isdigit())
    assert number[:12] not in digits
    assert number[-12:] not in digits


@pytest.mark.parametrize(("method", "path", "field", "body"), PLACES)
@pytest.mark.parametrize("text", [NUMBER, "4929-1234-1234-1232"])
def test_a_text_that_holds_a_card_number_is_refused_by_its_fields_name(
    alice: httpx.Client,
    method: str,
    path: str,
    field: str,
    body: Callable[[str], dict[str, Any]],
    text: str,
) -> None:
    refused(alice.request(method, path, json=body(text)), field)


@pytest.mark.parametrize(
    "address",
    [
        "https://shop.example/thanks?card=4929%201234%201234%201232",
        "https://shop.example/thanks?card=4929+1234+1234+1232",
        "https://shop.example/thanks#4929-1234-1234-1232",
        f"https://{NUMBER}.example/",
        f"https://{NUMBER}@shop.example/",
        NUMBER,
    ],
)
def test_a_return_url_hides_no_card_number(alice: httpx.Client, address: str) -> None:
    refused(alice.post(f"{ORDER}/payments", json={"return_url": address}), "return_url")


def test_all_that_is_wrong_is_named_beside_the_card_number(alice: httpx.Client) -> None:
    answer = alice.post("/orders", json=order(quantity=0, metadata={"a": NUMBER, "b": "c"}))
    assert problem(answer) == (400, "card_number_not_allowed")
    assert {error["field"] for error in answer.json()["errors"]} == {"quantity", "metadata.a"}


def test_the_identifiers_of_the_store_are_left_alone(api: Api, manager: httpx.Client) -> None:
    placed = place_order(manager, product_id=NUMBER, user_id=NUMBER)
    assert (placed["product_id"], placed["user_id"]) == (NUMBER, NUMBER)
    assert api(NUMBER).get(f"/orders/{placed['id']}").status_code == 200


def test_a_card_number_where_it_belongs_is_taken(alice: httpx.Client) -> None:
    assert save_card(alice, NUMBER)["details"]["last4"] == "1232"


# The headers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [NUMBER, "4929-1234-1234-1232", f"order {NUMBER}"])
def test_an_idempotency_key_that_is_a_card_number_is_refused_and_not_kept(
    alice: httpx.Client, engine: sa.Engine, key: str
) -> None:
    answer = alice.post("/orders", json=order(), headers={"Idempotency-Key": key})
    refused(answer, "Idempotency-Key")
    with engine.connect() as connection:
        query = sa.text("SELECT count(*) FROM idempotency_keys WHERE key = :key")
        assert connection.scalar(query, {"key": key}) == 0


@pytest.mark.parametrize(
    "given",
    [NUMBER, "4929-1234-1234-1232", "4929.1234.1234.1232", "4929_1234_1234_1232", f"r{NUMBER}x"],
)
def test_a_request_id_that_holds_a_card_number_is_replaced(alice: httpx.Client, given: str) -> None:
    headers = {"X-Request-Id": given}
    for answer in (alice.get("/orders", headers=headers), alice.get("/nowhere", headers=headers)):
        made = answer.headers["X-Request-Id"]
        assert len(made) == 32
        assert given not in f"{answer.text} {answer.headers}"


@pytest.mark.parametrize("given", ["a", "4929123412341231", "2026-11-25.17_15", "x" * 128])
def test_any_other_request_id_is_kept(alice: httpx.Client, given: str) -> None:
    assert alice.get("/orders", headers={"X-Request-Id": given}).headers["X-Request-Id"] == given


# The net ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *WRITTEN,
        "4929.1234.1234.1232",
        "4929_1234_1234_1232",
        "4929/1234/1234/1232",
        "4929%201234%201234%201232",
        "4929%2D1234%2d1234-1232",
        "4929%C2%A01234%c2%a01234%C2%A01232",
        "4929\\u00a01234\\xa01234\\u00a01232",
        "4929\\u200b1234\\xad1234\\ufeff1232",
        "4929%E2%80%8B1234%c2%ad1234%EF%BB%BF1232",
        "4929+1234+1234+1232",
        f"card{NUMBER}",
        f"{NUMBER}exp1230",
        f"0000{NUMBER}1230",
        f"payment 7 of {NUMBER} 12 30",
    ],
)
def test_the_net_needs_no_word_boundaries(text: str) -> None:
    hidden = redact(f"before {text} after")
    assert HIDDEN in hidden
    assert "1234" not in hidden


@pytest.mark.parametrize(
    "value",
    [
        int(NUMBER),
        {NUMBER: 1},
        {"a": [{"b": (NUMBER,)}]},
        {NUMBER},
        NUMBER.encode(),
        ValueError(NUMBER),
        httpx.URL(f"https://a.example/{NUMBER}"),
    ],
    ids=repr,
)
def test_the_net_sees_what_is_no_text_too(value: object) -> None:
    assert NUMBER not in repr(redact_value("anything", value))


@pytest.mark.parametrize("value", [0, 7, 12.5, True, None, "192.168.100.200", "17:15:30.123456"])
def test_the_net_lets_what_is_harmless_pass(value: object) -> None:
    assert redact_value("anything", value) == value


# What is shown of objects -----------------------------------------------------------------------


def test_no_repr_shows_a_number_or_a_code() -> None:
    secret = {"card_number": NUMBER, "cvc": "0917"}
    saved = schemas.CardCreate.model_validate(
        card() | {"details": card()["details"] | secret}, strict=True
    )
    wallet = schemas.PaypalCreate.model_validate(paypal("alice"))
    bank = schemas.BankAccountCreate.model_validate(account("Alice"))
    token = schemas.ByToken(token="pm_secret")
    asked = MethodRequest("card", "alice", {}, card_number=NUMBER, cvc="0917")
    for shown in (repr(saved), str(saved), repr(saved.details), str(saved.details), repr(asked)):
        assert NUMBER not in shown
        assert "0917" not in shown
    assert "alice@" not in f"{wallet!r} {wallet}"
    assert "3704" not in f"{bank!r} {bank}"
    assert "pm_secret" not in f"{token!r} {token}"
    assert secrets.compare_digest(saved.details.card_number, NUMBER)  # type: ignore[union-attr]
