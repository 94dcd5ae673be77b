"""What must always be true of the money, as queries for the rows of which it is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.orm import Session

# Each query returns the ids of offending rows. Most of it the constraints refuse already; these
# look again, at the whole, and without trusting them.
INVARIANTS: Final[Mapping[str, str]] = {
    "captured_within_authorized": "SELECT id FROM payments WHERE amount_captured > amount",
    "refunded_within_captured": """
        SELECT p.id FROM payments p
        WHERE p.amount_refunded > p.amount_captured OR p.amount_captured < (
            SELECT coalesce(sum(r.amount), 0) FROM refunds r
            WHERE r.payment_id = p.id AND r.status <> 'failed')""",
    "refunds_add_up": """
        SELECT p.id FROM payments p LEFT JOIN refunds r ON r.payment_id = p.id
        GROUP BY p.id
        HAVING p.amount_refunded
            <> coalesce(sum(r.amount) FILTER (WHERE r.status = 'succeeded'), 0)
        OR p.refund_reserved <> coalesce(sum(r.amount) FILTER (WHERE r.status <> 'failed'), 0)""",
    "one_live_payment_per_order": """
        SELECT order_id FROM payments WHERE status NOT IN ('failed', 'voided', 'canceled')
        GROUP BY order_id HAVING count(*) > 1""",
    "payment_is_of_its_order": """
        SELECT p.id FROM payments p JOIN orders o ON o.id = p.order_id
        WHERE (p.amount, p.currency, p.user_id) <> (o.total_amount, o.currency, o.user_id)""",
    # An order without a live payment may have been paid outside the gateways.
    "order_agrees_with_payment": """
        SELECT o.id FROM orders o LEFT JOIN payments p
            ON p.order_id = o.id AND p.status NOT IN ('failed', 'voided', 'canceled')
        WHERE NOT coalesce(p.needs_review, false) AND NOT CASE coalesce(p.status, 'none')
            WHEN 'none' THEN o.status IN ('pending', 'canceled', 'paid', 'shipped', 'delivered')
            WHEN 'pending' THEN o.status = 'pending'
            WHEN 'requires_action' THEN o.status = 'pending'
            WHEN 'authorized' THEN o.status = 'authorized'
            WHEN 'refunded' THEN o.status = 'refunded'
            ELSE o.status IN ('paid', 'shipped', 'delivered') END""",
    "order_is_what_its_events_say": """
        SELECT o.id FROM orders o LEFT JOIN LATERAL (
            SELECT e.data ->> 'status' AS status FROM events e
            WHERE e.order_id = o.id AND e.type LIKE 'order.%'
            ORDER BY e.sequence DESC LIMIT 1) told ON true
        WHERE o.status IS DISTINCT FROM told.status""",
    "payment_is_what_its_events_say": """
        SELECT p.id FROM payments p LEFT JOIN LATERAL (
            SELECT e.data ->> 'status' AS status FROM events e
            WHERE e.order_id = p.order_id AND (e.data ->> 'id')::bigint = p.id
            AND e.type LIKE 'payment.%'
            AND e.type NOT IN ('payment.needs_review', 'payment.reviewed')
            ORDER BY e.sequence DESC LIMIT 1) told ON true
        WHERE coalesce(told.status, 'pending') <> CASE
            WHEN p.status IN ('partially_refunded', 'refunded') THEN 'captured'
            ELSE p.status END""",
    "refund_is_what_its_events_say": """
        SELECT r.id FROM refunds r JOIN payments p ON p.id = r.payment_id LEFT JOIN LATERAL (
            SELECT e.data ->> 'status' AS status FROM events e
            WHERE e.order_id = p.order_id AND (e.data ->> 'id')::bigint = r.id
            AND e.type LIKE 'refund.%'
            ORDER BY e.sequence DESC LIMIT 1) told ON true
        WHERE r.status IS DISTINCT FROM told.status""",
    "events_have_no_gaps": """
        SELECT o.id FROM orders o LEFT JOIN events e ON e.order_id = o.id
        GROUP BY o.id
        HAVING count(e.id) <> o.last_sequence OR coalesce(max(e.sequence), 0) <> o.last_sequence""",
    "one_default_method_per_user": """
        SELECT min(id) FROM payment_methods WHERE is_active
        GROUP BY user_id HAVING count(*) FILTER (WHERE is_default) <> 1""",
    "no_card_saved_twice": """
        SELECT min(id) FROM payment_methods WHERE is_active AND fingerprint IS NOT NULL
        GROUP BY user_id, fingerprint HAVING count(*) > 1""",
}

MOST_SHOWN = 20  # of one kind; a report is read by a person


def find_violations(session: Session) -> list[dict[str, Any]]:
    """Every invariant that does not hold, with the ids of the rows concerned."""
    violations = []
    for name, query in INVARIANTS.items():
        ids = session.scalars(text(f"{query} LIMIT {MOST_SHOWN}")).all()
        if ids:
            violations.append({"invariant": name, "ids": list(ids)})
    return violations
