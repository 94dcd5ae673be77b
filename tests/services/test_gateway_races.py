"""Who asks a gateway at the same time, or too late: handlers, look-ups, and Adyen's notifications.

A look-up may do what it asks about, so what it hears is never dropped, and nobody overrules it.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

import crud
import database
from conformance.doubles.adyen import AdyenDouble
from conformance.fault_proxy import Delivery
from conformance.harness import Harness, ok
from conformance.targets import AdyenTarget
from database import phase
from gateways.base import (
    Charge,
    ChargeRequest,
    NotExecuted,
    OutcomeUnknown,
    Refund,
    RefundRequest,
    RetryLater,
)
from permissions import EVERYONE
from services import lookups
from tests.support.database import sql


@pytest.fixture
def stripe(stripe_harness: Harness) -> Iterator[Harness]:
    """A service with Stripe's double, whose webhooks get lost. Afterwards all invariants hold."""
    stripe_harness.relay.holds = True
    yield stripe_harness
    stripe_harness.check()


def order_with_card(harness: Harness) -> tuple[httpx.Client, dict[str, Any]]:
    client = harness.shopper()
    harness.save(client)
    return client, harness.place(client)


class Overtaken:
    """The first to ask is told that it was not reached, once the second has been answered there;
    the second hears its answer only when the first has ended."""

    def __init__(self, real: Callable[[Any], Any]) -> None:
        self.real, self.first_asked = real, threading.Event()
        self.second_is_done, self.first_has_ended = threading.Event(), threading.Event()

    def __call__(self, request: Any) -> Any:
        if not self.first_asked.is_set():
            self.first_asked.set()
            assert self.second_is_done.wait(20)
            raise NotExecuted("not reached")
        answer = self.real(request)
        self.second_is_done.set()
        assert self.first_has_ended.wait(20)
        return answer


