"""The sandbox on its bad days: every fault on every operation, and what a stall must not do."""

from __future__ import annotations

import secrets
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

import auth
import main
from config import Settings, load_settings
from gateways.registry import Gateways
from gateways.sandbox import SandboxGateway
from gateways.sandbox.faults import FAULTS
from settlement.gateway_calls import GatewayAccess
from tests.support.database import sql
from tests.support.shop import (
    ACTION,
    DECLINED,
    Bearer,
    Shop,
    problem,
    serve,
    settle,
    together,
    until,
)

pytestmark = pytest.mark.usefixtures("invariants_hold")

LOST = ["timeout_before_charge", "error_500"]  # the gateway never did it
UNHEARD = ["timeout_after_charge", "error_after_charge"]  # it did, and we were not told
HEARD = ["slow=0.2", "slow=0", "duplicate_webhook", "late_webhook", "reordered_webhooks"]


def fault(name: str) -> dict[str, str]:
    return {"Sandbox-Fault": name}


def deliver_now(shop: Shop) -> None:
    """Let the time of late webhooks come."""
    sql(shop.engine, "UPDATE sandbox.webhooks SET due_at = now() WHERE delivered_at IS NULL")
    settle(shop.engine)


def test_the_faults_are_those_of_the_contract() -> None:
    assert {*LOST, *UNHEARD, *HEARD} - {"slow=0.2", "slow=0"} == FAULTS


# Charges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOST)
def test_a_charge_that_never_arrived_is_202_then_not_charged_and_may_be_paid_again(
    shop: Shop, name: str
) -> None:
    order_id = shop.place()
    answer = shop.try_pay(order_id, headers=fault(name))
    assert (answer.status_code, answer.json()["status"]) == (202, "pending")
    assert answer.json()["gateway_reference"] is None
    payment = answer.json()
    until(lambda: shop.status(payment) == ("failed", "pending"), "it is found not charged")
    assert shop.payment(payment)["failure"]["code"] == "not_charged"
    assert shop.payment(payment)["needs_review"] is False
    assert shop.books(order_id) == []
    assert shop.status(shop.pay(order_id)) == ("captured", "paid")


@pytest.mark.parametrize("name", UNHEARD)
@pytest.mark.parametrize(
    ("capture_method", "expected"),
    [("automatic", ("captured", "paid")), ("manual", ("authorized", "authorized"))],
)
def test_a_charge_whose_answer_is_lost_is_202_then_found(
    shop: Shop, name: str, capture_method: str, expected: tuple[str, str]
) -> None:
    order_id = shop.place()
    answer = shop.try_pay(order_id, headers=fault(name), capture_method=capture_method)
    assert (answer.status_code, answer.json()["status"]) == (202, "pending")
    until(lambda: shop.status(answer.json()) == expected, "it is found")
    assert len(shop.books(order_id)) == 1


@pytest.mark.parametrize("name", UNHEARD)
def test_a_decline_whose_answer_is_lost_is_202_then_failed(shop: Shop, name: str) -> None:
    answer = shop.try_pay(shop.place(), DECLINED, fault(name))
    assert answer.status_code == 202
    until(lambda: shop.status(answer.json()) == ("failed", "pending"), "the decline is found")
    assert shop.payment(answer.json())["failure"]["decline_code"] == "generic_decline"


@pytest.mark.parametrize("name", UNHEARD)
def test_an_action_whose_address_is_lost_is_202_then_found(shop: Shop, name: str) -> None:
    answer = shop.try_pay(shop.place(), ACTION, fault(name))
    assert answer.status_code == 202
    payment = answer.json()
    until(lambda: shop.status(payment)[0] == "requires_action", "the action is found")
    assert shop.payment(payment)["next_action"]["url"]
    assert shop.answer_page(shop.payment(payment), "approve").status_code == 200
    assert shop.status(payment) == ("captured", "paid")


