"""Statements that PostgreSQL plans once for a connection, and what can come between."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

import database
import sessions
from database import retry_transaction
from sessions import Session
from statements import PooledSender, Statement
from tests.support.database import sql
from tests.support.postgres_proxy import PostgresProxy

PREPARED = "SELECT name FROM pg_prepared_statements"


@pytest.fixture
def lone(make_database: Callable[[], str]) -> Iterator[sa.Engine]:
    """An engine with one connection, and a table with one row."""
    engine = database.create_engine(make_database(), pool_size=1)
    sql(engine, "CREATE TABLE things (id int PRIMARY KEY, note varchar(9))")
    sql(engine, "INSERT INTO things VALUES (1, 'one')")
    yield engine
    engine.dispose()


def by_id() -> Statement:
    return Statement("SELECT note FROM things WHERE id = %(id)s AND note <> '%%'", prepare=True)


def names(engine: sa.Engine) -> list[str]:
    return [row.name for row in sql(engine, PREPARED)]


def test_a_statement_is_prepared_once_and_sent_by_its_name(lone: sa.Engine) -> None:
    sender, statement = PooledSender(lone), by_id()
    for _ in range(3):
        assert sender.rows(statement, id=1) == [("one",)]
        assert names(lone) == [statement.name]
    assert statement.name is not None
    assert statement.name.startswith("things_")


def test_the_transaction_of_a_session_prepares_and_uses_it(lone: sa.Engine) -> None:
    statement = by_id()
    with database.new_session(lone) as session:
        for _ in range(2):
            with database.phase(session):
                assert session.rows(statement, id=1) == [("one",)]
                assert session.rows(statement, id=2) == []
    assert names(lone) == [statement.name]


def test_what_was_prepared_in_a_transaction_that_failed_is_sent_all_the_same(
    lone: sa.Engine,
) -> None:
    add = Statement("INSERT INTO things VALUES (%(id)s, 'two') RETURNING id", prepare=True)
    sender = PooledSender(lone)
    with pytest.raises(DBAPIError):
        sender.rows(add, id=1)
    assert sender.rows(add, id=2) == [(2,)]
    assert sender.rows(add, id=3) == [(3,)]


def test_nothing_is_prepared_behind_a_pooler(lone: sa.Engine) -> None:
    """A pooler tells each client the number of a process that is not PostgreSQL's."""
    with PostgresProxy(lone.url.render_as_string(hide_password=False), pooler=True) as proxy:
        engine = database.create_engine(proxy.url, pool_size=1)
        assert PooledSender(engine).rows(by_id(), id=1) == [("one",)]
        assert names(engine) == []
        engine.dispose()


def test_what_somebody_else_has_thrown_away_is_sent_as_it_is(lone: sa.Engine) -> None:
    sender, statement = PooledSender(lone), by_id()
    sender.rows(statement, id=1)
    sql(lone, "DEALLOCATE ALL")
    assert sender.rows(statement, id=1) == [("one",)]


def test_what_somebody_else_has_prepared_by_that_name_is_not_used(lone: sa.Engine) -> None:
    statement = by_id()
    sql(lone, f"PREPARE {statement.name} AS SELECT 'other'")
    assert PooledSender(lone).rows(statement, id=1) == [("one",)]


def test_a_migration_that_changes_a_column_stops_nobody(lone: sa.Engine) -> None:
    sender, statement = PooledSender(lone), by_id()
    sender.rows(statement, id=1)
    sql(lone, "ALTER TABLE things ALTER note TYPE char(5)")
    assert sender.rows(statement, id=1) == [("one  ",)]


def test_a_transaction_whose_plan_is_stale_is_tried_again(lone: sa.Engine) -> None:
    statement, first = by_id(), Statement("SELECT 1")
    for _ in range(2):
        with database.new_session(lone) as session:

            def work(session: Session = session) -> list[tuple[str]]:
                with database.phase(session):
                    session.rows(first)
                    return session.rows(statement, id=1)

            assert retry_transaction(session, work) == [("one",)]
        sql(lone, "DEALLOCATE ALL")


def test_the_first_statement_of_a_transaction_is_sent_again_at_once(lone: sa.Engine) -> None:
    """Nothing was done yet, so nobody has to know."""
    statement = by_id()
    with database.new_session(lone) as session:
        for _ in range(2):
            with database.phase(session):
                assert session.rows(statement, id=1) == [("one",)]
                assert session.rows(Statement("SELECT now() < clock_timestamp()")) == [(True,)]
            sql(lone, "DEALLOCATE ALL")


def test_who_has_lost_one_statement_does_not_ask_for_the_others(lone: sa.Engine) -> None:
    """All are gone, or the server's session is another one."""
    first, second = by_id(), Statement("SELECT note FROM things", prepare=True)
    with database.new_session(lone) as session:
        for _ in range(3):
            with database.phase(session):
                assert session.rows(first, id=1) == session.rows(second) == [("one",)]
            sql(lone, "DEALLOCATE ALL")


def test_a_connection_keeps_so_many_and_no_more(
    lone: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MOST_PREPARED", 2)
    for number in range(4):
        statement = Statement(f"SELECT {number} FROM things WHERE id = %(id)s", prepare=True)
        assert PooledSender(lone).rows(statement, id=1) == [(number,)]
    assert len(names(lone)) == 2


def test_a_name_stands_for_one_statement_in_every_process() -> None:
    """Processes that share sessions of the server execute by name what another has prepared."""
    one, again = by_id(), by_id()
    other = Statement("UPDATE things SET note = '' WHERE id = %(id)s RETURNING id", prepare=True)
    assert one.name == again.name != other.name
