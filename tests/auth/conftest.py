"""The clock of `auth.py` and `issuer_keys.py`."""

from __future__ import annotations

import pytest

import auth
import issuer_keys
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
    monkeypatch.setattr(issuer_keys, "time", clock)
    return clock
