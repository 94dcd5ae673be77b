"""What is taken from webhooks: which payment to ask about, and nothing else that they say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import pytest

from conformance.doubles.paypal import PaypalDouble
from gateways.base import Dispute, GatewayEvent, MethodChange, OutcomeUnknown, SignatureInvalid
from gateways.paypal import PayPalGateway
from tests.support.paypal import (
    Delivery,
    a_change,
    a_charge,
    a_refund,
    an_event,
    authorized,
    built,
    captured,
    sent_event,
    signed,
    with_same_sum,
)

T = TypeVar("T")


def told(paypal: PayPalGateway, double: PaypalDouble, kind: str) -> GatewayEvent:
    headers, body = sent_event(double, kind)
    event = paypal.parse_webhook(headers, body)
    assert event.type == kind
    assert event.delivery_id == headers["paypal-transmission-id"]
    return event


def says_only_whose(event: GatewayEvent) -> bool:
    states = (event.charge, event.refund, event.dispute, event.method)
    return event.needs_lookup and states == (None,) * 4 and not event.needs_review


# Charges and refunds ----------------------------------------------------------------------------


def test_an_approved_order_has_to_be_asked_about(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request = a_charge()
    waiting = paypal.charge(request)
    double.approve(waiting.reference)
    event = told(paypal, double, "CHECKOUT.ORDER.APPROVED")
    assert says_only_whose(event)
    assert (event.payment_id, event.reference, event.key) == (7, waiting.reference, request.key)


def test_a_capture_has_to_be_asked_about_however_it_ended(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    charge = captured(paypal, double)
    event = told(paypal, double, "PAYMENT.CAPTURE.COMPLETED")
    assert says_only_whose(event)
    assert (event.payment_id, event.reference) == (7, charge.reference)
    pending = paypal.charge(a_charge(double.vault_token(funding="PENDING")))
    assert says_only_whose(told(paypal, double, "PAYMENT.CAPTURE.PENDING"))
    capture = next(one for one in double.captures.values() if one["order"] == pending.reference)
    double.settle(capture["id"], "DECLINED")
    event = told(paypal, double, "PAYMENT.CAPTURE.DECLINED")
    assert says_only_whose(event)
    assert (event.payment_id, event.reference) == (7, pending.reference)


def test_an_authorization_has_to_be_asked_about(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    request, charge = authorized(paypal, double)
    event = told(paypal, double, "PAYMENT.AUTHORIZATION.CREATED")
    assert says_only_whose(event)
    assert (event.payment_id, event.reference, event.key) == (7, charge.reference, request.key)
    paypal.void(a_change(request, charge.reference, "void"))
    assert says_only_whose(told(paypal, double, "PAYMENT.AUTHORIZATION.VOIDED"))


def test_a_refund_of_ours_names_the_payment_but_not_the_key_of_the_charge(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    paypal.refund(a_refund(captured(paypal, double)))
    double.requests.clear()
    event = told(paypal, double, "PAYMENT.CAPTURE.REFUNDED")
    assert says_only_whose(event)
    assert (event.payment_id, event.key) == (7, None)
    assert double.requests == []


@pytest.mark.parametrize("marked", [True, False])
def test_a_refund_from_the_dashboard_names_its_payment(
    paypal: PayPalGateway, double: PaypalDouble, marked: bool
) -> None:
    charge = captured(paypal, double)
    double.refund_outside(charge.reference, 100, marked=marked)
    event = told(paypal, double, "PAYMENT.CAPTURE.REFUNDED")
    assert says_only_whose(event)
    assert event.payment_id == 7


def test_a_reversal_and_a_refund_that_failed_name_their_payment(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    charge = captured(paypal, double)
    double.reverse(charge.reference)
    event = told(paypal, double, "PAYMENT.CAPTURE.REVERSED")
    assert says_only_whose(event)
    assert (event.payment_id, event.reference) == (7, charge.reference)
    double.refund_status = "PENDING"
    refund = paypal.refund(a_refund(captured(paypal, double)))
    double.settle_refund(refund.reference, "FAILED")
    assert says_only_whose(told(paypal, double, "PAYMENT.REFUND.FAILED"))


# What has to be asked before it can be told -----------------------------------------------------


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
    assert event.dispute.evidence_due_at is not None
    double.close_dispute(dispute_id, won=won)
    closed = told(paypal, double, "CUSTOMER.DISPUTE.RESOLVED").dispute
    assert closed is not None
    assert closed.status == status


def test_a_deleted_vault_token_is_told(paypal: PayPalGateway, double: PaypalDouble) -> None:
    token = double.vault_token()
    double.delete_vault_token(token)
    event = told(paypal, double, "VAULT.PAYMENT-TOKEN.DELETED")
    assert event.method == MethodChange(token, None)


def test_an_event_that_has_to_be_asked_about_waits_until_paypal_answers(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    charge, token = captured(paypal, double), double.vault_token()
    double.dispute(charge.reference)
    double.delete_vault_token(token)
    double.refund_outside(charge.reference, 100)
    gateway = built({**double.settings(), "paypal_api_base": "http://127.0.0.1:9"})
    for kind in (
        "CUSTOMER.DISPUTE.CREATED",
        "VAULT.PAYMENT-TOKEN.DELETED",
        "PAYMENT.CAPTURE.REFUNDED",
    ):
        with pytest.raises(OutcomeUnknown):
            gateway.parse_webhook(*sent_event(double, kind))
    gateway.close()


# Forged: another body under a genuine signature -------------------------------------------------


@pytest.fixture
def genuine(paypal: PayPalGateway, double: PaypalDouble) -> Delivery:
    """What somebody has read in a proxy's log."""
    captured(paypal, double)
    return sent_event(double, "PAYMENT.CAPTURE.COMPLETED")


