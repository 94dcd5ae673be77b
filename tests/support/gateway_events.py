"""Events as gateways send them, and all that we know of a payment."""

from __future__ import annotations

import json
import secrets
from typing import Any

from conformance.doubles.paypal import PaypalDouble
from conformance.doubles.stripe import StripeDouble
from conformance.fault_proxy import Delivery
from conformance.harness import Harness
from conformance.targets import PaypalTarget, StripeTarget


def stripe_double(harness: Harness) -> StripeDouble:
    assert isinstance(harness.target, StripeTarget)
    assert isinstance(harness.target.double, StripeDouble)
    return harness.target.double


def paypal_double(harness: Harness) -> PaypalDouble:
    assert isinstance(harness.target, PaypalTarget)
    assert isinstance(harness.target.double, PaypalDouble)
    return harness.target.double


def tell_stripe(harness: Harness, kind: str, found: dict[str, Any]) -> Delivery:
    """An event of Stripe's, signed as the double signs."""
    event = {
        "id": f"evt_{secrets.token_hex(12)}",
        "object": "event",
        "type": kind,
        "data": {"object": found},
    }
    return Delivery(*harness.target.forge({"Content-Type": "application/json"}, encode(event)))


def encode(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode()


def taken(harness: Harness, delivery: Delivery) -> None:
    answer = harness.relay.post(delivery)
    assert answer.status_code == 200, answer.text


def sent(harness: Harness, kind: str, *words: str) -> Delivery:
    """The newest webhook of this type with all of these words in it, once the gateway sent it."""
    marks = [f'"{kind}"', *words]

    def look() -> Delivery | None:
        found = [
            one for one in harness.relay.deliveries if all(w.encode() in one.body for w in marks)
        ]
        return found[-1] if found else None

    return harness.until(look, f"{kind} is sent")
