"""The proof holds, and it fails as soon as a guard is missing: short runs of it."""

from __future__ import annotations

import pytest

import cli
from proof.guards import GUARDS
from proof.prove import prove

# What each missing guard lets happen, among the report's findings.
CONSEQUENCES = {
    "unique-live-payment": "double_charges",
    "claim-before-call": "violations",
    "stored-key": "violations",
    "unknown-is-open": "violations",
    "idempotency": "violations",
    "refund-reservation": "violations",
    "reconciler": "stuck",
}
# Without a committed claim, a charge is only lost when we die before it is written down.
KILLS = {"claim-before-call": ["gateway.charge.after"] * 2}


def test_nothing_is_charged_twice_lost_or_stuck_under_kills() -> None:
    report = prove(crashes=6, seed=20)
    assert report.holds, report.text()
    assert sum(report.kills.values()) == 6
    assert report.charges > 0


@pytest.mark.parametrize("guard", GUARDS)
def test_the_proof_fails_without_a_guard(guard: str) -> None:
    report = prove(crashes=0, seed=20, broken=guard, kill_at=KILLS.get(guard, []))
    assert not report.holds
    assert getattr(report, CONSEQUENCES[guard]), report.text()


def test_every_guard_can_be_named_on_the_command_line() -> None:
    assert list(GUARDS) == cli.GUARD_NAMES
    assert set(CONSEQUENCES) == set(GUARDS)
