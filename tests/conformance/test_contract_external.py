"""The contract, against what is not in this repository: independent doubles, real test accounts.

Both run only where they are at hand: GATEWAY_DOUBLES names the folder of the doubles; the keys of
test accounts are STRIPE_TEST_API_KEY, PAYPAL_TEST_CLIENT_ID and PAYPAL_TEST_CLIENT_SECRET.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance.harness import Harness
from conformance.registry import Scenario
from conformance.scenarios import SCENARIOS
from conformance.target import NotApplicable, Target
from tests.support.external_targets import (
    ExternalDoubles,
    ExternalPaypalTarget,
    ExternalStripeTarget,
    RealPaypalTarget,
    RealStripeTarget,
)


def targets(folder: Path) -> dict[str, Callable[[], Target]]:
    found: dict[str, Callable[[], Target]] = {}
    place = os.environ.get("GATEWAY_DOUBLES")
    if place:
        doubles = ExternalDoubles(Path(place).resolve(), folder)
        found["independent-stripe"] = lambda: ExternalStripeTarget(doubles)
        found["independent-paypal"] = lambda: ExternalPaypalTarget(doubles, folder)
    if key := os.environ.get("STRIPE_TEST_API_KEY"):
        found["real-stripe"] = lambda: RealStripeTarget(key)
    client, secret = (os.environ.get(f"PAYPAL_TEST_CLIENT_{name}") for name in ("ID", "SECRET"))
    if client and secret:
        found["real-paypal"] = lambda: RealPaypalTarget(client, secret)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the independent doubles keep their environments; made once for both."""
    return tmp_path_factory.mktemp("doubles")


@pytest.fixture(
    scope="module",
    params=["independent-stripe", "independent-paypal", "real-stripe", "real-paypal"],
)
def harness(
    request: pytest.FixtureRequest,
    folder: Path,
    make_database: Callable[[], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Harness]:
    make = targets(folder).get(request.param)
    if make is None:
        pytest.skip("only where GATEWAY_DOUBLES, or the keys of a test account, are set")
    with Harness(make(), make_database(), tmp_path_factory.mktemp("data")) as harness:
        yield harness


@pytest.mark.parametrize("run", SCENARIOS, ids=lambda run: run.__name__)
def test_contract(harness: Harness, run: Scenario) -> None:
    try:
        run(harness)
    except NotApplicable as reason:
        pytest.skip(str(reason))
    harness.check()
