"""`GET /sandbox/charges`: the sandbox's books in pages."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import sqlalchemy as sa

ORDER = 2**40  # nobody's order
OTHER = ORDER + 1


@pytest.fixture(scope="module", autouse=True)
def entries(engine: sa.Engine) -> None:
    """130 charges of one order and 130 of another by turns; the higher its number the newer."""
    fill = (
        "INSERT INTO sandbox.charges (reference, order_id, payment_id, idempotency_key, amount,"
        " currency, outcome, capture, status, created_at) SELECT 'ch_' || n, :order_id + n % 2, n,"
        " 'key ' || n, 1000, 'USD', 'generic_decline', true, 'declined',"
        # Some at the same moment.
        " now() - make_interval(secs => (260 - n) / 3) FROM generate_series(1, 260) n"
    )
    with engine.begin() as connection:
        connection.execute(sa.text(fill), {"order_id": ORDER})


def numbers(answer: httpx.Response) -> list[int]:
    assert answer.status_code == 200, answer.text
    return [int(entry["reference"].removeprefix("ch_")) for entry in answer.json()]


def walk(client: httpx.Client, **query: Any) -> list[list[int]]:
    """Every page, as the Link headers lead."""
    answer = client.get("/sandbox/charges", params=query)
    pages = [numbers(answer)]
    while "next" in answer.links:
        answer = client.get(answer.links["next"]["url"])
        pages.append(numbers(answer))
    return pages


@pytest.mark.parametrize("limit", [1, 7, 200])
def test_the_pages_hold_every_charge_once_newest_first(manager: httpx.Client, limit: int) -> None:
    pages = walk(manager, limit=limit)
    assert {len(page) for page in pages[:-1]} == {limit}
    listed = [number for page in pages for number in page]
    assert sorted(listed) == list(range(1, 261))
    moments = [(260 - number) // 3 for number in listed]
    assert moments == sorted(moments)


def test_a_page_has_fifty_charges_unless_it_is_told_otherwise(manager: httpx.Client) -> None:
    assert len(numbers(manager.get("/sandbox/charges"))) == 50


def test_the_charges_of_one_order_are_in_one_page_oldest_first(manager: httpx.Client) -> None:
    (page,) = walk(manager, order_id=ORDER)
    assert sorted(page) == list(range(2, 261, 2))
    moments = [(260 - number) // 3 for number in page]
    assert moments == sorted(moments, reverse=True)


def test_the_charges_of_one_order_have_pages_too(manager: httpx.Client) -> None:
    pages = walk(manager, order_id=OTHER, limit=40)
    assert [len(page) for page in pages] == [40, 40, 40, 10]
    assert [number for page in pages for number in page] == walk(manager, order_id=OTHER)[0]


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=201", "limit=x", "limit=", "cursor=ch_0", "cursor=", "cursor=%00"),
        *("cursor=%ED%A0%80", "cursor=7", "order_id=7&cursor=nobody", "offset=3"),
        "cursor=" + "c" * 41,
    ],
)
def test_a_page_that_cannot_be_is_400(manager: httpx.Client, query: str) -> None:
    answer = manager.get(f"/sandbox/charges?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
