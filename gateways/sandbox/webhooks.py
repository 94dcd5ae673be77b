"""The sandbox's webhooks: written down with the change that they tell, signed when delivered."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from gateways.base import Charge, Decline, Dispute, GatewayEvent, Refund, SignatureInvalid
from gateways.sandbox.books import charge_state, refund_state, require_charge
from gateways.sandbox.signature import sign, verify
from gateways.sandbox.tables import account, disputes, refunds, webhooks

DISPUTE_OPENS_AFTER = timedelta(seconds=1)
DISPUTE_CLOSES_AFTER = timedelta(seconds=60)
LATE_WEBHOOK = timedelta(seconds=5)
REORDERED_WEBHOOK = timedelta(seconds=2)
WEBHOOK_RETRY = timedelta(seconds=1)


# What they tell ---------------------------------------------------------------------------------


def announce_charge(connection: sa.Connection, row: sa.Row[Any], fault: str | None = None) -> None:
    """Tell the state of a charge; a disputed test card's dispute follows its capture."""
    if row.status == "captured":
        # Real gateways tell each step, and not always in order.
        created = asdict(charge_state(row)) | {"status": "processing", "amount_captured": 0}
        late = REORDERED_WEBHOOK if fault == "reordered_webhooks" else None
        announce(connection, row, "charge.created", {"charge": created}, delay=late)
    state = {"charge": asdict(charge_state(row))}
    delay = LATE_WEBHOOK if fault == "late_webhook" else None
    times = 2 if fault == "duplicate_webhook" else 1
    announce(connection, row, f"charge.{row.status}", state, delay=delay, times=times)
    if row.status == "captured" and row.outcome == "dispute":
        dispute = connection.execute(
            disputes.insert()
            .values(
                reference=f"dp_{secrets.token_hex(12)}",
                charge=row.reference,
                status="open",
                closes_at=sa.func.now() + DISPUTE_CLOSES_AFTER,
            )
            .returning(*disputes.c)
        ).one()
        announce_dispute(connection, dispute, row, delay=DISPUTE_OPENS_AFTER)


def announce_refund(connection: sa.Connection, reference: str, fault: str | None = None) -> None:
    row = connection.execute(sa.select(*refunds.c).where(refunds.c.reference == reference)).one()
    announce(
        connection,
        require_charge(connection, row.charge),
        f"refund.{row.status}",
        {"refund": asdict(refund_state(connection, reference)), "refund_id": row.refund_id},
        delay=LATE_WEBHOOK if fault == "late_webhook" else None,
        times=2 if fault == "duplicate_webhook" else 1,
    )


def announce_dispute(
    connection: sa.Connection,
    dispute: sa.Row[Any],
    charge: sa.Row[Any],
    *,
    delay: timedelta | None = None,
) -> None:
    event_type = "dispute.opened" if dispute.status == "open" else "dispute.closed"
    state = Dispute(dispute.reference, dispute.status, charge.amount, charge.currency, "fraudulent")
    announce(connection, charge, event_type, {"dispute": asdict(state)}, delay=delay)


def announce(
    connection: sa.Connection,
    charge: sa.Row[Any],
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


# Delivering -------------------------------------------------------------------------------------


def read_secret(connection: sa.Connection) -> str:
    """What webhooks are signed with."""
    secret: str = connection.execute(sa.select(account.c.webhook_secret)).scalar_one()
    return secret


def take_due(
    connection: sa.Connection, secret: str, limit: int
) -> list[tuple[int, dict[str, str], bytes]]:
    """Signed webhooks that are due and not delivered: (id, headers, body)."""
    rows = connection.execute(
        sa.select(webhooks.c.id, webhooks.c.payload)
        .where(webhooks.c.delivered_at.is_(None), webhooks.c.due_at <= sa.func.now())
        .order_by(webhooks.c.due_at, webhooks.c.id)
        .limit(limit)
    ).all()
    signed = []
    for row in rows:
        body = json.dumps(row.payload, separators=(",", ":")).encode()
        signed.append((row.id, sign(secret, body, int(time.time())), body))
    return signed


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


# Reading ----------------------------------------------------------------------------------------


def read(secret: str, headers: Mapping[str, str], body: bytes) -> GatewayEvent:
    """Verify a webhook and read it. Raises SignatureInvalid."""
    verify(secret, headers.get("sandbox-signature", ""), body, int(time.time()))
    try:
        payload = json.loads(body)
        charge, refund, dispute = (payload.get(key) for key in ("charge", "refund", "dispute"))
        return GatewayEvent(
            id=payload["id"],
            type=payload["type"],
            payment_id=payload["payment_id"],
            reference=payload["reference"],
            charge=Charge(
                **{
                    **charge,
                    "capture_before": charge["capture_before"]
                    and datetime.fromisoformat(charge["capture_before"]),
                    "decline": charge["decline"] and Decline(**charge["decline"]),
                }
            )
            if charge
            else None,
            refund=Refund(**refund) if refund else None,
            refund_id=payload.get("refund_id"),
            dispute=Dispute(**dispute) if dispute else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SignatureInvalid from None
