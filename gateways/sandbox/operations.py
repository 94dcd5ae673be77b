"""Charges, approvals, captures, voids, refunds and disputes of the sandbox.

Each function writes within the caller's transaction, and writes the webhook for it.
"""

import json
import secrets
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from gateways.base import Charge, ChargeRequest, NotExecuted, Refund, RefundRequest
from gateways.sandbox import records, webhooks
from gateways.sandbox.cards import DECLINES, outcome_of
from gateways.sandbox.records import ChargeRow, DisputeRow, RefundRow
from gateways.sandbox.tables import account, charges, disputes, refunds
from statements import Sender, Statement

AUTHORIZATION_LIFETIME = timedelta(days=7)  # what card schemes commonly honor
REFUND_FAILS_AFTER = timedelta(seconds=2)  # long enough to be seen as pending
# For the test card that is disputed.
DISPUTE_OPENS_AFTER = timedelta(seconds=1)
DISPUTE_CLOSES_AFTER = timedelta(seconds=60)


# A charge that is captured at once, unless its key is known or the dashboard declines the next one.
CHARGE = Statement(
    f"""
    WITH asked AS (
        INSERT INTO sandbox.requests (key, reference)
        SELECT %(key)s, %(reference)s FROM sandbox.account WHERE NOT decline_next
        ON CONFLICT DO NOTHING
        RETURNING reference
    ), made AS (
        INSERT INTO sandbox.charges (
            reference, order_id, payment_id, idempotency_key, amount, currency, outcome, capture,
            status, amount_captured
        )
        SELECT reference, %(order_id)s, %(payment_id)s, %(key)s, %(amount)s, %(currency)s,
            %(outcome)s, true, 'captured', %(amount)s
        FROM asked
        RETURNING {", ".join(ChargeRow._fields)}
    ), told AS (
        INSERT INTO sandbox.webhooks (payload)
        SELECT payload FROM asked, jsonb_array_elements(CAST(%(told)s AS jsonb)) AS payload
    )
    SELECT * FROM made""",
    prepare=True,
)


def capture_at_once(sender: Sender, reference: str, request: ChargeRequest) -> ChargeRow | None:
    """Make a charge that is captured at once, with one statement alone.

    None for one that takes more than that (see `make_charge`).
    """
    outcome = outcome_of(request.token)
    if not request.capture or request.fault or outcome not in ("", "success", "refund_fails"):
        return None
    captured = Charge(
        reference, "captured", request.amount, request.currency, amount_captured=request.amount
    )
    rows = sender.rows(
        CHARGE,
        reference=reference,
        key=request.key,
        order_id=request.order_id,
        payment_id=request.payment_id,
        amount=request.amount,
        currency=request.currency,
        outcome=outcome,
        told=json.dumps(webhooks.charge_payloads(captured, request.payment_id)),
    )
    return ChargeRow(*rows[0]) if rows else None


# A refund that succeeds at once. What is left of the charge is counted as of the begin of the
# statement; so the charge, once it is locked, must be as it was then. Each refund changes it.
REFUND = Statement(
    """
    WITH charge AS MATERIALIZED (
        SELECT * FROM sandbox.charges WHERE reference = %(charge)s FOR UPDATE
    ), reserved AS (
        SELECT coalesce(sum(amount), 0) AS amount FROM sandbox.refunds
        WHERE charge = %(charge)s AND status <> 'failed'
    ), asked AS (
        INSERT INTO sandbox.requests (key, reference)
        SELECT %(key)s, %(reference)s FROM charge, reserved
        WHERE charge.changed_at = (
            SELECT changed_at FROM sandbox.charges WHERE reference = %(charge)s
        )
        AND charge.status = 'captured' AND charge.outcome <> 'refund_fails'
        AND charge.currency = %(currency)s
        AND %(amount)s BETWEEN 1 AND charge.amount_captured - reserved.amount
        ON CONFLICT DO NOTHING
        RETURNING reference
    ), made AS (
        INSERT INTO sandbox.refunds (reference, charge, refund_id, amount, status)
        SELECT reference, %(charge)s, %(refund_id)s, %(amount)s, 'succeeded' FROM asked
        RETURNING reference
    ), told AS (
        INSERT INTO sandbox.webhooks (payload) SELECT CAST(%(told)s AS jsonb) FROM asked
    )
    SELECT reference FROM made""",
    prepare=True,
)


def refund_at_once(sender: Sender, reference: str, request: RefundRequest) -> Refund | None:
    """Make a refund that succeeds at once, with one statement alone.

    None for one that takes more than that (see `refund`), or is not possible.
    """
    if request.fault:
        return None
    made = Refund(reference, "succeeded", request.amount, request.currency, request.refund_id)
    told = webhooks.refund_payload(made, request.payment_id, request.reference)
    rows = sender.rows(
        REFUND,
        reference=reference,
        key=request.key,
        charge=request.reference,
        refund_id=request.refund_id,
        amount=request.amount,
        currency=request.currency,
        told=json.dumps(told),
    )
    return made if rows else None


def make_charge(connection: sa.Connection, reference: str, request: ChargeRequest) -> ChargeRow:
    outcome = outcome_of(request.token)
    if _declines_next(connection):
        outcome = "generic_decline"
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
    made = (
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
    )
    [row] = records.read(connection, ChargeRow, made)
    _announce(connection, row, request.fault)
    return row


