"""The sandbox gateway alone, on a database of its own, without a service around it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

import database
from gateways.base import ChangeRequest, Charge, ChargeRequest, Refund, RefundRequest
from gateways.sandbox import SandboxGateway, has_work
from tests.support.shop import sql


@pytest.fixture(scope="module")
def lone_engine(make_database: Callable[[], str]) -> Iterator[sa.Engine]:
    url = make_database()
    database.migrate(url)
    engine = database.create_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def lone(lone_engine: sa.Engine) -> SandboxGateway:
    """A sandbox with empty books, in which nothing happens by itself."""
    sql(
        lone_engine,
        "TRUNCATE sandbox.charges, sandbox.refunds, sandbox.disputes, sandbox.requests,"
        " sandbox.webhooks",
    )
    sql(lone_engine, "UPDATE sandbox.account SET webhooks_held = false, decline_next = false")
    return SandboxGateway(lone_engine, timeout=1)


@contextmanager
def statements(engine: sa.Engine) -> Iterator[list[str]]:
    """The statements that are sent meanwhile."""
    sent: list[str] = []

    def note(*arguments: Any) -> None:
        sent.append(arguments[2])

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


def has_due_work(engine: sa.Engine) -> bool:
    with engine.connect() as connection:
        return bool(connection.scalar(sa.select(has_work())))


def new_key() -> str:
    return f"key-{secrets.token_hex(8)}"


def charge_request(token: str = "tok_success", **changes: Any) -> ChargeRequest:
    values: dict[str, Any] = {"key": new_key(), "payment_id": 7, "order_id": 7, "amount": 1000}
    values |= {"currency": "USD", "capture": True, "return_url": "https://shop.example/"}
    return ChargeRequest(token=token, **values | changes)


def make(sandbox: SandboxGateway, token: str = "tok_success", **changes: Any) -> Charge:
    return sandbox.charge(charge_request(token, **changes))


def change_request(operation: Any, charge: Charge, amount: int | None = None) -> ChangeRequest:
    assert charge.amount is not None
    return ChangeRequest(
        operation=operation,
        key=new_key(),
        reference=charge.reference,
        payment_id=7,
        amount=charge.amount if amount is None else amount,
        currency=charge.currency,
        charged=charge.amount,
    )


def refund_request(charge: Charge, amount: int, refund_id: int = 3) -> RefundRequest:
    return RefundRequest(new_key(), charge.reference, 7, refund_id, amount, charge.currency)


def give_back(sandbox: SandboxGateway, charge: Charge, amount: int, refund_id: int = 3) -> Refund:
    return sandbox.refund(refund_request(charge, amount, refund_id))


def told(engine: sa.Engine) -> list[dict[str, Any]]:
    """What every webhook tells, oldest first."""
    rows = sql(engine, "SELECT payload::text FROM sandbox.webhooks ORDER BY id")
    return [json.loads(row[0]) for row in rows]