def forged(genuine: Delivery, kind: str, resource: Mapping[str, Any]) -> Delivery:
    headers, body = genuine
    event = {"id": "WH-FORGED", "event_type": kind, "resource": resource}
    return headers, with_same_sum(body, event)


@pytest.mark.parametrize(
    "kind",
    [
        "CHECKOUT.ORDER.APPROVED",
        "PAYMENT.AUTHORIZATION.CREATED",
        "PAYMENT.CAPTURE.COMPLETED",
        "PAYMENT.CAPTURE.DECLINED",
        "PAYMENT.CAPTURE.REFUNDED",
        "PAYMENT.CAPTURE.REVERSED",
    ],
)
def test_a_forged_event_about_money_makes_us_ask_and_no_more(
    paypal: PayPalGateway, double: PaypalDouble, genuine: Delivery, kind: str
) -> None:
    headers, body = genuine
    event = json.loads(body)
    resource = {
        **event["resource"],
        "id": "FORGED",
        "status": "COMPLETED",
        "amount": {"currency_code": "USD", "value": "99.99"},
        "purchase_units": [event["resource"]],
    }
    parsed = paypal.parse_webhook(*forged(genuine, kind, resource))
    assert parsed.payment_id == 7
    assert parsed.delivery_id == headers["paypal-transmission-id"]
    assert says_only_whose(parsed)


def test_a_forged_dispute_is_told_as_paypal_has_it(
    paypal: PayPalGateway, double: PaypalDouble, genuine: Delivery
) -> None:
    dispute_id = double.dispute(captured(paypal, double).reference)
    resource = {
        "dispute_id": dispute_id,
        "status": "RESOLVED",
        "dispute_outcome": {"outcome_code": "RESOLVED_BUYER_FAVOUR"},
        "dispute_amount": {"currency_code": "USD", "value": "99.99"},
        "disputed_transactions": [{"seller_transaction_id": "ANOTHER"}],
    }
    dispute = paypal.parse_webhook(*forged(genuine, "CUSTOMER.DISPUTE.RESOLVED", resource)).dispute
    assert isinstance(dispute, Dispute)
    assert (dispute.status, dispute.amount) == ("open", 1099)


def test_a_forged_dispute_that_paypal_does_not_know_is_none(
    paypal: PayPalGateway, genuine: Delivery
) -> None:
    resource = {"dispute_id": "PP-D-1", "disputed_transactions": []}
    event = paypal.parse_webhook(*forged(genuine, "CUSTOMER.DISPUTE.CREATED", resource))
    assert (event.dispute, event.payment_id, event.reference) == (None,) * 3
    assert not event.needs_lookup


def test_a_method_that_is_still_in_the_vault_cannot_be_deleted_by_a_forged_event(
    paypal: PayPalGateway, double: PaypalDouble, genuine: Delivery
) -> None:
    token = {"id": double.vault_token()}
    event = paypal.parse_webhook(*forged(genuine, "VAULT.PAYMENT-TOKEN.DELETED", token))
    assert event.method is None


def test_about_a_delivery_that_was_taken_nothing_is_asked(
    double: PaypalDouble, genuine: Delivery
) -> None:
    gateway = built(double.settings())
    gateway.parse_webhook(*genuine)  # its certificate is known from now on
    taken: list[str] = []

    def is_known(delivery_id: str) -> bool:
        taken.append(delivery_id)
        return True

    gateway.is_known_delivery = is_known
    double.requests.clear()
    for kind, resource in (
        ("CUSTOMER.DISPUTE.CREATED", {"dispute_id": "PP-D-1"}),
        ("VAULT.PAYMENT-TOKEN.DELETED", {"id": "TOKEN"}),
        ("PAYMENT.CAPTURE.REFUNDED", {"links": [{"rel": "up", "href": "/v2/payments/captures/1"}]}),
    ):
        event = gateway.parse_webhook(*forged(genuine, kind, resource))
        assert (event.dispute, event.method, event.needs_lookup) == (None, None, False)
        assert event.delivery_id == taken[-1]
    assert double.requests == []
    assert set(taken) == {genuine[0]["paypal-transmission-id"]}
    gateway.close()


