"""PostgreSQL: engine, time limits, sessions, transactions, migrations. No SQL of the service.

Only this module decides where the server is: the embedded one, or DATABASE_URL.
"""

from __future__ import annotations

import re
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, TypeVar

import psycopg2
import sqlalchemy
from fastapi import Depends, Request
from psycopg2 import extensions
from sqlalchemy import Executable, orm
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.pool import PoolProxiedConnection

import postgres_server
import wakeup
from config import ROOT, ConfigurationError, Settings
from observability.logs import get_logger
from sessions import STALE, Session

if TYPE_CHECKING:
    from alembic.config import Config as AlembicConfig

T = TypeVar("T")
RowType = TypeVar("RowType")
log = get_logger()

# Connections of a process. More would only move the queue into PostgreSQL.
POOL_SIZE = 10  # for background roles, requests without a token, and rare ways of the sandbox
# For what the event loop waits for. Changes have connections of their own: they may wait for a
# lock, and nobody who reads waits with them.
READ_CONNECTIONS = 10
WRITE_CONNECTIONS = 10
RESERVED_CONNECTIONS = 20  # connections of the embedded server for operators' commands

# A transaction runs this often at most when PostgreSQL ends it for a deadlock or a serialization
# failure. A third failure has another cause.
MAX_ATTEMPTS = 3
SERIALIZATION_FAILURE, DEADLOCK = "40001", "40P01"
UNDEFINED_TABLE = "42P01"

VERSIONS = ROOT / "migrations" / "versions"
# Any number that no other application uses on this database.
MIGRATION_LOCK = 7_233_105_944_871
# Seconds to wait for another process that migrates; indexes of large tables take long.
MIGRATION_WAIT, MIGRATION_PAUSE = 3600.0, 0.2


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Seconds that PostgreSQL may take, so that every wait has an end."""

    connect: float = 5.0
    # The gateway is never called inside a transaction, so seconds are enough. None: no limit.
    statement: float | None = 10.0
    lock: float = 5.0


SERVING: Final = TimeLimits()
PROBING: Final = TimeLimits(connect=2.0, statement=2.0)  # a probe is repeated anyway
# Requests queue behind a table lock that a migration waits for. If something holds the table for
# longer than a request (a dump), the migration fails and can be repeated.
MIGRATING: Final = TimeLimits(statement=None, lock=15.0)

# The server ends a statement that takes too long, and reports it. If the report does not arrive
# within this time after the limit, the connection is dead.
RESPONSE_GRACE_SECONDS: Final = 0.5
# What connecting may take after an answer was missed, doubled each time up to TimeLimits.connect.
# Short at first, because requests that waited for the missing answer wait for this, too; longer
# later, so that a slow server is reached.
TRIAL_SECONDS: Final = 1.0
MAX_FAILURES_COUNTED: Final = 10  # enough to reach any limit, without overflow
# After a failure no request tries for a moment: those that come have waited long already.
TRIAL_PAUSE: Final = 0.5
# Longer than both, so that a request in the queue learns why there is no connection.
POOL_WAIT_SECONDS: Final = 2.0
UNRESPONSIVE: Final = "the database does not answer"

SESSION_OPTIONS = {
    "timezone": "UTC",
    "idle_in_transaction_session_timeout": "15s",
}

# How the kernel learns that the other end is gone. Unix sockets ignore all of it.
TCP_OPTIONS = {
    "keepalives": 1,
    # Seconds. An idle connection stays known to firewalls and load balancers, which forget it after
    # minutes, and a dead one is found before a request is given it.
    "keepalives_idle": 30,
    "keepalives_interval": 5,
    "keepalives_count": 3,  # where there is no tcp_user_timeout (macOS): dead after 45 s
    # Milliseconds without an acknowledgment. Enough for some four retransmissions, and less than
    # the connect limit, so that the next of several hosts is tried.
    "tcp_user_timeout": 4000,
}


def check_connections(settings: Settings) -> None:
    """Raises ConfigurationError if the processes could want more connections than the embedded
    server has. Operators size any other server."""
    of_worker = POOL_SIZE + READ_CONNECTIONS + WRITE_CONNECTIONS + 1  # the probe's
    wanted = settings.workers * of_worker
    _require_address(settings.database_url)
    if (
        settings.database_url is None
        and wanted > postgres_server.MAX_CONNECTIONS - RESERVED_CONNECTIONS
    ):
        most = (postgres_server.MAX_CONNECTIONS - RESERVED_CONNECTIONS) // of_worker
        raise ConfigurationError(
            f"WORKERS is more than the embedded PostgreSQL has connections for: at most {most},"
            " or name a server of your own in DATABASE_URL"
        )


def _require_address(text: str | None) -> None:
    """Raises ConfigurationError for an address that is read otherwise than it was meant.

    What is taken for the host or the port is quoted when it cannot be reached, and it is the end of
    the password where that holds an @.
    """
    if text is None:
        return
    try:
        url = sqlalchemy.make_url(text)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        url = None
    if (
        url is None
        or url.get_backend_name() not in ("postgresql", "postgres")
        or "@" in f"{url.host} {url.database}"
    ):
        raise ConfigurationError(
            "DATABASE_URL is not of the form postgresql://user:password@host/name;"
            " in a password write @ as %40 and % as %25"
        )


def database_url(settings: Settings) -> str:
    """The server's address; starts or joins the embedded server when DATABASE_URL is unset."""
    _require_address(settings.database_url)
    url = settings.database_url or postgres_server.ensure_running(settings.data_dir)
    # People write postgres:// or postgresql://; SQLAlchemy 2.1 would take psycopg 3 for both.
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg2://", url)


