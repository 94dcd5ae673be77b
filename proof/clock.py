"""Lets time pass: moves every stored time into the past."""

from datetime import timedelta
from typing import Final

import sqlalchemy as sa

# Each table of both books, and how to move all of its times.
TABLES: Final = r"""
    SELECT format('UPDATE %I.%I SET ', c.table_schema, c.table_name)
        || string_agg(format('%1$I = %1$I - \:span', c.column_name), ', ') AS statement
    FROM information_schema.columns c
    JOIN information_schema.tables t USING (table_schema, table_name)
    WHERE c.table_schema IN ('public', 'sandbox') AND t.table_type = 'BASE TABLE'
    AND c.data_type LIKE 'timestamp%'
    GROUP BY c.table_schema, c.table_name"""
# Times in a webhook's body, in whole seconds.
WEBHOOKS: Final = [
    f"""
    UPDATE sandbox.webhooks SET payload = jsonb_set(payload, '{path}',
        to_jsonb(date_trunc('second', (payload #>> '{path}')::timestamptz - :span)))
    WHERE payload #>> '{path}' IS NOT NULL"""  # noqa: S608 - ours
    for path in ("{charge,capture_before}", "{evidence_due_at}")
]


class Clock:
    """Let time pass. Nothing may run meanwhile that remembers the time."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self.passed = timedelta()

    def let_pass(self, span: timedelta) -> None:
        with self._engine.begin() as connection:
            # Without triggers: nothing changes.
            connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
            statements = connection.execute(sa.text(TABLES)).scalars().all()
            for statement in (*statements, *WEBHOOKS):
                connection.execute(sa.text(statement), {"span": span})
        self.passed += span
