"""Webhooks from gateways: verified, stored once, applied once, in one transaction.

An event is a hint: it goes through the same decision as an answer. One that arrives twice, late, or
before the answer to its request moves nothing back.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

from sqlalchemy import Engine

import crud
import leases
import locks
from database import new_session, phase
from domain.settlement import (
    OPERABLE_STATUSES,
    Decision,
    RefundDecision,
    decide,
    decide_refund,
)
from errors import GatewayUnavailable, InvalidSignature, NotFound, PaymentInProgress
from gateways import base
from gateways.registry import Gateways
from observability.logs import get_logger
from rows import PaymentOfEvent, PaymentRow
from services import payment_methods
from sessions import Session
from settlement import apply
from settlement.gateway_requests import OPERATIONS
from settlement.transitions import ChangedBy, LockedPayment, locked_payment
from statements import Changes, PooledSender, Sender

log = get_logger()


def receive(
    session: Session, gateways: Gateways, name: str, headers: Mapping[str, str], body: bytes
) -> None:
    """Take a webhook.

    Raises NotFound for a gateway that is off and InvalidSignature. So that the gateway sends the
    event again, raises GatewayUnavailable when the event could not be read yet, and
    PaymentInProgress (409) when it may be about a payment whose answer is still due.
    """
    gateway = gateways.get(name)
    if gateway is None:
        raise NotFound
    try:
        event = gateway.parse_webhook(headers, body)
    except base.SignatureInvalid as error:
        log.warning("webhook.rejected", gateway=name, reason=str(error))
        raise InvalidSignature from None
    except (
        base.NotExecuted,
        base.OutcomeUnknown,
    ) as error:  # the gateway was asked, and did not answer
        log.warning("webhook.unreadable", gateway=name, reason=str(error))
        raise GatewayUnavailable("The event could not be read yet; send it again") from None
    if event.method is not None:
        _change_methods(session, name, event, event.method)
        return
    seen = crud.find_payment_of_event(
        PooledSender.beside(session),
        name,
        event.payment_id,
        event.reference,
        event.id,
        event.delivery_id,
    )
    if seen is None or not _is_about(event, seen.payment):
        _receive_unmatched(session, name, event)
        return
    if seen.is_known:
        return
    sender = PooledSender.beside(session)
    if _is_old_news(sender, seen, event, gateway):
        _store_alone(sender, name, event, seen.payment)
        return
    by = ChangedBy.gateway(name)
    with (
        suppress(KnownEvent),  # it has come twice this very moment
        locked_payment(session, by, seen.payment, gateway) as locked,
    ):
        _store(locked, name, event)
        _apply(locked, event)


class KnownEvent(Exception):
    """The event was stored before, or came in a delivery that was: it was applied then."""


def _receive_unmatched(session: Session, name: str, event: base.GatewayEvent) -> None:
    """Raises PaymentInProgress for an event that may be about a payment of ours all the same."""
    log.warning("webhook.unmatched", gateway=name, gateway_event=event.id)
    with phase(session):
        unclear = event.key is None and event.reference is not None
        if unclear and (
            # The event may be about it: the answer with its reference is still due,
            crud.has_unreferenced_payment(session, name)
            # or has come since the event was looked at.
            or _is_found_now(session, name, event)
        ):
            raise PaymentInProgress(
                "It may be about a payment whose outcome is open; send it again"
            )
        if event.delivery_id is not None:  # a signed delivery counts once, whatever it says
            _store_alone(session, name, event, None)
        # Else it is not stored: if it is sent again it may be known by then.


def _is_found_now(session: Session, name: str, event: base.GatewayEvent) -> bool:
    payment = crud.find_payment(session, name, None, event.reference)
    return payment is not None and event.payment_id in (None, payment.id)


def connect_gateways(engine: Engine, gateways: Gateways) -> None:
    """Let gateways know which deliveries were taken before; see `Gateway.is_known_delivery`."""

    def is_known(name: str, delivery_id: str) -> bool:
        with new_session(engine) as session, phase(session):
            return crud.is_known_delivery(session, name, delivery_id)

    for name, gateway in gateways.by_name.items():
        gateway.is_known_delivery = partial(is_known, name)


def _store(locked: LockedPayment, name: str, event: base.GatewayEvent) -> None:
    """Store the event in the transaction that applies it, which raises KnownEvent."""
    values = locks.gateway_event_values(
        name, event.id, event.type, event.delivery_id, locked.payment
    )
    locked.insert(locks.GATEWAY_EVENTS, values, required=KnownEvent())


def _store_alone(
    sender: Sender, name: str, event: base.GatewayEvent, payment: PaymentRow | None
) -> None:
    """Store an event that changes no payment, once."""
    changes = Changes()
    values = locks.gateway_event_values(name, event.id, event.type, event.delivery_id, payment)
    changes.insert(locks.GATEWAY_EVENTS, [values], once=True)
    changes.send(sender)


def _is_old_news(
    sender: Sender, seen: PaymentOfEvent, event: base.GatewayEvent, gateway: base.Gateway
) -> bool:
    """Whether the event tells of a charge or a refund what we know: then nothing is locked for it.

    Most do, for the answer to the request came first. What it tells was old when the payment was
    read, whatever has become of the payment since.
    """
    payment, charge, state = seen.payment, event.charge, event.refund
    only_states = base.GatewayEvent(
        id=event.id,
        type=event.type,
        payment_id=event.payment_id,
        reference=event.reference,
        key=event.key,
        refund_key=event.refund_key,
        delivery_id=event.delivery_id,
    )
    if replace(event, charge=None, refund=None) != only_states:
        return False
    if charge is not None and state is None and charge.refunds is None:
        facts = apply.facts_of(payment, seen.order_status, gateway)
        return (
            charge.reference == payment.gateway_reference
            and charge.status != "authorized"  # it may tell when the authorization ends
            and decide(facts, charge, "hint") == Decision()
        )
    if state is not None and charge is None:
        refund = crud.get_refund_of_reference(sender, payment, state.reference)
        if refund is None or event.refund_key not in (None, refund.gateway_key):
            return False
        refund_facts = apply.refund_facts_of(refund, payment, seen.order_status, gateway)
        return decide_refund(refund_facts, state, "hint") == RefundDecision()
    return False


def _is_about(event: base.GatewayEvent, payment: PaymentRow) -> bool:
    """Whether the event is about this payment: systems that share an account use the same small
    ids."""
    if event.key is not None:
        return bool(event.key == payment.gateway_key)
    operation = event.executed_key or event.failed_key
    if operation is not None and operation == payment.operation_key:
        return True  # even if the gateway has renamed the charge
    if event.charge is not None or event.reference is None:
        return True  # decide() finds out whether it is another charge
    return bool(event.reference == payment.gateway_reference)


def _apply(locked: LockedPayment, event: base.GatewayEvent) -> None:
    session, payment = locked.session, locked.payment
    executed, failed = event.executed_key, event.failed_key
    contradicts = event.needs_review
    if executed not in (None, payment.operation_key) and payment.status in OPERABLE_STATUSES:
        # It was reported as failed before: a person has to find out whether money was taken.
        contradicts = True
    elif event.charge is not None and not (event.refund is not None and payment.amount_captured):
        charge = event.charge
        if executed is not None and executed == payment.operation_key:
            # The outcome of our own request, even if the gateway has renamed the charge.
            charge = replace(charge, replaces=payment.gateway_reference)
        apply.settle_charge(locked, charge, "hint")
    if event.refund is not None and (event.charge is None or payment.amount_captured):
        _apply_refund(locked, event, event.refund)
    if event.dispute is not None:
        apply.settle_dispute(locked, event.dispute)
    asked_for = OPERATIONS[payment.operation] if payment.operation is not None else None
    if event.failed_operation is not None and event.failed_operation == asked_for:
        apply.settle_not_executed(locked, "answer")
    if failed is not None and failed == payment.operation_key:
        apply.settle_not_executed(locked, "answer")
    elif failed is not None and payment.amount_captured:
        contradicts = True  # it was executed days ago, and is undone now
    if contradicts:
        apply.request_review(locked, "state_contradicts", f"{event.type} {event.id}")
    if event.needs_lookup:
        leases.schedule_lookup(session, payment, locked.now, "now")
        for refund in apply.lock_pending_refunds(locked):
            leases.schedule_lookup(session, refund, locked.now, "now")


def _apply_refund(locked: LockedPayment, event: base.GatewayEvent, state: base.Refund) -> None:
    """A refund of ours, or one that was made outside."""
    payment = locked.payment
    refund = apply.lock_refund_of_state(locked, state)
    if refund is not None and event.refund_key not in (None, refund.gateway_key):
        log.warning("webhook.unmatched", gateway=payment.gateway, gateway_event=event.id)
    elif refund is not None:
        apply.settle_refund(locked, refund, state, "hint")
    elif payment.amount_captured:
        apply.settle_refunds(locked, [state], "hint")
    elif locked.can_retrieve:  # it came before the event of its capture
        leases.schedule_lookup(locked.session, payment, locked.now, "now")
    else:
        raise PaymentInProgress("The charge is not captured here yet; send it again")


def _change_methods(
    session: Session, name: str, event: base.GatewayEvent, change: base.MethodChange
) -> None:
    """A saved method was renewed, or removed, at the gateway; so it is here.

    The event is stored when all is done: to do it twice changes nothing.
    """
    with phase(session):
        known = crud.is_known_event(session, name, event.id)
        methods = [] if known else crud.list_methods_of_token(session, name, change.token)
    for method in methods:
        with phase(session):  # of one user; a token is seldom that of several
            payment_methods.apply_gateway_change(
                session, ChangedBy.gateway(name), method.user_id, method.id, change.details
            )
    if not known:
        with phase(session):
            _store_alone(session, name, event, None)