def open_database(settings: Settings, limits: TimeLimits = SERVING) -> sqlalchemy.Engine:
    """Start or join the server, and return an engine for it.

    Brings the schema up to date first, unless MIGRATE_ON_START is off.
    """
    url = database_url(settings)
    engine = _revived(create_engine(url, limits=limits), settings)
    if not is_migrated(engine):
        if settings.migrate_on_start:
            migrate(url)
        else:
            log.warning("database.not_migrated", remedy="python cli.py migrate")
    return engine


def open_probe(settings: Settings) -> sqlalchemy.Engine:
    """An engine of one connection, for the readiness probe.

    It is apart from the pool, so that neither load nor a stall delays the probe.
    """
    return _revived(create_engine(database_url(settings), pool_size=1, limits=PROBING), settings)


def _revived(engine: sqlalchemy.Engine, settings: Settings) -> sqlalchemy.Engine:
    """Start the embedded server again on a new connection, should even its supervisor be killed."""
    if settings.database_url is None:
        sqlalchemy.event.listen(
            engine, "do_connect", lambda *_: _keep_running(settings.data_dir), retval=True
        )
    return engine


def _keep_running(data_dir: Path) -> None:
    postgres_server.ensure_running(data_dir)  # a millisecond when it runs already


def create_engine(
    url: str, *, pool_size: int = POOL_SIZE, limits: TimeLimits = SERVING
) -> sqlalchemy.Engine:
    """An engine whose connections have a time limit for everything."""
    extensions.set_wait_callback(_wait)  # for the whole process; see there
    longest = limits.statement or 0  # to PostgreSQL 0 is none
    options = {
        **SESSION_OPTIONS,
        "statement_timeout": f"{longest * 1000:.0f}ms",
        "lock_timeout": f"{limits.lock * 1000:.0f}ms",
    }
    engine = sqlalchemy.create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=longest + POOL_WAIT_SECONDS,
        pool_use_lifo=True,  # a quiet service lets the idle ones go cold, a busy one keeps few hot
        hide_parameters=True,  # parameters never reach an exception's text
        connect_args={
            **TCP_OPTIONS,
            "application_name": "estore-payments",
            "options": " ".join(f"-c {name}={value}" for name, value in options.items()),
            "connection_factory": _Server(limits).connect,
        },
    )
    sqlalchemy.event.listen(engine, "reset", _close_unfinished)
    return engine


def _close_unfinished(driver: Any, *_: Any) -> None:
    """Close a connection that was not given back but found by garbage collection.

    Its transaction may be open, which the pool's own rollback would not end: to the driver it is
    none (see sessions.py). Somebody else would commit it.
    """
    is_open = driver.info.transaction_status != extensions.TRANSACTION_STATUS_IDLE
    if driver.autocommit and is_open:
        driver.close()


