"""How many statements a request takes: what a store asks for all day is few messages long."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg2.extensions
import pytest

import database
from gateways.sandbox import SandboxGateway
from tests.support.factories import card
from tests.support.quiet import gateway as gateway
from tests.support.quiet import gateways as gateways
from tests.support.quiet import quiet as quiet
from tests.support.quiet import quiet_app as quiet_app
from tests.support.quiet import quiet_settings as quiet_settings
from tests.support.quiet import quiet_url as quiet_url
from tests.support.sandbox import new_key
from tests.support.shop import Shop

OF_THE_SANDBOX = re.compile(r"\bsandbox\.")
ENDS = ("COMMIT", "ROLLBACK")
WRITES = re.compile(r"\b(INSERT INTO|UPDATE (?!OF)\w+ SET|DELETE FROM)\b|FOR UPDATE")
Counted = Callable[[], AbstractContextManager[list[str]]]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """`with counted() as sent` collects every message to the database, from whatever thread."""

    @contextmanager
    def record() -> Iterator[list[str]]:
        sent: list[str] = []

        class Cursor(psycopg2.extensions.cursor):
            def execute(self, query: Any, vars: Any = None) -> None:
                sent.append(" ".join(str(query).split()))
                super().execute(query, vars)

        def cursor(connection: database.Connection, *_: Any, **__: Any) -> Any:
            connection.prepared = None  # so that statements are sent as they are written
            return real(connection, cursor_factory=Cursor)

        real = psycopg2.extensions.connection.cursor
        with monkeypatch.context() as patch:
            patch.setattr(database.Connection, "cursor", cursor, raising=False)
            yield sent

    return record


def ours(sent: list[str]) -> list[str]:
    """What is not said to the sandbox's tables: its part is that of a gateway elsewhere."""
    return [statement for statement in sent if not OF_THE_SANDBOX.search(statement)]


def transactions(sent: list[str]) -> int:
    """How many transactions these are that write or lock: some are one statement alone."""
    writing = 0
    inside = False
    for statement in sent:
        if statement.startswith("BEGIN;"):
            inside = True
            writing += 1
        elif statement in ENDS:
            inside = False
        elif not inside and WRITES.search(statement):
            writing += 1
    return writing


def test_reads_are_one_statement_alone(quiet: Shop, counted: Counted) -> None:
    order = quiet.place()
    payment = quiet.pay(order)
    quiet.shopper.get("/orders").raise_for_status()  # the first one opens a connection
    for path in (
        f"/orders/{order}",
        "/orders?limit=20",
        f"/payments/{payment['id']}",
        "/payments",
        "/payment-methods",
    ):
        with counted() as sent:
            quiet.shopper.get(path).raise_for_status()
        assert len(sent) == 1, (path, sent)
        assert sent[0].startswith("SELECT"), path


@pytest.mark.parametrize("with_key", [False, True])
def test_an_order_is_one_statement_and_with_a_key_two(
    quiet: Shop, counted: Counted, with_key: bool
) -> None:
    headers = {"Idempotency-Key": new_key()} if with_key else {}
    body = {"product_id": "7", "quantity": 2, "total_amount": 1999}
    quiet.place()  # a new connection sends a statement of its own
    with counted() as sent:
        quiet.shopper.post("/orders", json=body, headers=headers).raise_for_status()
    assert len(sent) == (2 if with_key else 1), sent  # the key is owned first


@pytest.mark.parametrize("with_key", [False, True])
def test_a_charge_is_few_statements_in_three_transactions(
    quiet: Shop, counted: Counted, with_key: bool
) -> None:
    quiet.method()
    order = quiet.place()
    headers = {"Idempotency-Key": new_key()} if with_key else {}
    with counted() as sent:
        answer = quiet.try_pay(order, headers=headers)
    assert answer.json()["status"] == "captured"
    # The key; a look at the order, the claim; the locks, what changes, its end.
    assert len(ours(sent)) == (6 if with_key else 5), sent
    assert transactions(ours(sent)) == (3 if with_key else 2)
    assert len(sent) - len(ours(sent)) == 1  # the sandbox's charge with its webhooks


def test_a_refund_is_few_statements(quiet: Shop, counted: Counted) -> None:
    payment = quiet.paid(1000)
    with counted() as sent:
        answer = quiet.do(payment, "refunds", headers={"Idempotency-Key": new_key()}, amount=400)
    assert answer.status_code == 201, answer.text
    # The key; may the caller do it; the locks, a dispute, the refund, its event, COMMIT; the locks,
    # the refund, what changes, COMMIT.
    assert len(ours(sent)) == 11, ours(sent)
    assert transactions(ours(sent)) == 3
    assert len(sent) - len(ours(sent)) == 1  # the sandbox's refund with its webhook


def test_a_repeat_is_few_statements(quiet: Shop, counted: Counted) -> None:
    quiet.method()
    order, headers = quiet.place(), {"Idempotency-Key": new_key()}
    first = quiet.try_pay(order, headers=headers)
    with counted() as sent:
        again = quiet.try_pay(order, headers=headers)
    assert again.content == first.content
    assert len(sent) == 3, sent  # it is known; may the caller see it; the answer


def test_a_webhook_that_changes_nothing_is_few_statements(
    quiet: Shop, counted: Counted, gateway: SandboxGateway
) -> None:
    gateway.delivered(*[webhook_id for webhook_id, *_ in gateway.due_webhooks(1000)])
    quiet.paid()
    for _, headers, body in gateway.due_webhooks():
        with counted() as sent:
            quiet.shopper.post("/webhooks/sandbox", content=body, headers=headers)
        assert len(sent) == 2, sent  # which payment, and that the event came
        with counted() as sent:
            quiet.shopper.post("/webhooks/sandbox", content=body, headers=headers)
        assert len(sent) == 1, sent  # it is known


def test_a_webhook_of_a_refund_that_changes_nothing_is_few_statements(
    quiet: Shop, counted: Counted, gateway: SandboxGateway
) -> None:
    payment = quiet.paid(1000)
    quiet.do(payment, "refunds", amount=400).raise_for_status()
    gateway.delivered(*[webhook_id for webhook_id, *_ in gateway.due_webhooks(1000)][:-1])
    [(_, headers, body)] = gateway.due_webhooks()
    with counted() as sent:
        answer = quiet.shopper.post("/webhooks/sandbox", content=body, headers=headers)
    assert answer.status_code == 200
    assert len(sent) == 3, sent  # which payment, which refund, and that the event came


def test_to_save_a_card_is_few_statements(quiet: Shop, counted: Counted) -> None:
    quiet.method()  # it is not the first: that one is the default
    body = card("5555555555554444")
    with counted() as sent:
        answer = quiet.shopper.post(
            "/payment-methods", json=body, headers={"Idempotency-Key": new_key()}
        )
    assert answer.status_code == 201, answer.text
    assert len(sent) <= 12, sent
