"""The scenarios of the contract. `conformance.scenarios` fills the list, one module a topic."""

from __future__ import annotations

from collections.abc import Callable

from conformance.harness import Harness

Scenario = Callable[[Harness], None]

SCENARIOS: list[Scenario] = []


def scenario(run: Scenario) -> Scenario:
    """Add a scenario to the contract. Its function's name is the rule that it checks."""
    SCENARIOS.append(run)
    return run
