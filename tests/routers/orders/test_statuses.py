"""Which moves an order may make, by whom, and the history that tells of them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from gateways.base import Charge, ChargeRequest
from gateways.sandbox import SandboxGateway
from greenlets import in_thread
from tests.support.clients import (
    Api,
    code,
    every,
    fields,
    ids,
    moment,
)
from tests.support.factories import order, pay, place_order, save_card
from tests.support.orders import STATUSES, bring_to, move, read

EVENT = {
    *("id", "type", "created_at", "user_id", "order_id", "actor", "request_id", "sequence"),
    "data",
}


# The contract's table, row by row.
BY_OWNER = {"pending": {"canceled"}}


BY_MANAGER = {
    "pending": {"canceled", "paid"},
    "authorized": {"canceled"},
    "paid": {"shipped"},
    "shipped": {"delivered"},
}


BY_PAYMENTS = {
    "pending": {"authorized", "paid"},
    "authorized": {"paid", "canceled"},
    "paid": {"refunded"},
    "shipped": {"refunded"},
    "delivered": {"refunded"},
}


# --- The status table -------------------------------------------------------------------------

ROLES = {
    "owner": BY_OWNER,
    "manager": BY_MANAGER,
    "owning_manager": {
        status: BY_OWNER.get(status, set()) | BY_MANAGER.get(status, set()) for status in STATUSES
    },
}


def mover(api: Api, user: str, role: str) -> httpx.Client:
    return {
        "owner": lambda: api(user),
        "manager": lambda: api(f"{user}-boss", "orders:manage"),
        "owning_manager": lambda: api(user, "orders:manage"),
    }[role]()


def is_legal(before: str, after: str) -> bool:
    return any(after in table.get(before, set()) for table in (BY_OWNER, BY_MANAGER, BY_PAYMENTS))


@pytest.mark.parametrize("before", STATUSES)
@pytest.mark.parametrize("role", ROLES)
def test_the_status_table_refuses_what_it_does_not_allow(
    api: Api, alice: httpx.Client, engine: sa.Engine, user: str, role: str, before: str
) -> None:
    order_id = place_order(alice)["id"]
    bring_to(engine, order_id, before)
    shown = read(alice, order_id)
    assert shown["status"] == before
    client, mine = mover(api, user, role), ROLES[role].get(before, set())
    for after in STATUSES:
        if after in mine:
            continue
        answer = move(client, order_id, after)
        if after == before:
            assert (answer.status_code, answer.json()) == (200, shown)
        elif is_legal(before, after):
            assert code(answer) == (403, "forbidden")
        else:
            assert code(answer) == (409, "invalid_status_transition")
            assert answer.json()["current_status"] == before
            allowed = answer.json()["allowed_statuses"]
            assert len(allowed) == len(set(allowed))
            assert set(allowed) == mine
    assert read(alice, order_id) == shown
    [told] = alice.get(f"/orders/{order_id}/events").json()
    assert told["type"] == "order.created"


@pytest.mark.parametrize(
    ("role", "before", "after"),
    [
        (role, before, after)
        for role, table in ROLES.items()
        for before, statuses in table.items()
        for after in sorted(statuses)
    ],
)
def test_the_status_table_allows_what_it_allows(
    api: Api,
    alice: httpx.Client,
    engine: sa.Engine,
    user: str,
    role: str,
    before: str,
    after: str,
) -> None:
    order_id = place_order(alice)["id"]
    bring_to(engine, order_id, before)
    answer = move(mover(api, user, role), order_id, after)
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == after
    [event, created] = alice.get(f"/orders/{order_id}/events").json()
    assert (event["type"], created["type"]) == ("order.status_changed", "order.created")
    assert event["data"] == answer.json() == read(alice, order_id)


@pytest.mark.parametrize("before", STATUSES)
def test_the_database_allows_no_other_move(
    alice: httpx.Client, engine: sa.Engine, before: str
) -> None:
    order_id = place_order(alice)["id"]
    bring_to(engine, order_id, before)
    statement = sa.text("UPDATE orders SET status = :after WHERE id = :id")
    for after in STATUSES:
        values = {"after": after, "id": order_id}
        with engine.connect() as connection:  # and is rolled back
            if after == before or is_legal(before, after):
                connection.execute(statement, values)
            else:
                with pytest.raises(sa.exc.DBAPIError):
                    connection.execute(statement, values)


@pytest.mark.parametrize(
    "status",
    [
        *("cancelled", "Canceled", "PENDING", "", " ", "paid ", "failed", "voided", "*", "😀"),
        *("captured", "pending\0", "a" * 1000, None, 1, True, [], ["paid"], {}, 1.5),
    ],
    ids=lambda status: ascii(status)[:16],
)
def test_there_are_seven_statuses(alice: httpx.Client, status: Any) -> None:
    placed = place_order(alice)
    assert fields(move(alice, placed["id"], status)) == {"status"}
    assert read(alice, placed["id"]) == placed


def test_the_other_scopes_move_no_more_than_an_owner(api: Api, user: str) -> None:
    cashier = api(user, "payments:manage webhooks:manage")
    order_id = place_order(cashier)["id"]
    assert code(move(cashier, order_id, "paid")) == (403, "forbidden")
    answer = move(cashier, order_id, "shipped")
    assert answer.json()["allowed_statuses"] == ["canceled"]
    assert move(cashier, order_id, "canceled").status_code == 200


def test_a_move_needs_its_status(alice: httpx.Client) -> None:
    path = f"/orders/{place_order(alice)['id']}/status"
    assert fields(alice.put(path, json={})) == {"status"}
    assert fields(alice.put(path, json={"status": "canceled", "reason": "x"})) == {"reason"}


def test_an_order_goes_its_whole_way(alice: httpx.Client, manager: httpx.Client) -> None:
    order_id = place_order(alice)["id"]
    for status in ("paid", "shipped", "delivered"):
        assert move(manager, order_id, status).json()["status"] == status
        assert read(alice, order_id)["status"] == status
    answer = move(manager, order_id, "canceled")
    assert answer.json()["allowed_statuses"] == []


def test_a_paid_order_is_not_canceled_by_its_owner(alice: httpx.Client) -> None:
    save_card(alice)
    order_id = place_order(alice)["id"]
    pay(alice, order_id)
    answer = move(alice, order_id, "canceled")
    assert code(answer) == (409, "invalid_status_transition")
    assert (answer.json()["current_status"], answer.json()["allowed_statuses"]) == ("paid", [])


def test_an_order_is_canceled_after_a_decline(alice: httpx.Client) -> None:
    save_card(alice, "4000000000000002")
    order_id = place_order(alice)["id"]
    assert alice.post(f"/orders/{order_id}/payments").status_code == 402
    assert move(alice, order_id, "canceled").json()["status"] == "canceled"


@pytest.mark.parametrize("status", ["canceled", "paid"])
def test_an_order_whose_payment_is_open_is_not_moved(
    base_url: str,
    alice: httpx.Client,
    manager: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
    status: str,
) -> None:
    save_card(alice)
    placed = place_order(alice)
    asked, go_on = threading.Event(), threading.Event()
    charge = SandboxGateway.charge

    def wait() -> None:
        asked.set()
        assert go_on.wait(30)

    def slow(self: SandboxGateway, request: ChargeRequest) -> Charge:
        in_thread(wait)
        return charge(self, request)

    monkeypatch.setattr(SandboxGateway, "charge", slow)
    path = f"/orders/{placed['id']}/payments"
    with ThreadPoolExecutor() as threads:
        paying = threads.submit(httpx.post, base_url + path, headers=alice.headers)
        try:
            assert asked.wait(30)
            [payment] = alice.get(path).json()
            assert payment["status"] == "pending"
            for client in (manager,) if status == "paid" else (alice, manager):
                answer = move(client, placed["id"], status)
                assert code(answer) == (409, "payment_in_progress")
                assert answer.json()["payment_id"] == payment["id"]
                assert answer.json()["retryable"] is True
            assert read(alice, placed["id"])["status"] == "pending"
        finally:
            go_on.set()
        assert paying.result().status_code == 201
    assert code(move(alice, placed["id"], "canceled")) == (409, "invalid_status_transition")


# --- History ----------------------------------------------------------------------------------


def history(client: httpx.Client, order_id: int) -> list[dict[str, Any]]:
    """The events of an order, the oldest first, after checking what holds for every history."""
    events = every(client, f"/orders/{order_id}/events")[::-1]
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert ids(events) == sorted(ids(events))
    times = [moment(event["created_at"]) for event in events]
    assert times == sorted(times)
    owner = read(client, order_id)["user_id"]
    for event in events:
        assert event.keys() == EVENT
        assert (event["order_id"], event["user_id"]) == (order_id, owner)
        assert event["actor"].keys() == {"type", "id"}
    return events


def test_the_history_begins_with_the_order(alice: httpx.Client, user: str) -> None:
    answer = alice.post("/orders", json=order(metadata={"é": "ü"}))
    [event] = history(alice, answer.json()["id"])
    assert event["type"] == "order.created"
    assert event["actor"] == {"type": "user", "id": user}
    assert event["request_id"] == answer.headers["x-request-id"]
    assert event["data"] == answer.json()


def test_the_history_of_a_delivered_order(
    alice: httpx.Client, manager: httpx.Client, user: str
) -> None:
    method = save_card(alice)
    placed = alice.post("/orders", json=order(payment_method_id=method["id"]))
    order_id = placed.json()["id"]
    paid = alice.post(f"/orders/{order_id}/payments")
    order_paid = read(alice, order_id)
    shipped = move(manager, order_id, "shipped")
    delivered = move(manager, order_id, "delivered")
    told = history(alice, order_id)
    assert [(event["type"], event["request_id"], event["data"]) for event in told] == [
        ("order.created", placed.headers["x-request-id"], placed.json()),
        ("payment.captured", paid.headers["x-request-id"], paid.json()),
        ("order.status_changed", paid.headers["x-request-id"], order_paid),
        ("order.status_changed", shipped.headers["x-request-id"], shipped.json()),
        ("order.status_changed", delivered.headers["x-request-id"], delivered.json()),
    ]
    by_user, by_manager = {"type": "user", "id": user}, {"type": "user", "id": "manager"}
    by_gateway = {"type": "gateway", "id": "sandbox"}
    assert [event["actor"] for event in told] == [
        *(by_user, by_gateway, by_gateway, by_manager, by_manager)
    ]


def test_the_callers_request_id_is_in_the_history(alice: httpx.Client, user: str) -> None:
    names = [f"{user}.{number}" for number in range(2)]
    placed = alice.post("/orders", json=order(), headers={"X-Request-Id": names[0]}).json()
    alice.put(
        f"/orders/{placed['id']}/status",
        json={"status": "canceled"},
        headers={"X-Request-Id": names[1]},
    )
    assert [event["request_id"] for event in history(alice, placed["id"])] == names


def test_a_decline_is_told_and_moves_no_order(alice: httpx.Client) -> None:
    save_card(alice, "4000000000000002")
    placed = place_order(alice)
    declined = alice.post(f"/orders/{placed['id']}/payments")
    _, event = history(alice, placed["id"])
    assert event["type"] == "payment.failed"
    assert event["request_id"] == declined.headers["x-request-id"]
    assert event["data"] == alice.get(f"/payments/{declined.json()['payment_id']}").json()
    # The order itself is as it was.
    assert read(alice, placed["id"])["status"] == "pending"


def test_what_was_refused_is_not_in_the_history(
    alice: httpx.Client, manager: httpx.Client, bob: httpx.Client
) -> None:
    order_id = place_order(alice)["id"]
    for client, status in ((alice, "paid"), (alice, "shipped"), (bob, "canceled"), (alice, "x")):
        assert move(client, order_id, status).status_code >= 400
    assert move(manager, order_id, "pending").status_code == 200
    assert len(history(alice, order_id)) == 1


def test_the_history_keeps_what_was_true_then(alice: httpx.Client) -> None:
    placed = place_order(alice)
    move(alice, placed["id"], "canceled")
    first, second = history(alice, placed["id"])
    assert first["data"] == placed
    assert second["data"] == read(alice, placed["id"])


def test_a_history_shows_one_orders_events_only(alice: httpx.Client) -> None:
    first, second = place_order(alice)["id"], place_order(alice)["id"]
    for order_id in (second, first):
        move(alice, order_id, "canceled")
        assert len(history(alice, order_id)) == 2
