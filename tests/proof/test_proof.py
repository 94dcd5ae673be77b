"""The proof holds, and it fails as soon as a guard is missing: short runs of it."""

from __future__ import annotations

import importlib
import inspect

import pytest

import cli
from proof.guards import GUARDS
from proof.prove import AT_RANDOM, LATE_POINTS, POINTS, prove

# What each missing guard lets happen, among the report's findings.
CONSEQUENCES = {
    "unique-live-payment": "double_charges",
    "claim-before-call": "violations",
    "stored-key": "violations",
    "unknown-is-open": "violations",
    "idempotency": "violations",
    "refund-reservation": "violations",
    "reconciler": "stuck",
    "resend-window": "double_charges",
    "action-expiry": "stuck",
    "outside-books": "violations",
    "outside-refund-once": "violations",
}
# Without a committed claim, a charge is only lost when we die before it is written down; and what
# was lost is only sent again too late if we were dead meanwhile.
KILLS = {"claim-before-call": ["gateway.charge.after"], "resend-window": [AT_RANDOM]}
TAKE_TIME = {"resend-window", "action-expiry"}
TAKE_STRANGERS = {"outside-books", "outside-refund-once"}


def test_nothing_is_charged_twice_lost_or_stuck_under_kills() -> None:
    report = prove(crashes=6, seed=20)
    assert report.holds, report.text()
    assert sum(report.kills.values()) == 6
    assert report.charges > 0
    assert report.passed.days > 31
    assert report.outside["refund in part"] > 0


@pytest.mark.parametrize("guard", GUARDS)
def test_the_proof_fails_without_a_guard(guard: str) -> None:
    report = prove(
        crashes=0,
        seed=20,
        broken=guard,
        kill_at=KILLS.get(guard, []),
        age=guard in TAKE_TIME,
        outside=guard in TAKE_STRANGERS,
    )
    assert not report.holds
    assert getattr(report, CONSEQUENCES[guard]), report.text()


def test_every_guard_can_be_named_on_the_command_line() -> None:
    assert list(GUARDS) == cli.GUARD_NAMES
    assert set(CONSEQUENCES) == set(GUARDS)


@pytest.mark.parametrize("point", sorted({*POINTS, *LATE_POINTS}))
def test_a_place_to_die_is_one_where_something_is_committed_or_asked(point: str) -> None:
    module, name, _ = point.split(".")
    if module == "gateway":
        assert name in ("charge", "capture", "void", "refund", "look_up")
        return
    package = "settlement" if module in ("gateway_calls", "idempotency") else "services"
    function = getattr(importlib.import_module(f"{package}.{module}"), name)
    assert "with phase(" in inspect.getsource(function)
