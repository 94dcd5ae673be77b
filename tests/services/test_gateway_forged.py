"""Forged events of PayPal's: another body under the signature of a genuine one changes nothing."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import pytest
import sqlalchemy as sa

from conformance.fault_proxy import Delivery
from conformance.harness import Harness, ok
from tests.support.paypal import with_same_sum

SHOP = "https://shop.example/back"


def forged(genuine: Delivery, kind: str, resource: Mapping[str, Any]) -> Delivery:
    event = {"id": f"WH-{secrets.token_hex(8)}", "event_type": kind, "resource": resource}
    return Delivery(genuine.headers, with_same_sum(genuine.body, event))


def genuine_event(harness: Harness, payment: Mapping[str, Any]) -> Delivery:
    reference = payment["gateway_reference"]
    return harness.until(lambda: harness.relay.about(reference), "PayPal tells of it")[0]


def about(harness: Harness, payment: Mapping[str, Any], **said: Any) -> dict[str, Any]:
    """A resource that names a payment of ours, and says this of it."""
    with harness.engine.begin() as connection:
        key = connection.scalar(
            sa.text("SELECT gateway_key FROM payments WHERE id = :id"), {"id": payment["id"]}
        )
    related = {"related_ids": {"order_id": payment["gateway_reference"]}}
    unit = {"custom_id": str(payment["id"]), "invoice_id": key}
    return {"id": "FORGED", **unit, "supplementary_data": related, "purchase_units": [unit], **said}


def take_and_read(harness: Harness, delivery: Delivery, payment: Mapping[str, Any]) -> None:
    """The event is taken, and its order has been read because of it."""
    asked = len(harness.proxy.log)
    ok(harness.relay.post(delivery), 200)
    path = f"/v2/checkout/orders/{payment['gateway_reference']}"
    harness.until(
        lambda: any(one.path == path for one in harness.proxy.log[asked:]), "the order is read"
    )


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("PAYMENT.CAPTURE.COMPLETED", "COMPLETED"),
        ("PAYMENT.CAPTURE.DECLINED", "DECLINED"),
        ("PAYMENT.AUTHORIZATION.VOIDED", "VOIDED"),
        ("PAYMENT.CAPTURE.REFUNDED", "COMPLETED"),
    ],
)
def test_a_forged_event_moves_no_authorization(paypal: Harness, kind: str, status: str) -> None:
    paypal.relay.holds = True
    _, payment = paypal.authorized(1000)
    money = {"currency_code": "USD", "value": "10.00"}
    resource = about(paypal, payment, status=status, amount=money)
    take_and_read(paypal, forged(genuine_event(paypal, payment), kind, resource), payment)
    after = paypal.payment(payment["id"])
    assert after == payment | {"updated_at": after["updated_at"]}
    assert paypal.order(payment["order_id"])["status"] == "authorized"
    paypal.agree(payment)


def test_a_forged_approval_completes_nothing(paypal: Harness) -> None:
    paypal.relay.holds = True
    _, other = paypal.authorized(1000)
    client = paypal.shopper()
    paypal.save(client, "action")
    payment = ok(paypal.pay(client, paypal.place(client), return_url=SHOP), 201)
    resource = about(paypal, payment, id=payment["gateway_reference"], status="APPROVED")
    event = forged(genuine_event(paypal, other), "CHECKOUT.ORDER.APPROVED", resource)
    take_and_read(paypal, event, payment)
    assert paypal.payment(payment["id"])["status"] == "requires_action"
    assert not [one for one in paypal.proxy.log if one.path.endswith("/capture")]
