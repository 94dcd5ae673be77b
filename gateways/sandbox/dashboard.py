"""The sandbox's own dashboard, where somebody moves money without the service.

Each action writes its change and a webhook. An action that is not possible raises NotExecuted and
changes nothing.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import sqlalchemy as sa

from gateways.base import Charge, Dispute, Refund
from gateways.sandbox import operations, records, webhooks
from gateways.sandbox.tables import account
from gateways.sandbox.webhooks import announcing

DISPUTE_CLOSES_AFTER: Final = timedelta(days=7)  # unless somebody closes it before
MOST_COUNTED: Final = 100  # webhooks that wait


@dataclass(frozen=True, slots=True)
class Switches:
    """The dashboard's switches, and how many webhooks wait (MOST_COUNTED at most)."""

    webhooks_held: bool
    decline_next: bool
    waiting: int


class Dashboard:
    """Amounts are in minor units. A charge is named by its reference."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    # The money of a charge ----------------------------------------------------------------------

    def refund(self, reference: str, amount: int | None = None) -> Refund:
        """Refund this amount; None: all that is left."""
        with announcing(self._engine) as connection:
            row = records.require_charge(connection, reference, lock=True)
            made = operations.refund(
                connection, row, operations.new_reference("re"), amount, refund_id=None
            )
            return records.refund_state(made, row)

    def capture(self, reference: str, amount: int | None = None) -> Charge:
        """Capture this amount of an authorization and release the rest; None: all."""
        with announcing(self._engine) as connection:
            row = records.require_charge(connection, reference, lock=True)
            captured = operations.capture(connection, row, row.amount if amount is None else amount)
            return records.charge_state(captured)

    def cancel(self, reference: str) -> Charge:
        """Cancel an authorization, or a charge that waits for its shopper."""
        with announcing(self._engine) as connection:
            row = records.require_charge(connection, reference, lock=True)
            return records.charge_state(operations.void(connection, row))

    # Disputes -----------------------------------------------------------------------------------

    def open_dispute(self, reference: str) -> Dispute:
        """Dispute a captured charge, as its cardholder would, once."""
        with announcing(self._engine) as connection:
            row = records.require_charge(connection, reference, lock=True)
            opened = operations.open_dispute(connection, row, DISPUTE_CLOSES_AFTER)
            return records.dispute_state(opened, row)

    def close_dispute(self, reference: str, *, won: bool) -> Dispute:
        """Close the open dispute of a charge, for the store (won) or against it."""
        with announcing(self._engine) as connection:
            row = records.require_charge(connection, reference, lock=True)
            closed = operations.close_dispute(connection, row, won=won)
            return records.dispute_state(closed, row)

    # Switches -----------------------------------------------------------------------------------

    def decline_next(self, on: bool = True) -> None:
        """Decline the next charge of any user."""
        self._switch(decline_next=on)

    def hold_webhooks(self, on: bool = True) -> None:
        """Hold all webhooks back; off: deliver them."""
        self._switch(webhooks_held=on)

    def _switch(self, **values: bool) -> None:
        with announcing(self._engine) as connection:
            connection.execute(account.update().values(**values))

    # State --------------------------------------------------------------------------------------

    def switches(self) -> Switches:
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(*account.c)).one()
            waiting = webhooks.count_waiting(connection, MOST_COUNTED)
            return Switches(row.webhooks_held, row.decline_next, waiting)