@pytest.mark.parametrize("name", HEARD)
def test_a_charge_with_slow_or_odd_webhooks_is_as_any_other(shop: Shop, name: str) -> None:
    payment = shop.pay(shop.place(), headers=fault(name))
    assert shop.status(payment) == ("captured", "paid")
    deliver_now(shop)
    assert shop.status(payment) == ("captured", "paid")
    assert shop.told(payment["order_id"]) == ["payment.captured", "order.status_changed"]
    assert len(shop.books(payment["order_id"])) == 1


def test_a_gateway_slower_than_we_wait_is_202(shop: Shop) -> None:
    answer = shop.try_pay(shop.place(), headers=fault("slow=30"))
    assert answer.status_code in (201, 202)  # 201: a webhook told of it meanwhile
    until(lambda: shop.status(answer.json()) == ("captured", "paid"), "it is found")


# Captures, voids and refunds --------------------------------------------------------------------


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("what", ["capture", "void"])
def test_a_capture_or_void_that_never_arrived_is_202_and_may_be_asked_again(
    shop: Shop, name: str, what: str
) -> None:
    payment = shop.authorized()
    answer = shop.do(payment, what, fault(name))
    assert (answer.status_code, answer.json()["status"]) == (202, "authorized")
    settle(shop.engine)
    assert shop.status(payment) == ("authorized", "authorized")
    again = shop.do(payment, what)
    assert again.status_code == 200, again.text
    expected = ("captured", "paid") if what == "capture" else ("voided", "canceled")
    assert shop.status(payment) == expected


@pytest.mark.parametrize("name", UNHEARD)
@pytest.mark.parametrize(
    ("what", "expected"),
    [("capture", ("captured", "paid")), ("void", ("voided", "canceled"))],
)
def test_a_capture_or_void_whose_answer_is_lost_is_202_then_found(
    shop: Shop, name: str, what: str, expected: tuple[str, str]
) -> None:
    payment = shop.authorized()
    answer = shop.do(payment, what, fault(name), **({"amount": 700} if what == "capture" else {}))
    assert (answer.status_code, answer.json()["status"]) == (202, "authorized")
    until(lambda: shop.status(payment) == expected, "it is found")
    settle(shop.engine)
    if what == "capture":
        assert shop.payment(payment)["amount_captured"] == 700
        assert shop.books(payment["order_id"])[0]["amount_captured"] == 700


@pytest.mark.parametrize("name", HEARD)
@pytest.mark.parametrize("what", ["capture", "void", "refunds"])
def test_an_operation_with_slow_or_odd_webhooks_is_as_any_other(
    shop: Shop, name: str, what: str
) -> None:
    payment = shop.paid() if what == "refunds" else shop.authorized()
    answer = shop.do(payment, what, fault(name))
    assert answer.status_code == (201 if what == "refunds" else 200), answer.text
    before, history = shop.status(payment), shop.told(payment["order_id"])
    deliver_now(shop)
    assert shop.status(payment) == before
    assert shop.told(payment["order_id"]) == history


@pytest.mark.parametrize("name", LOST)
def test_a_refund_that_never_arrived_is_202_then_failed_and_its_amount_is_free(
    shop: Shop, name: str
) -> None:
    payment = shop.paid(1000)
    answer = shop.do(payment, "refunds", fault(name), amount=600)
    assert (answer.status_code, answer.json()["status"]) == (202, "pending")
    assert problem(shop.do(payment, "refunds", amount=600)) == (409, "amount_exceeds_remaining")
    until(lambda: shop.refunds(payment)[0]["status"] == "failed", "it is found not made")
    assert shop.do(payment, "refunds").json()["amount"] == 1000
    (entry,) = shop.books(payment["order_id"])
    assert [row["amount"] for row in entry["refunds"]] == [1000]


@pytest.mark.parametrize("name", UNHEARD)
def test_a_refund_whose_answer_is_lost_is_202_then_found(shop: Shop, name: str) -> None:
    payment = shop.paid(1000)
    answer = shop.do(payment, "refunds", fault(name), amount=600)
    assert (answer.status_code, answer.json()["status"]) == (202, "pending")
    until(lambda: shop.refunds(payment)[0]["status"] == "succeeded", "it is found")
    assert shop.payment(payment)["amount_refunded"] == 600
    assert len(shop.books(payment["order_id"])[0]["refunds"]) == 1


