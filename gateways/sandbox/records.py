"""Reads and writes single rows of the sandbox: keys, charges, refunds, disputes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from gateways.base import MAX_TEXT, Charge, Decline, Dispute, NotExecuted, Refund
from gateways.sandbox.tables import charges, refunds, requests

# Keys -------------------------------------------------------------------------------------------


def claim_key(connection: sa.Connection, key: str, reference: str) -> str | None:
    """None for a new key; the reference behind a known one. A fenced key raises NotExecuted."""
    new = connection.scalar(
        insert(requests)
        .values(key=key, reference=reference)
        .on_conflict_do_nothing()
        .returning(requests.c.key)
    )
    if new is not None:
        return None
    row = connection.execute(sa.select(*requests.c).where(requests.c.key == key)).one()
    if row.fenced:
        raise NotExecuted("this key is fenced")
    return str(row.reference)


def fence_key(connection: sa.Connection, key: str) -> str | None:
    """The reference behind a key. A key that is not known is refused from now on."""
    connection.execute(insert(requests).values(key=key, fenced=True).on_conflict_do_nothing())
    row = connection.execute(sa.select(*requests.c).where(requests.c.key == key)).one()
    return None if row.fenced else str(row.reference)


# Rows -------------------------------------------------------------------------------------------


def find_charge(
    connection: sa.Connection, reference: str, *, lock: bool = False
) -> sa.Row[Any] | None:
    if not (0 < len(reference) <= MAX_TEXT and reference.isprintable()):
        return None  # it comes from a URL, and PostgreSQL does not take every text
    query = sa.select(*charges.c).where(charges.c.reference == reference)
    return connection.execute(query.with_for_update() if lock else query).one_or_none()


def require_charge(connection: sa.Connection, reference: str, *, lock: bool = False) -> sa.Row[Any]:
    """Raises NotExecuted when there is no such charge."""
    row = find_charge(connection, reference, lock=lock)
    if row is None:
        raise NotExecuted("no such charge")
    return row


def find_charge_by_key(connection: sa.Connection, key: str) -> sa.Row[Any] | None:
    query = sa.select(*charges.c).where(charges.c.idempotency_key == key)
    return connection.execute(query).one_or_none()


def update_charge(connection: sa.Connection, reference: str, **values: Any) -> sa.Row[Any]:
    return connection.execute(
        charges.update()
        .where(charges.c.reference == reference)
        .values(**values)
        .returning(*charges.c)
    ).one()


def require_refund(connection: sa.Connection, reference: str) -> sa.Row[Any]:
    query = sa.select(*refunds.c).where(refunds.c.reference == reference)
    return connection.execute(query).one()


def find_refund_by_id(connection: sa.Connection, charge: str, refund_id: int) -> sa.Row[Any] | None:
    """The refund of a charge by the service's id."""
    query = sa.select(*refunds.c).where(
        refunds.c.charge == charge, refunds.c.refund_id == refund_id
    )
    return connection.execute(query).one_or_none()


def list_refunds(connection: sa.Connection, references: Sequence[str]) -> Sequence[sa.Row[Any]]:
    """All refunds of these charges, oldest first."""
    return connection.execute(
        sa.select(*refunds.c)
        .where(refunds.c.charge.in_(references))
        .order_by(refunds.c.created_at, refunds.c.reference)
    ).all()


# Rows as types of the contract ------------------------------------------------------------------


def charge_state(row: sa.Row[Any], refund_rows: Sequence[sa.Row[Any]] | None = None) -> Charge:
    """The state of a charge, with its refunds where they are given."""
    return Charge(
        reference=row.reference,
        status=row.status,
        amount=row.amount,
        currency=row.currency,
        amount_captured=row.amount_captured,
        capture_before=row.capture_before,
        redirect_url=row.redirect_url,
        decline=Decline(row.outcome, row.outcome) if row.status == "declined" else None,
        refunds=None
        if refund_rows is None
        else tuple(refund_state(refund, row) for refund in refund_rows),
    )


def refund_state(row: sa.Row[Any], charge: sa.Row[Any]) -> Refund:
    return Refund(row.reference, row.status, row.amount, charge.currency, row.refund_id)


def dispute_state(row: sa.Row[Any], charge: sa.Row[Any]) -> Dispute:
    """A dispute is about all that was captured. It takes evidence until it closes."""
    return Dispute(
        reference=row.reference,
        status=row.status,
        amount=charge.amount_captured,
        currency=charge.currency,
        reason="fraudulent",
        evidence_due_at=row.closes_at,
    )
