"""The adapter with its double, and with a can of answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conformance.doubles.paypal import PaypalDouble
from gateways.paypal import PayPalGateway
from tests.support.paypal import TOKEN, Canned, access, built


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PaypalDouble]:
    with PaypalDouble(tmp_path_factory.mktemp("paypal")) as running:
        assert isinstance(running, PaypalDouble)
        yield running


@pytest.fixture(autouse=True)
def strict(double: PaypalDouble) -> Iterator[None]:
    """After each test: nothing was done that a client must not do."""
    double.refund_status = "COMPLETED"
    yield
    violations, double.violations = double.violations, []
    assert violations == []


@pytest.fixture(scope="module")
def paypal(double: PaypalDouble) -> Iterator[PayPalGateway]:
    gateway = built(double.settings())
    yield gateway
    gateway.close()


@pytest.fixture(scope="module")
def can() -> Iterator[Canned]:
    with Canned() as running:
        assert isinstance(running, Canned)
        yield running


@pytest.fixture
def canned(can: Canned) -> Canned:
    can.requests.clear()
    can.token = TOKEN
    return can


@pytest.fixture(scope="module")
def asked(can: Canned) -> Iterator[PayPalGateway]:
    gateway = access(can)
    yield gateway
    gateway.close()


@pytest.fixture
def newcomer(canned: Canned) -> Iterator[PayPalGateway]:
    """A gateway that has no access token yet."""
    gateway = access(canned)
    yield gateway
    gateway.close()
