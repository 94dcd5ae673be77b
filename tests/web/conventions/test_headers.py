"""Request ids, headers, methods, paths and CORS."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

import main
from config import Settings
from tests.support.clients import (
    ABSENT,
    REQUEST_ID,
    code,
)
from tests.support.factories import order, place_order

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
