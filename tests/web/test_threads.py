"""Requests with a token wait in the loop, whatever they do; those without one have few threads."""

from __future__ import annotations

import secrets
import threading
from typing import Any

import httpx
import pytest
from greenlet import getcurrent

import crud
from greenlets import _Greenlet
from sessions import Session
from statements import PooledSender, Statement
from tests.support.factories import card, order, place_order


def test_a_request_with_a_token_has_no_thread(
    alice: httpx.Client, base_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed = place_order(alice)["id"]
    ways: list[str] = []

    def watch(kind: Any) -> None:
        rows = kind.rows

        def watched(sender: Any, statement: Statement, **parameters: Any) -> list[Any]:
            name = threading.current_thread().name.split("_")[0]
            if isinstance(getcurrent(), _Greenlet):
                ways.append("loop")
            elif not name.startswith("worker"):  # background roles work all the time
                ways.append(name)
            found: list[Any] = rows(sender, statement, **parameters)
            return found

        monkeypatch.setattr(kind, "rows", watched)

    def way(method: str, path: str, client: httpx.Client = alice, **request: Any) -> list[str]:
        ways.clear()
        assert client.request(method, path, **request).is_success
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
    assert way("POST", "/orders", json=order(), headers=key) == ["loop", "loop"]
    assert way("POST", "/orders", json=order(), headers=key) == ["loop", "loop"]  # it is repeated
    assert set(way("POST", "/payment-methods", json=card())) == {"loop"}
    assert set(way("POST", f"/orders/{placed}/payments")) == {"loop"}
    count_open = crud.count_open

    def watched_count(*arguments: Any) -> int:
        ways.append(threading.current_thread().name.split("_")[0])
        return count_open(*arguments)

    monkeypatch.setattr(crud, "count_open", watched_count)
    ways.clear()
    assert httpx.get(f"{base_url}/metrics").is_success
    assert ways == ["public"]
