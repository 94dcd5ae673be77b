"""What became of requests whose answer was lost."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from conformance.doubles.paypal import PaypalDouble
from gateways.base import (
    Charge,
    ChargeLookup,
    OutcomeUnknown,
    RefundLookup,
    Refused,
)
from gateways.paypal import PayPalGateway
from gateways.paypal.gateway import ORDER_KEY_LIFETIME, PAYMENT_KEY_LIFETIME, UNPAID_ORDER_LIFETIME
from tests.support.paypal import a_change, a_charge, a_refund, authorized, book, captured, utc_now


def test_a_lost_charge_is_found_by_asking_again(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request = a_charge(double.vault_token())
    charge = paypal.charge(request)
    count = len(double.orders)
    assert paypal.look_up(ChargeLookup(request, None, utc_now())) == charge
    assert len(double.orders) == count


def test_a_charge_that_paypal_refuses_never_happened(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request = a_charge(double.vault_token(funding="PAYEE_ACCOUNT_RESTRICTED"))
    with pytest.raises(Refused):
        paypal.charge(request)
    assert paypal.look_up(ChargeLookup(request, None, utc_now())) is None


def test_a_lost_charge_is_never_repeated_once_its_key_is_forgotten(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request = a_charge(double.vault_token())
    count = len(double.requests)
    too_old = utc_now() - ORDER_KEY_LIFETIME - timedelta(seconds=1)
    with pytest.raises(OutcomeUnknown):
        paypal.look_up(ChargeLookup(request, None, too_old))
    assert len(double.requests) == count


def test_an_order_that_paypal_does_not_know_is_unknown(paypal: PayPalGateway) -> None:
    with pytest.raises(OutcomeUnknown):
        paypal.look_up(
            ChargeLookup(a_charge("vault"), "NOSUCHORDER", utc_now() - timedelta(days=9))
        )
    with pytest.raises(OutcomeUnknown):
        paypal.look_up(ChargeLookup(a_charge(), "NOSUCHORDER", utc_now()))
    with pytest.raises(OutcomeUnknown):
        paypal.look_up(ChargeLookup(a_charge(), "../no/order", utc_now() - timedelta(days=9)))


def test_an_order_that_nobody_paid_expires(paypal: PayPalGateway, double: PaypalDouble) -> None:
    request = a_charge()
    waiting = paypal.charge(request)
    double.forget(waiting.reference)
    requested_at = utc_now() - UNPAID_ORDER_LIFETIME - timedelta(seconds=1)
    seen = paypal.look_up(ChargeLookup(request, waiting.reference, requested_at))
    assert seen == Charge(waiting.reference, "voided", 1099, "USD")


def test_a_lost_capture_is_found_or_done_once(paypal: PayPalGateway, double: PaypalDouble) -> None:
    request, charge = authorized(paypal, double)
    change = a_change(request, charge.reference, "capture", amount=600)
    not_done = paypal.look_up(ChargeLookup(change, charge.reference, utc_now()))
    assert not_done is not None
    assert (not_done.status, not_done.amount_captured) == ("captured", 600)
    in_books = replace(not_done, refunds=())
    assert paypal.look_up(ChargeLookup(change, charge.reference, utc_now())) == in_books
    assert book(double, charge.reference).amount_captured == 600


def test_a_capture_is_never_repeated_once_its_key_is_forgotten(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request, charge = authorized(paypal, double)
    change = a_change(request, charge.reference, "capture")
    too_old = utc_now() - PAYMENT_KEY_LIFETIME * 1.01
    with pytest.raises(OutcomeUnknown):
        paypal.look_up(ChargeLookup(change, charge.reference, too_old))
    assert book(double, charge.reference).status == "authorized"


def test_a_capture_that_paypal_refuses_never_happened(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request, charge = authorized(paypal, double)
    change = a_change(request, charge.reference, "capture", amount=2000)
    assert paypal.look_up(ChargeLookup(change, charge.reference, utc_now())) is None


def test_a_lost_completion_and_a_lost_void_are_done(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request = a_charge(capture=False)
    waiting = paypal.charge(request)
    complete = a_change(request, waiting.reference, "complete")
    assert paypal.look_up(ChargeLookup(complete, waiting.reference, utc_now())) == waiting
    double.approve(waiting.reference)
    too_old = utc_now() - ORDER_KEY_LIFETIME * 1.01
    with pytest.raises(OutcomeUnknown):
        paypal.look_up(ChargeLookup(complete, waiting.reference, too_old))
    done = paypal.look_up(ChargeLookup(complete, waiting.reference, utc_now()))
    assert done is not None
    assert done.status == "authorized"
    void = a_change(request, waiting.reference, "void")
    seen = paypal.look_up(ChargeLookup(void, waiting.reference, utc_now() - timedelta(days=100)))
    assert seen is not None
    assert seen.status == "voided"


def test_a_lost_refund_is_found_by_asking_again(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    charge = captured(paypal, double)
    request = a_refund(charge)
    refund = paypal.refund(request)
    assert paypal.look_up_refund(RefundLookup(request, None, utc_now())) == refund
    assert paypal.look_up_refund(RefundLookup(request, refund.reference, utc_now())) == refund
    double.keys.clear()  # PayPal has forgotten them, but its books show what was made
    assert paypal.look_up_refund(RefundLookup(request, None, utc_now())) == refund
    too_much = RefundLookup(a_refund(charge, 5000), None, utc_now())
    assert paypal.look_up_refund(too_much) is None
    with pytest.raises(OutcomeUnknown):
        paypal.look_up_refund(RefundLookup(request, None, utc_now() - PAYMENT_KEY_LIFETIME * 1.01))
    with pytest.raises(OutcomeUnknown):
        paypal.look_up_refund(RefundLookup(request, "NOSUCHREFUND", utc_now()))
    assert book(double, charge.reference).amount_refunded == 500
