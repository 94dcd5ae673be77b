"""What only sends statements has no thread; what needs a transaction has one."""

from __future__ import annotations

import secrets
import threading
from typing import Any

import httpx
import pytest

from greenlets import is_in_greenlet
from sessions import Session
from statements import PooledSender, Statement
from tests.support.factories import order, place_order


def test_single_statements_wait_in_the_loop(
    alice: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed = place_order(alice)["id"]
    ways: list[str] = []

    def watch(kind: Any) -> None:
        rows = kind.rows

        def watched(sender: Any, statement: Statement, **parameters: Any) -> list[Any]:
            name = threading.current_thread().name.split("_")[0]
            ways.append("loop" if is_in_greenlet() else name)
            found: list[Any] = rows(sender, statement, **parameters)
            return found

        monkeypatch.setattr(kind, "rows", watched)

    def way(method: str, path: str, **request: Any) -> list[str]:
        ways.clear()
        assert alice.request(method, path, **request).is_success
        return ways

    watch(PooledSender)
    watch(Session)
    assert way("GET", f"/orders/{placed}") == ["loop"]
    assert way("GET", "/orders") == ["loop"]
    assert way("GET", "/payment-methods") == ["loop"]
    assert way("GET", "/payments") == ["loop"]
    assert way("POST", "/orders", json=order()) == ["loop"]
    key = {"Idempotency-Key": secrets.token_hex(8)}
    assert set(way("POST", "/orders", json=order(), headers=key)) == {"database"}
    assert set(way("GET", f"/orders/{placed}/events")) == {"database"}
