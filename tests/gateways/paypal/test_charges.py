"""Methods, charges, captures, voids and refunds against the double."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import httpx
import pytest

from conformance.doubles.paypal import PaypalDouble
from gateways.base import (
    Charge,
    ChargeLookup,
    Decline,
    MethodDeclined,
    MethodInvalid,
    MethodRequest,
    Refund,
    RefundLookup,
    Refused,
)
from gateways.paypal import PayPalGateway
from gateways.paypal.gateway import HONOR_PERIOD
from tests.support.paypal import (
    RETURN_URL,
    a_change,
    a_charge,
    a_refund,
    authorized,
    book,
    captured,
    key_of,
    utc_now,
)

# Methods ----------------------------------------------------------------------------------------


def test_a_method_by_email_is_approved_by_redirect_each_time(paypal: PayPalGateway) -> None:
    request = MethodRequest("paypal", "u", {"email": "a***@x.example"}, email="ann@x.example")
    saved = paypal.save_method(request)
    assert (saved.token, saved.identity) == ("redirect", None)
    assert saved.details == {"email": "a***@x.example"}


def test_a_vault_token_is_saved_with_a_masked_email_and_the_account(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    token = double.vault_token()
    saved = paypal.save_method(MethodRequest("paypal", "u", {}, token=token))
    assert saved.token == token
    assert saved.details == {"email": "g***@example.com"}
    assert saved.identity == "AGOOD00000000"
    assert saved.customer == "CGOOD00000"


def test_an_approved_setup_token_becomes_a_vault_token_and_twice_is_the_same(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request = MethodRequest("paypal", "u", {}, token=double.setup_token())
    first, second = paypal.save_method(request), paypal.save_method(request)
    assert first.token == second.token
    assert first.token in double.vault


@pytest.mark.parametrize(
    "make",
    [
        lambda double: double.setup_token(approved=False),
        lambda double: double.vault_token(card=True),
        lambda _: "NOSUCHTOKEN",
        lambda _: "../../v1/oauth2/token",
        lambda _: "",
    ],
)
def test_what_is_no_paypal_account_is_an_invalid_token(
    paypal: PayPalGateway, double: PaypalDouble, make: Callable[[PaypalDouble], str]
) -> None:
    with pytest.raises(MethodInvalid) as caught:
        paypal.save_method(MethodRequest("paypal", "u", {}, token=make(double)))
    assert (caught.value.field, caught.value.code) == ("details.token", "token_unknown")


def test_a_setup_token_can_be_declined(paypal: PayPalGateway, double: PaypalDouble) -> None:
    token = double.setup_token(declined=True)
    with pytest.raises(MethodDeclined) as caught:
        paypal.save_method(MethodRequest("paypal", "u", {}, token=token))
    assert caught.value.decline_code == "generic_decline"


# Charges by redirect ----------------------------------------------------------------------------


def test_a_redirect_charge_waits_is_approved_and_completed(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request = a_charge()
    waiting = paypal.charge(request)
    assert waiting.status == "requires_action"
    assert waiting.redirect_url is not None
    page = httpx.get(waiting.redirect_url)
    assert page.headers["location"].startswith(f"{RETURN_URL}&token={waiting.reference}&PayerID=")
    seen = paypal.look_up(ChargeLookup(request, waiting.reference, utc_now()))
    assert seen == replace(waiting, status="approved", redirect_url=None)
    done = paypal.complete(a_change(request, waiting.reference, "complete"))
    assert done == Charge(
        waiting.reference, "captured", 1099, "USD", amount_captured=1099, refunds=()
    )
    assert paypal.complete(a_change(request, waiting.reference, "complete")) == done
    other_key = a_change(request, waiting.reference, "complete", key=str(uuid.uuid4()))
    assert paypal.complete(other_key) == done
    assert book(double, waiting.reference).amount_captured == 1099


def test_a_redirect_charge_can_be_authorized_only(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request = a_charge(capture=False)
    waiting = paypal.charge(request)
    double.approve(waiting.reference)
    done = paypal.complete(a_change(request, waiting.reference, "complete"))
    assert done.status == "authorized"
    assert done.capture_before is not None


def test_completing_what_is_not_approved_still_requires_action(paypal: PayPalGateway) -> None:
    request = a_charge()
    waiting = paypal.charge(request)
    assert paypal.complete(a_change(request, waiting.reference, "complete")) == waiting


def test_a_payer_who_cancels_may_come_back(paypal: PayPalGateway, double: PaypalDouble) -> None:
    request = a_charge()
    waiting = paypal.charge(request)
    page = httpx.get(f"{waiting.redirect_url}&cancel=1")
    assert page.headers["location"] == f"{RETURN_URL}&token={waiting.reference}"
    assert paypal.look_up(ChargeLookup(request, waiting.reference, utc_now())) == waiting


def test_a_decline_on_completion_is_a_state(paypal: PayPalGateway, double: PaypalDouble) -> None:
    request = a_charge()
    waiting = paypal.charge(request)
    double.fund(waiting.reference, "TRANSACTION_LIMIT_EXCEEDED")
    double.approve(waiting.reference)
    done = paypal.complete(a_change(request, waiting.reference, "complete"))
    assert done.status == "declined"
    assert done.decline == Decline("limit_exceeded", "TRANSACTION_LIMIT_EXCEEDED")
    assert (done.reference, done.amount) == (waiting.reference, 1099)


# Charges by vault token -------------------------------------------------------------------------


def test_a_vaulted_account_is_charged_at_once_and_once_per_key(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request = a_charge(double.vault_token(), off_session=True)
    first = paypal.charge(request)
    assert first == Charge(
        first.reference, "captured", 1099, "USD", amount_captured=1099, refunds=()
    )
    assert paypal.charge(request) == first
    entry = book(double, first.reference)
    assert (entry.payment_id, entry.amount, entry.status) == (7, 1099, "captured")


@pytest.mark.parametrize(
    ("funding", "decline"),
    [
        ("INSTRUMENT_DECLINED", Decline("generic_decline", "INSTRUMENT_DECLINED")),
        ("COMPLIANCE_VIOLATION", Decline("fraudulent", "COMPLIANCE_VIOLATION")),
        ("TOKEN_ID_NOT_FOUND", Decline("generic_decline", "TOKEN_ID_NOT_FOUND")),
        ("5120", Decline("insufficient_funds", "5120")),
    ],
)
@pytest.mark.parametrize("capture", [True, False])
def test_a_decline_of_a_vaulted_account_is_a_state(
    paypal: PayPalGateway, double: PaypalDouble, funding: str, decline: Decline, capture: bool
) -> None:
    request = a_charge(double.vault_token(funding=funding), capture=capture)
    charge = paypal.charge(request)
    assert (charge.status, charge.decline) == ("declined", decline)
    assert (charge.amount, charge.currency, charge.amount_captured) == (1099, "USD", 0)
    assert charge.reference  # even where PayPal made no order


@pytest.mark.parametrize("capture", [True, False])
def test_a_pending_payment_is_processing_until_it_is_decided(
    paypal: PayPalGateway, double: PaypalDouble, capture: bool
) -> None:
    request = a_charge(double.vault_token(funding="PENDING"), capture=capture)
    assert paypal.charge(request).status == "processing"


def test_a_vaulted_payer_may_have_to_approve_after_all(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    charge = paypal.charge(a_charge(double.vault_token(funding="PAYER_ACTION_REQUIRED")))
    assert charge.status == "requires_action"
    assert charge.redirect_url is not None


def test_a_payer_who_is_not_there_cannot_approve(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    vaulted = double.vault_token(funding="PAYER_ACTION_REQUIRED")
    for token in (vaulted, "redirect"):
        charge = paypal.charge(a_charge(token, off_session=True))
        assert (charge.status, charge.redirect_url) == ("declined", None)
        assert charge.decline == Decline("authentication_required", "PAYER_ACTION_REQUIRED")


# Capture, void ----------------------------------------------------------------------------------


def test_a_part_is_captured_and_the_rest_released(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request, charge = authorized(paypal, double)
    assert charge.status == "authorized"
    assert charge.capture_before is not None
    change = a_change(request, charge.reference, "capture", amount=600)
    done = paypal.capture(change)
    assert done == Charge(charge.reference, "captured", 1099, "USD", amount_captured=600)
    in_books = replace(done, refunds=())
    assert paypal.look_up(ChargeLookup(request, charge.reference, utc_now())) == in_books
    again = a_change(request, charge.reference, "capture", amount=600)
    assert paypal.capture(again) == in_books
    assert book(double, charge.reference).amount_captured == 600


def test_within_the_honor_period_nothing_is_reauthorized(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request, charge = authorized(paypal, double)
    double.pass_days(HONOR_PERIOD.days - 0.1)
    assert paypal.capture(a_change(request, charge.reference, "capture")).status == "captured"
    held = [one for one in double.authorizations.values() if one["order"] == charge.reference]
    assert [one["status"] for one in held] == ["CAPTURED"]


def test_after_the_honor_period_the_capture_is_of_a_new_authorization(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request, charge = authorized(paypal, double)
    double.pass_days(HONOR_PERIOD.days + 1)
    change = a_change(request, charge.reference, "capture", amount=600)
    assert paypal.capture(change).amount_captured == 600
    old, new = (one for one in double.authorizations.values() if one["order"] == charge.reference)
    assert (old["status"], new["status"]) == ("CREATED", "CAPTURED")
    assert new["amount"] == Decimal("10.99")  # all of it is held, not the part
    assert paypal.look_up(ChargeLookup(change, charge.reference, utc_now())) == Charge(
        charge.reference, "captured", 1099, "USD", amount_captured=600, refunds=()
    )


def test_what_cannot_be_reauthorized_twice_is_captured_as_it_is(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request, charge = authorized(paypal, double)
    (one,) = (one for one in double.authorizations.values() if one["order"] == charge.reference)
    one["renewed"] = True
    double.pass_days(10)
    assert paypal.capture(a_change(request, charge.reference, "capture")).status == "captured"


def test_an_expired_authorization_is_voided(paypal: PayPalGateway, double: PaypalDouble) -> None:
    request, charge = authorized(paypal, double)
    double.pass_days(30)
    change = a_change(request, charge.reference, "capture")
    assert paypal.capture(change).status == "voided"
    seen = paypal.look_up(ChargeLookup(request, charge.reference, utc_now() - timedelta(days=30)))
    assert seen is not None
    assert (seen.status, seen.capture_before) == ("voided", None)


def test_a_declined_capture_is_a_state(paypal: PayPalGateway, double: PaypalDouble) -> None:
    request, charge = authorized(paypal, double)
    double.fund(charge.reference, "PAYER_CANNOT_PAY")
    refused = paypal.capture(a_change(request, charge.reference, "capture"))
    assert refused.decline == Decline("generic_decline", "PAYER_CANNOT_PAY")
    double.fund(charge.reference, "5120")
    declined = paypal.capture(a_change(request, charge.reference, "capture"))
    assert declined.status == "declined"
    assert declined.decline == Decline("insufficient_funds", "5120")
    assert declined.amount_captured == 0


def test_capturing_too_much_is_refused(paypal: PayPalGateway, double: PaypalDouble) -> None:
    request, charge = authorized(paypal, double)
    with pytest.raises(Refused, match="MAX_CAPTURE_AMOUNT_EXCEEDED debug_id"):
        paypal.capture(a_change(request, charge.reference, "capture", amount=2000))


def test_an_order_without_authorization_cannot_be_captured(paypal: PayPalGateway) -> None:
    request = a_charge(capture=False)
    waiting = paypal.charge(request)
    with pytest.raises(Refused):
        paypal.capture(a_change(request, waiting.reference, "capture"))


def test_an_authorization_is_voided_and_twice_is_no_mistake(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request, charge = authorized(paypal, double)
    change = a_change(request, charge.reference, "void")
    voided = replace(charge, status="voided", capture_before=None)
    assert paypal.void(change) == voided
    assert paypal.void(change) == voided
    assert paypal.look_up(ChargeLookup(change, charge.reference, utc_now())) == voided
    assert paypal.capture(a_change(request, charge.reference, "capture")) == voided
    assert book(double, charge.reference).status == "voided"


def test_voiding_what_is_captured_tells_the_truth(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request, charge = authorized(paypal, double)
    done = paypal.capture(a_change(request, charge.reference, "capture"))
    assert paypal.void(a_change(request, charge.reference, "void")) == replace(done, refunds=())
    direct = captured(paypal, double)
    assert paypal.void(a_change(request, direct.reference, "void")) == direct


@pytest.mark.parametrize("approved", [True, False])
def test_an_unpaid_order_is_given_up_without_a_request(
    paypal: PayPalGateway, double: PaypalDouble, approved: bool
) -> None:
    request = a_charge()
    waiting = paypal.charge(request)
    double.approve(waiting.reference, yes=approved)
    double.requests.clear()
    change = a_change(request, waiting.reference, "void")
    voided = replace(waiting, status="voided", redirect_url=None)
    assert paypal.void(change) == voided
    assert paypal.look_up(ChargeLookup(change, waiting.reference, utc_now())) == voided
    assert {request.method for request in double.requests} == {"GET"}


# Refunds ----------------------------------------------------------------------------------------


def test_refunds_go_up_to_what_was_captured(paypal: PayPalGateway, double: PaypalDouble) -> None:
    charge = captured(paypal, double)
    request = a_refund(charge, reason="Arrived late")
    first = paypal.refund(request)
    assert first == Refund(first.reference, "succeeded", 500, "USD", refund_id=3)
    assert paypal.refund(request) == first
    with pytest.raises(Refused, match="REFUND_AMOUNT_EXCEEDED"):
        paypal.refund(a_refund(charge, 600))
    rest = paypal.refund(a_refund(charge, 599, refund_id=4))
    assert rest.status == "succeeded"
    with pytest.raises(Refused, match="CAPTURE_FULLY_REFUNDED"):
        paypal.refund(a_refund(charge, 1))
    entry = book(double, charge.reference)
    assert (entry.amount_captured, entry.amount_refunded) == (1099, 1099)
    made = a_charge(key=key_of(double, charge.reference))
    seen = paypal.look_up(ChargeLookup(made, charge.reference, utc_now()))
    # A refunded charge is still a captured one.
    assert seen == replace(charge, refunds=(first, rest))
    stored = double.refunds[first.reference]
    assert (stored["custom_id"], stored["note_to_payer"]) == ("7-3", "Arrived late")


@pytest.mark.parametrize("reason", ["x" * 256, "two\nlines"])
def test_a_reason_that_does_not_fit_is_not_sent(
    paypal: PayPalGateway, double: PaypalDouble, reason: str
) -> None:
    refund = paypal.refund(a_refund(captured(paypal, double), reason=reason))
    assert "note_to_payer" not in double.refunds[refund.reference]


def test_a_pending_refund_can_fail(paypal: PayPalGateway, double: PaypalDouble) -> None:
    charge = captured(paypal, double)
    double.refund_status = "PENDING"
    request = a_refund(charge)
    refund = paypal.refund(request)
    assert refund.status == "pending"
    double.settle_refund(refund.reference, "FAILED")
    seen = paypal.look_up_refund(RefundLookup(request, refund.reference, utc_now()))
    assert seen == replace(refund, status="failed")


def test_what_is_not_captured_cannot_be_refunded(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    _, charge = authorized(paypal, double)
    with pytest.raises(Refused):
        paypal.refund(a_refund(charge))
    pending = paypal.charge(a_charge(double.vault_token(funding="PENDING")))
    with pytest.raises(Refused):
        paypal.refund(a_refund(pending))
