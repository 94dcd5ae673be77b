"""Statements that write or lock a user's rows, and whether they name the user."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import sqlalchemy as sa

from sessions import Session
from statements import PooledSender, Statement

OF_USERS = (
    *("payment_methods", "orders", "events", "payments", "refunds", "disputes"),
    *("gateway_events", "idempotency_keys"),
)
TABLE = rf"(?<![.\w])(?:{'|'.join(OF_USERS)})(?![.\w])"
WRITES = re.compile(rf"(?:UPDATE|DELETE FROM) {TABLE}")
INSERTS = re.compile(rf"INSERT INTO {TABLE} (?:AS \w+ )?(\[[^]]*\]|)")
READS = re.compile(rf"(?:FROM|JOIN|,) {TABLE}")
LOCKS = re.compile(r"FOR (?:NO KEY )?UPDATE|FOR (?:KEY )?SHARE")
NAMES_USER = re.compile(r"\buser_id (?:= |IS NULL)")
JOINS_USER = re.compile(r"\buser_id = \w+\.user_id\b")
GROUPS = re.compile(r"GROUP BY (.*?)(?: HAVING | ORDER | LIMIT |$)")
CONFLICT = re.compile(r"ON CONFLICT .*DO UPDATE .*\bnow\[\]")
# Rows that nobody else may write until the transaction ends. A clerk's own Idempotency-Key gets its
# answer in the transaction of the shopper's payment (docs/adr/0006).
HOLDS_ROWS = re.compile(rf"(?:UPDATE|DELETE FROM|INSERT INTO) {TABLE}|{LOCKS.pattern}")
OWN_KEY = "idempotency_keys"
USER = re.compile(r"\buser_id = %\[(\w+)\]s")
INNERMOST = re.compile(r"\(([^()]*)\)")
QUERY = re.compile(r"(?:SELECT|UPDATE|DELETE|INSERT) ")


def parts_of(statement: str) -> Iterator[str]:
    """Each query inside the statement, without those inside it, and the statement at the end."""
    rest = " ".join(statement.split()).replace("[", "").replace("]", "")
    while (match := INNERMOST.search(rest)) is not None:
        inner = match[1].strip()
        if QUERY.match(inner):
            yield inner
            inner = "query"
        rest = f"{rest[: match.start()]}[{inner}]{rest[match.end() :]}"
    yield rest


@cache
def faults_of(statement: str) -> tuple[str, ...]:
    """What a statement lacks; nothing for one that is in order."""
    return tuple(f"{fault}: {part}" for part in parts_of(statement) for fault in _faults(part))


def _faults(part: str) -> Iterator[str]:
    tables = READS.findall(part)
    names_user = NAMES_USER.search(part.partition(" WHERE ")[2]) is not None
    if WRITES.search(part) and not names_user:
        yield "writes without the user"
    if any("user_id" not in columns for columns in INSERTS.findall(part)):
        yield "inserts without the user"
    if tables and LOCKS.search(part) and not names_user:
        yield "locks without the user"
    if len(JOINS_USER.findall(part)) < len(tables) - 1:
        yield "joins without the user"
    if tables and any("user_id" not in columns for columns in GROUPS.findall(part)):
        yield "groups without the user"
    if CONFLICT.search(part):
        yield "asks the clock where a row is there already"


def _forget_user(connection: sa.Connection) -> None:
    if not connection.invalidated:  # what was noted went with the connection
        connection.info.pop("user", None)


class Watch:
    """Notes every statement of the product, in whatever engine, that lacks something, and every
    transaction that writes or locks rows of several users."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def listen(self) -> None:
        """To all engines of this process."""
        sa.event.listen(sa.Engine, "before_cursor_execute", self._note)
        for end in ("commit", "rollback"):
            sa.event.listen(sa.Engine, end, _forget_user)
        send = PooledSender.rows

        def watched(sender: PooledSender, statement: Statement, **parameters: Any) -> list[Any]:
            self.faults += faults_of(statement.sql)
            return send(sender, statement, **parameters)

        PooledSender.rows = watched  # type: ignore[assignment, method-assign]
        send_in_session, give_back = Session.rows, Session._give_back

        def watched_in_session(
            session: Session, statement: Statement, **parameters: Any
        ) -> list[Any]:
            self.faults += faults_of(statement.sql)
            self._note_users(session.info, statement.sql, parameters)
            return send_in_session(session, statement, **parameters)

        def ended(session: Session) -> None:
            session.info.pop("user", None)
            give_back(session)

        Session.rows = watched_in_session  # type: ignore[assignment, method-assign]
        Session._give_back = ended  # type: ignore[assignment, method-assign]

    def _note(
        self,
        connection: sa.Connection,
        _cursor: Any,
        statement: str,
        parameters: Any,
        context: Any,
        many: bool,
    ) -> None:
        """What is given as text is a test's own, or SQL of `invariants`, which is read apart."""
        compiled = context.compiled if context is not None else None
        if compiled is None or isinstance(compiled.statement, sa.TextClause):
            return
        self.faults += faults_of(statement)
        if not many:
            self._note_users(connection.info, statement, parameters)

    def _note_users(self, info: dict[Any, Any], statement: str, parameters: Any) -> None:
        for part in parts_of(statement):
            if not HOLDS_ROWS.search(part) or OWN_KEY in part:
                continue
            for name in USER.findall(part):
                user = parameters[name]
                if info.setdefault("user", user) != user:
                    self.faults.append(f"a transaction of several users: {statement}")

    def take(self) -> list[str]:
        faults, self.faults = self.faults, []
        return faults


WATCH = Watch()
