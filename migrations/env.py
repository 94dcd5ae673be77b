"""Runs the migrations, one process at a time."""

import sqlalchemy
from alembic import context

from database import database_url, migrating
from models import Base

target_metadata = Base.metadata


def run(connection: sqlalchemy.Connection) -> None:
    """Each migration is a transaction, but for what cannot be in one."""
    context.configure(
        connection=connection,
        target_metadata=target_metadata,
        compare_server_default=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def address() -> str:
    url: str | None = context.config.attributes.get("url")
    if url is None:  # called as `alembic …` by a developer
        from config import get_settings

        url = database_url(get_settings())
    return url


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with migrating(address()) as connection:
        run(connection)