class Connection(extensions.connection):
    """A connection that waits for `seconds` at most, each time. None: without an end.

    `suspend`: how it waits in an event loop (see loop_connections.py). None: it blocks its thread.
    """

    suspend: Callable[[], None] | None = None
    # The names of the statements that are prepared on it (see sessions.py); None: none may be.
    prepared: dict[str, bool] | None = None
    # One of an event loop as SQLAlchemy takes it, once it has left the engine's pool.
    detached: PoolProxiedConnection | None = None

    def __init__(self, dsn: str, server: _Server, seconds: float) -> None:
        self.server = server
        self.seconds: float | None = seconds
        super().__init__(dsn)


class _Server:
    """The server as one engine knows it: its time limits, and whether it answered lately.

    After a missed answer one connection at a time tries whether it answers again. Requests wait for
    the first trial, since one dead connection says little. Once it has failed, other requests fail
    at once, and for a moment all do. So requests in the queue share one stall, instead of meeting
    it one after another.
    """

    def __init__(self, limits: TimeLimits) -> None:
        self._limits = limits
        self._lost = False
        self._trial = threading.Lock()
        self._failures = 0  # of trials in a row
        self._missed_at = 0.0  # by time.monotonic()

    def connect(self, dsn: str) -> Connection:
        """A new connection (psycopg2's `connection_factory`). Raises OperationalError."""
        limits = self._limits
        connection = self._try(dsn) if self._lost else Connection(dsn, self, limits.connect)
        connection.seconds = limits.statement and limits.statement + RESPONSE_GRACE_SECONDS
        if self._is_direct(connection):
            connection.prepared = {}
        return connection

    @staticmethod
    def _is_direct(connection: Connection) -> bool:
        """Whether no pooler is between, which would lend the server's session to others. One tells
        clients the number of a process of its own."""
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            [(number,)] = cursor.fetchall()
        connection.autocommit = False
        return bool(number == connection.get_backend_pid())

    def missed(self) -> None:
        """Note that an answer did not come in time."""
        self._lost, self._missed_at = True, time.monotonic()
        log.error("database.unresponsive")

    def _try(self, dsn: str) -> Connection:
        before = self._failures
        too_soon = before and time.monotonic() < self._missed_at + TRIAL_PAUSE
        if too_soon or not self._trial.acquire(timeout=0 if before else TRIAL_SECONDS):
            raise psycopg2.OperationalError(UNRESPONSIVE)
        try:
            if self._failures > before:  # the trial that this one waited for failed
                raise psycopg2.OperationalError(UNRESPONSIVE)
            connection = Connection(dsn, self, min(TRIAL_SECONDS * 2**before, self._limits.connect))
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")  # a pooler accepts clients while its server is away
            connection.rollback()
        except psycopg2.Error:
            self._failures = min(before + 1, MAX_FAILURES_COUNTED)
            raise
        else:
            self._lost, self._failures = False, 0
            return connection
        finally:
            self._trial.release()


def _wait(connection: Any) -> None:
    """Wait for the server's answer as libpq does, but not for ever.

    tcp_user_timeout does not end this wait: a proxy, or a host whose PostgreSQL is stuck, goes on
    acknowledging. psycopg2 closes a connection whose wait failed, and SQLAlchemy then gives up all
    older ones of its pool. The callback is the whole process's: connections that are not ours wait
    without an end, as they do without it, and COPY is the one thing that psycopg2 refuses.
    """
    if isinstance(connection, Connection) and connection.suspend is not None:
        connection.suspend()
        return
    seconds = connection.seconds if isinstance(connection, Connection) else None
    end = None if seconds is None else time.monotonic() + seconds
    while (state := connection.poll()) != extensions.POLL_OK:
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            connection.server.missed()
            raise psycopg2.OperationalError(UNRESPONSIVE)
        poll = select.poll()
        poll.register(
            connection.fileno(),
            select.POLLIN if state == extensions.POLL_READ else select.POLLOUT,
        )
        poll.poll(None if left is None else left * 1000)


def get_session(request: Request) -> Session:
    """A session that has no connection until its first statement.

    The route that ran the endpoint closes it, in the same thread (see web/route.py).
    """
    return new_session(request.app.state.engine)


