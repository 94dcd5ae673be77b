"""A database in which much has happened, made by a few statements of SQL.

Its books are whole: every invariant holds. It has what makes a planner guess wrong: one user has a
third of all orders, another one had as many and has not come back for long, nothing that is new is
delivered yet, a gateway was given up long ago, and some orders were placed on a clock that was off,
so that their times are not in the order of their ids.
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

import database

OPEN_PAYMENTS = 400  # however many orders there are; as many need a review, or fewer
BUSY_USER, LOST_USER = "user-0", "user-1"

# What may happen to an order: how often in a thousand, the statuses that its order and its payment
# end in (none without a payment), what is given back of 1099, and its events in their order.
STORIES = """
    (3, 'authorized', 'authorized', 0,
     'order.created:pending payment.authorized:authorized order.status_changed:authorized'),
    (50, 'pending', NULL, 0, 'order.created:pending'),
    (5, 'pending', 'failed', 0, 'order.created:pending payment.failed:failed'),
    (35, 'canceled', NULL, 0, 'order.created:pending order.status_changed:canceled'),
    (10, 'canceled', 'voided', 0,
     'order.created:pending payment.authorized:authorized order.status_changed:authorized '
     'payment.voided:voided order.status_changed:canceled'),
    (30, 'refunded', 'refunded', 1099,
     'order.created:pending payment.captured:captured order.status_changed:paid '
     'refund.created:pending refund.succeeded:succeeded order.status_changed:refunded'),
    (20, 'delivered', 'partially_refunded', 100,
     'order.created:pending payment.captured:captured order.status_changed:paid '
     'order.status_changed:shipped order.status_changed:delivered '
     'refund.created:pending refund.succeeded:succeeded'),
    (50, 'paid', 'captured', 0,
     'order.created:pending payment.captured:captured order.status_changed:paid'),
    (50, 'shipped', 'captured', 0,
     'order.created:pending payment.captured:captured order.status_changed:paid '
     'order.status_changed:shipped'),
    (747, 'delivered', 'captured', 0,
     'order.created:pending payment.captured:captured order.status_changed:paid '
     'order.status_changed:shipped order.status_changed:delivered')
