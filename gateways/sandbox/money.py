"""What happens to money at the sandbox: charging, approving, capturing, voiding, refunding.

Each function changes the books within the caller's transaction and announces the change.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from gateways.base import ChargeRequest, NotDone
from gateways.sandbox import books
from gateways.sandbox.cards import DECLINES, outcome_of
from gateways.sandbox.tables import charges, refunds
from gateways.sandbox.webhooks import announce_charge, announce_refund

AUTHORIZATION_LIFETIME = timedelta(days=7)  # what card schemes commonly honor
REFUND_FAILS_AFTER = timedelta(seconds=2)  # long enough to be seen pending


def make_charge(connection: sa.Connection, reference: str, request: ChargeRequest) -> sa.Row[Any]:
    outcome = outcome_of(request.token)
    values: dict[str, Any] = {"status": "captured", "amount_captured": request.amount}
    if outcome in DECLINES:
        values = {"status": "declined"}
    elif outcome == "requires_action":
        page = f"/sandbox/actions/{reference}"
        values = {
            "status": "requires_action",
            "redirect_url": (request.service_url or "").rstrip("/") + page,
            "return_url": request.return_url,
        }
    elif not request.capture:
        values = _authorized()
    row = connection.execute(
        charges.insert()
        .values(
            reference=reference,
            order_id=request.order_id,
            payment_id=request.payment_id,
            idempotency_key=request.key,
            amount=request.amount,
            currency=request.currency,
            outcome=outcome,
            capture=request.capture,
            **values,
        )
        .returning(*charges.c)
    ).one()
    announce_charge(connection, row, request.fault)
    return row


def answer_action(connection: sa.Connection, row: sa.Row[Any], *, approve: bool) -> sa.Row[Any]:
    """What the shopper said about a locked charge that waits for it."""
    if not approve:
        values: dict[str, Any] = {"status": "declined", "outcome": "authentication_failed"}
    elif row.capture:
        values = {"status": "captured", "amount_captured": row.amount}
    else:
        values = _authorized()
    return _change(connection, row, values)


def capture(
    connection: sa.Connection, row: sa.Row[Any], amount: int, fault: str | None = None
) -> sa.Row[Any]:
    """Capture this much of a locked authorization. Raises NotDone."""
    if row.status != "authorized":
        raise NotDone(f"the charge is {row.status}")
    return _change(connection, row, {"status": "captured", "amount_captured": amount}, fault)


def void(connection: sa.Connection, row: sa.Row[Any], fault: str | None = None) -> sa.Row[Any]:
    """Give up a locked authorization, or a charge that waits for the shopper. Raises NotDone."""
    if row.status not in ("authorized", "requires_action"):
        raise NotDone(f"the charge is {row.status}")
    values = {"status": "voided", "capture_before": None, "redirect_url": None}
    return _change(connection, row, values, fault)


def refund(
    connection: sa.Connection,
    row: sa.Row[Any],
    reference: str,
    amount: int,
    refund_id: int,
    fault: str | None = None,
) -> None:
    """Give this much of a locked charge back. Raises NotDone when that is more than is left."""
    spent: int = connection.execute(
        sa.select(sa.func.coalesce(sa.func.sum(refunds.c.amount), 0)).where(
            refunds.c.charge == row.reference, refunds.c.status != "failed"
        )
    ).scalar_one()
    if row.status != "captured" or spent + amount > row.amount_captured:
        raise NotDone("the refund is more than what is left of the charge")
    fails = row.outcome == "refund_fails"
    connection.execute(
        refunds.insert().values(
            reference=reference,
            charge=row.reference,
            refund_id=refund_id,
            amount=amount,
            status="pending" if fails else "succeeded",
            fails_at=sa.func.now() + REFUND_FAILS_AFTER if fails else None,
        )
    )
    announce_refund(connection, reference, fault)


def new_reference(kind: str) -> str:
    """An id that nobody can guess: `ch_…` of a charge, `re_…` of a refund."""
    return f"{kind}_{secrets.token_hex(12)}"


def _change(
    connection: sa.Connection,
    row: sa.Row[Any],
    values: Mapping[str, Any],
    fault: str | None = None,
) -> sa.Row[Any]:
    changed = books.update_charge(connection, row.reference, **values)
    announce_charge(connection, changed, fault)
    return changed


def _authorized() -> dict[str, Any]:
    return {"status": "authorized", "capture_before": sa.func.now() + AUTHORIZATION_LIFETIME}
