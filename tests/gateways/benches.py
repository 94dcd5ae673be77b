"""The benches of the gateways that come with the service, each with its double of this repository."""

from __future__ import annotations

from pathlib import Path

from tests.gateways.bench import DoubleBench
from tests.gateways.doubles.adyen import AdyenDouble
from tests.gateways.doubles.paypal import PaypalDouble
from tests.gateways.doubles.stripe import StripeDouble


class StripeBench(DoubleBench):
    name = gateway = "stripe"
    steps = {  # noqa: RUF012 - as the base class says
        "charge": r"/v1/payment_intents",
        "capture": r"/v1/payment_intents/\w+/capture",
        "void": r"/v1/payment_intents/\w+/cancel",
        "refund": r"/v1/refunds",
    }
    key_header = "Idempotency-Key"
    zero_decimals = (500, "JPY")
    other_decimals = (500, "ISK")
    refused_amount = (12_345, "KWD")

    def __init__(self) -> None:
        super().__init__(StripeDouble())


class PaypalBench(DoubleBench):
    name = gateway = "paypal"
    steps = {  # noqa: RUF012
        "charge": r"/v2/checkout/orders",
        "complete": r"/v2/checkout/orders/\w+/(capture|authorize)",
        "capture": r"/v2/payments/authorizations/\w+/capture",
        "void": r"/v2/payments/authorizations/\w+/void",
        "refund": r"/v2/payments/captures/\w+/refund",
    }
    key_header = "PayPal-Request-Id"
    keyless = frozenset({"void"})
    zero_decimals = (500, "JPY")
    other_decimals = (50_000, "HUF")
    refused_amount = (1050, "HUF")

    def __init__(self, folder: Path) -> None:
        super().__init__(PaypalDouble(folder))


class AdyenBench(DoubleBench):
    name = gateway = "adyen"
    steps = {  # noqa: RUF012
        "charge": r"/payments",
        "complete": r"/payments/details",
        "capture": r"/payments/\w+/captures",
        "void": r"/payments/\w+/cancels",
        "refund": r"/payments/\w+/refunds",
    }
    key_header = "Idempotency-Key"
    zero_decimals = (500, "JPY")
    other_decimals = (500, "ISK")

    def __init__(self) -> None:
        super().__init__(AdyenDouble())

    def returned(self, reference: str) -> dict[str, str]:
        return dict(self._control("returned")(reference))
