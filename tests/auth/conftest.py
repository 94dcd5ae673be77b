"""The clock of `auth.py`."""

from __future__ import annotations

import pytest

import auth
from tests.support.tokens import (
    Clock,
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(auth, "time", clock)
    return clock
