"""Migrations and models make the same database, with the types and the indexes that it needs.

What the database refuses by itself is in test_refusals.py.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import crud
import database
import schemas
from gateways import sandbox
from models import Base
from permissions import EVERYONE
from statements import Sender
from tests.support.database import ConnectionSender
from tests.support.paths import ROOT
from tests.support.processes import HANG

# What only migrations make: no model reads it.
ONLY_MIGRATED = {"alembic_version", "status_moves"}
SCHEMAS = ("public", "sandbox")


@pytest.fixture(scope="module")
def migrated(make_database: Callable[[], str]) -> Iterator[sa.Engine]:
    """An engine on a database of its own that the migrations made."""
    url = make_database()
    database.migrate(url)
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    yield engine
    engine.dispose()


@pytest.fixture
def connection(migrated: sa.Engine) -> Iterator[sa.Connection]:
    """A connection whose transaction is rolled back."""
    with migrated.connect() as connection:
        yield connection
        connection.rollback()


def fetch(connection: sa.Connection, query: str, **parameters: object) -> list[Any]:
    return [tuple(row) for row in connection.execute(sa.text(query), parameters)]


# Migrations and models --------------------------------------------------------------------------

TABLES = """
    SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S') AND n.nspname = ANY(:schemas)
"""
# Each definition as PostgreSQL itself writes it down.
CATALOG = {
    "columns": """
        SELECT table_schema, table_name, column_name, data_type, character_maximum_length,
               is_nullable, column_default, is_identity, identity_generation, is_generated
        FROM information_schema.columns WHERE table_schema = ANY(:schemas)
    """,
    "constraints": """
        SELECT n.nspname, c.relname, k.conname, k.contype::text, pg_get_constraintdef(k.oid)
        FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = ANY(:schemas)
    """,
    "indexes": """
        SELECT schemaname, tablename, indexname, indexdef
        FROM pg_indexes WHERE schemaname = ANY(:schemas)
    """,
}
BEHAVIOR = {
    "triggers": """
        SELECT c.relname, t.tgname, pg_get_triggerdef(t.oid), t.tgenabled::text
        FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE NOT t.tgisinternal
    """,
    "functions": """
        SELECT p.proname, pg_get_functiondef(p.oid) FROM pg_proc p
        JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = ANY(:schemas)
    """,
    "moves": "SELECT entity, from_status, to_status FROM status_moves",
}


def definitions(connection: sa.Connection, queries: dict[str, str]) -> dict[str, set[Any]]:
    return {
        name: {
            row
            for row in fetch(connection, query, schemas=list(SCHEMAS))
            if ONLY_MIGRATED.isdisjoint(row[:2]) or name == "moves"
        }
        for name, query in queries.items()
    }


def test_autogenerate_finds_no_difference_between_migrations_and_models(
    connection: sa.Connection,
) -> None:
    def is_compared(
        _object: object, name: str | None, kind: str, _reflected: bool, _other: object
    ) -> bool:
        return not (kind == "table" and name in ONLY_MIGRATED)

    options = {
        "compare_type": True,
        "compare_server_default": True,
        "include_schemas": True,
        "include_name": lambda name, kind, _: kind != "schema" or name in (None, "sandbox"),
        "include_object": is_compared,
    }
    context = MigrationContext.configure(connection, opts=options)
    both: Any = [Base.metadata, sandbox.metadata]  # a list is fine, unlike its annotation says
    assert compare_metadata(context, both) == []


def test_migrations_and_models_make_the_same_catalog(
    migrated: sa.Engine, make_database: Callable[[], str]
) -> None:
    engine = sa.create_engine(make_database(), poolclass=sa.NullPool)
    with engine.begin() as created:
        created.execute(sa.text("CREATE SCHEMA sandbox"))
        Base.metadata.create_all(created)
        sandbox.metadata.create_all(created)
        from_models = definitions(created, CATALOG)
    with migrated.connect() as connection:
        from_migrations = definitions(connection, CATALOG)
    for name in CATALOG:
        assert from_models[name], "else nothing is compared"
        assert from_migrations[name] - from_models[name] == set(), f"{name} of migrations only"
        assert from_models[name] - from_migrations[name] == set(), f"{name} of models only"


def test_migrations_go_up_and_down_and_up_again(make_database: Callable[[], str]) -> None:
    url = make_database()
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    config = database.alembic_config(url)
    revisions = [
        script.revision for script in ScriptDirectory.from_config(config).walk_revisions("base")
    ]

    def found() -> dict[str, set[Any]]:
        with engine.connect() as connection:
            return definitions(connection, CATALOG | BEHAVIOR)

    for revision in reversed(revisions):  # each one alone: up, down, up
        command.upgrade(config, revision)
        before = found()
        command.downgrade(config, "-1")
        command.upgrade(config, revision)
        assert found() == before, revision
    assert database.is_migrated(engine)
    newest = found()

    command.downgrade(config, "base")
    with engine.connect() as connection:
        left = fetch(connection, TABLES, schemas=list(SCHEMAS))
        assert left == [("public", "alembic_version")]
        assert fetch(connection, BEHAVIOR["functions"], schemas=list(SCHEMAS)) == []
        assert fetch(connection, "SELECT FROM pg_namespace WHERE nspname = 'sandbox'") == []
    assert not database.is_migrated(engine)

    database.migrate(url)
    assert found() == newest
    database.migrate(url)  # nothing left to do
    assert found() == newest


def test_processes_that_start_together_migrate_an_empty_database_once(
    make_database: Callable[[], str],
) -> None:
    url = make_database()
    script = (
        "import sys, database, alembic.command\n"
        "print('ready', flush=True), sys.stdin.readline()\n"
        "database.migrate(sys.argv[1])"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, url],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=HANG) for process in processes]
    assert [(process.returncode, end) for process, end in zip(processes, ends, strict=True)] == (
        [(0, ("", ""))] * 6
    )
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    assert database.is_migrated(engine)
    with engine.connect() as connection:
        assert fetch(connection, "SELECT count(*) FROM alembic_version") == [(1,)]


# Types and indexes ------------------------------------------------------------------------------


def test_integers_have_64_bits_and_timestamps_a_time_zone(connection: sa.Connection) -> None:
    columns = fetch(
        connection,
        "SELECT table_schema, table_name, column_name, data_type FROM information_schema.columns"
        " WHERE table_schema = ANY(:schemas)",
        schemas=list(SCHEMAS),
    )
    types = {kind for *_, kind in columns}
    assert types <= {
        *("bigint", "boolean", "bytea", "character varying", "jsonb", "text"),
        "timestamp with time zone",
    }, [column for column in columns if column[3] in types]
    ids = {
        f"{table}.{column}": kind
        for _, table, column, kind in columns
        if column == "id" or column.endswith(("amount", "quantity")) or column.startswith("amount")
    }
    assert len(ids) > 10
    assert set(ids.values()) == {"bigint"}, ids


def test_ids_are_made_by_the_database_only(connection: sa.Connection) -> None:
    made = fetch(
        connection,
        "SELECT table_name, identity_generation FROM information_schema.columns"
        " WHERE table_schema = 'public' AND column_name = 'id'",
    )
    assert {generation for _, generation in made} == {"ALWAYS"}, made


def test_every_foreign_key_has_an_index_that_begins_with_its_column(
    connection: sa.Connection,
) -> None:
    without = fetch(
        connection,
        """
        SELECT k.conrelid::regclass::text, k.conname FROM pg_constraint k
        WHERE k.contype = 'f' AND NOT EXISTS (
            SELECT FROM pg_index i
            WHERE i.indrelid = k.conrelid AND i.indkey[0] = k.conkey[1]
            AND (i.indpred IS NULL OR pg_get_expr(i.indpred, i.indrelid) LIKE '%IS NOT NULL%')
        )
        """,
    )
    assert without == []


def pages() -> Iterator[Any]:
    """Every list as the service asks for it: by whom, and narrowed by what."""
    page = schemas.Page(cursor="1000")
    orders, payments = schemas.OrderQuery, schemas.PaymentQuery
    yield pytest.param(
        lambda session: crud.list_payment_methods(
            session, schemas.PaymentMethodQuery(cursor="1000"), "alice"
        ),
        id="payment methods of a user",
    )
    yield pytest.param(
        lambda session: crud.list_order_events(session, "alice", 1, page),
        id="order events",
    )
    yield pytest.param(lambda session: crud.list_refunds(session, "alice", 1, page), id="refunds")
    for user, narrowed in itertools.product(
        (EVERYONE, "alice"), ({}, {"status": "paid"}, {"payment_method_id": 1})
    ):
        yield pytest.param(
            lambda session, user=user, narrowed=narrowed: crud.list_orders(
                session, orders(cursor="1000", **narrowed), user
            ),
            id=f"orders of {user} {narrowed}",
        )
    for user, narrowed in itertools.product(
        (EVERYONE, "alice"), ({}, {"status": "captured"}, {"order_id": 1}, {"needs_review": True})
    ):
        yield pytest.param(
            lambda session, user=user, narrowed=narrowed: crud.list_payments(
                session, payments(cursor="1000", **narrowed), user
            ),
            id=f"payments of {user} {narrowed}",
        )


@pytest.mark.parametrize("read_page", list(pages()))
def test_a_page_is_read_from_an_index_in_its_order(
    read_page: Callable[[Sender], object], connection: sa.Connection
) -> None:
    statements: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, _x: Any, _many: bool) -> None:
        statements.append((statement, parameters))

    sa.event.listen(connection, "before_cursor_execute", note)
    read_page(ConnectionSender(connection))
    ((statement, parameters),) = statements
    # Tables are empty here; so what costs more than an index is forbidden, if there is a choice.
    for way in ("seqscan", "sort", "bitmapscan", "incremental_sort"):
        connection.execute(sa.text(f"SET LOCAL enable_{way} = off"))
    explained = connection.exec_driver_sql(f"EXPLAIN (COSTS OFF) {statement}", parameters)
    plan = "\n".join(explained.scalars())
    assert "Index" in plan
    assert "Seq Scan" not in plan, plan
    assert "Sort" not in plan, plan
