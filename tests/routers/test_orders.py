"""Placing, listing and moving orders, and their history."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from config import Settings
from gateways.base import Charge, ChargeRequest
from gateways.sandbox import SandboxGateway
from tests.support.clients import (
    ABSENT,
    JSON,
    Api,
    but_request_id,
    code,
    every,
    fields,
    ids,
    moment,
    watched,
)
from tests.support.factories import order, pay, place_order, save_card

SHAPE = {
    *("id", "user_id", "product_id", "quantity", "total_amount", "currency", "status"),
    *("payment_method_id", "metadata", "created_at", "updated_at"),
}
EVENT = {
    *("id", "type", "created_at", "user_id", "order_id", "actor", "request_id", "sequence"),
    "data",
}
STATUSES = ["pending", "authorized", "paid", "shipped", "delivered", "canceled", "refunded"]

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
# How an order comes to each status.
WAYS: dict[str, list[str]] = {
    "pending": [],
    "authorized": ["authorized"],
    "paid": ["paid"],
    "shipped": ["paid", "shipped"],
    "delivered": ["paid", "shipped", "delivered"],
    "canceled": ["canceled"],
    "refunded": ["paid", "refunded"],
}


@pytest.fixture
def api(base_url: str, settings: Settings) -> Iterator[Api]:
    yield from watched(base_url, settings)


@pytest.fixture
def bob(api: Api, user: str) -> httpx.Client:
    """Another shopper."""
    return api(f"{user}-bob")


def bring_to(engine: sa.Engine, order_id: int, status: str) -> None:
    """Move an order where the API alone cannot bring it."""
    with engine.begin() as connection:
        for step in WAYS[status]:
            connection.execute(
                sa.text("UPDATE orders SET status = :step WHERE id = :id"),
                {"step": step, "id": order_id},
            )


def move(client: httpx.Client, order_id: int, status: Any) -> httpx.Response:
    return client.put(f"/orders/{order_id}/status", json={"status": status})


def read(client: httpx.Client, order_id: int) -> dict[str, Any]:
    answer = client.get(f"/orders/{order_id}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


# --- Placing ----------------------------------------------------------------------------------


def test_a_placed_order_shows_what_was_sent_and_what_was_added(
    alice: httpx.Client, user: str
) -> None:
    method = save_card(alice)
    sent = {
        "product_id": "sku-42",
        "quantity": 3,
        "total_amount": 1099,
        "currency": "EUR",
        "payment_method_id": method["id"],
        "metadata": {"cart": "c-1", "note": "gift 🎁"},
    }
    placed = place_order(alice, **sent)
    assert placed.keys() == SHAPE
    added = {name: placed[name] for name in ("id", "created_at", "updated_at")}
    assert placed == sent | added | {"user_id": user, "status": "pending"}
    assert read(alice, placed["id"]) == placed
    assert alice.get("/orders").json() == [placed]


def test_what_is_left_out_has_its_default(alice: httpx.Client) -> None:
    body = {"product_id": "a", "quantity": 1, "total_amount": 1}
    placed = alice.post("/orders", json=body).json()
    assert placed["currency"] == "USD"
    assert placed["payment_method_id"] is None
    assert placed["metadata"] == {}
    assert placed["status"] == "pending"


@pytest.mark.parametrize("amount", [1, 2, 99, 100, 2**31 - 1, 2**31, 2**32, 999_999_999_999])
@pytest.mark.parametrize("currency", ["USD", "JPY", "KWD"])
def test_an_amount_is_1_to_999_999_999_999_minor_units(
    alice: httpx.Client, amount: int, currency: str
) -> None:
    placed = place_order(alice, total_amount=amount, currency=currency)
    assert (placed["total_amount"], placed["currency"]) == (amount, currency)


@pytest.mark.parametrize(
    "amount",
    [
        *("0", "-1", "-0", "1000000000000", str(2**63 - 1), str(2**63), "9" * 30, "-" + "9" * 30),
        *("10.99", "1099.0", "1e3", "0.1", '"1099"', '"10.99"', "true", "null", "[1]", "1e-9"),
    ],
)
def test_another_amount_is_refused(alice: httpx.Client, amount: str) -> None:
    body = f'{{"product_id": "a", "quantity": 1, "total_amount": {amount}}}'
    assert fields(alice.post("/orders", content=body, headers=JSON)) == {"total_amount"}
    assert alice.get("/orders").json() == []


@pytest.mark.parametrize("quantity", [1, 2, 1000, 2**31, 2**53 - 1])
def test_a_quantity_is_at_least_1(alice: httpx.Client, quantity: int) -> None:
    assert place_order(alice, quantity=quantity)["quantity"] == quantity


@pytest.mark.parametrize("quantity", [0, -1, -(2**31), -(2**63), -(10**30), 2**63, 10**30])
def test_another_quantity_is_refused(alice: httpx.Client, quantity: int) -> None:
    assert fields(alice.post("/orders", json=order(quantity=quantity))) == {"quantity"}


@pytest.mark.parametrize(
    "currency",
    [
        *("USD", "EUR", "GBP", "JPY", "KRW", "CLP", "ISK", "VND", "XOF", "KWD", "BHD", "JOD"),
        *("OMR", "TND", "IQD", "LYD", "CHF", "SEK", "INR", "BRL", "CNY", "ZAR", "UGX", "MRU"),
    ],
)
def test_a_currency_is_one_of_iso_4217_whatever_its_decimals(
    alice: httpx.Client, currency: str
) -> None:
    assert place_order(alice, currency=currency, total_amount=1)["currency"] == currency


@pytest.mark.parametrize(
    "currency",
    [
        *(
            "usd",
            "Usd",
            "UsD",
            "",
            " ",
            "US",
            "USDD",
            "USD ",
            " USD",
            "U$D",
            "$",
            "€",
            "840",
            "ZZZ",
        ),
        *(
            "XXX",
            "XTS",
            "AAA",
            "BTC",
            "ＵＳＤ",
            "US\u0405",
            "USD\n",
            "dollar",
            "<USD>",
            "😀",
            "ΑUD",
        ),
    ],
    ids=ascii,
)
def test_another_currency_is_refused(alice: httpx.Client, currency: str) -> None:
    assert fields(alice.post("/orders", json=order(currency=currency))) == {"currency"}


@pytest.mark.parametrize(
    "name", ["id", "status", "created_at", "updated_at", "last_sequence", "amount", "total"]
)
def test_what_the_service_decides_cannot_be_sent(alice: httpx.Client, name: str) -> None:
    assert fields(alice.post("/orders", json=order(**{name: "paid"}))) == {name}


# --- The method it names ----------------------------------------------------------------------


def unknown_method(answer: httpx.Response) -> None:
    assert code(answer) == (400, "payment_method_not_found"), answer.text


def test_an_order_names_an_active_method_of_its_user(
    alice: httpx.Client, bob: httpx.Client
) -> None:
    mine, theirs = save_card(alice)["id"], save_card(bob)["id"]
    assert place_order(alice, payment_method_id=mine)["payment_method_id"] == mine
    unknown_method(alice.post("/orders", json=order(payment_method_id=theirs)))
    alice.delete(f"/payment-methods/{mine}")
    unknown_method(alice.post("/orders", json=order(payment_method_id=mine)))
    unknown_method(alice.post("/orders", json=order(payment_method_id=ABSENT)))


def test_a_foreign_method_is_as_unknown_as_one_that_never_was(
    alice: httpx.Client, bob: httpx.Client
) -> None:
    theirs = save_card(bob)["id"]
    answers = []
    for number in (theirs, ABSENT):
        answer = alice.post("/orders", json=order(payment_method_id=number))
        unknown_method(answer)
        problem = answer.json()
        assert problem.pop("request_id") == answer.headers["x-request-id"]
        answers.append(problem)
    assert answers[0] == answers[1]


def test_a_managers_order_for_a_user_names_a_method_of_that_user(
    alice: httpx.Client, manager: httpx.Client, user: str
) -> None:
    theirs = save_card(alice)["id"]
    own = save_card(manager, "378282246310005")["id"]
    placed = place_order(manager, user_id=user, payment_method_id=theirs)
    assert (placed["user_id"], placed["payment_method_id"]) == (user, theirs)
    unknown_method(manager.post("/orders", json=order(user_id=user, payment_method_id=own)))
    unknown_method(manager.post("/orders", json=order(payment_method_id=theirs)))
    manager.delete(f"/payment-methods/{own}")


# --- Whose ------------------------------------------------------------------------------------


def test_ones_own_user_id_is_accepted_and_anothers_is_not(alice: httpx.Client, user: str) -> None:
    assert place_order(alice, user_id=user)["user_id"] == user
    for name in (f"{user}-bob", user.upper(), f" {user}", "manager", "*"):
        assert code(alice.post("/orders", json=order(user_id=name))) == (403, "forbidden")
    assert len(alice.get("/orders").json()) == 1


@pytest.mark.parametrize("scope", ["payments:manage", "webhooks:manage", "Orders:Manage", "orders"])
def test_only_the_right_scope_places_for_a_user(api: Api, user: str, scope: str) -> None:
    answer = api(f"{user}-eve", scope).post("/orders", json=order(user_id=user))
    assert code(answer) == (403, "forbidden")


def test_a_manager_places_for_a_user(alice: httpx.Client, manager: httpx.Client, user: str) -> None:
    placed = place_order(manager, user_id=user)
    assert placed["user_id"] == user
    assert alice.get("/orders").json() == [placed]


READS = ["/orders/{}", "/orders/{}/events", "/orders/{}/payments"]


@pytest.mark.parametrize("scope", ["", "webhooks:manage", "orders:read"])
@pytest.mark.parametrize("path", READS)
def test_a_foreign_order_is_as_absent_as_one_that_never_was(
    api: Api, alice: httpx.Client, user: str, path: str, scope: str
) -> None:
    foreign, stranger = place_order(alice)["id"], api(f"{user}-eve", scope)
    there, nowhere = stranger.get(path.format(foreign)), stranger.get(path.format(ABSENT))
    assert code(there) == (404, "not_found")
    assert but_request_id(there) == but_request_id(nowhere)


@pytest.mark.parametrize("scope", ["", "webhooks:manage", "payments:manage"])
def test_a_foreign_order_is_not_moved(api: Api, alice: httpx.Client, user: str, scope: str) -> None:
    placed, stranger = place_order(alice), api(f"{user}-eve", scope)
    for status in STATUSES:
        there, nowhere = move(stranger, placed["id"], status), move(stranger, ABSENT, status)
        assert code(there) == (404, "not_found")
        assert but_request_id(there) == but_request_id(nowhere)
    assert read(alice, placed["id"]) == placed


def test_a_manager_reads_every_users_orders(
    alice: httpx.Client, manager: httpx.Client, user: str
) -> None:
    placed = place_order(alice)
    assert read(manager, placed["id"]) == placed
    assert manager.get("/orders", params={"user_id": user}).json() == [placed]
    assert manager.get("/orders", params={"limit": 1}).json() == [placed]
    for path in READS:
        there = manager.get(path.format(placed["id"]))
        assert there.json() == alice.get(path.format(placed["id"])).json()


def test_a_shopper_lists_only_their_own(alice: httpx.Client, bob: httpx.Client, user: str) -> None:
    mine = place_order(alice)
    place_order(bob)
    assert alice.get("/orders").json() == [mine]
    assert alice.get("/orders", params={"user_id": user}).json() == [mine]
    assert code(alice.get("/orders", params={"user_id": f"{user}-bob"})) == (403, "forbidden")


def test_the_payments_scope_lists_no_foreign_orders(
    api: Api, alice: httpx.Client, user: str
) -> None:
    place_order(alice)
    cashier = api(f"{user}-cashier", "payments:manage")
    assert cashier.get("/orders").json() == []
    assert code(cashier.get("/orders", params={"user_id": user})) == (403, "forbidden")


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

    def slow(self: SandboxGateway, request: ChargeRequest) -> Charge:
        asked.set()
        assert go_on.wait(30)
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
