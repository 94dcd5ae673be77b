"""The proof fails as soon as a guard is missing, also when nobody is killed."""

from __future__ import annotations

import pytest

from proof.guards import GUARDS
from tests.support.proof import CONSEQUENCES, KILLS, check_that_the_proof_fails_without


@pytest.mark.parametrize("guard", [guard for guard in GUARDS if guard not in KILLS])
def test_the_proof_fails_without_a_guard(guard: str) -> None:
    check_that_the_proof_fails_without(guard)


def test_every_guard_has_its_consequences() -> None:
    assert set(CONSEQUENCES) == set(GUARDS) >= set(KILLS)
