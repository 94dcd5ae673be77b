"""What Prometheus is told."""

from __future__ import annotations

import httpx
import sqlalchemy as sa

from tests.conftest import Api, pay, place_order, save_card


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