"""

# Every row of an order has the order's number as its id, so that what belongs together is found.
STEPS = {
    "what happened": f"""
        CREATE TEMPORARY TABLE story AS
        WITH told (share, order_status, payment_status, refunded, events) AS (VALUES {STORIES}),
        numbered AS (SELECT *, sum(share) OVER (ROWS UNBOUNDED PRECEDING) AS until FROM told)
        SELECT n AS id, order_status, payment_status, refunded,
            string_to_array(events, ' ') AS events,
            CASE WHEN n % 3 = 0 THEN 0 WHEN n % 3 = 1 AND n < :orders * 0.6 THEN 1
                ELSE 2 + n % (:orders / 20) END AS customer,
            now() - make_interval(secs => (:orders - n) * 86400.0 * 730 / :orders)
                - CASE WHEN n % 997 = 0 THEN interval '1 hour' ELSE '0' END AS at,
            n > :orders - :open AS is_open
        FROM generate_series(1, :orders) n JOIN numbered
            ON n * 617 % 1000 < until AND n * 617 % 1000 >= until - share""",
    "the last payments have no answer yet": """
        UPDATE story SET order_status = 'pending', payment_status = 'pending', refunded = 0,
            events = '{order.created:pending}'
        WHERE is_open""",
    "what is new is not delivered yet": """
        UPDATE story SET order_status = 'paid', payment_status = 'captured', refunded = 0,
            events = events[1:3]
        WHERE order_status = 'delivered' AND id > :orders * 0.95""",
    "payment methods": """
        INSERT INTO payment_methods (id, user_id, payment_type, gateway, gateway_token, fingerprint,
            details, is_default, created_at)
        OVERRIDING SYSTEM VALUE
        SELECT n + 1, 'user-' || n, 'card', 'sandbox', 'tok_success_' || n, md5(n::text),
            '{"brand": "visa", "last4": "4242", "exp_month": 12, "exp_year": 2040}', true,
            now() - interval '731 days'
        FROM generate_series(0, :orders / 20 + 1) n""",
    "orders": """
        INSERT INTO orders (id, user_id, product_id, quantity, total_amount, currency, status,
            payment_method_id, metadata, last_sequence, created_at, updated_at)
        OVERRIDING SYSTEM VALUE
        SELECT id, 'user-' || customer, 'sku-' || id % 500, 1, 1099, 'USD', order_status,
            CASE WHEN id % 4 > 0 THEN customer + 1 END, jsonb_build_object('cart', 'c-' || id),
            cardinality(events), at, at
        FROM story ORDER BY id""",
    "payments": """
        INSERT INTO payments (id, order_id, user_id, payment_method_id, gateway, gateway_key,
            gateway_reference, status, amount, amount_captured, amount_refunded, refund_reserved,
            currency, capture_method, capture_before, failure, needs_review, asked_at, check_at,
            created_at, updated_at)
        OVERRIDING SYSTEM VALUE
        SELECT id, id, 'user-' || customer, customer + 1,
            CASE WHEN id < :orders * 0.1 THEN 'paypal' ELSE 'sandbox' END, gen_random_uuid(),
            CASE WHEN NOT is_open THEN 'ch_' || md5(id::text) END, payment_status, 1099,
            CASE WHEN payment_status ~ '^(captured|.*refunded)$' THEN 1099 ELSE 0 END,
            refunded, refunded, 'USD',
            CASE WHEN payment_status IN ('authorized', 'voided') THEN 'manual'
                ELSE 'automatic' END,
            CASE WHEN payment_status = 'authorized' THEN now() + interval '3 days' END,
            CASE WHEN payment_status = 'failed' THEN
                '{"code": "payment_declined", "decline_code": "generic_decline", "message": ""}'
                ::jsonb END,
            payment_status = 'captured' AND id % (:orders / :open) = 1, at,
            CASE WHEN is_open THEN now() + make_interval(secs => (id % 10 - 1) * 30)
                WHEN payment_status = 'authorized' THEN now() + interval '3 days' END,
            at, at
        FROM story WHERE payment_status IS NOT NULL ORDER BY id""",
    "refunds": """
        INSERT INTO refunds (id, user_id, payment_id, gateway, gateway_key, gateway_reference,
            status, amount, currency, created_at, updated_at)
        OVERRIDING SYSTEM VALUE
        SELECT id, 'user-' || customer, id,
            CASE WHEN id < :orders * 0.1 THEN 'paypal' ELSE 'sandbox' END,
            gen_random_uuid(), 're_' || md5(id::text), 'succeeded', refunded,
            'USD', at, at
        FROM story WHERE refunded > 0 ORDER BY id""",
    "disputes": """
        INSERT INTO disputes (user_id, payment_id, gateway, gateway_reference, status, amount,
            currency, reason, created_at)
        SELECT user_id, id, gateway, 'dp_' || md5(id::text),
            CASE WHEN id > :orders * 0.99 THEN 'open' WHEN id % 3 = 0 THEN 'lost' ELSE 'won' END,
            amount, currency, 'fraudulent', created_at
        FROM payments WHERE status = 'captured' AND id % 50 = 7 ORDER BY id""",
    "events": """
        INSERT INTO events (type, user_id, order_id, sequence, actor, request_id, data, created_at)
        SELECT split_part(event, ':', 1), 'user-' || customer, id, sequence,
            jsonb_build_object('type', 'user', 'id', 'user-' || customer), gen_random_uuid(),
            jsonb_build_object('id', id, 'status', split_part(event, ':', 2),
                'user_id', 'user-' || customer, 'currency', 'USD', 'total_amount', 1099,
                'product_id', 'sku-' || id % 500, 'metadata', jsonb_build_object('cart', id),
                'created_at', at, 'updated_at', at), at
        FROM story, unnest(events) WITH ORDINALITY AS told (event, sequence)
        ORDER BY id, sequence""",
    "gateway events": """
        INSERT INTO gateway_events (gateway, event_id, type, user_id, payment_id, created_at)
        SELECT 'sandbox', 'evt_' || md5(id::text || type), type, 'user-' || customer, id, at
        FROM story, (VALUES ('charge.created'), ('charge.captured')) AS told (type)
        WHERE payment_status IS NOT NULL AND NOT is_open ORDER BY id""",
    "idempotency keys": """
        INSERT INTO idempotency_keys (user_id, key, fingerprint, owner, owned_until, request_id,
            status, headers, body, created_at)
        SELECT 'user-' || customer, gen_random_uuid(), md5(id::text), md5(id::text), at,
            gen_random_uuid(), 201, '{}', '{}', at
        FROM story WHERE id > :orders * 0.98 ORDER BY id""",
    "the sandbox's requests": """
        INSERT INTO sandbox.requests (key, reference)
        SELECT gateway_key, gateway_reference FROM payments
        WHERE gateway = 'sandbox' AND gateway_reference IS NOT NULL
        UNION ALL SELECT gateway_key, gateway_reference FROM refunds WHERE gateway = 'sandbox'""",
    "the sandbox's charges": """
        INSERT INTO sandbox.charges (reference, order_id, payment_id, idempotency_key, amount,
            currency, outcome, capture, status, amount_captured, capture_before, created_at,
            changed_at)
        SELECT gateway_reference, order_id, id, gateway_key, amount, currency,
            CASE status WHEN 'failed' THEN 'generic_decline' ELSE 'success' END,
            capture_method = 'automatic',
            CASE WHEN amount_captured > 0 THEN 'captured' WHEN status = 'failed' THEN 'declined'
                ELSE status END,
            amount_captured, capture_before, created_at, created_at
        FROM payments WHERE gateway = 'sandbox' AND gateway_reference IS NOT NULL ORDER BY id""",
    "the sandbox's refunds": """
        INSERT INTO sandbox.refunds (reference, charge, refund_id, amount, status, created_at)
        SELECT r.gateway_reference, p.gateway_reference, r.id, r.amount, r.status, r.created_at
        FROM refunds r JOIN payments p ON p.id = r.payment_id
        WHERE p.gateway = 'sandbox' ORDER BY r.id""",
    "the sandbox's disputes": """
        INSERT INTO sandbox.disputes (reference, charge, status, closes_at)
        SELECT d.gateway_reference, p.gateway_reference, d.status, d.created_at + interval '1 month'
        FROM disputes d JOIN payments p ON p.id = d.payment_id
        WHERE p.gateway = 'sandbox' ORDER BY d.id""",
    "the sandbox's webhooks": """
        INSERT INTO sandbox.webhooks (payload, due_at, delivered_at)
        SELECT jsonb_build_object('id', event_id, 'type', type, 'payment_id', payment_id),
            created_at, created_at
        FROM gateway_events ORDER BY id""",
}
# What is not in the statements above: counting goes on where they ended.
SEQUENCES = ("payment_methods", "orders", "payments", "refunds")


def fill(url: str, orders: int, tell: Callable[[str], None]) -> None:
    """Fill an empty, migrated database; `tell` hears of each step. Needs a superuser."""
    engine = database.create_engine(url, pool_size=1, limits=database.MIGRATING)
    with engine.begin() as connection:
        # Rows come in their last state: triggers would refuse that. Nothing waits for the disk.
        connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
        connection.execute(sa.text("SET LOCAL synchronous_commit = off"))
        numbers = {"orders": orders, "open": OPEN_PAYMENTS}
        for what, statement in STEPS.items():
            tell(what)
            used = {name: number for name, number in numbers.items() if f":{name}" in statement}
            connection.execute(sa.text(statement), used)
        for table in SEQUENCES:
            connection.execute(
                sa.text(
                    f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}"
                )
            )
        connection.execute(sa.text("DROP TABLE story"))
    tell("VACUUM ANALYZE")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE"))
    engine.dispose()
