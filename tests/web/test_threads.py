"""What only sends statements has no thread; what needs a transaction has one."""

from __future__ import annotations

import inspect
import secrets
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

import main
from config import Settings
from database import SessionDep
from greenlets import is_in_greenlet
from sessions import Session
from statements import PooledSender, SenderDep, Statement
from tests.support.factories import order, place_order
from web.route import ServiceRoute


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
    assert way("GET", f"/orders/{placed}/events") == ["loop", "loop"]
    assert way("POST", "/orders", json=order()) == ["loop"]
    key = {"Idempotency-Key": secrets.token_hex(8)}
    assert set(way("POST", "/orders", json=order(), headers=key)) == {"database"}


def test_no_endpoint_has_both_ways_to_send_but_the_one_that_needs_a_session_for_keys(
    settings: Settings,
) -> None:
    """Requests that hold a connection each, in the transaction of a session, and want another one
    would wait for each other; in the loop a session would hold up all other requests."""
    found = {
        route.endpoint.__name__
        for route in main.create_app(settings).routes
        if isinstance(route, ServiceRoute)
        and all(way in _annotations(route.endpoint) for way in (SenderDep, SessionDep))
    }
    assert found == {"create_order"}


def _annotations(endpoint: Callable[..., Any]) -> list[Any]:
    return [*inspect.get_annotations(endpoint, eval_str=True).values()]