def new_session(engine: sqlalchemy.Engine) -> Session:
    return Session(engine)


@contextmanager
def autocommit(engine: sqlalchemy.Engine) -> Iterator[orm.Session]:
    """A session for one statement that is sent alone, with no BEGIN and ROLLBACK around it.

    SQLAlchemy's own AUTOCOMMIT sends a SET when it is over, for the whole session at that.
    """
    with engine.connect() as connection:
        driver = connection.connection.dbapi_connection
        assert driver is not None
        try:
            driver.autocommit = True
            with orm.Session(connection) as session:
                yield session
            driver.autocommit = False
        except BaseException:
            connection.invalidate()  # no transaction may run on it in autocommit
            raise


SessionDep = Annotated[Session, Depends(get_session)]


@contextmanager
def phase(session: Session) -> Iterator[Session]:
    """One transaction: commits at its end, rolls back on any error, frees the connection.

    Between two phases no connection is held, so that is where a gateway is called.
    """
    try:
        yield session
        session.commit()
    except BaseException:
        session.rollback()
        raise
    session.info["committed"] = True
    if session.info.pop("wakes", False):
        wakeup.wake()


def wake_after_commit(session: Session) -> None:
    """Wake the workers once this transaction is committed: it makes work that is due now."""
    session.info["wakes"] = True


def read_one(session: orm.Session, kind: type[RowType], query: Executable) -> RowType | None:
    """The one row that a query finds, as one of this kind; None if there is none."""
    row = session.execute(query).one_or_none()
    return None if row is None else kind(*row)


def read_all(session: orm.Session, kind: type[RowType], query: Executable) -> list[RowType]:
    """The rows that a query finds, each as one of this kind."""
    return [kind(*row) for row in session.execute(query)]


def sqlstate(error: DBAPIError) -> str | None:
    """PostgreSQL's code of an error; None if it was not the server that told of it."""
    return error.orig.pgcode if isinstance(error.orig, psycopg2.Error) else None


def retry_transaction(session: Session, work: Callable[[], T]) -> T:
    """Run `work`, again when PostgreSQL gave its transaction up for a deadlock.

    Only work that has committed nothing is retried: past its first phase it may have asked a
    gateway, and look-ups finish it instead.
    """
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            return work()
        except DBAPIError as error:
            given_up = sqlstate(error) in (SERIALIZATION_FAILURE, DEADLOCK, *STALE)
            if not given_up or session.info.get("committed") or attempt == MAX_ATTEMPTS:
                raise
            session.rollback()
    raise AssertionError("unreachable")


@dataclass(frozen=True, slots=True)
class Old:
    """Rows of one user that nobody needs any more. `user_id`: None for rows of no user."""

    table: sqlalchemy.Table
    is_old: sqlalchemy.ColumnElement[bool]
    user_id: str | None
    ids: Sequence[int]


def find_old(
    session: Session, table: sqlalchemy.Table, is_old: sqlalchemy.ColumnElement[bool], limit: int
) -> list[Old]:
    """The oldest of the rows that are old, at most so many, user by user."""
    oldest = (
        sqlalchemy.select(table.c.user_id, table.c.id).where(is_old).order_by(table.c.created_at)
    )
    found: dict[str | None, list[int]] = {}
    for user_id, row_id in session.execute(oldest.limit(limit)):
        found.setdefault(user_id, []).append(row_id)
    return [Old(table, is_old, user_id, ids) for user_id, ids in found.items()]


def delete_old(session: Session, old: Old) -> int:
    """Delete rows that were found to be old, and still are; return how many.

    Those that somebody else is deleting are not waited for (SKIP LOCKED).
    """
    columns = old.table.c
    ids = sqlalchemy.literal(list(old.ids), ARRAY(sqlalchemy.BigInteger))
    free = (
        sqlalchemy.select(columns.id)
        .where(columns.user_id == old.user_id, columns.id == sqlalchemy.any_(ids), old.is_old)
        .with_for_update(skip_locked=True)
    )
    # As an array it is read once; in a join it may be read again.
    free_ids = sqlalchemy.func.array(free.scalar_subquery(), type_=ARRAY(sqlalchemy.BigInteger))
    deleted = session.execute(
        sqlalchemy.delete(old.table)
        .where(columns.user_id == old.user_id, columns.id == sqlalchemy.any_(free_ids))
        .returning(columns.id)
    )
    return len(deleted.all())


