"""The contract as pytest runs it: one file for each bench, so that they share the cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateways.bench import Bench, NotApplicable
from tests.gateways.contract import SCENARIOS
from tests.gateways.stand import Scenario, Stand


def contract_of(make_bench: Callable[[Path], Bench]) -> tuple[Any, Any]:
    """A fixture `stand`, and the test of every scenario on it."""

    @pytest.fixture(scope="module")
    def stand(
        make_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Stand]:
        bench = make_bench(tmp_path_factory.mktemp("gateway"))
        with Stand(bench, make_database(), tmp_path_factory.mktemp("data")) as stand:
            yield stand

    @pytest.mark.parametrize("run", SCENARIOS, ids=lambda run: run.__name__)
    def test_contract(stand: Stand, run: Scenario) -> None:
        try:
            run(stand)
        except NotApplicable as reason:
            pytest.skip(str(reason))
        stand.check()

    return stand, test_contract
