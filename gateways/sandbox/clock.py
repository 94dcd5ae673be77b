"""What time does at the sandbox: authorizations expire, refunds fail, disputes close."""

from __future__ import annotations

import sqlalchemy as sa

from gateways.sandbox.books import require_charge
from gateways.sandbox.tables import charges, disputes, refunds
from gateways.sandbox.webhooks import announce_charge, announce_dispute, announce_refund


def tick(connection: sa.Connection) -> int:
    """Do what is due. Returns how much it was."""
    expired = connection.execute(
        charges.update()
        .where(charges.c.status == "authorized", charges.c.capture_before < sa.func.now())
        .values(status="voided")
        .returning(*charges.c)
    ).all()
    for row in expired:
        announce_charge(connection, row)
    failed = connection.scalars(
        refunds.update()
        .where(refunds.c.status == "pending", refunds.c.fails_at < sa.func.now())
        .values(status="failed")
        .returning(refunds.c.reference)
    ).all()
    for reference in failed:
        announce_refund(connection, reference)
    closed = connection.execute(
        disputes.update()
        .where(disputes.c.status == "open", disputes.c.closes_at < sa.func.now())
        .values(status="won")
        .returning(*disputes.c)
    ).all()
    for dispute in closed:
        announce_dispute(connection, dispute, require_charge(connection, dispute.charge))
    return len(expired) + len(failed) + len(closed)
