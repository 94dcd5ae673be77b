"""Statements that are written out once and sent as they are, and rows that become JSON there.

Reads are sent alone: one round trip, no transaction around it. PostgreSQL writes the JSON, so that
nothing of a row is taken apart and put together again here. `crud.py` has the statements.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Protocol

import psycopg2
import sqlalchemy as sa
from fastapi import Depends, Request
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

import schemas
from errors import NotFound
from models import LISTS_ALL, LISTS_BY_ONE_FILTER
from permissions import EVERYONE, VisibleTo
from schemas import MAX_ID

_DIALECT = PGDialect_psycopg2()  # type: ignore[no-untyped-call]


class Statement:
    """A statement, written out once. Its parameters are its named bindparams."""

    __slots__ = ("constants", "sql")

    def __init__(self, statement: sa.Select[Any] | str) -> None:
        self.constants: dict[str, Any] = {}
        if isinstance(statement, str):
            self.sql = statement
        else:
            compiled = statement.compile(dialect=_DIALECT)
            self.sql = str(compiled)
            values = compiled.params.items()
            self.constants = {name: value for name, value in values if value is not None}


class Sender(Protocol):
    """Sends statements."""

    def rows(self, statement: Statement, **parameters: Any) -> list[Any]:
        """The rows that it returns, as tuples."""


class SessionSender:
    """Sends statements in the transaction of a session."""

    __slots__ = ("_session",)

    def __init__(self, session: Session) -> None:
        self._session = session

    def rows(self, statement: Statement, **parameters: Any) -> list[Any]:
        connection = self._session.connection()
        sent = connection.exec_driver_sql(statement.sql, statement.constants | parameters)
        return [tuple(row) for row in sent]


class PooledSender:
    """Sends each statement alone, on a connection of the pool: it is a transaction of its own."""

    __slots__ = ("_engine",)

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    @classmethod
    def beside(cls, session: Session) -> PooledSender:
        """For one statement that needs no transaction, where a session would begin one."""
        engine = session.get_bind()
        assert isinstance(engine, sa.Engine)
        return cls(engine)

    def rows(self, statement: Statement, **parameters: Any) -> list[Any]:
        try:
            pooled = self._engine.raw_connection()
        except psycopg2.Error as error:
            raise _wrapped(statement, error) from error
        driver = pooled.driver_connection
        assert driver is not None
        try:
            driver.autocommit = True
            with driver.cursor() as cursor:
                cursor.execute(statement.sql, statement.constants | parameters)
                rows: list[Any] = cursor.fetchall()
        except psycopg2.Error as error:
            if driver.closed:  # the pool's older connections are given up too, as SQLAlchemy does
                self._engine.pool._invalidate(pooled, error)
            raise _wrapped(statement, error, lost=bool(driver.closed)) from error
        finally:
            if not driver.closed:
                driver.autocommit = False
            pooled.close()
        return rows


def _wrapped(statement: Statement, error: psycopg2.Error, *, lost: bool = False) -> Exception:
    """The error as SQLAlchemy raises it, without the parameters."""
    return DBAPIError.instance(
        statement.sql,
        None,
        error,
        psycopg2.Error,
        hide_parameters=True,
        connection_invalidated=lost,
    )


MOMENT = 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'  # RFC 3339 in UTC
NO_FRACTION = ".000000"  # which Pydantic leaves out, too


def moment(column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    """A time as the API shows it."""
    text = sa.func.to_char(sa.func.timezone("UTC", column), MOMENT)
    return sa.func.replace(text, NO_FRACTION, "")


def as_json(query: sa.Select[Any], *beside: str) -> sa.Select[Any]:
    """The rows of a query, each as the text of a JSON object, and these of its columns beside.

    The order of the query is kept: the rows pass through a subquery and nothing else.
    """
    shown = query.subquery("shown")
    text = sa.cast(sa.func.row_to_json(sa.literal_column("shown")), sa.Text)
    return sa.select(text, *(shown.c[name] for name in beside)).select_from(shown)


def _reader(request: Request) -> Sender:
    sender: Sender = request.app.state.sender
    return sender


SenderDep = Annotated[Sender, Depends(_reader)]


# What a resource shows ---------------------------------------------------------------------------


def shown(columns: Any, resource: type[schemas.Out], **special: Any) -> sa.Select[Any]:
    """Those of the columns that a resource shows, by the names that it gives them."""
    shown = {
        name: moment(columns[name]) if name.endswith(("_at", "_before")) else columns[name]
        for name in resource.model_fields
        if name not in special
    } | special
    return sa.select(*[shown[name].label(name) for name in resource.model_fields])


def shown_of(table: str, resource: type[schemas.Out]) -> str:
    """The same as text, of a table whose columns are named as the resource's fields."""
    columns = (
        f"replace(to_char({name} AT TIME ZONE 'UTC', '{MOMENT}'), '{NO_FRACTION}', '') AS {name}"
        if name.endswith("_at")
        else name
        for name in resource.model_fields
    )
    return f"SELECT {', '.join(columns)} FROM {table}"  # noqa: S608 - names of columns


