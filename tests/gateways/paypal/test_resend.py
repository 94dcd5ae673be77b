"""Requests whose answer was lost, once they may not be sent again: fenced, read, or not told."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from conformance.doubles.paypal import PaypalDouble
from conformance.doubles.server import Answer, Request
from gateways.base import ChargeLookup, OutcomeNotShown, OutcomeUnknown, RefundLookup, Refused
from gateways.paypal import PayPalGateway
from gateways.paypal.gateway import ORDER_KEY_LIFETIME
from tests.support.paypal import (
    Canned,
    a_change,
    a_charge,
    a_refund,
    authorized,
    book,
    captured,
    error,
    order,
    paid,
    utc_now,
)

MINUTES = timedelta(minutes=20)


def late(request: Any, reference: str | None = None, age: timedelta = MINUTES) -> ChargeLookup:
    return ChargeLookup(request, reference, utc_now() - age, resend=False)


def late_refund(request: Any) -> RefundLookup:
    return RefundLookup(request, None, utc_now() - MINUTES, resend=False)


def changes(double: PaypalDouble) -> list[Request]:
    """What was asked since the log was cleared, but for reading."""
    ignored = ("/v1/oauth2/token",)
    return [one for one in double.requests if one.method != "GET" and one.path not in ignored]


# Charges ----------------------------------------------------------------------------------------


def test_a_lost_charge_that_never_arrived_is_fenced_off(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request = a_charge(double.vault_token(), payment_id=71)
    double.requests.clear()
    assert paypal.look_up(late(request)) is None
    (fence,) = changes(double)
    assert fence.headers["paypal-request-id"] == request.key
    assert "payment_source" not in json.loads(fence.body)
    with pytest.raises(Refused):  # it arrives after all
        paypal.charge(request)
    assert paypal.look_up(late(request)) is None
    assert paypal.look_up(ChargeLookup(request, None, utc_now())) is None
    assert [entry for entry in double.books() if entry.payment_id == 71] == []
    assert len(double.captures) == len({one["order"] for one in double.captures.values()})


@pytest.mark.parametrize("capture", [True, False])
def test_a_lost_charge_that_was_made_is_found_by_its_fence(
    paypal: PayPalGateway, double: PaypalDouble, capture: bool
) -> None:
    request = a_charge(double.vault_token(), capture=capture)
    charge = paypal.charge(request)
    count = len(double.orders)
    assert paypal.look_up(late(request)) == charge
    assert len(double.orders) == count


def test_a_charge_that_the_fence_finds_waiting_for_a_payer_who_is_not_there_is_declined(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    token = double.vault_token(funding="PAYER_ACTION_REQUIRED")
    request = a_charge(token, off_session=True)
    charge = paypal.charge(request)
    assert charge.status == "declined"
    assert paypal.look_up(late(request)) == charge


def test_nobody_can_pay_an_order_whose_link_nobody_was_given(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request = a_charge()
    double.requests.clear()
    assert paypal.look_up(late(request, age=timedelta(days=9))) is None
    assert double.requests == []


def test_a_charge_is_not_fenced_once_paypal_may_have_forgotten_its_key(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request = a_charge(double.vault_token())
    paypal.charge(request)
    double.pass_days(0.3)
    double.requests.clear()
    with pytest.raises(OutcomeNotShown):
        paypal.look_up(late(request, age=ORDER_KEY_LIFETIME + timedelta(minutes=1)))
    assert double.requests == []


@pytest.mark.parametrize(
    "answer",
    [
        error(409, "PREVIOUS_REQUEST_IN_PROGRESS"),
        error(422, "DUPLICATE_REQUEST_ID"),
        error(422, "PAYEE_ACCOUNT_RESTRICTED"),
        error(403, "PERMISSION_DENIED"),
        error(500),
        Answer(429, {}),
        Answer(201, {"id": "ORDER1", "status": "CREATED"}),
    ],
)
def test_a_fence_that_paypal_does_not_take_promises_nothing(
    asked: PayPalGateway, canned: Canned, answer: Answer
) -> None:
    canned.answers = [answer]
    with pytest.raises(OutcomeUnknown):
        asked.look_up(late(a_charge("TOKEN")))


# Completions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("capture", [True, False])
def test_a_lost_completion_is_fenced_off(
    paypal: PayPalGateway, double: PaypalDouble, capture: bool
) -> None:
    request = a_charge(capture=capture)
    waiting = paypal.charge(request)
    double.approve(waiting.reference)
    complete = a_change(request, waiting.reference, "complete")
    assert paypal.look_up(late(complete, waiting.reference)) is None
    with pytest.raises(Refused, match="ACTION_DOES_NOT_MATCH_INTENT"):  # it arrives after all
        paypal.complete(complete)
    assert paypal.look_up(late(complete, waiting.reference)) is None
    assert book(double, waiting.reference).status == "requires_action"


@pytest.mark.parametrize("capture", [True, False])
def test_a_lost_completion_that_was_done_is_read(
    paypal: PayPalGateway, double: PaypalDouble, capture: bool
) -> None:
    request = a_charge(capture=capture)
    waiting = paypal.charge(request)
    double.approve(waiting.reference)
    complete = a_change(request, waiting.reference, "complete")
    done = paypal.complete(complete)
    double.requests.clear()
    assert paypal.look_up(late(complete, waiting.reference)) == done
    assert changes(double) == []


def test_a_completion_that_is_done_while_it_is_fenced_is_read(
    asked: PayPalGateway, canned: Canned
) -> None:
    approved, done = order("APPROVED"), order(captures=[paid("COMPLETED")])
    complete = a_change(a_charge(), "ORDER1", "complete")
    canned.answers = [Answer(200, approved), Answer(204, None), Answer(200, done)]
    charge = asked.look_up(late(complete, "ORDER1"))
    assert charge is not None
    assert charge.status == "captured"
    for refused in (error(422, "ORDER_ALREADY_COMPLETED"), error(404), error(500)):
        canned.answers = [Answer(200, approved), refused]
        with pytest.raises(OutcomeUnknown):
            asked.look_up(late(complete, "ORDER1"))


@pytest.mark.parametrize("issue", ["ORDER_NOT_APPROVED", "PAYER_ACTION_REQUIRED"])
def test_a_completion_that_paypal_keeps_refusing_is_never_approved_again(
    asked: PayPalGateway, canned: Canned, issue: str
) -> None:
    complete = a_change(a_charge(), "ORDER1", "complete")
    canned.answers = [error(422, issue), Answer(200, order("APPROVED"))]
    with pytest.raises(Refused):
        asked.complete(complete)
    canned.answers = [Answer(201, order("APPROVED"))]
    with pytest.raises(OutcomeUnknown):
        asked.complete(complete)


# Captures and voids -----------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["capture", "void"])
def test_a_lost_change_that_the_books_do_not_show_cannot_be_told(
    paypal: PayPalGateway, double: PaypalDouble, operation: str
) -> None:
    request, charge = authorized(paypal, double)
    double.requests.clear()
    with pytest.raises(OutcomeNotShown):
        paypal.look_up(late(a_change(request, charge.reference, operation), charge.reference))
    assert changes(double) == []
    assert book(double, charge.reference).status == "authorized"


@pytest.mark.parametrize(("operation", "status"), [("capture", "captured"), ("void", "voided")])
def test_a_lost_change_that_was_done_is_read(
    paypal: PayPalGateway, double: PaypalDouble, operation: str, status: str
) -> None:
    request, charge = authorized(paypal, double)
    change = a_change(request, charge.reference, operation)
    getattr(paypal, operation)(change)
    double.requests.clear()
    seen = paypal.look_up(late(change, charge.reference))
    assert seen is not None
    assert seen.status == status
    assert changes(double) == []


@pytest.mark.parametrize("approved", [True, False])
def test_an_order_that_waits_is_given_up_without_a_request_however_late(
    paypal: PayPalGateway, double: PaypalDouble, approved: bool
) -> None:
    request = a_charge()
    waiting = paypal.charge(request)
    double.approve(waiting.reference, yes=approved)
    double.requests.clear()
    void = a_change(request, waiting.reference, "void")
    given_up = replace(waiting, status="voided", redirect_url=None)
    assert paypal.look_up(late(void, waiting.reference)) == given_up
    assert changes(double) == []


# Refunds ----------------------------------------------------------------------------------------


def test_a_lost_refund_is_found_in_the_books_by_its_key_or_cannot_be_told(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    charge = captured(paypal, double)
    request = a_refund(charge)
    double.requests.clear()
    with pytest.raises(OutcomeNotShown):
        paypal.look_up_refund(late_refund(request))
    assert changes(double) == []
    refund = paypal.refund(request)
    double.requests.clear()
    assert paypal.look_up_refund(late_refund(request)) == refund
    with pytest.raises(OutcomeNotShown):  # of the same id, but with another key
        paypal.look_up_refund(late_refund(a_refund(charge)))
    assert changes(double) == []
    assert book(double, charge.reference).amount_refunded == 500
