"""`/disputes`: what is written down of a dispute, and who reads it how."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

import crud
import database
import schemas
from gateways import base
from gateways.sandbox import sign
from settlement.apply import settle_dispute
from settlement.transitions import ChangedBy, locked_payment
from statements import NO_ROWS
from tests.support.clients import Api
from tests.support.database import ConnectionSender
from tests.support.factories import pay, place_order, save_card

FIELDS = {
    *("id", "payment_id", "order_id", "gateway", "gateway_reference", "amount", "currency"),
    *("status", "reason", "evidence_due_at", "created_at", "updated_at"),
}
MONDAY = datetime(2031, 6, 2, 12, tzinfo=timezone.utc)
EARLIER, LATER = MONDAY - timedelta(days=1), MONDAY + timedelta(days=1)

Save = Callable[..., bool]


@pytest.fixture
def paid(alice: httpx.Client) -> dict[str, Any]:
    save_card(alice)
    return pay(alice, place_order(alice)["id"])


@pytest.fixture
def reference() -> str:
    return f"dp_{secrets.token_hex(8)}"


@pytest.fixture
def save(engine: sa.Engine, paid: dict[str, Any], reference: str) -> Save:
    """Write down a dispute of the payment; returns whether there is something to tell."""

    def run(status: Any = "open", **changes: Any) -> bool:
        values: dict[str, Any] = {
            "reference": reference,
            "amount": 1099,
            "currency": "USD",
            "reason": "fraudulent",
        }
        state = base.Dispute(status=status, **values | changes)
        by = ChangedBy.service("test")
        with database.new_session(engine) as session:
            payment = crud.require_payment(session, paid["id"], paid["user_id"])
            with locked_payment(session, by, payment) as locked:
                before = locked.order.last_sequence
                settle_dispute(locked, state)
                return locked.order.last_sequence > before

    return run


def test_one_that_is_told_twice_in_one_transaction_keeps_both_news(
    manager: httpx.Client, engine: sa.Engine, paid: dict[str, Any], save: Save, reference: str
) -> None:
    """No part of a statement sees what another one writes, so a row may be in one only."""
    save()
    state = base.Dispute(reference, "open", 1099, "USD", "fraudulent", evidence_due_at=MONDAY)
    with database.new_session(engine) as session:
        payment = crud.require_payment(session, paid["id"], paid["user_id"])
        with locked_payment(session, ChangedBy.service("test"), payment) as locked:
            settle_dispute(locked, state)
            settle_dispute(locked, replace(state, status="won"))
    (entry,) = listed(manager, payment_id=paid["id"])
    assert (entry["status"], entry["evidence_due_at"]) == ("won", "2031-06-02T12:00:00Z")


def listed(manager: httpx.Client, **query: Any) -> list[dict[str, Any]]:
    answer = manager.get("/disputes", params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


def moment(value: str) -> datetime:
    return datetime.fromisoformat(value.replace("Z", "+00:00"))


# Reading ----------------------------------------------------------------------------------------


def test_a_dispute_shows_its_order_and_until_when_to_answer(
    manager: httpx.Client, paid: dict[str, Any], save: Save, reference: str
) -> None:
    save(evidence_due_at=MONDAY)
    (entry,) = listed(manager, payment_id=paid["id"])
    assert entry.keys() == FIELDS
    shown = {name: entry[name] for name in FIELDS - {"id", "created_at", "updated_at"}}
    assert shown == {
        "payment_id": paid["id"],
        "order_id": paid["order_id"],
        "gateway": "sandbox",
        "gateway_reference": reference,
        "amount": 1099,
        "currency": "USD",
        "status": "open",
        "reason": "fraudulent",
        "evidence_due_at": "2031-06-02T12:00:00Z",
    }
    assert manager.get(f"/disputes/{entry['id']}").json() == entry


def test_a_list_is_narrowed_by_payment_and_status(
    manager: httpx.Client, paid: dict[str, Any], save: Save
) -> None:
    for status in ("open", "won", "lost"):
        save(status, reference=f"dp_{secrets.token_hex(8)}")
    of_payment = {"payment_id": paid["id"]}
    assert [one["status"] for one in listed(manager, **of_payment)] == ["lost", "won", "open"]
    for status in ("open", "won", "lost"):
        (entry,) = listed(manager, **of_payment, status=status)
        assert entry["status"] == status
        assert entry["id"] in [one["id"] for one in listed(manager, status=status)]


def test_a_list_comes_in_pages(manager: httpx.Client, paid: dict[str, Any], save: Save) -> None:
    for _ in range(5):
        save(reference=f"dp_{secrets.token_hex(8)}")
    whole = listed(manager, payment_id=paid["id"])
    pages, url = [], f"/disputes?limit=2&payment_id={paid['id']}"
    while url:
        answer = manager.get(url)
        pages.append(answer.json())
        url = answer.links.get("next", {}).get("url", "")
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [entry for page in pages for entry in page] == whole
    assert [entry["id"] for entry in whole] == sorted((e["id"] for e in whole), reverse=True)


@pytest.mark.parametrize("payment_id", [0, -1, 2**63, 10**25])
def test_the_disputes_of_a_payment_that_cannot_be_are_none(
    manager: httpx.Client, payment_id: int
) -> None:
    assert listed(manager, payment_id=payment_id) == []
    # The database is not asked: no index helps it with numbers of more than 64 bits.
    no_database: Any = None
    assert crud.list_disputes(no_database, schemas.DisputeQuery(payment_id=payment_id)) == NO_ROWS


@pytest.mark.parametrize(
    "query", ["payment_id=abc", "status=closed", "limit=0", "limit=201", "cursor=-1", "user_id=a"]
)
def test_a_query_that_says_something_else_is_400(manager: httpx.Client, query: str) -> None:
    answer = manager.get(f"/disputes?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("dispute_id", ["0", "-1", "abc", str(2**63 - 1), str(2**63), "%00"])
def test_a_dispute_that_is_not_there_is_404(manager: httpx.Client, dispute_id: str) -> None:
    answer = manager.get(f"/disputes/{dispute_id}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_disputes_are_read_with_payments_manage_only(
    api: Api, alice: httpx.Client, manager: httpx.Client, paid: dict[str, Any], save: Save
) -> None:
    save()
    (entry,) = listed(manager, payment_id=paid["id"])
    for path in ("/disputes", f"/disputes/{entry['id']}"):
        assert api().get(path).status_code == 401
        for client in (alice, api("somebody", "orders:manage webhooks:manage")):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert api("somebody", "payments:manage").get(path).status_code == 200


MANY = """
WITH method AS (
    INSERT INTO payment_methods (user_id, payment_type, gateway, gateway_token, details)
    VALUES ('many', 'card', 'sandbox', 'many', '{}') RETURNING id
), placed AS (
    INSERT INTO orders (user_id, product_id, quantity, total_amount, currency)
    SELECT 'many', 'sku', 1, 1099, 'USD' FROM generate_series(1, 3000) RETURNING id
), paid AS (
    INSERT INTO payments (order_id, user_id, payment_method_id, gateway, gateway_key, amount,
                          currency, capture_method, check_at)
    SELECT placed.id, 'many', method.id, 'sandbox', 'many-' || placed.id, 1099, 'USD',
           'automatic', now()
    FROM placed, method RETURNING id
)
INSERT INTO disputes (payment_id, gateway, gateway_reference, status, amount, currency, reason)
SELECT id, 'sandbox', 'many-' || id, CASE id % 300 WHEN 0 THEN 'open' ELSE 'lost' END, 1099,
       'USD', 'fraudulent'
