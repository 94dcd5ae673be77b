"""Lists come in pages that hold every row once; times."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.support.clients import (
    every,
    ids,
    moment,
    pages,
)
from tests.support.factories import pay, place_order, save_card

RFC_3339_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")


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
