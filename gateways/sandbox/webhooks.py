"""The sandbox's webhooks: stored with the change that they report, signed on delivery."""

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

import wakeup
from gateways.sandbox.records import ChargeRow, DisputeRow, RefundRow, charge_state, dispute_state
from gateways.sandbox.signature import sign
from gateways.sandbox.tables import account, webhooks

LATE_WEBHOOK = timedelta(seconds=5)
REORDERED_WEBHOOK = timedelta(seconds=2)
WEBHOOK_RETRY = timedelta(seconds=1)


@contextmanager
def announcing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that may write webhooks. The commit wakes the worker that delivers them."""
    with engine.begin() as connection:
        yield connection
    wakeup.wake()


# Content ----------------------------------------------------------------------------------------


def announce_charge(connection: sa.Connection, row: ChargeRow, fault: str | None = None) -> None:
    if row.status == "captured":
        # Real gateways report each step, and not always in order.
        created = _charge(row) | {"status": "processing", "amount_captured": 0}
        late = REORDERED_WEBHOOK if fault == "reordered_webhooks" else None
        announce(connection, row, "charge.created", {"charge": created}, delay=late)
    delay = LATE_WEBHOOK if fault == "late_webhook" else None
    times = 2 if fault == "duplicate_webhook" else 1
    state = {"charge": _charge(row)}
    announce(connection, row, f"charge.{row.status}", state, delay=delay, times=times)


def announce_refund(
    connection: sa.Connection, row: RefundRow, charge: ChargeRow, fault: str | None = None
) -> None:
    refund = {
        "reference": row.reference,
        "status": row.status,
        "amount": row.amount,
        "currency": charge.currency,
    }
    announce(
        connection,
        charge,
        f"refund.{row.status}",
        {"refund": refund, "refund_id": row.refund_id},
        delay=LATE_WEBHOOK if fault == "late_webhook" else None,
        times=2 if fault == "duplicate_webhook" else 1,
    )


def announce_dispute(
    connection: sa.Connection, row: DisputeRow, charge: ChargeRow, *, delay: timedelta | None = None
) -> None:
    event_type = "dispute.opened" if row.status == "open" else "dispute.closed"
    state = asdict(dispute_state(row, charge))
    evidence_due_at = state.pop("evidence_due_at")
    announce(
        connection,
        charge,
        event_type,
        {"dispute": state, "evidence_due_at": evidence_due_at},
        delay=delay,
    )


def _charge(row: ChargeRow) -> dict[str, Any]:
    state = asdict(charge_state(row))
    del state["refunds"], state["replaces"]  # not part of this webhook
    return state


def announce(
    connection: sa.Connection,
    charge: ChargeRow,
    event_type: str,
    state: Mapping[str, Any],
    *,
    delay: timedelta | None = None,
    times: int = 1,
) -> None:
    payload = {
        "id": f"evt_{secrets.token_hex(12)}",
        "type": event_type,
        "payment_id": charge.payment_id,
        "reference": charge.reference,
        **state,
    }
    due = sa.func.now() + (delay or timedelta())
    row = {"payload": json.loads(json.dumps(payload, default=_iso))}
    for _ in range(times):
        connection.execute(webhooks.insert().values(due_at=due, **row))


def _iso(value: Any) -> str:
    assert isinstance(value, datetime)
    return value.isoformat()


# Delivery ---------------------------------------------------------------------------------------


def read_secret(connection: sa.Connection) -> str:
    """The secret that signs webhooks."""
    secret: str = connection.execute(sa.select(account.c.webhook_secret)).scalar_one()
    return secret


def list_due(
    connection: sa.Connection, secret: str, limit: int
) -> list[tuple[int, dict[str, str], bytes]]:
    """Signed webhooks that are due and not delivered: (id, headers, body). None while they are
    held back."""
    rows = connection.execute(
        sa.select(webhooks.c.id, webhooks.c.payload)
        .where(
            webhooks.c.delivered_at.is_(None),
            webhooks.c.due_at <= sa.func.now(),
            sa.not_(sa.select(account.c.webhooks_held).scalar_subquery()),
        )
        .order_by(webhooks.c.due_at, webhooks.c.id)
        .limit(limit)
    ).all()
    signed = []
    for row in rows:
        body = json.dumps(row.payload, separators=(",", ":")).encode()
        signed.append((row.id, sign(secret, body, int(time.time())), body))
    return signed


def count_waiting(connection: sa.Connection, most: int) -> int:
    """How many are not delivered yet, counted up to `most`."""
    waiting = sa.select(webhooks.c.id).where(webhooks.c.delivered_at.is_(None)).limit(most)
    count: int = connection.execute(
        sa.select(sa.func.count()).select_from(waiting.subquery())
    ).scalar_one()
    return count


def mark_delivered(connection: sa.Connection, webhook_id: int) -> None:
    connection.execute(
        webhooks.update().where(webhooks.c.id == webhook_id).values(delivered_at=sa.func.now())
    )


def postpone(connection: sa.Connection, webhook_id: int) -> None:
    connection.execute(
        webhooks.update()
        .where(webhooks.c.id == webhook_id)
        .values(due_at=sa.func.now() + WEBHOOK_RETRY)
    )
