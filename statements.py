"""Statements that are written out once and sent as they are, and rows that become JSON there.

Reads are sent alone: one round trip, no transaction around it. PostgreSQL writes the JSON, so that
nothing of a row is taken apart and put together again here. `crud.py` has the statements.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from itertools import count
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar

import psycopg2
import sqlalchemy as sa
from fastapi import Depends, Request
from psycopg2 import extensions
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2

import schemas
from errors import NotFound
from greenlets import Lender, lender_here
from models import Dispute, Order, Payment, Refund
from permissions import EVERYONE, VisibleTo
from rows import (
    DisputeRow,
    OrderRow,
    PaymentMethodRow,
    PaymentRow,
    RefundRow,
    columns_of,
)
from schemas import MAX_ID
from sessions import Session, driver_error, send

T = TypeVar("T")
_DIALECT = PGDialect_psycopg2()  # type: ignore[no-untyped-call]


class Statement:
    """A statement, written out once. Its parameters are its named bindparams.

    `prepare` it if its plan is the same whatever they are: a row by its id, an insert. The plan of
    a list depends on whose it is.
    """

    __slots__ = ("execution", "name", "preparation", "sql")

    def __init__(self, statement: sa.Select[Any] | str, *, prepare: bool = False) -> None:
        if isinstance(statement, str):
            self.sql = statement
        else:
            compiled = statement.compile(dialect=_DIALECT)
            self.sql = str(compiled)
            for name, value in compiled.params.items():
                if value is not None:  # what never changes is written out, too
                    self.sql = self.sql.replace(f"%({name})s", _literal(value))
        self.name: str | None = None
        self.preparation = self.execution = ""
        if prepare:
            self._prepare()

    def _prepare(self) -> None:
        """Name it after its table: pg_stat_activity shows the name in the place of the text.

        No other statement has the name, in no process and no release: what a pooler that was not
        recognized lends us may hold statements of others, and none of them is executed for ours.
        """
        [table] = _TABLE.findall(self.sql)[:1] or ["statement"]
        self.name = f"{table}_{hashlib.sha256(self.sql.encode()).hexdigest()[:16]}"
        # Each place has a number of its own, for it has a type of its own: text or varchar.
        numbers = count(1)
        names = _PARAMETER.findall(self.sql)
        text = _PARAMETER.sub(lambda _: f"${next(numbers)}", self.sql)
        self.preparation = f"PREPARE {self.name} AS {text}"
        values = ", ".join(f"%({name})s" for name in names)
        self.execution = f"EXECUTE {self.name}({values})" if names else f"EXECUTE {self.name}"


_PARAMETER = re.compile(r"%\((\w+)\)s")
_TABLE = re.compile(r"(?:INTO|UPDATE|FROM|JOIN) (?:sandbox\.)?([a-z_]+)")


def _literal(value: Any) -> str:
    if isinstance(value, str):
        quoted = "'{}'".format(value.replace("'", "''"))
    else:
        quoted = extensions.adapt(value).getquoted().decode()
    return quoted.replace("%", "%%")


class Sender(Protocol):
    """Sends statements: a session, in its transaction, or `PooledSender`, each alone."""

    def rows(self, statement: Statement, **parameters: Any) -> list[Any]:
        """The rows that it returns, as tuples."""


class PooledSender:
    """Sends each statement alone: it is a transaction of its own.

    In a greenlet of the event loop it waits in the loop, on one of the loop's connections. Anywhere
    else its thread waits, on a connection of the engine's pool.
    """

    __slots__ = ("_engine",)

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    @classmethod
    def beside(cls, session: Session) -> PooledSender:
        """For one statement that needs no transaction, where a session would begin one."""
        return cls(session.engine)

    def rows(self, statement: Statement, **parameters: Any) -> list[Any]:
        lender = lender_here(self._engine)
        if lender is not None:
            return self._rows_in_loop(lender, statement, parameters)
        try:
            pooled = self._engine.raw_connection()
        except psycopg2.Error as error:
            raise driver_error(self._engine, statement, error) from error
        driver = pooled.driver_connection
        assert driver is not None
        try:
            driver.autocommit = True
            with driver.cursor() as cursor:
                send(cursor, statement, parameters)
                rows: list[Any] = cursor.fetchall()
        except psycopg2.Error as error:
            raise driver_error(self._engine, statement, error, pooled) from error
        finally:
            if not driver.closed:
                driver.autocommit = False
            pooled.close()
        return rows

    def _rows_in_loop(
        self, lender: Lender, statement: Statement, parameters: dict[str, Any]
    ) -> list[Any]:
        try:
            driver = lender.acquire()
        except psycopg2.Error as error:
            raise driver_error(self._engine, statement, error) from error
        try:
            cursor = driver.cursor()
            send(cursor, statement, parameters)
            rows: list[Any] = cursor.fetchall()
        except psycopg2.Error as error:
            raise driver_error(self._engine, statement, error, lost=bool(driver.closed)) from error
        finally:
            lender.release(driver)
        return rows


MOMENT = 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'  # RFC 3339 in UTC
NO_FRACTION = ".000000"  # which Pydantic leaves out, too


def moment(column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    """A time as the API shows it."""
    text = sa.func.to_char(sa.func.timezone("UTC", column), MOMENT)
    return sa.func.replace(text, NO_FRACTION, "")


def as_json(query: sa.Select[Any]) -> sa.Select[Any]:
    """The rows of a query, each as the text of a JSON object."""
    shown = query.subquery("shown")
    text = sa.cast(sa.func.row_to_json(sa.literal_column("shown")), sa.Text)
    return sa.select(text).select_from(shown)


def _sender(request: Request) -> Sender:
    sender: Sender = request.app.state.sender
    return sender


SenderDep = Annotated[Sender, Depends(_sender)]


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
    return f"SELECT {', '.join(columns)} FROM {table}"


def show(
    sender: Sender,
    query: sa.Select[Any],
    table: Any,
    row_id: int,
    visible_to: VisibleTo,
    **more: Any,
) -> str:
    """The row with this id as JSON, if it is visible to this caller. Raises NotFound."""
    if not is_id(row_id):
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
        as_json(query.where(table.c.user_id == sa.bindparam("user_id")) if of_user else query),
        prepare=True,
    )


# Pages --------------------------------------------------------------------------------------------

SEPARATOR = ",\n"  # between the rows of a list: no JSON that PostgreSQL writes holds a line break


class Listed(NamedTuple):
    """The rows of one page, and one row more when there is a next page, as PostgreSQL writes them:
    one text for all of them, because each row of an answer costs as much again as its statement."""

    rows: str | None  # None: there are none
    number: int
    last: int | None  # the key of the last row of the page, if there is a next one

    def page(self, limit: int) -> str:
        """The rows of the page as a JSON array."""
        rows = self.rows or ""
        return f"[{rows[: rows.rindex(SEPARATOR)] if self.number > limit else rows}]"


NO_ROWS = Listed(None, 0, None)


def list_of(sender: Sender, statement: Statement, given: dict[str, Any]) -> Listed:
    return Listed._make(sender.rows(statement, **given)[0])


def _as_list(query: sa.Select[Any], key: str) -> Statement:
    """The rows of a query as `Listed`, in its order: they pass through a subquery, nothing else."""
    query = query.limit(sa.bindparam("limit"))
    shown = query.subquery("shown")
    text = sa.cast(sa.func.row_to_json(sa.literal_column("shown")), sa.Text)
    keys = sa.func.array_agg(shown.c[key], type_=sa.ARRAY(sa.BigInteger))
    return Statement(
        sa.select(
            sa.func.string_agg(text, SEPARATOR),
            sa.func.count(),
            keys[sa.bindparam("limit", type_=sa.Integer) - 1],
        ).select_from(shown)
    )


def page_of(query: sa.Select[Any], key: str, *, cursor: bool) -> Statement:
    """One page, newest first, and one row more when there is a next page (keyset pagination)."""
    column = query.selected_columns[key]
    if cursor:
        query = query.where(column < sa.bindparam("cursor"))
    return _as_list(query.order_by(column.desc()), key)


def page_by_time(
    query: sa.Select[Any],
    table: Any,
    *,
    of_user: bool,
    cursor: bool,
    before: bool = False,
    condition: str | None = None,
) -> Statement:
    """One page, newest first: by time, and by id where times are the same.

    Ids alone would not do: transactions end in another order than they begin, and clocks are set
    back. The cursor is the id of the last row that was shown, one that is visible too.
    `before`: the list begins at a time; a page begins there or at its cursor, whichever is earlier.
    `condition` keeps the list to its index (see `LISTS_ALL` in models.py).
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
    if condition is not None:
        query = query.where(sa.text(f"{table.name}.{condition}"))
    return _as_list(query.order_by(time.desc(), key.desc()), "id")


