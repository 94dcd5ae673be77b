"""The transactions of the sandbox that write webhooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

import wakeup


@contextmanager
def announcing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that may write webhooks: once it is committed, those who deliver are woken."""
    with engine.begin() as connection:
        yield connection
    wakeup.wake()
