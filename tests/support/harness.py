"""What tests ask of a service with a gateway's double."""

from __future__ import annotations

from conformance.doubles.server import Double
from conformance.harness import Harness
from conformance.targets import PaypalTarget, StripeTarget
from tests.support.database import records

CHARGE = "/v1/payment_intents"


ORDERS = "/v2/checkout/orders"


def double_of(harness: Harness) -> Double:
    assert isinstance(harness.target, StripeTarget | PaypalTarget)
    return harness.target.double


def schedule_lookup_now(harness: Harness, payment_id: int) -> None:
    """Let the reconciler ask at once, whenever it would have asked."""
    records(
        harness.engine,
        "UPDATE payments SET check_at = now(), checks = 0 WHERE id = :id",
        id=payment_id,
    )
