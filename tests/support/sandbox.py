"""The sandbox gateway alone, on a database of its own, without a service around it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from benchmarks.seen import seen_by_engines
from gateways.base import ChangeRequest, Charge, ChargeRequest, Refund, RefundRequest
from gateways.sandbox import SandboxGateway, has_work
from tests.support.database import sql


@contextmanager
def statements(engine: sa.Engine) -> Iterator[list[str]]:
    """The statements that are sent meanwhile."""
    sent: list[str] = []

    def note(*arguments: Any) -> None:
        sent.append(arguments[2])

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        with seen_by_engines():
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
        charge_amount=charge.amount,
    )


def refund_request(charge: Charge, amount: int, refund_id: int = 3) -> RefundRequest:
    return RefundRequest(new_key(), charge.reference, 7, refund_id, amount, charge.currency)


def give_back(sandbox: SandboxGateway, charge: Charge, amount: int, refund_id: int = 3) -> Refund:
    return sandbox.refund(refund_request(charge, amount, refund_id))


def told(engine: sa.Engine) -> list[dict[str, Any]]:
    """What every webhook tells, oldest first."""
    rows = sql(engine, "SELECT payload::text FROM sandbox.webhooks ORDER BY id")
    return [json.loads(row[0]) for row in rows]
