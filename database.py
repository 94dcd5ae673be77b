"""The way to PostgreSQL: engine, sessions, transactions, migrations. No SQL of the service.

Where the server is (the embedded one or DATABASE_URL) is decided here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import sqlalchemy
from alembic.config import Config as AlembicConfig
from fastapi import Depends, Request
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

import postgres_server
import wakeup
from config import ROOT, Settings

T = TypeVar("T")

# One number for the whole process: as many database connections as worker threads that use them
# (see routers/route.py). More would only move the queue into PostgreSQL.
POOL_SIZE = 10
POOL_WAIT_SECONDS = 10.0  # a money phase waits this long for a connection, then 503

# A transaction is repeated this often at most when PostgreSQL gave it up for a deadlock or a
# serialization failure; the third failure is not bad luck any more.
MAX_ATTEMPTS = 3
SERIALIZATION_FAILURE, DEADLOCK = "40001", "40P01"

# Every wait has an end. The gateway is never called inside a transaction, so seconds are enough.
SESSION_OPTIONS = {
    "timezone": "UTC",
    "statement_timeout": "10s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "15s",
}


def database_url(settings: Settings) -> str:
    """The server's address; starts or joins the embedded server when DATABASE_URL is unset."""
    url = settings.database_url or postgres_server.ensure_running(settings.data_dir)
    # People write postgres:// or postgresql://; SQLAlchemy 2.1 would take psycopg 3 for both.
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg2://", url)


def open_database(settings: Settings) -> sqlalchemy.Engine:
    """Start or join the server, bring the schema up to date, and return an engine for it."""
    url = database_url(settings)
    migrate(url)
    engine = create_engine(url)
    if settings.database_url is None:
        # Even the embedded server's supervisor can be killed: a new connection starts it again.
        sqlalchemy.event.listen(
            engine, "do_connect", lambda *_: _keep_running(settings.data_dir), retval=True
        )
    return engine


def _keep_running(data_dir: Path) -> None:
    postgres_server.ensure_running(data_dir)  # a millisecond when it runs already


def create_engine(url: str, *, pool_size: int = POOL_SIZE) -> sqlalchemy.Engine:
    """An engine whose connections have a time limit for everything."""
    return sqlalchemy.create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_WAIT_SECONDS,
        pool_use_lifo=True,  # a quiet service lets the idle ones go cold, a busy one keeps few hot
        hide_parameters=True,  # parameters never reach an exception's text
        connect_args={
            "connect_timeout": 5,
            "application_name": "estore-payments",
            "options": " ".join(f"-c {name}={value}" for name, value in SESSION_OPTIONS.items()),
        },
    )


async def get_session(request: Request) -> Session:
    """A session that has no connection until its first statement.

    The route that ran the endpoint closes it, in the same thread (see routers/route.py).
    """
    return new_session(request.app.state.engine)


def new_session(engine: sqlalchemy.Engine) -> Session:
    return Session(engine, expire_on_commit=False)


@contextmanager
def autocommit(engine: sqlalchemy.Engine) -> Iterator[Session]:
    """A session for one statement that is sent alone, with no BEGIN and ROLLBACK around it.

    SQLAlchemy's own AUTOCOMMIT sends a SET when it is over, for the whole session at that.
    """
    with engine.connect() as connection:
        driver = connection.connection.dbapi_connection
        assert driver is not None
        try:
            driver.autocommit = True
            with Session(connection) as session:
                yield session
            driver.autocommit = False
        except BaseException:
            connection.invalidate()  # nobody's transaction may run on it as it is
            raise


SessionDep = Annotated[Session, Depends(get_session)]


@contextmanager
def phase(session: Session) -> Iterator[Session]:
    """One transaction: commits at its end, rolls back on any error, frees the connection.

    Between two phases no connection is held, so that is where a gateway is called.
    """
    with session.begin():
        yield session
    session.info["committed"] = True
    if session.info.pop("wakes", False):
        wakeup.wake()


def wake_after_commit(session: Session) -> None:
    """This transaction makes work that is due now: the workers look once it is committed."""
    session.info["wakes"] = True


def repeat(session: Session, work: Callable[[], T]) -> T:
    """Run `work`, again when PostgreSQL gave its transaction up for a deadlock.

    Only what has not committed anything yet is repeated: past its first phase, work may have
    asked a gateway, and the reconciler finishes it instead.
    """
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            return work()
        except DBAPIError as error:
            code = getattr(error.orig, "pgcode", None)
            given_up = code in (SERIALIZATION_FAILURE, DEADLOCK)
            if not given_up or session.info.get("committed") or attempt == MAX_ATTEMPTS:
                raise
            session.rollback()
    raise AssertionError("unreachable")


def migrate(url: str) -> None:
    """Bring the schema up to date. Safe in any number of processes at once."""
    from alembic import command

    command.upgrade(alembic_config(url), "head")


def is_migrated(engine: sqlalchemy.Engine) -> bool:
    """Whether the schema is the one that this code was written for."""
    from alembic.runtime.migration import MigrationContext

    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision() == _newest_revision()


@lru_cache(maxsize=1)
def _newest_revision() -> str | None:
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(alembic_config("")).get_current_head()


def alembic_config(url: str) -> AlembicConfig:
    config = AlembicConfig(ROOT / "alembic.ini")
    config.attributes["url"] = url
    return config


NOW = sqlalchemy.func.now()  # the start of the transaction, by the database's clock


def seconds_from_now(seconds: Any) -> Any:
    """A time by the database's clock, in SQL; in the past for a negative number."""
    return NOW + sqlalchemy.func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def age(column: Any) -> Any:
    """Seconds since then by the database's clock, in SQL."""
    return sqlalchemy.func.extract("epoch", NOW - column)
