"""Webhooks from gateways: verified, stored once, applied once, in one transaction.

An event is a hint: it goes through the same transitions as an answer does, so one that arrives
twice, late, or before the answer it belongs to moves nothing back.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.orm import Session

import crud
from database import phase
from errors import InvalidSignature, NotFound
from gateways.base import GatewayEvent, SignatureInvalid
from gateways.registry import Gateways
from models import Order, Payment
from observability.logs import get_logger
from services import payments
from services.history import By, ask_for_review
from services.settlement import settle_charge, settle_dispute, settle_refund

log = get_logger()


def receive(
    session: Session, gateways: Gateways, name: str, headers: Mapping[str, str], body: bytes
) -> None:
    """Take a webhook. Raises NotFound for a gateway that is off, InvalidSignature."""
    gateway = gateways.get(name)
    if gateway is None:
        raise NotFound
    try:
        event = gateway.parse_webhook(headers, body)
    except SignatureInvalid:
        raise InvalidSignature from None
    with phase(session):
        found = crud.find_payment(session, name, event.payment_id, event.reference)
        if found is None:
            log.warning("webhook.unmatched", gateway=name, gateway_event=event.id)
            crud.add_gateway_event(session, name, event.id, event.type, None)
            return
        # The locks come first: storing the event locks the payment a little, for its foreign key.
        order, payment = payments.lock(session, found.order_id, found.id)
        if crud.add_gateway_event(session, name, event.id, event.type, payment.id):
            _apply(session, event, order, payment, By.gateway(name))


def _apply(session: Session, event: GatewayEvent, order: Order, payment: Payment, by: By) -> None:
    if event.charge is not None:
        settle_charge(session, by, order, payment, event.charge, hint=True)
    if event.refund is not None and event.refund_id is not None:
        refund = crud.lock_refund(session, event.refund_id, payment.id)
        if refund is None:  # money that went back without us
            log.error("webhook.unknown_refund", gateway=payment.gateway, gateway_event=event.id)
            ask_for_review(session, by, order, payment)
        else:
            settle_refund(session, by, order, payment, refund, event.refund, hint=True)
    if event.dispute is not None:
        settle_dispute(session, by, order, payment, event.dispute)
