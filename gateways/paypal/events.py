"""Reads which payment a webhook is about, and nothing else.

PayPal signs only the CRC-32 of a body. Somebody who has seen the headers of one genuine webhook,
for example in the log of a proxy, can make another body with the same sum, which stays valid for
days. So we ignore what a webhook says about money, states, disputes and methods, and ask PayPal.

https://developer.paypal.com/api/rest/webhooks/event-names/
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from gateways.base import SignatureInvalid
from gateways.paypal.states import (
    Object,
    first_object,
    idempotency_key,
    link,
    our_ids,
    plain_id,
    related,
)

CAPTURE_PATH: Final = re.compile(r"/v2/payments/captures/([A-Za-z0-9_-]{1,64})$", re.ASCII)
ORDER_PATH: Final = re.compile(r"/v2/checkout/orders/([A-Za-z0-9_-]{1,64})$", re.ASCII)
MAX_TYPE: Final = 100  # characters


@dataclass(frozen=True, slots=True)
class Subject:
    """One of our payments, or the id of an object that PayPal has to be asked about."""

    payment_id: int | None = None
    reference: str | None = None  # PayPal's id of the order
    key: str | None = None  # the idempotency key of the charge
    capture_id: str | None = None  # to find the payment
    dispute_id: str | None = None  # to find its state and its payment
    token: str | None = None  # of a payment method that may be deleted

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
    """The part of a webhook that is read."""

    id: str
    type: str
    subject: Subject


def read(body: bytes) -> Notice:
    """Raises SignatureInvalid for a body that is no event."""
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
    """The payment of an authorization or a capture: by its id and its key, else by the order."""
    key, reference = idempotency_key(resource), _order_id(resource)
    if key is None:
        return Subject(reference=reference)
    payment, refund = our_ids(resource)
    # An object that carries the id of a refund carries the key of the refund, not of the charge.
    return Subject(payment, reference, key if refund is None else None)


def _of_order(resource: Object) -> Subject:
    unit = subject_of_payment(first_object(resource.get("purchase_units")))
    return Subject(unit.payment_id, plain_id(resource.get("id")), unit.key)


def _of_refund(resource: Object) -> Subject:
    """The payment of a refund, or of a capture that PayPal has reversed."""
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
    """The id at the end of the link to the parent. We never call that URL."""
    found = path.search(link(resource, "up") or "")
    return found.group(1) if found else None
