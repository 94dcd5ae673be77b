"""Integers, booleans, texts and objects are taken as what they are only."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.support.clients import (
    JSON,
    fields,
)
from tests.support.factories import card, order, place_order, save_card

# --- Types ------------------------------------------------------------------------------------

INTEGER_FIELDS = {
    "quantity": ("/orders", '{"product_id": "a", "total_amount": 1, "quantity": %s}'),
    "total_amount": ("/orders", '{"product_id": "a", "quantity": 1, "total_amount": %s}'),
    "payment_method_id": (
        "/orders",
        '{"product_id": "a", "quantity": 1, "total_amount": 1, "payment_method_id": %s}',
    ),
    "details.exp_month": (
        "/payment-methods",
        '{"payment_type": "card", "details": {"card_number": "4242424242424242",'
        ' "exp_year": 2040, "exp_month": %s}}',
    ),
    "details.exp_year": (
        "/payment-methods",
        '{"payment_type": "card", "details": {"card_number": "4242424242424242",'
        ' "exp_month": 12, "exp_year": %s}}',
    ),
}


NO_INTEGERS = [
    *("true", "false", '"1"', '""', "1.0", "1e0", "2040.0", "1.5", "10e-1", "-0.0", "1e400"),
    *("[1]", "{}", '"１"'),
]


@pytest.mark.parametrize("value", NO_INTEGERS)
@pytest.mark.parametrize("field", INTEGER_FIELDS)
def test_only_an_integer_is_an_integer(alice: httpx.Client, field: str, value: str) -> None:
    path, body = INTEGER_FIELDS[field]
    assert fields(alice.post(path, content=body % value, headers=JSON)) == {field}


@pytest.mark.parametrize("value", NO_INTEGERS)
def test_only_an_integer_names_the_method_to_pay_with(alice: httpx.Client, value: str) -> None:
    path = f"/orders/{place_order(alice)['id']}/payments"
    body = f'{{"payment_method_id": {value}}}'
    assert fields(alice.post(path, content=body, headers=JSON)) == {"payment_method_id"}


@pytest.mark.parametrize("value", ["true", '"12"', "12.0", "12e0", "1e400", "[]"])
@pytest.mark.parametrize("name", ["exp_month", "exp_year"])
def test_only_an_integer_changes_an_expiry(alice: httpx.Client, name: str, value: str) -> None:
    method = save_card(alice)
    body = f'{{"details": {{"{name}": {value}}}}}'
    answer = alice.patch(f"/payment-methods/{method['id']}", content=body, headers=JSON)
    assert fields(answer) == {f"details.{name}"}
    assert alice.get(f"/payment-methods/{method['id']}").json() == method


@pytest.mark.parametrize("value", ["null", "9" * 4000, "-1", "0", "-0", str(2**63), str(-(2**63))])
@pytest.mark.parametrize("field", ["quantity", "total_amount", "details.exp_month"])
def test_an_integer_that_makes_no_sense_is_400(alice: httpx.Client, field: str, value: str) -> None:
    path, body = INTEGER_FIELDS[field]
    assert fields(alice.post(path, content=body % value, headers=JSON)) == {field}


@pytest.mark.parametrize("value", [1, 0, "true", "false", "", "yes", [], {}, 1.0])
def test_only_true_and_false_are_booleans(alice: httpx.Client, value: Any) -> None:
    assert fields(alice.post("/payment-methods", json=card(is_default=value))) == {"is_default"}
    method = save_card(alice)
    answer = alice.patch(f"/payment-methods/{method['id']}", json={"is_default": value})
    assert fields(answer) == {"is_default"}


@pytest.mark.parametrize("value", [1, 1.5, True, [], ["a"], {}, {"a": "b"}])
@pytest.mark.parametrize("name", ["product_id", "currency", "user_id"])
def test_only_a_string_is_text(alice: httpx.Client, name: str, value: Any) -> None:
    assert fields(alice.post("/orders", json=order(**{name: value}))) == {name}


@pytest.mark.parametrize("value", [1, True, "text", [], ["a", "b"], [["a", "b"]]])
def test_only_an_object_is_metadata(alice: httpx.Client, value: Any) -> None:
    assert fields(alice.post("/orders", json=order(metadata=value))) == {"metadata"}


@pytest.mark.parametrize("value", [None, 1, 1.5, True, [], {}, {"a": "b"}, ["text"]])
def test_metadata_values_are_strings(alice: httpx.Client, value: Any) -> None:
    assert fields(alice.post("/orders", json=order(metadata={"a": value})))


@pytest.mark.parametrize("value", [1, True, "text", [], None])
def test_details_are_an_object(alice: httpx.Client, value: Any) -> None:
    body = {"payment_type": "card", "details": value}
    assert fields(alice.post("/payment-methods", json=body)) == {"details"}


@pytest.mark.parametrize("name", ["product_id", "quantity", "total_amount"])
@pytest.mark.parametrize("how", ["absent", "null"])
def test_an_order_needs_its_fields(alice: httpx.Client, name: str, how: str) -> None:
    body = {key: value for key, value in order().items() if key != name}
    if how == "null":
        body[name] = None
    assert fields(alice.post("/orders", json=body)) == {name}


def test_every_mistake_is_named_at_once(alice: httpx.Client) -> None:
    body = {"product_id": "", "quantity": 0, "total_amount": True, "currency": "usd", "x": 1}
    answer = alice.post("/orders", json=body)
    assert fields(answer) == {"product_id", "quantity", "total_amount", "currency", "x"}
