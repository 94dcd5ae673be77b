"""The Stripe adapter, over real HTTP against a double, and against answers that no Stripe gives."""

from __future__ import annotations

import dataclasses
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
import stripe
import stripe.oauth_error
from pydantic import SecretStr

from config import ConfigurationError, Settings
from conformance.doubles.server import Answer, Double, Request
from conformance.doubles.stripe import (
    API_KEY,
    CARDS,
    FOREIGN_SECRET,
    SECRET,
    StripeDouble,
    sign,
)
from gateways.base import (
    Charge,
    ChargeLookup,
    ChargeOperation,
    Decline,
    Dispute,
    GatewayError,
    GatewayEvent,
    MethodChange,
    MethodDeclined,
    MethodInvalid,
    MethodRequest,
    NotExecuted,
    OutcomeNotShown,
    OutcomeUnknown,
    Refund,
    RefundLookup,
    Refused,
    RetryLater,
    SignatureInvalid,
)
from gateways.stripe import StripeGateway
from gateways.stripe.client import CardDeclined, translate
from tests.support.stripe import (
    LONG_AGO,
    NOW,
    RETURN_URL,
    as_read,
    change_request,
    charge_request,
    gateway_for,
    last_form,
    pay,
    refund_request,
    save,
    token,
)


@pytest.fixture
def double() -> Iterator[StripeDouble]:
    with StripeDouble() as running:
        yield running
    assert running.violations == []


@pytest.fixture
def gateway(double: StripeDouble) -> Iterator[StripeGateway]:
    made = gateway_for(double.base_url, raw_cards=True)
    yield made
    made.close()


# Methods ----------------------------------------------------------------------------------------


