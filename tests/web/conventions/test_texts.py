"""Texts of any alphabet, and what cannot be stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.support.clients import (
    JSON,
    code,
    fields,
)
from tests.support.factories import card, order, place_order, save_card

# --- Text -------------------------------------------------------------------------------------

ALPHABETS = {
    "ascii": "a",
    "punctuation": "'\"\\;--<>&%$#@!`|{}[]()^~?*+=/,.:_",
    "combining": "e\u0301",
    "cyrillic": "Ж",
    "arabic": "عربي",
    "right_to_left_mark": "\u200fא",
    "devanagari": "नि",
    "chinese": "漢",
    "emoji": "😀",
    "emoji_family": "👩‍👩‍👧‍👦",
    "outside_the_bmp": "𝒜",
    "last_character": "\U0010fffd",
    "no_break_space": "a\u00a0b",
    "full_width_digits": "１",
    "sql": "'); DROP TABLE orders; --",
    "format": "%s %(a)s {0} ${jndi:x}",
    "html": "<script>alert(1)</script>",
}


def text(alphabet: str, length: int) -> str:
    return (ALPHABETS[alphabet] * length)[:length]


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_a_product_id_is_any_text_of_255_characters(alice: httpx.Client, alphabet: str) -> None:
    for length in (1, 255):
        product = text(alphabet, length)
        placed = place_order(alice, product_id=product)
        assert placed["product_id"] == product
        assert alice.get(f"/orders/{placed['id']}").json()["product_id"] == product
    too_long = order(product_id=text(alphabet, 256))
    assert fields(alice.post("/orders", json=too_long)) == {"product_id"}


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_a_name_is_any_text_of_255_characters(alice: httpx.Client, alphabet: str) -> None:
    holder = text(alphabet, 255)
    method = save_card(alice)
    path = f"/payment-methods/{method['id']}"
    answer = alice.patch(path, json={"details": {"cardholder_name": holder}})
    assert answer.status_code == 200
    assert alice.get(path).json()["details"]["cardholder_name"] == holder
    answer = alice.patch(path, json={"details": {"cardholder_name": text(alphabet, 256)}})
    assert fields(answer) == {"details.cardholder_name"}


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_metadata_is_any_text_within_its_lengths(alice: httpx.Client, alphabet: str) -> None:
    pair = {text(alphabet, 40): text(alphabet, 500)}
    assert place_order(alice, metadata=pair)["metadata"] == pair
    for key, value in ((text(alphabet, 41), "a"), ("a", text(alphabet, 501))):
        assert fields(alice.post("/orders", json=order(metadata={key: value})))


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_a_user_id_is_any_text_of_255_characters(
    manager: httpx.Client, user: str, alphabet: str
) -> None:
    name = user + text(alphabet, 255 - len(user))
    placed = place_order(manager, user_id=name)
    assert placed["user_id"] == name
    found = manager.get("/orders", params={"user_id": name}).json()
    assert [one["id"] for one in found] == [placed["id"]]
    too_long = user + text(alphabet, 256 - len(user))
    assert fields(manager.post("/orders", json=order(user_id=too_long))) == {"user_id"}


def test_an_empty_name_is_400(manager: httpx.Client) -> None:
    assert fields(manager.post("/orders", json=order(product_id=""))) == {"product_id"}
    assert fields(manager.post("/orders", json=order(user_id=""))) == {"user_id"}


def test_metadata_has_at_most_20_pairs(alice: httpx.Client) -> None:
    pairs = {f"key-{number}": str(number) for number in range(20)}
    assert place_order(alice, metadata=pairs)["metadata"] == pairs
    assert fields(alice.post("/orders", json=order(metadata=pairs | {"one": "more"})))


def test_metadata_may_be_empty_and_so_may_its_values(alice: httpx.Client) -> None:
    assert place_order(alice)["metadata"] == {}
    assert place_order(alice, metadata={})["metadata"] == {}
    assert place_order(alice, metadata={"a": ""})["metadata"] == {"a": ""}


def test_metadata_keys_keep_their_case_and_their_form(alice: httpx.Client) -> None:
    pairs = {"a": "1", "A": "2", "é": "3", "e\u0301": "4", "ａ": "5"}
    assert place_order(alice, metadata=pairs)["metadata"] == pairs


TEXTS: dict[str, Callable[[str], tuple[str, dict[str, Any]]]] = {
    "product_id": lambda bad: ("/orders", order(product_id=bad)),
    "user_id": lambda bad: ("/orders", order(user_id=bad)),
    "currency": lambda bad: ("/orders", order(currency=bad)),
    "metadata_key": lambda bad: ("/orders", order(metadata={bad: "a"})),
    "metadata_value": lambda bad: ("/orders", order(metadata={"a": bad})),
    "payment_type": lambda bad: ("/payment-methods", card(payment_type=bad)),
    "gateway": lambda bad: ("/payment-methods", card(gateway=bad)),
    "card_number": lambda bad: ("/payment-methods", card(bad)),
    "cvc": lambda bad: ("/payment-methods", card(details=card()["details"] | {"cvc": bad})),
    "cardholder_name": lambda bad: (
        "/payment-methods",
        card(details=card()["details"] | {"cardholder_name": bad}),
    ),
    "token": lambda bad: ("/payment-methods", card(gateway="sandbox", details={"token": bad})),
    "email": lambda bad: (
        "/payment-methods",
        {"payment_type": "paypal", "details": {"email": bad}},
    ),
    "paypal_token": lambda bad: (
        "/payment-methods",
        {"payment_type": "paypal", "gateway": "sandbox", "details": {"token": bad}},
    ),
    "iban": lambda bad: (
        "/payment-methods",
        {"payment_type": "bank_account", "details": {"iban": bad, "account_holder": "A"}},
    ),
    "account_holder": lambda bad: (
        "/payment-methods",
        {
            "payment_type": "bank_account",
            "details": {"iban": "DE89370400440532013000", "account_holder": bad},
        },
    ),
}


UNSTORABLE = {
    "nul": "a\0b",
    "high_surrogate": "a\ud800",
    "low_surrogate": "\udfffa",
}


@pytest.mark.parametrize("bad", UNSTORABLE.values(), ids=UNSTORABLE.keys())
@pytest.mark.parametrize("make", TEXTS.values(), ids=TEXTS.keys())
def test_text_holds_neither_nul_nor_half_of_a_pair(
    alice: httpx.Client, make: Callable[[str], tuple[str, dict[str, Any]]], bad: str
) -> None:
    path, body = make(bad)
    answer = alice.post(path, content=json.dumps(body), headers=JSON)
    assert code(answer) == (400, "invalid_request")


def test_an_escaped_pair_is_one_character(alice: httpx.Client) -> None:
    body = r'{"product_id": "\ud83d\ude00", "quantity": 1, "total_amount": 1}'
    answer = alice.post("/orders", content=body, headers=JSON)
    assert answer.json()["product_id"] == "😀"


@pytest.mark.parametrize("control", ["\x01", "\t", "\n", "\x1b[31m", "\x7f", "\x85", "\ufffe"])
def test_a_control_character_never_breaks_anything(alice: httpx.Client, control: str) -> None:
    answer = alice.post("/orders", json=order(product_id=f"a{control}b"))
    assert answer.status_code in (201, 400)
    if answer.status_code == 201:
        assert alice.get(answer.headers["location"]).json()["product_id"] == f"a{control}b"
