"""Webhooks from gateways: verified, stored once, applied once, in one transaction.

An event is a hint: it goes through the same transitions as an answer does, so one that arrives
twice, late, or before the answer it belongs to moves nothing back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Row
from sqlalchemy.orm import Session

import crud
from database import phase
from errors import GatewayUnavailable, InvalidSignature, NotFound, PaymentInProgress
from gateways.base import GatewayEvent, MethodChange, NotDone, SignatureInvalid, Unknown
from gateways.registry import Gateways
from models import Order, Payment
from observability.logs import get_logger
from services import payment_methods, payments
from services.history import By, ask_for_review
from services.settlement import (
    operation_not_done,
    settle_charge,
    settle_dispute,
    settle_refund,
)

log = get_logger()


def receive(
    session: Session, gateways: Gateways, name: str, headers: Mapping[str, str], body: bytes
) -> None:
    """Take a webhook. Raises NotFound for a gateway that is off, InvalidSignature, and
    GatewayUnavailable when it has to be sent again."""
    gateway = gateways.get(name)
    if gateway is None:
        raise NotFound
    try:
        event = gateway.parse_webhook(headers, body)
    except SignatureInvalid as error:
        log.warning("webhook.refused", gateway=name, why=str(error))
        raise InvalidSignature from None
    except (NotDone, Unknown) as error:  # it had to be asked, and did not answer
        log.warning("webhook.not_read", gateway=name, why=str(error))
        raise GatewayUnavailable("The event could not be read yet; send it again") from None
    if event.method is not None:
        _change_methods(session, name, event, event.method)
        return
    with phase(session):
        found = crud.find_payment(session, name, event.payment_id, event.reference)
        if found is None or not _is_about(event, found):
            log.warning("webhook.unmatched", gateway=name, gateway_event=event.id)
            unclear = event.key is None and event.reference is not None
            if unclear and crud.has_unreferenced_payment(session, name):
                # It may be that one's: its answer, which will tell, is still to come.
                raise PaymentInProgress("It may be about a payment under way; send it again")
            return  # not stored: if it is sent again it may be known by then
        # The locks come first: storing the event locks the payment a little, for its foreign key.
        order, payment = payments.lock(session, found.order_id, found.id)
        if crud.add_gateway_event(session, name, event.id, event.type, payment.id):
            _apply(session, event, order, payment, By.gateway(name))


def _is_about(event: GatewayEvent, payment: Row[Any]) -> bool:
    """Whether it is our payment: systems that share an account have the same small ids."""
    if event.key is not None:
        return bool(event.key == payment.gateway_key)
    operation = event.done_key or event.failed_key
    if operation is not None and operation == payment.operation_key:
        return True  # whatever the gateway calls the charge by now
    if event.charge is not None or event.reference is None:
        return True  # the settlement sees to it that there is only one charge
    return bool(event.reference == payment.gateway_reference)


def _apply(session: Session, event: GatewayEvent, order: Order, payment: Payment, by: By) -> None:
    if event.done_key is not None and _was_given_up(event.done_key, payment):
        # It was told as failed before: whether the money was taken is for a person to find out.
        log.error("webhook.contradicts", gateway=payment.gateway, gateway_event=event.id)
        ask_for_review(session, by, order, payment)
    elif event.charge is not None:
        charge = event.charge
        if event.done_key is not None and event.done_key == payment.operation_key:
            # The outcome of our own request, whatever the gateway calls the charge by now.
            charge = replace(charge, replaces=payment.gateway_reference)
        settle_charge(session, by, order, payment, charge, hint=True)
    if event.refund is not None:
        if event.refund_id is not None:
            refund = crud.lock_refund(session, event.refund_id, payment.id)
        else:
            refund = crud.lock_refund_by_reference(session, payment.id, event.refund.reference)
        if refund is not None and event.refund_key not in (None, refund.gateway_key):
            log.warning("webhook.unmatched", gateway=payment.gateway, gateway_event=event.id)
        elif refund is None:  # money that went back without us
            log.error("webhook.unknown_refund", gateway=payment.gateway, gateway_event=event.id)
            ask_for_review(session, by, order, payment)
        else:
            settle_refund(session, by, order, payment, refund, event.refund, hint=True)
    if event.dispute is not None:
        settle_dispute(session, by, order, payment, event.dispute)
    if event.failed_key is not None:
        if event.failed_key == payment.operation_key:
            operation_not_done(session, by, payment)
        elif payment.amount_captured:  # it was done, days ago, and is undone now
            ask_for_review(session, by, order, payment)
    if event.review:
        ask_for_review(session, by, order, payment)
    if event.ask:
        crud.check_now(session, payment)
        for refund in crud.lock_pending_refunds(session, payment.id):
            crud.check_now(session, refund)


def _was_given_up(key: str, payment: Payment) -> bool:
    """Whether a capture or void that a gateway tells as done is none that we wait for."""
    return key != payment.operation_key and payment.status in ("authorized", "requires_action")


def _change_methods(session: Session, name: str, event: GatewayEvent, change: MethodChange) -> None:
    """A saved method was renewed, or removed, at the gateway; so it is here."""
    with phase(session):
        if crud.add_gateway_event(session, name, event.id, event.type, None):
            for row in crud.list_methods_of_token(session, name, change.token):
                payment_methods.follow_gateway(
                    session, By.gateway(name), row.user_id, row.id, change.details
                )
