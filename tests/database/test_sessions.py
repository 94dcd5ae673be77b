"""A session sends statements in two ways and is one transaction all the same; and `Changes`."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, OperationalError

import database
from sessions import Session
from statements import Changes, Statement

METADATA = sa.MetaData()
THINGS = sa.Table(
    "things", METADATA, sa.Column("id", sa.Integer, primary_key=True), sa.Column("note", sa.Text)
)
ADD = Statement("INSERT INTO things VALUES (%(id)s, %(note)s) RETURNING id")
COUNT = Statement("SELECT count(*) FROM things")


@pytest.fixture(scope="module")
def things(make_database: Callable[[], str]) -> Iterator[sa.Engine]:
    """An engine with one connection, and a table."""
    engine = database.create_engine(make_database(), pool_size=1)
    METADATA.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def session(things: sa.Engine) -> Iterator[Session]:
    with things.begin() as connection:
        connection.execute(THINGS.delete())
    with database.new_session(things) as session:
        yield session


def count(engine: sa.Engine) -> int:
    """What is committed. It needs the one connection, so nobody else may hold it."""
    with engine.connect() as connection:
        return int(connection.scalar(sa.select(sa.func.count()).select_from(THINGS)) or 0)


def test_both_ways_are_one_transaction(session: Session, things: sa.Engine) -> None:
    for raw_first in (True, False):
        with database.phase(session):
            if raw_first:
                session.rows(ADD, id=1, note="raw")
            session.execute(THINGS.insert().values(id=2, note="SQLAlchemy"))
            assert session.rows(COUNT) == [(2 if raw_first else 1,)]
            if not raw_first:
                session.rows(ADD, id=1, note="raw")
        assert count(things) == 2
        with things.begin() as connection:
            connection.execute(THINGS.delete())


def test_an_error_takes_back_what_was_sent_in_either_way(
    session: Session, things: sa.Engine
) -> None:
    def write_and_fail() -> None:
        with database.phase(session):
            session.rows(ADD, id=1, note="raw")
            session.execute(THINGS.insert().values(id=2))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert count(things) == 0


def test_what_nobody_commits_is_not_there(session: Session, things: sa.Engine) -> None:
    session.rows(ADD, id=1, note="raw")
    session.close()
    assert count(things) == 0


def test_what_a_forgotten_session_has_begun_is_committed_by_nobody(things: sa.Engine) -> None:
    with things.begin() as connection:
        connection.execute(THINGS.delete())
    forgotten = database.new_session(things)
    forgotten.rows(ADD, id=1, note="half")
    del forgotten
    gc.collect()
    with database.new_session(things) as session, database.phase(session):
        session.rows(ADD, id=2, note="another's")
    assert count(things) == 1


def test_errors_are_those_of_sqlalchemy_without_the_values(
    session: Session, things: sa.Engine
) -> None:
    session.rows(ADD, id=1, note="secret")
    with pytest.raises(IntegrityError) as refused:
        session.rows(ADD, id=1, note="secret")
    assert database.sqlstate(refused.value) == "23505"
    assert refused.value.params is None
    session.rollback()
    assert count(things) == 0


def test_a_lost_connection_is_not_used_again(session: Session, things: sa.Engine) -> None:
    with pytest.raises(OperationalError) as lost, database.phase(session):
        session.rows(Statement("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert lost.value.connection_invalidated
    with database.phase(session):
        session.rows(ADD, id=1, note="after")
    assert count(things) == 1


def test_connections_are_as_before_for_others(session: Session, things: sa.Engine) -> None:
    """SQLAlchemy's own transactions are transactions still."""
    with database.phase(session):
        session.rows(COUNT)
    with things.connect() as connection:
        connection.execute(THINGS.insert().values(id=1))
        connection.rollback()
    assert count(things) == 0


# Changes -----------------------------------------------------------------------------------------


def test_changes_are_one_statement(session: Session, things: sa.Engine) -> None:
    changes = Changes()
    changes.insert(THINGS, [{"id": 1, "note": None}, {"id": 2, "note": "two"}])
    with database.phase(session):
        assert list(changes.send(session)) == [2]
    changes = Changes()
    changes.update(THINGS, {"id": 1}, {"note": "one"})
    changes.update(THINGS, {"id": 2}, {"note": "2"}, condition="note IS NULL")
    changes.insert(THINGS, [{"id": 2, "note": "again"}], once=True)
    with database.phase(session):
        assert list(changes.send(session)) == [1, 0, 0]
    with things.connect() as connection:
        rows = connection.execute(sa.select(THINGS.c.id, THINGS.c.note).order_by("id")).all()
    assert [tuple(row) for row in rows] == [(1, "one"), (2, "two")]


def test_nothing_is_sent_for_no_changes(session: Session) -> None:
    assert list(Changes().send(session)) == []
    assert not session.in_transaction()


class Missing(Exception):
    pass


def test_what_is_required_takes_back_the_whole(session: Session, things: sa.Engine) -> None:
    changes = Changes()
    changes.insert(THINGS, [{"id": 1, "note": "one"}])
    changes.update(THINGS, {"id": 7}, {"note": "seven"}, required=Missing())
    with pytest.raises(Missing), database.phase(session):
        changes.send(session)
    assert count(things) == 0


def test_a_row_that_is_there_already_can_be_an_error_of_ours(
    session: Session, things: sa.Engine
) -> None:
    for required in (None, Missing()):
        if required is not None:
            with pytest.raises(Missing), database.phase(session):
                _insert(session, required)
        else:
            with database.phase(session):
                _insert(session, None)
    with pytest.raises(IntegrityError), database.phase(session):
        _insert(session, None)
    assert count(things) == 1


def _insert(session: Session, required: Exception | None) -> None:
    changes = Changes()
    changes.insert(THINGS, [{"id": 1, "note": "one"}], required=required)
    changes.send(session)
