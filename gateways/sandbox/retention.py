"""Deletes what the sandbox no longer needs: delivered webhooks, and fenced keys.

Charges, refunds and their keys stay, because somebody may look one up at any time. A key that is
missing would look like a request that never arrived.
"""

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from gateways.sandbox.tables import requests, webhooks


def delete_leftovers(engine: sa.Engine, days: int, limit: int) -> int:
    """Delete what is older than `days`, the oldest first, at most `limit` of each kind."""
    with engine.begin() as connection:
        taken = _delete(connection, webhooks.c.id, webhooks.c.delivered_at, sa.true(), days, limit)
        return taken + _delete(
            connection, requests.c.key, requests.c.created_at, requests.c.fenced, days, limit
        )


def _delete(
    connection: sa.Connection,
    key: sa.Column[int] | sa.Column[str],
    time: sa.Column[datetime],
    condition: sa.ColumnElement[bool],
    days: int,
    limit: int,
) -> int:
    old = (
        sa.select(key)
        .where(condition, time < sa.func.now() - sa.func.make_interval(0, 0, 0, days))
        .order_by(time)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    keys = sa.func.array(old.scalar_subquery(), type_=ARRAY(key.type))
    deleted = connection.execute(sa.delete(key.table).where(key == sa.any_(keys)).returning(key))
    return len(deleted.all())