def test_a_token_becomes_a_card_of_the_users_customer(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    sent = token(double)
    saved = gateway.save_method(MethodRequest("card", "ann", {}, token=sent))
    assert saved.token == sent
    assert saved.identity == double.methods[sent]["card"]["fingerprint"]
    assert saved.customer is not None
    assert double.customers[saved.customer]["metadata"] == {"user_id": "ann"}
    assert saved.details == {
        "brand": "visa",
        "last4": "4242",
        "exp_month": 12,
        "exp_year": time.gmtime().tm_year + 3,
        "cardholder_name": None,
    }


def test_a_user_has_one_customer_however_often_it_is_asked_for(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    first, again = save(gateway, double), save(gateway, double, "good_too")
    other = gateway.save_method(MethodRequest("card", "bob", {}, token=token(double)))
    assert first.customer == again.customer != other.customer
    assert first.identity != again.identity
    assert first.identity == other.identity


def test_a_customer_that_is_known_is_used(gateway: StripeGateway, double: StripeDouble) -> None:
    known = save(gateway, double).customer
    request = MethodRequest("card", "renamed", {}, token=token(double), customer=known)
    assert gateway.save_method(request).customer == known
    assert len(double.customers) == 1


def test_a_method_that_is_attached_already_is_saved_again(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    request = MethodRequest("card", "ann", {}, token=token(double))
    assert gateway.save_method(request) == gateway.save_method(request)


def test_a_deleted_customer_is_replaced(gateway: StripeGateway, double: StripeDouble) -> None:
    known = save(gateway, double).customer
    assert known is not None
    double.delete_customer(known)
    for customer in (known, None):  # None: the answer to the first key is the deleted one
        request = MethodRequest("card", "ann", {}, token=token(double), customer=customer)
        saved = gateway.save_method(request)
        assert saved.customer in double.customers
    assert len(double.customers) == 1
    assert gateway.charge(charge_request(saved)).status == "captured"


def test_a_customer_that_is_just_being_made_is_waited_for(
    gateway: StripeGateway, double: StripeDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_of = double.answer

    def answer(request: Request) -> Answer:
        in_use = error(409, code="idempotency_key_in_use")
        return in_use if request.path == "/v1/customers" else answer_of(request)

    monkeypatch.setattr(double, "answer", answer)
    with pytest.raises(RetryLater):  # so that the same save is tried again
        save(gateway, double)


def test_customers_that_are_missing_again_and_again_are_given_up(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    for _ in range(4):
        for customer in list(double.customers):
            double.delete_customer(customer)
        try:
            save(gateway, double)
        except OutcomeUnknown:
            return
    pytest.fail("there is a limit")


def test_a_card_that_is_declined_is_not_saved(gateway: StripeGateway, double: StripeDouble) -> None:
    with pytest.raises(MethodDeclined) as caught:
        save(gateway, double, "refused")
    assert caught.value.decline_code == "generic_decline"


@pytest.mark.parametrize(
    "sent", ["pm_nobody", "tok_visa", "", "pm_", "pm_a/../b", "pm_ä", "pm_x\n"]
)
def test_what_is_no_token_is_told_what_to_send(gateway: StripeGateway, sent: str) -> None:
    with pytest.raises(MethodInvalid) as caught:
        gateway.save_method(MethodRequest("card", "ann", {}, token=sent))
    assert (caught.value.field, caught.value.code) == ("details.token", "token_unknown")
    assert "pm_…" in caught.value.message


def test_a_token_of_another_kind_is_refused(gateway: StripeGateway, double: StripeDouble) -> None:
    sent = token(double)
    double.methods[sent]["type"] = "sepa_debit"
    with pytest.raises(MethodInvalid):
        gateway.save_method(MethodRequest("card", "ann", {}, token=sent))


def test_the_method_of_another_customer_is_refused(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    saved = save(gateway, double)
    with pytest.raises(MethodInvalid):
        gateway.save_method(MethodRequest("card", "eve", {}, token=saved.token))


def by_number(number: str) -> MethodRequest:
    details = {"exp_month": 7, "exp_year": 2040, "cardholder_name": "Ann"}
    return MethodRequest("card", "ann", details, card_number=number, cvc="123")


def test_a_number_becomes_a_card(gateway: StripeGateway, double: StripeDouble) -> None:
    saved = gateway.save_method(by_number(CARDS["good_too"].number))
    assert saved.details == {
        "brand": "mastercard",
        "last4": "4444",
        "exp_month": 7,
        "exp_year": 2040,
        "cardholder_name": "Ann",
    }
    assert last_form(double, "payment_methods")["card[cvc]"] == "123"
    assert gateway.charge(charge_request(saved)).status == "captured"


def test_a_number_that_is_none_is_declined(gateway: StripeGateway) -> None:
    with pytest.raises(MethodDeclined) as caught:
        gateway.save_method(by_number("4242424242424241"))
    assert caught.value.decline_code == "incorrect_number"


def test_numbers_are_only_taken_when_they_are_allowed() -> None:
    for raw_cards in (True, False):
        gateway = gateway_for("http://127.0.0.1:9", raw_cards=raw_cards)
        assert gateway.capabilities.card_numbers is raw_cards
        gateway.close()


# Charges ----------------------------------------------------------------------------------------


def test_a_charge_is_captured(gateway: StripeGateway, double: StripeDouble) -> None:
    request, charge = pay(gateway, double)
    assert charge == Charge(charge.reference, "captured", 1099, "USD", 1099)
    (entry,) = double.books()
    assert entry.payment_id == 7
    assert (entry.amount, entry.amount_captured, entry.status) == (1099, 1099, "captured")
    form = last_form(double, "payment_intents")
    assert form["metadata[payment_id]"] == "7"
    assert form["metadata[order_id]"] == "3"
    assert form["return_url"] == RETURN_URL
    assert double.requests[-1].headers["idempotency-key"] == request.key


def test_the_same_key_charges_once(gateway: StripeGateway, double: StripeDouble) -> None:
    request, charge = pay(gateway, double)
    assert gateway.charge(request) == charge
    assert len(double.books()) == 1


def test_an_authorization_tells_until_when(gateway: StripeGateway, double: StripeDouble) -> None:
    _, charge = pay(gateway, double, capture=False)
    assert (charge.status, charge.amount_captured) == ("authorized", 0)
    assert charge.capture_before is not None
    assert timedelta(days=5) < charge.capture_before - NOW < timedelta(days=7)


@pytest.mark.parametrize(
    ("kind", "code"),
    [("declined", "generic_decline"), ("insufficient", "insufficient_funds")],
)
def test_a_decline_is_a_state(
    gateway: StripeGateway, double: StripeDouble, kind: str, code: str
) -> None:
    request, charge = pay(gateway, double, kind)
    assert charge.status == "declined"
    assert charge.decline == Decline(code, code)
    assert gateway.charge(request) == charge  # the stored answer
    assert gateway.look_up(ChargeLookup(request, charge.reference, NOW)) == charge


def test_a_shopper_who_is_there_is_sent_to_approve(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    request, charge = pay(gateway, double, "action")
    assert charge.status == "requires_action"
    assert charge.redirect_url == f"{double.base_url}/3d_secure/{charge.reference}"
    double.approve(charge.reference, yes=True)
    found = gateway.look_up(ChargeLookup(request, charge.reference, NOW))
    assert found is not None
    assert (found.status, found.redirect_url) == ("captured", None)


def test_a_shopper_who_says_no_declines(gateway: StripeGateway, double: StripeDouble) -> None:
    request, charge = pay(gateway, double, "action")
    double.approve(charge.reference, yes=False)
    found = gateway.look_up(ChargeLookup(request, charge.reference, NOW))
    assert found is not None
    assert found.decline == Decline(
        "authentication_failed", "payment_intent_authentication_failure"
    )


def test_a_shopper_who_is_not_there_cannot_approve(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, charge = pay(gateway, double, "action", off_session=True)
    assert charge.decline == Decline("authentication_required", "authentication_required")
    form = last_form(double, "payment_intents")
    assert form["automatic_payment_methods[allow_redirects]"] == "never"
    assert "return_url" not in form


@pytest.mark.parametrize(
    ("amount", "currency", "units"),
    [
        (1099, "USD", 1099),
        (500, "JPY", 500),
        (500, "ISK", 50000),
        (500, "UGX", 50000),
        (12300, "MGA", 123),
        (1090, "KWD", 1090),
        (1050, "HUF", 1050),
    ],
)
def test_amounts_are_counted_as_stripe_does(
    gateway: StripeGateway, double: StripeDouble, amount: int, currency: str, units: int
) -> None:
    _, charge = pay(gateway, double, amount=amount, currency=currency)
    form = last_form(double, "payment_intents")
    assert (form["amount"], form["currency"]) == (str(units), currency.lower())
    assert (charge.amount, charge.amount_captured, charge.currency) == (amount, amount, currency)
    (entry,) = double.books()
    assert (entry.amount, entry.currency) == (amount, currency)
    refund = gateway.refund(refund_request(charge, amount))
    assert (refund.amount, refund.currency) == (amount, currency)


@pytest.mark.parametrize(
    ("amount", "currency", "part"),
    [
        (12350, "MGA", "no decimals"),
        (1095, "KWD", "has to be 0"),
        (100_000_000, "USD", "8 digits"),
        (1_000_000, "ISK", "8 digits"),
        (10_000_000_000, "COP", "10 digits"),
        (1_000_000_000, "INR", "9 digits"),
    ],
)
def test_an_amount_that_stripe_cannot_take_is_refused_before(
    gateway: StripeGateway, amount: int, currency: str, part: str
) -> None:
    why = gateway.unsupported_amount_reason(amount, currency)
    assert why is not None
    assert part in why


@pytest.mark.parametrize(
    ("amount", "currency"),
    [(99_999_999, "USD"), (999_999, "ISK"), (999_999_999_999, "IDR"), (12300, "MGA"), (10, "TND")],
)
def test_other_amounts_are_not_refused(gateway: StripeGateway, amount: int, currency: str) -> None:
    assert gateway.unsupported_amount_reason(amount, currency) is None


def test_an_amount_that_cannot_be_expressed_is_not_sent(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    with pytest.raises(Refused):
        gateway.charge(charge_request(amount=12350, currency="MGA"))
    assert double.requests == []


# Captures, voids, refunds -----------------------------------------------------------------------


def test_a_part_is_captured_and_the_rest_released(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, charge = pay(gateway, double, capture=False)
    request = change_request(charge, "capture", 400)
    captured = gateway.capture(request)
    assert captured == Charge(charge.reference, "captured", 1099, "USD", 400)
    assert gateway.capture(request) == captured
    assert double.requests[-1].headers["idempotency-key"] == request.key


def test_more_than_authorized_is_refused(gateway: StripeGateway, double: StripeDouble) -> None:
    _, charge = pay(gateway, double, capture=False)
    with pytest.raises(Refused):
        gateway.capture(change_request(charge, "capture", 1100))


@pytest.mark.parametrize("kind", ["good", "action"])
def test_a_charge_that_is_not_captured_is_voided(
    gateway: StripeGateway, double: StripeDouble, kind: str
) -> None:
    _, charge = pay(gateway, double, kind, capture=False)
    request = change_request(charge, "void")
    assert gateway.void(request).status == "voided"
    assert gateway.void(request).status == "voided"
    (entry,) = double.books()
    assert entry.status == "voided"


def test_a_change_that_comes_too_late_is_refused(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, charge = pay(gateway, double)
    with pytest.raises(Refused):
        gateway.void(change_request(charge, "void"))
    with pytest.raises(Refused):
        gateway.capture(change_request(charge, "capture"))


def test_parts_are_refunded_up_to_what_was_captured(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, charge = pay(gateway, double)
    request = refund_request(charge, 1000)
    refund = gateway.refund(request)
    assert refund == Refund(refund.reference, "succeeded", 1000, "USD", refund_id=5)
    assert gateway.refund(request) == refund
    with pytest.raises(Refused):
        gateway.refund(refund_request(charge, 100))
    gateway.refund(refund_request(charge, 99))
    (entry,) = double.books()
    assert entry.amount_refunded == 1099


def test_a_reason_is_stripes_or_stands_in_the_metadata(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, charge = pay(gateway, double)
    gateway.refund(refund_request(charge, 1, "duplicate"))
    form = last_form(double, "refunds")
    assert form["reason"] == "duplicate"
    assert (form["metadata[payment_id]"], form["metadata[refund_id]"]) == ("7", "5")
    assert form["metadata[key]"] == double.requests[-1].headers["idempotency-key"]
    gateway.refund(refund_request(charge, 1, "x" * 600))
    form = last_form(double, "refunds")
    assert "reason" not in form
    assert form["metadata[reason]"] == "x" * 500


# Lost answers -----------------------------------------------------------------------------------


def test_a_charge_whose_answer_was_lost_is_asked_for_again(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    request, charge = pay(gateway, double)
    assert gateway.look_up(ChargeLookup(request, None, NOW)) == charge
    assert double.requests[-1].headers["idempotency-key"] == request.key
    assert len(double.books()) == 1


def test_a_charge_that_never_arrived_is_made_by_looking_it_up(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    request = charge_request(save(gateway, double))
    found = gateway.look_up(ChargeLookup(request, None, NOW))
    assert found is not None
    assert found.status == "captured"
    assert gateway.charge(request) == found


def test_a_charge_that_stripe_refuses_never_happened(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    request = dataclasses.replace(charge_request(save(gateway, double)), token="pm_gone")
    assert gateway.look_up(ChargeLookup(request, None, NOW)) is None
    assert double.books() == []


@pytest.mark.parametrize("by_customer", [True, False])
def test_an_old_charge_is_found_and_never_posted_again(
    gateway: StripeGateway, double: StripeDouble, by_customer: bool
) -> None:
    request, charge = pay(gateway, double)
    gateway.charge(charge_request(save(gateway, double)))  # the same ids, as a test system has
    if not by_customer:
        request = dataclasses.replace(request, customer=None)
    posts = sum(one.method == "POST" for one in double.requests)
    assert gateway.look_up(ChargeLookup(request, None, LONG_AGO)) == as_read(charge)
    assert sum(one.method == "POST" for one in double.requests) == posts


def test_an_old_charge_that_no_list_shows_was_never_made(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    request = charge_request(save(gateway, double))
    assert gateway.look_up(ChargeLookup(request, None, LONG_AGO)) is None
    assert double.books() == []


def test_a_stored_500_says_nothing_so_the_charge_is_searched(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    request, charge = pay(gateway, double)
    path, body, _ = double.keys[request.key]
    double.keys[request.key] = (path, body, Answer(500, {"error": {"type": "api_error"}}))
    assert gateway.look_up(ChargeLookup(request, None, NOW)) == as_read(charge)
    double.intents.clear()
    with pytest.raises(OutcomeUnknown):
        gateway.look_up(ChargeLookup(request, None, NOW))


def test_another_request_under_our_key_is_unknown() -> None:
    with StripeDouble() as double:
        gateway = gateway_for(double.base_url)
        request, _ = pay(gateway, double)
        with pytest.raises(OutcomeUnknown):
            gateway.charge(dataclasses.replace(request, amount=1))
        gateway.close()
        assert len(double.violations) == 1
        assert len(double.books()) == 1


def test_a_reference_is_read(gateway: StripeGateway, double: StripeDouble) -> None:
    request, charge = pay(gateway, double, capture=False)
    assert gateway.look_up(ChargeLookup(request, charge.reference, LONG_AGO)) == as_read(charge)
    double.expire(charge.reference)
    found = gateway.look_up(ChargeLookup(request, charge.reference, LONG_AGO))
    assert found is not None
    assert found.status == "voided"
    with pytest.raises(OutcomeUnknown):
        gateway.look_up(ChargeLookup(request, "pi_nobody", NOW))


@pytest.mark.parametrize("operation", ["capture", "void"])
def test_a_change_that_was_done_is_read(
    gateway: StripeGateway, double: StripeDouble, operation: ChargeOperation
) -> None:
    _, charge = pay(gateway, double, capture=False)
    request = change_request(charge, operation)
    done = gateway.capture(request) if operation == "capture" else gateway.void(request)
    before = len(double.requests)
    assert gateway.look_up(ChargeLookup(request, charge.reference, LONG_AGO)) == as_read(done)
    assert [one.method for one in double.requests[before:]] == ["GET"]


@pytest.mark.parametrize("operation", ["capture", "void"])
def test_a_change_that_was_not_done_is_done_while_the_key_lives(
    gateway: StripeGateway, double: StripeDouble, operation: ChargeOperation
) -> None:
    _, charge = pay(gateway, double, capture=False)
    request = change_request(charge, operation, 400)
    # Once the key is forgotten nothing of ours can arrive any more, and nothing is sent again.
    assert gateway.look_up(ChargeLookup(request, charge.reference, LONG_AGO)) is None
    found = gateway.look_up(ChargeLookup(request, charge.reference, NOW))
    assert found is not None
    assert found.status == ("captured" if operation == "capture" else "voided")
    assert found.amount_captured == (400 if operation == "capture" else 0)


def test_a_change_of_what_has_ended_is_told_how_it_ended(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, charge = pay(gateway, double, capture=False)
    gateway.void(change_request(charge, "void"))
    found = gateway.look_up(ChargeLookup(change_request(charge, "capture"), None, NOW))
    assert found is not None
    assert found.status == "voided"


def test_a_completion_is_read(gateway: StripeGateway, double: StripeDouble) -> None:
    _, charge = pay(gateway, double)
    request = change_request(charge, "complete")
    assert gateway.look_up(ChargeLookup(request, charge.reference, NOW)) == as_read(charge)
    with pytest.raises(Refused):
        gateway.complete(request)


def test_a_refund_whose_answer_was_lost_is_found(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, charge = pay(gateway, double)
    request = refund_request(charge, 400)
    refund = gateway.look_up_refund(RefundLookup(request, None, NOW))
    assert refund is not None
    assert gateway.look_up_refund(RefundLookup(request, None, NOW)) == refund
    assert gateway.look_up_refund(RefundLookup(request, None, LONG_AGO)) == refund
    assert gateway.look_up_refund(RefundLookup(request, refund.reference, LONG_AGO)) == refund
    assert len(double.refunds) == 1


def test_a_refund_that_stripe_refuses_never_happened(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, charge = pay(gateway, double)
    request = refund_request(charge, 1100)
    assert gateway.look_up_refund(RefundLookup(request, None, NOW)) is None


def test_an_old_refund_that_no_list_shows_was_never_made(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, charge = pay(gateway, double)
    assert gateway.look_up_refund(RefundLookup(refund_request(charge, 1), None, LONG_AGO)) is None
    assert double.books()[-1].amount_refunded == 0
    with pytest.raises(OutcomeNotShown):
        gateway.look_up_refund(RefundLookup(refund_request(charge, 1), "re_nobody", NOW))


# Outcomes ---------------------------------------------------------------------------------------


class Script(Double):
    """A server that answers everything alike, and not as Stripe does."""

    def __init__(self) -> None:
        super().__init__()
        self.reply = Answer(500)

    def __enter__(self) -> Script:
        super().__enter__()
        return self

    def answer(self, request: Request) -> Answer:
        return self.reply


INTENT = {
    "id": "pi_1",
    "object": "payment_intent",
    "status": "succeeded",
    "amount": 1099,
    "amount_received": 1099,
    "currency": "usd",
    "created": 1_800_000_000,
}
REFUND = {"id": "re_1", "status": "succeeded", "amount": 100, "currency": "usd"}
CHARGED = Charge("pi_1", "captured", 1099, "USD", 1099)


def error(status: int, kind: str = "invalid_request_error", **fields: Any) -> Answer:
    return Answer(status, {"error": {"type": kind, "message": "echo 4242", **fields}})


Scripted = Callable[[Answer], tuple[StripeGateway, Script]]


@pytest.fixture(scope="module")
def server_and_gateway() -> Iterator[tuple[Script, StripeGateway]]:
    with Script() as script:
        gateway = gateway_for(script.base_url, raw_cards=True)
        yield script, gateway
        gateway.close()


@pytest.fixture
def scripted(server_and_gateway: tuple[Script, StripeGateway]) -> Scripted:
    """A gateway that gets this answer to whatever it asks."""
    script, gateway = server_and_gateway

    def start(answer: Answer) -> tuple[StripeGateway, Script]:
        script.reply = answer
        script.requests.clear()
        return gateway, script

    return start


MONEY: dict[str, Callable[[StripeGateway], object]] = {
    "charge": lambda gateway: gateway.charge(charge_request()),
    "capture": lambda gateway: gateway.capture(change_request(CHARGED, "capture")),
    "void": lambda gateway: gateway.void(change_request(CHARGED, "void")),
    "refund": lambda gateway: gateway.refund(refund_request(CHARGED, 100)),
}
every_money = pytest.mark.parametrize("money", MONEY.values(), ids=MONEY)

SURELY_NOT: dict[str, tuple[Answer, type[NotExecuted]]] = {
    "400": (error(400, code="parameter_invalid_integer"), Refused),
    "400 state": (error(400, code="payment_intent_unexpected_state"), Refused),
    "404": (error(404, code="resource_missing"), Refused),
    "401": (error(401), NotExecuted),
    "403": (error(403), NotExecuted),
    "429": (error(429, code="rate_limit"), RetryLater),
    "429 lock": (error(429, code="lock_timeout"), RetryLater),
    "429 without JSON": (Answer(429, b"slow down"), RetryLater),
    "400 rate limit": (error(400, code="rate_limit"), RetryLater),
}
UNKNOWN: dict[str, Answer] = {
    "500": error(500, "api_error"),
    "502 HTML": Answer(502, b"<html>bad gateway</html>"),
    "503 empty": Answer(503, b""),
    "409 key in use": error(409, code="idempotency_key_in_use"),
    "400 key in use": error(400, code="idempotency_key_in_use"),
    "400 idempotency": error(400, "idempotency_error"),
    "402 without a charge": error(402, "card_error", code="card_declined"),
    "402 with nonsense": error(402, "card_error", code="card_declined", payment_intent={}),
    "418": error(418),
    "301": Answer(301, b"", {"Location": "/elsewhere"}),
    "307 with JSON": Answer(307, {"id": "pi_1"}, {"Location": "/elsewhere"}),
    "400 HTML": Answer(400, b"<html>"),
    "401 HTML": Answer(401, b"<html>"),
    "400 OAuth": Answer(400, {"error": "invalid_request"}),
    "401 OAuth": Answer(401, {"error": "invalid_client"}),
    "400 null": Answer(400, {"error": None}),
    "400 list": Answer(400, []),
    "200 HTML": Answer(200, b"<html>ok</html>"),
    "200 empty": Answer(200, b""),
    "200 not UTF-8": Answer(200, b'{"id": "\xff"}'),
    "200 cut off": Answer(200, b'{"id": "pi_1", "obj'),
    "200 deep": Answer(200, b"[" * 100_000),
    "200 {}": Answer(200, {}),
    "200 []": Answer(200, []),
    "200 null": Answer(200, b"null"),
    "200 text": Answer(200, b'"pi_1"'),
    "200 without id": Answer(200, {**INTENT, "id": None}),
    "200 without status": Answer(200, {**INTENT, "status": None}),
    "200 amount as text": Answer(200, {**INTENT, "amount": "1099"}),
    "200 amount as truth": Answer(200, {**INTENT, "amount": True}),
    "200 negative amount": Answer(200, {**INTENT, "amount": -1}),
    "200 no currency": Answer(200, {**INTENT, "currency": "nothing"}),
    "200 number for all": Answer(200, dict.fromkeys(INTENT, 1)),
}


@every_money
@pytest.mark.parametrize(("answer", "kind"), SURELY_NOT.values(), ids=SURELY_NOT)
def test_an_answer_that_says_no_is_surely_not_done(
    scripted: Scripted,
    answer: Answer,
    kind: type[NotExecuted],
    money: Callable[[StripeGateway], object],
) -> None:
    gateway, script = scripted(answer)
    with pytest.raises(NotExecuted) as caught:
        money(gateway)
    assert type(caught.value) is kind or (kind is Refused and isinstance(caught.value, Refused))
    assert len(script.requests) == 1  # adapters never repeat
    assert "4242" not in str(caught.value)


@every_money
@pytest.mark.parametrize("answer", UNKNOWN.values(), ids=UNKNOWN)
def test_an_answer_that_says_nothing_is_unknown(
    scripted: Scripted, answer: Answer, money: Callable[[StripeGateway], object]
) -> None:
    gateway, script = scripted(answer)
    with pytest.raises(OutcomeUnknown) as caught:
        money(gateway)
    assert len(script.requests) == 1
    assert "4242" not in str(caught.value)


def test_busy_tells_when_to_come_back(scripted: Scripted) -> None:
    gateway, _ = scripted(dataclasses.replace(error(429), headers={"Retry-After": "3"}))
    with pytest.raises(RetryLater) as caught:
        gateway.charge(charge_request())
    assert caught.value.retry_after == 3.0


@every_money
def test_a_refused_connection_is_surely_not_done(
    money: Callable[[StripeGateway], object],
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refused
        gateway = gateway_for(f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(RetryLater):
            money(gateway)
        gateway.close()


@pytest.mark.parametrize("base_url", ["http://nowhere.invalid", "http://", "ftp://127.0.0.1"])
def test_a_host_that_is_none_is_surely_not_done(base_url: str) -> None:
    gateway = gateway_for(base_url)
    with pytest.raises(RetryLater):
        gateway.charge(charge_request())
    gateway.close()


@contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that takes one connection and treats it as it likes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            connection, _ = server.accept()
            with connection:
                serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def test_a_failed_handshake_is_surely_not_done() -> None:
    def no_tls(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 400 this is no TLS\r\n\r\n")

    with raw_server(no_tls) as port:
        gateway = gateway_for(f"https://127.0.0.1:{port}")
        with pytest.raises(RetryLater):
            gateway.charge(charge_request())
        gateway.close()


def close_at_once(connection: socket.socket) -> None:
    connection.recv(65536)


def reset(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def half_an_answer(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")


def no_http(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"nonsense\r\n\r\n")


def say_nothing(connection: socket.socket) -> None:
    while connection.recv(65536):  # until the caller has had enough
        pass


@every_money
@pytest.mark.parametrize("serve", [close_at_once, reset, half_an_answer, no_http, say_nothing])
def test_a_connection_that_breaks_after_the_request_is_unknown(
    serve: Callable[[socket.socket], None], money: Callable[[StripeGateway], object]
) -> None:
    with raw_server(serve) as port:
        gateway = gateway_for(f"http://127.0.0.1:{port}", timeout=0.2)
        with pytest.raises(OutcomeUnknown):
            money(gateway)
        gateway.close()


def exceptions_of_the_sdk(of: type[stripe.StripeError]) -> list[type[stripe.StripeError]]:
    below = [deeper for found in of.__subclasses__() for deeper in exceptions_of_the_sdk(found)]
    return [of, *below]


MAPPED: dict[str, type[GatewayError]] = {
    "RateLimitError": RetryLater,
    "AuthenticationError": NotExecuted,
    "PermissionError": NotExecuted,
    "InvalidRequestError": Refused,
    "CardError": CardDeclined,
}


def instance(of: type[stripe.StripeError], status: int) -> stripe.StripeError:
    """An exception as the SDK makes it: with its message, and the body of an answer."""
    answer: dict[str, Any] = {
        "http_body": "echo 4242",
        "http_status": status,
        "json_body": {"error": {"code": "echo 4242", "message": "echo 4242"}},
        "headers": {"request-id": "req_1"},
    }
    if issubclass(of, stripe.SignatureVerificationError):
        return of("echo 4242", "t=1")
    if issubclass(of, stripe.oauth_error.OAuthError):
        return of("echo 4242", "echo 4242", **answer)
    if of in (stripe.CardError, stripe.InvalidRequestError):
        return of("echo 4242", param="echo 4242", code="echo 4242", **answer)
    return of("echo 4242", **answer)


def test_every_exception_of_the_sdk_is_mapped() -> None:
    walked = exceptions_of_the_sdk(stripe.StripeError)
    assert len(walked) > 20
    assert {of.__name__ for of in walked} >= MAPPED.keys()
    for of in walked:
        ours = translate(instance(of, 400))
        oauth = issubclass(of, stripe.oauth_error.OAuthError)
        expected = OutcomeUnknown if oauth else MAPPED.get(of.__name__, OutcomeUnknown)
        assert isinstance(ours, expected), of
        assert isinstance(ours, NotExecuted) == issubclass(expected, NotExecuted), of
        assert "4242" not in str(ours), of
        # An answer that says it does not know is unknown, whatever the exception is called.
        if of is stripe.InvalidRequestError:
            assert isinstance(translate(instance(of, 500)), OutcomeUnknown)


@pytest.mark.parametrize("found", [ValueError("echo 4242"), KeyError("x"), RuntimeError()])
def test_an_exception_that_is_not_the_sdks_is_unknown(
    found: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise found

    gateway = gateway_for("http://127.0.0.1:9")
    monkeypatch.setattr(stripe.HTTPClient, "request_with_retries", fail)
    with pytest.raises(OutcomeUnknown) as caught:
        gateway.charge(charge_request())
    assert str(caught.value) == type(found).__name__
    gateway.close()


STATES = {
    "requires_confirmation": "processing",
    "processing": "processing",
    "a word of next year": "processing",
    "requires_action": "processing",  # without a URL
    "requires_capture": "authorized",
    "requires_payment_method": "declined",
    "canceled": "voided",
    "succeeded": "captured",
}


@pytest.mark.parametrize(("theirs", "ours"), STATES.items())
def test_every_status_has_its_word(scripted: Scripted, theirs: str, ours: str) -> None:
    gateway, _ = scripted(Answer(200, {**INTENT, "status": theirs}))
    charge = gateway.charge(charge_request())
    assert charge.status == ours
    assert charge.amount_captured == (1099 if ours == "captured" else 0)
    if ours == "authorized":  # where the charge does not tell
        created = datetime.fromtimestamp(1_800_000_000, timezone.utc)
        assert charge.capture_before == created + timedelta(days=7)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        *(("succeeded", "succeeded"), ("pending", "pending"), ("failed", "failed")),
        *(("canceled", "failed"), ("requires_action", "pending"), ("a new word", "pending")),
    ],
)
def test_every_status_of_a_refund_has_its_word(scripted: Scripted, theirs: str, ours: str) -> None:
    gateway, _ = scripted(Answer(200, {**REFUND, "status": theirs}))
    assert gateway.refund(refund_request(CHARGED, 100)).status == ours


def test_what_is_not_ours_is_reported_as_it_is(scripted: Scripted) -> None:
    other = {**INTENT, "id": "pi_other", "amount": 5, "amount_received": 5, "currency": "jpy"}
    gateway, _ = scripted(Answer(200, other))
    assert gateway.charge(charge_request()) == Charge("pi_other", "captured", 5, "JPY", 5)


def test_a_capture_that_is_declined_leaves_the_money_held(scripted: Scripted) -> None:
    held = {**INTENT, "status": "requires_capture", "amount_received": 0}
    answer = error(402, "card_error", code="card_declined", payment_intent=held)
    gateway, _ = scripted(answer)
    charge = gateway.capture(change_request(CHARGED, "capture"))
    assert charge.status == "declined"
    assert charge.decline == Decline("generic_decline", "card_declined")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
def test_a_question_that_fails_says_nothing_about_the_charge(
    scripted: Scripted, status: int
) -> None:
    queries = [
        ChargeLookup(charge_request(), "pi_1", NOW),
        ChargeLookup(charge_request(), None, LONG_AGO),
        ChargeLookup(change_request(CHARGED, "capture"), "pi_1", NOW),
    ]
    gateway, _ = scripted(error(status))
    for query in queries:
        with pytest.raises(OutcomeUnknown):
            gateway.look_up(query)
    for reference, requested_at in (("re_1", NOW), (None, LONG_AGO)):
        refunded = RefundLookup(refund_request(CHARGED, 1), reference, requested_at)
        with pytest.raises(OutcomeUnknown):
            gateway.look_up_refund(refunded)


@pytest.mark.parametrize("status", [401, 403, 429])
def test_a_repeat_that_is_not_let_in_says_nothing_about_the_first(
    scripted: Scripted, status: int
) -> None:
    gateway, script = scripted(error(status))
    with pytest.raises(OutcomeUnknown):
        gateway.look_up(ChargeLookup(charge_request(), None, NOW))
    with pytest.raises(OutcomeUnknown):
        gateway.look_up_refund(RefundLookup(refund_request(CHARGED, 1), None, NOW))
    assert [request.method for request in script.requests] == ["POST", "POST"]


SAVING = MethodRequest("card", "ann", {}, token="pm_1")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        *((error(400), MethodInvalid), (error(404), MethodInvalid)),
        *((error(401), NotExecuted), (error(403), NotExecuted), (error(429), RetryLater)),
        *(
            (error(500), OutcomeUnknown),
            (Answer(200, {}), OutcomeUnknown),
            (Answer(200, b"<"), OutcomeUnknown),
        ),
        (error(402, "card_error", code="expired_card"), MethodDeclined),
    ],
)
def test_saving_a_method_fails_with_the_errors_of_the_contract(
    scripted: Scripted, answer: Answer, kind: type[GatewayError]
) -> None:
    gateway, _ = scripted(answer)
    with pytest.raises(kind):
        gateway.save_method(SAVING)


def test_raw_cards_that_stripe_does_not_allow_are_refused(scripted: Scripted) -> None:
    gateway, _ = scripted(error(400))
    with pytest.raises(Refused):
        gateway.save_method(by_number("4242424242424242"))


# Secrets ----------------------------------------------------------------------------------------


def test_nothing_that_must_not_be_kept_is_logged(
    gateway: StripeGateway, double: StripeDouble, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        gateway.save_method(by_number(CARDS["good"].number))
        pay(gateway, double, "declined")
        with pytest.raises(Refused) as caught:
            gateway.charge(charge_request())
    assert "stripe" not in {record.name.partition(".")[0] for record in caplog.records}
    for hidden in ("4242424242424242", API_KEY, "pm_any", "secret"):
        assert hidden not in caplog.text + str(caught.value) + repr(gateway)


# Settings ---------------------------------------------------------------------------------------


def test_the_gateway_is_built_from_the_settings(double: StripeDouble) -> None:
    settings = Settings(_env_file=None, **double.settings())
    gateway = StripeGateway.build(settings, sa.create_engine("sqlite://"))
    assert not gateway.capabilities.card_numbers
    assert gateway.capabilities.payment_types == {"card"}
    _, charge = pay(gateway, double)
    assert charge.status == "captured"
    gateway.close()


@pytest.mark.parametrize("missing", ["stripe_api_key", "stripe_webhook_secret"])
@pytest.mark.parametrize("value", [None, SecretStr("")])
def test_a_setting_that_is_missing_is_named(missing: str, value: SecretStr | None) -> None:
    given = {"stripe_api_key": SecretStr("sk_1"), "stripe_webhook_secret": SecretStr("whsec_1")}
    settings = Settings(_env_file=None).model_copy(update={**given, missing: value})
    with pytest.raises(ConfigurationError) as caught:
        StripeGateway.check(settings)
    assert missing.upper() in str(caught.value)
    assert "_1" not in str(caught.value)


def test_a_loud_sdk_is_refused(double: StripeDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIPE_LOG", "debug")
    settings = Settings(_env_file=None, **double.settings())
    with pytest.raises(ConfigurationError, match="STRIPE_LOG"):
        StripeGateway.check(settings)


# Webhooks ---------------------------------------------------------------------------------------


def events_of(gateway: StripeGateway, double: StripeDouble) -> dict[str, GatewayEvent]:
    """The events that were sent, by type, the newest of each."""
    found = [gateway.parse_webhook(httpx.Headers(head), body) for head, body in double.sent]
    return {event.type: event for event in found}


def test_events_tell_the_state_of_a_charge(gateway: StripeGateway, double: StripeDouble) -> None:
    _, captured = pay(gateway, double)
    _, held = pay(gateway, double, capture=False)
    _, declined = pay(gateway, double, "insufficient")
    _, waiting = pay(gateway, double, "action")
    events = events_of(gateway, double)
    for kind, charge in {
        "payment_intent.succeeded": captured,
        "payment_intent.amount_capturable_updated": held,
        "payment_intent.payment_failed": declined,
        "payment_intent.requires_action": waiting,
    }.items():
        event = events[kind]
        assert (event.payment_id, event.reference) == (7, charge.reference)
        assert event.charge is not None
        # An event names the charge behind it only, which knows when exactly it ends.
        assert dataclasses.replace(event.charge, capture_before=charge.capture_before) == charge
    double.expire(held.reference)
    events = events_of(gateway, double)
    for kind in ("charge.expired", "payment_intent.canceled"):
        assert events[kind].payment_id == 7
        assert events[kind].charge == Charge(held.reference, "voided", 1099, "USD")


def test_events_tell_of_refunds(gateway: StripeGateway, double: StripeDouble) -> None:
    _, charge = pay(gateway, double)
    refund = gateway.refund(refund_request(charge, 400))
    double.fail_refund(refund.reference)
    events = events_of(gateway, double)
    created, failed = events["refund.created"], events["refund.failed"]
    assert (created.refund, created.payment_id) == (refund, 7)
    assert created.refund_key == double.refunds[refund.reference]["metadata"]["key"]
    assert failed.refund == dataclasses.replace(refund, status="failed")
    assert failed.reference == charge.reference
    refunded = events["charge.refunded"]
    assert refunded.needs_lookup
    assert (refunded.reference, refunded.payment_id) == (charge.reference, 7)


def test_a_refund_that_was_made_by_hand_has_no_id_of_ours(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, charge = pay(gateway, double)
    reference = double.refund_outside(charge.reference, 300)
    event = events_of(gateway, double)["refund.created"]
    assert event.refund == Refund(reference, "succeeded", 300, "USD")
    assert (event.payment_id, event.reference) == (None, charge.reference)


@pytest.mark.parametrize("won", [True, False])
def test_events_tell_of_disputes(gateway: StripeGateway, double: StripeDouble, won: bool) -> None:
    _, charge = pay(gateway, double)
    dispute = double.dispute(charge.reference)
    event = events_of(gateway, double)["charge.dispute.created"]
    due = datetime.fromtimestamp(
        double.disputes[dispute]["evidence_details"]["due_by"], timezone.utc
    )
    assert event.dispute == Dispute(dispute, "open", 1099, "USD", "fraudulent", due)
    assert event.reference == charge.reference
    double.close_dispute(dispute, won=won)
    closed = events_of(gateway, double)["charge.dispute.closed"].dispute
    assert closed is not None
    assert closed.status == ("won" if won else "lost")


def test_events_tell_of_methods(gateway: StripeGateway, double: StripeDouble) -> None:
    saved = save(gateway, double)
    double.replace_card(saved.token, last4="1111", exp_year=2050)
    double.detach(saved.token)
    events = events_of(gateway, double)
    details = {"brand": "visa", "last4": "1111", "exp_month": 12, "exp_year": 2050}
    updated = events["payment_method.automatically_updated"]
    assert updated.method == MethodChange(saved.token, details)
    assert events["payment_method.detached"].method == MethodChange(saved.token, None)


def event(kind: str, found: Any, **changes: Any) -> tuple[dict[str, str], bytes]:
    """A signed event."""
    body = {"id": "evt_1", "object": "event", "type": kind, "data": {"object": found}, **changes}
    raw = json.dumps(body).encode()
    return signed(raw), raw


def signed(raw: bytes) -> dict[str, str]:
    return {"stripe-signature": sign(raw, SECRET, int(time.time()))}


@pytest.fixture(scope="module")
def reader() -> Iterator[StripeGateway]:
    gateway = gateway_for("http://127.0.0.1:9")
    yield gateway
    gateway.close()


def test_a_charge_without_our_key_is_somebody_elses(reader: StripeGateway) -> None:
    intent = {**INTENT, "metadata": {"payment_id": "7"}}
    found = reader.parse_webhook(*event("payment_intent.succeeded", intent))
    assert found == GatewayEvent("evt_1", "payment_intent.succeeded", None, None)


@pytest.mark.parametrize("kind", ["customer.created", "payment_intent.created", "x", "v2.core.a"])
def test_other_events_mean_nothing(reader: StripeGateway, kind: str) -> None:
    assert reader.parse_webhook(*event(kind, None)) == GatewayEvent("evt_1", kind, None, None)


@pytest.mark.parametrize(
    "payment_id",
    [None, "", "0", "-7", "+7", "07", "7.0", "７", "7 ", "1e3", "9" * 19, "9" * 5000, 7, {}, []],
)
def test_an_id_that_is_not_ours_leaves_the_reference(
    reader: StripeGateway, payment_id: object
) -> None:
    intent = {**INTENT, "metadata": {"payment_id": payment_id, "key": "key-1"}}
    found = reader.parse_webhook(*event("payment_intent.succeeded", intent))
    assert (found.payment_id, found.reference) == (None, "pi_1")
    assert found.charge == CHARGED


def test_an_id_may_be_as_large_as_a_bigint(reader: StripeGateway) -> None:
    intent = {**INTENT, "metadata": {"payment_id": str(2**63 - 1), "key": "key-1"}}
    found = reader.parse_webhook(*event("payment_intent.succeeded", intent))
    assert found.payment_id == 2**63 - 1


@pytest.mark.parametrize("kind", ["charge.expired", "charge.refunded"])
def test_a_charge_without_a_payment_intent_is_none_of_ours(
    reader: StripeGateway, kind: str
) -> None:
    charge = {"id": "ch_1", "amount": 5, "currency": "usd", "payment_intent": None}
    found = reader.parse_webhook(*event(kind, charge))
    assert found == GatewayEvent("evt_1", kind, None, None)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        *(("needs_response", "open"), ("under_review", "open"), ("a new word", "open")),
        *(("warning_needs_response", "open"), ("warning_closed", "won")),
        *(("won", "won"), ("lost", "lost")),
    ],
)
def test_every_status_of_a_dispute_has_its_word(
    reader: StripeGateway, theirs: str, ours: str
) -> None:
    dispute = {
        **{"id": "du_1", "amount": 5, "currency": "usd", "payment_intent": "pi_1"},
        **{"reason": "a sentence, perhaps", "status": theirs},
    }
    found = reader.parse_webhook(*event("charge.dispute.updated", dispute)).dispute
    assert found == Dispute("du_1", ours, 5, "USD", "general")  # type: ignore[arg-type]


def test_a_method_that_is_no_card_changes_nothing(reader: StripeGateway) -> None:
    kind = "payment_method.automatically_updated"
    found = reader.parse_webhook(*event(kind, {"id": "pm_1", "type": "link"}))
    assert found == GatewayEvent("evt_1", kind, None, None)


@pytest.mark.parametrize("age", [0, 290, -290])
def test_a_webhook_is_taken_within_the_tolerance(
    reader: StripeGateway, double: StripeDouble, age: float
) -> None:
    forged = double.forge(*event("x", None), age=age)
    assert forged is not None
    reader.parse_webhook(httpx.Headers(forged[0]), forged[1])


@pytest.mark.parametrize(("age", "foreign"), [(310, False), (-310, False), (0, True)])
def test_a_webhook_is_refused_out_of_time_or_of_another_endpoint(
    reader: StripeGateway, double: StripeDouble, age: float, foreign: bool
) -> None:
    _, body = event("x", None)
    forged = double.forge({}, body, age=age, foreign=foreign)
    assert forged is not None
    with pytest.raises(SignatureInvalid):
        reader.parse_webhook(httpx.Headers(forged[0]), forged[1])


def test_while_a_secret_is_rotated_both_are_good() -> None:
    gateway = gateway_for("http://127.0.0.1:9", webhook_secrets=["whsec_new", SECRET])
    _, body = event("x", None)
    now = int(time.time())
    old, new = sign(body, SECRET, now), sign(body, "whsec_new", now)
    both = f"{sign(body, FOREIGN_SECRET, now)},{new.partition(',')[2]}"
    for header in (old, new, both):
        gateway.parse_webhook({"stripe-signature": header}, body)
    with pytest.raises(SignatureInvalid):
        gateway.parse_webhook({"stripe-signature": sign(body, FOREIGN_SECRET, now)}, body)
    gateway.close()


@pytest.mark.parametrize("place", [0, 5, -1])
def test_a_changed_body_is_refused(reader: StripeGateway, place: int) -> None:
    headers, body = event("x", None)
    changed = bytearray(body)
    changed[place] ^= 1
    with pytest.raises(SignatureInvalid):
        reader.parse_webhook(headers, bytes(changed))


@pytest.mark.parametrize(
    "header",
    [
        *("", "t=", "v1=", "t=1", "v1=a", "t=a,v1=b", "t=1=2,v1=b", ",,,", "=", "t=-1,v1=b"),
        *("t=1,v0=b", "t=" + "9" * 5000 + ",v1=b", "t=１,v1=b", "t=1,v1=é", "t=1,v1=\udcff"),
        *("t=1,t=2,v1=b", "t=1_0,v1=b", "t=99999999999999,v1=b", "\x00", "t=1,v1=" + "a" * 9000),
    ],
    ids=lambda header: ascii(header[:16]),
)
def test_an_absurd_header_is_refused(reader: StripeGateway, header: str) -> None:
    with pytest.raises(SignatureInvalid):
        reader.parse_webhook({"stripe-signature": header}, b"{}")


def test_no_header_is_refused(reader: StripeGateway) -> None:
    with pytest.raises(SignatureInvalid):
        reader.parse_webhook({}, b"{}")


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"nonsense", b"\xff\xfe", b"{", b"[]", b"null", b"1", b'"text"', b"{}"),
        *(b"[" * 100_000, b'{"a":' * 100_000, b'{"id": 1, "type": "x"}', b'{"id": "evt_1"}'),
        b'{"id": "evt_1", "type": {}}',
        b'{"id": "evt_1", "type": "refund.created"}',
        b'{"id": "evt_1", "type": "refund.created", "data": []}',
        b'{"id": "evt_1", "type": "refund.created", "data": {"object": "re_1"}}',
        b'{"id": "evt_1", "type": "payment_intent.succeeded",'
        b' "data": {"object": {"metadata": {"key": "key-1"}}}}',
    ],
    ids=lambda body: ascii(body[:16]),
)
def test_a_signed_body_that_is_no_event_is_refused(reader: StripeGateway, body: bytes) -> None:
    with pytest.raises(SignatureInvalid):
        reader.parse_webhook(signed(body), body)


@pytest.mark.parametrize("name", ["id", "status", "amount", "amount_received", "currency"])
def test_an_event_without_a_field_is_refused(reader: StripeGateway, name: str) -> None:
    ours = {**INTENT, "metadata": {"payment_id": "7", "key": "key-1"}}
    intent = {key: value for key, value in ours.items() if key != name}
    with pytest.raises(SignatureInvalid):
        reader.parse_webhook(*event("payment_intent.succeeded", intent))


# Many at once -----------------------------------------------------------------------------------


def test_one_gateway_serves_many_threads(gateway: StripeGateway, double: StripeDouble) -> None:
    method = save(gateway, double)
    request = charge_request(method)
    answers: list[Charge] = []
    with ExitStack() as stack:
        for _ in range(8):
            thread = threading.Thread(target=lambda: answers.append(gateway.charge(request)))
            thread.start()
            stack.callback(thread.join)
    assert len(answers) == 8
    assert len({charge.reference for charge in answers}) == 1
    assert len(double.books()) == 1
