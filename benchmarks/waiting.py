"""What shoppers who stay away cost others: python -m benchmarks.waiting [--redirects 10000]

A throwaway database, the service's workers, and a sandbox that takes 20 ms for each answer. Prints
how long an unknown charge takes to settle with none and with many abandoned redirects that are all
due, then lets a day pass and counts those that still wait. Exits 1 if the charge takes more than
1.5 times as long, or if one is left.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

import database
import postgres_server
from config import load_settings
from gateways.registry import Gateways
from gateways.sandbox import SandboxGateway
from services.lookups import LookupRules
from workers.loop import Workers
from workers.roles import Resources

ANSWER_SECONDS = 0.02
ROUNDS = 9
MOST_TIMES_AS_LONG = 1.5

SHOPPER = """
INSERT INTO payment_methods (user_id, payment_type, gateway, gateway_token, details, is_default)
VALUES ('shopper', 'card', 'sandbox', 'tok_success', '{}', true)
"""
# So many payments, their orders, their charges at the gateway, and the keys of those.
PAYMENTS = """
WITH placed AS (
    INSERT INTO orders (user_id, product_id, quantity, total_amount, currency, last_sequence)
    SELECT 'shopper', 'cart', 1, 1000, 'USD', 0 FROM generate_series(1, :count) RETURNING id
), paid AS (
    INSERT INTO payments (order_id, user_id, payment_method_id, gateway, gateway_key,
        gateway_reference, status, amount, currency, capture_method, check_at)
    SELECT id, 'shopper', 1, 'sandbox', 'key-' || id, CAST(:named AS text) || id, 'pending', 1000,
        'USD', 'automatic', now() FROM placed RETURNING id, order_id
), asked AS (
    INSERT INTO sandbox.requests (key, reference)
    SELECT 'key-' || order_id, 'ch_' || order_id FROM paid RETURNING key
)
INSERT INTO sandbox.charges (reference, order_id, payment_id, idempotency_key, amount, currency,
    outcome, capture, status, amount_captured)
SELECT 'ch_' || order_id, order_id, id, 'key-' || order_id, 1000, 'USD', 'success', true, :theirs,
    :captured FROM paid
"""


class Slow(SandboxGateway):
    def look_up(self, query: Any) -> Any:
        time.sleep(ANSWER_SECONDS)
        return super().look_up(query)


def add(engine: sa.Engine, count: int, ours: str, theirs: str, captured: int) -> None:
    named = "ch_" if ours == "requires_action" else None
    values = {"count": count, "theirs": theirs, "captured": captured, "named": named}
    with engine.begin() as connection:
        connection.execute(sa.text(PAYMENTS), values)
        if ours != "pending":  # as which every payment begins
            moved = sa.text("UPDATE payments SET status = :ours WHERE status = 'pending'")
            connection.execute(moved, {"ours": ours})


def count(engine: sa.Engine, status: str) -> int:
    with engine.connect() as connection:
        query = sa.text("SELECT count(*) FROM payments WHERE status = :status")
        found: int = connection.execute(query, {"status": status}).scalar_one()
        return found


def settle(engine: sa.Engine) -> float:
    """Seconds until one unknown charge is captured here, too."""
    add(engine, 1, "pending", "captured", 1000)
    began = time.monotonic()
    while count(engine, "pending"):
        time.sleep(0.005)
    return time.monotonic() - began


def median(engine: sa.Engine) -> float:
    return statistics.median(settle(engine) for _ in range(ROUNDS))


def main(redirects: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(_env_file=None, database_url=None, data_dir=Path(folder) / "data")
        engine = database.open_database(settings)
        gateways = Gateways([Slow(engine, timeout=10)])
        workers = Workers(
            Resources(engine, gateways, LookupRules.from_settings(settings, gateways), settings)
        )
        with engine.begin() as connection:
            connection.execute(sa.text(SHOPPER))
        workers.start()
        try:
            alone = median(engine)
            add(engine, redirects, "requires_action", "requires_action", 0)
            beside = median(engine)
            ratio = beside / alone
            print(f"an unknown charge settles after {alone:.2f} s alone, {beside:.2f} s beside")
            print(f"{redirects} abandoned redirects: {ratio:.2f} times as long")
            with engine.begin() as connection:
                connection.execute(
                    sa.text(
                        "UPDATE payments SET created_at = created_at - interval '25 hours',"
                        " asked_at = asked_at - interval '25 hours', check_at = now()"
                        " WHERE status = 'requires_action'"
                    )
                )
            while left := count(engine, "requires_action"):
                print(f"a day later {left} still wait", end="\r", flush=True)
                time.sleep(2)
            print(f"a day later {left} still wait  ")
        finally:
            workers.stop()
            engine.dispose()
            postgres_server.stop(settings.data_dir)
    return 0 if ratio <= MOST_TIMES_AS_LONG and left == 0 else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redirects", type=int, default=10_000)
    sys.exit(main(parser.parse_args().redirects))
