"""Transactions of the sandbox that write webhooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

import wakeup


@contextmanager
def announcing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that may write webhooks. The commit wakes the worker that delivers them."""
    with engine.begin() as connection:
        yield connection
    wakeup.wake()
