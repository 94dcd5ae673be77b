"""Statements beside those of the service."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from statements import Statement


def sql(engine: sa.Engine, statement: str, **values: Any) -> list[Any]:
    """Run one statement in a transaction of its own."""
    with engine.begin() as connection:
        result = connection.execute(sa.text(statement), values)
        return list(result.all()) if result.returns_rows else []


def sandbox_charges(engine: sa.Engine, order_id: int) -> list[sa.Row[Any]]:
    """What the sandbox itself has on record, the oldest first."""
    with engine.connect() as connection:
        return list(
            connection.execute(
                sa.text("SELECT * FROM sandbox.charges WHERE order_id = :id ORDER BY created_at"),
                {"id": order_id},
            )
        )


def records(engine: sa.Engine, statement: str, **values: Any) -> list[dict[str, Any]]:
    """As `sql`, with the names of the columns."""
    return [dict(row._mapping) for row in sql(engine, statement, **values)]


class ConnectionSender:
    """Sends statements on a connection, where engines' events see them."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def rows(self, statement: Statement, **parameters: Any) -> list[Any]:
        sent = self._connection.exec_driver_sql(statement.sql, parameters)
        return [tuple(row) for row in sent] if sent.returns_rows else []
