"""The PayPal adapter, over real HTTP, against its double; and against answers out of a can."""

from __future__ import annotations

import json
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from cryptography import x509

from config import ConfigurationError, Settings
from gateways.base import (
    Busy,
    CannotTell,
    ChangeRequest,
    Charge,
    ChargeRequest,
    Decline,
    GatewayEvent,
    LookUp,
    MethodDeclined,
    MethodInvalid,
    MethodRequest,
    NotDone,
    Refund,
    RefundLookUp,
    RefundRequest,
    Refused,
    SignatureInvalid,
    Unknown,
)
from gateways.paypal import PayPalGateway, amounts
from gateways.paypal.certificates import CACHE_SIZE, MAX_BYTES, Certificates
from gateways.paypal.client import Client
from gateways.paypal.gateway import HONOR_PERIOD, ORDER_KEYS, PAYMENT_KEYS, UNPAID_ORDER_LIFE
from gateways.paypal.states import moment, payment_id
from tests.gateways.doubles.paypal import PaypalDouble, Signer
from tests.gateways.doubles.server import Answer, Double, Request

RETURN_URL = "https://shop.example/return?order=1"
ENGINE = sa.create_engine("postgresql+psycopg2://")  # the adapter has no tables


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PaypalDouble]:
    with PaypalDouble(tmp_path_factory.mktemp("paypal")) as running:
        assert isinstance(running, PaypalDouble)
        yield running


@pytest.fixture(autouse=True)
def strict(double: PaypalDouble) -> Iterator[None]:
    """After each test: nothing was done that a client must not do."""
    double.refund_status = "COMPLETED"
    yield
    violations, double.violations = double.violations, []
    assert violations == []


def built(settings: Mapping[str, Any]) -> PayPalGateway:
    made = Settings(_env_file=None, **settings)
    PayPalGateway.check(made)
    return PayPalGateway.build(made, ENGINE)


@pytest.fixture(scope="module")
def paypal(double: PaypalDouble) -> Iterator[PayPalGateway]:
    gateway = built(double.settings())
    yield gateway
    gateway.close()


def a_charge(token: str = "redirect", **changes: Any) -> ChargeRequest:
    return ChargeRequest(
        **{
            "key": str(uuid.uuid4()),
            "payment_id": 7,
            "order_id": 70,
            "amount": 1099,
            "currency": "USD",
            "token": token,
            "capture": True,
            "return_url": RETURN_URL,
            **changes,
        }
    )


def a_change(request: ChargeRequest, reference: str, operation: Any, **changes: Any) -> Any:
    return ChangeRequest(
        **{
            "operation": operation,
            "key": request.key if operation == "complete" else str(uuid.uuid4()),
            "reference": reference,
            "payment_id": request.payment_id,
            "amount": request.amount,
            "currency": request.currency,
            "charged": request.amount,
            "capture": request.capture,
            **changes,
        }
    )


def a_refund(charge: Charge, amount: int = 500, **changes: Any) -> RefundRequest:
    return RefundRequest(
        **{
            "key": str(uuid.uuid4()),
            "reference": charge.reference,
            "payment_id": 7,
            "refund_id": 3,
            "amount": amount,
            "currency": charge.currency,
            **changes,
        }
    )


def authorized(
    paypal: PayPalGateway, double: PaypalDouble, **changes: Any
) -> tuple[ChargeRequest, Charge]:
    request = a_charge(double.vault_token(), capture=False, **changes)
    return request, paypal.charge(request)


def captured(paypal: PayPalGateway, double: PaypalDouble, **changes: Any) -> Charge:
    return paypal.charge(a_charge(double.vault_token(), **changes))


