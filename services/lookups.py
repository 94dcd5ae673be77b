"""Look-ups: ask a gateway what became of an open request, and what time has changed.

A look-up asks, locks, then applies. After a day without an outcome it flags the payment for review.
It never fails a payment by a timer and never charges again to be sure.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

from sqlalchemy import Engine

import crud
import leases
from config import Settings
from database import new_session, phase
from domain.settlement import decide_unknown
from gateways.base import Charge, ChargeLookup, Gateway, NotExecuted
from gateways.registry import Gateways
from leases import Due, Lane, Lease, LookedUp
from models import Payment, Refund
from observability.logs import get_logger
from rows import PaymentAges, PaymentMethodRow, PaymentRow, RefundAges
from services import payments
from sessions import Session
from settlement import apply, gateway_requests
from settlement.gateway_calls import UNKNOWN, GatewayAccess, call_gateway, known_state
from settlement.gateway_requests import RowSnapshot
from settlement.transitions import ChangedBy, lock_refund, locked_payment

log = get_logger()

RECONCILER = ChangedBy.service("reconciler")
REVIEW_AFTER: Final = 24 * 3600  # seconds; gateways' own reports take less
REFUND_REVIEW_AFTER: Final = 14 * 24 * 3600  # seconds; banks may take ten days
# About two minutes: after an outage of ours the gateway may be away for a moment, too.
REVIEW_AFTER_LOOKUPS: Final = 8
# Look-ups at once for each gateway and lane, each with a thread.
LOOKUP_CONCURRENCY: Final[dict[Lane, int]] = {"open": 4, "waiting": 2}
SPARE: Final = 16  # rows found beside those that are wanted: others may take some first
MAX_CALLS_PER_LOOKUP: Final = 3  # at most: about the operation, about the charge, its completion


@dataclass(frozen=True, slots=True)
class LookupRules:
    """How look-ups are made. Times are in seconds."""

    gateways: Gateways
    resend_within: float  # RESEND_WITHIN
    action_expires_after: float  # ACTION_EXPIRES_AFTER
    access: GatewayAccess
    lease: float  # longer than a look-up can last

    def may_resend(self, open_for: float) -> bool:
        """Whether a request that may not have arrived may be sent again after so many seconds.

        Later it is fenced, where the gateway has a way, and only looked up.
        """
        return open_for < self.resend_within

    @classmethod
    def from_settings(cls, settings: Settings, gateways: Gateways) -> LookupRules:
        return cls(
            gateways=gateways,
            resend_within=settings.resend_within,
            action_expires_after=settings.action_expires_after,
            access=GatewayAccess(gateways=gateways, lookup_after=settings.reconcile_after),
            lease=MAX_CALLS_PER_LOOKUP * settings.gateway_timeout + 10,
        )


# What is due ------------------------------------------------------------------------------------


def run_once(
    engine: Engine,
    rules: LookupRules,
    lane: Lane,
    gateway: str | None,
    *,
    stopping: Callable[[], bool] = lambda: False,
) -> int:
    """Look up what is due at a gateway, until nothing is; None: at all that are switched off.

    Several threads, each of which leases what it looks up. Returns how many rows there were.
    """
    with new_session(engine) as session:
        first = _lease_due(session, rules, lane, gateway, LOOKUP_CONCURRENCY[lane])
    if not first:
        return 0

    def drain(lease: Lease) -> int:
        done, mine = 0, [lease]
        with new_session(engine) as session:
            while mine and not stopping():
                look_up(session, rules, mine[0])
                done += 1
                mine = _lease_due(session, rules, lane, gateway, 1)
        return done

    with ThreadPoolExecutor(len(first), thread_name_prefix=f"lookup-{gateway}") as threads:
        return sum(threads.map(drain, first))


def _lease_due(
    session: Session, rules: LookupRules, lane: Lane, gateway: str | None, limit: int
) -> list[Lease]:
    """Lease due rows. Open payments and refunds share a lane; chance decides which are leased
    first, so that neither waits for all of the other."""
    taken: list[Lease] = []
    enabled = list(rules.gateways.by_name)

    def take(model: LookedUp, most: int) -> None:
        with phase(session):
            due = leases.find_due(session, model, lane, gateway, enabled, limit=most + SPARE)
        taken.extend(_take(session, rules, due, most))

    if lane == "waiting":
        take(Payment, limit)
        return taken
    models: list[LookedUp] = [Payment, Refund]
    first, second = random.sample(models, 2)
    take(first, -(-limit // 2))
    if len(taken) < limit:
        take(second, limit - len(taken))
    if len(taken) < limit:  # what the second has left to it
        take(first, limit - len(taken))
    return taken


def _take(
    session: Session, rules: LookupRules, found: Sequence[Due], most: int | None = None
) -> list[Lease]:
    """Lease what was found, each row in a transaction of its own."""
    taken: list[Lease] = []
    for due in found:
        if len(taken) == most:
            break
        with phase(session):
            lease = leases.take(session, due, seconds=rules.lease)
        if lease is not None:
            taken.append(lease)
    return taken


def look_up_everything_open(
    engine: Engine, rules: LookupRules, progress: Callable[[int], None] = lambda _: None
) -> int:
    """Look up once every unsettled row, due or not.

    Returns how many there were; `progress` is called with the number so far.
    """
    done = 0
    models: tuple[LookedUp, ...] = (Payment, Refund)
    limit = LOOKUP_CONCURRENCY["open"]
    with ThreadPoolExecutor(limit, thread_name_prefix="lookup") as threads:
        for model in models:
            last = 0
            while True:
                with new_session(engine) as session:
                    with phase(session):
                        found = leases.find_next_unsettled(session, model, last, limit=limit)
                    mine = _take(session, rules, found)
                if not found:
                    break
                list(threads.map(partial(_look_up_in_own_session, engine, rules), mine))
                last = found[-1].id
                done += len(mine)
                progress(done)
    return done


def _look_up_in_own_session(engine: Engine, rules: LookupRules, lease: Lease) -> None:
    with new_session(engine) as session:
        look_up(session, rules, lease)


# One look-up ------------------------------------------------------------------------------------


def look_up(session: Session, rules: LookupRules, lease: Lease) -> None:
    """Look up one leased row and apply the outcome.

    A failure delays no other row: the next look-up is set, and after a day the payment is flagged
    for review.
    """
    is_payment = lease.model is Payment
    try:
        (look_up_payment if is_payment else look_up_refund)(session, rules, lease)
    except Exception as error:
        session.rollback()
        log.error("lookup.failed", id=lease.id, error=type(error).__name__)
    try:
        with phase(session):
            leases.finish_lookup(session, lease)
        (_flag_overdue if is_payment else _flag_overdue_refund)(session, lease)
    except Exception as error:  # the lease ends by itself
        session.rollback()
        log.error("lookup.not_finished", id=lease.id, error=type(error).__name__)


def look_up_payment(session: Session, rules: LookupRules, known: Lease | PaymentRow) -> None:
    """Look up one payment, or void it when its shopper has stayed away for too long."""
    with phase(session):
        seen, ages = crud.require_payment_to_look_up(session, known.user_id, known.id)
        if (seen.status, seen.operation_key) != (known.status, known.operation_key):
            return  # it was settled after it was leased
        method = crud.get_charged_payment_method(session, seen)
    gateway = rules.gateways.get(seen.gateway)
    if gateway is None:
        log.warning("lookup.gateway_disabled", payment_id=seen.id, gateway=seen.gateway)
        return
    waits = seen.status == "requires_action" and seen.operation is None
    if waits and ages.charge > rules.action_expires_after:
        _void_expired(session, rules, seen, ages)
        return
    snapshot = RowSnapshot.of_payment(seen)
    may_resend = seen.status == "pending" and rules.may_resend(ages.charge)
    charge_query = gateway_requests.charge_lookup(seen, method, resend=may_resend)
    not_executed = False
    if seen.operation_key is not None:
        resend = rules.may_resend(ages.open_for)
        operation_query = gateway_requests.operation_lookup(seen, resend=resend)
        answer = call_gateway(gateway, "look_up", lambda: gateway.look_up(operation_query))
        not_executed = answer is None
        if not_executed:  # then ask about the charge itself
            answer = call_gateway(gateway, "look_up", lambda: gateway.look_up(charge_query))
    else:
        answer = call_gateway(gateway, "look_up", lambda: gateway.look_up(charge_query))
        not_executed = answer is None
    charge = known_state(answer)
    if charge is None and not not_executed:
        return  # the gateway cannot tell, or not now
    with locked_payment(session, RECONCILER, seen, gateway) as locked:
        payment = locked.payment
        source = snapshot.source(payment)
        not_executed = not_executed and payment.operation_key == seen.operation_key
        if charge is not None:
            apply.settle_charge(
                locked, charge, source, not_executed=not_executed and source == "answer"
            )
        if not_executed and payment.operation_key == seen.operation_key:
            apply.settle_not_executed(locked, source)
        log.info("lookup.payment", payment_id=payment.id, status=payment.status)
        if charge is None or charge.status != "approved" or payment.status != "pending":
            return
        request = gateway_requests.completion_request(payment)
        snapshot = RowSnapshot.of_payment(payment)
    if seen.status != "pending" or rules.may_resend(ages.open_for):
        payments.complete(session, gateway, RECONCILER, seen, request, snapshot)
        return
    # Its shopper approved long ago and may have left: it is not captured any more.
    query = ChargeLookup(request, request.reference, seen.requested_at, resend=False)
    answer = call_gateway(gateway, "look_up", lambda: gateway.look_up(query))
    charge = known_state(answer)
    if charge is None and answer is not None:
        return
    with locked_payment(session, RECONCILER, seen, gateway) as locked:
        source = snapshot.source(locked.payment)
        if charge is not None:
            apply.settle_charge(locked, charge, source)
        else:
            apply.settle_not_executed(locked, source)


def look_up_refund(session: Session, rules: LookupRules, known: Lease) -> None:
    """Look up one refund."""
    with phase(session):
        seen, ages = crud.require_refund_to_look_up(session, known.user_id, known.id)
        if seen.status != known.status:
            return
        of = crud.require_payment(session, seen.payment_id, seen.user_id)
        method = crud.get_charged_payment_method(session, of)
    gateway = rules.gateways.get(seen.gateway)
    if gateway is None:
        log.warning("lookup.gateway_disabled", payment_id=of.id, gateway=seen.gateway)
        return
    if seen.origin == "gateway":
        _look_up_refunds_of(session, gateway, of, method)
        return
    snapshot = RowSnapshot.of_refund(seen)
    may_resend = seen.status == "pending" and rules.may_resend(ages.open_for)
    query = gateway_requests.refund_lookup(of, seen, resend=may_resend)
    answer = call_gateway(gateway, "look_up_refund", lambda: gateway.look_up_refund(query))
    if answer is UNKNOWN or isinstance(answer, NotExecuted):
        return
    with locked_payment(session, RECONCILER, of, gateway) as locked:
        refund = lock_refund(locked, seen.id)
        assert refund is not None  # rows of money are never deleted
        source = snapshot.source(refund)
        if answer is not None:
            apply.settle_refund(locked, refund, answer, source)
        else:
            apply.settle_refund_not_executed(locked, refund, source)
        log.info("lookup.refund", refund_id=refund.id, status=refund.status)


def _look_up_refunds_of(
    session: Session, gateway: Gateway, of: PaymentRow, method: PaymentMethodRow
) -> None:
    """Look up a refund that was made outside: it has no key of ours, but its charge shows it."""
    query = gateway_requests.charge_lookup(of, method)
    snapshot = RowSnapshot.of_payment(of)
    charge: Charge | None = known_state(
        call_gateway(gateway, "look_up", lambda: gateway.look_up(query))
    )
    if charge is None or charge.refunds is None:
        return
    with locked_payment(session, RECONCILER, of) as locked:
        apply.settle_refunds(locked, charge.refunds, snapshot.source(locked.payment))


def _void_expired(
    session: Session, rules: LookupRules, seen: PaymentRow, ages: PaymentAges
) -> None:
    """Void a payment whose shopper has stayed away.

    After a day of refusals a person has to look. A gateway that did not answer may only be away.
    """
    status = payments.void_waiting_payment(session, rules.access, RECONCILER, seen)
    overdue = ages.charge > rules.action_expires_after + REVIEW_AFTER
    looked_at_lately = ages.reviewed_ago is not None and ages.reviewed_ago <= REVIEW_AFTER
    if status == "requires_action" and overdue and not looked_at_lately:
        _flag_unknown(session, seen)


def _flag_overdue(session: Session, lease: Lease) -> None:
    """Flag a payment whose outcome has been open for a day."""
    with phase(session):
        seen, ages = crud.require_payment_to_look_up(session, lease.user_id, lease.id)
    is_open = seen.status == "pending" or seen.operation is not None
    if is_open and not seen.needs_review and _is_overdue(seen.lookup_count, ages):
        _flag_unknown(session, seen)


def _is_overdue(
    lookups: int, ages: PaymentAges | RefundAges, patience: float = REVIEW_AFTER
) -> bool:
    return ages.unreviewed_for > patience and lookups >= REVIEW_AFTER_LOOKUPS


def _flag_unknown(session: Session, seen: PaymentRow) -> None:
    with locked_payment(session, RECONCILER, seen) as locked:
        ours = apply.payment_facts(locked)
        if ours.status == seen.status and ours.review_reason is None:
            apply.apply_decision(locked, decide_unknown(ours, overdue=True))


def _flag_overdue_refund(session: Session, lease: Lease) -> None:
    with phase(session):
        seen, ages = crud.require_refund_to_look_up(session, lease.user_id, lease.id)
        of = crud.require_payment(session, seen.payment_id, seen.user_id)
    # One that the gateway has taken on may take its bank days.
    patience = REVIEW_AFTER if seen.gateway_reference is None else REFUND_REVIEW_AFTER
    overdue = _is_overdue(seen.lookup_count, ages, patience)
    if seen.status != "pending" or of.needs_review or not overdue:
        return
    with locked_payment(session, RECONCILER, of) as locked:
        refund = lock_refund(locked, seen.id)
        if refund is not None and refund.status == "pending":
            apply.request_review(locked, "outcome_unknown", "")
