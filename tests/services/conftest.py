"""A service for each gateway, with its double behind a fault proxy; each module has its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from conformance.harness import Harness
from conformance.targets import AdyenTarget, PaypalTarget, StripeTarget


@pytest.fixture(scope="module")
def stripe_harness(
    make_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Harness]:
    with Harness(StripeTarget(), make_database(), tmp_path_factory.mktemp("data")) as harness:
        yield harness


@pytest.fixture
def stripe(stripe_harness: Harness) -> Iterator[Harness]:
    """A service with Stripe's double. Afterwards all invariants hold."""
    stripe_harness.relay.holds = False
    yield stripe_harness
    stripe_harness.check()


@pytest.fixture(scope="module")
def paypal_harness(
    make_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Harness]:
    target = PaypalTarget(tmp_path_factory.mktemp("gateway"))
    with Harness(target, make_database(), tmp_path_factory.mktemp("data")) as harness:
        yield harness


@pytest.fixture
def paypal(paypal_harness: Harness) -> Iterator[Harness]:
    """A service with PayPal's double. Afterwards all invariants hold."""
    paypal_harness.relay.holds = False
    yield paypal_harness
    paypal_harness.check()


@pytest.fixture(scope="module")
def adyen_harness(
    make_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Harness]:
    with Harness(AdyenTarget(), make_database(), tmp_path_factory.mktemp("data")) as harness:
        yield harness


@pytest.fixture
def adyen(adyen_harness: Harness) -> Iterator[Harness]:
    """A service with Adyen's double. Afterwards all invariants hold."""
    adyen_harness.relay.holds = False
    yield adyen_harness
    adyen_harness.check()