FROM paid
"""


@pytest.mark.parametrize(
    ("narrowed", "index"),
    [
        ({}, "ix_disputes_created_at_id"),
        ({"cursor": "1000000"}, "ix_disputes_created_at_id"),
        ({"status": "open"}, "ix_disputes_status_created_at_id"),
        ({"status": "open", "cursor": "1000000"}, "ix_disputes_status_created_at_id"),
        ({"payment_id": 17}, "ix_disputes_payment_id"),
        ({"payment_id": 17, "status": "lost"}, "ix_disputes_payment_id"),
    ],
    ids=str,
)
def test_a_list_is_read_from_an_index(
    engine: sa.Engine, narrowed: dict[str, Any], index: str
) -> None:
    statements: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, _x: Any, _many: bool) -> None:
        statements.append((statement, parameters))

    with engine.connect() as connection:  # nothing of this is committed
        connection.execute(sa.text(MANY))
        for table in ("disputes", "payments"):
            connection.execute(sa.text(f"ANALYZE {table}"))
        sa.event.listen(connection, "before_cursor_execute", note)
        crud.list_disputes(ConnectionSender(connection), schemas.DisputeQuery(**narrowed))
        sa.event.remove(connection, "before_cursor_execute", note)
        ((statement, parameters),) = statements
        explained = connection.exec_driver_sql(f"EXPLAIN (COSTS OFF) {statement}", parameters)
        plan = "\n".join(explained.scalars())
    assert f" {index} on disputes" in plan, plan
    assert re.search(r"(pk_payments|uq_payments_id_user_id) on payments", plan), plan
    assert "Seq Scan" not in plan, plan


# Writing ----------------------------------------------------------------------------------------


def test_a_later_time_for_evidence_is_kept_and_nothing_is_told(
    manager: httpx.Client, paid: dict[str, Any], save: Save
) -> None:
    def due_at() -> datetime | None:
        (entry,) = listed(manager, payment_id=paid["id"])
        return moment(entry["evidence_due_at"]) if entry["evidence_due_at"] else None

    assert save() is True
    assert due_at() is None
    for told, kept in ((MONDAY, MONDAY), (None, MONDAY), (EARLIER, MONDAY), (LATER, LATER)):
        assert save(evidence_due_at=told) is False
        assert due_at() == kept


def test_a_dispute_closes_with_its_new_time_and_never_opens_again(
    manager: httpx.Client, paid: dict[str, Any], save: Save
) -> None:
    def state() -> tuple[str, datetime]:
        (entry,) = listed(manager, payment_id=paid["id"])
        return entry["status"], moment(entry["evidence_due_at"])

    assert save(evidence_due_at=MONDAY) is True
    assert save("won", evidence_due_at=LATER) is True
    assert state() == ("won", LATER)
    assert save("open", evidence_due_at=EARLIER) is False
    assert save("won") is False
    assert state() == ("won", LATER)
    assert save("lost") is True  # the bank has changed its mind
    assert state() == ("lost", LATER)


def test_an_event_tells_of_a_dispute_what_it_always_did(
    manager: httpx.Client, engine: sa.Engine, paid: dict[str, Any], reference: str
) -> None:
    dispute = {"reference": reference, "amount": 500, "currency": "USD", "reason": "fraudulent"}
    with engine.connect() as connection:
        secret = connection.execute(
            sa.text("SELECT webhook_secret FROM sandbox.account")
        ).scalar_one()
    for number, status in enumerate(("open", "open", "lost")):
        payload = {
            "id": f"{reference}-{number}",
            "type": "charge.disputed",
            "payment_id": paid["id"],
            "reference": paid["gateway_reference"],
            "dispute": dispute | {"status": status},
        }
        body = json.dumps(payload).encode()
        headers = sign(secret, body, int(time.time()))
        assert manager.post("/webhooks/sandbox", content=body, headers=headers).status_code == 200
    (entry,) = listed(manager, payment_id=paid["id"])
    events = manager.get(f"/orders/{paid['order_id']}/events").json()[:2][::-1]
    assert [event["type"] for event in events] == ["dispute.opened", "dispute.closed"]
    for event, status in zip(events, ("open", "lost"), strict=True):
        assert event["data"] == {
            "id": entry["id"],
            "payment_id": paid["id"],
            "amount": 500,
            "currency": "USD",
            "status": status,
            "reason": "fraudulent",
        }
