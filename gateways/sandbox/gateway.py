"""The sandbox gateway, for development and tests.

It is a gateway, not a mock: it writes its charges to its own tables in its own transactions,
whether or not the service receives the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cached_property, partial
from typing import TypeVar

import sqlalchemy as sa

from config import Settings
from gateways import base
from gateways.sandbox import cards, clock, events, listing, operations, records, webhooks
from gateways.sandbox.dashboard import Dashboard
from gateways.sandbox.faults import with_fault
from gateways.sandbox.listing import Entry
from gateways.sandbox.webhooks import announcing
from greenlets import in_thread
from statements import PooledSender

T = TypeVar("T")
_Request = base.ChargeRequest | base.ChangeRequest | base.RefundRequest


class SandboxGateway(base.Gateway):
    """Decides by test card, and on demand fails in the ways in which real gateways fail."""

    name = "sandbox"
    remote = False
    capabilities = base.Capabilities(
        payment_types=frozenset({"card", "paypal", "bank_account"}),
        card_numbers=True,
        lists_charges=True,
    )

    def __init__(self, engine: sa.Engine, *, timeout: float) -> None:
        self.engine = engine
        self.timeout = timeout  # seconds that a call takes at most
        self.dashboard = Dashboard(engine)
        self._sender = PooledSender(engine)

    @classmethod
    def build(cls, settings: Settings, engine: sa.Engine) -> SandboxGateway:
        return cls(engine, timeout=settings.gateway_timeout)

    def save_method(self, request: base.MethodRequest) -> base.SavedMethod:
        return cards.save_method(request)

    # Money --------------------------------------------------------------------------------------

    def charge(self, request: base.ChargeRequest) -> base.Charge:
        reference = operations.new_reference("ch")
        charge = operations.capture_at_once(self._sender, reference, request)
        if charge is None:
            return self._ask(request, partial(self._charge, reference, request))
        webhooks.wake_deliveries()
        return records.charge_state(charge)

    def _charge(self, reference: str, request: base.ChargeRequest) -> base.Charge:
        with announcing(self.engine) as connection:
            known = records.claim_key(connection, request.key, reference)
            if known is not None:
                return records.charge_state(records.require_charge(connection, known))
            return records.charge_state(operations.make_charge(connection, reference, request))

    def capture(self, request: base.ChangeRequest) -> base.Charge:
        return self._ask(request, partial(self._change, request))

    def void(self, request: base.ChangeRequest) -> base.Charge:
        return self._ask(request, partial(self._change, request))

    def _change(self, request: base.ChangeRequest) -> base.Charge:
        with announcing(self.engine) as connection:
            known = records.claim_key(connection, request.key, request.reference)
            row = records.require_charge(connection, request.reference, lock=True)
            if known is None and request.operation == "capture":
                row = operations.capture(connection, row, request.amount, request.fault)
            elif known is None:
                row = operations.void(connection, row, request.fault)
            return records.charge_state(row)

    def refund(self, request: base.RefundRequest) -> base.Refund:
        reference = operations.new_reference("re")
        refund = operations.refund_at_once(self._sender, reference, request)
        if refund is None:
            return self._ask(request, partial(self._refund, reference, request))
        webhooks.wake_deliveries()
        return refund

    def _refund(self, reference: str, request: base.RefundRequest) -> base.Refund:
        with announcing(self.engine) as connection:
            known = records.claim_key(connection, request.key, reference)
            row = records.require_charge(connection, request.reference, lock=True)
            if known is not None:
                refund = records.require_refund(connection, known)
            else:
                refund = operations.refund(
                    connection, row, reference, request.amount, request.refund_id, request.fault
                )
            return records.refund_state(refund, row)

    def _ask(self, request: _Request, work: Callable[[], T]) -> T:
        """In a thread, for it may be slow, and SQLAlchemy's engine blocks."""
        return in_thread(partial(with_fault, request.fault, self.timeout, work))

    # Look-ups -----------------------------------------------------------------------------------

    # A look-up fences a key that was never used, so that a late request is refused, whatever
    # `resend` says. Old keys may be deleted; the charges and refunds that they made stay.

    def look_up(self, query: base.ChargeLookup) -> base.Charge | None:
        return in_thread(partial(self._look_up, query))

    def _look_up(self, query: base.ChargeLookup) -> base.Charge | None:
        with self.engine.begin() as connection:
            known = records.fence_key(connection, query.request.key)
            row = (
                records.require_charge(connection, known)
                if known is not None
                else records.find_charge_by_key(connection, query.request.key)
            )
            if row is None:
                return None
            return records.charge_state(row, records.list_refunds(connection, [row.reference]))

    def look_up_refund(self, query: base.RefundLookup) -> base.Refund | None:
        return in_thread(partial(self._look_up_refund, query))

    def _look_up_refund(self, query: base.RefundLookup) -> base.Refund | None:
        request = query.request
        with self.engine.begin() as connection:
            known = records.fence_key(connection, query.request.key)
            row = (
                records.require_refund(connection, known)
                if known is not None
                else records.find_refund_by_id(connection, request.reference, request.refund_id)
            )
            if row is None:
                return None
            return records.refund_state(row, records.require_charge(connection, row.charge))

    def list_charges(self, since: datetime | None, cursor: str | None = None) -> base.ChargePage:
        with self.engine.connect() as connection:
            return listing.list_changed(connection, since, cursor)

    def page(
        self, *, limit: int, order_id: int | None = None, cursor: str | None = None
    ) -> list[Entry]:
        """A page of all charges, newest first, or of the charges of one order, oldest first.

        `cursor` is the reference of the last charge of the page before. Raises LookupError for
        an unknown one.
        """

        def read() -> list[Entry]:
            with self.engine.connect() as connection:
                return listing.list_page(connection, limit=limit, order_id=order_id, cursor=cursor)

        return in_thread(read)

    # The shopper's page -------------------------------------------------------------------------

    def action(self, reference: str) -> records.ChargeRow | None:
        """The charge behind a redirect page. Its reference is secret, because it is in the URL."""
        with self.engine.connect() as connection:
            return records.find_charge(connection, reference)

    def answer_action(self, reference: str, *, approve: bool) -> records.ChargeRow | None:
        """Approve or decline a charge on the redirect page. Only the first answer counts."""
        with announcing(self.engine) as connection:
            row = records.find_charge(connection, reference, lock=True)
            if row is None or row.status != "requires_action":
                return row
            return operations.answer_action(connection, row, approve=approve)

    # What time does -----------------------------------------------------------------------------

    def tick(self) -> int:
        """Expire authorizations, fail refunds and close disputes that are due: one batch.

        Returns how many.
        """
        with self.engine.begin() as connection:
            return clock.tick(connection)

    # Webhooks -----------------------------------------------------------------------------------

    @cached_property
    def _webhook_secret(self) -> str:  # made once, with the database
        with self.engine.connect() as connection:
            return webhooks.read_secret(connection)

    def due_webhooks(self, limit: int = 50) -> list[tuple[int, dict[str, str], bytes]]:
        """Signed webhooks that are due and not delivered: (id, headers, body)."""
        return webhooks.list_due(self._sender, self._webhook_secret, limit)

    def delivered(self, *webhook_ids: int) -> None:
        """The service has accepted these webhooks."""
        webhooks.mark_delivered(self._sender, webhook_ids)

    def postpone(self, webhook_id: int) -> None:
        """The service did not accept this webhook; it is sent again a little later."""
        with self.engine.begin() as connection:
            webhooks.postpone(connection, webhook_id)

    def parse_webhook(self, headers: Mapping[str, str], body: bytes) -> base.GatewayEvent:
        return events.read(self._webhook_secret, headers, body)
