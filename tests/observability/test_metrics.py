"""What Prometheus is told."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

from observability.metrics import CachedPage
from tests.support.clients import Api
from tests.support.factories import pay, place_order, save_card


@pytest.fixture(autouse=True)
def read_at_once(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.state.metrics, "seconds", 0.0)


def gauge(api: Api, name: str) -> float:
    answer = api().get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = dict(line.split() for line in answer.text.splitlines() if not line.startswith("#"))
    return float(lines[name])


def test_a_payment_that_needs_a_person_is_counted(
    api: Api, alice: httpx.Client, engine: sa.Engine
) -> None:
    save_card(alice)
    payment = pay(alice, place_order(alice)["id"])
    before = gauge(api, "estore_payments_needs_review")
    mark = sa.text("UPDATE payments SET needs_review = :value WHERE id = :id")
    with engine.begin() as connection:
        connection.execute(mark, {"value": True, "id": payment["id"]})
    try:
        assert gauge(api, "estore_payments_needs_review") == before + 1
    finally:
        with engine.begin() as connection:
            connection.execute(mark, {"value": False, "id": payment["id"]})


def test_a_payment_without_an_answer_is_open(api: Api, alice: httpx.Client) -> None:
    save_card(alice)
    order = place_order(alice)
    headers = {"Sandbox-Fault": "timeout_before_charge"}
    assert alice.post(f"/orders/{order['id']}/payments", headers=headers).status_code == 202
    assert gauge(api, "estore_payments_open") >= 1


def test_however_many_scrape_the_database_is_asked_once(
    api: Api, app: FastAPI, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauge(api, "estore_payments_open")
    monkeypatch.setattr(app.state.metrics, "seconds", 60.0)
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "payments" in statement and "count(*)" in statement:
            sent.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        for _ in range(20):
            gauge(api, "estore_payments_open")
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
    assert sent == []


def test_who_asks_while_a_page_is_made_gets_the_last_one() -> None:
    page = CachedPage(seconds=0)
    assert page.get(lambda: b"first") == b"first"
    making, may_end = threading.Event(), threading.Event()

    def make_slowly() -> bytes:
        making.set()
        assert may_end.wait(60)
        return b"second"

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(page.get, make_slowly)
        assert making.wait(60)
        assert page.get(lambda: b"never made") == b"first"
        may_end.set()
        assert slow.result(60) == b"second"


def test_a_page_that_could_not_be_made_is_made_for_the_next_who_asks() -> None:
    page = CachedPage(seconds=60)

    def fail() -> bytes:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        page.get(fail)
    assert page.get(lambda: b"page") == b"page"
    assert page.get(lambda: b"another") == b"page"
