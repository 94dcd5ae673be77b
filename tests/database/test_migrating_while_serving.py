"""Large tables get their indexes while the service goes on, in any number of processes at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory

import database
from database import Migration
from tests.support.paths import ROOT
from tests.support.processes import HANG, wait_for

ORDER = (
    "INSERT INTO orders (user_id, product_id, quantity, total_amount, currency) "
    "VALUES ('ann', 'sku', 1, 1099, 'USD')"
)
BUILDING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND query LIKE 'CREATE%INDEX CONCURRENTLY%' AND wait_event_type = 'Lock'"
)
NOT_VALID = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"


@pytest.fixture
def url(make_database: Callable[[], str]) -> str:
    """A database that lacks the indexes of large tables, and what came after them."""
    url = make_database()
    config = database.alembic_config(url)
    scripts = ScriptDirectory.from_config(config).walk_revisions()
    (growth,) = [script for script in scripts if script.path.endswith("_growth.py")]
    assert isinstance(growth.down_revision, str)
    command.upgrade(config, growth.down_revision)
    return url


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    yield engine
    engine.dispose()


def ask(engine: sa.Engine, query: str) -> list[object]:
    with engine.connect() as connection:
        return list(connection.execute(sa.text(query)).scalars())


@contextmanager
def migrating_behind_a_writer(
    engine: sa.Engine, url: str, pool: ThreadPoolExecutor
) -> Iterator[Future[Migration]]:
    """A migration that waits, while it makes an index, for a transaction that has not ended."""
    with engine.connect() as writer:
        writer.execute(sa.text(ORDER))
        migration = pool.submit(database.migrate, url)
        wait_for(lambda: ask(engine, BUILDING) == [1], "an index is being made", 60)
        yield migration
        writer.commit()


def test_writes_go_on_while_indexes_are_made(engine: sa.Engine, url: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        with (
            migrating_behind_a_writer(engine, url, pool) as migration,
            engine.begin() as connection,
        ):
            connection.execute(sa.text("SET LOCAL lock_timeout = '2s'"))
            connection.execute(sa.text(ORDER))
        migration.result(HANG)
    assert database.is_migrated(engine)
    assert ask(engine, NOT_VALID) == []


def test_processes_that_wait_for_a_migration_do_not_keep_it_waiting(
    engine: sa.Engine, url: str
) -> None:
    """CREATE INDEX CONCURRENTLY waits for every snapshot, and so for whoever waits with one."""
    connections = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE application_name = 'estore-payments' AND datname = current_database()"
    )
    script = "import sys, database; database.migrate(sys.argv[1])"
    with ThreadPoolExecutor(1) as pool:
        with migrating_behind_a_writer(engine, url, pool) as migration:
            others = [
                subprocess.Popen([sys.executable, "-c", script, url], cwd=ROOT) for _ in range(2)
            ]
            # The migration has two; those who wait come and go.
            wait_for(lambda: ask(engine, connections) != [2], "another process waits", 60)
        migration.result(HANG)
        assert [process.wait(HANG) for process in others] == [0, 0]
    assert database.is_migrated(engine)
    assert ask(engine, NOT_VALID) == []


def test_a_migration_that_was_broken_off_is_taken_up_where_it_ended(
    engine: sa.Engine, url: str
) -> None:
    with ThreadPoolExecutor(1) as pool, migrating_behind_a_writer(engine, url, pool) as migration:
        kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE "
        ask(engine, f"{kill} 'CREATE INDEX CONCURRENTLY%' AND datname = current_database()")
        with pytest.raises(sa.exc.SQLAlchemyError):
            migration.result(HANG)
    assert not database.is_migrated(engine)
    assert len(ask(engine, NOT_VALID)) == 1
    database.migrate(url)
    assert database.is_migrated(engine)
    assert ask(engine, NOT_VALID) == []


# The users of rows ------------------------------------------------------------------------------

REFUNDED = """
WITH method AS (
    INSERT INTO payment_methods (user_id, payment_type, gateway, gateway_token, details)
    VALUES ('ann', 'card', 'sandbox', 'tok', '{}') RETURNING id
), placed AS (
    INSERT INTO orders (user_id, product_id, quantity, total_amount, currency)
    SELECT 'ann', 'sku', 1, 1099, 'USD' FROM generate_series(1, 30) RETURNING id
)
INSERT INTO payments (order_id, user_id, payment_method_id, gateway, gateway_key, amount, currency,
                      capture_method, check_at)
SELECT placed.id, 'ann', method.id, 'sandbox', 'key-' || placed.id, 1099, 'USD', 'automatic', now()
FROM placed, method;
UPDATE payments SET status = 'captured', amount_captured = 1099;
INSERT INTO refunds (payment_id, gateway, gateway_key, amount, currency, check_at)
SELECT id, gateway, 're-' || id, 1, 'USD', now() FROM payments;
INSERT INTO gateway_events (gateway, event_id, type, payment_id)
SELECT gateway, 'evt-' || id, 'charge.captured', id FROM payments;
INSERT INTO gateway_events (gateway, event_id, type) VALUES ('sandbox', 'evt', 'method.removed');
"""
WITHOUT_USER = "SELECT count(*) FROM refunds WHERE user_id IS DISTINCT FROM 'ann'"
EVENTS_OF = "SELECT count(*) FROM gateway_events WHERE user_id = 'ann'"


def test_rows_are_given_their_user_also_when_that_was_broken_off(
    make_database: Callable[[], str],
) -> None:
    url = make_database()
    command.upgrade(database.alembic_config(url), "0006")
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text(REFUNDED))
    with ThreadPoolExecutor(1) as pool, engine.connect() as writer:
        writer.execute(sa.text("UPDATE payments SET amount = amount WHERE id = 1"))
        migration = pool.submit(database.migrate, url)
        wait_for(lambda: ask(engine, BUILDING) == [1], "an index is being made", 60)
        kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE "
        ask(engine, f"{kill} 'CREATE%CONCURRENTLY%' AND datname = current_database()")
        with pytest.raises(sa.exc.SQLAlchemyError):
            migration.result(HANG)
        writer.commit()
        # The release before goes on meanwhile.
        late = "INSERT INTO refunds (payment_id, gateway, gateway_key, amount, currency, check_at)"
        writer.execute(sa.text(f"{late} VALUES (1, 'sandbox', 'late', 1, 'USD', now())"))
        writer.commit()
    assert not database.is_migrated(engine)
    database.migrate(url)
    assert database.is_migrated(engine)
    assert ask(engine, NOT_VALID) == []
    assert ask(engine, WITHOUT_USER) == [0]
    assert ask(engine, EVENTS_OF) == [30]
    assert ask(engine, "SELECT sum(refund_reserved) FROM payments") == [31]
