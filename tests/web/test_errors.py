"""Problem documents: one for every failure, documented, and silent about what was sent."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psycopg2
import pytest
import sqlalchemy as sa
import structlog

import crud
from config import Settings
from tests.support.clients import ABSENT, JSON, PROBLEM, Api, check_problem, code, watched
from tests.support.factories import card, order, pay, place_order, save_card

# The contract's table; it calls itself not exhaustive.
DOCUMENTED = {
    "invalid_request": 400,
    "payment_method_not_found": 400,
    "idempotency_key_invalid": 400,
    "card_number_not_accepted": 400,
    "card_number_not_allowed": 400,
    "invalid_signature": 400,
    "unauthenticated": 401,
    "payment_declined": 402,
    "payment_method_declined": 402,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "duplicate_payment_method": 409,
    "invalid_status_transition": 409,
    "payment_in_progress": 409,
    "order_already_paid": 409,
    "amount_exceeds_remaining": 409,
    "operation_not_supported": 409,
    "idempotency_in_progress": 409,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "idempotency_key_reused": 422,
    "rate_limited": 429,
    "headers_too_large": 431,
    "internal_error": 500,
    "gateway_unavailable": 502,
    "overloaded": 503,
    "database_unavailable": 503,
}
EXTRA = {
    "payment_declined": {"decline_code", "payment_id"},
    "payment_method_declined": {"decline_code"},
    "duplicate_payment_method": {"payment_method_id"},
    "invalid_status_transition": {"current_status", "allowed_statuses"},
    "invalid_request": {"errors"},
}


@pytest.fixture
def api(base_url: str, settings: Settings) -> Iterator[Api]:
    yield from watched(base_url, settings)


@pytest.fixture
def anyone(api: Api) -> httpx.Client:
    """A client without a token."""
    return api()


# --- The catalog ------------------------------------------------------------------------------


def test_the_catalog_lists_every_code_once_and_to_everyone(anyone: httpx.Client) -> None:
    answer = anyone.get("/errors")
    assert answer.status_code == 200
    codes = [entry["code"] for entry in answer.json()]
    assert len(codes) == len(set(codes))
    assert set(codes) >= DOCUMENTED.keys()


@pytest.mark.parametrize(("name", "status"), DOCUMENTED.items())
def test_every_code_is_explained(anyone: httpx.Client, name: str, status: int) -> None:
    answer = anyone.get(f"/errors/{name}")
    assert answer.status_code == 200
    entry = answer.json()
    assert (entry["code"], entry["status"]) == (name, status)
    assert entry in anyone.get("/errors").json()
    for text in ("title", "explanation", "what_to_do"):
        assert len(entry[text]) > 10
    assert isinstance(entry["retryable"], bool)


def test_every_example_is_a_problem_document_of_its_code(anyone: httpx.Client) -> None:
    for entry in anyone.get("/errors").json():
        example = entry["example"]
        assert example.keys() >= PROBLEM
        assert example["type"] == f"/errors/{entry['code']}"
        assert anyone.get(example["type"]).json() == entry
        for name in ("code", "status", "title", "retryable"):
            assert example[name] == entry[name]
        assert example.keys() >= EXTRA.get(entry["code"], set())


def test_titles_tell_codes_apart(anyone: httpx.Client) -> None:
    titles = [entry["title"] for entry in anyone.get("/errors").json()]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize(
    "name", ["nothing", "NOT_FOUND", "not-found", "404", "%00", "%ff", "😀", "a" * 5000, "__init__"]
)
def test_another_code_is_404(anyone: httpx.Client, name: str) -> None:
    assert code(anyone.get(f"/errors/{name}")) == (404, "not_found")


def test_a_problems_type_leads_to_its_explanation(alice: httpx.Client) -> None:
    problem = alice.get(f"/orders/{ABSENT}").json()
    assert alice.get(problem["type"]).json()["title"] == problem["title"]


# --- What a problem carries -------------------------------------------------------------------


def test_a_problem_has_the_documented_members_and_no_more(alice: httpx.Client) -> None:
    answer = alice.get(f"/orders/{ABSENT}", headers={"X-Request-Id": "mine"})
    assert answer.json() == {
        "type": "/errors/not_found",
        "title": answer.json()["title"],
        "status": 404,
        "code": "not_found",
        "detail": answer.json()["detail"],
        "request_id": "mine",
        "retryable": False,
    }


def test_each_code_carries_what_it_promises(
    api: Api, alice: httpx.Client, manager: httpx.Client, anyone: httpx.Client
) -> None:
    bad = save_card(alice, "4000000000000002")["id"]
    placed = place_order(alice)["id"]
    path = f"/orders/{placed}/payments"
    answers = [
        alice.post("/orders", json={}),
        alice.post("/orders", json=order(payment_method_id=ABSENT)),
        anyone.get("/orders"),
        alice.post(path, json={"payment_method_id": bad}),
        alice.post("/orders", json=order(user_id="somebody")),
        alice.get(f"/orders/{ABSENT}"),
        alice.delete("/orders"),
        alice.post("/payment-methods", json=card("4000000000000002")),
        alice.put(f"/orders/{placed}/status", json={"status": "shipped"}),
        alice.post("/orders", content=b" " * 70_000, headers=JSON),
        alice.post("/orders", content=b"{}", headers={"Content-Type": "text/plain"}),
    ]
    save_card(alice)
    good = alice.get("/payment-methods").json()[0]["id"]
    paid = pay(alice, placed, payment_method_id=good)["id"]
    answers.append(alice.post(path))
    expected = {
        "invalid_request": {"errors"},
        "payment_method_not_found": set(),
        "unauthenticated": set(),
        "payment_declined": {"decline_code", "payment_id"},
        "forbidden": set(),
        "not_found": set(),
        "method_not_allowed": set(),
        "duplicate_payment_method": {"payment_method_id"},
        "invalid_status_transition": {"current_status", "allowed_statuses"},
        "body_too_large": set(),
        "unsupported_media_type": set(),
        "order_already_paid": {"payment_id"},
    }
    assert [code(answer) for answer in answers] == [(DOCUMENTED[name], name) for name in expected]
    for answer, members in zip(answers, expected.values(), strict=True):
        assert answer.json().keys() == PROBLEM | members
        assert answer.json()["retryable"] is False
    assert answers[-1].json()["payment_id"] == paid


# --- Who is asking ----------------------------------------------------------------------------

OPERATIONS = [
    ("POST", "/payment-methods"),
    ("GET", "/payment-methods"),
    ("GET", "/payment-methods/1"),
    ("PATCH", "/payment-methods/1"),
    ("DELETE", "/payment-methods/1"),
    ("POST", "/orders"),
    ("GET", "/orders"),
    ("GET", "/orders/1"),
    ("PUT", "/orders/1/status"),
    ("GET", "/orders/1/events"),
    ("POST", "/orders/1/payments"),
    ("GET", "/orders/1/payments"),
    ("GET", "/payments"),
    ("GET", "/payments/1"),
    ("GET", "/disputes"),
    ("GET", "/disputes/1"),
]


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer x.y.z", "Basic YTpi"])
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_without_a_valid_token_nothing_is_done(
    anyone: httpx.Client, method: str, path: str, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = anyone.request(method, path, headers=headers)
    assert code(answer) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"].split()[0] == "Bearer"


@pytest.mark.parametrize(
    "options",
    [
        {"content": b"nonsense", "headers": JSON},
        {"content": b"{}", "headers": {"Content-Type": "text/plain"}},
        {"content": b" " * 70_000, "headers": JSON},
        {"params": {"limit": "0"}},
        {},
    ],
    ids=["body", "type", "size", "query", "nothing"],
)
@pytest.mark.parametrize("path", ["/orders", "/orders/0/payments", "/payment-methods"])
def test_who_is_asking_comes_before_what(
    anyone: httpx.Client, path: str, options: dict[str, Any]
) -> None:
    assert code(anyone.post(path, **options)) == (401, "unauthenticated")


@pytest.mark.parametrize("path", ["/orders/0", "/orders/abc", f"/orders/{ABSENT}", "/payments/%00"])
def test_without_a_token_every_id_is_the_same(anyone: httpx.Client, path: str) -> None:
    assert code(anyone.get(path)) == (401, "unauthenticated")


@pytest.mark.parametrize("path", ["/errors", "/errors/not_found", "/healthz", "/nowhere"])
@pytest.mark.parametrize("authorization", [None, "Bearer x.y.z"])
def test_some_paths_need_no_token(
    anyone: httpx.Client, path: str, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    assert anyone.get(path, headers=headers).status_code == (404 if path == "/nowhere" else 200)


# --- Silence ----------------------------------------------------------------------------------

CANARY = "canary7Q9xW"
DIGITS = "4917610000000000999"  # no valid number, and no part of any other test
LEAKS: dict[str, Any] = {
    "number": {"card_number": CANARY},
    "number_of_digits": {"card_number": DIGITS},
    "number_as_a_number": {"card_number": int(DIGITS)},
    "number_as_a_name": {"card_number": {DIGITS: CANARY}},
    "number_in_a_list": {"card_number": [DIGITS, CANARY]},
    "long_number": {"card_number": DIGITS * 40},
    "month": {"exp_month": CANARY},
    "month_of_digits": {"exp_month": int(DIGITS)},
    "year": {"exp_year": CANARY},
    "cvc": {"cvc": CANARY},
    "cvc_of_digits": {"cvc": DIGITS},
    "cvc_as_a_number": {"cvc": int(DIGITS)},
    "name": {"cardholder_name": CANARY * 50},
    "name_with_nul": {"cardholder_name": f"{CANARY}\0"},
    "name_with_half_a_pair": {"cardholder_name": f"{CANARY}\ud800"},
    "name_as_a_list": {"cardholder_name": [CANARY]},
    "unknown": {"surprise": CANARY},
    "unknown_digits": {"surprise": DIGITS},
    "unknown_name": {CANARY: 1},
    "unknown_name_of_digits": {DIGITS: 1},
    "unknown_name_with_digits": {f"number_{DIGITS}": 1},
    "unknown_name_with_a_tag": {f"<{CANARY}": 1, f"<{CANARY}>": 1},
    "unknown_spaced_name": {f"4242 {DIGITS}": 1},
    "unknown_odd_name": {f"{CANARY}\0\ud800": 1},
    "deep": {"a": {"b": [{"c": CANARY}]}},
    "token_too": {"token": CANARY},
}


def silent(answer: httpx.Response) -> None:
    assert answer.status_code >= 400, answer.text
    check_problem(answer)
    everything = answer.text + str(answer.headers.multi_items())
    for secret in (CANARY, DIGITS, DIGITS[:12], DIGITS[-8:], "canary", "xW"):
        assert secret not in everything


@pytest.mark.parametrize("changes", LEAKS.values(), ids=LEAKS.keys())
def test_no_refusal_repeats_the_details(alice: httpx.Client, changes: dict[str, Any]) -> None:
    for kind in ("card", "paypal", "bank_account", "crypto", None):
        body = {"payment_type": kind, "details": card()["details"] | changes}
        silent(alice.post("/payment-methods", content=json.dumps(body), headers=JSON))


@pytest.mark.parametrize("changes", LEAKS.values(), ids=LEAKS.keys())
def test_no_refused_change_repeats_the_details(
    alice: httpx.Client, changes: dict[str, Any]
) -> None:
    method = save_card(alice)
    body = json.dumps({"details": {"exp_month": 0} | changes})
    silent(alice.patch(f"/payment-methods/{method['id']}", content=body, headers=JSON))
    silent(alice.patch(f"/payment-methods/{ABSENT}", content=body, headers=JSON))


@pytest.mark.parametrize(
    "details",
    [
        *({"token": CANARY}, {"token": DIGITS}, {"token": [CANARY]}, {"token": {CANARY: 1}}),
        *({"email": CANARY}, {"email": f"{CANARY}@"}, {"email": f"@{CANARY}.com"}),
        *({"iban": CANARY, "account_holder": CANARY}, {"iban": f"DE{DIGITS}"}),
        *({"iban": "DE89370400440532013001", "account_holder": CANARY},),
        *(CANARY, DIGITS, int(DIGITS), [CANARY], [[DIGITS]], None, {}),
    ],
    ids=lambda details: ascii(details)[:32],
)
@pytest.mark.parametrize("kind", ["card", "paypal", "bank_account"])
def test_no_refusal_repeats_a_token_an_email_or_an_iban(
    alice: httpx.Client, kind: str, details: Any
) -> None:
    for gateway in ("sandbox", "nowhere", None):
        body = {"payment_type": kind, "details": details, "gateway": gateway}
        answer = alice.post("/payment-methods", json=body)
        if answer.is_success:  # a vault token of PayPal may be anything
            assert kind == "paypal"
            assert CANARY not in answer.text
            assert alice.delete(answer.headers["location"]).status_code == 204
        else:
            silent(answer)


@pytest.mark.parametrize(
    "path",
    [
        "/payment-methods/4242424242424242",
        "/payment-methods/4242-4242-4242-4242",
        "/payment-methods/4242%204242%204242%204242",
        "/orders?user_id=4242424242424242",
        "/orders?cursor=4242424242424242",
        "/4242424242424242",
    ],
)
def test_a_card_number_in_an_address_reaches_no_log_line(
    alice: httpx.Client, user: str, path: str
) -> None:
    root, written = logging.getLogger(), io.StringIO()
    [ours] = {
        handler.formatter
        for handler in root.handlers
        if isinstance(handler.formatter, structlog.stdlib.ProcessorFormatter)
    }
    handler = logging.StreamHandler(written)
    handler.setFormatter(ours)
    root.addHandler(handler)
    try:
        alice.get(path, headers={"X-Request-Id": user})
        alice.get("/orders")  # by now the line of the first request is written
    finally:
        root.removeHandler(handler)
    assert user in written.getvalue()
    for secret in ("4242424242424242", "4242-4242", "4242 4242", "4242%204242"):
        assert secret not in written.getvalue()


def test_no_log_line_repeats_the_details(
    alice: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    for changes in LEAKS.values():
        body = json.dumps(card(details=card()["details"] | changes))
        alice.post("/payment-methods", content=body, headers=JSON)
        alice.post("/payment-methods", content=body[:-1], headers=JSON)
    alice.post("/payment-methods", json=card(details=card()["details"] | {"cvc": "7391"}))
    assert "/payment-methods" in caplog.text  # it does see the log
    for secret in (CANARY, DIGITS, "4242424242424242"):
        assert secret not in caplog.text
    assert not re.search(alone("7391"), caplog.text)


def alone(digits: str) -> str:
    """A pattern for digits that are no part of a request id, a fraction or a longer number."""
    return rf"(?<![0-9a-f.]){digits}(?![0-9a-f])"


@pytest.mark.parametrize(
    "body",
    [
        f'{{"payment_type": "card", "details": {{"card_number": "{DIGITS}", "card_number": ',
        f'{{"payment_type": "card", "details": {{"{CANARY}": 1, "{CANARY}": 2}}}}',
        f'{{"payment_type": "card", "details": {{"card_number": "{CANARY}"}}, "details": 1}}',
        f'{{"payment_type": "card", "details": {{"card_number": {DIGITS}{"9" * 5000}}}}}',
        f'{{"payment_type": "card", "details": {{"card_number": {CANARY}}}}}',
        f'{{"payment_type": "card", "details": {{"card_number": "{CANARY}"',
        f'{{"payment_type": "card", "details": {{"card_number": "{CANARY}\\x"}}}}',
        f'{{"payment_type": "card", "details": {{"{CANARY}": NaN}}}}',
        f'{{"payment_type": "card", "details": {{"card_number": "{CANARY}\x01"}}}}',
        f'"{CANARY}"',
        f"{CANARY}",
        f'["{CANARY}"]',
    ],
)
def test_no_unreadable_body_is_repeated(alice: httpx.Client, body: str) -> None:
    silent(alice.post("/payment-methods", content=body, headers=JSON))
    silent(alice.post("/payment-methods", content=body, headers={"Content-Type": CANARY}))
    silent(alice.post("/payment-methods", content=body.encode("utf-16"), headers=JSON))
    silent(alice.post("/payment-methods", content=body.encode() + b"\xff", headers=JSON))


def test_a_duplicate_repeats_nothing_of_the_second(alice: httpx.Client) -> None:
    save_card(alice)
    again = card()
    again["details"] |= {"cardholder_name": CANARY, "cvc": "739"}
    answer = alice.post("/payment-methods", json=again, headers={"X-Request-Id": "again"})
    assert code(answer) == (409, "duplicate_payment_method")
    silent(answer)
    assert "4242" not in answer.text


# --- Our own failures -------------------------------------------------------------------------


@pytest.fixture
def failing(
    base_url: str, alice: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Exception], httpx.Response]:
    """Reads an order while the service fails in this way."""

    def read(error: Exception) -> httpx.Response:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(crud, "show_order", fail)
            return httpx.get(
                f"{base_url}/orders/1",
                headers={**alice.headers, "X-Request-Id": "failing", "Origin": "https://x.example"},
                verify=False,
            )

    return read


def says_no_more(answer: httpx.Response, name: str) -> None:
    """A 5xx body says no more than its code and request id."""
    check_problem(answer)
    assert code(answer) == (DOCUMENTED[name], name)
    assert answer.json().keys() == PROBLEM
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "failing"
    assert answer.json()["retryable"] is True
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    for word in (CANARY, "Error", "Traceback", "SELECT", "psycopg2", "sqlalchemy", "/work", ".py"):
        assert word not in answer.text


class Odd(Exception):
    """Nobody foresaw it."""


@pytest.mark.parametrize(
    "error",
    [
        *(Odd(CANARY), RuntimeError(CANARY), KeyError(CANARY), ValueError(CANARY), TypeError()),
        *(RecursionError(CANARY), MemoryError(), AssertionError(CANARY), NotImplementedError()),
        *(UnicodeDecodeError("utf-8", CANARY.encode(), 0, 1, CANARY), OSError(CANARY)),
        sa.exc.DataError("SELECT", {"a": CANARY}, psycopg2.DataError(CANARY)),
        sa.exc.IntegrityError("SELECT", {"a": CANARY}, psycopg2.IntegrityError(CANARY)),
        sa.exc.ProgrammingError("SELECT", {"a": CANARY}, psycopg2.ProgrammingError(CANARY)),
        sa.exc.NoResultFound(CANARY),
        sa.exc.InvalidRequestError(CANARY),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_nobody_foresaw_is_a_500_that_says_nothing(
    failing: Callable[[Exception], httpx.Response], error: Exception
) -> None:
    says_no_more(failing(error), "internal_error")


def test_a_lost_database_is_a_503_that_says_when_to_come_back(
    failing: Callable[[Exception], httpx.Response],
) -> None:
    lost = psycopg2.OperationalError(f"could not connect to {CANARY}")
    answer = failing(sa.exc.OperationalError("SELECT", {"a": CANARY}, lost))
    says_no_more(answer, "database_unavailable")
    assert int(answer.headers["retry-after"]) > 0


def test_no_free_connection_is_a_503_that_says_when_to_come_back(
    failing: Callable[[Exception], httpx.Response],
) -> None:
    answer = failing(sa.exc.TimeoutError(f"QueuePool limit {CANARY}"))
    says_no_more(answer, "overloaded")
    assert int(answer.headers["retry-after"]) > 0


class Seen(logging.Handler):
    """Waits for a log line."""

    def __init__(self, request_id: str) -> None:
        super().__init__()
        self.request_id = request_id
        self.lines: list[dict[str, Any]] = []
        self.ended = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        line = record.msg
        if record.name == "access" and self.request_id in line:
            status = re.search(r" /orders (\d+) ", line)
            assert status
            self.lines.append({"level": "info", "status": int(status[1])})
            self.ended.set()
        elif isinstance(line, dict) and line.get("request_id") == self.request_id:
            self.lines.append(line)


def test_a_caller_who_leaves_in_the_middle_is_no_failure_of_ours(
    base_url: str, alice: httpx.Client, user: str
) -> None:
    seen = Seen(user)
    logging.getLogger().addHandler(seen)
    try:
        address = httpx.URL(base_url)
        with socket.create_connection((address.host, address.port or 80)) as connection:
            connection.sendall(
                f"POST /orders HTTP/1.1\r\nHost: x\r\nX-Request-Id: {user}\r\n"
                f"Authorization: {alice.headers['authorization']}\r\n"
                "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{".encode()
            )
        assert seen.ended.wait(30)
    finally:
        logging.getLogger().removeHandler(seen)
    assert all(line["level"] != "error" for line in seen.lines)
    assert all(line.get("status", 0) < 500 for line in seen.lines)
    assert alice.get("/orders").json() == []


def test_after_a_failure_the_service_goes_on(
    failing: Callable[[Exception], httpx.Response], alice: httpx.Client
) -> None:
    for _ in range(25):  # more than there are connections
        assert failing(Odd(CANARY)).status_code == 500
    assert alice.post("/orders", json=order()).status_code == 201
