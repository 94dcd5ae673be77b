"""Clients that check every answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from config import Settings
from tests.support.clients import (
    Api,
    watched,
)


@pytest.fixture
def api(base_url: str, settings: Settings) -> Iterator[Api]:
    yield from watched(base_url, settings)
