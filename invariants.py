"""SQL that checks our books: by themselves, and beside those of a gateway.

An invariant is a query for the rows of which it is not true.

Tables are checked in windows: a few statements over a range of keys, then the next range. So no
statement takes long and nothing is held in memory, however many rows there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, any_, func, literal, or_, select, text, true, tuple_
from sqlalchemy.dialects.postgresql import ARRAY, TEXT
from sqlalchemy.orm import InstrumentedAttribute

from database import read_all
from models import Dispute, Order, Payment, PaymentMethod, Refund
from rows import PaymentRow, RefundRow, columns_of
from schemas import MAX_ID
from sessions import Session

PAYMENT_COLUMNS = Payment.__table__.c
REFUND_COLUMNS = Refund.__table__.c
DISPUTE_COLUMNS = Dispute.__table__.c
PAYMENTS = select(*[PAYMENT_COLUMNS[name] for name in columns_of(PaymentRow)])
REFUNDS = select(*[REFUND_COLUMNS[name] for name in columns_of(RefundRow)])

# Each query returns the ids of offending rows of its window, :after < key <= :until. What it joins
# has the bounds too where it has the key, so that everything is read by ranges. Most of it the
# constraints refuse already; these look again, at the whole, and without trusting them.

OF_ORDERS: Final[Mapping[str, str]] = {
    "one_live_payment_per_order": """
        SELECT order_id FROM payments
        WHERE order_id > :after AND order_id <= :until
        AND status NOT IN ('failed', 'voided', 'canceled')
        GROUP BY user_id, order_id HAVING count(*) > 1""",
    "payment_is_of_its_order": """
        SELECT p.id FROM payments p LEFT JOIN orders o
            ON o.user_id = p.user_id AND o.id = p.order_id AND o.id > :after AND o.id <= :until
        WHERE p.order_id > :after AND p.order_id <= :until
        AND (p.amount, p.currency) IS DISTINCT FROM (o.total_amount, o.currency)""",
    # An order without a live payment may have been paid outside the gateways.
    "order_agrees_with_payment": """
        SELECT o.id FROM orders o LEFT JOIN payments p
            ON p.user_id = o.user_id AND p.order_id = o.id
            AND p.order_id > :after AND p.order_id <= :until
            AND p.status NOT IN ('failed', 'voided', 'canceled')
        WHERE o.id > :after AND o.id <= :until
        AND NOT coalesce(p.needs_review, false) AND NOT CASE coalesce(p.status, 'none')
            WHEN 'none' THEN o.status IN ('pending', 'canceled', 'paid', 'shipped', 'delivered')
            WHEN 'pending' THEN o.status = 'pending'
            WHEN 'requires_action' THEN o.status = 'pending'
            WHEN 'authorized' THEN o.status = 'authorized'
            WHEN 'refunded' THEN o.status = 'refunded'
            ELSE o.status IN ('paid', 'shipped', 'delivered') END""",
    "order_is_what_its_events_say": """
        SELECT o.id FROM orders o LEFT JOIN LATERAL (
            SELECT e.data ->> 'status' AS status FROM events e
            WHERE e.user_id = o.user_id AND e.order_id = o.id AND e.type LIKE 'order.%'
            ORDER BY e.sequence DESC LIMIT 1) latest ON true
        WHERE o.id > :after AND o.id <= :until AND o.status IS DISTINCT FROM latest.status""",
    # No event shows a payment as refunded: its refunds have their own. Those of something else than
    # its status, such as a review, show it as it was.
    "payment_is_what_its_events_say": """
        SELECT p.id FROM payments p LEFT JOIN LATERAL (
            SELECT e.data ->> 'status' AS status FROM events e
            WHERE e.user_id = p.user_id AND e.order_id = p.order_id
            AND (e.data ->> 'id')::bigint = p.id AND e.type LIKE 'payment.%'
            ORDER BY e.sequence DESC LIMIT 1) latest ON true
        WHERE p.order_id > :after AND p.order_id <= :until
        AND regexp_replace(coalesce(latest.status, 'pending'), '^.*refunded$', 'captured')
            <> regexp_replace(p.status, '^.*refunded$', 'captured')""",
    "events_have_no_gaps": """
        SELECT o.id FROM orders o LEFT JOIN events e
            ON e.user_id = o.user_id AND e.order_id = o.id
            AND e.order_id > :after AND e.order_id <= :until
        WHERE o.id > :after AND o.id <= :until
        GROUP BY o.user_id, o.id
        HAVING count(e.id) <> o.last_sequence OR coalesce(max(e.sequence), 0) <> o.last_sequence""",
}
OF_PAYMENTS: Final[Mapping[str, str]] = {
    "captured_within_authorized": """
        SELECT id FROM payments WHERE id > :after AND id <= :until AND amount_captured > amount""",
    "refunded_within_captured": """
        SELECT p.id FROM payments p
        WHERE p.id > :after AND p.id <= :until
        AND (p.amount_refunded > p.amount_captured OR p.amount_captured < (
            SELECT coalesce(sum(r.amount), 0) FROM refunds r
            WHERE r.user_id = p.user_id AND r.payment_id = p.id AND r.status <> 'failed'))""",
    "refunds_add_up": """
        SELECT p.id FROM payments p LEFT JOIN refunds r
            ON r.user_id = p.user_id AND r.payment_id = p.id
            AND r.payment_id > :after AND r.payment_id <= :until
        WHERE p.id > :after AND p.id <= :until
        GROUP BY p.user_id, p.id
        HAVING p.amount_refunded
            <> coalesce(sum(r.amount) FILTER (WHERE r.status = 'succeeded'), 0)
        OR p.refund_reserved <> coalesce(sum(r.amount) FILTER (WHERE r.status <> 'failed'), 0)""",
}
OF_REFUNDS: Final[Mapping[str, str]] = {
    "refund_is_what_its_events_say": """
        SELECT r.id FROM refunds r JOIN payments p ON p.user_id = r.user_id AND p.id = r.payment_id
        LEFT JOIN LATERAL (
            SELECT e.data ->> 'status' AS status FROM events e
            WHERE e.user_id = p.user_id AND e.order_id = p.order_id
            AND (e.data ->> 'id')::bigint = r.id AND e.type LIKE 'refund.%'
            ORDER BY e.sequence DESC LIMIT 1) latest ON true
        WHERE r.id > :after AND r.id <= :until AND r.status IS DISTINCT FROM latest.status"""
}
OF_USERS: Final[Mapping[str, str]] = {
    "one_default_method_per_user": """
        SELECT min(id) FROM payment_methods
        WHERE user_id > :after AND user_id <= :until AND is_active
        GROUP BY user_id HAVING count(*) FILTER (WHERE is_default) <> 1""",
    "no_card_saved_twice": """
        SELECT min(id) FROM payment_methods
        WHERE user_id > :after AND user_id <= :until AND is_active AND fingerprint IS NOT NULL
        GROUP BY user_id, fingerprint HAVING count(*) > 1""",
}
INVARIANTS: Final = {**OF_ORDERS, **OF_PAYMENTS, **OF_REFUNDS, **OF_USERS}

# The key that windows are made of, of which rows, its value before all, and what is checked.
CHECKS: Final[
    Sequence[tuple[InstrumentedAttribute[Any], ColumnElement[bool], Any, Mapping[str, str]]]
] = (
    (Order.id, true(), 0, OF_ORDERS),
    (Payment.id, true(), 0, OF_PAYMENTS),
    (Refund.id, true(), 0, OF_REFUNDS),
    (PaymentMethod.user_id, PaymentMethod.__table__.c.is_active, "", OF_USERS),
)
WINDOW = 10_000  # rows; a tenth of a second for each query
MOST_SHOWN = 20  # of one kind; a report is read by a person


@dataclass(frozen=True, slots=True)
class Checked:
    """A table, how many of its rows have been checked by now, and the violations found last."""

    table: str
    rows: int
    violations: Mapping[str, Sequence[int]]  # ids of the rows concerned, by invariant


def find_violations(session: Session, window: int = WINDOW) -> Iterator[Checked]:
    """Check every invariant, window by window. The caller may end its transaction after each."""
    for key, condition, after, queries in CHECKS:
        rows = 0
        while True:
            session.execute(text("SET TRANSACTION READ ONLY"))
            keys = select(key).where(key > after, condition).order_by(key).limit(window).subquery()
            until, found = session.execute(select(func.max(keys.c[0]), func.count())).one()
            is_last = found < window
            if is_last and isinstance(after, int):
                until = MAX_ID  # and all that belongs to rows that are not there
            bounds = {"after": after, "until": until}
            rows += found
            yield Checked(key.class_.__tablename__, rows, _violations(session, queries, bounds))
            if is_last:
                break
            after = until


def _violations(
    session: Session, queries: Mapping[str, str], bounds: Mapping[str, Any]
) -> Mapping[str, Sequence[int]]:
    violations = {
        name: session.scalars(text(f"{query} LIMIT {MOST_SHOWN}"), bounds).all()
        for name, query in queries.items()
    }
    return {name: ids for name, ids in violations.items() if ids}


# Beside the books of a gateway --------------------------------------------------------------------


def list_payments_of_charges(
    session: Session, gateway: str, keys: Sequence[str], references: Sequence[str]
) -> list[PaymentRow]:
    """The payments that charges in a gateway's list are, by our key or its reference."""
    query = PAYMENTS.where(
        PAYMENT_COLUMNS.gateway == gateway,
        or_(
            PAYMENT_COLUMNS.gateway_key == any_(literal(list(keys), ARRAY(TEXT))),
            PAYMENT_COLUMNS.gateway_reference == any_(literal(list(references), ARRAY(TEXT))),
        ),
    )
    return read_all(session, PaymentRow, query)


