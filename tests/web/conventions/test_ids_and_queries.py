"""Ids and queries that nobody should send."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.support.clients import (
    ABSENT,
    but_request_id,
    code,
    fields,
)
from tests.support.factories import order, place_order

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
