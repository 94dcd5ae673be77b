"""The load generator: it sends what it is given, and counts what is not answered as expected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest
from pydantic_extra_types.payment import PaymentCardNumber

from benchmarks.load import Load, Outcome, end_of, send
from benchmarks.operations import as_bytes, check_digit, refuse_errors
from conformance.local_server import LocalServer, write
from tests.support.factories import VISA


class Answering(LocalServer):
    """Notes what it is asked; answers 201, or what the path says."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, bytes]] = []

    def handle(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        self.asked.append((f"{handler.command} {handler.path}", body))
        if handler.path == "/close":
            handler.close_connection = True
            return
        status = 500 if handler.path == "/fail" else 201
        write(handler, status, {"Content-Type": "application/json"}, b'{"id": 1}' * 9000)


@pytest.fixture
def server() -> Iterator[Answering]:
    server = Answering()
    server.start()
    yield server
    server.stop()


def load(server: Answering, *paths: str, connections: int = 1) -> Outcome:
    requests = [as_bytes("POST", path, {}, b"{}") for path in paths]
    port = int(server.url.rpartition(":")[2])
    return send(Load(port, requests, False, connections, 30.0, 201))


def test_each_request_is_sent_once_in_order_and_answered(server: Answering) -> None:
    outcome = load(server, "/a", "/b", "/c")
    assert server.asked == [("POST /a", b"{}"), ("POST /b", b"{}"), ("POST /c", b"{}")]
    assert (outcome.answers, outcome.errors) == (3, 0)
    assert outcome.latencies == sorted(outcome.latencies)


def test_connections_share_the_requests(server: Answering) -> None:
    paths = [f"/{number}" for number in range(40)]
    assert load(server, *paths, connections=8).answers == 40
    assert sorted(path for path, _ in server.asked) == sorted(f"POST {path}" for path in paths)


def test_an_unexpected_status_is_an_error_and_its_answer_is_kept(server: Answering) -> None:
    outcome = load(server, "/a", "/fail", "/b")
    assert (outcome.answers, outcome.errors) == (2, 1)
    assert outcome.first_error.startswith("HTTP/1.1 500 ")
    with pytest.raises(RuntimeError, match="2 answers, 1 errors"):
        refuse_errors("a load", outcome)


def test_a_connection_that_is_closed_before_the_answer_is_an_error(server: Answering) -> None:
    outcome = load(server, "/a", "/close")
    assert (outcome.answers, outcome.errors) == (1, 1)


def test_nobody_who_listens_is_an_error() -> None:
    server = Answering()
    server.start()
    server.stop()
    outcome = load(server, "/a")
    assert (outcome.answers, outcome.errors) == (0, 1)
    with pytest.raises(RuntimeError, match="no connection"):
        refuse_errors("a load", outcome)


def test_no_answer_at_all_is_refused_too() -> None:
    with pytest.raises(RuntimeError, match="0 answers"):
        refuse_errors("a load", Outcome(0, 0, "", 1.0, []))


def test_percentiles_are_of_the_sorted_latencies() -> None:
    outcome = Outcome(100, 0, "", 1.0, [float(number) for number in range(100)])
    assert [outcome.percentile(percent) for percent in (0, 50, 99, 100)] == [0, 50, 99, 99]
    assert Outcome(0, 0, "", 1.0, []).percentile(99) == 0


def test_an_answer_ends_where_its_length_says() -> None:
    head = b"HTTP/1.1 200 OK\r\nCONTENT-LENGTH: 4\r\nx: y\r\n\r\n"
    assert end_of(head[:-1]) is None
    assert end_of(head + b"abc") is None
    assert end_of(head + b"abcd") == len(head) + 4
    empty = b"HTTP/1.1 204 No Content\r\nx: y\r\n\r\n"
    assert end_of(empty) == len(empty)


def test_a_request_says_how_long_its_body_is() -> None:
    body = json.dumps({"amount": 1}).encode()
    head, _, sent = as_bytes("POST", "/orders", {"A": "b"}, body).partition(b"\r\n\r\n")
    assert sent == body
    assert head.splitlines() == [
        *(b"POST /orders HTTP/1.1", b"Host: 127.0.0.1", b"A: b"),
        *(b"Content-Type: application/json", f"Content-Length: {len(body)}".encode()),
    ]


def test_made_card_numbers_have_the_right_check_digit() -> None:
    assert VISA.endswith(check_digit(VISA[:-1]))
    for number in range(100):
        digits = f"4{number:014}"
        PaymentCardNumber.validate_luhn_check_digit(digits + check_digit(digits))