def test_a_charge_that_a_look_up_has_sent_meanwhile_is_not_told_as_not_done(
    stripe: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, order = order_with_card(stripe)
    gateway = stripe.app.state.gateways.get("stripe")
    race = Overtaken(gateway.charge)
    monkeypatch.setattr(gateway, "charge", race)
    answer = stripe.pay(client, order)
    race.first_has_ended.set()
    assert ok(answer, 202)["status"] == "pending"
    payment = stripe.becomes(answer.json()["id"], "captured")
    stripe.agree(payment)
    assert ok(stripe.pay(client, order), 409)["code"] == "order_already_paid"


def test_a_refund_that_a_look_up_has_sent_meanwhile_is_not_told_as_not_done(
    stripe: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, payment = stripe.paid(1000)
    gateway = stripe.app.state.gateways.get("stripe")
    race = Overtaken(gateway.refund)
    monkeypatch.setattr(gateway, "refund", race)
    answer = stripe.post(stripe.manager, f"/payments/{payment['id']}/refunds", amount=400)
    race.first_has_ended.set()
    refund = stripe.refund_settled(payment["id"], ok(answer, 202)["id"])
    assert refund["status"] == "succeeded"
    stripe.agree(stripe.payment(payment["id"]))


def test_a_capture_that_a_look_up_has_sent_meanwhile_is_not_told_as_not_done(
    stripe: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, payment = stripe.authorized()
    gateway = stripe.app.state.gateways.get("stripe")
    race = Overtaken(gateway.capture)
    monkeypatch.setattr(gateway, "capture", race)
    answer = stripe.post(stripe.manager, f"/payments/{payment['id']}/capture")
    race.first_has_ended.set()
    assert answer.status_code in (200, 202), answer.text
    stripe.agree(stripe.becomes(payment["id"], "captured"))


def test_a_stale_look_up_asks_nothing(stripe: Harness) -> None:
    """Its batch took long; by now the payment is failed, and to ask would be to charge."""
    client, order = order_with_card(stripe)
    stripe.arm("status_before", "charge", status=429, times=3)
    with database.new_session(stripe.engine) as session:
        answer = stripe.pay(client, order)
        payment_id = (answer.json().get("payment_id")) or answer.json()["id"]
        stripe.proxy.disarm()
        payment = stripe.settled(payment_id)
        with phase(session):
            row = crud.require_payment(session, payment_id, EVERYONE)
        asked = len(stripe.proxy.log)
        stale = dataclasses.replace(row, status="pending")  # as it was read once
        lookups.look_up_payment(session, stripe.app.state.lookup_rules, stale)
    assert len(stripe.proxy.log) == asked
    assert stripe.payment(payment_id) == payment


def test_a_payment_that_was_given_up_is_never_asked_for_again(stripe: Harness) -> None:
    """An event may let us look it up; without a reference that would send the charge once more."""
    client, order = order_with_card(stripe)
    gateway = stripe.app.state.gateways.get("stripe")

    def not_reached(request: ChargeRequest) -> Charge:
        raise RetryLater("refused")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gateway, "charge", not_reached)
        patch.setattr(gateway, "look_up", lambda query: None)
        payment_id = stripe.pay(client, order).json()
        payment_id = payment_id.get("payment_id") or payment_id["id"]
        assert stripe.becomes(payment_id, "failed")["failure"]["code"] == "not_charged"
    sql(stripe.engine, "UPDATE payments SET check_at = now() WHERE id = :id", id=payment_id)
    looked_up(stripe, "payments", payment_id)
    assert stripe.charges(payment_id) == []
    assert stripe.payment(payment_id)["needs_review"] is False


def looked_up(harness: Harness, table: str, row_id: int) -> None:
    """Wait until a look-up has found that there is nothing more to learn."""
    query = f"SELECT check_at FROM {table} WHERE id = :id"
    harness.until(lambda: sql(harness.engine, query, id=row_id)[0][0] is None, "it is looked up")


def test_a_refund_that_was_given_up_is_never_asked_for_again(stripe: Harness) -> None:
    _, payment = stripe.paid(1000)
    gateway = stripe.app.state.gateways.get("stripe")

    def not_reached(request: RefundRequest) -> Refund:
        raise RetryLater("refused")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gateway, "refund", not_reached)
        patch.setattr(gateway, "look_up_refund", lambda query: None)
        stripe.post(stripe.manager, f"/payments/{payment['id']}/refunds", amount=300)
        (refund,) = ok(stripe.manager.get(f"/payments/{payment['id']}/refunds"), 200)
        assert stripe.refund_settled(payment["id"], refund["id"])["status"] == "failed"
    sql(stripe.engine, "UPDATE refunds SET check_at = now() WHERE id = :id", id=refund["id"])
    looked_up(stripe, "refunds", refund["id"])
    assert stripe.charges(payment["id"])[0].amount_refunded == 0
    assert stripe.payment(payment["id"])["needs_review"] is False


def test_a_capture_that_answers_another_amount_stays_open_for_a_person(stripe: Harness) -> None:
    _, payment = stripe.authorized(1000)
    stripe.arm(
        "replace_after", "capture", old=b'"amount_received": 1000', new=b'"amount_received": 900'
    )
    answer = stripe.post(stripe.manager, f"/payments/{payment['id']}/capture")
    assert answer.status_code == 202, answer.text
    assert stripe.becomes(payment["id"], "captured")["amount_captured"] == 1000
    assert stripe.payment(payment["id"])["needs_review"]


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "evt_\0"},
        {"type": "charge.dispute.created\ud800"},
        {"data": {"object": {"id": "dp_1", "payment_intent": "pi_\0", "amount": 1}}},
        {
            "type": "charge.dispute.created",
            "data": {
                "object": {
                    "id": "dp_1",
                    "payment_intent": "pi_1",
                    "amount": 10**20,
                    "currency": "usd",
                    "status": "needs_response",
                    "reason": "fraudulent",
                }
            },
        },
    ],
    ids=["id", "type", "reference", "amount"],
)
def test_a_signed_webhook_with_what_no_database_holds_is_400(
    stripe: Harness, changes: dict[str, Any]
) -> None:
    event = {"id": "evt_1", "object": "event", "type": "charge.dispute.created"} | changes
    delivery = Delivery(*stripe.target.forge({}, json.dumps(event).encode()))
    answer = stripe.relay.post(delivery)
    assert answer.status_code == 400, answer.text


# Adyen: what only notifications tell ------------------------------------------------------------


def adyen_double(harness: Harness) -> AdyenDouble:
    assert isinstance(harness.target, AdyenTarget)
    assert isinstance(harness.target.double, AdyenDouble)
    return harness.target.double


def waiting(harness: Harness) -> dict[str, Any]:
    client = harness.shopper()
    harness.save(client, "action")
    answer = harness.pay(client, harness.place(client), return_url="https://shop.example/")
    assert ok(answer, 201)["status"] == "requires_action"
    return dict(answer.json())


def told(harness: Harness, payment: dict[str, Any], code: str) -> Delivery:
    """The notification of this kind about a payment, once it was sent."""

    def look() -> Delivery | None:
        about = harness.relay.about(payment["gateway_reference"])
        return next((one for one in about if f'"{code}"'.encode() in one.body), None)

    return harness.until(look, f"{code} is told")


def test_a_wrong_redirect_result_does_not_stand_in_the_way_of_the_right_one(adyen: Harness) -> None:
    payment, other = waiting(adyen), waiting(adyen)
    for one in (payment, other):
        adyen.target.approve(one["gateway_reference"], yes=True)
    path = f"/payments/{payment['id']}/confirm"
    wrong = adyen.target.redirect_params(other["gateway_reference"])
    answer = adyen.post(adyen.manager, path, returned=wrong)
    assert ok(answer, 200)["status"] == "requires_action"
    assert answer.json()["next_action"] == payment["next_action"]
    right = adyen.target.redirect_params(payment["gateway_reference"])
    adyen.post(adyen.manager, path, returned=right)
    adyen.agree(adyen.becomes(payment["id"], "captured"))


