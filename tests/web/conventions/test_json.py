"""Which bodies are JSON, in which size, and what a field that is named twice is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import pytest

from tests.support.clients import (
    JSON,
    code,
    fields,
)
from tests.support.factories import card, order, place_order, save_card

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
