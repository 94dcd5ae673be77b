"""What PayPal's webhooks say, once they are verified.

https://developer.paypal.com/api/rest/webhooks/event-names/
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from gateways.base import GatewayEvent, MethodChange, SignatureInvalid, Unknown
from gateways.paypal.amounts import read as read_amount
from gateways.paypal.states import (
    Object,
    Order,
    charge_of_order,
    first_object,
    link,
    payment_id,
    plain_id,
    read_authorization,
    read_capture,
    read_dispute,
    read_order,
    read_refund,
    related,
)

# Asks PayPal for a capture. None: there is no such capture. Raises Unknown.
FindCapture = Callable[[str], Object | None]
Fields = dict[str, Any]  # of a GatewayEvent, but for its id and type
Handler = Callable[[Object, FindCapture, datetime], Fields]

CAPTURE_PATH: Final = re.compile(r"/v2/payments/captures/([A-Za-z0-9_-]{1,64})$", re.ASCII)
ORDER_PATH: Final = re.compile(r"/v2/checkout/orders/([A-Za-z0-9_-]{1,64})$", re.ASCII)
MAX_TYPE: Final = 100  # characters
KEY: Final = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)  # as ours are


def refund_custom_id(payment: int, refund: int) -> str:
    """What a refund of ours carries. PayPal allows letters, digits and `-_.,` only."""
    return f"{payment}-{refund}"


def parse(body: bytes, find_capture: FindCapture, now: datetime) -> GatewayEvent:
    """Raises SignatureInvalid for what is no event, Unknown when PayPal had to be asked."""
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        raise SignatureInvalid from None
    if not isinstance(event, dict):
        raise SignatureInvalid
    event_id, kind = plain_id(event.get("id")), event.get("event_type")
    resource = event.get("resource")
    if event_id is None or not isinstance(kind, str) or not 0 < len(kind) <= MAX_TYPE:
        raise SignatureInvalid
    handler = HANDLERS.get(kind)
    if handler is None:
        return GatewayEvent(event_id, kind, payment_id=None, reference=None)
    if not isinstance(resource, dict):
        raise SignatureInvalid
    return GatewayEvent(event_id, kind, **handler(resource, find_capture, now))


# Charges ----------------------------------------------------------------------------------------


def _order(resource: Object, _: FindCapture, now: datetime) -> Fields:
    with _reading():
        charge = charge_of_order(read_order(resource), now)
    unit = first_object(resource.get("purchase_units"))
    return {**_identity(unit), "reference": charge.reference, "charge": charge}


def _authorization(resource: Object, _: FindCapture, now: datetime) -> Fields:
    with _reading():
        return _charge_of(resource, now, authorizations=[read_authorization(resource)])


def _capture(resource: Object, find_capture: FindCapture, now: datetime) -> Fields:
    if related(resource, "authorization_id") is not None:
        # It may be a part of what was authorized, and there may be other parts.
        return _ask(resource, find_capture, now)
    with _reading():
        return _charge_of(resource, now, captures=[read_capture(resource)])


def _charge_of(resource: Object, now: datetime, **payments: Any) -> Fields:
    """A charge, by the one payment of its order; its amount is that of the whole order."""
    order_id = _order_id(resource)
    if order_id is None:
        return _identity(resource) | {"ask": _payment_id(resource) is not None}
    amount, currency = read_amount(resource.get("amount"))
    order = Order(
        **{"authorizations": [], "captures": [], **payments},
        id=order_id,
        status="COMPLETED",
        amount=amount,
        currency=currency,
        redirect_url=None,
    )
    return _identity(resource) | {"charge": charge_of_order(order, now)}


def _ask(resource: Object, _: FindCapture, __: datetime) -> Fields:
    identity = _identity(resource)
    return identity | {"ask": any(value is not None for value in identity.values())}


# Refunds, disputes, methods ---------------------------------------------------------------------


def _refund(resource: Object, find_capture: FindCapture, _: datetime) -> Fields:
    with _reading():
        refund = read_refund(resource)
    payment, refund_id = _ours(resource.get("custom_id"))
    key = resource.get("invoice_id")
    if payment is not None and isinstance(key, str) and KEY.fullmatch(key):
        return {
            "payment_id": payment,
            "reference": _order_id(resource),
            "refund": refund,
            "refund_id": refund_id,
            "refund_key": key,
        }
    return _identity_of_capture(_capture_id(resource), find_capture) | {"refund": refund}


def _reversal(resource: Object, find_capture: FindCapture, _: datetime) -> Fields:
    """PayPal took the money back. The resource is a refund, or the capture itself."""
    with _reading():
        refund = replace(read_refund(resource), status="succeeded")
    identity = _identity(resource)
    if identity["payment_id"] is None and identity["reference"] is None:
        identity = _identity_of_capture(_capture_id(resource), find_capture)
    return identity | {"refund": refund}


def _dispute(resource: Object, find_capture: FindCapture, _: datetime) -> Fields:
    with _reading():
        dispute = read_dispute(resource)
    transaction = first_object(resource.get("disputed_transactions"))
    capture_id = plain_id(transaction.get("seller_transaction_id"))
    return _identity_of_capture(capture_id, find_capture) | {"dispute": dispute}


def _method_deleted(resource: Object, _: FindCapture, __: datetime) -> Fields:
    token = plain_id(resource.get("id"))
    if token is None:
        raise SignatureInvalid
    return {"payment_id": None, "reference": None, "method": MethodChange(token, None)}


HANDLERS: Final[Mapping[str, Handler]] = {
    "CHECKOUT.ORDER.APPROVED": _order,
    "CHECKOUT.PAYMENT-APPROVAL.REVERSED": _ask,
    "PAYMENT.AUTHORIZATION.CREATED": _authorization,
    # After a reauthorization it may be the old one that is voided.
    "PAYMENT.AUTHORIZATION.VOIDED": _ask,
    "PAYMENT.CAPTURE.COMPLETED": _capture,
    "PAYMENT.CAPTURE.DECLINED": _capture,
    "PAYMENT.CAPTURE.DENIED": _capture,
    "PAYMENT.CAPTURE.PENDING": _capture,
    "PAYMENT.CAPTURE.REFUNDED": _refund,
    "PAYMENT.CAPTURE.REVERSED": _reversal,
    "CUSTOMER.DISPUTE.CREATED": _dispute,
    "CUSTOMER.DISPUTE.UPDATED": _dispute,
    "CUSTOMER.DISPUTE.RESOLVED": _dispute,
    "VAULT.PAYMENT-TOKEN.DELETED": _method_deleted,
}


# Whose ------------------------------------------------------------------------------------------


def _identity(resource: Object) -> Fields:
    """Our payment by both its id and its key, or by PayPal's order alone."""
    key = resource.get("invoice_id")
    if not (isinstance(key, str) and KEY.fullmatch(key)):
        return {"payment_id": None, "reference": _order_id(resource)}
    payment = _payment_id(resource)
    return {"payment_id": payment, "reference": _order_id(resource), "key": key}