def show(
    sender: Sender,
    query: sa.Select[Any],
    table: Any,
    row_id: int,
    visible_to: VisibleTo,
    **more: Any,
) -> str:
    """The row with this id as JSON, if it is visible to this caller. Raises NotFound."""
    if not 0 < row_id <= MAX_ID:
        raise NotFound
    if visible_to is EVERYONE:
        rows = sender.rows(_one(query, table, False), id=row_id, **more)
    else:
        rows = sender.rows(_one(query, table, True), id=row_id, user_id=visible_to, **more)
    if not rows:
        raise NotFound
    shown: str = rows[0][0]
    return shown


@cache
def _one(query: sa.Select[Any], table: Any, of_user: bool) -> Statement:
    query = query.where(table.c.id == sa.bindparam("id"))
    return Statement(
        as_json(query.where(table.c.user_id == sa.bindparam("user_id")) if of_user else query)
    )


# Pages --------------------------------------------------------------------------------------------

# A row of a list as JSON, and where it is in the list.
Listed = tuple[str, int]


def page_of(query: sa.Select[Any], key: str, *, cursor: bool) -> Statement:
    """One page, newest first, and one row more when there is a next page (keyset pagination)."""
    column = query.selected_columns[key]
    if cursor:
        query = query.where(column < sa.bindparam("cursor"))
    return Statement(as_json(query.order_by(column.desc()).limit(sa.bindparam("limit")), key))


def page_by_time(
    query: sa.Select[Any],
    table: Any,
    *,
    filters: int,
    of_user: bool,
    cursor: bool,
    before: bool = False,
) -> Statement:
    """One page, newest first: by time, and by id where times are the same.

    Ids alone would not do: transactions end in another order than they begin, and clocks are set
    back. The cursor is the id of the last row that was shown, one that is visible too.
    `before`: the list begins at a time; a page begins there or at its cursor, whichever is earlier.
    `filters` is how many of the columns that have an index `query` compares (see `models`).
    """
    time, key = table.c.created_at, table.c.id
    start: Any = sa.bindparam("created_before")
    if cursor:
        last = table.alias("last").c
        last_time, last_key = last.created_at, last.id
        if before:  # ids begin at 1: what is under (before, 0) is what is before it
            last_time = sa.func.least(last.created_at, start)
            last_key = sa.case(
                (last.created_at < start, last.id), else_=sa.literal(0, sa.BigInteger)
            )
        if of_user:  # a cursor of somebody else tells nothing of when that was
            last_time = sa.case((last.user_id == sa.bindparam("user_id"), last_time))
        place = (
            sa.select(last_time, last_key)
            .where(last.id == sa.bindparam("cursor"))
            .scalar_subquery()
        )
        query = query.where(sa.tuple_(time, key) < place)
    elif before:
        query = query.where(time < start)
    if filters <= 1:
        condition = LISTS_BY_ONE_FILTER if filters else LISTS_ALL
        query = query.where(sa.text(f"{table.name}.{condition}"))
    query = query.order_by(time.desc(), key.desc()).limit(sa.bindparam("limit"))
    return Statement(as_json(query, "id"))


def given_of(page: schemas.Page, visible_to: VisibleTo = EVERYONE) -> dict[str, Any]:
    """What a list is asked for, by the names of the statement's parameters."""
    given = {name: value for name, value in page if value is not None}
    given["limit"] = page.limit + 1
    if page.cursor is not None:
        given["cursor"] = min(int(page.cursor), MAX_ID)
    if visible_to is not EVERYONE:
        given["user_id"] = visible_to
    return given
