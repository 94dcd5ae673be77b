"""Lets SQLAlchemy's events of engines see the statements that go straight to the driver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import sqlalchemy as sa

from greenlets import in_thread
from sessions import Session
from statements import PooledSender, Statement


@contextmanager
def seen_by_engines() -> Iterator[None]:
    """As long as this lasts, SQLAlchemy sends them."""
    with (
        mock.patch.object(Session, "rows", _send_in_session),
        mock.patch.object(PooledSender, "rows", _send_alone),
    ):
        yield


def _send_in_session(session: Session, statement: Statement, **parameters: Any) -> list[Any]:
    return _send(session.connection(), statement, parameters)


def _send_alone(sender: PooledSender, statement: Statement, **parameters: Any) -> list[Any]:
    def begin() -> list[Any]:
        with sender._engine.begin() as connection:
            return _send(connection, statement, parameters)

    return in_thread(begin)


def _send(connection: sa.Connection, statement: Statement, parameters: Any) -> list[Any]:
    sent = connection.exec_driver_sql(statement.sql, parameters)
    return [tuple(row) for row in sent] if sent.returns_rows else []