def given_of(page: schemas.Page, visible_to: VisibleTo = EVERYONE) -> dict[str, Any]:
    """What a list is asked for, by the names of the statement's parameters."""
    given = {name: value for name, value in vars(page).items() if value is not None}
    given["limit"] = page.limit + 1
    if page.cursor is not None:
        given["cursor"] = min(int(page.cursor), MAX_ID)
    if visible_to is not EVERYONE:
        given["user_id"] = visible_to
    return given


# Lists of columns -------------------------------------------------------------------------------


def listed(kind: type, table: Any, alias: str) -> str:
    """The columns that a row is made of, as SQL lists them."""
    return ", ".join(f"{alias}.{table.c[name].name}" for name in columns_of(kind))


METHOD_LIST = ", ".join(f"m.{name}" for name in PaymentMethodRow._fields)
ORDER_LIST = listed(OrderRow, Order.__table__, "o")
PAYMENT_LIST = listed(PaymentRow, Payment.__table__, "p")
REFUND_LIST = listed(RefundRow, Refund.__table__, "r")
DISPUTE_LIST = listed(DisputeRow, Dispute.__table__, "d")
ORDER_WIDTH = len(columns_of(OrderRow))
PAYMENT_WIDTH = len(columns_of(PaymentRow))


def is_id(value: int | None) -> bool:
    """Whether a row can have this id; PostgreSQL refuses to compare with larger numbers."""
    return value is not None and 0 < value <= MAX_ID


