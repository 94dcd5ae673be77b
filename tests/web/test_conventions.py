"""What holds for every request and every answer: bodies, texts, ids, queries, pages, headers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import pytest

import main
from config import Settings
from tests.support.clients import (
    ABSENT,
    JSON,
    REQUEST_ID,
    Api,
    but_request_id,
    code,
    every,
    fields,
    ids,
    moment,
    pages,
    watched,
)
from tests.support.factories import card, order, pay, place_order, save_card

RFC_3339_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")


@pytest.fixture
def api(base_url: str, settings: Settings) -> Iterator[Api]:
    yield from watched(base_url, settings)


# --- The operations that take a body ----------------------------------------------------------


@dataclass(frozen=True)
class Write:
    """A request with a JSON body that is right as it stands."""

    method: str
    path: str
    body: dict[str, Any]
    optional: bool = False

    def send(self, client: httpx.Client, **options: Any) -> httpx.Response:
        return client.request(self.method, self.path, **options)

    def send_text(self, client: httpx.Client, body: str | bytes) -> httpx.Response:
        return self.send(client, content=body, headers=JSON)


def _save(client: httpx.Client) -> Write:
    return Write("POST", "/payment-methods", card())


def _change(client: httpx.Client) -> Write:
    method = save_card(client)
    return Write("PATCH", f"/payment-methods/{method['id']}", {"details": {"exp_year": 2041}})


def _place(client: httpx.Client) -> Write:
    return Write("POST", "/orders", order(metadata={"a": "b"}))


def _move(client: httpx.Client) -> Write:
    return Write("PUT", f"/orders/{place_order(client)['id']}/status", {"status": "canceled"})


def _pay(client: httpx.Client) -> Write:
    method = save_card(client)
    path = f"/orders/{place_order(client)['id']}/payments"
    return Write("POST", path, {"payment_method_id": method["id"]}, optional=True)


WRITES = {"save": _save, "change": _change, "place": _place, "move": _move, "pay": _pay}


@pytest.fixture(params=WRITES)
def write(request: pytest.FixtureRequest, alice: httpx.Client) -> Write:
    make: Callable[[httpx.Client], Write] = WRITES[request.param]
    return make(alice)


def test_the_writes_of_these_tests_are_right(alice: httpx.Client, write: Write) -> None:
    assert write.send(alice, json=write.body).status_code in (200, 201)


@pytest.mark.parametrize(
    "media_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        "Application/JSON",
        'application/json; charset="utf-8"',
    ],
)
def test_json_is_taken_however_its_type_is_written(
    alice: httpx.Client, write: Write, media_type: str
) -> None:
    answer = write.send(alice, content=json.dumps(write.body), headers={"Content-Type": media_type})
    assert answer.status_code in (200, 201)


@pytest.mark.parametrize("media_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_is_not_declared_to_be_json_is_415(
    alice: httpx.Client, write: Write, media_type: str | None
) -> None:
    headers = {} if media_type is None else {"Content-Type": media_type}
    answer = write.send(alice, content=json.dumps(write.body), headers=headers)
    assert code(answer) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "media_type",
    [
        *("", ";", "text/json", "multipart/form-data; boundary=x", "application/problem+json"),
        *("application/vnd.api+json", "application/jsonx", "application/json, text/plain"),
        *("application/json/", "json", "*/*", "application", "application/ json"),
    ],
)
def test_what_only_looks_like_json_is_415(alice: httpx.Client, media_type: str) -> None:
    answer = alice.post("/orders", content=b"{}", headers={"Content-Type": media_type})
    assert code(answer) == (415, "unsupported_media_type")


@pytest.mark.parametrize("second", ["application/json", "text/plain"])
def test_a_content_type_sent_twice_is_415(alice: httpx.Client, write: Write, second: str) -> None:
    headers = [("Content-Type", "application/json"), ("Content-Type", second)]
    answer = write.send(alice, content=json.dumps(write.body), headers=headers)
    assert code(answer) == (415, "unsupported_media_type")


@pytest.mark.parametrize("headers", [{}, JSON, {"Content-Type": "text/plain"}])
def test_no_body_is_a_missing_one_whatever_its_type(
    alice: httpx.Client, write: Write, headers: dict[str, str]
) -> None:
    answer = write.send(alice, headers=headers)
    if write.optional:
        assert answer.status_code == 201
    else:
        assert code(answer) == (400, "invalid_request")


NOT_JSON = {
    "half_an_object": b'{"product_id": ',
    "single_quotes": b"{'a': 1}",
    "bare_word": b"nonsense",
    "comment": b"{} // that is all",
    "trailing_comma": b'{"quantity": 1,}',
    "two_values": b"{} {}",
    "white_space": b" \n\t ",
    "byte_order_mark": b"\xef\xbb\xbf{}",
    "utf_16": '{"quantity": 1}'.encode("utf-16"),
    "utf_16_le": '{"quantity": 1}'.encode("utf-16-le"),
    "utf_32": '{"quantity": 1}'.encode("utf-32"),
    "latin_1": '{"product_id": "é"}'.encode("latin-1"),
    "overlong": b'{"product_id": "\xc0\x80"}',
    "raw_surrogate": b'{"product_id": "\xed\xa0\x80"}',
    "truncated_utf_8": b'{"product_id": "\xf0\x9f\x98"}',
    "raw_nul": b'{"product_id": "\x00"}',
    "only_nul": b"\x00",
    "raw_line_feed": b'{"product_id": "a\nb"}',
    "bad_escape": b'{"product_id": "\\x41"}',
    "half_an_escape": b'{"product_id": "\\u12"}',
    "leading_zero": b'{"quantity": 01}',
    "plus": b'{"quantity": +1}',
    "hexadecimal": b'{"quantity": 0x1}',
    "undefined": b'{"quantity": undefined}',
    "nan": b'{"quantity": NaN}',
    "infinity": b'{"quantity": Infinity}',
    "minus_infinity": b'{"quantity": -Infinity}',
    "nested_nan": b'{"metadata": {"a": [NaN]}}',
    "only_nan": b"NaN",
    "deep_arrays": b"[" * 60_000,
    "deep_closed_arrays": b"[" * 30_000 + b"]" * 30_000,
    "deep_objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "digits": b'{"quantity": ' + b"9" * 5000 + b"}",
    "negative_digits": b'{"quantity": -' + b"9" * 60_000 + b"}",
    "digits_nobody_reads": b'{"surprise": [' + b"9" * 5000 + b"]}",
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_a_body_that_is_not_json_is_400(alice: httpx.Client, body: bytes) -> None:
    answer = alice.post("/orders", content=body, headers=JSON)
    assert code(answer) == (400, "invalid_request")


@pytest.mark.parametrize(
    "kind", ["half_an_object", "white_space", "utf_16", "only_nul", "nan", "deep_arrays", "digits"]
)
def test_every_write_wants_json(alice: httpx.Client, write: Write, kind: str) -> None:
    assert code(write.send_text(alice, NOT_JSON[kind])) == (400, "invalid_request")


@pytest.mark.parametrize(
    "body", ["[]", "[{}]", "1", "true", '"text"', "1e400", "[" * 900 + "]" * 900]
)
def test_a_body_that_is_no_object_is_400(alice: httpx.Client, write: Write, body: str) -> None:
    assert code(write.send_text(alice, body)) == (400, "invalid_request")


def test_null_is_no_object_either(alice: httpx.Client, write: Write) -> None:
    answer = write.send_text(alice, "null")
    assert code(answer) == (400, "invalid_request") or (write.optional and answer.is_success)


@pytest.mark.parametrize("surprise", ["null", "9" * 4000, "[" * 900 + "]" * 900, r'"\ud800"'])
def test_an_unknown_field_is_named(alice: httpx.Client, write: Write, surprise: str) -> None:
    body = json.dumps(write.body)[:-1] + f', "surprise": {surprise}}}'
    answer = write.send_text(alice, body)
    # A lone surrogate may be refused for itself.
    assert fields(answer) == {"surprise"} or (
        surprise == r'"\ud800"' and code(answer) == (400, "invalid_request")
    )


@pytest.mark.parametrize(
    "name",
    [
        *("Status", "user-id", "id", "created_at", "status ", " ", "", "__class__", "$ref"),
        *("model_config", "a" * 5000, "é", "😀", "‮", "<token>", "<details>", "constructor"),
        *("\ud800", "\udfff\ud800", "\0", "details.card_number", "self", "__proto__"),
    ],
    ids=ascii,
)
def test_no_unknown_name_is_accepted(alice: httpx.Client, name: str) -> None:
    for write in (_place(alice), _save(alice)):
        answer = write.send_text(alice, json.dumps(write.body | {name: 1}))
        assert code(answer) == (400, "invalid_request")


def repeated(body: dict[str, Any], same: bool) -> str:
    """The JSON of a body that names its first field twice."""
    name, value = next(iter(body.items()))
    again = json.dumps(value) if same else "null"
    return f'{{"{name}": {again}, {json.dumps(body)[1:]}'


@pytest.mark.parametrize("same", [True, False])
def test_a_field_named_twice_is_400(alice: httpx.Client, write: Write, same: bool) -> None:
    assert fields(write.send_text(alice, repeated(write.body, same))) == {next(iter(write.body))}


def test_a_field_named_twice_is_400_when_one_is_escaped(alice: httpx.Client, write: Write) -> None:
    name = next(iter(write.body))
    escaped = f"\\u{ord(name[0]):04x}{name[1:]}"
    body = f'{{"{escaped}": 1, {json.dumps(write.body)[1:]}'
    assert fields(write.send_text(alice, body)) == {name}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/payment-methods",
            '{"payment_type": "card", "details": {"card_number": "4242424242424242",'
            ' "card_number": "4242424242424242", "exp_month": 12, "exp_year": 2040}}',
        ),
        (
            "/payment-methods",
            '{"payment_type": "card", "details": {"token": "tok_success"}, "gateway": "sandbox",'
            ' "details": {"token": "tok_success"}}',
        ),
        (
            "/orders",
            '{"product_id": "a", "quantity": 1, "total_amount": 1, "metadata": {"a": "1",'
            ' "a": "1"}}',
        ),
        (
            "/orders",
            '{"product_id": "a", "quantity": 1, "total_amount": 1, "metadata": {"4242": "1",'
            ' "\\u0034242": "1"}}',
        ),
        (
            "/orders",
            '{"product_id": "a", "quantity": 1, "total_amount": 1, "metadata": {"": "1", "": "2"}}',
        ),
        ("/orders", '{"surprise": [[{"a": 1, "a": 2}]]}'),
    ],
)
def test_a_name_is_not_repeated_at_any_depth(alice: httpx.Client, path: str, body: str) -> None:
    answer = alice.post(path, content=body, headers=JSON)
    assert code(answer) == (400, "invalid_request")
    assert len(answer.json()["errors"]) == 1


def test_a_repeated_name_among_many_is_found_at_once(alice: httpx.Client) -> None:
    # The last of 7000 names is repeated: comparing each with each takes seconds, in which the
    # service answers nobody.
    names = ",".join(f'"{number}":0' for number in range(7000))
    once = alice.post("/orders", content=f'{{{names},"x":1}}', headers=JSON)
    twice = alice.post("/orders", content=f'{{{names},"x":1,"x":1}}', headers=JSON)
    assert fields(twice) == {"x"}
    assert twice.elapsed < 2 * once.elapsed + timedelta(seconds=0.3)


# --- Size -------------------------------------------------------------------------------------

LIMIT = 64 * 1024


def padded(body: dict[str, Any], size: int) -> bytes:
    return json.dumps(body).encode().ljust(size)


def chunks(body: bytes) -> Iterator[bytes]:
    """Sent without Content-Length."""
    for start in range(0, len(body), 5000):
        yield body[start : start + 5000]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_64_kib_is_read(alice: httpx.Client, write: Write, chunked: bool) -> None:
    body = padded(write.body, LIMIT)
    answer = write.send(alice, content=chunks(body) if chunked else body, headers=JSON)
    assert answer.status_code in (200, 201)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [LIMIT + 1, LIMIT * 4])
def test_a_larger_body_is_413(alice: httpx.Client, write: Write, size: int, chunked: bool) -> None:
    body = padded(write.body, size)
    answer = write.send(alice, content=chunks(body) if chunked else body, headers=JSON)
    assert code(answer) == (413, "body_too_large")


def test_a_large_body_that_is_not_json_is_413_too(alice: httpx.Client, write: Write) -> None:
    assert code(write.send_text(alice, b"[" * (LIMIT + 1))) == (413, "body_too_large")


def test_after_a_large_body_the_client_goes_on(alice: httpx.Client) -> None:
    assert alice.post("/orders", content=b"x" * LIMIT * 2, headers=JSON).status_code == 413
    assert alice.post("/orders", json=order()).status_code == 201


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


# --- Ids --------------------------------------------------------------------------------------

ADDRESSES = [
    ("GET", "/payment-methods/{}"),
    ("PATCH", "/payment-methods/{}"),
    ("DELETE", "/payment-methods/{}"),
    ("GET", "/orders/{}"),
    ("PUT", "/orders/{}/status"),
    ("GET", "/orders/{}/events"),
    ("POST", "/orders/{}/payments"),
    ("GET", "/orders/{}/payments"),
    ("GET", "/payments/{}"),
]
BODIES: dict[str, Any] = {
    "PATCH": {"is_default": True},
    "PUT": {"status": "canceled"},
    "POST": {},
}
NO_IDS = ["0", "-1", str(2**63), "9" * 5000, "abc", "1.0", "%00", "１"]
MORE_NO_IDS = [
    *(
        "-0",
        "9" * 20,
        "%2B1",
        "%201",
        str(-(2**63)),
        "9" * 25,
        "9" * 400,
        "1e0",
        "0x1",
        "1_0",
        "1,0",
        "true",
        "null",
        "NaN",
    ),
    *("undefined", "''", "1;1", "+1", "1%20", "1%0A", "%0a1", "1%00", "%001", "%ff", "%ED%A0%80"),
    *("١", "१", "𝟏", "²", "①", "😀", "-", "*", "%25", "%2525", "%7B%7D", "%22"),
]


def ask(client: httpx.Client, method: str, path: str) -> httpx.Response:
    return client.request(method, path, json=BODIES.get(method))


@pytest.mark.parametrize(
    ("method", "path", "no_id"),
    [
        *((method, path, no_id) for method, path in ADDRESSES for no_id in NO_IDS),
        *(("GET", "/orders/{}", no_id) for no_id in MORE_NO_IDS),
    ],
    ids=lambda part: ascii(part[:24]),
)
def test_an_id_that_no_row_can_have_is_not_found(
    manager: httpx.Client, method: str, path: str, no_id: str
) -> None:
    answer = ask(manager, method, path.format(no_id))
    assert but_request_id(answer) == but_request_id(ask(manager, method, path.format(ABSENT)))
    assert code(answer) == (404, "not_found")


@pytest.mark.parametrize(
    "write_id",
    [
        lambda number: f"{number}.0",
        lambda number: f"{number}e0",
        lambda number: f"+{number}",
        lambda number: f"%20{number}",
        lambda number: f"{number}%20",
        lambda number: f"{number}%0A",
        lambda number: f"{number}%00",
        lambda number: "".join(chr(ord(digit) + 0xFEE0) for digit in str(number)),
        lambda number: hex(number),
        lambda number: f"{number}_",
    ],
    ids=["fraction", "exponent", "plus", "space", "end", "line", "nul", "full_width", "hex", "_"],
)
def test_an_id_is_written_in_plain_digits(
    alice: httpx.Client, write_id: Callable[[int], str]
) -> None:
    placed = place_order(alice)
    assert alice.get(f"/orders/{placed['id']}").status_code == 200
    assert code(alice.get(f"/orders/{write_id(placed['id'])}")) == (404, "not_found")


@pytest.mark.parametrize("path", ["/orders", "/orders/{}/payments"])
@pytest.mark.parametrize("no_id", [0, -1, ABSENT, 2**63, -(2**63), 2**64, 10**30, 10**4000])
def test_a_method_in_a_body_that_no_row_can_be_is_400(
    alice: httpx.Client, path: str, no_id: int
) -> None:
    body = {"payment_method_id": no_id} | (order() if path == "/orders" else {})
    answer = alice.post(path.format(place_order(alice)["id"]), json=body)
    assert code(answer) == (400, "payment_method_not_found")


# --- Queries ----------------------------------------------------------------------------------

LISTS = ["/payment-methods", "/orders", "/payments", "/orders/{}/events", "/orders/{}/payments"]


@pytest.fixture(params=LISTS)
def listing(request: pytest.FixtureRequest, alice: httpx.Client) -> str:
    path: str = request.param
    return path.format(place_order(alice)["id"]) if "{}" in path else path


@pytest.mark.parametrize("limit", ["0", "-1", "201", "1.0", "abc", "", "%00", "9" * 30])
def test_a_limit_is_an_integer_from_1_to_200(alice: httpx.Client, listing: str, limit: str) -> None:
    assert fields(alice.get(f"{listing}?limit={limit}")) == {"limit"}


@pytest.mark.parametrize(
    "limit",
    [
        *("1e1", "%2B5", "%205", "5%20", "٥", "５", "0x5", "true", "null", "9" * 5000),
        *("-" + "9" * 30, "5,6", "%ff", "5_0", "-0", "1%00", "%5B5%5D"),
    ],
    ids=lambda limit: ascii(limit[:8]),
)
def test_a_limit_is_written_in_plain_digits(alice: httpx.Client, limit: str) -> None:
    assert fields(alice.get(f"/orders?limit={limit}")) == {"limit"}


@pytest.mark.parametrize("limit", [1, 200])
def test_a_limit_up_to_200_is_fine(alice: httpx.Client, listing: str, limit: int) -> None:
    answer = alice.get(listing, params={"limit": limit})
    assert answer.status_code == 200
    assert isinstance(answer.json(), list)


@pytest.mark.parametrize("cursor", ["abc", "", "-1", "1.5", "%00", "９", "9" * 20, "9" * 5000])
def test_a_cursor_is_one_of_ours(alice: httpx.Client, listing: str, cursor: str) -> None:
    assert fields(alice.get(f"{listing}?cursor={cursor}")) == {"cursor"}


@pytest.mark.parametrize(
    "cursor",
    [
        *("1e3", "1%00", "²", "١", "9" * 39, "9" * 41, "%2B1", "%201", "%ff", "'", "0x1", "null"),
        *("😀", "%ED%A0%80", "1%0A", "1_0"),
    ],
    ids=lambda cursor: ascii(cursor[:8]),
)
def test_a_cursor_is_written_in_plain_digits(alice: httpx.Client, cursor: str) -> None:
    assert fields(alice.get(f"/orders?cursor={cursor}")) == {"cursor"}


@pytest.mark.parametrize("name", ["user_id", "status", "cursor", "x", "%00"])
def test_no_query_breaks_a_list(alice: httpx.Client, listing: str, name: str) -> None:
    for value in ("%00", "%ff", "%ED%A0%80", ""):
        answer = alice.get(f"{listing}?{name}={value}")
        assert answer.status_code in (200, 400, 403)


@pytest.mark.parametrize("query", ["limit=1&limit=abc", "limit=1&limit=2"])
def test_a_repeated_parameter_is_read_or_refused(
    alice: httpx.Client, listing: str, query: str
) -> None:
    assert alice.get(f"{listing}?{query}").status_code in (200, 400)


@pytest.mark.parametrize("query", ["&&=&", "limit", "a=b;limit=1", "%"])
def test_an_odd_query_is_read_or_refused(alice: httpx.Client, listing: str, query: str) -> None:
    assert alice.get(f"{listing}?{query}").status_code in (200, 400)


# --- Pages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "lengths"), [(1, [1] * 12), (5, [5, 5, 2]), (6, [6, 6])])
def test_pages_hold_every_order_once_and_the_newest_first(
    alice: httpx.Client, limit: int, lengths: list[int]
) -> None:
    placed = [place_order(alice)["id"] for _ in range(12)]
    found = list(pages(alice, "/orders", limit=limit))
    assert [len(page) for page in found] == lengths
    assert [number for page in found for number in ids(page)] == placed[::-1]


@pytest.mark.parametrize(("limit", "linked"), [(11, True), (12, False), (13, False)])
def test_there_is_a_next_page_only_when_it_holds_something(
    alice: httpx.Client, limit: int, linked: bool
) -> None:
    for _ in range(12):
        place_order(alice)
    answer = alice.get("/orders", params={"limit": limit})
    assert ("next" in answer.links) is linked
    assert ("link" in answer.headers) is linked


def test_an_empty_list_is_an_empty_array(alice: httpx.Client) -> None:
    for path in ("/orders", "/payments", "/payment-methods"):
        answer = alice.get(path)
        assert answer.json() == []
        assert "link" not in answer.headers


def test_a_page_has_50_rows_by_default(alice: httpx.Client) -> None:
    placed = [place_order(alice)["id"] for _ in range(51)]
    answer = alice.get("/orders")
    assert ids(answer.json()) == placed[:0:-1]
    assert ids(alice.get(answer.links["next"]["url"]).json()) == placed[:1]
    assert ids(alice.get("/orders", params={"limit": 200}).json()) == placed[::-1]


def test_rows_that_come_while_one_reads_change_nothing(alice: httpx.Client) -> None:
    placed = [place_order(alice)["id"] for _ in range(10)]
    seen: list[int] = []
    for page in pages(alice, "/orders", limit=3):
        seen += ids(page)
        place_order(alice)
    assert seen == placed[::-1]


def test_the_link_keeps_the_filters(alice: httpx.Client, manager: httpx.Client) -> None:
    wanted = []
    for number in range(9):
        placed = place_order(alice)["id"]
        if number % 2:
            alice.put(f"/orders/{placed}/status", json={"status": "canceled"})
            wanted.append(placed)
    assert ids(every(alice, "/orders", limit=1, status="canceled")) == wanted[::-1]
    user = alice.get("/orders").json()[0]["user_id"]
    rows = every(manager, "/orders", limit=2, status="canceled", user_id=user)
    assert ids(rows) == wanted[::-1]


@pytest.mark.parametrize("name", ["ü & = ? # % + ; / \\ \" ' < > ,", "漢字 😀", "a b", "%20%"])
def test_the_link_survives_every_user_id(manager: httpx.Client, user: str, name: str) -> None:
    name = f"{user}{name}"
    placed = [place_order(manager, user_id=name)["id"] for _ in range(5)]
    assert ids(every(manager, "/orders", limit=2, user_id=name)) == placed[::-1]


def test_the_link_survives_a_timestamp(alice: httpx.Client) -> None:
    placed = [place_order(alice)["id"] for _ in range(5)]
    query = {"created_after": "2020-01-01T02:00:00+02:00", "limit": 2}
    assert ids(every(alice, "/orders", **query)) == placed[::-1]


def test_every_list_has_pages(alice: httpx.Client) -> None:
    methods = [
        alice.post(
            "/payment-methods",
            json={"payment_type": "paypal", "details": {"email": f"a{number}@example.com"}},
        ).json()["id"]
        for number in range(3)
    ]
    assert ids(every(alice, "/payment-methods", limit=1)) == methods[::-1]
    declined = save_card(alice, "4000000000000002")["id"]
    placed = place_order(alice)["id"]
    path = f"/orders/{placed}/payments"
    payments = [
        alice.post(path, json={"payment_method_id": declined}).json()["payment_id"]
        for _ in range(2)
    ]
    payments.append(pay(alice, placed, payment_method_id=methods[0])["id"])
    assert ids(every(alice, path, limit=1)) == payments[::-1]
    assert ids(every(alice, "/payments", limit=2)) == payments[::-1]
    events = every(alice, f"/orders/{placed}/events", limit=2)
    assert [event["sequence"] for event in events] == [5, 4, 3, 2, 1]


def test_a_page_beyond_the_last_row_is_empty(alice: httpx.Client) -> None:
    place_order(alice)
    assert alice.get("/orders", params={"cursor": "1"}).json() == []


# --- Time -------------------------------------------------------------------------------------


def test_times_are_rfc_3339_in_utc(alice: httpx.Client) -> None:
    method = save_card(alice)
    placed = place_order(alice)
    payment = pay(alice, placed["id"], payment_method_id=method["id"])
    event = alice.get(f"/orders/{placed['id']}/events").json()[0]
    for resource in (method, placed, payment):
        for name in ("created_at", "updated_at"):
            assert RFC_3339_UTC.fullmatch(resource[name])
    assert RFC_3339_UTC.fullmatch(event["created_at"])


def test_a_change_moves_updated_at_only(alice: httpx.Client) -> None:
    placed = place_order(alice)
    assert placed["updated_at"] == placed["created_at"]
    path = f"/orders/{placed['id']}/status"
    canceled = alice.put(path, json={"status": "canceled"}).json()
    assert canceled["created_at"] == placed["created_at"]
    assert moment(canceled["updated_at"]) > moment(placed["updated_at"])
    assert canceled == placed | {"status": "canceled", "updated_at": canceled["updated_at"]}


# --- Request ids ------------------------------------------------------------------------------

ANY_ANSWER = [
    ("GET", "/orders", 200),
    ("GET", "/healthz", 200),
    ("GET", "/errors", 200),
    ("GET", f"/orders/{ABSENT}", 404),
    ("GET", "/nowhere", 404),
    ("DELETE", "/orders", 405),
    ("GET", "/orders?limit=0", 400),
    ("POST", "/orders", 400),
]


@pytest.mark.parametrize("given", ["a", "._-Z9" + "x" * 123])
@pytest.mark.parametrize(("method", "path", "status"), ANY_ANSWER)
def test_the_callers_request_id_is_kept(
    alice: httpx.Client, method: str, path: str, status: int, given: str
) -> None:
    answer = alice.request(method, path, headers={"X-Request-Id": given})
    assert answer.status_code == status
    assert answer.headers["x-request-id"] == given
    assert answer.status_code < 400 or answer.json()["request_id"] == given


@pytest.mark.parametrize("given", ["a" * 129, "a b"], ids=["long", "space"])
@pytest.mark.parametrize(("method", "path", "status"), ANY_ANSWER)
def test_another_request_id_is_replaced(
    alice: httpx.Client, method: str, path: str, status: int, given: str
) -> None:
    answer = alice.request(method, path, headers={"X-Request-Id": given})
    assert answer.status_code == status
    assert REQUEST_ID.fullmatch(answer.headers["x-request-id"])
    assert answer.headers["x-request-id"] != given


@pytest.mark.parametrize(
    "given",
    [
        *("a,b", "a/b", "a;b", "a\tb", "{}", '"a"', "a:b", "<a>", "a=b", "a\\b", "%00", "a" * 4000),
        *("ä".encode(), "é".encode("latin-1"), b"\xff", "１".encode(), "😀".encode()),
    ],
    ids=lambda given: ascii(given[:8]),
)
def test_a_request_id_is_made_of_plain_characters(alice: httpx.Client, given: str | bytes) -> None:
    headers: Any = {"X-Request-Id": given}
    made = alice.get("/orders", headers=headers).headers["x-request-id"]
    assert REQUEST_ID.fullmatch(made)
    assert made.encode() != (given if isinstance(given, bytes) else given.encode())


def test_every_request_gets_an_id_of_its_own(alice: httpx.Client) -> None:
    made = {alice.get("/orders").headers["x-request-id"] for _ in range(20)}
    assert len(made) == 20


@pytest.mark.parametrize(
    "traceparent",
    [
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-00000000000000000000000000000000-0000000000000000-00",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        *("", "nonsense", "00-" + "a" * 5000, "😀".encode()),
    ],
    ids=lambda given: ascii(given[:8]),
)
def test_no_traceparent_breaks_a_request(alice: httpx.Client, traceparent: str | bytes) -> None:
    headers: Any = {"traceparent": traceparent}
    assert alice.get("/orders", headers=headers).status_code == 200


def test_the_log_follows_the_callers_trace(
    alice: httpx.Client, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    traceparent = f"00-{trace}-b7ad6b7169203331-01"
    alice.get("/nowhere", headers={"traceparent": traceparent, "X-Request-Id": user})
    alice.get("/orders")  # by now the line of the first request is written
    lines = [record.getMessage() for record in caplog.records]
    assert any(trace in line for line in lines if user in line)
    assert not any(trace in line for line in lines if user not in line)


# --- Headers, methods and paths ---------------------------------------------------------------


@pytest.mark.parametrize(("method", "path", "status"), ANY_ANSWER)
def test_no_answer_is_sniffed_or_stored(
    alice: httpx.Client, method: str, path: str, status: int
) -> None:
    answer = alice.request(method, path)
    assert answer.status_code == status
    assert answer.headers["x-content-type-options"] == "nosniff"
    if path.startswith("/orders"):
        assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("accept", ["text/html", "application/xml", "image/*;q=0", "*/*", ""])
def test_the_answer_is_json_whatever_the_caller_likes(alice: httpx.Client, accept: str) -> None:
    answer = alice.get("/orders", headers={"Accept": accept})
    assert answer.headers["content-type"] == "application/json"
    problem = alice.get("/nowhere", headers={"Accept": accept})
    assert problem.headers["content-type"] == "application/problem+json"


METHODS = {
    "/payment-methods": {"GET", "POST"},
    "/payment-methods/{}": {"GET", "PATCH", "DELETE"},
    "/orders": {"GET", "POST"},
    "/orders/{}": {"GET"},
    "/orders/{}/status": {"PUT"},
    "/orders/{}/events": {"GET"},
    "/orders/{}/payments": {"GET", "POST"},
    "/payments": {"GET"},
    "/payments/{}": {"GET"},
    "/disputes": {"GET"},
    "/disputes/{}": {"GET"},
    "/errors": {"GET"},
    "/errors/not_found": {"GET"},
    "/healthz": {"GET"},
    "/": {"GET"},
}
UNKNOWN_METHODS = [
    (method, path)
    for path, known in METHODS.items()
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
    if method not in known
]


@pytest.mark.parametrize(("method", "path"), UNKNOWN_METHODS)
def test_another_method_is_405_and_the_answer_lists_those_there_are(
    alice: httpx.Client, method: str, path: str
) -> None:
    answer = alice.request(method, path.format(1))
    assert code(answer) == (405, "method_not_allowed")
    allowed = {name.strip() for name in answer.headers["allow"].split(",")}
    assert allowed - {"HEAD", "OPTIONS"} == METHODS[path]


@pytest.mark.parametrize("path", METHODS)
def test_options_lists_the_methods(alice: httpx.Client, path: str) -> None:
    answer = alice.options(path.format(1))
    assert answer.status_code in (200, 204, 405)
    allowed = {name.strip() for name in answer.headers["allow"].split(",")}
    assert allowed - {"HEAD", "OPTIONS"} == METHODS[path]


@pytest.mark.parametrize("path", ["/", "/orders", "/errors", "/healthz", "/payments"])
def test_head_is_answered_as_get_or_not_at_all(alice: httpx.Client, path: str) -> None:
    answer = alice.head(path)
    assert answer.status_code in (200, 405)
    assert answer.content == b""


@pytest.mark.parametrize(
    "path",
    [
        *("/nowhere", "/order", "/Orders", "/ORDERS", "/v1/orders", "/payment_methods", "/api"),
        *("/orders/", "/orders//", "/orders/1/", "/payment-methods/", "/orders/1/status/"),
        *("/orders/1/nothing", "/orders/1/2/3", "/payments/1/", "/errors/nothing", "/errors/a/b"),
        *("/%00", "/errors/%00", "/errors/%ff", "/orders%00", "/.env", "/.git/HEAD"),
        *("/errors/..%2f..%2fetc%2fpasswd", "/😀", "/" + "a" * 5000, "/orders;a=b", "/errors/"),
    ],
    ids=lambda path: ascii(path[:24]),
)
def test_an_unknown_path_is_404(alice: httpx.Client, path: str) -> None:
    assert code(alice.get(path)) == (404, "not_found")


def test_a_body_where_none_belongs_is_not_read(alice: httpx.Client) -> None:
    placed = place_order(alice)
    for content in (b"nonsense", b"{}", b"\xff"):
        answer = alice.request("GET", f"/orders/{placed['id']}", content=content)
        assert answer.json() == placed


# --- CORS -------------------------------------------------------------------------------------

PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x"}


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1", ""])
def test_an_origin_that_is_not_listed_gets_no_cors_header(alice: httpx.Client, origin: str) -> None:
    for answer in (
        alice.get("/orders", headers={"Origin": origin}),
        alice.post("/orders", json=order(), headers={"Origin": origin}),
        alice.get("/nowhere", headers={"Origin": origin}),
        alice.options("/orders", headers=PREFLIGHT | {"Origin": origin}),
    ):
        assert "access-control-allow-origin" not in answer.headers
        assert "access-control-allow-credentials" not in answer.headers


LISTED = "https://shop.example"


def ask_shop(settings: Settings, method: str, path: str, **headers: str) -> httpx.Response:
    """Ask a service that lists one origin."""
    app = main.create_app(settings.model_copy(update={"cors_origins": [LISTED]}))
    names = {name.replace("_", "-"): value for name, value in headers.items()}

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, headers=names)

    return asyncio.run(run())


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_a_listed_origin_may_ask_with_every_method(settings: Settings, method: str) -> None:
    answer = ask_shop(
        settings,
        "OPTIONS",
        "/orders",
        Origin=LISTED,
        Access_Control_Request_Method=method,
        Access_Control_Request_Headers="authorization, content-type, x-request-id",
    )
    assert answer.is_success
    assert answer.headers["access-control-allow-origin"] == LISTED
    assert method in answer.headers["access-control-allow-methods"]


@pytest.mark.parametrize("header", ["Idempotency-Key", "Authorization", "Content-Type"])
def test_a_listed_origin_may_send_our_headers(settings: Settings, header: str) -> None:
    answer = ask_shop(
        settings,
        "OPTIONS",
        "/orders",
        Origin=LISTED,
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers=header,
    )
    assert answer.is_success
    assert answer.headers["access-control-allow-origin"] == LISTED


@pytest.mark.parametrize(("path", "status"), [("/healthz", 200), ("/orders", 401), ("/x", 404)])
def test_a_listed_origin_may_read_answers_and_problems(
    settings: Settings, path: str, status: int
) -> None:
    answer = ask_shop(settings, "GET", path, Origin=LISTED)
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == LISTED
    assert "Origin" in answer.headers["vary"]
    assert "X-Request-Id" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://shop.example",
        "https://shop.example:8443",
        "https://shop.example.evil.example",
        "https://evil.example/https://shop.example",
        "null",
    ],
)
def test_only_the_listed_origin_is_allowed(settings: Settings, origin: str) -> None:
    for method, extra in (("GET", {}), ("OPTIONS", {"Access_Control_Request_Method": "GET"})):
        answer = ask_shop(settings, method, "/healthz", Origin=origin, **extra)
        assert "access-control-allow-origin" not in answer.headers
        assert answer.is_success or answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "asked",
    [
        {"Access_Control_Request_Method": "TRACE"},
        {"Access_Control_Request_Method": "GET", "Access_Control_Request_Headers": "X-Other"},
    ],
)
def test_a_listed_origin_may_not_ask_for_everything(
    settings: Settings, asked: dict[str, str]
) -> None:
    answer = ask_shop(settings, "OPTIONS", "/orders", Origin=LISTED, **asked)
    refused = answer.headers.get("access-control-allow-headers", "").lower()
    assert "x-other" not in refused
    assert "TRACE" not in answer.headers.get("access-control-allow-methods", "")
    assert answer.is_success or answer.headers["content-type"] == "application/problem+json"
