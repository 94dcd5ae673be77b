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
    "AND query LIKE 'CREATE INDEX CONCURRENTLY%' AND wait_event_type = 'Lock'"
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
