"""A service for each gateway, with its double behind a fault proxy; each module has its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.gateways.benches import AdyenBench, PaypalBench, StripeBench
from tests.gateways.stand import Stand


@pytest.fixture(scope="module")
def stripe_stand(
    make_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stand]:
    with Stand(StripeBench(), make_database(), tmp_path_factory.mktemp("data")) as stand:
        yield stand


@pytest.fixture
def stripe(stripe_stand: Stand) -> Iterator[Stand]:
    """A service with Stripe's double. Afterwards all invariants hold."""
    stripe_stand.relay.holds = False
    yield stripe_stand
    stripe_stand.check()


@pytest.fixture(scope="module")
def paypal_stand(
    make_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stand]:
    bench = PaypalBench(tmp_path_factory.mktemp("gateway"))
    with Stand(bench, make_database(), tmp_path_factory.mktemp("data")) as stand:
        yield stand


@pytest.fixture
def paypal(paypal_stand: Stand) -> Iterator[Stand]:
    """A service with PayPal's double. Afterwards all invariants hold."""
    paypal_stand.relay.holds = False
    yield paypal_stand
    paypal_stand.check()


@pytest.fixture(scope="module")
def adyen_stand(
    make_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stand]:
    with Stand(AdyenBench(), make_database(), tmp_path_factory.mktemp("data")) as stand:
        yield stand


@pytest.fixture
def adyen(adyen_stand: Stand) -> Iterator[Stand]:
    """A service with Adyen's double. Afterwards all invariants hold."""
    adyen_stand.relay.holds = False
    yield adyen_stand
    adyen_stand.check()