def test_a_payment_that_is_captured_while_its_order_is_canceled_is_captured(adyen: Harness) -> None:
    payment = waiting(adyen)
    adyen.target.approve(payment["gateway_reference"], yes=True)
    returned = adyen.target.redirect_params(payment["gateway_reference"])
    adyen.relay.holds = True
    adyen.arm("drop_after", "complete")
    path = f"/payments/{payment['id']}/confirm"
    assert adyen.post(adyen.manager, path, returned=returned).status_code == 202
    status = {"status": "canceled"}
    answer = adyen.manager.put(f"/orders/{payment['order_id']}/status", json=status)
    assert ok(answer, 409)["code"] == "payment_in_progress"
    adyen.relay.holds = False
    for delivery in list(adyen.relay.deliveries):
        adyen.relay.post(delivery)
    adyen.agree(adyen.becomes(payment["id"], "captured"))


def test_a_capture_that_failed_before_it_is_told_as_done_goes_to_a_person(adyen: Harness) -> None:
    _, payment = adyen.authorized(1000)
    adyen.relay.holds = True
    assert adyen.post(adyen.manager, f"/payments/{payment['id']}/capture").status_code == 202
    done = told(adyen, payment, "CAPTURE")
    adyen_double(adyen).fail_capture(payment["gateway_reference"])
    failed = told(adyen, payment, "CAPTURE_FAILED")
    for delivery in (failed, done):
        assert adyen.relay.post(delivery).status_code == 200
    assert adyen.settled(payment["id"])["needs_review"]


def test_a_capture_of_which_no_notification_tells_goes_to_a_person_after_a_day(
    adyen: Harness,
) -> None:
    _, payment = adyen.authorized(1000)
    adyen.relay.holds = True
    assert adyen.post(adyen.manager, f"/payments/{payment['id']}/capture").status_code == 202
    older = "asked_at = now() - interval '30 hours', check_at = now(), checks = 300"
    sql(adyen.engine, f"UPDATE payments SET {older} WHERE id = :id", id=payment["id"])
    adyen.until(lambda: adyen.payment(payment["id"])["needs_review"], "a person is asked")
    assert adyen.payment(payment["id"])["status"] == "authorized"


def test_a_refund_that_failed_before_it_is_told_as_done_goes_to_a_person(adyen: Harness) -> None:
    _, payment = adyen.paid(1000)
    adyen.relay.holds = True
    answer = adyen.post(adyen.manager, f"/payments/{payment['id']}/refunds", amount=400)
    refund = adyen.refund(payment["id"], answer.json()["id"])
    done = told(adyen, payment, "REFUND")
    adyen_double(adyen).fail_refund(refund["gateway_reference"])
    failed = told(adyen, payment, "REFUND_FAILED")
    for delivery in (failed, done):
        assert adyen.relay.post(delivery).status_code == 200
    adyen.until(lambda: adyen.payment(payment["id"])["needs_review"], "a person is asked")
    assert adyen.payment(payment["id"])["amount_refunded"] == 0


def test_a_charge_of_what_was_given_up_goes_to_a_person_at_once(adyen: Harness) -> None:
    """Adyen cannot be asked what it means, and to repeat the charge would be to make it."""
    client, order = order_with_card(adyen)
    adyen.relay.holds = True
    gateway = adyen.app.state.gateways.get("adyen")
    charge = gateway.charge

    def charged_after_all(request: ChargeRequest) -> Charge:
        charge(request)
        raise NotExecuted("as far as we know")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gateway, "charge", charged_after_all)
        patch.setattr(gateway, "look_up", lambda query: None)
        answer = adyen.pay(client, order).json()
        payment = adyen.becomes(answer.get("payment_id") or answer["id"], "failed")
    (made,) = adyen.charges(payment["id"])
    event = told(adyen, {"gateway_reference": made.reference}, "AUTHORISATION")
    assert adyen.relay.post(event).status_code == 200
    adyen.until(lambda: adyen.payment(payment["id"])["needs_review"], "a person is asked")
    (row,) = sql(adyen.engine, "SELECT check_at FROM payments WHERE id = :id", id=payment["id"])
    assert row.check_at is None
    mark = f'"payment-{payment["id"]}-'.encode()
    assert len([one for one in adyen.proxy.log if mark in one.body]) == 1


