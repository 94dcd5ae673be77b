"""Which payment a webhook of PayPal's is about, and nothing else of what it says.

PayPal signs only the CRC-32 of a body. Whoever has seen the headers of one genuine webhook, in a
proxy's log say, can make another body with the same sum, and it stays valid for days. So what a
webhook says of money, states, disputes and methods is not even read; PayPal is asked instead.

https://developer.paypal.com/api/rest/webhooks/event-names/
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from gateways.base import SignatureInvalid
from gateways.paypal.states import Object, first_object, link, our_ids, our_key, plain_id, related

CAPTURE_PATH: Final = re.compile(r"/v2/payments/captures/([A-Za-z0-9_-]{1,64})$", re.ASCII)
ORDER_PATH: Final = re.compile(r"/v2/checkout/orders/([A-Za-z0-9_-]{1,64})$", re.ASCII)
MAX_TYPE: Final = 100  # characters


@dataclass(frozen=True, slots=True)
class Subject:
    """What something is about: one of our payments, or what PayPal has to be asked for."""

    payment_id: int | None = None
    reference: str | None = None  # PayPal's id of the order
    key: str | None = None  # ours, of the charge
    capture_id: str | None = None  # whose payment it is of, only PayPal can tell
    dispute_id: str | None = None  # how it stands, only PayPal can tell
    token: str | None = None  # of a method that is said to be gone

    @property
    def is_known(self) -> bool:
        """Whether it names a payment that may be ours."""
        return self.payment_id is not None or self.reference is not None

    @property
    def is_unclear(self) -> bool:
        """Whether PayPal has to be asked."""
        return any(one is not None for one in (self.capture_id, self.dispute_id, self.token))


@dataclass(frozen=True, slots=True)
class Notice:
    """A webhook, as far as it is read."""

    id: str
    type: str
    subject: Subject


def read(body: bytes) -> Notice:
    """Raises SignatureInvalid for what is no event."""
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        raise SignatureInvalid from None
    if not isinstance(event, dict):
        raise SignatureInvalid
    event_id, kind = plain_id(event.get("id")), event.get("event_type")
    if event_id is None or not isinstance(kind, str) or not 0 < len(kind) <= MAX_TYPE:
        raise SignatureInvalid
    find = SUBJECTS.get(kind)
    if find is None:
        return Notice(event_id, kind, Subject())
    resource = event.get("resource")
    if not isinstance(resource, dict):
        raise SignatureInvalid
    return Notice(event_id, kind, find(resource))


def subject_of_payment(resource: Object) -> Subject:
    """Of an authorization or a capture: our payment by both its id and its key, or by PayPal's
    order alone."""
    key, reference = our_key(resource), _order_id(resource)
    if key is None:
        return Subject(reference=reference)
    payment, refund = our_ids(resource)
    # What carries a refund's id as well has the key of that refund, not of the charge.
    return Subject(payment, reference, key if refund is None else None)


def _of_order(resource: Object) -> Subject:
    unit = subject_of_payment(first_object(resource.get("purchase_units")))
    return Subject(unit.payment_id, plain_id(resource.get("id")), unit.key)


def _of_refund(resource: Object) -> Subject:
    """Of a refund, or of a capture that PayPal has reversed."""
    subject = subject_of_payment(resource)
    if subject.is_known:
        return subject
    capture_id = related(resource, "capture_id") or _linked(resource, CAPTURE_PATH)
    return Subject(capture_id=capture_id)


def _of_dispute(resource: Object) -> Subject:
    return Subject(dispute_id=plain_id(resource.get("dispute_id")))


def _of_token(resource: Object) -> Subject:
    return Subject(token=plain_id(resource.get("id")))


SUBJECTS: Final[Mapping[str, Callable[[Object], Subject]]] = {
    "CHECKOUT.ORDER.APPROVED": _of_order,
    "CHECKOUT.PAYMENT-APPROVAL.REVERSED": subject_of_payment,
    "PAYMENT.AUTHORIZATION.CREATED": subject_of_payment,
    "PAYMENT.AUTHORIZATION.VOIDED": subject_of_payment,
    "PAYMENT.CAPTURE.COMPLETED": subject_of_payment,
    "PAYMENT.CAPTURE.DECLINED": subject_of_payment,
    "PAYMENT.CAPTURE.DENIED": subject_of_payment,
    "PAYMENT.CAPTURE.PENDING": subject_of_payment,
    "PAYMENT.CAPTURE.REFUNDED": _of_refund,
    "PAYMENT.CAPTURE.REVERSED": _of_refund,
    "PAYMENT.REFUND.FAILED": _of_refund,
    "PAYMENT.REFUND.PENDING": _of_refund,
    "CUSTOMER.DISPUTE.CREATED": _of_dispute,
    "CUSTOMER.DISPUTE.UPDATED": _of_dispute,
    "CUSTOMER.DISPUTE.RESOLVED": _of_dispute,
    "VAULT.PAYMENT-TOKEN.DELETED": _of_token,
}


def _order_id(resource: Object) -> str | None:
    return (
        related(resource, "order_id")
        or plain_id(resource.get("order_id"))
        or _linked(resource, ORDER_PATH)
    )


def _linked(resource: Object, path: re.Pattern[str]) -> str | None:
    """The id at the end of the link to what it belongs to. Only the id: never ask that URL."""
    found = path.search(link(resource, "up") or "")
    return found.group(1) if found else None