class Migration(NamedTuple):
    """The revisions of the schema before and after. None: there was none yet."""

    before: str | None
    after: str | None


def migrate(url: str) -> Migration:
    """Bring the schema up to date. Safe in any number of processes at once.

    A schema newer than this code is left alone: its migrations keep to what this code needs, as
    long as it is the release before (docs/runbook.md#upgrading).
    """
    from alembic import command  # 10 MiB that only a process that migrates needs

    config = alembic_config(url)
    with migrating(url) as connection:
        config.attributes["connection"] = connection
        before = _revision_in(connection)
        if _is_older(before):
            command.upgrade(config, "head")
        return Migration(before, _revision_in(connection))


@contextmanager
def migrating(url: str) -> Iterator[sqlalchemy.Connection]:
    """A connection to migrate on, while no other process does. Waits for one that does."""
    engine = create_engine(url, pool_size=2, limits=MIGRATING)
    try:
        with _migration_lock(engine), engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


@contextmanager
def _migration_lock(engine: sqlalchemy.Engine) -> Iterator[None]:
    """Hold the migration lock in a transaction that does nothing else. Raises TimeoutError.

    It polls for the lock. A transaction that waits for the lock inside a statement has a snapshot,
    and CREATE INDEX CONCURRENTLY waits for the end of every snapshot: two processes would wait for
    each other. A transaction between two statements has none.
    """
    # Transaction-level, so it works behind PgBouncer and ends with its connection.
    lock = sqlalchemy.text(f"SELECT pg_try_advisory_xact_lock({MIGRATION_LOCK})")
    deadline = time.monotonic() + MIGRATION_WAIT
    while True:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            if connection.scalar(lock):
                yield
                return
        if time.monotonic() > deadline:
            raise TimeoutError("another process has been migrating this database for an hour")
        time.sleep(MIGRATION_PAUSE)


def is_migrated(engine: sqlalchemy.Engine) -> bool:
    """Whether the schema is that of this code or a newer one. One cheap statement."""
    try:
        with autocommit(engine) as session:
            found = session.scalar(sqlalchemy.text("SELECT version_num FROM alembic_version"))
    except ProgrammingError as error:
        if sqlstate(error) != UNDEFINED_TABLE:
            raise
        return False
    return not _is_older(found)


def _revision_in(connection: sqlalchemy.Connection) -> str | None:
    from alembic.runtime.migration import MigrationContext

    revision = MigrationContext.configure(connection).get_current_revision()
    connection.rollback()  # each migration is a transaction of its own
    return revision


def newest_revision() -> str:
    """The revision of the schema that this code was written for."""
    return _revisions()[-1]


def _is_older(revision: str | None) -> bool:
    """Whether migrations of this code are missing. An unknown revision is a newer one."""
    return revision is None or revision in _revisions()[:-1]


@lru_cache(maxsize=1)
def _revisions() -> list[str]:
    """All revisions that this code knows, the newest last. The names of their files begin with them
    (0001_service.py), so that a process that has nothing to migrate need not load Alembic."""
    return sorted(path.name.partition("_")[0] for path in VERSIONS.glob("[0-9]*.py"))


def alembic_config(url: str) -> AlembicConfig:
    from alembic.config import Config

    config = Config(ROOT / "migrations" / "alembic.ini")
    config.attributes["url"] = url
    return config


NOW = sqlalchemy.func.now()  # the start of the transaction, by the database's clock


def seconds_from_now(seconds: Any) -> Any:
    """A time by the database's clock, in SQL; in the past for a negative number."""
    return NOW + sqlalchemy.func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def age(column: Any) -> Any:
    """Seconds since then by the database's clock, in SQL."""
    return sqlalchemy.func.extract("epoch", NOW - column)


def read_clock(session: Session) -> datetime:
    """The start of the transaction, by the database's clock."""
    now: datetime = session.execute(sqlalchemy.select(NOW)).scalar_one()
    return now