@pytest.mark.parametrize("name", UNHEARD + LOST)
def test_a_cancellation_whose_void_is_unheard_is_202(shop: Shop, name: str) -> None:
    payment = shop.pay(shop.place(), ACTION)
    answer = shop.shopper.put(
        f"/orders/{payment['order_id']}/status", json={"status": "canceled"}, headers=fault(name)
    )
    assert (answer.status_code, answer.json()["status"]) == (202, "pending")
    assert answer.json()["id"] == payment["order_id"]
    settle(shop.engine)
    expected = ("canceled", "canceled") if name in UNHEARD else ("requires_action", "pending")
    assert shop.status(payment) == expected


# Where faults are taken -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "nonsense",
        "",
        "slow=",
        "slow=-1",
        "slow=abc",
        "slow=1e9",
        "slow=121",
        "slow=nan",
        "slow=.",
        "TIMEOUT_AFTER_CHARGE",
        "timeout_after_charge ,error_500",
    ],
)
def test_an_unknown_fault_is_400_and_nothing_is_charged(shop: Shop, name: str) -> None:
    order_id = shop.place()
    assert problem(shop.try_pay(order_id, headers=fault(name))) == (400, "invalid_request")
    assert shop.books(order_id) == []
    payment = shop.paid()
    assert problem(shop.do(payment, "refunds", fault(name))) == (400, "invalid_request")
    assert shop.refunds(payment) == []


def test_a_fault_for_a_payment_through_another_gateway_is_400(
    shop: Shop, app: FastAPI, sandbox: SandboxGateway, engine: sa.Engine
) -> None:
    order_id, method = shop.place(), shop.method()
    other = SandboxGateway(engine, timeout=1)
    other.name = "other"
    app.state.gateways.by_name["other"] = other
    try:
        sql(engine, "UPDATE payment_methods SET gateway = 'other' WHERE id = :id", id=method)
        answer = shop.try_pay(order_id, headers=fault("slow=0"))
        assert problem(answer) == (400, "invalid_request")
        assert shop.shopper.get(f"/orders/{order_id}/payments").json() == []
        assert shop.books(order_id) == []
    finally:
        del app.state.gateways.by_name["other"]


def test_asking_refuses_a_fault_for_another_gateway(engine: sa.Engine) -> None:
    other = SandboxGateway(engine, timeout=1)
    other.name = "other"
    access = GatewayAccess(Gateways([other]), lookup_after=1, fault="slow=0")
    with pytest.raises(Exception, match="Only the sandbox"):
        access.gateway("other")
    assert GatewayAccess(Gateways([other]), lookup_after=1).gateway("other") is other


def test_production_takes_no_faults(
    shop: Shop, engine: sa.Engine, user: str, settings: Settings, tmp_path: Path
) -> None:
    production = load_settings(
        _env_file=None,
        environment="production",
        database_url=settings.database_url,
        data_dir=tmp_path,
        secret_key=secrets.token_urlsafe(48),
        fingerprint_key=secrets.token_urlsafe(48),
        gateways="sandbox",
        run_workers=False,
        gateway_timeout=2,
    )
    order_id, method = shop.place(), shop.method()
    headers = {"Authorization": f"Bearer {auth.mint(production, user)}"}
    with (
        serve(main.create_app(production)) as url,
        httpx.Client(base_url=url, headers=headers, timeout=60) as client,
    ):
        path, body = f"/orders/{order_id}/payments", {"payment_method_id": method}
        refused = client.post(path, json=body, headers=fault("slow=0"))
        assert problem(refused) == (400, "invalid_request")
        assert shop.books(order_id) == []
        assert client.post(path, json=body).status_code == 201


# Many at once -----------------------------------------------------------------------------------


