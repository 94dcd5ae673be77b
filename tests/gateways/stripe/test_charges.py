"""Methods, charges, captures, voids and refunds, over real HTTP against a double."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from datetime import timedelta

import pytest

from conformance.doubles.server import Answer, Request
from conformance.doubles.stripe import (
    CARDS,
    StripeDouble,
)
from gateways.base import (
    Charge,
    ChargeLookup,
    Decline,
    MethodDeclined,
    MethodInvalid,
    MethodRequest,
    OutcomeUnknown,
    Refund,
    Refused,
    RetryLater,
)
from gateways.stripe import StripeGateway
from tests.support.stripe import (
    NOW,
    RETURN_URL,
    change_request,
    charge_request,
    gateway_for,
    last_form,
    pay,
    refund_request,
    save,
    token,
)
from tests.support.stripe_answers import by_number, error

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