def test_a_completion_that_a_look_up_has_overtaken_stays_open(
    adyen: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = waiting(adyen)
    gateway = adyen.app.state.gateways.get("adyen")

    def overtaken(request: Any) -> Charge:
        later = "UPDATE payments SET check_at = now() + interval '1 hour' WHERE id = :id"
        sql(adyen.engine, later, id=payment["id"])
        raise NotExecuted("the circuit breaker is open")

    monkeypatch.setattr(gateway, "complete", overtaken)
    path = f"/payments/{payment['id']}/confirm"
    answer = adyen.post(adyen.manager, path, returned={"redirectResult": "X3XtfGC7"})
    assert ok(answer, 202)["status"] == "pending"
    monkeypatch.undo()
    adyen.target.approve(payment["gateway_reference"], yes=True)
    returned = adyen.target.redirect_params(payment["gateway_reference"])
    adyen.post(adyen.manager, path, returned=returned)
    adyen.agree(adyen.becomes(payment["id"], "captured"))


def test_a_void_is_repeated_as_it_was_whatever_the_charge_is_called_by_then(adyen: Harness) -> None:
    payment = waiting(adyen)
    adyen.arm("drop_before", "void", times=2)
    answer = adyen.post(adyen.manager, f"/payments/{payment['id']}/void")
    assert answer.status_code == 202, answer.text
    made = adyen_double(adyen).payment(payment["gateway_reference"])
    assert made is not None
    rename = "UPDATE payments SET gateway_reference = :psp WHERE id = :id"
    sql(adyen.engine, rename, psp=made.psp, id=payment["id"])
    assert adyen.becomes(payment["id"], "canceled")["status"] == "canceled"
    voids = [exchange for exchange in adyen.proxy.log if exchange.path.endswith("/cancels")]
    ours = [exchange for exchange in voids if f"-{payment['id']}-".encode() in exchange.body]
    assert len({(exchange.path, exchange.body) for exchange in ours}) == 1


def test_who_waits_for_a_shopper_asks_once_an_hour_at_last(stripe: Harness) -> None:
    payment = waiting(stripe)
    due = "UPDATE payments SET checks = 20, check_at = now() WHERE id = :id"
    sql(stripe.engine, due, id=payment["id"])
    pause = "SELECT extract(epoch FROM check_at - now()) AS pause FROM payments WHERE id = :id"

    def seconds() -> float | None:
        (row,) = sql(stripe.engine, pause, id=payment["id"])
        return float(row.pause) if row.pause > 60 else None

    assert 3500 < stripe.until(seconds, "it is looked up") <= 3600
    assert stripe.payment(payment["id"])["status"] == "requires_action"


def test_another_refund_for_ours_goes_to_a_person(stripe: Harness) -> None:
    _, payment = stripe.paid(1000)
    answer = stripe.post(stripe.manager, f"/payments/{payment['id']}/refunds", amount=400)
    refund = stripe.refund_settled(payment["id"], answer.json()["id"])
    second = {
        "id": "re_another",
        "payment_intent": payment["gateway_reference"],
        "status": "succeeded",
        "amount": 400,
        "currency": "usd",
        "metadata": {"payment_id": str(payment["id"]), "refund_id": str(refund["id"])},
    }
    event = {"id": f"evt_{payment['id']}", "type": "refund.updated", "data": {"object": second}}
    delivery = Delivery(*stripe.target.forge({}, json.dumps(event).encode()))
    assert stripe.relay.post(delivery).status_code == 200
    after = stripe.payment(payment["id"])
    assert (after["needs_review"], after["amount_refunded"]) == (True, 400)
    assert stripe.refund(payment["id"], refund["id"]) == refund


def test_a_charge_that_is_never_found_refuses_no_events_for_ever(stripe: Harness) -> None:
    client, order = order_with_card(stripe)
    gateway = stripe.app.state.gateways.get("stripe")
    event = {
        "id": "evt_foreign",
        "type": "refund.created",
        "data": {
            "object": {
                "id": "re_foreign",
                "payment_intent": "pi_foreign",
                "status": "succeeded",
                "amount": 100,
                "currency": "usd",
            }
        },
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gateway, "charge", _no_answer)
        patch.setattr(gateway, "look_up", _no_answer)
        payment = ok(stripe.pay(client, order), 202)
        delivery = Delivery(*stripe.target.forge({}, json.dumps(event).encode()))
        assert stripe.relay.post(delivery).status_code == 409
        older = "UPDATE payments SET created_at = now() - interval '2 hours' WHERE id = :id"
        sql(stripe.engine, older, id=payment["id"])
        assert stripe.relay.post(delivery).status_code == 200
        now = "UPDATE payments SET created_at = now() WHERE id = :id"
        sql(stripe.engine, now, id=payment["id"])
    stripe.agree(stripe.settled(payment["id"]))


def _no_answer(_: Any) -> Charge:
    raise OutcomeUnknown("no answer")
