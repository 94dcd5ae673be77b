"""Reads both sets of books, and checks what must be true of them in the end."""

from collections import Counter
from datetime import timedelta
from statistics import quantiles
from typing import Any, Final

import sqlalchemy as sa

import database
from config import Settings
from gateways.registry import Gateways
from proof.report import Report
from proof.shoppers import Ledger
from services import audit

# What has not come to its end, or waits for longer than it may.
OPEN: Final = """
    SELECT 'payment ' || id AS what FROM payments WHERE status = 'pending' OR operation IS NOT NULL
    UNION ALL SELECT 'refund ' || id FROM refunds WHERE status = 'pending'
    UNION ALL SELECT 'key ' || id FROM idempotency_keys
        WHERE status IS NULL AND gateway_key IS NOT NULL
    UNION ALL SELECT 'review of payment ' || id FROM payments WHERE needs_review
    UNION ALL SELECT 'look-up of payment ' || id FROM payments WHERE check_at <= now()
    UNION ALL SELECT 'look-up of refund ' || id FROM refunds WHERE check_at <= now()
    UNION ALL SELECT 'shopper of payment ' || id FROM payments
        WHERE status = 'requires_action' AND created_at < now() - :action_expires_after
    UNION ALL SELECT 'webhook ' || w.id FROM sandbox.webhooks w, sandbox.account a
        WHERE w.delivered_at IS NULL AND NOT a.webhooks_held"""

# An order is charged twice when the gateway holds or took money for it more than once.
DOUBLE_ORDERS: Final = """
    SELECT 'order ' || order_id FROM sandbox.charges WHERE status IN ('authorized', 'captured')
    GROUP BY order_id HAVING count(*) > 1"""

# A cart is charged twice when its shopper has ordered it again, long after an order whose charge
# failed, and the gateway makes that first charge after all.
DOUBLE_CARTS: Final = """
    SELECT 'cart ' || string_agg('order ' || c.order_id, ', ' ORDER BY c.order_id)
    FROM sandbox.charges c JOIN payments p ON p.id = c.payment_id JOIN orders o ON o.id = p.order_id
    WHERE c.status <> 'declined' GROUP BY o.metadata ->> 'cart'
    HAVING count(*) > 1 AND bool_or(c.created_at > p.created_at + :resend_within)"""

# Each refund that the gateway made is one row of ours, which says who made it. The service may not
# know of one that failed.
REFUNDS: Final = """
    SELECT r.reference, r.refund_id IS NULL AS outside, count(o.id) AS rows
    FROM sandbox.refunds r LEFT JOIN refunds o ON o.gateway_reference = r.reference
    GROUP BY r.reference
    HAVING count(o.id) > 1 OR (count(o.id) = 0 AND r.status <> 'failed')
    OR bool_or((o.origin = 'gateway') <> (r.refund_id IS NULL) OR o.status <> r.status)"""
DISPUTES: Final = """
    SELECT d.reference, d.status AS theirs, o.status AS ours
    FROM sandbox.disputes d LEFT JOIN disputes o ON o.gateway_reference = d.reference
    WHERE o.status IS DISTINCT FROM d.status"""

# Not what waited while the services were dead and time passed.
LOOKED_UP: Final = """
    SELECT extract(epoch FROM e.created_at - coalesce(r.created_at, p.created_at))
    FROM events e
    LEFT JOIN refunds r ON e.type LIKE 'refund.%' AND r.id = (e.data ->> 'id')::bigint
    LEFT JOIN payments p ON e.type LIKE 'payment.%' AND p.id = (e.data ->> 'id')::bigint
    WHERE e.actor ->> 'id' = 'reconciler' AND coalesce(r.id, p.id) IS NOT NULL
    AND r.origin IS DISTINCT FROM 'gateway'
    AND e.created_at < coalesce(r.created_at, p.created_at) + interval '1 minute'"""


class Books:
    """Both sets of books of a run."""

    def __init__(self, engine: sa.Engine, settings: Settings) -> None:
        self._engine = engine
        self._gateways = Gateways.from_settings(settings, engine)
        self._limits = {
            "action_expires_after": timedelta(seconds=settings.action_expires_after),
            "resend_within": timedelta(seconds=settings.resend_within),
        }

    def _scalars(self, query: str) -> list[Any]:
        with self._engine.connect() as connection:
            return list(connection.execute(sa.text(query), self._limits).scalars())

    def find_open(self) -> list[str]:
        """What has not ended; webhooks that are held back may wait."""
        return self._scalars(OPEN)

    def find_double_charges(self) -> set[str]:
        return {*self._scalars(DOUBLE_ORDERS), *self._scalars(DOUBLE_CARTS)}

    def find_violations(self) -> list[dict[str, Any]]:
        """Where either set of books is wrong, or the two do not agree."""
        found: list[dict[str, Any]] = []
        with self._engine.connect() as connection:
            for name, query in (("refunds_agree", REFUNDS), ("disputes_agree", DISPUTES)):
                rows = connection.execute(sa.text(query)).mappings()
                found += [{"invariant": name, **row} for row in rows]
        with database.new_session(self._engine) as session:
            return found + audit.check(session, self._gateways)

    def read(self, ledger: Ledger, report: Report) -> None:
        """Report everything that is wrong now, and compare the answers that shoppers got with the
        books."""
        report.charges = self._scalars("SELECT count(*) FROM sandbox.charges")[0]
        report.double_charges |= self.find_double_charges()
        report.stuck = [*ledger.unanswered, *self.find_open()]
        report.violations += [one for one in self.find_violations() if one not in report.violations]
        marks = Counter(self._scalars("SELECT metadata ->> 'mark' FROM orders"))
        captured = set(self._scalars("SELECT id FROM payments WHERE amount_captured > 0"))
        refunds = set(self._scalars("SELECT id FROM refunds"))
        report.lost = [f"order {mark}" for mark in ledger.orders if marks[mark] == 0]
        report.lost += [f"payment {id} is not captured" for id in ledger.captured - captured]
        report.lost += [f"refund {id}" for id in ledger.refunds - refunds]
        report.violations += [
            {"invariant": "one_order_per_request", "mark": mark, "orders": count}
            for mark, count in marks.items()
            if count > 1
        ]
        seconds = sorted(float(value) for value in self._scalars(LOOKED_UP))
        report.looked_up = len(seconds)
        if len(seconds) > 1:
            cuts = quantiles(seconds, n=100, method="inclusive")
            report.settle_seconds = {"p50": cuts[49], "p95": cuts[94], "max": seconds[-1]}
