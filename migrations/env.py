"""Runs the migrations, one process at a time."""

import sqlalchemy
from alembic import context

from database import create_engine, database_url
from models import Base

# Any number will do as long as nobody else uses it on this database.
MIGRATION_LOCK = 7_233_105_944_871

target_metadata = Base.metadata


def run() -> None:
    """Upgrade or downgrade in one transaction, under a lock that waits for other starters."""
    url = context.config.attributes.get("url")
    if url is None:  # called as `alembic …` by a developer
        from config import get_settings

        url = database_url(get_settings())
    engine = create_engine(url, pool_size=1)
    with engine.begin() as connection:
        # Another process may be migrating for longer than a request may wait.
        connection.execute(sqlalchemy.text("SET LOCAL lock_timeout = '60s'"))
        connection.execute(sqlalchemy.text("SET LOCAL statement_timeout = 0"))
        # Transaction-level, so it works behind PgBouncer and ends with the transaction.
        connection.execute(sqlalchemy.text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
        context.configure(
            connection=connection, target_metadata=target_metadata, compare_server_default=True
        )
        context.run_migrations()
    engine.dispose()


run()