def _identity_of_capture(capture_id: str | None, find_capture: FindCapture) -> Fields:
    capture = find_capture(capture_id) if capture_id is not None else None
    return _identity(capture or {})


def _payment_id(resource: Object) -> int | None:
    return _ours(resource.get("custom_id"))[0]


def _ours(custom_id: Any) -> tuple[int | None, int | None]:
    """The ids of our payment and our refund; a capture carries the first only."""
    if not isinstance(custom_id, str):
        return None, None
    payment, dash, refund = custom_id.partition("-")
    if dash and (payment_id(payment) is None or payment_id(refund) is None):
        return None, None
    return payment_id(payment), payment_id(refund)


def _order_id(resource: Object) -> str | None:
    return (
        related(resource, "order_id")
        or plain_id(resource.get("order_id"))
        or _linked(resource, ORDER_PATH)
    )


def _capture_id(resource: Object) -> str | None:
    return related(resource, "capture_id") or _linked(resource, CAPTURE_PATH)


def _linked(resource: Object, path: re.Pattern[str]) -> str | None:
    """The id at the end of the link to what it belongs to. Only the id: never ask that URL."""
    found = path.search(link(resource, "up") or "")
    return found.group(1) if found else None


@contextmanager
def _reading() -> Iterator[None]:
    """What cannot be read in a webhook makes it malformed; there is nobody to ask again."""
    try:
        yield
    except Unknown:
        raise SignatureInvalid from None
