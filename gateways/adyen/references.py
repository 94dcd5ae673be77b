"""The references that we give Adyen's requests, and what a notification that repeats one means.

Adyen cannot be asked about a payment, and a notification says little: that of an authorization
not whether it is captured at once, that of a capture not how much was authorized. What will be
needed to read it stands in the reference, which is signed along. Amounts are our minor units.
"""

from __future__ import annotations

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
    """What one of our references says. At most one of the last three is given."""

    payment_id: int
    charged: int | None = None  # the amount of the whole charge; None for a refund
    capture: bool | None = None  # of a charge: whether it is captured at once
    key: str | None = None  # of a capture or void: the key of its request
    refund_id: int | None = None


def of_charge(request: ChargeRequest) -> str:
    return _charge(request.payment_id, request.amount, request.capture)


def of_completed(request: ChangeRequest) -> str:
    """The reference of the charge that a completion goes on with."""
    return _charge(request.payment_id, request.charged, request.capture)


def of_change(request: ChangeRequest) -> str:
    """At most 80 characters, as Adyen wants it: a key of ours is a UUID."""
    return f"{request.operation}-{request.payment_id}-{request.charged}-{request.key}"


def of_refund(request: RefundRequest) -> str:
    return f"refund-{request.payment_id}-{request.refund_id}"


def is_ours(reference: str) -> bool:
    """Whether this is a reference of ours for a charge, and none that Adyen gave it."""
    return CHARGE.fullmatch(reference) is not None


def read(reference: str) -> Reference | None:
    """What a reference says; None for one that we have not made."""
    if found := CHARGE.fullmatch(reference):
        return Reference(int(found[1]), int(found[2]), capture=found[3] == "sale")
    if found := CHANGE.fullmatch(reference):
        return Reference(int(found[1]), int(found[2]), key=found[3])
    if found := REFUND.fullmatch(reference):
        return Reference(int(found[1]), refund_id=int(found[2]))
    return None


def _charge(payment_id: int, amount: int, capture: bool) -> str:
    return f"payment-{payment_id}-{amount}-{'sale' if capture else 'auth'}"
