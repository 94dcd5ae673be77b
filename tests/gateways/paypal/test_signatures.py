"""Whether a webhook is PayPal's."""

from __future__ import annotations

from datetime import timedelta

import httpx
import pytest

from conformance.doubles.paypal import PaypalDouble
from gateways.base import (
    SignatureInvalid,
)
from gateways.paypal import PayPalGateway
from tests.support.paypal import Delivery, built, captured, sent_event


@pytest.fixture
def delivery(paypal: PayPalGateway, double: PaypalDouble) -> tuple[dict[str, str], bytes]:
    captured(paypal, double)
    return sent_event(double, "PAYMENT.CAPTURE.COMPLETED")


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
