"""The double itself."""

from __future__ import annotations

from typing import Any

import pytest

from conformance.doubles.paypal import PaypalDouble
from gateways.base import (
    Refused,
)
from gateways.paypal.client import Client
from tests.support.paypal import RETURN_URL


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
