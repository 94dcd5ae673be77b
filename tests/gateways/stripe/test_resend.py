"""Lost requests to Stripe that must not be sent again: they are found, or can never happen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest

from conformance.doubles.server import Answer
from conformance.doubles.stripe import StripeDouble
from gateways.base import (
    Charge,
    ChargeLookup,
    ChargeOperation,
    ChargeRequest,
    OutcomeNotShown,
    OutcomeUnknown,
    RefundLookup,
    RefundRequest,
)
from gateways.stripe import StripeGateway
from gateways.stripe.client import KeyReused
from tests.support.stripe import (
    LONG_AGO,
    NOW,
    answer_otherwise,
    as_read,
    change_request,
    charge_request,
    gateway_for,
    lost,
    pay,
    refund_request,
    save,
)

ASKED = NOW - timedelta(minutes=15)  # the time to send it again is over, the key lives on
CREATE = "POST /v1/payment_intents"
CANCEL = r"POST /v1/payment_intents/\w+/cancel"
UPDATE = r"POST /v1/payment_intents/pi_\w+"
LIST = "GET /v1/payment_intents"
NOTHING = {"object": "list", "data": [], "has_more": False}
CHANGES = pytest.mark.parametrize("operation", ["capture", "void"])


@pytest.fixture
def double() -> Iterator[StripeDouble]:
    with StripeDouble() as running:
        yield running
    assert running.violations == []


@pytest.fixture
def gateway(double: StripeDouble) -> Iterator[StripeGateway]:
    made = gateway_for(double.base_url)
    yield made
    made.close()


def error(status: int, **fields: Any) -> Callable[[Callable[[], Answer]], Answer]:
    """What answers a request in place of Stripe's work."""
    body = {"error": {"type": "invalid_request_error", "message": "echo", **fields}}
    return lambda usual: Answer(status, body)


def after_the_time(request: ChargeRequest) -> ChargeLookup:
    return ChargeLookup(request, None, ASKED, resend=False)


def posts(double: StripeDouble) -> list[str]:
    return [one.path for one in double.requests if one.method == "POST"]


def holds_nothing(double: StripeDouble) -> bool:
    """Every intent is a fence: no charge of ours, canceled, and nothing was ever charged."""
    return all(
        intent["status"] == "canceled"
        and intent["latest_charge"] is None
        and "payment_id" not in intent["metadata"]
        for intent in double.intents.values()
    )


# Charges ----------------------------------------------------------------------------------------