def test_a_hundred_charges_whose_answers_are_lost_are_each_charged_once_and_settled(
    shop: Shop,
    crowd: list[httpx.Client],
    bearer: Bearer,
    user: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    headers = bearer(user)
    body = {"payment_method_id": shop.method()}
    orders = [shop.place(100 + number) for number in range(100)]

    def pay_five(number: int) -> list[httpx.Response]:
        return [
            crowd[number].post(
                f"/orders/{order_id}/payments",
                json=body,
                headers=headers | fault("timeout_after_charge"),
            )
            for order_id in orders[number * 5 : number * 5 + 5]
        ]

    answers = [answer for five in together(20, pay_five) for answer in five]
    assert [answer.status_code for answer in answers] == [202] * 100
    settle(shop.engine)
    ids = [answer.json()["id"] for answer in answers]
    rows = sql(
        shop.engine,
        "SELECT p.status, o.status AS order_status, count(c.reference) AS charges, "
        "min(c.amount_captured) = p.amount AS whole, "
        "extract(epoch FROM p.updated_at - p.asked_at) AS seconds "
        "FROM payments p JOIN orders o ON o.id = p.order_id "
        "JOIN sandbox.charges c ON c.order_id = o.id WHERE p.id = ANY(:ids) GROUP BY p.id, o.id",
        ids=ids,
    )
    assert len(rows) == 100
    assert {tuple(row)[:4] for row in rows} == {("captured", "paid", 1, True)}
    seconds = sorted(float(row.seconds) for row in rows)
    with capsys.disabled():
        sys.stdout.write(
            f"\n100 lost answers settled after: p50 {seconds[49]:.2f} s, "
            f"p95 {seconds[94]:.2f} s, max {seconds[99]:.2f} s\n"
        )


def test_while_the_gateway_stalls_no_transaction_is_open_and_reads_are_answered(
    shop: Shop, crowd: list[httpx.Client], bearer: Bearer, user: str
) -> None:
    headers = bearer(user)
    body = {"payment_method_id": shop.method()}
    orders = [shop.place() for _ in range(20)]
    with ThreadPoolExecutor(20) as pool:
        stalled: list[Future[httpx.Response]] = [
            pool.submit(
                crowd[number].post,
                f"/orders/{order_id}/payments",
                json=body,
                headers=headers | fault("slow=1.5"),
            )
            for number, order_id in enumerate(orders)
        ]
        # All have been asked and none has answered: every one of them waits for the gateway.
        reads = forgotten = 0
        while not all(future.done() for future in stalled):
            read = shop.shopper.get(f"/orders/{orders[reads % 20]}")
            assert read.status_code == 200, read.text
            reads += any(not future.done() for future in stalled)
            # Between two statements a transaction is idle for a moment; not for this long.
            forgotten += sql(
                shop.engine,
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND state = 'idle in transaction' AND now() - state_change > interval '0.7 s'",
            )[0][0]
        assert reads > 0, "no read was answered while the gateway stalled"
        assert forgotten == 0
        answers = [future.result() for future in stalled]
    assert {answer.status_code for answer in answers} == {201}
    settle(shop.engine)
    assert all(len(shop.books(order_id)) == 1 for order_id in orders)


@pytest.mark.parametrize("number", range(3))
def test_a_payment_is_found_soon_after_reconcile_after(shop: Shop, number: int) -> None:
    """RECONCILE_AFTER seconds after the request at the latest the gateway has been asked once."""
    began = time.monotonic()
    answer = shop.try_pay(shop.place(), headers=fault(LOST[number % 2]))
    assert answer.status_code == 202
    until(lambda: shop.payment(answer.json())["status"] == "failed", "it is settled", 20)
    assert time.monotonic() - began < 20  # a hang guard; the report of the proof has the figures


def payment_rows(shop: Shop, order_id: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = shop.shopper.get(f"/orders/{order_id}/payments").json()
    return rows


def test_repeating_a_lost_charge_without_a_key_never_charges_twice(shop: Shop) -> None:
    order_id = shop.place()
    assert shop.try_pay(order_id, headers=fault("timeout_after_charge")).status_code == 202
    for _ in range(5):
        again = shop.try_pay(order_id)
        assert problem(again)[1] in ("payment_in_progress", "order_already_paid")
    settle(shop.engine)
    assert [row["status"] for row in payment_rows(shop, order_id)] == ["captured"]
    assert len(shop.books(order_id)) == 1