def possible_id(value: int) -> int | None:
    """The id, or NULL, which is no row's, for what cannot be one."""
    return value if is_id(value) else None


# Writes -----------------------------------------------------------------------------------------


class Changes:
    """Updates and inserts that are sent as one statement, each a common table expression.

    PostgreSQL does all of it or nothing. No part sees what another one writes, so no row may be
    changed by two parts.
    """

    __slots__ = ("_parameters", "_parts", "_required")

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._parameters: dict[str, Any] = {}
        self._required: dict[int, Exception] = {}

    def update(
        self,
        table: sa.Table,
        where: Mapping[str, Any],
        values: Mapping[str, Any],
        *,
        condition: str = "true",
        required: Exception | None = None,
    ) -> int:
        """Update the row that has these values in these columns; `condition` is more SQL.

        Returns the number of this part. `required` is raised if there is no such row.
        """
        assignments = ", ".join(
            f"{table.c[name].name} = {self._parameter(value)}" for name, value in values.items()
        )
        is_it = " AND ".join(
            f"{table.c[name].name} = {self._parameter(value)}" for name, value in where.items()
        )
        return self._add(
            f"UPDATE {table.fullname} SET {assignments} WHERE {is_it} AND {condition} RETURNING 1",
            required,
        )

    def insert(
        self,
        table: sa.Table,
        rows: Sequence[Mapping[str, Any]],
        *,
        once: bool = False,
        required: Exception | None = None,
    ) -> int:
        """Insert rows, which have the same columns.

        One that is there already is an IntegrityError; with `once` nothing happens then, with
        `required` this is raised.
        """
        columns = ", ".join(table.c[name].name for name in rows[0])
        values = ", ".join(
            f"({', '.join(self._parameter(value) for value in row.values())})" for row in rows
        )
        conflict = " ON CONFLICT DO NOTHING" if once or required is not None else ""
        return self._add(
            f"INSERT INTO {table.fullname} ({columns}) VALUES {values}{conflict} RETURNING 1",
            required,
        )

    def send(self, sender: Sender) -> Sequence[int]:
        """Send all parts, if there are any; how many rows each of them has written.

        Raises what a part requires, after which the transaction is to be rolled back.
        """
        if not self._parts:
            return ()
        names = [f"part_{number}" for number in range(len(self._parts))]
        parts = ", ".join(
            f"{name} AS ({part})" for name, part in zip(names, self._parts, strict=True)
        )
        counts = ", ".join(f"(SELECT count(*) FROM {name})" for name in names)
        statement = _written(f"WITH {parts} SELECT {counts}")
        counted: Sequence[int]
        [counted] = sender.rows(statement, **self._parameters)
        for number, error in self._required.items():
            if not counted[number]:
                raise error
        return counted

    def _add(self, part: str, required: Exception | None) -> int:
        number = len(self._parts)
        self._parts.append(part)
        if required is not None:
            self._required[number] = required
        return number

    def _parameter(self, value: Any) -> str:
        name = f"p{len(self._parameters)}"
        self._parameters[name] = json.dumps(value) if isinstance(value, (dict, list)) else value
        return f"%({name})s"


@lru_cache(maxsize=256)  # what changes together does so in few combinations
def _written(sql: str) -> Statement:
    return Statement(sql, prepare=True)
