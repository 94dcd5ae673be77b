"""Request bodies of any shape: what is refused before it costs anything, and what it may cost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import auth
from config import Settings
from errors import catalog
from middleware.body_limit import MAX_BODY
from tests.support.asgi import JSON, Reply, Wire, wire
from tests.support.corpora import json_test_suite
from tests.support.factories import order
from web.exception_handlers import MAX_ERRORS
from web.json_body import MAX_DEPTH, MAX_MEMBERS, MAX_NAME

ABSENT = 2**63 - 1  # no order or payment has this id
# Every operation with a body. What it is about is missing: a body that is taken ends in a 404.
WRITES = [
    ("POST", "/orders"),
    ("PUT", f"/orders/{ABSENT}/status"),
    ("POST", f"/orders/{ABSENT}/payments"),
    ("POST", "/payment-methods"),
    ("PATCH", f"/payment-methods/{ABSENT}"),
    ("POST", f"/payments/{ABSENT}/confirm"),
    ("POST", f"/payments/{ABSENT}/capture"),
    ("POST", f"/payments/{ABSENT}/void"),
    ("POST", f"/payments/{ABSENT}/refunds"),
    ("POST", f"/payments/{ABSENT}/review"),
]
# Whatever is sent to these is read before anybody is known.
ANONYMOUS = [("POST", "/webhooks/sandbox"), ("POST", "/sandbox/switches/webhooks/sell")]
MOST_CPU = 0.020  # seconds for a body of 64 KiB
CORPUS = json_test_suite()

# For bodies that begin to be worked on; without a key they would not be.
KEYED = ("Idempotency-Key", "bodies")


@pytest.fixture(scope="module")
def direct(base_url: str, app: FastAPI) -> Iterator[Wire]:
    """The running service, asked without a socket: the thread that asks is the one that works."""
    with wire(app) as opened:
        yield opened


@pytest.fixture(scope="module")
def bearer(settings: Settings) -> tuple[str, str]:
    token = auth.mint(settings, "manager", "orders:manage payments:manage")
    return ("Authorization", f"Bearer {token}")


def errors_of(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 400, answer.text
    errors: list[dict[str, Any]] = answer.json()["errors"]
    return errors


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


@pytest.mark.parametrize("key", [False, True])
@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 100, 960, 10_000])
def test_a_body_of_more_than_16_levels_is_refused(
    alice: httpx.Client, levels: int, key: bool
) -> None:
    body = '{"metadata":' * levels + "1" + "}" * levels
    headers = dict([JSON, KEYED] if key else [JSON])
    (error,) = errors_of(alice.post("/orders", content=body[:65_000], headers=headers))
    assert error["code"] in ("nesting", "json")
    if levels < 1000:
        assert (error["field"], error["code"]) == ("metadata", "nesting")


def test_a_body_of_16_levels_is_read(alice: httpx.Client) -> None:
    (error,) = errors_of(alice.post("/orders", json=order(surprise=nested(MAX_DEPTH - 1))))
    assert (error["field"], error["code"]) == ("surprise", "extra_forbidden")
    (error,) = errors_of(alice.post("/orders", json=order(surprise=nested(MAX_DEPTH))))
    assert (error["field"], error["code"]) == ("surprise", "nesting")


def test_too_many_members_are_refused_in_one_error(alice: httpx.Client) -> None:
    pairs: dict[str, Any] = {str(number): number for number in range(MAX_MEMBERS + 1)}
    (error,) = errors_of(alice.post("/orders", json=order(metadata=pairs)))
    assert (error["field"], error["code"]) == ("metadata", "too_many")
    (error,) = errors_of(alice.post("/orders", json=pairs))
    assert (error["field"], error["code"]) == ("body", "too_many")
    (error,) = errors_of(alice.post("/orders", json=list(pairs)))
    assert (error["field"], error["code"]) == ("body", "too_many")


def test_21_pairs_of_metadata_are_refused_by_their_own_rule(alice: httpx.Client) -> None:
    (error,) = errors_of(
        alice.post("/orders", json=order(metadata={str(number): "" for number in range(21)}))
    )
    assert (error["field"], error["code"]) == ("metadata", "too_long")


def test_a_name_of_more_than_255_characters_is_refused(alice: httpx.Client) -> None:
    (error,) = errors_of(alice.post("/orders", json=order(metadata={"é" * (MAX_NAME + 1): 1})))
    assert (error["field"], error["code"]) == ("metadata", "name_length")


def test_at_most_20_errors_are_answered(alice: httpx.Client) -> None:
    wrong = {f"field_{chr(97 + number)}": 1 for number in range(MAX_ERRORS + 5)}
    assert len(errors_of(alice.post("/orders", json=wrong))) == MAX_ERRORS
    query = "&".join(f"{name}=1" for name in wrong)
    assert len(errors_of(alice.get(f"/orders?{query}"))) == MAX_ERRORS


# --- What a body may cost ---------------------------------------------------------------------


def filled(head: str, item: str, tail: str = "", separator: str = ",") -> bytes:
    """64 KiB of one item; `%x` in it becomes its number."""
    parts: list[str] = []
    left = MAX_BODY - len(head) - len(tail)
    while True:
        part = item.replace("%x", f"{len(parts):x}")
        left -= len(part.encode()) + len(separator)
        if left < 0:
            return (head + separator.join(parts) + tail).encode()
        parts.append(part)


ORDER = '{"product_id":"a","quantity":1,"total_amount":1,"currency":"USD",'
DETAILS = '{"payment_type":"%s","details":{'
INNER = ",".join(f'"{number}":1' for number in range(60))
SHAPES = {
    "unknown fields": filled("{", '"%x":1', "}"),
    "one field again and again": filled("{", '"a":1', "}"),
    "numbers": filled("[", "0", "]"),
    "long numbers": filled("[", "9" * 4300, "]"),
    "fractions": filled("[", "1.7976931348623157e308", "]"),
    "empty objects": filled('{"a":[', "{}", "]}"),
    "small objects": filled("[", '{"a":1}', "]"),
    "arrays in arrays": filled("", "[", "", ""),
    "arrays in arrays that end": b"[" * 900 + b"]" * 900,
    "objects in objects": b'{"a":' * 900 + b"1" + b"}" * 900,
    "objects of 60 in an object": filled("{", f'"%x":{{{INNER}}}', "}"),
    "long names": filled("{", f'"{"é" * 2000}%x":1', "}"),
    "many pairs of metadata": filled(ORDER + '"metadata":{', '"%x":1', "}}"),
    "60 objects as metadata": filled(ORDER + '"metadata":{', f'"%x":{{{INNER}}}', "}}"),
    "many returned values": filled('{"returned":{', '"%x":1', "}}"),
    "a long text": filled('{"product_id":"', "😀", '"}', ""),
    "a text of escapes": filled('{"note":"', "\\u00e9", '"}', ""),
    "a text of half surrogates": filled('{"reason":"', "\\ud800", '"}', ""),
    "a card number": filled(DETAILS % "card" + '"card_number":"', "4 ", '"}}', ""),
    "an email address": filled(DETAILS % "paypal" + '"email":"', "a@", '"}}', ""),
    "labels of a domain": (DETAILS % "paypal" + f'"email":"a@{"é." * 120}com"}}}}').encode(),
    "an IBAN": filled(DETAILS % "bank_account" + '"iban":"', "DE", '"}}', ""),
    "an address": filled('{"return_url":"http://', "[:", '"}', ""),
    "white space": filled("{", " ", "}", ""),
    "a form": filled("", "a%x=1", "", "&"),
    "a form of nothing": filled("", "=", "", "&"),
}


@pytest.mark.parametrize("body", SHAPES.values(), ids=SHAPES.keys())
def test_no_body_costs_more_than_20_ms(direct: Wire, bearer: tuple[str, str], body: bytes) -> None:
    """The processor's time of this thread alone, and the best of five: 5 ms on a small machine."""
    for method, path in WRITES + ANONYMOUS:
        took = []
        for _ in range(5):
            started = time.thread_time()
            answer = direct.send(method, path, body, [bearer, JSON, KEYED])
            took.append(time.thread_time() - started)
            assert 400 <= answer.status < 500
            assert len(answer.body) < 8192
        assert min(took) < MOST_CPU, path


