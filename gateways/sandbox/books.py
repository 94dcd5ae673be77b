"""Reading and writing the sandbox's books: keys, charges and refunds, row by row."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from gateways.base import Charge, Decline, NotDone, Refund
from gateways.sandbox.tables import charges, refunds, requests


def claim_key(connection: sa.Connection, key: str, reference: str) -> str | None:
    """None for a new key; the reference behind a known one. A fenced key raises NotDone."""
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
        raise NotDone("this key was given up before it was used")
    return str(row.reference)


def fence_key(connection: sa.Connection, key: str) -> str | None:
    """The reference behind a key; a key that is not known can never be used any more."""
    connection.execute(insert(requests).values(key=key, fenced=True).on_conflict_do_nothing())
    row = connection.execute(sa.select(*requests.c).where(requests.c.key == key)).one()
    return None if row.fenced else str(row.reference)


def find_charge(
    connection: sa.Connection, reference: str, *, lock: bool = False
) -> sa.Row[Any] | None:
    query = sa.select(*charges.c).where(charges.c.reference == reference)
    return connection.execute(query.with_for_update() if lock else query).one_or_none()


def require_charge(connection: sa.Connection, reference: str, *, lock: bool = False) -> sa.Row[Any]:
    """Raises NotDone when there is no such charge."""
    row = find_charge(connection, reference, lock=lock)
    if row is None:
        raise NotDone("no such charge")
    return row


def update_charge(connection: sa.Connection, reference: str, **values: Any) -> sa.Row[Any]:
    return connection.execute(
        charges.update()
        .where(charges.c.reference == reference)
        .values(**values)
        .returning(*charges.c)
    ).one()


def charge_state(row: sa.Row[Any]) -> Charge:
    """A row of `charges` as the contract shows it."""
    return Charge(
        reference=row.reference,
        status=row.status,
        amount=row.amount,
        currency=row.currency,
        amount_captured=row.amount_captured,
        capture_before=row.capture_before,
        redirect_url=row.redirect_url,
        decline=Decline(row.outcome, row.outcome) if row.status == "declined" else None,
    )


def refund_state(connection: sa.Connection, reference: str) -> Refund:
    row = connection.execute(
        sa.select(*refunds.c, charges.c.currency)
        .join(charges, charges.c.reference == refunds.c.charge)
        .where(refunds.c.reference == reference)
    ).one()
    return Refund(reference, row.status, row.amount, row.currency)


def list_entries(connection: sa.Connection, order_id: int | None) -> list[dict[str, Any]]:
    """Every charge that was made or declined, oldest first, with its refunds."""
    query = sa.select(*charges.c).order_by(charges.c.created_at, charges.c.reference)
    if order_id is not None:
        query = query.where(charges.c.order_id == order_id)
    rows = connection.execute(query).all()
    of_charge: dict[str, list[dict[str, Any]]] = {row.reference: [] for row in rows}
    given_back = connection.execute(
        sa.select(*refunds.c)
        .where(refunds.c.charge.in_(of_charge))
        .order_by(refunds.c.created_at, refunds.c.reference)
    )
    for refund in given_back:
        of_charge[refund.charge].append(
            {
                "reference": refund.reference,
                "amount": refund.amount,
                "status": refund.status,
            }
        )
    return [
        {
            "reference": row.reference,
            "order_id": row.order_id,
            "payment_id": row.payment_id,
            "idempotency_key": row.idempotency_key,
            "amount": row.amount,
            "currency": row.currency,
            "status": row.status,
            "amount_captured": row.amount_captured,
            "amount_refunded": sum(
                refund["amount"]
                for refund in of_charge[row.reference]
                if refund["status"] == "succeeded"
            ),
            "refunds": of_charge[row.reference],
            "created_at": row.created_at,
        }
        for row in rows
    ]
