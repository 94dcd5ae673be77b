"""The domain is pure: its tests need no database, and get none."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def postgres_url() -> str:
    pytest.fail("a test of the domain asks for a database")
