"""SQL of money: the rows that a transaction locks and claims, and what it writes of them.

Rows are locked in one sequence: the order, then its payment, then what belongs to the payment.
`settlement/transitions.py` writes what changes of them.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Table

from domain.events import Actor, EventType
from domain.states import DEAD_PAYMENT_STATUSES, CaptureMethod, RefundOrigin
from errors import NotFound
from models import Dispute, Event, GatewayEvent, Order, Payment, Refund, one_of
from permissions import EVERYONE, VisibleTo
from rows import (
    DisputeRow,
    OrderRow,
    Payable,
    PaymentMethodRow,
    PaymentRow,
    RefundRow,
)
from statements import (
    DISPUTE_LIST,
    METHOD_LIST,
    ORDER_LIST,
    ORDER_WIDTH,
    PAYMENT_LIST,
    PAYMENT_WIDTH,
    REFUND_LIST,
    Sender,
    Statement,
    is_id,
    possible_id,
)

TABLES: dict[type, Table] = {
    OrderRow: cast(Table, Order.__table__),
    PaymentRow: cast(Table, Payment.__table__),
    RefundRow: cast(Table, Refund.__table__),
    DisputeRow: cast(Table, Dispute.__table__),
}
EVENTS = cast(Table, Event.__table__)
GATEWAY_EVENTS = cast(Table, GatewayEvent.__table__)

# Orders and payments ------------------------------------------------------------------------------


LOCK_ORDER = Statement(
    f"SELECT now(), {ORDER_LIST} FROM orders o"
    " WHERE o.user_id = %(user_id)s AND o.id = %(id)s FOR UPDATE",
    prepare=True,
)


def lock_order(sender: Sender, user_id: str, order_id: int) -> tuple[datetime, OrderRow]:
    """The order, locked, and when this transaction began. Raises NotFound."""
    rows = sender.rows(LOCK_ORDER, user_id=user_id, id=possible_id(order_id))
    if not rows:
        raise NotFound
    [(now, *order)] = rows
    return now, OrderRow(*order)


# The rows are locked in this sequence; another one could deadlock.
LOCK_PAYMENT = Statement(
    f"""
    SELECT now(), {ORDER_LIST}, {PAYMENT_LIST}
    FROM orders o JOIN payments p ON p.user_id = o.user_id AND p.order_id = o.id
    WHERE o.user_id = %(user_id)s AND o.id = %(order_id)s AND p.id = %(id)s
    FOR UPDATE OF o, p""",
    prepare=True,
)


def lock_payment(
    sender: Sender, user_id: str, order_id: int, payment_id: int
) -> tuple[datetime, OrderRow, PaymentRow]:
    """The order, then this payment of it, locked, and when this transaction began.

    Payments and refunds are only ever locked after their order. Raises NotFound.
    """
    rows = sender.rows(LOCK_PAYMENT, user_id=user_id, order_id=order_id, id=payment_id)
    if not rows:
        raise NotFound
    row = rows[0]
    end = 1 + ORDER_WIDTH
    return row[0], OrderRow(*row[1:end]), PaymentRow(*row[end:])


# Paying an order ----------------------------------------------------------------------------------


# Dead payments are those of DEAD_PAYMENT_STATUSES; the unique index of live ones says the same.
_PAYABLE = f"""
    SELECT {ORDER_LIST}, {PAYMENT_LIST}, {METHOD_LIST}
    FROM orders o
    LEFT JOIN payments p ON p.user_id = o.user_id AND p.order_id = o.id
        AND NOT ({one_of("p.status", DEAD_PAYMENT_STATUSES)})
    LEFT JOIN payment_methods m ON m.user_id = o.user_id AND m.is_active AND CASE
        WHEN coalesce(CAST(%(method_id)s AS bigint), o.payment_method_id) IS NULL THEN m.is_default
        ELSE m.id = coalesce(CAST(%(method_id)s AS bigint), o.payment_method_id) END
    WHERE o.id = %(id)s"""
PAYABLE = Statement(_PAYABLE, prepare=True)
PAYABLE_OF_USER = Statement(f"{_PAYABLE} AND o.user_id = %(user_id)s", prepare=True)


def find_payable(
    sender: Sender, order_id: int, visible_to: VisibleTo, method_id: int | None
) -> Payable:
    """The order, if it is visible to this caller, its live payment, and the method to charge: the
    one with this id, or else the order's, or else the user's default one. Raises NotFound."""
    given = {
        "id": possible_id(order_id),
        "method_id": method_id if method_id is None or is_id(method_id) else 0,  # no method's
    }
    if visible_to is EVERYONE:
        rows = sender.rows(PAYABLE, **given)
    else:
        rows = sender.rows(PAYABLE_OF_USER, **given, user_id=visible_to)
    if not rows:
        raise NotFound
    row = rows[0]
    live, method = row[ORDER_WIDTH:][:PAYMENT_WIDTH], row[ORDER_WIDTH + PAYMENT_WIDTH :]
    return Payable(
        OrderRow(*row[:ORDER_WIDTH]),
        PaymentRow(*live) if live[0] is not None else None,
        PaymentMethodRow(*method) if method[0] is not None else None,
    )


# The Idempotency-Key of the request, if it has one; the order, if it can be paid still; then the
# payment, for which the key waits from now on.
_CLAIM_PAYMENT = f"""
    WITH {{key}} payable AS (
        SELECT user_id, id, total_amount, currency FROM orders
        WHERE user_id = %(user_id)s AND id = %(order_id)s AND status = 'pending'
        FOR UPDATE
    ), claimed AS (
        INSERT INTO payments AS p (
            user_id, order_id, amount, currency, payment_method_id, gateway, gateway_key,
            capture_method, return_url, off_session, check_at
        )
        SELECT payable.*, %(method_id)s, %(gateway)s, %(gateway_key)s, %(capture_method)s,
            %(return_url)s, %(off_session)s, now() + make_interval(secs => %(lookup_after)s)
        FROM payable {{with_key}}
        ON CONFLICT DO NOTHING
        RETURNING {PAYMENT_LIST}
    ) {{linked}}
    SELECT claimed.* FROM claimed"""
CLAIM_PAYMENT = Statement(_CLAIM_PAYMENT.format(key="", with_key="", linked=""), prepare=True)
CLAIM_PAYMENT_FOR_KEY = Statement(
    _CLAIM_PAYMENT.format(
        key="""key AS (
        SELECT FROM idempotency_keys
        WHERE user_id = %(key_user_id)s AND key = %(key)s AND owner = %(key_owner)s
        FOR UPDATE
    ),""",
        with_key=", key",
        linked=""", linked AS (
        UPDATE idempotency_keys SET gateway_key = %(gateway_key)s FROM claimed
        WHERE idempotency_keys.user_id = %(key_user_id)s AND idempotency_keys.key = %(key)s
    )""",
    ),
    prepare=True,
)


def claim_payment(
    sender: Sender,
    order: OrderRow,
    method: PaymentMethodRow,
    *,
    capture_method: CaptureMethod,
    return_url: str,
    off_session: bool,
    lookup_after: float,
    key: Mapping[str, Any] | None,
) -> PaymentRow | None:
    """Claim the one live payment that an order can have, for the request with this key.

    None when the order cannot be paid any more, or somebody else works on the key.
    `lookup_after`: seconds until the gateway is asked what became of it, if nobody settled it.
    """
    rows = sender.rows(
        CLAIM_PAYMENT if key is None else CLAIM_PAYMENT_FOR_KEY,
        user_id=order.user_id,
        order_id=order.id,
        method_id=method.id,
        gateway=method.gateway,
        gateway_key=str(uuid.uuid4()),
        capture_method=capture_method,
        return_url=return_url,
        off_session=off_session,
        lookup_after=lookup_after,
        **(key or {}),
    )
    return PaymentRow(*rows[0]) if rows else None


# Refunds ------------------------------------------------------------------------------------------


OPEN_REFUND_OF_PAYMENT = Statement(
    f"""
    INSERT INTO refunds AS r (
        user_id, payment_id, gateway, gateway_key, amount, currency, reason, origin, check_at
    )
    VALUES (
        %(user_id)s, %(payment_id)s, %(gateway)s, %(gateway_key)s, %(amount)s, %(currency)s,
        %(reason)s, %(origin)s, now() + make_interval(secs => %(lookup_after)s)
    )
    RETURNING {REFUND_LIST}""",
    prepare=True,
)


def open_refund(
    sender: Sender,
    payment: PaymentRow,
    *,
    amount: int,
    reason: str | None,
    lookup_after: float,
    origin: RefundOrigin = "service",
) -> RefundRow:
    """Reserve the amount. The payment is locked, and the caller has checked what is left of it;
    a trigger, which counts it, and a CHECK refuse more than was captured all the same."""
    [row] = sender.rows(
        OPEN_REFUND_OF_PAYMENT,
        user_id=payment.user_id,
        payment_id=payment.id,
        gateway=payment.gateway,
        gateway_key=str(uuid.uuid4()),
        amount=amount,
        currency=payment.currency,
        reason=reason,
        origin=origin,
        lookup_after=lookup_after,
    )
    payment.refund_reserved += amount
    return RefundRow(*row)


_LOCK_REFUNDS = f"""
    SELECT {REFUND_LIST} FROM refunds r
    WHERE r.user_id = %(user_id)s AND r.payment_id = %(payment_id)s AND {{which}} FOR UPDATE"""
LOCK_REFUND = Statement(_LOCK_REFUNDS.format(which="r.id = %(id)s"), prepare=True)
LOCK_REFUND_OF_REFERENCE = Statement(
    _LOCK_REFUNDS.format(which="r.gateway_reference = %(reference)s"), prepare=True
)
LOCK_PENDING_REFUNDS = Statement(_LOCK_REFUNDS.format(which="r.status = 'pending' ORDER BY r.id"))


def lock_refund(sender: Sender, user_id: str, payment_id: int, refund_id: int) -> RefundRow | None:
    """The refund, locked, if it is one of this payment."""
    of_payment = {"user_id": user_id, "payment_id": payment_id}
    rows = sender.rows(LOCK_REFUND, **of_payment, id=possible_id(refund_id))
    return RefundRow(*rows[0]) if rows else None


def lock_refund_of_state(
    sender: Sender, payment: PaymentRow, reference: str, refund_id: int | None
) -> RefundRow | None:
    """The refund of this payment that its gateway means, locked: the one that it calls so, or
    else the one whose id of ours it shows."""
    user_id, payment_id = payment.user_id, payment.id
    rows = sender.rows(
        LOCK_REFUND_OF_REFERENCE, user_id=user_id, payment_id=payment_id, reference=reference
    )
    if rows:
        return RefundRow(*rows[0])
    return None if refund_id is None else lock_refund(sender, user_id, payment_id, refund_id)


def lock_pending_refunds(sender: Sender, payment: PaymentRow) -> list[RefundRow]:
    """The refunds of this payment that are not settled, locked."""
    of_payment = {"user_id": payment.user_id, "payment_id": payment.id}
    return [RefundRow(*row) for row in sender.rows(LOCK_PENDING_REFUNDS, **of_payment)]


# Disputes -----------------------------------------------------------------------------------------


ADD_DISPUTE = Statement(
    f"""
    INSERT INTO disputes AS d (
        user_id, payment_id, gateway, gateway_reference, status, amount, currency, reason,
        evidence_due_at
    )
    VALUES (
        %(user_id)s, %(payment_id)s, %(gateway)s, %(gateway_reference)s, %(status)s, %(amount)s,
        %(currency)s, %(reason)s, %(evidence_due_at)s
    )
    ON CONFLICT DO NOTHING RETURNING {DISPUTE_LIST}"""
)
LOCK_DISPUTE = Statement(
    f"""
    SELECT {DISPUTE_LIST} FROM disputes d WHERE d.user_id = %(user_id)s
    AND d.gateway = %(gateway)s AND d.gateway_reference = %(gateway_reference)s
    FOR UPDATE"""
)


def add_dispute(
    sender: Sender,
    payment: PaymentRow,
    gateway_reference: str,
    *,
    status: str,
    amount: int,
    currency: str,
    reason: str,
    evidence_due_at: datetime | None = None,
) -> DisputeRow | None:
    """Write down a dispute; None when it is known already."""
    rows = sender.rows(
        ADD_DISPUTE,
        user_id=payment.user_id,
        payment_id=payment.id,
        gateway=payment.gateway,
        gateway_reference=gateway_reference,
        status=status,
        amount=amount,
        currency=currency,
        reason=reason,
        evidence_due_at=evidence_due_at,
    )
    return DisputeRow(*rows[0]) if rows else None


def lock_dispute(
    sender: Sender, user_id: str, gateway: str, gateway_reference: str
) -> DisputeRow | None:
    """The dispute, locked; None for another user's: no gateway gives two one reference."""
    rows = sender.rows(
        LOCK_DISPUTE, user_id=user_id, gateway=gateway, gateway_reference=gateway_reference
    )
    return DisputeRow(*rows[0]) if rows else None


# Events -------------------------------------------------------------------------------------------


def event_values(
    event_type: EventType,
    *,
    user_id: str,
    actor: Actor,
    request_id: str | None,
    data: str,
    order: OrderRow | None = None,
) -> dict[str, Any]:
    """An event, by the names of its columns. `data` is what it is about, as JSON.

    It is written with the change that it reports. With a locked order its sequence is the order's
    `last_sequence`, which the change has counted up already.
    """
    return {
        "type": event_type,
        "user_id": user_id,
        "order_id": order.id if order is not None else None,
        "sequence": order.last_sequence if order is not None else None,
        "actor": actor,
        "request_id": request_id,
        "data": data,
    }


def gateway_event_values(
    gateway: str,
    event_id: str,
    event_type: str,
    delivery_id: str | None = None,
    payment: PaymentRow | None = None,
) -> dict[str, Any]:
    """An event of a gateway, by the names of its columns. Each is stored once, and so is each
    delivery."""
    return {
        "gateway": gateway,
        "event_id": event_id,
        "delivery_id": delivery_id,
        "type": event_type,
        "user_id": payment.user_id if payment is not None else None,
        "payment_id": payment.id if payment is not None else None,
    }