# --- JSONTestSuite ----------------------------------------------------------------------------


def check(answer: Reply, taken: bool = True) -> None:
    """Answered as documented, and refused unless it may be `taken`."""
    if answer.status >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert catalog()[answer.json()["code"]].status == answer.status < 500
    assert taken or answer.status in (400, 413)


@pytest.mark.parametrize(("method", "path"), WRITES)
def test_what_is_not_json_is_refused(
    direct: Wire, bearer: tuple[str, str], method: str, path: str
) -> None:
    for name, body in CORPUS.items():
        for extra in ([], [KEYED]):
            answer = direct.send(method, path, body, [bearer, JSON, *extra])
            check(answer, taken=not name.startswith("n_") or not body)


FIELDS = [
    ("/orders", ORDER + '"metadata":%s}'),
    ("/orders", ORDER + '"metadata":{"a":%s}}'),
    ("/orders", ORDER + '"metadata":{%s:""}}'),
    ("/orders", ORDER + '"payment_method_id":%s}'),
    ("/payment-methods", DETAILS.replace("%s", "card") + '"card_number":%s}}'),
    ("/payment-methods", '{"payment_type":%s,"details":{}}'),
    (f"/payments/{ABSENT}/refunds", '{"amount":%s}'),
    (f"/payments/{ABSENT}/review", '{"resolution":"accepted","note":%s}'),
]


@pytest.mark.parametrize(("path", "body"), FIELDS)
def test_no_value_breaks_a_request(
    direct: Wire, bearer: tuple[str, str], path: str, body: str
) -> None:
    for value in CORPUS.values():
        content = body.encode().replace(b"%s", value)
        check(direct.send("POST", path, content, [bearer, JSON, KEYED]))


def test_the_corpus_is_whole() -> None:
    kinds = [name[:2] for name in CORPUS]
    assert (kinds.count("y_"), kinds.count("n_"), kinds.count("i_")) == (95, 188, 35)
    assert json.loads(CORPUS["y_structure_lonely_true"]) is True
