"""The adapter with its double."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conformance.doubles.stripe import (
    StripeDouble,
)
from gateways.stripe import StripeGateway
from tests.support.stripe import (
    gateway_for,
)


@pytest.fixture
def double() -> Iterator[StripeDouble]:
    with StripeDouble() as running:
        yield running
    assert running.violations == []


@pytest.fixture
def gateway(double: StripeDouble) -> Iterator[StripeGateway]:
    made = gateway_for(double.base_url, raw_cards=True)
    yield made
    made.close()
