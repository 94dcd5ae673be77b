"""The sandbox's webhooks: stored with the change that they report, signed on delivery."""

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

import wakeup
from gateways.base import Charge, Refund
from gateways.sandbox.records import (
    ChargeRow,
    DisputeRow,
    RefundRow,
    charge_state,
    dispute_state,
    refund_state,
)
from gateways.sandbox.signature import sign
from gateways.sandbox.tables import account, webhooks
from statements import Sender, Statement

LATE_WEBHOOK = timedelta(seconds=5)
REORDERED_WEBHOOK = timedelta(seconds=2)
WEBHOOK_RETRY = timedelta(seconds=1)


@contextmanager
def announcing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that may write webhooks. The commit wakes the worker that delivers them."""
    with engine.begin() as connection:
        yield connection
    wake_deliveries()


def wake_deliveries() -> None:
    """There is a webhook to deliver."""
    wakeup.wake("sandbox")


# Content ----------------------------------------------------------------------------------------


def charge_payloads(charge: Charge, payment_id: int) -> list[dict[str, Any]]:
    """What is told of a new state of a charge, as JSON. Real gateways report each step."""
    state = asdict(charge)
    del state["refunds"], state["replaces"]  # not part of this webhook
    told = [payload(f"charge.{charge.status}", payment_id, charge.reference, {"charge": state})]
    if charge.status == "captured":
        created = {"charge": state | {"status": "processing", "amount_captured": 0}}
        told.insert(0, payload("charge.created", payment_id, charge.reference, created))
    return told


def announce_charge(connection: sa.Connection, row: ChargeRow, fault: str | None = None) -> None:
    *created, state = charge_payloads(charge_state(row), row.payment_id)
    for one in created:
        # And not always in order.
        _insert(connection, one, REORDERED_WEBHOOK if fault == "reordered_webhooks" else None)
    for _ in range(2 if fault == "duplicate_webhook" else 1):
        _insert(connection, state, LATE_WEBHOOK if fault == "late_webhook" else None)


def refund_payload(refund: Refund, payment_id: int, charge: str) -> dict[str, Any]:
    """What is told of a new state of a refund, as JSON."""
    state = asdict(refund)
    told = {"refund_id": state.pop("refund_id"), "refund": state}
    return payload(f"refund.{refund.status}", payment_id, charge, told)


def announce_refund(
    connection: sa.Connection, row: RefundRow, charge: ChargeRow, fault: str | None = None
) -> None:
    told = refund_payload(refund_state(row, charge), charge.payment_id, charge.reference)
    for _ in range(2 if fault == "duplicate_webhook" else 1):
        _insert(connection, told, LATE_WEBHOOK if fault == "late_webhook" else None)


def announce_dispute(
    connection: sa.Connection, row: DisputeRow, charge: ChargeRow, *, delay: timedelta | None = None
) -> None:
    event_type = "dispute.opened" if row.status == "open" else "dispute.closed"
    state = asdict(dispute_state(row, charge))
    evidence_due_at = state.pop("evidence_due_at")
    told = payload(
        event_type,
        charge.payment_id,
        charge.reference,
        {"dispute": state, "evidence_due_at": evidence_due_at},
    )
    _insert(connection, told, delay)


def payload(
    event_type: str, payment_id: int, reference: str, state: Mapping[str, Any]
) -> dict[str, Any]:
    """The JSON of a webhook."""
    told = {
        "id": f"evt_{secrets.token_hex(12)}",
        "type": event_type,
        "payment_id": payment_id,
        "reference": reference,
        **state,
    }
    shown: dict[str, Any] = json.loads(json.dumps(told, default=_iso))
    return shown


def _insert(connection: sa.Connection, told: dict[str, Any], delay: timedelta | None) -> None:
    due = sa.func.now() + (delay or timedelta())
    connection.execute(webhooks.insert().values(due_at=due, payload=told))


def _iso(value: Any) -> str:
    assert isinstance(value, datetime)
    return value.isoformat()


# Delivery ---------------------------------------------------------------------------------------


def read_secret(connection: sa.Connection) -> str:
    """The secret that signs webhooks."""
    secret: str = connection.execute(sa.select(account.c.webhook_secret)).scalar_one()
    return secret


DUE = Statement(
    """
    SELECT id, payload::text FROM sandbox.webhooks
    WHERE delivered_at IS NULL AND due_at <= now()
    AND NOT (SELECT webhooks_held FROM sandbox.account)
    ORDER BY due_at, id LIMIT %(limit)s""",
    prepare=True,
)
DELIVERED = Statement(
    "UPDATE sandbox.webhooks SET delivered_at = now() WHERE id = ANY(%(ids)s) RETURNING id",
    prepare=True,
)


def list_due(sender: Sender, secret: str, limit: int) -> list[tuple[int, dict[str, str], bytes]]:
    """Signed webhooks that are due and not delivered: (id, headers, body). Empty while they are
    held back."""
    signed = []
    for webhook_id, text in sender.rows(DUE, limit=limit):
        body = text.encode()
        signed.append((webhook_id, sign(secret, body, int(time.time())), body))
    return signed


def count_waiting(connection: sa.Connection, most: int) -> int:
    """How many are not delivered yet, counted up to `most`."""
    waiting = sa.select(webhooks.c.id).where(webhooks.c.delivered_at.is_(None)).limit(most)
    count: int = connection.execute(
        sa.select(sa.func.count()).select_from(waiting.subquery())
    ).scalar_one()
    return count


def mark_delivered(sender: Sender, ids: Sequence[int]) -> None:
    sender.rows(DELIVERED, ids=list(ids))


def postpone(connection: sa.Connection, webhook_id: int) -> None:
    connection.execute(
        webhooks.update()
        .where(webhooks.c.id == webhook_id)
        .values(due_at=sa.func.now() + WEBHOOK_RETRY)
    )
