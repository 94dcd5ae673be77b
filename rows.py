"""Rows as they are read: one class for each table, of the columns that are read of it.

A row is made of what a statement returns, in this order. Rows of money may be locked and changed
(see `settlement/transitions.py`); one that was only read stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from domain import states


@cache
def columns_of(kind: type) -> tuple[str, ...]:
    """The names of the columns that a row of this class is made of."""
    return tuple(field.name for field in fields(kind))


class PaymentMethodRow(NamedTuple):
    id: int
    user_id: str
    payment_type: str
    gateway: str
    gateway_token: str
    gateway_customer: str | None
    details: dict[str, Any]
    is_active: bool
    is_default: bool
    created_at: datetime
    updated_at: datetime


@dataclass(slots=True)
class OrderRow:
    id: int
    user_id: str
    product_id: str
    quantity: int
    total_amount: int
    currency: str
    status: states.OrderStatus
    payment_method_id: int | None
    metadata_: dict[str, str]
    last_sequence: int
    created_at: datetime
    updated_at: datetime


@dataclass(slots=True)
class PaymentRow:
    id: int
    order_id: int
    user_id: str
    payment_method_id: int
    gateway: str
    gateway_key: str
    gateway_reference: str | None
    status: states.PaymentStatus
    amount: int
    amount_captured: int
    amount_refunded: int
    currency: str
    capture_method: states.CaptureMethod
    capture_before: datetime | None
    next_action: dict[str, Any] | None
    failure: dict[str, Any] | None
    needs_review: bool
    review_reason: states.ReviewReason | None
    # What the gateway showed then, in short: once accepted, the same is not asked about again.
    review_state: str | None
    reviewed_at: datetime | None
    return_url: str | None
    off_session: bool
    operation: states.PaymentOperation | None
    operation_key: str | None
    operation_amount: int | None
    refund_reserved: int
    requested_at: datetime
    next_lookup_at: datetime | None
    lookup_count: int
    created_at: datetime
    updated_at: datetime


class PaymentAges(NamedTuple):
    """How long ago, in seconds by the database's clock."""

    charge: float
    open_for: float  # since the request that is open was sent
    unreviewed_for: float  # since that, or since a person's last look
    reviewed_ago: float | None  # since the latter


@dataclass(slots=True)
class RefundRow:
    id: int
    payment_id: int
    user_id: str
    gateway: str
    gateway_key: str
    gateway_reference: str | None
    origin: states.RefundOrigin
    status: states.RefundStatus
    amount: int
    currency: str
    reason: str | None
    requested_at: datetime
    next_lookup_at: datetime | None
    lookup_count: int
    created_at: datetime
    updated_at: datetime


class RefundAges(NamedTuple):
    """See `PaymentAges`."""

    open_for: float
    unreviewed_for: float


@dataclass(slots=True)
class DisputeRow:
    id: int
    user_id: str
    payment_id: int
    gateway: str
    gateway_reference: str
    status: str
    amount: int
    currency: str
    reason: str
    evidence_due_at: datetime | None
    created_at: datetime
    updated_at: datetime


class Payable(NamedTuple):
    """An order, with what decides whether and how it can be paid now."""

    order: OrderRow
    live: PaymentRow | None  # the payment that holds, took or may yet take money
    method: PaymentMethodRow | None  # the one to charge


class PaymentOfEvent(NamedTuple):
    """The payment that an event of a gateway is about."""

    payment: PaymentRow
    order_status: states.OrderStatus
    is_known: bool  # the event was stored before, or came in a delivery that was


class KeyRow(NamedTuple):
    """An Idempotency-Key that is known already."""

    fingerprint: str
    gateway_key: str | None
    status: int | None
    headers: dict[str, str] | None
    body: bytes | None
    is_owned: bool  # somebody works on it right now
    has_expired: bool
