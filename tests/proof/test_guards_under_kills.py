"""The proof fails without the guards that only matter when a service dies."""

from __future__ import annotations

import pytest

from tests.support.proof import KILLS, check_that_the_proof_fails_without


@pytest.mark.parametrize("guard", KILLS)
def test_the_proof_fails_without_a_guard(guard: str) -> None:
    check_that_the_proof_fails_without(guard)
