"""A session of SQLAlchemy with a second, cheaper way to send statements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import psycopg2
import sqlalchemy
from psycopg2 import extensions
from sqlalchemy import orm
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import PoolProxiedConnection

from greenlets import Lender, lender_here

MOST_PREPARED: Final = 200  # statements on a connection; each keeps some ten kilobytes there
# PostgreSQL's codes for a prepared statement that is gone, and for one that is there already: a
# pooler that was not recognized causes both.
THROWN_AWAY: Final = {"26000", "42P05"}
# And for one that returns other columns since a migration.
STALE: Final = {*THROWN_AWAY, "0A000"}


class Written(Protocol):
    """A statement that is written out.

    With a name it is prepared on each connection that sends it: PostgreSQL plans it once.
    """

    @property
    def sql(self) -> str: ...
    @property
    def name(self) -> str | None: ...
    @property
    def preparation(self) -> str: ...
    @property
    def execution(self) -> str: ...


def send(cursor: Any, statement: Written, parameters: Mapping[str, Any], begin: str = "") -> None:
    """Send a statement. Raises psycopg2.Error.

    `begin` is sent before it, in the same message.
    """
    # By name, whether it is prepared there. None: the connection leads to a pooler.
    prepared: dict[str, bool] | None = getattr(cursor.connection, "prepared", None)
    name = statement.name
    if (
        prepared is None
        or name is None
        or (name not in prepared and len(prepared) >= MOST_PREPARED)
    ):
        cursor.execute(begin + statement.sql, parameters)
        return
    try:
        if name not in prepared:
            prepared[name] = False  # if this fails it may be prepared or not
            cursor.execute(f"{begin}{statement.preparation};{statement.execution}", parameters)
            prepared[name] = True
        elif prepared[name]:
            cursor.execute(begin + statement.execution, parameters)
        else:
            cursor.execute(begin + statement.sql, parameters)
    except psycopg2.Error as error:
        if error.pgcode not in STALE:
            raise
        prepared[name] = False
        if error.pgcode in THROWN_AWAY:
            cursor.connection.prepared = None  # so are others, or somebody prepares here too
        if begin:  # nothing was done in this transaction yet
            cursor.execute("ROLLBACK")
        elif cursor.connection.info.transaction_status != extensions.TRANSACTION_STATUS_IDLE:
            raise  # the transaction has failed; it can be tried again
        cursor.execute(begin + statement.sql, parameters)


class Session(orm.Session):
    """A session of SQLAlchemy with a second way to send statements, `rows`.

    Statements that are written out already go straight to the driver, which costs a quarter of the
    time. Both ways share one connection and one transaction, which ends with `commit`, `rollback`
    or `close`; in between the session holds no connection. In a greenlet both wait in the loop.
    """

    def __init__(self, engine: sqlalchemy.Engine) -> None:
        super().__init__(expire_on_commit=False)
        self.engine = engine
        self._driver: Any = None
        self._pooled: PoolProxiedConnection | None = None  # what SQLAlchemy knows it by
        self._lender: Lender | None = None  # None: it is of the engine's pool
        self._connection: sqlalchemy.Connection | None = None
        self._has_begun = False

    def rows(self, statement: Written, **parameters: Any) -> list[Any]:
        """The rows that it returns, as tuples."""
        return self._send(statement, parameters)

    def _send(self, statement: Written, parameters: dict[str, Any]) -> list[Any]:
        driver = self._check_out(statement)
        # The transaction begins with its first statement, in the same message.
        begin = "" if self._has_begun else "BEGIN;"
        self._has_begun = True
        try:
            with driver.cursor() as cursor:
                send(cursor, statement, parameters, begin)
                return cursor.fetchall() if cursor.description is not None else []
        except psycopg2.Error as error:
            of_pool = self._pooled if self._lender is None else None
            raise driver_error(
                self.engine, statement, error, of_pool, lost=bool(driver.closed)
            ) from error

    def get_bind(self, *_: Any, **__: Any) -> sqlalchemy.Connection:
        """The connection of this transaction, for what SQLAlchemy sends itself."""
        if self._connection is None:
            if not self._has_begun:
                self._send(NOTHING, {})
            self._connection = sqlalchemy.Connection(self.engine, self._pooled)
        return self._connection

    def commit(self) -> None:
        if super().in_transaction():
            super().commit()  # flushes; the driver is told below
        if self._has_begun:
            self._send(COMMIT, {})
            self._has_begun = False
        self._give_back()

    def rollback(self) -> None:
        if super().in_transaction():
            super().rollback()
        self._give_back()

    def close(self) -> None:
        super().close()
        self._give_back()

    def in_transaction(self) -> bool:
        return self._driver is not None or super().in_transaction()

    def _check_out(self, statement: Written) -> Any:
        if self._driver is not None:
            return self._driver
        self._lender = lender_here(self.engine)
        try:
            if self._lender is not None:
                self._driver = self._lender.acquire()
                self._pooled = self._driver.detached
            else:
                self._pooled = self.engine.raw_connection()
                self._driver = self._pooled.driver_connection
                self._driver.autocommit = True  # BEGIN and COMMIT are ours
        except psycopg2.Error as error:
            raise driver_error(self.engine, statement, error) from error
        return self._driver

    def _give_back(self) -> None:
        """Give the connection back, without what was not committed."""
        driver, self._driver = self._driver, None
        pooled, self._pooled, self._connection = self._pooled, None, None
        lender, self._lender = self._lender, None
        has_begun, self._has_begun = self._has_begun, False
        if driver is None:
            return
        error = None
        if has_begun and not driver.closed:
            try:
                with driver.cursor() as cursor:
                    cursor.execute("ROLLBACK")
            except psycopg2.Error as raised:
                error = raised
        assert pooled is not None
        if lender is not None:
            # SQLAlchemy gives a connection up that it thinks is lost.
            lender.release(driver, broken=error is not None or not pooled.is_valid)
            return
        if error is not None:
            pooled.invalidate(error)
        elif not driver.closed:
            driver.autocommit = False
        pooled.close()


def driver_error(
    engine: sqlalchemy.Engine,
    statement: Written | None,
    error: psycopg2.Error,
    pooled: PoolProxiedConnection | None = None,
    *,
    lost: bool = False,
) -> Exception:
    """The driver's error as SQLAlchemy raises it, without the parameters.

    If `pooled` is lost, the pool's older connections are given up too, as SQLAlchemy does.
    """
    driver: Any = None if pooled is None else pooled.driver_connection
    if pooled is not None and (driver is None or driver.closed):
        lost = True
        engine.pool._invalidate(pooled, error)
    return DBAPIError.instance(
        None if statement is None else statement.sql,
        None,
        error,
        psycopg2.Error,
        hide_parameters=True,
        connection_invalidated=lost,
    )


@dataclass(frozen=True, slots=True)
class _Fixed:
    sql: str
    name: None = None
    preparation: str = ""
    execution: str = ""


COMMIT: Final = _Fixed("COMMIT")
NOTHING: Final = _Fixed("")  # begins a transaction and does nothing in it