def list_refunds_of_payments(session: Session, payment_ids: Sequence[int]) -> list[RefundRow]:
    return read_all(session, RefundRow, REFUNDS.where(REFUND_COLUMNS.payment_id.in_(payment_ids)))


def list_dispute_statuses(
    session: Session, gateway: str, references: Sequence[str]
) -> Mapping[str, str]:
    """The status of each of these disputes that we know, by its reference."""
    known = session.execute(
        select(Dispute.gateway_reference, Dispute.status).where(
            Dispute.gateway == gateway, Dispute.gateway_reference.in_(references)
        )
    )
    return dict(known.all())


def list_recent_payments(
    session: Session, gateway: str, since: datetime | None, after: PaymentRow | None, limit: int
) -> list[PaymentRow]:
    """A page of this gateway's payments since then, newest first, after the last one seen."""
    query = PAYMENTS.where(PAYMENT_COLUMNS.gateway == gateway)
    if since is not None:
        query = query.where(PAYMENT_COLUMNS.created_at >= since)
    if after is not None:
        place = tuple_(after.created_at, after.id)
        query = query.where(tuple_(PAYMENT_COLUMNS.created_at, PAYMENT_COLUMNS.id) < place)
    # By time, as the index of a gateway's payments is: by id the newest of all would be walked
    # through, and a gateway that was switched off long ago has none among them.
    newest = (PAYMENT_COLUMNS.created_at.desc(), PAYMENT_COLUMNS.id.desc())
    return read_all(session, PaymentRow, query.order_by(*newest).limit(limit))
