"""Many requests at the same moment, and what must be true when the dust has settled."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from config import Settings
from tests.support.clients import Api, code, every, ids, watched
from tests.support.database import sandbox_charges
from tests.support.factories import VISA, card, number, place_order, save_card

Act = Callable[[httpx.Client], httpx.Response]


@pytest.fixture
def api(base_url: str, settings: Settings) -> Iterator[Api]:
    yield from watched(base_url, settings)


@pytest.fixture
def at_once(api: Api, user: str) -> Callable[[Sequence[Act]], list[httpx.Response]]:
    """Does things at the same moment, each over a connection of its own."""

    def run(acts: Sequence[Act]) -> list[httpx.Response]:
        barrier = threading.Barrier(len(acts))
        clients = [api(user) for _ in acts]

        def one(act: Act, client: httpx.Client) -> httpx.Response:
            barrier.wait(30)
            return act(client)

        with ThreadPoolExecutor(len(acts)) as threads:
            return list(threads.map(one, acts, clients))

    return run


AtOnce = Callable[[Sequence[Act]], list[httpx.Response]]


def posting(path: str, body: dict[str, Any]) -> Act:
    return lambda client: client.post(path, json=body)


def paying(order_id: int, **body: Any) -> Act:
    return posting(f"/orders/{order_id}/payments", body)


def moving(order_id: int, status: str) -> Act:
    return lambda client: client.put(f"/orders/{order_id}/status", json={"status": status})


def defaults(client: httpx.Client) -> list[int]:
    methods = client.get("/payment-methods", params={"limit": 200}).json()
    return [method["id"] for method in methods if method["is_default"]]


# --- Saving -----------------------------------------------------------------------------------


def test_a_card_saved_a_hundred_times_at_once_is_saved_once(
    alice: httpx.Client, at_once: AtOnce
) -> None:
    typed = [VISA, "4242 4242 4242 4242", "4242-4242-4242-4242", " 42424242 42424242"]
    bodies = [card(typed[turn % 4], is_default=turn % 3 == 0) for turn in range(100)]
    answers = at_once([posting("/payment-methods", body) for body in bodies])
    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: 99}
    [saved] = [answer.json()["id"] for answer in answers if answer.status_code == 201]
    refused = [answer for answer in answers if answer.status_code == 409]
    assert {code(answer)[1] for answer in refused} == {"duplicate_payment_method"}
    assert {answer.json()["payment_method_id"] for answer in refused} == {saved}
    assert ids(alice.get("/payment-methods").json()) == defaults(alice) == [saved]


def test_fifty_first_cards_at_once_have_one_default(alice: httpx.Client, at_once: AtOnce) -> None:
    answers = at_once([posting("/payment-methods", card(number("4", 16))) for _ in range(50)])
    assert {answer.status_code for answer in answers} == {201}
    assert len(alice.get("/payment-methods").json()) == 50
    assert len(defaults(alice)) == 1
    assert sum(answer.json()["is_default"] for answer in answers) == 1


def test_thirty_new_defaults_at_once_leave_one(alice: httpx.Client, at_once: AtOnce) -> None:
    answers = at_once(
        [posting("/payment-methods", card(number("4", 16), is_default=True)) for _ in range(30)]
    )
    assert {answer.status_code for answer in answers} == {201}
    assert all(answer.json()["is_default"] for answer in answers)
    assert len(defaults(alice)) == 1


def test_one_card_of_many_users_is_saved_for_each(api: Api, user: str) -> None:
    clients = [api(f"{user}-{turn}") for turn in range(30)]
    barrier = threading.Barrier(len(clients))

    def save(client: httpx.Client) -> int:
        barrier.wait(30)
        return client.post("/payment-methods", json=card()).status_code

    with ThreadPoolExecutor(len(clients)) as threads:
        assert set(threads.map(save, clients)) == {201}


# --- Changing and removing --------------------------------------------------------------------


def test_moving_the_default_about_leaves_one(alice: httpx.Client, at_once: AtOnce) -> None:
    methods = [save_card(alice, number("4", 16))["id"] for _ in range(8)]

    def choosing(method: int) -> Act:
        return lambda client: client.patch(f"/payment-methods/{method}", json={"is_default": True})

    answers = at_once([choosing(method) for method in methods * 5])
    assert {answer.status_code for answer in answers} == {200}
    assert len(defaults(alice)) == 1


def test_removing_and_choosing_defaults_leaves_one_while_there_is_any(
    alice: httpx.Client, at_once: AtOnce
) -> None:
    methods = [save_card(alice, number("4", 16))["id"] for _ in range(12)]
    keep = methods[::4]

    def removing(method: int) -> Act:
        return lambda client: client.delete(f"/payment-methods/{method}")

    def choosing(method: int) -> Act:
        return lambda client: client.patch(f"/payment-methods/{method}", json={"is_default": True})

    acts = [removing(method) for method in methods if method not in keep]
    acts += [choosing(method) for method in methods * 2]
    acts += [posting("/payment-methods", card(number("4", 16), is_default=True)) for _ in range(4)]
    random.shuffle(acts)
    answers = at_once(acts)
    assert {answer.status_code for answer in answers} <= {200, 201, 204, 404}
    left = ids(alice.get("/payment-methods").json())
    assert set(keep) <= set(left)
    assert len(left) == len(keep) + 4
    assert len(defaults(alice)) == 1


def test_a_method_is_removed_once(alice: httpx.Client, at_once: AtOnce) -> None:
    other, method = save_card(alice, number("4", 16))["id"], save_card(alice)["id"]
    answers = at_once([lambda client: client.delete(f"/payment-methods/{method}")] * 20)
    assert Counter(answer.status_code for answer in answers) == {204: 1, 404: 19}
    assert defaults(alice) == [other]


def test_removing_all_at_once_leaves_none_and_the_next_is_the_default(
    alice: httpx.Client, at_once: AtOnce
) -> None:
    methods = [save_card(alice, number("4", 16))["id"] for _ in range(10)]

    def removing(method: int) -> Act:
        return lambda client: client.delete(f"/payment-methods/{method}")

    answers = at_once([removing(method) for method in methods])
    assert {answer.status_code for answer in answers} == {204}
    assert alice.get("/payment-methods").json() == []
    assert save_card(alice)["is_default"] is True


def test_removing_and_saving_one_card_never_saves_it_twice(
    alice: httpx.Client, at_once: AtOnce
) -> None:
    method = save_card(alice)["id"]

    def remove(client: httpx.Client) -> httpx.Response:
        return client.delete(f"/payment-methods/{method}")

    answers = at_once([remove, *([posting("/payment-methods", card())] * 20)])
    saved = [answer.json()["id"] for answer in answers[1:] if answer.status_code == 201]
    assert answers[0].status_code == 204
    assert len(saved) <= 1
    assert ids(alice.get("/payment-methods").json()) == saved


# --- Paying -----------------------------------------------------------------------------------


def test_an_order_paid_fifty_times_at_once_is_charged_once(
    alice: httpx.Client, engine: sa.Engine, at_once: AtOnce
) -> None:
    methods = [save_card(alice, number("4", 16))["id"] for _ in range(5)]
    order_id = place_order(alice)["id"]
    answers = at_once([paying(order_id, payment_method_id=methods[turn % 5]) for turn in range(50)])
    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: 49}
    [paid] = [answer.json()["id"] for answer in answers if answer.status_code == 201]
    for answer in answers:
        if answer.status_code == 409:
            assert code(answer)[1] in ("payment_in_progress", "order_already_paid")
            assert answer.json()["payment_id"] == paid
    assert [(charge.payment_id, charge.status) for charge in sandbox_charges(engine, order_id)] == [
        (paid, "captured")
    ]
    assert ids(alice.get(f"/orders/{order_id}/payments").json()) == [paid]
    assert alice.get(f"/orders/{order_id}").json()["status"] == "paid"
    history = alice.get(f"/orders/{order_id}/events").json()
    assert [event["type"] for event in history] == [
        *("order.status_changed", "payment.captured", "order.created")
    ]
    assert [event["sequence"] for event in history] == [3, 2, 1]


def test_declines_at_once_leave_one_charge_each_and_no_money(
    alice: httpx.Client, engine: sa.Engine, at_once: AtOnce
) -> None:
    save_card(alice, "4000000000000002")
    order_id = place_order(alice)["id"]
    answers = at_once([paying(order_id) for _ in range(30)])
    assert {code(answer) for answer in answers} <= {
        (402, "payment_declined"),
        (409, "payment_in_progress"),
    }
    failed = {answer.json()["payment_id"] for answer in answers if answer.status_code == 402}
    assert failed
    charges = sandbox_charges(engine, order_id)
    assert {charge.payment_id for charge in charges} == failed
    assert len(charges) == len(failed)
    assert {charge.status for charge in charges} == {"declined"}
    assert alice.get(f"/orders/{order_id}").json()["status"] == "pending"
    history = alice.get(f"/orders/{order_id}/events", params={"limit": 200}).json()
    assert [event["sequence"] for event in history] == list(range(len(history), 0, -1))


@pytest.mark.parametrize("turn", range(5))
def test_canceling_while_paying_ends_in_one_of_both(
    alice: httpx.Client, engine: sa.Engine, at_once: AtOnce, turn: int
) -> None:
    save_card(alice)
    order_id = place_order(alice)["id"]
    acts = [paying(order_id), moving(order_id, "canceled")] * 4
    random.shuffle(acts)
    answers = at_once(acts)
    paid = [answer for answer in answers if answer.status_code == 201]
    canceled = [answer for answer in answers if answer.status_code == 200]
    assert len(paid) <= 1
    assert {code(answer) for answer in answers if answer.is_error} <= {
        (409, "payment_in_progress"),
        (409, "order_already_paid"),
        (409, "invalid_status_transition"),
    }
    status = alice.get(f"/orders/{order_id}").json()["status"]
    charges = sandbox_charges(engine, order_id)
    if paid:
        assert status == "paid"
        assert not canceled
        assert [charge.status for charge in charges] == ["captured"]
    else:
        assert status == "canceled"
        assert len(canceled) == 4  # one cancels it, the others find it canceled
        assert charges == []


def test_canceling_at_once_is_told_once(alice: httpx.Client, at_once: AtOnce) -> None:
    order_id = place_order(alice)["id"]
    answers = at_once([moving(order_id, "canceled")] * 20)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    history = alice.get(f"/orders/{order_id}/events").json()
    assert [event["sequence"] for event in history] == [2, 1]


def test_a_method_removed_while_it_pays_pays_or_does_not(
    alice: httpx.Client, engine: sa.Engine, at_once: AtOnce
) -> None:
    method = save_card(alice)["id"]
    orders = [place_order(alice, payment_method_id=method)["id"] for _ in range(10)]

    def remove(client: httpx.Client) -> httpx.Response:
        return client.delete(f"/payment-methods/{method}")

    removed, *answers = at_once([remove, *(paying(order_id) for order_id in orders)])
    assert removed.status_code == 204
    for order_id, answer in zip(orders, answers, strict=True):
        if answer.status_code == 201:
            assert [charge.status for charge in sandbox_charges(engine, order_id)] == ["captured"]
        else:
            assert code(answer) == (400, "payment_method_not_found")
            assert sandbox_charges(engine, order_id) == []


def newest_first(rows: list[dict[str, Any]]) -> list[int]:
    """The ids as a list shows them: by time, and by id where times are the same."""
    newest = sorted(rows, key=lambda row: (row["created_at"], row["id"]), reverse=True)
    return ids(newest)


def test_orders_placed_at_once_are_all_there(alice: httpx.Client, at_once: AtOnce) -> None:
    body = {"product_id": "a", "quantity": 1, "total_amount": 1}
    answers = at_once([posting("/orders", body) for _ in range(60)])
    assert {answer.status_code for answer in answers} == {201}
    placed = newest_first([answer.json() for answer in answers])
    assert ids(alice.get("/orders", params={"limit": 200}).json()) == placed


def test_a_reader_misses_no_order_that_was_there_before(
    alice: httpx.Client, at_once: AtOnce
) -> None:
    before = [place_order(alice)["id"] for _ in range(20)][::-1]

    def read(client: httpx.Client) -> httpx.Response:
        rows = every(client, "/orders", limit=3)
        seen = ids(rows)
        assert len(seen) == len(set(seen))
        assert seen == newest_first(rows)
        assert [order_id for order_id in seen if order_id in before] == before
        return client.get("/orders")

    body = {"product_id": "a", "quantity": 1, "total_amount": 1}
    answers = at_once([read, *([posting("/orders", body)] * 20), read])
    assert all(answer.is_success for answer in answers)
