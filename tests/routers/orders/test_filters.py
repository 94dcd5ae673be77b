"""Lists of orders, filtered."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from tests.support.clients import (
    ABSENT,
    every,
    fields,
    ids,
    moment,
)
from tests.support.factories import order, place_order, save_card
from tests.support.orders import STATUSES, bring_to, move

# --- Filters ----------------------------------------------------------------------------------


def found(client: httpx.Client, **query: Any) -> list[int]:
    answer = client.get("/orders", params=query)
    assert answer.status_code == 200, answer.text
    return ids(answer.json())


def test_orders_are_filtered_by_status(alice: httpx.Client, engine: sa.Engine) -> None:
    by_status = {}
    for status in STATUSES:
        by_status[status] = place_order(alice)["id"]
        bring_to(engine, by_status[status], status)
    for status, order_id in by_status.items():
        assert found(alice, status=status) == [order_id]


@pytest.mark.parametrize("status", ["", "Pending", "cancelled", "pending,paid", "*", "null", "1"])
def test_a_status_to_filter_by_is_one_of_seven(alice: httpx.Client, status: str) -> None:
    assert fields(alice.get("/orders", params={"status": status})) == {"status"}


def test_orders_are_filtered_by_their_method(alice: httpx.Client, bob: httpx.Client) -> None:
    first = save_card(alice)["id"]
    second = save_card(alice, "5555555555554444")["id"]
    theirs = save_card(bob)["id"]
    place_order(bob, payment_method_id=theirs)
    placed = [place_order(alice, payment_method_id=method)["id"] for method in (first, second)]
    placed.append(place_order(alice, payment_method_id=first)["id"])
    place_order(alice)
    assert found(alice, payment_method_id=first) == [placed[2], placed[0]]
    assert found(alice, payment_method_id=second) == [placed[1]]
    assert found(alice, payment_method_id=theirs) == []
    assert found(alice, payment_method_id=ABSENT) == []


@pytest.mark.parametrize("number", ["0", "-1", str(2**63), str(-(2**63)), "9" * 25])
def test_no_order_has_a_method_that_cannot_be(alice: httpx.Client, number: str) -> None:
    place_order(alice)
    assert found(alice, payment_method_id=number) == []


@pytest.mark.parametrize("number", ["", "abc", "1.0", "1e0", "true", "null", "１", "1;", "0x1"])
def test_a_method_to_filter_by_is_an_integer(alice: httpx.Client, number: str) -> None:
    answer = alice.get("/orders", params={"payment_method_id": number})
    assert fields(answer) == {"payment_method_id"}


def test_orders_are_filtered_by_time(alice: httpx.Client) -> None:
    first, second, third = (place_order(alice) for _ in range(3))
    middle = second["created_at"]
    assert found(alice, created_after=middle) == [third["id"]]
    assert found(alice, created_before=middle) == [first["id"]]
    between = {"created_after": first["created_at"], "created_before": third["created_at"]}
    assert found(alice, **between) == [second["id"]]
    assert found(alice, created_after=third["created_at"]) == []
    assert found(alice, created_before=first["created_at"]) == []
    backwards = {"created_after": third["created_at"], "created_before": first["created_at"]}
    assert found(alice, **backwards) == []


@pytest.mark.parametrize("hours", [0, 1, -1, 5.5, -3.5, 5.75, 14, -12])
def test_a_moment_is_the_same_in_every_time_zone(alice: httpx.Client, hours: float) -> None:
    first, second = place_order(alice), place_order(alice)
    zone = timezone(timedelta(hours=hours))
    there = moment(first["created_at"]).astimezone(zone).isoformat()
    assert found(alice, created_after=there) == [second["id"]]


FAR_PAST = [
    "2000-01-01T00:00:00Z",
    "1970-01-01T00:00:00Z",
    "1969-12-31T23:59:59-00:00",
    "0001-01-01T00:00:00Z",
    "2000-02-29T00:00:00z",
    "2000-01-01t00:00:00Z",
    "2000-01-01T00:00:00.1Z",
    "2000-01-01T00:00:00.123456Z",
    "2000-01-01T00:00:00.123456789Z",
    "2000-01-01T00:00:00+14:00",
    "2000-01-01T00:00:00-12:00",
    "2000-01-01T00:00:00+15:59",
    "2000-01-01T00:00:00+16:00",
    "2000-01-01T00:00:00-16:00",
    "2000-01-01T00:00:00+23:59",
    "2000-01-01T00:00:00-23:59",
    "0001-01-01T00:00:00-23:59",
    "0001-01-01T00:00:00+23:59",
    "1900-01-01T00:00:00+00:19",
]


FAR_FUTURE = [
    "2999-12-31T23:59:59Z",
    "9999-12-31T23:59:59Z",
    "9999-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59+23:59",
    "9999-12-31T23:59:59-23:59",
]


@pytest.mark.parametrize("time", FAR_PAST)
def test_a_moment_may_be_long_ago(alice: httpx.Client, time: str) -> None:
    order_id = place_order(alice)["id"]
    assert found(alice, created_after=time) == [order_id]
    assert found(alice, created_before=time) == []


@pytest.mark.parametrize("time", FAR_FUTURE)
def test_a_moment_may_be_far_away(alice: httpx.Client, time: str) -> None:
    order_id = place_order(alice)["id"]
    assert found(alice, created_before=time) == [order_id]
    assert found(alice, created_after=time) == []


@pytest.mark.parametrize(
    "time",
    [
        *("", "now", "yesterday", "2026-01-31", "2026-01-31T12:00:00", "2026-01-31T12:00Z", "null"),
        *("2026-01-31 12:00:00", "2026-01-31T12:00:00 02:00", "2026-01-31T12:00:00+0200", "0"),
        *("2026-01-31T12:00:00+02", "2026-13-01T00:00:00Z", "2026-00-01T00:00:00Z", "1767225600"),
        *("2026-02-29T00:00:00Z", "2026-01-32T00:00:00Z", "2026-01-00T00:00:00Z", "12:00:00Z"),
        *("2026-01-31T24:00:01Z", "2026-01-31T25:00:00Z", "2026-01-31T12:60:00Z", "2026-W05-1"),
        *("2026-01-31T12:00:61Z", "2026-01-31T12:00:00+24:00", "2026-01-31T12:00:00+01:60"),
        *("2026-01-31T12:00:00.Z", "2026-01-31T12:00:00,5Z", "26-01-31T12:00:00Z", "infinity"),
        *("12026-01-31T12:00:00Z", "-2026-01-31T12:00:00Z", "+2026-01-31T12:00:00Z", "epoch"),
        *("0000-01-01T00:00:00Z", "２０２６-01-31T12:00:00Z", "2026-01-31T12:00:00Z\0", "😀"),
        *("2026-01-31T12:00:00ZZ", " 2026-01-31T12:00:00Z", "2026-01-31T12:00:00Z ", "1e9"),
        *(
            "2026-01-31T12:00:00 UTC",
            "2026-01-31T12:00:00Europe/Berlin",
            "2026-01-31T12:00:00−01:00",
        ),
        *("2026-01-31T12:00:00." + "1" * 5000 + "Z", "-infinity", "today", "allballs"),
    ],
    ids=lambda time: ascii(time[:32]),
)
def test_a_moment_is_rfc_3339_with_an_offset(alice: httpx.Client, time: str) -> None:
    for name in ("created_after", "created_before"):
        assert fields(alice.get("/orders", params={name: time})) == {name}


def test_a_plus_that_is_not_encoded_is_a_space_and_the_answer_says_so(
    alice: httpx.Client,
) -> None:
    answer = alice.get("/orders?created_after=2026-01-31T12:00:00+02:00")
    assert fields(answer) == {"created_after"}
    assert "%2B" in answer.json()["errors"][0]["message"]


@pytest.mark.parametrize(
    "time", ["2016-12-31T23:59:60Z", "2026-06-30T23:59:60Z", "2026-01-31T24:00:00Z"]
)
def test_a_leap_second_is_read_or_refused(alice: httpx.Client, time: str) -> None:
    assert alice.get("/orders", params={"created_after": time}).status_code in (200, 400)


def test_filters_are_combined(
    alice: httpx.Client, manager: httpx.Client, bob: httpx.Client, user: str
) -> None:
    method = save_card(alice)["id"]
    start = place_order(alice)["created_at"]
    wanted = []
    for canceled in (True, False, True, False):
        for named in (method, None):
            placed = place_order(alice, payment_method_id=named)["id"]
            if canceled:
                move(alice, placed, "canceled")
            if canceled and named:
                wanted.append(placed)
    place_order(bob)
    end = place_order(alice)["created_at"]
    query = {
        "status": "canceled",
        "payment_method_id": method,
        "created_after": start,
        "created_before": end,
    }
    assert found(alice, **query) == wanted[::-1]
    assert found(manager, **query, user_id=user) == wanted[::-1]
    assert found(manager, **query, user_id=f"{user}-bob") == []
    assert ids(every(alice, "/orders", **query, limit=1)) == wanted[::-1]
    assert found(alice, **(query | {"status": "paid"})) == []


def test_a_managers_list_holds_everyones_orders(
    alice: httpx.Client, bob: httpx.Client, manager: httpx.Client
) -> None:
    start = datetime.now(timezone.utc) - timedelta(seconds=1)
    placed = [place_order(client)["id"] for client in (alice, bob, alice)]
    listed = every(manager, "/orders", created_after=start.isoformat(), limit=200)
    assert [number for number in ids(listed) if number in placed] == placed[::-1]


def test_a_name_to_filter_by_is_text(manager: httpx.Client) -> None:
    assert found(manager, user_id="nobody at all 😀") == []
    for name in ("", "a" * 256, "a\0b"):
        assert fields(manager.get("/orders", params={"user_id": name})) == {"user_id"}


def test_numbers_stay_integers_in_the_answer(alice: httpx.Client) -> None:
    answer = alice.post("/orders", json=order(total_amount=999_999_999_999, quantity=2**53 - 1))
    raw = json.loads(answer.text, parse_float=lambda text: pytest.fail(text))
    assert raw["total_amount"] == 999_999_999_999
    assert raw["quantity"] == 2**53 - 1