def _declines_next(connection: sa.Connection) -> bool:
    """Whether the dashboard's switch declines this charge. The switch turns off with it."""
    taken = connection.execute(
        account.update().where(account.c.decline_next).values(decline_next=False)
    )
    return taken.rowcount > 0


def answer_action(connection: sa.Connection, row: ChargeRow, *, approve: bool) -> ChargeRow:
    """Approve or decline a locked charge that waits for its shopper."""
    if not approve:
        values: dict[str, Any] = {"status": "declined", "outcome": "authentication_failed"}
    elif row.capture:
        values = {"status": "captured", "amount_captured": row.amount}
    else:
        values = _authorized()
    return _change(connection, row, values)


def capture(
    connection: sa.Connection, row: ChargeRow, amount: int, fault: str | None = None
) -> ChargeRow:
    """Capture this much of a locked authorization. Raises NotExecuted."""
    if row.status != "authorized":
        raise NotExecuted(f"the charge is {row.status}")
    if not 0 < amount <= row.amount:
        raise NotExecuted("the capture is more than what is authorized")
    return _change(connection, row, {"status": "captured", "amount_captured": amount}, fault)


def void(connection: sa.Connection, row: ChargeRow, fault: str | None = None) -> ChargeRow:
    """Cancel a locked authorization, or a charge that waits for its shopper.

    Raises NotExecuted.
    """
    if row.status not in ("authorized", "requires_action"):
        raise NotExecuted(f"the charge is {row.status}")
    values = {"status": "voided", "capture_before": None, "redirect_url": None}
    return _change(connection, row, values, fault)


def refund(
    connection: sa.Connection,
    row: ChargeRow,
    reference: str,
    amount: int | None,
    refund_id: int | None,
    fault: str | None = None,
) -> RefundRow:
    """Refund this amount of a locked charge; None: all that is left.

    `refund_id` is the service's id; None for a refund in the dashboard. Raises NotExecuted for
    more than what is left.
    """
    reserved: int = connection.execute(
        sa.select(sa.func.coalesce(sa.func.sum(refunds.c.amount), 0)).where(
            refunds.c.charge == row.reference, refunds.c.status != "failed"
        )
    ).scalar_one()
    left = row.amount_captured - reserved
    amount = left if amount is None else amount
    if row.status != "captured" or not 0 < amount <= left:
        raise NotExecuted("the refund is more than what is left of the charge")
    fails = row.outcome == "refund_fails"
    refunded = (
        refunds.insert()
        .values(
            reference=reference,
            charge=row.reference,
            refund_id=refund_id,
            amount=amount,
            status="pending" if fails else "succeeded",
            fails_at=sa.func.now() + REFUND_FAILS_AFTER if fails else None,
        )
        .returning(*refunds.c)
    )
    [made] = records.read(connection, RefundRow, refunded)
    webhooks.announce_refund(connection, made, row, fault)
    return made


def open_dispute(
    connection: sa.Connection,
    row: ChargeRow,
    closes_after: timedelta,
    *,
    announced_after: timedelta | None = None,
) -> DisputeRow:
    """Dispute a locked charge. Raises NotExecuted unless it is captured and was never disputed."""
    if row.status != "captured":
        raise NotExecuted(f"the charge is {row.status}")
    opened = (
        insert(disputes)
        .values(
            reference=new_reference("dp"),
            charge=row.reference,
            status="open",
            closes_at=sa.func.now() + closes_after,
        )
        .on_conflict_do_nothing()
        .returning(*disputes.c)
    )
    found = records.read(connection, DisputeRow, opened)
    if not found:
        raise NotExecuted("the charge has been disputed before")
    webhooks.announce_dispute(connection, found[0], row, delay=announced_after)
    return found[0]


def close_dispute(connection: sa.Connection, row: ChargeRow, *, won: bool) -> DisputeRow:
    """Decide the dispute of a locked charge. Raises NotExecuted unless it is open."""
    closed = (
        disputes.update()
        .where(disputes.c.charge == row.reference, disputes.c.status == "open")
        .values(status="won" if won else "lost")
        .returning(*disputes.c)
    )
    found = records.read(connection, DisputeRow, closed)
    if not found:
        raise NotExecuted("the charge has no open dispute")
    webhooks.announce_dispute(connection, found[0], row)
    return found[0]


def new_reference(kind: str) -> str:
    """An id that nobody can guess: `ch_…` of a charge, `re_…` of a refund, `dp_…` of a dispute."""
    return f"{kind}_{secrets.token_hex(12)}"


def _change(
    connection: sa.Connection, row: ChargeRow, values: Mapping[str, Any], fault: str | None = None
) -> ChargeRow:
    changed = records.update_charge(connection, row.reference, **values)
    _announce(connection, changed, fault)
    return changed


def _announce(connection: sa.Connection, row: ChargeRow, fault: str | None) -> None:
    webhooks.announce_charge(connection, row, fault)
    if row.status == "captured" and row.outcome == "dispute":
        open_dispute(connection, row, DISPUTE_CLOSES_AFTER, announced_after=DISPUTE_OPENS_AFTER)


def _authorized() -> dict[str, Any]:
    return {"status": "authorized", "capture_before": sa.func.now() + AUTHORIZATION_LIFETIME}
