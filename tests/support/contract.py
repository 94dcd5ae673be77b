"""The contract as pytest runs it: one file for each target, so that they share the cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.harness import Harness
from conformance.registry import Scenario
from conformance.scenarios import SCENARIOS
from conformance.target import NotApplicable, Target


def contract_of(make_target: Callable[[Path], Target]) -> tuple[Any, Any]:
    """The fixture `harness`, and a test of every scenario on it."""

    @pytest.fixture(scope="module")
    def harness(
        make_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Harness]:
        target = make_target(tmp_path_factory.mktemp("gateway"))
        with Harness(target, make_database(), tmp_path_factory.mktemp("data")) as harness:
            yield harness

    @pytest.mark.parametrize("run", SCENARIOS, ids=lambda run: run.__name__)
    def test_contract(harness: Harness, run: Scenario) -> None:
        try:
            run(harness)
        except NotApplicable as reason:
            pytest.skip(str(reason))
        harness.check()

    return harness, test_contract
