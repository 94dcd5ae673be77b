"""The sandbox's clock: authorizations expire, refunds fail, disputes close."""

from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa

from gateways.sandbox.records import ChargeRow, DisputeRow, RefundRow, RowType, read
from gateways.sandbox.tables import account, charges, disputes, refunds, webhooks
from gateways.sandbox.webhooks import announce_charge, announce_dispute, announce_refund

BATCH: Final = 50  # charges of each kind that one tick takes

EXPIRED = sa.and_(charges.c.status == "authorized", charges.c.capture_before <= sa.func.now())
FAILED = sa.and_(refunds.c.status == "pending", refunds.c.fails_at <= sa.func.now())
CLOSED = sa.and_(disputes.c.status == "open", disputes.c.closes_at <= sa.func.now())


def tick(connection: sa.Connection) -> int:
    """Process a batch of what is due. Returns how much."""
    due = _lock_due_charges(connection)
    if not due:
        return 0
    expired = _update(
        connection, ChargeRow, charges, charges.c.reference.in_(due) & EXPIRED, "voided"
    )
    for charge in expired:
        announce_charge(connection, charge)
    failed = _update(connection, RefundRow, refunds, refunds.c.charge.in_(due) & FAILED, "failed")
    for refund in failed:
        announce_refund(connection, refund, due[refund.charge])
    closed = _update(connection, DisputeRow, disputes, disputes.c.charge.in_(due) & CLOSED, "won")
    for dispute in closed:
        announce_dispute(connection, dispute, due[dispute.charge])
    return len(expired) + len(failed) + len(closed)


def _update(
    connection: sa.Connection,
    kind: type[RowType],
    table: sa.Table,
    where: sa.ColumnElement[bool],
    status: str,
) -> list[RowType]:
    statement = table.update().where(where).values(status=status)
    return read(connection, kind, statement.returning(*table.c))


def _lock_due_charges(connection: sa.Connection) -> Mapping[str, ChargeRow]:
    """The charges with something due, by reference; without those that another has locked.

    Everybody who changes a refund or a dispute locks its charge first.
    """
    due = sa.union(
        *(
            # As a subquery, because only its own rows are to be ordered and limited.
            sa.select(sa.select(charge).where(is_due).order_by(time).limit(BATCH).subquery())
            for charge, is_due, time in (
                (charges.c.reference, EXPIRED, charges.c.capture_before),
                (refunds.c.charge, FAILED, refunds.c.fails_at),
                (disputes.c.charge, CLOSED, disputes.c.closes_at),
            )
        )
    )
    query = sa.select(*charges.c).where(charges.c.reference.in_(due))
    rows = read(connection, ChargeRow, query.with_for_update(skip_locked=True))
    return {row.reference: row for row in rows}


def has_work() -> sa.ColumnElement[bool]:
    """Whether something is due for `tick`, or a webhook for delivery.

    It reads only the first entry of four indexes.
    """
    held = sa.select(account.c.webhooks_held).scalar_subquery()
    return sa.or_(
        _is_due(charges.c.capture_before, charges.c.status == "authorized"),
        _is_due(refunds.c.fails_at, refunds.c.status == "pending"),
        _is_due(disputes.c.closes_at, disputes.c.status == "open"),
        sa.and_(sa.not_(held), _is_due(webhooks.c.due_at, webhooks.c.delivered_at.is_(None))),
    )


def _is_due(time: sa.Column[Any], waits: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    earliest = sa.select(sa.func.min(time)).where(waits).scalar_subquery()
    return sa.func.coalesce(earliest <= sa.func.now(), sa.false())