def test_a_charge_that_never_arrived_will_never_be_made(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    request = charge_request(save(gateway, double))
    assert gateway.look_up(after_the_time(request)) is None
    for _ in range(2):
        with pytest.raises(KeyReused):
            gateway.charge(request)  # the late original
    assert len(double.intents) == 1
    assert holds_nothing(double)


@pytest.mark.parametrize("kind", ["good", "action"])
def test_a_charge_whose_answer_was_lost_is_found_and_nothing_is_sent(
    gateway: StripeGateway, double: StripeDouble, kind: str
) -> None:
    request, charge = pay(gateway, double, kind)
    sent = posts(double)
    assert gateway.look_up(after_the_time(request)) == as_read(charge)
    assert posts(double) == sent


def test_a_decline_whose_answer_was_lost_is_found(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    request, charge = pay(gateway, double, "insufficient")
    assert charge.decline is not None
    assert gateway.look_up(after_the_time(request)) == as_read(charge)


def test_a_charge_is_found_among_many_of_its_customer(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    double.page_limit = 2
    method = save(gateway, double)
    request = charge_request(method)
    charge = gateway.charge(request)
    for payment_id in range(8, 13):
        gateway.charge(charge_request(method, payment_id=payment_id))
    assert gateway.look_up(after_the_time(request)) == as_read(charge)


def test_a_charge_is_found_by_a_clock_that_is_hours_ahead(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    request, charge = pay(gateway, double)
    double.pass_days(0.9)
    assert gateway.look_up(after_the_time(request)) == as_read(charge)


def test_a_charge_that_arrives_just_before_its_fence_is_found(
    gateway: StripeGateway, double: StripeDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, charge = pay(gateway, double)
    # The list was read before it arrived.
    answer_otherwise(double, monkeypatch, LIST, lambda usual: Answer(200, NOTHING))
    assert gateway.look_up(after_the_time(request)) == as_read(charge)
    assert len(double.intents) == 1


def test_a_charge_without_a_customer_is_searched_and_fenced(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    made, charge = pay(gateway, double)
    assert gateway.look_up(after_the_time(replace(made, customer=None))) == as_read(charge)
    request = replace(charge_request(save(gateway, double), payment_id=8), customer=None)
    assert gateway.look_up(after_the_time(request)) is None
    with pytest.raises(KeyReused):
        gateway.charge(request)


@pytest.mark.parametrize(
    ("status", "kind"), [(409, "invalid_request_error"), (400, "idempotency_error")]
)
def test_a_charge_still_under_way_is_unknown(
    gateway: StripeGateway,
    double: StripeDouble,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    kind: str,
) -> None:
    request = charge_request(save(gateway, double))
    in_use = error(status, type=kind, code="idempotency_key_in_use")
    answer_otherwise(double, monkeypatch, CREATE, in_use)
    with pytest.raises(OutcomeUnknown) as caught:
        gateway.look_up(after_the_time(request))
    assert not isinstance(caught.value, OutcomeNotShown)


@pytest.mark.parametrize("status", [400, 500])
def test_a_charge_that_ended_in_an_error_at_stripe_is_told_after_a_day(
    gateway: StripeGateway, double: StripeDouble, status: int
) -> None:
    request = charge_request(save(gateway, double))
    double.keys[request.key] = ("/v1/payment_intents", b"confirm=true", Answer(status, {}))
    with pytest.raises(OutcomeNotShown):
        gateway.look_up(after_the_time(request))
    sent = posts(double)
    assert gateway.look_up(ChargeLookup(request, None, LONG_AGO, resend=False)) is None
    assert posts(double) == sent  # then the list alone tells
    assert double.intents == {}


@pytest.mark.parametrize("step", [CREATE, CANCEL])
def test_a_fence_whose_answer_was_lost_is_the_same_when_repeated(
    gateway: StripeGateway, double: StripeDouble, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    request = charge_request(save(gateway, double))
    answer_otherwise(double, monkeypatch, step, lost)
    with pytest.raises(OutcomeUnknown):
        gateway.look_up(after_the_time(request))
    for _ in range(2):
        assert gateway.look_up(after_the_time(request)) is None
    assert len(double.intents) == 1
    assert holds_nothing(double)


def test_a_fence_that_somebody_canceled_holds(
    gateway: StripeGateway, double: StripeDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = charge_request(save(gateway, double))
    answer_otherwise(double, monkeypatch, CANCEL, error(500))
    with pytest.raises(OutcomeUnknown):
        gateway.look_up(after_the_time(request))
    (fence,) = double.intents
    double.void_outside(fence)
    assert gateway.look_up(after_the_time(request)) is None
    with pytest.raises(KeyReused):
        gateway.charge(request)


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_fence_that_stripe_refuses_tells_nothing(
    gateway: StripeGateway, double: StripeDouble, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    request = charge_request(save(gateway, double))
    answer_otherwise(double, monkeypatch, CREATE, error(status))
    with pytest.raises(OutcomeNotShown):
        gateway.look_up(after_the_time(request))


def test_a_fence_is_never_taken_for_a_charge(gateway: StripeGateway, double: StripeDouble) -> None:
    request = charge_request(save(gateway, double))
    gateway.look_up(after_the_time(request))
    assert gateway.list_charges(None).charges == ()
    events = [gateway.parse_webhook(httpx.Headers(head), body) for head, body in double.sent]
    assert {event.type for event in events} == {"payment_intent.created", "payment_intent.canceled"}
    assert {(event.payment_id, event.reference, event.charge) for event in events} == {
        (None, None, None)
    }
    for customer in (request.customer, None):
        again = replace(request, customer=customer)
        assert gateway.look_up(ChargeLookup(again, None, LONG_AGO, resend=False)) is None


def test_whoever_sends_it_again_after_the_fence_charges_nothing(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    # Two processes whose clocks differ: one may still repeat it, the other has fenced it.
    request = charge_request(save(gateway, double))
    assert gateway.look_up(after_the_time(request)) is None
    with pytest.raises(OutcomeNotShown):
        gateway.look_up(ChargeLookup(request, None, NOW))
    assert holds_nothing(double)


# Captures and voids -----------------------------------------------------------------------------


def send(gateway: StripeGateway, operation: ChargeOperation, charge: Charge, amount: int) -> Charge:
    request = change_request(charge, operation, amount)
    return gateway.capture(request) if operation == "capture" else gateway.void(request)


@CHANGES
def test_a_change_that_never_arrived_will_never_be_made(
    gateway: StripeGateway, double: StripeDouble, operation: ChargeOperation
) -> None:
    _, charge = pay(gateway, double, capture=False)
    request = change_request(charge, operation, 400)
    before = dict(double.intents[charge.reference])
    for _ in range(2):
        assert gateway.look_up(ChargeLookup(request, charge.reference, ASKED, resend=False)) is None
    with pytest.raises(KeyReused):
        gateway.capture(request) if operation == "capture" else gateway.void(request)
    assert double.intents == {charge.reference: before}
    assert send(gateway, operation, charge, 400).status in ("captured", "voided")  # with a new key


@CHANGES
def test_a_change_whose_answer_was_lost_is_read_and_nothing_is_sent(
    gateway: StripeGateway, double: StripeDouble, operation: ChargeOperation
) -> None:
    _, charge = pay(gateway, double, capture=False)
    request = change_request(charge, operation, 400)
    done = gateway.capture(request) if operation == "capture" else gateway.void(request)
    sent = posts(double)
    found = gateway.look_up(ChargeLookup(request, charge.reference, ASKED, resend=False))
    assert found == as_read(done)
    assert posts(double) == sent


def test_a_capture_that_arrives_just_before_its_fence_is_read(
    gateway: StripeGateway, double: StripeDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, charge = pay(gateway, double, capture=False)
    before = Answer(200, dict(double.intents[charge.reference]))
    request = change_request(charge, "capture")
    done = gateway.capture(request)
    answer_otherwise(double, monkeypatch, r"GET /v1/payment_intents/\w+", lambda usual: before)
    found = gateway.look_up(ChargeLookup(request, charge.reference, ASKED, resend=False))
    assert found == as_read(done)


def test_a_capture_that_stripe_refused_is_told_after_a_day(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, charge = pay(gateway, double, capture=False)
    request = change_request(charge, "capture", 1100)
    with pytest.raises(Exception, match="amount_too_large"):
        gateway.capture(request)
    with pytest.raises(OutcomeNotShown):
        gateway.look_up(ChargeLookup(request, charge.reference, ASKED, resend=False))
    assert gateway.look_up(ChargeLookup(request, charge.reference, LONG_AGO, resend=False)) is None


def test_a_change_still_under_way_is_unknown(
    gateway: StripeGateway, double: StripeDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, charge = pay(gateway, double, capture=False)
    request = change_request(charge, "capture")
    answer_otherwise(double, monkeypatch, UPDATE, error(409, code="idempotency_key_in_use"))
    with pytest.raises(OutcomeUnknown) as caught:
        gateway.look_up(ChargeLookup(request, charge.reference, ASKED, resend=False))
    assert not isinstance(caught.value, OutcomeNotShown)


# Refunds ----------------------------------------------------------------------------------------


def refund_after_the_time(request: RefundRequest) -> RefundLookup:
    return RefundLookup(request, None, ASKED, resend=False)


def test_a_refund_that_never_arrived_will_never_be_made(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, charge = pay(gateway, double)
    request = refund_request(charge, 400)
    for _ in range(2):
        assert gateway.look_up_refund(refund_after_the_time(request)) is None
    with pytest.raises(KeyReused):
        gateway.refund(request)
    assert double.refunds == {}
    assert gateway.refund(refund_request(charge, 400)).status == "succeeded"  # with a new key


def test_a_refund_whose_answer_was_lost_is_found_and_nothing_is_sent(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, charge = pay(gateway, double)
    request = refund_request(charge, 400)
    refund = gateway.refund(request)
    double.page_limit = 2
    for number in range(6, 11):
        gateway.refund(refund_request(charge, 1, refund_id=number))
    sent = posts(double)
    assert gateway.look_up_refund(refund_after_the_time(request)) == refund
    assert posts(double) == sent


def test_a_refund_that_arrives_just_before_its_fence_is_found(
    gateway: StripeGateway, double: StripeDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, charge = pay(gateway, double)
    request = refund_request(charge, 400)
    refund = gateway.refund(request)
    answer_otherwise(double, monkeypatch, "GET /v1/refunds", lambda usual: Answer(200, NOTHING))
    assert gateway.look_up_refund(refund_after_the_time(request)) == refund


def test_a_refund_that_stripe_refused_is_told_after_a_day(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, charge = pay(gateway, double)
    request = refund_request(charge, 1100)
    with pytest.raises(Exception, match="InvalidRequestError"):
        gateway.refund(request)
    with pytest.raises(OutcomeNotShown):
        gateway.look_up_refund(refund_after_the_time(request))
    assert gateway.look_up_refund(RefundLookup(request, None, LONG_AGO, resend=False)) is None
