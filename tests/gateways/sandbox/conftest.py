"""The sandbox gateway alone, on a database of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

import database
from gateways.sandbox import SandboxGateway
from tests.support.database import sql


@pytest.fixture(scope="module")
def lone_engine(make_database: Callable[[], str]) -> Iterator[sa.Engine]:
    url = make_database()
    database.migrate(url)
    engine = database.create_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def lone(lone_engine: sa.Engine) -> SandboxGateway:
    """A sandbox with empty books, in which nothing happens by itself."""
    sql(
        lone_engine,
        "TRUNCATE sandbox.charges, sandbox.refunds, sandbox.disputes, sandbox.requests,"
        " sandbox.webhooks",
    )
    sql(lone_engine, "UPDATE sandbox.account SET webhooks_held = false, decline_next = false")
    return SandboxGateway(lone_engine, timeout=1)
