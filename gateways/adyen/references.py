"""The references of our requests: they hold what we need to read Adyen's notifications.

A notification says little: the one of an authorization not whether it is captured at once, the
one of a capture not how much was authorized. And nothing at Adyen can be read. But a notification
repeats our reference, and the signature covers it. Amounts are in our minor units.
"""

import re
from dataclasses import dataclass
from typing import Final

from gateways.base import ChangeRequest, ChargeRequest, RefundRequest

# An id or an amount, short enough for PostgreSQL's bigint.
NUMBER: Final = "([0-9]{1,18})"
CHARGE: Final = re.compile(f"payment-{NUMBER}-{NUMBER}-(sale|auth)")
CHANGE: Final = re.compile(f"(?:capture|void)-{NUMBER}-{NUMBER}-(.+)")
REFUND: Final = re.compile(f"refund-{NUMBER}-{NUMBER}")


@dataclass(frozen=True, slots=True)
class Reference:
    """The content of one of our references. At most one of the last three is given."""

    payment_id: int | None = None
    charge_amount: int | None = None  # the amount of the whole charge; None for a refund
    capture: bool | None = None  # of a charge: whether it is captured at once
    key: str | None = None  # of a capture or void: the key of its request
    refund_id: int | None = None


def of_charge(request: ChargeRequest) -> str:
    return _charge(request.payment_id, request.amount, request.capture)


def of_completed(request: ChangeRequest) -> str:
    """The reference of the charge that a completion completes."""
    return _charge(request.payment_id, request.charge_amount, request.capture)


def of_change(request: ChangeRequest) -> str:
    """At most 80 characters, which is Adyen's limit: our keys are UUIDs."""
    return f"{request.operation}-{request.payment_id}-{request.charge_amount}-{request.key}"


def of_refund(request: RefundRequest) -> str:
    return f"refund-{request.payment_id}-{request.refund_id}"


def is_ours(reference: str) -> bool:
    """Whether this is our reference of a charge, not Adyen's."""
    return CHARGE.fullmatch(reference) is not None


def read(reference: str) -> Reference:
    """The content of a reference; empty for one that we did not make."""
    if found := CHARGE.fullmatch(reference):
        return Reference(int(found[1]), int(found[2]), capture=found[3] == "sale")
    if found := CHANGE.fullmatch(reference):
        return Reference(int(found[1]), int(found[2]), key=found[3])
    if found := REFUND.fullmatch(reference):
        return Reference(int(found[1]), refund_id=int(found[2]))
    return Reference()


def _charge(payment_id: int, amount: int, capture: bool) -> str:
    return f"payment-{payment_id}-{amount}-{'sale' if capture else 'auth'}"
