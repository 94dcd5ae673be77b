"""Takes one guard away, to see the proof fail: a check that cannot fail proves nothing."""

import dataclasses
import math
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Guard:
    """One thing that keeps the books right, and how to remove it."""

    about: str
    take_away: Callable[[], None]
    sql: tuple[str, ...] = ()  # for the parts of it that stand in the database


def _replace(owner: object, **attributes: Any) -> None:
    for name, value in attributes.items():
        getattr(owner, name)  # a guard that moved away is an error, not a proof
        setattr(owner, name, value)


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _unique_live_payment() -> None:
    """Look at no other payment of the order."""
    import locks

    find = locks.find_payable

    def without_payment(*arguments: Any) -> Any:
        return find(*arguments)._replace(live=None)

    _replace(locks, find_payable=without_payment)


def _claim_before_call() -> None:
    """Claim and settlement in one transaction, with the call inside it."""
    from services import payments
    from statements import PooledSender

    class Uncommitted(PooledSender):
        @classmethod
        def beside(cls, session: Any) -> Any:
            return session  # in its transaction, which ends with the settlement

    _replace(payments, PooledSender=Uncommitted)


def _stored_key() -> None:
    """Send the gateway a key that is stored nowhere."""
    from gateways.sandbox import SandboxGateway, operations, webhooks

    charge = SandboxGateway.charge

    def with_other_key(self: SandboxGateway, request: Any) -> Any:
        return charge(self, dataclasses.replace(request, key=str(uuid.uuid4())))

    # Its webhooks name our payment and would mend it; a gateway need not be that kind.
    _replace(SandboxGateway, charge=with_other_key)
    _replace(webhooks, _insert=_nothing)
    _replace(operations, capture_at_once=_nothing)


def _unknown_is_open() -> None:
    """Treat a missing answer as a failure."""
    from gateways.base import NotExecuted
    from services import payments, refunds
    from settlement import gateway_calls

    call = gateway_calls.call_gateway

    def hasty(*arguments: Any) -> Any:
        answer = call(*arguments)
        return NotExecuted("no answer") if answer is gateway_calls.UNKNOWN else answer

    _replace(payments, call_gateway=hasty)
    _replace(refunds, call_gateway=hasty)


def _idempotency() -> None:
    from settlement import idempotency

    def every_time(_session: Any, _context: Any, work: Callable[[], Any], _check: Any) -> Any:
        return work()

    _replace(idempotency, run=every_time, read_key=_nothing)


def _refund_reservation() -> None:
    """Check what is left to refund neither here nor at the gateway."""
    from gateways.sandbox import SandboxGateway
    from gateways.sandbox.tables import charges
    from greenlets import in_thread
    from services import refunds

    _replace(refunds, _amount=lambda payment, asked: asked or payment.amount_captured)
    refund = SandboxGateway.refund

    def unchecked(self: Any, request: Any) -> Any:
        def raise_limit() -> None:
            with self.engine.begin() as connection:
                connection.execute(
                    charges.update()
                    .where(charges.c.reference == request.reference)
                    .values(amount=10**11, amount_captured=10**11)
                )

        in_thread(raise_limit)
        return refund(self, request)

    _replace(SandboxGateway, refund=unchecked)


def _reconciler() -> None:
    from services import lookups

    _replace(lookups, run_once=lambda *_, **__: 0)


def _resend_window() -> None:
    """Resend without a time limit, and let no charge arrive at first."""
    from proof import fault_injection
    from services import payments
    from services.lookups import LookupRules
    from settlement import gateway_calls

    call, real = gateway_calls.call_gateway, LookupRules.from_settings

    def lost(gateway: Any, what: str, *arguments: Any) -> Any:
        return gateway_calls.UNKNOWN if what == "charge" else call(gateway, what, *arguments)

    def for_ever(*arguments: Any) -> LookupRules:
        return dataclasses.replace(real(*arguments), resend_within=math.inf)

    _replace(payments, call_gateway=lost)
    _replace(fault_injection, is_sent_again=lambda _: True)
    _replace(LookupRules, from_settings=for_ever)


def _action_expiry() -> None:
    from services import lookups

    _replace(lookups, _void_expired=_nothing)


def _outside_books() -> None:
    from services import reconciliation

    _replace(reconciliation, run_once=lambda *_, **__: 0)


def _outside_refund_once() -> None:
    """Import a refund that was made outside each time that a gateway reports it."""
    import crud
    import locks

    find = locks.lock_refund_of_state

    def only_ours(sender: Any, payment: Any, reference: str, refund_id: Any) -> Any:
        return None if refund_id is None else find(sender, payment, reference, refund_id)

    _replace(locks, lock_refund_of_state=only_ours)
    _replace(crud, get_refund_of_reference=_nothing)


GUARDS: Final[Mapping[str, Guard]] = {
    "unique-live-payment": Guard(
        "one live payment per order", _unique_live_payment, ("DROP INDEX uq_payments_live",)
    ),
    "claim-before-call": Guard(
        "the claim is committed before the gateway is asked", _claim_before_call
    ),
    "stored-key": Guard("the gateway is sent the key that the claim holds", _stored_key),
    "unknown-is-open": Guard("an unknown outcome stays open", _unknown_is_open),
    "idempotency": Guard("the same Idempotency-Key is the same request", _idempotency),
    "refund-reservation": Guard(
        "a refund reserves its amount first",
        _refund_reservation,
        (
            "DROP TRIGGER reserve_refund ON refunds",
            "ALTER TABLE payments DROP CONSTRAINT ck_payments_refund_reserved",
            "ALTER TABLE payments DROP CONSTRAINT ck_payments_amount_refunded",
            "ALTER TABLE payments DROP CONSTRAINT ck_payments_refunded_has_amount",
        ),
    ),
    "reconciler": Guard("what nobody answered is looked up", _reconciler),
    "resend-window": Guard(
        "what may never have arrived is sent again for minutes only", _resend_window
    ),
    "action-expiry": Guard("a payment whose shopper stays away is canceled", _action_expiry),
    "outside-books": Guard("the books are compared", _outside_books),
    "outside-refund-once": Guard(
        "a refund made outside is written down once",
        _outside_refund_once,
        ("DROP INDEX uq_refunds_payment_id_gateway_reference",),
    ),
}


def take_away_named() -> None:
    """Take away the guard that PROOF_BREAK names, if it names one."""
    broken = os.environ.get("PROOF_BREAK")
    if broken:
        GUARDS[broken].take_away()
