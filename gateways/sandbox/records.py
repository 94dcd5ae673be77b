"""The sandbox's rows as they are read, and statements for single ones."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from domain.states import ChargeStatus, DisputeStatus, RefundStatus
from gateways.base import MAX_TEXT, Charge, Decline, Dispute, NotExecuted, Refund
from gateways.sandbox.tables import charges, refunds, requests

RowType = TypeVar("RowType", bound=NamedTuple)


class ChargeRow(NamedTuple):
    """The columns of `charges`, in their order; the other two likewise."""

    reference: str
    order_id: int
    payment_id: int
    idempotency_key: str
    amount: int
    currency: str
    outcome: str
    capture: bool
    status: ChargeStatus
    amount_captured: int
    redirect_url: str | None
    return_url: str | None
    capture_before: datetime | None
    created_at: datetime
    changed_at: datetime


class RefundRow(NamedTuple):
    reference: str
    charge: str
    refund_id: int | None
    amount: int
    status: RefundStatus
    fails_at: datetime | None
    created_at: datetime


class DisputeRow(NamedTuple):
    reference: str
    charge: str
    status: DisputeStatus
    closes_at: datetime


def read(connection: sa.Connection, kind: type[RowType], statement: sa.Executable) -> list[RowType]:
    """The rows that a statement finds or returns, each as one of this kind."""
    return [kind._make(row) for row in connection.execute(statement)]


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
) -> ChargeRow | None:
    if not (0 < len(reference) <= MAX_TEXT and reference.isprintable()):
        return None  # it comes from a URL, and PostgreSQL does not take every text
    query = sa.select(*charges.c).where(charges.c.reference == reference)
    found = read(connection, ChargeRow, query.with_for_update() if lock else query)
    return found[0] if found else None


def require_charge(connection: sa.Connection, reference: str, *, lock: bool = False) -> ChargeRow:
    """Raises NotExecuted when there is no such charge."""
    row = find_charge(connection, reference, lock=lock)
    if row is None:
        raise NotExecuted("no such charge")
    return row


def find_charge_by_key(connection: sa.Connection, key: str) -> ChargeRow | None:
    found = read(
        connection, ChargeRow, sa.select(*charges.c).where(charges.c.idempotency_key == key)
    )
    return found[0] if found else None


def update_charge(connection: sa.Connection, reference: str, **values: Any) -> ChargeRow:
    statement = charges.update().where(charges.c.reference == reference).values(**values)
    return read(connection, ChargeRow, statement.returning(*charges.c))[0]


def require_refund(connection: sa.Connection, reference: str) -> RefundRow:
    query = sa.select(*refunds.c).where(refunds.c.reference == reference)
    return read(connection, RefundRow, query)[0]


def find_refund_by_id(connection: sa.Connection, charge: str, refund_id: int) -> RefundRow | None:
    """The refund of a charge by the service's id."""
    is_it = sa.and_(refunds.c.charge == charge, refunds.c.refund_id == refund_id)
    found = read(connection, RefundRow, sa.select(*refunds.c).where(is_it))
    return found[0] if found else None


def list_refunds(connection: sa.Connection, references: Sequence[str]) -> list[RefundRow]:
    """All refunds of these charges, oldest first."""
    query = sa.select(*refunds.c).where(refunds.c.charge.in_(references))
    return read(connection, RefundRow, query.order_by(refunds.c.created_at, refunds.c.reference))


# Rows as types of the contract ------------------------------------------------------------------


def charge_state(row: ChargeRow, refund_rows: Sequence[RefundRow] | None = None) -> Charge:
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


def refund_state(row: RefundRow, charge: ChargeRow) -> Refund:
    return Refund(row.reference, row.status, row.amount, charge.currency, row.refund_id)


def dispute_state(row: DisputeRow, charge: ChargeRow) -> Dispute:
    """A dispute is about all that was captured. It takes evidence until it closes."""
    return Dispute(
        reference=row.reference,
        status=row.status,
        amount=charge.amount_captured,
        currency=charge.currency,
        reason="fraudulent",
        evidence_due_at=row.closes_at,
    )