@pytest.mark.parametrize("wrong", ["../../v1/oauth2/token", "a/b", "", "x" * 65, 7, None, ["x"]])
def test_nothing_is_asked_for_what_is_no_id(
    paypal: PayPalGateway, double: PaypalDouble, wrong: Any
) -> None:
    double.requests.clear()
    for kind, resource in (
        ("CUSTOMER.DISPUTE.CREATED", {"dispute_id": wrong}),
        ("VAULT.PAYMENT-TOKEN.DELETED", {"id": wrong}),
        ("PAYMENT.CAPTURE.REFUNDED", {"links": [{"rel": "up", "href": f"/captures/{wrong}"}]}),
    ):
        event = paypal.parse_webhook(*signed(double, an_event(kind, resource)))
        assert (event.dispute, event.method, event.needs_lookup) == (None, None, False)
    assert [one for one in double.requests if not one.path.startswith("/certs/")] == []


class CountingGuard:
    """Counts the calls that go through it."""

    def __init__(self) -> None:
        self.calls = 0

    def run(self, call: Callable[[], T], seconds: float | None = None) -> T:
        self.calls += 1
        return call()

    def close(self) -> None:
        pass


@pytest.fixture
def guarded(double: PaypalDouble) -> Iterator[PayPalGateway]:
    gateway = built(double.settings())
    gateway.guard = CountingGuard()
    yield gateway
    gateway.close()


def test_what_is_asked_about_an_event_passes_the_guard(
    guarded: PayPalGateway, paypal: PayPalGateway, double: PaypalDouble
) -> None:
    double.dispute(captured(paypal, double).reference)
    guarded.parse_webhook(*sent_event(double, "CUSTOMER.DISPUTE.CREATED"))
    assert isinstance(guarded.guard, CountingGuard)
    assert guarded.guard.calls == 1


# Malformed, and not ours ------------------------------------------------------------------------


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
        an_event("CUSTOMER.DISPUTE.CREATED", "x"),
    ],
)
def test_a_signed_webhook_that_is_malformed_is_invalid(
    paypal: PayPalGateway, double: PaypalDouble, body: bytes
) -> None:
    with pytest.raises(SignatureInvalid):
        paypal.parse_webhook(*signed(double, body))


@pytest.mark.parametrize(
    ("kind", "resource"),
    [
        ("PAYMENT.CAPTURE.COMPLETED", {}),
        ("CHECKOUT.ORDER.APPROVED", {"purchase_units": 5}),
        ("PAYMENT.CAPTURE.REFUNDED", {"amount": "1.00", "links": 5}),
        ("PAYMENT.CAPTURE.REVERSED", {"links": [{"rel": "up", "href": 5}]}),
    ],
)
def test_a_resource_that_names_nothing_is_nobodys(
    paypal: PayPalGateway, double: PaypalDouble, kind: str, resource: Mapping[str, Any]
) -> None:
    event = paypal.parse_webhook(*signed(double, an_event(kind, resource)))
    assert (event.payment_id, event.reference, event.needs_lookup) == (None, None, False)


def test_an_event_that_means_nothing_to_us_has_no_subject(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    nothings: tuple[Any, ...] = ({}, None, [], "x")
    for resource in nothings:
        headers, body = signed(double, an_event("BILLING.SUBSCRIPTION.CREATED", resource))
        event = paypal.parse_webhook(headers, body)
        delivery_id = headers["paypal-transmission-id"]
        kind = "BILLING.SUBSCRIPTION.CREATED"
        assert event == GatewayEvent("WH-1", kind, None, None, delivery_id=delivery_id)


def test_a_payment_of_another_system_is_nobodys(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    for custom_id in ("basket-9", "7-", "-3", "7-3-1", "0", None, 7):
        resource = {"id": "X", "custom_id": custom_id, "invoice_id": "basket-9"}
        body = an_event("PAYMENT.AUTHORIZATION.VOIDED", resource)
        event = paypal.parse_webhook(*signed(double, body))
        assert (event.payment_id, event.reference, event.needs_lookup) == (None, None, False)
    without_key = {"id": "X", "custom_id": "7", "invoice_id": "a basket"}
    body = an_event("PAYMENT.AUTHORIZATION.VOIDED", without_key)
    assert paypal.parse_webhook(*signed(double, body)).payment_id is None