def book(double: PaypalDouble, reference: str) -> Any:
    return next(entry for entry in double.books() if entry.reference == reference)


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
    seen = paypal.look_up(LookUp(request, waiting.reference, utc_now()))
    assert seen == replace(waiting, status="approved", redirect_url=None)
    done = paypal.complete(a_change(request, waiting.reference, "complete"))
    assert done == Charge(waiting.reference, "captured", 1099, "USD", amount_captured=1099)
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
    assert paypal.look_up(LookUp(request, waiting.reference, utc_now())) == waiting


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
    assert first == Charge(first.reference, "captured", 1099, "USD", amount_captured=1099)
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
    assert paypal.look_up(LookUp(request, charge.reference, utc_now())) == done
    again = a_change(request, charge.reference, "capture", amount=600)
    assert paypal.capture(again) == done  # the books already show it
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
    assert paypal.look_up(LookUp(change, charge.reference, utc_now())) == Charge(
        charge.reference, "captured", 1099, "USD", amount_captured=600
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
    seen = paypal.look_up(LookUp(request, charge.reference, utc_now() - timedelta(days=30)))
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
    assert paypal.look_up(LookUp(change, charge.reference, utc_now())) == voided
    assert paypal.capture(a_change(request, charge.reference, "capture")) == voided
    assert book(double, charge.reference).status == "voided"


def test_voiding_what_is_captured_tells_the_truth(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request, charge = authorized(paypal, double)
    done = paypal.capture(a_change(request, charge.reference, "capture"))
    assert paypal.void(a_change(request, charge.reference, "void")) == done
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
    assert paypal.look_up(LookUp(change, waiting.reference, utc_now())) == voided
    assert {request.method for request in double.requests} == {"GET"}


# Refunds ----------------------------------------------------------------------------------------


def test_refunds_go_up_to_what_was_captured(paypal: PayPalGateway, double: PaypalDouble) -> None:
    charge = captured(paypal, double)
    request = a_refund(charge, reason="Arrived late")
    first = paypal.refund(request)
    assert first == Refund(first.reference, "succeeded", 500, "USD")
    assert paypal.refund(request) == first
    with pytest.raises(Refused, match="REFUND_AMOUNT_EXCEEDED"):
        paypal.refund(a_refund(charge, 600))
    assert paypal.refund(a_refund(charge, 599)).status == "succeeded"
    with pytest.raises(Refused, match="CAPTURE_FULLY_REFUNDED"):
        paypal.refund(a_refund(charge, 1))
    entry = book(double, charge.reference)
    assert (entry.amount_captured, entry.amount_refunded) == (1099, 1099)
    seen = paypal.look_up(LookUp(a_charge(), charge.reference, utc_now()))
    assert seen == charge  # a refunded charge is still a captured one
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
    seen = paypal.look_up_refund(RefundLookUp(request, refund.reference, utc_now()))
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


# Questions --------------------------------------------------------------------------------------


def test_a_lost_charge_is_found_by_asking_again(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request = a_charge(double.vault_token())
    charge = paypal.charge(request)
    count = len(double.orders)
    assert paypal.look_up(LookUp(request, None, utc_now())) == charge
    assert len(double.orders) == count


def test_a_charge_that_paypal_refuses_never_happened(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request = a_charge(double.vault_token(funding="PAYEE_ACCOUNT_RESTRICTED"))
    with pytest.raises(Refused):
        paypal.charge(request)
    assert paypal.look_up(LookUp(request, None, utc_now())) is None


def test_a_lost_charge_is_never_repeated_once_its_key_is_forgotten(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request = a_charge(double.vault_token())
    count = len(double.requests)
    with pytest.raises(Unknown):
        paypal.look_up(LookUp(request, None, utc_now() - ORDER_KEYS - timedelta(seconds=1)))
    assert len(double.requests) == count


def test_an_order_that_paypal_does_not_know_is_unknown(paypal: PayPalGateway) -> None:
    with pytest.raises(Unknown):
        paypal.look_up(LookUp(a_charge("vault"), "NOSUCHORDER", utc_now() - timedelta(days=9)))
    with pytest.raises(Unknown):
        paypal.look_up(LookUp(a_charge(), "NOSUCHORDER", utc_now()))
    with pytest.raises(Unknown):
        paypal.look_up(LookUp(a_charge(), "../no/order", utc_now() - timedelta(days=9)))


def test_an_order_that_nobody_paid_expires(paypal: PayPalGateway, double: PaypalDouble) -> None:
    request = a_charge()
    waiting = paypal.charge(request)
    double.forget(waiting.reference)
    asked_at = utc_now() - UNPAID_ORDER_LIFE - timedelta(seconds=1)
    seen = paypal.look_up(LookUp(request, waiting.reference, asked_at))
    assert seen == Charge(waiting.reference, "voided", 1099, "USD")


def test_a_lost_capture_is_found_or_done_once(paypal: PayPalGateway, double: PaypalDouble) -> None:
    request, charge = authorized(paypal, double)
    change = a_change(request, charge.reference, "capture", amount=600)
    not_done = paypal.look_up(LookUp(change, charge.reference, utc_now()))
    assert not_done is not None
    assert (not_done.status, not_done.amount_captured) == ("captured", 600)
    assert paypal.look_up(LookUp(change, charge.reference, utc_now())) == not_done
    assert book(double, charge.reference).amount_captured == 600


def test_a_capture_is_never_repeated_once_its_key_is_forgotten(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request, charge = authorized(paypal, double)
    change = a_change(request, charge.reference, "capture")
    with pytest.raises(Unknown):
        paypal.look_up(LookUp(change, charge.reference, utc_now() - PAYMENT_KEYS * 1.01))
    assert book(double, charge.reference).status == "authorized"


def test_a_capture_that_paypal_refuses_never_happened(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request, charge = authorized(paypal, double)
    change = a_change(request, charge.reference, "capture", amount=2000)
    assert paypal.look_up(LookUp(change, charge.reference, utc_now())) is None


def test_a_lost_completion_and_a_lost_void_are_done(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request = a_charge(capture=False)
    waiting = paypal.charge(request)
    complete = a_change(request, waiting.reference, "complete")
    assert paypal.look_up(LookUp(complete, waiting.reference, utc_now())) == waiting
    double.approve(waiting.reference)
    with pytest.raises(Unknown):
        paypal.look_up(LookUp(complete, waiting.reference, utc_now() - ORDER_KEYS * 1.01))
    done = paypal.look_up(LookUp(complete, waiting.reference, utc_now()))
    assert done is not None
    assert done.status == "authorized"
    void = a_change(request, waiting.reference, "void")
    seen = paypal.look_up(LookUp(void, waiting.reference, utc_now() - timedelta(days=100)))
    assert seen is not None
    assert seen.status == "voided"


def test_a_lost_refund_is_found_by_asking_again(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    charge = captured(paypal, double)
    request = a_refund(charge)
    refund = paypal.refund(request)
    assert paypal.look_up_refund(RefundLookUp(request, None, utc_now())) == refund
    assert paypal.look_up_refund(RefundLookUp(request, refund.reference, utc_now())) == refund
    # It may be too much because it was made before, under a key that PayPal has forgotten.
    too_much = RefundLookUp(a_refund(charge, 5000), None, utc_now())
    with pytest.raises(CannotTell):
        paypal.look_up_refund(too_much)
    with pytest.raises(Unknown):
        paypal.look_up_refund(RefundLookUp(request, None, utc_now() - PAYMENT_KEYS * 1.01))
    with pytest.raises(Unknown):
        paypal.look_up_refund(RefundLookUp(request, "NOSUCHREFUND", utc_now()))
    assert book(double, charge.reference).amount_refunded == 500


# Amounts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "currency", "value"),
    [
        (1099, "USD", "10.99"),
        (1, "EUR", "0.01"),
        (500, "JPY", "500"),
        (50_000, "HUF", "500"),
        (12_300, "TWD", "123"),
        (999_999_999_999, "USD", "9999999999.99"),
    ],
)
def test_amounts_are_written_with_paypals_decimals(
    paypal: PayPalGateway, double: PaypalDouble, amount: int, currency: str, value: str
) -> None:
    assert paypal.refuse_amount(amount, currency) is None
    assert amounts.write(amount, currency) == {"currency_code": currency, "value": value}
    charge = captured(paypal, double, amount=amount, currency=currency)
    assert (charge.amount, charge.currency, charge.amount_captured) == (amount, currency, amount)
    assert book(double, charge.reference).amount == amount


@pytest.mark.parametrize(("amount", "currency"), [(1050, "HUF"), (1, "TWD"), (100, "KWD")])
def test_amounts_that_paypal_cannot_take_are_refused_before_they_are_sent(
    paypal: PayPalGateway, double: PaypalDouble, amount: int, currency: str
) -> None:
    assert str(paypal.refuse_amount(amount, currency)).endswith(".")
    count = len(double.requests)
    with pytest.raises(Refused):
        paypal.charge(a_charge(amount=amount, currency=currency))
    assert len(double.requests) == count


@pytest.mark.parametrize("value", ["", "-1.00", "1e3", "NaN", "1.005", "1" * 15, "١.00", None, 5])
def test_an_amount_that_is_none_is_unknown(value: Any) -> None:
    with pytest.raises(Unknown):
        amounts.read({"currency_code": "USD", "value": value})


@pytest.mark.parametrize(
    "money", [None, [], {}, {"value": "1.00"}, {"value": "1", "currency_code": "XXX"}]
)
def test_money_without_its_parts_is_unknown(money: Any) -> None:
    with pytest.raises(Unknown):
        amounts.read(money)


def test_our_payment_ids_are_plain_positive_integers() -> None:
    assert payment_id("7") == 7
    assert payment_id(str(2**63 - 1)) == 2**63 - 1
    for other in (
        str(2**63),
        "0",
        "07",
        "-7",
        "+7",
        " 7",
        "7\n",
        "٧",
        "7.0",
        "",
        7,
        None,
        "9" * 5000,
    ):
        assert payment_id(other) is None


def test_times_are_read_with_their_zone_or_not_at_all() -> None:
    assert moment("2026-01-02T03:04:05Z") == datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    assert moment("2022-10-21T06:42:32.606Z") is not None
    for other in ("2026-01-02T03:04:05", "yesterday", "", "2" * 100, None, 5):
        assert moment(other) is None


# Outcomes ---------------------------------------------------------------------------------------


TOKEN = Answer(200, {"access_token": "t", "expires_in": 9000})


class Canned(Double):
    """Answers with what it is told, whatever it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.token = TOKEN
        self.answers: list[Answer] = []

    def answer(self, request: Request) -> Answer:
        if request.path == "/v1/oauth2/token":
            return self.token
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def asked(self, path: str) -> int:
        return sum(request.path == path for request in self.requests)


@pytest.fixture(scope="module")
def can() -> Iterator[Canned]:
    with Canned() as running:
        assert isinstance(running, Canned)
        yield running


@pytest.fixture
def canned(can: Canned) -> Canned:
    can.requests.clear()
    can.token = TOKEN
    return can


def asking(canned: Canned) -> PayPalGateway:
    return built(
        {
            "paypal_client_id": "id",
            "paypal_client_secret": "secret",
            "paypal_api_base": canned.base_url,
            "gateway_timeout": 2.0,
        }
    )


@pytest.fixture(scope="module")
def asked(can: Canned) -> Iterator[PayPalGateway]:
    gateway = asking(can)
    yield gateway
    gateway.close()


@pytest.fixture
def newcomer(canned: Canned) -> Iterator[PayPalGateway]:
    """A gateway that has no access token yet."""
    gateway = asking(canned)
    yield gateway
    gateway.close()


def error(status: int, issue: str | None = None, **more: Any) -> Answer:
    body: dict[str, Any] = {"name": "SOME_ERROR", "message": "secret echo", "debug_id": "d1"}
    if issue is not None:
        body["details"] = [{"issue": issue, "description": "secret echo", "value": "secret echo"}]
    return Answer(status, {**body, **more})


def order(status: str = "COMPLETED", **payments: Any) -> dict[str, Any]:
    unit: dict[str, Any] = {"amount": {"currency_code": "USD", "value": "10.99"}, "custom_id": "7"}
    return {"id": "ORDER1", "status": status, "purchase_units": [{**unit, "payments": payments}]}


def paid(status: str, **more: Any) -> dict[str, Any]:
    amount = {"currency_code": "USD", "value": "10.99"}
    return {"id": "PAYMENT1", "status": status, "amount": amount, **more}


HTML = Answer(200, b"<html>maintenance</html>", {"Content-Type": "text/html"})
TRUNCATED = Answer(201, b'{"id": "ORDER1", "status": "COMP')

UNKNOWN = [
    error(500, "INTERNAL_SERVER_ERROR"),
    error(503),
    HTML,
    TRUNCATED,
    Answer(307, None, {"Location": "/elsewhere"}),
    Answer(200, {}),
    Answer(200, []),
    Answer(201, b""),
    Answer(201, {"id": "ORDER1", "status": "COMPLETED"}),
    Answer(201, {**order(), "id": None}),
    Answer(201, {**order(), "id": "../x"}),
    Answer(201, {**order(), "status": None}),
    Answer(201, order("COMPLETED")),
    Answer(201, order("COMPLETED", captures=[{"id": "C", "status": "COMPLETED"}])),
    error(409, "PREVIOUS_REQUEST_IN_PROGRESS"),
    error(422, "PREVIOUS_REQUEST_IN_PROGRESS"),
    error(422, "ORDER_COMPLETION_IN_PROGRESS"),
    error(422, "DUPLICATE_REQUEST_ID"),
    error(422, "DUPLICATE_INVOICE_ID"),
    error(408),
    Answer(400, {"error": "not PayPal's words"}),
    Answer(404, {}),
    Answer(422, b"<html>"),
]
REFUSED = [
    error(400),
    error(400, "MISSING_REQUIRED_PARAMETER"),
    error(400, "MALFORMED_REQUEST_JSON"),
    error(422),
    error(422, "PAYEE_ACCOUNT_RESTRICTED"),
    error(422, "CANNOT_BE_ZERO_OR_NEGATIVE"),
    error(422, "AN_ISSUE_OF_TOMORROW"),
    Answer(422, {"name": "UNPROCESSABLE_ENTITY", "details": "nonsense"}),
]
NOT_DONE = [
    error(401),
    Answer(401, {"error": "invalid_token"}),
    error(403, "PERMISSION_DENIED"),
    error(404, "INVALID_RESOURCE_ID"),
    error(415),
]


@pytest.mark.parametrize("answer", UNKNOWN)
def test_what_leaves_a_doubt_is_unknown(
    asked: PayPalGateway, canned: Canned, answer: Answer
) -> None:
    canned.answers = [answer]
    with pytest.raises(Unknown):
        asked.charge(a_charge())
    with pytest.raises(Unknown):
        asked.complete(a_change(a_charge(), "ORDER1", "complete"))
    with pytest.raises(Unknown):
        asked.look_up(LookUp(a_charge(), "ORDER1", utc_now()))
    with pytest.raises(Unknown):
        asked.look_up(LookUp(a_charge(), None, utc_now()))


@pytest.mark.parametrize("answer", REFUSED)
def test_what_paypals_checks_refuse_was_surely_not_done(
    asked: PayPalGateway, canned: Canned, answer: Answer
) -> None:
    canned.answers = [answer]
    with pytest.raises(Refused):
        asked.charge(a_charge())
    with pytest.raises(Refused):
        asked.complete(a_change(a_charge(), "ORDER1", "complete"))
    assert asked.look_up(LookUp(a_charge(), None, utc_now())) is None


@pytest.mark.parametrize("answer", NOT_DONE)
def test_what_says_nothing_about_another_request_is_not_done_but_not_refused(
    asked: PayPalGateway, canned: Canned, answer: Answer
) -> None:
    canned.answers = [answer]
    with pytest.raises(NotDone) as caught:
        asked.charge(a_charge())
    assert not isinstance(caught.value, Refused)
    with pytest.raises(Unknown):
        asked.look_up(LookUp(a_charge(), None, utc_now()))
    with pytest.raises(Unknown):
        asked.look_up(LookUp(a_charge(), "ORDER1", utc_now()))


def test_too_many_requests_may_be_sent_again(asked: PayPalGateway, canned: Canned) -> None:
    canned.answers = [Answer(429, {}, {"Retry-After": "3"})]
    with pytest.raises(Busy) as caught:
        asked.charge(a_charge())
    assert caught.value.retry_after == 3
    with pytest.raises(Unknown):
        asked.look_up(LookUp(a_charge(), None, utc_now()))


def test_a_gateway_that_is_not_there_is_busy() -> None:
    gateway = built(
        {
            "paypal_client_id": "id",
            "paypal_client_secret": "secret",
            "paypal_api_base": "http://127.0.0.1:9",
        }
    )
    with pytest.raises(Busy):
        gateway.charge(a_charge())
    gateway.close()


@pytest.mark.parametrize("answer", [*UNKNOWN[:7], *NOT_DONE, error(422, "AN_ISSUE_OF_TOMORROW")])
@pytest.mark.parametrize("operation", ["capture", "void", "refund"])
def test_a_failed_read_before_the_request_leaves_no_doubt(
    asked: PayPalGateway, canned: Canned, answer: Answer, operation: str
) -> None:
    canned.answers = [answer]
    with pytest.raises(NotDone):
        changes(asked)[operation]()
    assert {request.method for request in canned.requests if "oauth2" not in request.path} == {
        "GET"
    }


def changes(gateway: PayPalGateway) -> dict[str, Callable[[], Any]]:
    charge = Charge("ORDER1", "captured", 1099, "USD")
    return {
        "capture": lambda: gateway.capture(a_change(a_charge(), "ORDER1", "capture")),
        "void": lambda: gateway.void(a_change(a_charge(), "ORDER1", "void")),
        "refund": lambda: gateway.refund(a_refund(charge)),
    }


BEFORE = {
    "capture": order(authorizations=[paid("CREATED")]),
    "void": order(authorizations=[paid("CREATED")]),
    "refund": order(captures=[paid("COMPLETED")]),
}


@pytest.mark.parametrize("operation", BEFORE)
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        *((answer, Unknown) for answer in (error(500), HTML, TRUNCATED, error(409, "IN_PROGRESS"))),
        *((answer, Refused) for answer in REFUSED),
        *((answer, NotDone) for answer in NOT_DONE),
        (Answer(429, {}), Busy),
    ],
)
def test_every_answer_to_a_change_has_its_meaning(
    asked: PayPalGateway, canned: Canned, operation: str, answer: Answer, expected: type[Exception]
) -> None:
    canned.answers = [Answer(200, BEFORE[operation]), answer]
    with pytest.raises(expected) as caught:
        changes(asked)[operation]()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "answer", [Answer(201, {}), Answer(201, {"id": "X", "status": "COMPLETED"})]
)
@pytest.mark.parametrize("operation", ["capture", "refund"])
def test_an_answer_without_an_amount_is_unknown(
    asked: PayPalGateway, canned: Canned, operation: str, answer: Answer
) -> None:
    canned.answers = [Answer(200, BEFORE[operation]), answer]
    with pytest.raises(Unknown):
        changes(asked)[operation]()


def test_a_void_is_believed_when_paypal_says_so(asked: PayPalGateway, canned: Canned) -> None:
    canned.answers = [Answer(200, BEFORE["void"]), Answer(200, paid("VOIDED"))]
    assert changes(asked)["void"]().status == "voided"
    assert len(canned.answers) == 1


@pytest.mark.parametrize("answer", [Answer(204, None), Answer(200, {})])
def test_a_void_without_an_answer_is_read_from_the_books(
    asked: PayPalGateway, canned: Canned, answer: Answer
) -> None:
    after = order(authorizations=[paid("VOIDED")])
    canned.answers = [Answer(200, BEFORE["void"]), answer, Answer(200, after)]
    assert changes(asked)["void"]().status == "voided"
    for lost in (Answer(200, BEFORE["void"]), error(500), error(404)):
        canned.answers = [Answer(200, BEFORE["void"]), answer, lost]
        with pytest.raises(Unknown):
            changes(asked)["void"]()


def test_a_void_that_came_before_is_done(asked: PayPalGateway, canned: Canned) -> None:
    canned.answers = [Answer(200, BEFORE["void"]), error(422, "PREVIOUSLY_VOIDED")]
    assert changes(asked)["void"]().status == "voided"


@pytest.mark.parametrize(
    ("operation", "issue"),
    [
        ("capture", "AUTHORIZATION_ALREADY_CAPTURED"),
        ("capture", "MAX_CAPTURE_COUNT_EXCEEDED"),
        ("void", "PREVIOUSLY_CAPTURED"),
    ],
)
def test_a_refusal_because_of_what_was_done_before_tells_the_truth(
    asked: PayPalGateway, canned: Canned, operation: str, issue: str
) -> None:
    after = order(authorizations=[paid("CAPTURED")], captures=[paid("COMPLETED")])
    canned.answers = [Answer(200, BEFORE[operation]), error(422, issue), Answer(200, after)]
    assert changes(asked)[operation]().status == "captured"
    # While the books do not show it, it is a refusal; unless they cannot be read.
    canned.answers = [
        Answer(200, BEFORE[operation]),
        error(422, issue),
        Answer(200, BEFORE[operation]),
    ]
    with pytest.raises(Refused):
        changes(asked)[operation]()
    canned.answers = [Answer(200, BEFORE[operation]), error(422, issue), error(404)]
    with pytest.raises(Unknown):
        changes(asked)[operation]()


@pytest.mark.parametrize("issue", ["ORDER_ALREADY_CAPTURED", "ORDER_NOT_APPROVED"])
def test_a_completion_that_cannot_be_read_back_is_unknown(
    asked: PayPalGateway, canned: Canned, issue: str
) -> None:
    canned.answers = [error(422, issue), error(404, "INVALID_RESOURCE_ID")]
    with pytest.raises(Unknown):
        asked.complete(a_change(a_charge(), "ORDER1", "complete"))


@pytest.mark.parametrize("answer", [error(500), error(422, "REAUTHORIZATION_NOT_SUPPORTED")])
def test_a_failed_reauthorization_has_captured_nothing(
    asked: PayPalGateway, canned: Canned, answer: Answer
) -> None:
    old = order(authorizations=[paid("CREATED", create_time="2026-01-01T00:00:00Z")])
    canned.answers = [Answer(200, old), answer, Answer(201, paid("COMPLETED"))]
    if answer.status == 500:
        with pytest.raises(NotDone):
            changes(asked)["capture"]()
    else:
        assert changes(asked)["capture"]().status == "captured"


FUTURE, PAST = "2999-01-01T00:00:00Z", "2001-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (order("CREATED"), "requires_action"),
        (order("PAYER_ACTION_REQUIRED"), "requires_action"),
        (order("APPROVED"), "approved"),
        (order("VOIDED"), "voided"),
        (order("SAVED"), "processing"),
        (order("A_WORD_OF_TOMORROW"), "processing"),
        (order(captures=[paid("COMPLETED")]), "captured"),
        (order(captures=[paid("PARTIALLY_REFUNDED")]), "captured"),
        (order(captures=[paid("REFUNDED")]), "captured"),
        (order(captures=[paid("PENDING")]), "processing"),
        (order(captures=[paid("A_WORD_OF_TOMORROW")]), "processing"),
        (order(captures=[paid("DECLINED")]), "declined"),
        (order(captures=[paid("FAILED")]), "declined"),
        (order(captures=[paid("DECLINED"), paid("COMPLETED")]), "captured"),
        (order(authorizations=[paid("CREATED")]), "authorized"),
        (order(authorizations=[paid("CREATED", expiration_time=FUTURE)]), "authorized"),
        (order(authorizations=[paid("CREATED", expiration_time=PAST)]), "voided"),
        (order(authorizations=[paid("VOIDED")]), "voided"),
        (order(authorizations=[paid("DENIED")]), "declined"),
        (order(authorizations=[paid("PENDING")]), "processing"),
        (order(authorizations=[paid("A_WORD_OF_TOMORROW")]), "processing"),
        (order(authorizations=[paid("CAPTURED")]), "processing"),
        (order(authorizations=[paid("CAPTURED")], captures=[paid("COMPLETED")]), "captured"),
        # A declined capture says nothing of an authorization that goes on, or has ended.
        (order(authorizations=[paid("CREATED")], captures=[paid("DECLINED")]), "authorized"),
        (order(authorizations=[paid("VOIDED")], captures=[paid("DECLINED")]), "voided"),
        (order(authorizations=[paid("EXPIRED")], captures=[paid("DECLINED")]), "voided"),
        (order(authorizations=[paid("CAPTURED")], captures=[paid("DECLINED")]), "declined"),
        (order(authorizations=[paid("CREATED"), paid("VOIDED")]), "authorized"),
        (order(authorizations=[paid("VOIDED"), paid("CREATED")]), "authorized"),
    ],
)
def test_every_state_of_an_order_has_its_meaning(
    asked: PayPalGateway, canned: Canned, answer: dict[str, Any], status: str
) -> None:
    canned.answers = [Answer(200, answer)]
    charge = asked.look_up(LookUp(a_charge(), "ORDER1", utc_now()))
    assert charge is not None
    assert (charge.reference, charge.status, charge.amount) == ("ORDER1", status, 1099)
    assert charge.amount_captured == (1099 if status == "captured" else 0)


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("COMPLETED", "succeeded"),
        ("PENDING", "pending"),
        ("FAILED", "failed"),
        ("CANCELLED", "failed"),
        ("A_WORD_OF_TOMORROW", "pending"),
    ],
)
def test_every_state_of_a_refund_has_its_meaning(
    asked: PayPalGateway, canned: Canned, word: str, status: str
) -> None:
    canned.answers = [Answer(200, paid(word))]
    request = a_refund(Charge("ORDER1", "captured", 1099, "USD"))
    refund = asked.look_up_refund(RefundLookUp(request, "PAYMENT1", utc_now()))
    assert refund == Refund("PAYMENT1", status, 1099, "USD")  # type: ignore[arg-type]


def test_another_amount_or_currency_is_reported_as_it_is(
    asked: PayPalGateway, canned: Canned
) -> None:
    answer = order(captures=[paid("COMPLETED")])
    answer["purchase_units"][0]["amount"] = {"currency_code": "EUR", "value": "5.00"}
    canned.answers = [Answer(201, answer)]
    charge = asked.charge(a_charge())
    assert (charge.amount, charge.currency) == (500, "EUR")


@pytest.mark.parametrize(
    "answer",
    [Answer(200, {}), Answer(200, {"id": "T"}), Answer(200, {"payment_source": {}}), error(500)],
)
def test_an_answer_that_is_no_payment_token_is_unknown(
    asked: PayPalGateway, canned: Canned, answer: Answer
) -> None:
    canned.answers = [answer]
    with pytest.raises(Unknown):
        asked.save_method(MethodRequest("paypal", "u", {}, token="TOKEN1"))


# The access token -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(401, {"error": "invalid_client"}), NotDone),
        (Answer(400, {"error": "unsupported_grant_type"}), NotDone),
        (Answer(429, {}), Busy),
        (Answer(500, {}), Busy),
        (HTML, Busy),
        (Answer(200, {}), Busy),
        (Answer(200, {"access_token": "a\nb", "expires_in": 9000}), Busy),
        (Answer(200, {"access_token": 5, "expires_in": 9000}), Busy),
    ],
)
def test_without_an_access_token_surely_nothing_was_done(
    newcomer: PayPalGateway, canned: Canned, answer: Answer, expected: type[Exception]
) -> None:
    canned.token = answer
    canned.answers = [Answer(500)]
    with pytest.raises(expected):
        newcomer.charge(a_charge())
    assert canned.asked("/v2/checkout/orders") == 0


def test_an_access_token_is_fetched_once_for_all_threads(
    newcomer: PayPalGateway, canned: Canned
) -> None:
    canned.answers = [Answer(201, order("PAYER_ACTION_REQUIRED"))]
    threads = [threading.Thread(target=newcomer.charge, args=(a_charge(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert canned.asked("/v2/checkout/orders") == 8
    assert canned.asked("/v1/oauth2/token") == 1


def test_an_access_token_that_soon_expires_is_not_used_twice(
    newcomer: PayPalGateway, canned: Canned
) -> None:
    canned.token = Answer(200, {"access_token": "t", "expires_in": 30})
    canned.answers = [Answer(201, order("PAYER_ACTION_REQUIRED"))]
    newcomer.charge(a_charge())
    newcomer.charge(a_charge())
    assert canned.asked("/v1/oauth2/token") == 2


def test_an_access_token_that_ended_early_is_replaced_once(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    paypal.charge(a_charge())
    double.access_tokens.clear()
    assert paypal.charge(a_charge()).status == "requires_action"


def test_a_request_refused_at_the_door_twice_is_not_tried_again(
    newcomer: PayPalGateway, canned: Canned
) -> None:
    canned.answers = [error(401)]
    with pytest.raises(NotDone):
        newcomer.charge(a_charge())
    assert canned.asked("/v2/checkout/orders") == 2
    assert canned.asked("/v1/oauth2/token") == 2


# Settings ---------------------------------------------------------------------------------------


def test_missing_settings_are_named() -> None:
    with pytest.raises(ConfigurationError, match="PAYPAL_CLIENT_ID and PAYPAL_CLIENT_SECRET"):
        built({})
    with pytest.raises(ConfigurationError, match="needs PAYPAL_CLIENT_SECRET;"):
        built({"paypal_client_id": "id"})
    with pytest.raises(ConfigurationError, match="PAYPAL_CA_FILE"):
        built(
            {
                "paypal_client_id": "id",
                "paypal_client_secret": "secret",
                "paypal_ca_file": Path("/no/such/file"),
            }
        )


@pytest.mark.parametrize(
    ("environment", "base"),
    [
        ("production", "https://api-m.paypal.com"),
        ("development", "https://api-m.sandbox.paypal.com"),
    ],
)
def test_production_talks_to_the_live_api(environment: str, base: str) -> None:
    keys = {"paypal_client_id": "id", "paypal_client_secret": "secret", "paypal_webhook_id": "W"}
    gateway = built({**keys, "environment": environment})
    assert str(gateway.client.transport._client.base_url).rstrip("/") == base
    gateway.close()


# Webhooks: whether they are PayPal's ------------------------------------------------------------


def sent_event(double: PaypalDouble, kind: str) -> tuple[dict[str, str], bytes]:
    return next(
        (headers, body)
        for headers, body in reversed(double.sent)
        if json.loads(body)["event_type"] == kind
    )


@pytest.fixture
def delivery(paypal: PayPalGateway, double: PaypalDouble) -> tuple[dict[str, str], bytes]:
    captured(paypal, double)
    return sent_event(double, "PAYMENT.CAPTURE.COMPLETED")


Delivery = tuple[dict[str, str], bytes]


def test_a_webhook_of_paypals_is_read_and_its_certificate_fetched_once(
    double: PaypalDouble, delivery: Delivery
) -> None:
    double.requests.clear()
    gateway = built(double.settings())
    for _ in range(3):
        event = gateway.parse_webhook(httpx.Headers(delivery[0]), delivery[1])
    assert event.payment_id == 7
    gateway.close()
    assert [request.path for request in double.requests] == ["/certs/double"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("paypal-auth-algo", "SHA1withRSA"),
        ("paypal-auth-algo", ""),
        ("paypal-transmission-id", "another"),
        ("paypal-transmission-id", "a|b"),
        ("paypal-transmission-id", "x" * 100_000),
        ("paypal-transmission-time", "2026-01-01T00:00:00"),
        ("paypal-transmission-time", "1e999"),
        ("paypal-transmission-time", "9" * 100_000),
        ("paypal-transmission-sig", ""),
        ("paypal-transmission-sig", "AAAA"),
        ("paypal-transmission-sig", "é"),
        ("paypal-transmission-sig", "=" * 100_000),
        ("paypal-cert-url", ""),
        ("paypal-cert-url", "http://[::1"),
    ],
)
def test_a_header_that_is_changed_makes_a_webhook_invalid(
    paypal: PayPalGateway, delivery: Delivery, name: str, value: str
) -> None:
    headers, body = delivery
    with pytest.raises(SignatureInvalid):
        paypal.parse_webhook({**headers, name: value}, body)
    with pytest.raises(SignatureInvalid):
        paypal.parse_webhook({key: headers[key] for key in headers if key != name}, body)


def test_a_body_that_is_changed_makes_a_webhook_invalid(
    paypal: PayPalGateway, delivery: Delivery
) -> None:
    headers, body = delivery
    for other in (body + b" ", body[:-1], b"", body.replace(b"10.99", b"99.99")):
        with pytest.raises(SignatureInvalid):
            paypal.parse_webhook(headers, other)


@pytest.mark.parametrize(
    ("age", "valid"),
    [
        (timedelta(days=3), True),
        (timedelta(minutes=-4), True),
        (timedelta(days=4, minutes=1), False),
        (timedelta(minutes=-6), False),
    ],
)
def test_a_webhook_may_be_late_but_not_old_and_not_from_the_future(
    paypal: PayPalGateway, double: PaypalDouble, delivery: Delivery, age: timedelta, valid: bool
) -> None:
    forged = double.forge(*delivery, age=age.total_seconds())
    assert forged is not None
    if valid:
        assert paypal.parse_webhook(*forged).payment_id == 7
    else:
        with pytest.raises(SignatureInvalid):
            paypal.parse_webhook(*forged)


def test_a_webhook_with_somebody_elses_certificate_is_invalid(
    paypal: PayPalGateway, double: PaypalDouble, delivery: Delivery
) -> None:
    forged = double.forge(*delivery, foreign=True)
    assert forged is not None
    with pytest.raises(SignatureInvalid):
        paypal.parse_webhook(*forged)
    headers, body = forged  # signed by the other key, but with the right certificate
    with pytest.raises(SignatureInvalid):
        paypal.parse_webhook({**headers, "paypal-cert-url": delivery[0]["paypal-cert-url"]}, body)


def test_a_webhook_for_another_endpoint_is_invalid(
    double: PaypalDouble, delivery: Delivery
) -> None:
    for webhook_id in ("ANOTHERWEBHOOK001", "", None):
        gateway = built({**double.settings(), "paypal_webhook_id": webhook_id})
        with pytest.raises(SignatureInvalid):
            gateway.parse_webhook(*delivery)
        gateway.close()


def test_without_our_ca_file_only_public_authorities_are_trusted(
    double: PaypalDouble, delivery: Delivery
) -> None:
    gateway = built({**double.settings(), "paypal_ca_file": None})
    with pytest.raises(SignatureInvalid):
        gateway.parse_webhook(*delivery)
    gateway.close()


class CertificateHost(Double):
    """Serves whatever it is told as a certificate."""

    def __init__(self) -> None:
        super().__init__()
        self.served = Answer(200, b"")

    def answer(self, request: Request) -> Answer:
        return self.served


@pytest.fixture
def host() -> Iterator[CertificateHost]:
    with CertificateHost() as running:
        assert isinstance(running, CertificateHost)
        yield running


def certificates_of(signer: Signer, folder: Path, **more: Any) -> Certificates:
    path = folder / "ca.pem"
    path.write_bytes(signer.ca)
    return Certificates(["127.0.0.1"], path, more.get("timeout", 2.0))


@pytest.mark.parametrize(
    "url",
    [
        "https://paypal.example/cert",
        "https://127.0.0.1@paypal.example/cert",
        "https://paypal.example#@127.0.0.1/cert",
        "https://paypal.example\\@127.0.0.1/cert",
        "http://user@127.0.0.1/cert",
        "http://127.0.0.1.paypal.example/cert",
        "http://127.0.0.1:99999/cert",
        "http://127.0.0.1:port/cert",
        "http://127.0.0.1/ce rt",
        "http://127.0.0.1/ce\nrt",
        "http://127.0.0.1/" + "x" * 5000,
        "ftp://127.0.0.1/cert",
        "file:///etc/ssl/cert.pem",
        "//127.0.0.1/cert",
        "http://[127.0.0.1/cert",
        "https://１２７.0.0.1/cert",
        "",
    ],
)
def test_certificates_come_from_allowed_hosts_only(url: str, tmp_path: Path) -> None:
    with pytest.raises(SignatureInvalid):
        Certificates(["127.0.0.1"], None, 1.0).key(url, utc_now())


def test_plain_http_is_for_loopback_only() -> None:
    with pytest.raises(SignatureInvalid):
        Certificates(["api.paypal.com"], None, 1.0).key("http://api.paypal.com/c", utc_now())


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b""),
        Answer(200, b"no certificate"),
        Answer(200, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        Answer(200, b"x" * (MAX_BYTES + 1)),
        Answer(404, {}),
        Answer(302, None, {"Location": "https://api.paypal.com/cert"}),
    ],
)
def test_what_is_no_certificate_makes_a_webhook_invalid(
    host: CertificateHost, tmp_path: Path, double: PaypalDouble, answer: Answer
) -> None:
    host.served = answer
    with pytest.raises(SignatureInvalid):
        certificates_of(double.signer, tmp_path).key(f"{host.base_url}/cert", utc_now())


def test_a_certificate_that_could_not_be_had_is_asked_for_again_later(
    host: CertificateHost,
    tmp_path: Path,
    double: PaypalDouble,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    certificates = certificates_of(double.signer, tmp_path)
    for status in (500, 503, 429):
        host.served = Answer(status, {})
        with pytest.raises(SignatureInvalid):
            certificates.key(f"{host.base_url}/cert/{status}", utc_now())
    with pytest.raises(SignatureInvalid):
        certificates.key("http://127.0.0.1:9/cert", utc_now())
    host.served = Answer(200, double.signer.chain)
    asked = len(host.requests)
    with pytest.raises(SignatureInvalid, match="a moment ago"):
        certificates.key(f"{host.base_url}/cert/500", utc_now())
    assert len(host.requests) == asked
    monkeypatch.setattr(certificates, "_failed", OrderedDict())  # a minute later
    assert certificates.key(f"{host.base_url}/cert/500", utc_now()).key_size == 2048


def test_a_certificate_that_many_want_is_fetched_by_one(
    host: CertificateHost, tmp_path: Path, double: PaypalDouble
) -> None:
    host.served = Answer(200, double.signer.chain)
    certificates = certificates_of(double.signer, tmp_path)
    asked = len(host.requests)
    start = threading.Barrier(12)

    def fetch(_: int) -> int:
        start.wait(10)
        return certificates.key(f"{host.base_url}/cert/wanted", utc_now()).key_size

    with ThreadPoolExecutor(12) as pool:
        assert set(pool.map(fetch, range(12))) == {2048}
    assert len(host.requests) == asked + 1


@pytest.mark.parametrize(
    "path",
    [
        "/v1/notifications/certs/CERT-1?x=1",
        "/v1/notifications/certs/CERT-1#1",
        "/v1/notifications/certs/../../oauth2/token",
        "/v1/notifications/certs/%2e%2e/x",
        "/v1/notifications/certs/",
        ":81/v1/notifications/certs/CERT-1",
        "/v1/oauth2/token",
    ],
)
def test_only_paypals_certificates_are_fetched_from_its_hosts(path: str) -> None:
    certificates = Certificates(["api.paypal.com"], None, 1.0)
    with pytest.raises(SignatureInvalid) as caught:
        certificates.key(f"https://api.paypal.com{path}", utc_now())
    assert str(caught.value) == ""  # refused before anything was fetched


@pytest.mark.parametrize(
    ("name", "days", "authority_is_one", "valid"),
    [
        ("messageverificationcerts.paypal.com", (-1, 1), True, True),
        ("paypal.com", (-1, 1), True, True),
        ("messageverificationcerts.paypal.com", (-2, -1), True, False),
        ("messageverificationcerts.paypal.com", (1, 2), True, False),
        ("messageverificationcerts.paypal.com", (-1, 1), False, False),
        ("messageverificationcerts.notpaypal.com", (-1, 1), True, False),
        ("paypal.com.shop.example", (-1, 1), True, False),
    ],
)
def test_a_certificate_is_paypals_in_force_and_issued_by_an_authority(
    host: CertificateHost,
    tmp_path: Path,
    name: str,
    days: tuple[float, float],
    authority_is_one: bool,
    valid: bool,
) -> None:
    signer = Signer(name, days=days, authority_is_one=authority_is_one)
    host.served = Answer(200, signer.chain)
    certificates = certificates_of(signer, tmp_path)
    if valid:
        key = certificates.key(f"{host.base_url}/cert", utc_now())
        leaf = x509.load_pem_x509_certificates(signer.chain)[0]
        assert key == leaf.public_key()
    else:
        with pytest.raises(SignatureInvalid):
            certificates.key(f"{host.base_url}/cert", utc_now())


def test_a_chain_without_its_leaf_proves_nothing(
    host: CertificateHost, tmp_path: Path, double: PaypalDouble
) -> None:
    host.served = Answer(200, double.signer.ca)
    with pytest.raises(SignatureInvalid):
        certificates_of(double.signer, tmp_path).key(f"{host.base_url}/cert", utc_now())


def test_the_cache_of_certificates_is_bounded(
    host: CertificateHost, tmp_path: Path, double: PaypalDouble
) -> None:
    host.served = Answer(200, double.signer.chain)
    certificates = certificates_of(double.signer, tmp_path)
    for number in range(CACHE_SIZE + 5):
        certificates.key(f"{host.base_url}/cert/{number}", utc_now())
    assert len(certificates._cache) == CACHE_SIZE
    count = len(host.requests)
    certificates.key(f"{host.base_url}/cert/{CACHE_SIZE + 4}", utc_now())
    assert len(host.requests) == count


# Webhooks: what they say ------------------------------------------------------------------------


def told(paypal: PayPalGateway, double: PaypalDouble, kind: str) -> GatewayEvent:
    event = paypal.parse_webhook(*sent_event(double, kind))
    assert event.type == kind
    return event


def test_an_approved_order_is_told(paypal: PayPalGateway, double: PaypalDouble) -> None:
    waiting = paypal.charge(a_charge())
    double.approve(waiting.reference)
    event = told(paypal, double, "CHECKOUT.ORDER.APPROVED")
    assert (event.payment_id, event.reference) == (7, waiting.reference)
    assert event.charge == replace(waiting, status="approved", redirect_url=None)


def test_a_captured_a_pending_and_a_declined_charge_are_told(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    charge = captured(paypal, double)
    event = told(paypal, double, "PAYMENT.CAPTURE.COMPLETED")
    assert (event.payment_id, event.reference, event.charge) == (7, charge.reference, charge)
    charge = paypal.charge(a_charge(double.vault_token(funding="PENDING")))
    assert told(paypal, double, "PAYMENT.CAPTURE.PENDING").charge == charge
    capture = next(one for one in double.captures.values() if one["order"] == charge.reference)
    double.settle(capture["id"], "DECLINED")
    declined = told(paypal, double, "PAYMENT.CAPTURE.DECLINED").charge
    assert declined == replace(charge, status="declined", decline=Decline("generic_decline"))


def test_an_authorization_is_told_and_its_capture_or_void_has_to_be_asked(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request, charge = authorized(paypal, double)
    assert told(paypal, double, "PAYMENT.AUTHORIZATION.CREATED").charge == charge
    paypal.capture(a_change(request, charge.reference, "capture", amount=600))
    event = told(paypal, double, "PAYMENT.CAPTURE.COMPLETED")
    assert (event.ask, event.charge, event.reference) == (True, None, charge.reference)
    request, charge = authorized(paypal, double)
    paypal.void(a_change(request, charge.reference, "void"))
    event = told(paypal, double, "PAYMENT.AUTHORIZATION.VOIDED")
    assert (event.ask, event.charge, event.payment_id) == (True, None, 7)


def test_our_refunds_and_others_are_told_apart(paypal: PayPalGateway, double: PaypalDouble) -> None:
    charge = captured(paypal, double)
    refund = paypal.refund(a_refund(charge))
    event = told(paypal, double, "PAYMENT.CAPTURE.REFUNDED")
    assert (event.payment_id, event.refund_id, event.refund) == (7, 3, refund)
    double.refund_by_hand(charge.reference, Decimal("1.00"))
    event = told(paypal, double, "PAYMENT.CAPTURE.REFUNDED")
    assert event.refund is not None
    assert (event.payment_id, event.reference) == (7, charge.reference)
    assert (event.refund_id, event.refund.amount) == (None, 100)


def test_a_reversal_is_a_refund_that_is_not_ours(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    charge = captured(paypal, double)
    double.reverse(charge.reference)
    event = told(paypal, double, "PAYMENT.CAPTURE.REVERSED")
    assert event.refund is not None
    assert (event.payment_id, event.reference) == (7, charge.reference)
    assert (event.refund_id, event.refund.amount, event.refund.status) == (None, 1099, "succeeded")


@pytest.mark.parametrize(("won", "status"), [(True, "won"), (False, "lost")])
def test_a_dispute_is_told_with_its_payment(
    paypal: PayPalGateway, double: PaypalDouble, won: bool, status: str
) -> None:
    charge = captured(paypal, double)
    dispute_id = double.dispute(charge.reference)
    event = told(paypal, double, "CUSTOMER.DISPUTE.CREATED")
    assert (event.payment_id, event.reference) == (7, charge.reference)
    assert event.dispute is not None
    assert (event.dispute.reference, event.dispute.status) == (dispute_id, "open")
    assert event.dispute.amount == 1099
    double.close_dispute(dispute_id, won=won)
    closed = told(paypal, double, "CUSTOMER.DISPUTE.RESOLVED").dispute
    assert closed is not None
    assert closed.status == status


def test_a_deleted_vault_token_is_told(paypal: PayPalGateway, double: PaypalDouble) -> None:
    token = double.vault_token()
    double.delete_vault_token(token)
    event = told(paypal, double, "VAULT.PAYMENT-TOKEN.DELETED")
    assert event.method is not None
    assert (event.method.token, event.method.details) == (token, None)


def signed(double: PaypalDouble, body: bytes) -> Delivery:
    return double.sign(body), body


def an_event(kind: str, resource: Any) -> bytes:
    return json.dumps({"id": "WH-1", "event_type": kind, "resource": resource}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"id": "WH-1"}',
        b'{"id": "WH-1", "event_type": 5}',
        b'{"id": 5, "event_type": "X", "resource": {}}',
        an_event("PAYMENT.CAPTURE.COMPLETED", None),
        an_event("PAYMENT.CAPTURE.COMPLETED", []),
        an_event("PAYMENT.CAPTURE.COMPLETED", {}),
        an_event("CHECKOUT.ORDER.APPROVED", {"id": "X", "purchase_units": 5}),
        an_event("CHECKOUT.ORDER.APPROVED", order("COMPLETED")),
        an_event("PAYMENT.AUTHORIZATION.CREATED", {"id": "X"}),
        an_event("PAYMENT.CAPTURE.REFUNDED", {"amount": "1.00"}),
        an_event("PAYMENT.CAPTURE.REVERSED", {"links": 5}),
        an_event("CUSTOMER.DISPUTE.CREATED", {"disputed_transactions": "x"}),
        an_event("VAULT.PAYMENT-TOKEN.DELETED", {"id": ["x"]}),
    ],
)
def test_a_signed_webhook_that_is_malformed_is_invalid(
    paypal: PayPalGateway, double: PaypalDouble, body: bytes
) -> None:
    with pytest.raises(SignatureInvalid):
        paypal.parse_webhook(*signed(double, body))


def test_an_event_that_means_nothing_to_us_has_no_state(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    nothings: tuple[Any, ...] = ({}, None, [], "x")
    for resource in nothings:
        body = an_event("BILLING.SUBSCRIPTION.CREATED", resource)
        event = paypal.parse_webhook(*signed(double, body))
        assert event == GatewayEvent("WH-1", "BILLING.SUBSCRIPTION.CREATED", None, None)


def test_a_payment_of_another_system_is_nobodys(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    for custom_id in ("basket-9", "7-", "-3", "7-3-1", "0", None, 7):
        body = an_event("PAYMENT.AUTHORIZATION.VOIDED", {"id": "X", "custom_id": custom_id})
        event = paypal.parse_webhook(*signed(double, body))
        assert (event.payment_id, event.reference, event.ask) == (None, None, False)


def test_a_dispute_of_an_unknown_transaction_has_no_payment(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    dispute = {
        "dispute_id": "PP-D-1",
        "dispute_amount": {"currency_code": "USD", "value": "5.00"},
        "reason": "UNAUTHORISED",
        "disputed_transactions": [{"seller_transaction_id": "NOSUCHCAPTURE"}],
        "dispute_outcome": {"outcome_code": "A_WORD_OF_TOMORROW"},
    }
    body = an_event("CUSTOMER.DISPUTE.UPDATED", dispute)
    event = paypal.parse_webhook(*signed(double, body))
    assert (event.payment_id, event.reference) == (None, None)
    assert event.dispute is not None
    assert (event.dispute.status, event.dispute.reason) == ("open", "unauthorised")


def test_an_event_whose_payment_cannot_be_asked_for_is_unknown(
    double: PaypalDouble, paypal: PayPalGateway
) -> None:
    double.dispute(captured(paypal, double).reference)
    delivery = sent_event(double, "CUSTOMER.DISPUTE.CREATED")
    gateway = built({**double.settings(), "paypal_api_base": "http://127.0.0.1:9"})
    with pytest.raises(Unknown):
        gateway.parse_webhook(*delivery)
    gateway.close()


# The double -------------------------------------------------------------------------------------


def test_the_double_notices_what_a_client_must_not_do(double: PaypalDouble) -> None:
    client = Client(double.base_url, "double-client", "double-secret", 5.0)
    context = {"return_url": RETURN_URL, "cancel_url": RETURN_URL}
    body = {
        "intent": "CAPTURE",
        "purchase_units": [{"amount": {"currency_code": "USD", "value": "1.0"}, "custom_id": "1"}],
        "payment_source": {"paypal": {"experience_context": context}},
    }
    wrong: list[tuple[dict[str, Any], str | None]] = [
        (body, "k1"),  # one decimal
        (body, None),  # no key
        ({**body, "surprise": 1}, "k2"),
    ]
    for sent, key in wrong:
        with pytest.raises(Refused):
            client.post("/v2/checkout/orders", sent, key=key)
    assert len(double.violations) == len(wrong)
    double.violations.clear()
    client.transport.close()


def test_methods_of_the_double_are_what_our_api_takes(double: PaypalDouble) -> None:
    for kind in ("good", "good_too", "declined", "insufficient", "action", "refused"):
        body = double.method(kind)
        assert body is not None
        assert (body["payment_type"], body["gateway"]) == ("paypal", "paypal")
    assert double.method("no such kind") is None
