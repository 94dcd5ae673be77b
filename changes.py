"""Changes of several rows as one statement: what belongs together is sent together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from statements import Sender, Statement


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
        statement = Statement(f"WITH {parts} SELECT {counts}")
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
