"""The sandbox's own dashboard: what somebody does there, past the service that charges through it.

Each act changes the books and announces itself like any other change, so it shows what the service
makes of money that was moved outside. What cannot be done raises NotExecuted and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import sqlalchemy as sa

from gateways.base import Charge, Dispute, Refund
from gateways.sandbox import operations, records, webhooks
from gateways.sandbox.announcing import announcing
from gateways.sandbox.tables import account

DISPUTE_CLOSES_AFTER: Final = timedelta(days=7)  # unless somebody closes it before
MOST_COUNTED: Final = 100  # webhooks that wait; a person need not know how many more there are


@dataclass(frozen=True, slots=True)
class Switches:
    """How the dashboard's switches stand, and how many webhooks wait (MOST_COUNTED at most)."""

    webhooks_held: bool
    decline_next: bool
    waiting: int


class Dashboard:
    """Amounts are in minor units; charges are named by their reference."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    # The money of a charge ----------------------------------------------------------------------

    def refund(self, reference: str, amount: int | None = None) -> Refund:
        """Give back this much; None: all that is left."""
        with announcing(self._engine) as connection:
            row = records.require_charge(connection, reference, lock=True)
            made = operations.refund(
                connection, row, operations.new_reference("re"), amount, refund_id=None
            )
            return records.refund_state(made, row)

    def capture(self, reference: str, amount: int | None = None) -> Charge:
        """Capture this much of an authorization and release the rest; None: the whole."""
        with announcing(self._engine) as connection:
            row = records.require_charge(connection, reference, lock=True)
            captured = operations.capture(connection, row, row.amount if amount is None else amount)
            return records.charge_state(captured)

    def cancel(self, reference: str) -> Charge:
        """Give up an authorization, or a charge that waits for its shopper."""
        with announcing(self._engine) as connection:
            row = records.require_charge(connection, reference, lock=True)
            return records.charge_state(operations.void(connection, row))

    # Disputes -----------------------------------------------------------------------------------

    def open_dispute(self, reference: str) -> Dispute:
        """Dispute a captured charge, as its cardholder would. Once for each charge."""
        with announcing(self._engine) as connection:
            row = records.require_charge(connection, reference, lock=True)
            opened = operations.open_dispute(connection, row, DISPUTE_CLOSES_AFTER)
            return records.dispute_state(opened, row)

    def close_dispute(self, reference: str, *, won: bool) -> Dispute:
        """Decide the open dispute of a charge for the store (won) or against it."""
        with announcing(self._engine) as connection:
            row = records.require_charge(connection, reference, lock=True)
            closed = operations.close_dispute(connection, row, won=won)
            return records.dispute_state(closed, row)

    # Switches -----------------------------------------------------------------------------------

    def decline_next(self, on: bool = True) -> None:
        """Decline the next charge, whosever it is."""
        self._switch(decline_next=on)

    def hold_webhooks(self, on: bool = True) -> None:
        """Deliver no webhook any more; off: deliver all that have waited, and those to come."""
        self._switch(webhooks_held=on)

    def _switch(self, **values: bool) -> None:
        with announcing(self._engine) as connection:
            connection.execute(account.update().values(**values))

    # To be shown --------------------------------------------------------------------------------

    def switches(self) -> Switches:
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(*account.c)).one()
            waiting = webhooks.count_waiting(connection, MOST_COUNTED)
            return Switches(row.webhooks_held, row.decline_next, waiting)
