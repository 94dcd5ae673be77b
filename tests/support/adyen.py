"""An Adyen adapter, and what it is asked, for tests of it alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any
from unittest.mock import Mock

from config import Settings
from conformance.doubles.adyen import AdyenDouble
from conformance.doubles.adyen_wire import MERCHANT_ACCOUNT, signed_body
from conformance.doubles.server import BookEntry
from gateways.adyen import AdyenGateway
from gateways.adyen.gateway import shopper_reference
from gateways.base import (
    ChangeRequest,
    ChargeRequest,
    GatewayEvent,
    MethodRequest,
    RefundRequest,
)

KEY = "5e1fb0b9-6e36-4a3c-9d8b-6ef1e1f6b7f1"
OTHER_KEY = "0c9cbc1f-9a3e-4f0e-8a2e-6c0b4e1f2a3b"
USER = "user-1"
NOW = datetime.now(timezone.utc)
HEADERS = {"content-type": "application/json"}


def build(timeout: float = 5, **values: Any) -> AdyenGateway:
    settings = {**AdyenDouble.settings(Mock(base_url="http://127.0.0.1:1")), **values}
    made = Settings(_env_file=None, gateway_timeout=timeout, **settings)
    AdyenGateway.check(made)
    return AdyenGateway.build(made, Mock())


@contextmanager
def running_double() -> Iterator[AdyenDouble]:
    """A double; at the end it has had nothing to object to."""
    with AdyenDouble() as started:
        assert isinstance(started, AdyenDouble)
        yield started
        assert started.violations == []


@contextmanager
def connected(double: AdyenDouble) -> Iterator[AdyenGateway]:
    gateway = build(**double.settings())
    yield gateway
    gateway.close()


def method_request(token: str | None, user: str = USER) -> MethodRequest:
    return MethodRequest("card", user, {}, token=token)


def charge_request(token: str, **values: Any) -> ChargeRequest:
    request = ChargeRequest(
        key=KEY,
        payment_id=17,
        order_id=4,
        amount=1099,
        currency="EUR",
        token=token,
        capture=True,
        return_url="https://store.example/return",
        customer=shopper_reference(USER),
    )
    return replace(request, **values)


def change_request(operation: Any, reference: str, **values: Any) -> ChangeRequest:
    request = ChangeRequest(
        operation=operation,
        key=OTHER_KEY,
        reference=reference,
        payment_id=17,
        amount=1099,
        currency="EUR",
        charge_amount=1099,
        capture=operation == "complete",  # of the charges that these tests change
    )
    return replace(request, **values)


def refund_request(reference: str, **values: Any) -> RefundRequest:
    request = RefundRequest(OTHER_KEY, reference, 17, 3, 400, "EUR")
    return replace(request, **values)


def last_event(gateway: AdyenGateway, double: AdyenDouble) -> GatewayEvent:
    return gateway.parse_webhook(*double.sent[-1])


def only_entry(double: AdyenDouble) -> BookEntry:
    (entry,) = double.books()
    return entry


def item(**values: Any) -> dict[str, Any]:
    return {
        "additionalData": {},
        "amount": {"currency": "EUR", "value": 1099},
        "eventCode": "AUTHORISATION",
        "eventDate": "2026-01-21T14:18:18+01:00",
        "merchantAccountCode": MERCHANT_ACCOUNT,
        "merchantReference": "payment-17-1099-sale",
        "paymentMethod": "visa",
        "pspReference": "QFQTPCQ8HXSKGK82",
        "reason": "",
        "success": "true",
        **values,
    }


def read_event(gateway: AdyenGateway, **values: Any) -> GatewayEvent:
    """What a notification with these fields, the rest as in `item`, says."""
    return gateway.parse_webhook(HEADERS, signed_body(item(**values)))
