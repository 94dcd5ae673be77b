"""The proof holds under kills: a short run of it."""

from __future__ import annotations

import importlib
import inspect
import secrets
from pathlib import Path

import pytest

from config import ConfigurationError
from proof.prove import LATE_POINTS, POINTS, own_settings, prove


def test_nothing_is_charged_twice_lost_or_stuck_under_kills() -> None:
    report = prove(crashes=6, seed=20)
    assert report.holds, report.text()
    assert sum(report.kills.values()) == 6
    assert report.charges > 0
    assert report.passed.days > 31
    assert report.outside["refund in part"] > 0


@pytest.mark.parametrize("point", sorted({*POINTS, *LATE_POINTS}))
def test_a_place_to_die_is_one_where_something_is_committed_or_asked(point: str) -> None:
    module, name, _ = point.split(".")
    if module == "gateway":
        assert name in ("charge", "capture", "void", "refund", "look_up")
        return
    package = "settlement" if module in ("gateway_calls", "idempotency") else "services"
    function = getattr(importlib.import_module(f"{package}.{module}"), name)
    commits = ("phase(", "locked_payment(", "locked_order(", "PooledSender.beside(session)")
    assert any(commit in inspect.getsource(function) for commit in commits)


KEYS = {name: secrets.token_urlsafe(48) for name in ("SECRET_KEY", "FINGERPRINT_KEY")}
ELSEWHERE = "postgresql://store@db.example/orders"


def test_the_proof_touches_no_other_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its own months pass, guards are missing, and the server is killed."""
    monkeypatch.setenv("DATABASE_URL", ELSEWHERE)
    assert own_settings(tmp_path, KEYS, tmp_path / ".env").database_url is None
    env_file = tmp_path / ".env"
    env_file.write_text(f"DATABASE_URL={ELSEWHERE}\n")
    with pytest.raises(ConfigurationError, match="DATABASE_URL"):
        own_settings(tmp_path, KEYS, env_file)
