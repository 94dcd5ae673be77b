"""Lists the sandbox's charges with their refunds and disputes, in pages."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from gateways.base import ChargePage, ListedCharge, NotExecuted
from gateways.sandbox import records
from gateways.sandbox.tables import charges, disputes

PAGE: Final = 200
# Longer than any transaction of the sandbox. A change counts from the start of its transaction, but
# shows only after the commit.
LONGEST_TRANSACTION: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Entry:
    """A charge that was made or declined, with its refunds (oldest first) and its dispute."""

    charge: records.ChargeRow
    refunds: Sequence[records.RefundRow]
    dispute: records.DisputeRow | None

    @property
    def reference(self) -> str:
        return self.charge.reference

    @property
    def amount_refunded(self) -> int:
        return sum(refund.amount for refund in self.refunds if refund.status == "succeeded")

    @property
    def left(self) -> int:
        """How much of what was captured can still be refunded."""
        reserved = sum(refund.amount for refund in self.refunds if refund.status != "failed")
        return self.charge.amount_captured - reserved

    def as_dict(self) -> dict[str, Any]:
        """The fields of `GET /sandbox/charges`."""
        charge = self.charge
        return {
            "reference": charge.reference,
            "order_id": charge.order_id,
            "payment_id": charge.payment_id,
            "idempotency_key": charge.idempotency_key,
            "amount": charge.amount,
            "currency": charge.currency,
            "status": charge.status,
            "amount_captured": charge.amount_captured,
            "amount_refunded": self.amount_refunded,
            "refunds": [
                {"reference": refund.reference, "amount": refund.amount, "status": refund.status}
                for refund in self.refunds
            ],
            "created_at": charge.created_at,
        }

    def as_listed(self) -> ListedCharge:
        return ListedCharge(
            charge=records.charge_state(self.charge, self.refunds),
            key=self.charge.idempotency_key,
            payment_id=self.charge.payment_id,
            disputes=(records.dispute_state(self.dispute, self.charge),) if self.dispute else (),
        )


def list_page(
    connection: sa.Connection, *, limit: int, order_id: int | None, cursor: str | None
) -> list[Entry]:
    """See `SandboxGateway.page`."""
    position = sa.tuple_(charges.c.created_at, charges.c.reference)
    query = sa.select(*charges.c).limit(limit)
    if order_id is not None:
        query = query.where(charges.c.order_id == order_id)
        query = query.order_by(charges.c.created_at, charges.c.reference)
    else:
        query = query.order_by(charges.c.created_at.desc(), charges.c.reference.desc())
    if cursor is not None:
        last = records.find_charge(connection, cursor)
        if last is None:
            raise LookupError
        reached = sa.tuple_(last.created_at, last.reference)
        query = query.where(position < reached if order_id is None else position > reached)
    return _complete(connection, query)


def list_changed(
    connection: sa.Connection, since: datetime | None, cursor: str | None
) -> ChargePage:
    """A page of the charges that have changed since then, in the order of the changes.

    A charge that changes while somebody reads page after page moves to the end, and is read again.
    """
    position = sa.tuple_(charges.c.changed_at, charges.c.reference)
    query = sa.select(*charges.c).order_by(charges.c.changed_at, charges.c.reference).limit(PAGE)
    if cursor is not None:
        query = query.where(position > sa.tuple_(*_read_cursor(cursor)))
    elif since is not None:
        query = query.where(charges.c.changed_at >= since - LONGEST_TRANSACTION)
    page = _complete(connection, query)
    last = page[-1].charge if len(page) == PAGE else None
    return ChargePage(
        charges=tuple(entry.as_listed() for entry in page),
        cursor=f"{last.changed_at.isoformat()} {last.reference}" if last else None,
    )


def _read_cursor(cursor: str) -> tuple[datetime, str]:
    moment, _, reference = cursor.partition(" ")
    try:
        return datetime.fromisoformat(moment), reference
    except ValueError:
        raise NotExecuted("this cursor is not one of the sandbox's") from None


def _complete(connection: sa.Connection, query: sa.Select[Any]) -> list[Entry]:
    """Charges, with the refunds and the disputes that they have."""
    rows = records.read(connection, records.ChargeRow, query)
    references = [row.reference for row in rows]
    refunds_of = defaultdict(list)
    for refund in records.list_refunds(connection, references):
        refunds_of[refund.charge].append(refund)
    of_charges = sa.select(*disputes.c).where(disputes.c.charge.in_(references))
    found = records.read(connection, records.DisputeRow, of_charges)
    dispute_of = {dispute.charge: dispute for dispute in found}
    return [Entry(row, refunds_of[row.reference], dispute_of.get(row.reference)) for row in rows]
