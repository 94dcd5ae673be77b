"""A gateway was asked, and the database fails before the key is released: what the caller hears."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

import idempotency_keys
from gateways.registry import Gateways
from tests.support.keyed_writes import new_key
from tests.support.quiet import UNHEARD, make_due, run_once
from tests.support.shop import Shop


def test_a_refund_that_was_asked_for_is_not_said_to_be_not_begun(
    quiet: Shop, gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told so, a caller might ask for it again under another key, and give the money back twice."""
    payment = quiet.pay(quiet.place())
    path, headers = f"/payments/{payment['id']}/refunds", UNHEARD | {"Idempotency-Key": new_key()}

    def fail(*_: Any) -> None:
        raise sa.exc.TimeoutError("no connection was free in time")

    with monkeypatch.context() as patched:
        patched.setattr(idempotency_keys, "get_stored_response", fail)
        first = quiet.manager.post(path, json={"amount": 300}, headers=headers)
    assert (first.status_code, first.json()["status"]) == (202, "pending")
    make_due(quiet)
    run_once(quiet, gateways)
    again = quiet.manager.post(path, json={"amount": 300}, headers=headers)
    assert (again.status_code, again.json()["id"]) == (201, first.json()["id"])
    assert again.json()["status"] == "succeeded"
