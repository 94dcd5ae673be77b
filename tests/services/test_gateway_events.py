"""What gateways tell us beside the life of a payment: refunds that were made elsewhere, and charges
that are not ours."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from conformance.fault_proxy import Delivery
from conformance.harness import Harness, ok
from tests.support.database import records
from tests.support.gateway_events import (
    encode,
    paypal_double,
    sent,
    stripe_double,
    taken,
    tell_stripe,
)

# What looking up changes, and the time.
VOLATILE = ("check_at", "checks", "asked_at", "updated_at", "review_reason", "review_state")


def books(harness: Harness, payment: dict[str, Any]) -> dict[str, Any]:
    """All that we know of a payment: its row, its order, its history, its refunds, disputes."""
    row = records(harness.engine, "SELECT * FROM payments WHERE id = :id", id=payment["id"])[0]
    return {
        "payment": {name: value for name, value in row.items() if name not in VOLATILE},
        "order": harness.order(payment["order_id"])["status"],
        "events": harness.events(payment["order_id"]),
        "refunds": records(
            harness.engine, "SELECT * FROM refunds WHERE payment_id = :id", id=payment["id"]
        ),
        "disputes": records(
            harness.engine, "SELECT * FROM disputes WHERE payment_id = :id", id=payment["id"]
        ),
    }


def tell_paypal(harness: Harness, kind: str, resource: dict[str, Any]) -> Delivery:
    event = {
        "id": f"WH-{secrets.token_hex(12)}",
        "event_version": "1.0",
        "event_type": kind,
        "resource": resource,
    }
    return Delivery(*harness.target.forge({}, encode(event)))


# Money that moved without us --------------------------------------------------------------------


def reviewed_and_nothing_else(
    harness: Harness, payment: dict[str, Any], before: dict[str, Any]
) -> dict[str, Any]:
    """Waits for the review; it is told once, and everything else is as before."""
    harness.until(lambda: harness.payment(payment["id"])["needs_review"], "a person is asked")
    after = books(harness, payment)
    assert after["payment"] == {**before["payment"], "needs_review": True}
    assert after["events"] == [*before["events"], "payment.needs_review"]
    assert (after["order"], after["refunds"]) == (before["order"], before["refunds"])
    return after


def test_a_refund_in_stripes_dashboard_is_in_our_books_once(stripe: Harness) -> None:
    _, payment = stripe.paid(1000)
    refund = stripe_double(stripe).refund_outside(payment["gateway_reference"], 300)
    for kind in ("refund.created", "charge.refunded"):
        taken(stripe, sent(stripe, kind, payment["gateway_reference"]))
    after = stripe.becomes(payment["id"], "partially_refunded")
    assert (after["amount_refunded"], after["needs_review"]) == (300, False)
    (adopted,) = ok(stripe.manager.get(f"/payments/{payment['id']}/refunds"), 200)
    assert (adopted["origin"], adopted["amount"], adopted["gateway_reference"]) == (
        "gateway",
        300,
        refund,
    )
    stripe_double(stripe).fail_refund(refund)
    taken(stripe, sent(stripe, "refund.failed", refund))
    after = stripe.becomes(payment["id"], "captured")
    assert (after["amount_refunded"], after["needs_review"]) == (0, False)


def test_our_own_refund_is_not_for_a_person(stripe: Harness) -> None:
    _, payment = stripe.paid(1000)
    answer = stripe.post(stripe.manager, f"/payments/{payment['id']}/refunds", amount=300)
    refund = stripe.refund_settled(payment["id"], answer.json()["id"])
    for kind in ("refund.created", "charge.refunded"):
        taken(stripe, sent(stripe, kind, payment["gateway_reference"]))
    after = stripe.payment(payment["id"])
    assert refund["status"] == "succeeded"
    assert (after["needs_review"], after["amount_refunded"]) == (False, 300)


@pytest.mark.parametrize("how", ["by hand", "reversed"])
def test_money_that_went_back_at_paypal_makes_us_read_the_order(paypal: Harness, how: str) -> None:
    paypal.relay.holds = True
    _, payment = paypal.paid(1000)
    reference, double = payment["gateway_reference"], paypal_double(paypal)
    with double.lock:
        capture = next(one for one in double.captures.values() if one["order"] == reference)
    if how == "by hand":
        double.refund_outside(reference, 300)
        event = sent(paypal, "PAYMENT.CAPTURE.REFUNDED", capture["id"])
    else:
        double.reverse(reference)
        event = sent(paypal, "PAYMENT.CAPTURE.REVERSED", capture["id"])
    asked = len(paypal.proxy.log)
    taken(paypal, event)
    paypal.until(
        lambda: any(one.path.endswith(f"/{reference}") for one in paypal.proxy.log[asked:]),
        "the order is read",
    )


# Charges that are not ours ----------------------------------------------------------------------


def intent_of(harness: Harness, payment: dict[str, Any]) -> dict[str, Any]:
    double = stripe_double(harness)
    with double.lock:
        found: dict[str, Any] = json.loads(json.dumps(double.intents[payment["gateway_reference"]]))
    return found


def succeeded(intent: dict[str, Any], **changes: Any) -> dict[str, Any]:
    whole = {"status": "succeeded", "amount_received": intent["amount"], "amount_capturable": 0}
    return {**intent, **whole, **changes}


@pytest.mark.parametrize("state", ["authorized", "captured"])
def test_a_second_charge_of_a_payment_is_for_a_person_and_never_applied(
    stripe: Harness, state: str
) -> None:
    _, payment = stripe.authorized(1000) if state == "authorized" else stripe.paid(1000)
    before = books(stripe, payment)
    second = succeeded(intent_of(stripe, payment), id=f"pi_{secrets.token_hex(12)}")
    taken(stripe, tell_stripe(stripe, "payment_intent.succeeded", second))
    reviewed_and_nothing_else(stripe, payment, before)
    # Whatever else is told of it, and however often: it is never applied.
    taken(stripe, tell_stripe(stripe, "payment_intent.succeeded", second))
    held = {**second, "status": "requires_capture", "amount_received": 0}
    taken(stripe, tell_stripe(stripe, "payment_intent.amount_capturable_updated", held))
    after = reviewed_and_nothing_else(stripe, payment, before)
    assert after["payment"]["gateway_reference"] == payment["gateway_reference"]
    assert after["payment"]["status"] == state


def capture_of_order(payment: dict[str, Any], key: str) -> dict[str, Any]:
    """All of a payment, captured at PayPal for another order than the one we know of."""
    return {
        "id": secrets.token_hex(8).upper(),
        "status": "COMPLETED",
        "amount": {"currency_code": "USD", "value": "10.00"},
        "custom_id": str(payment["id"]),
        "invoice_id": key,
        "supplementary_data": {"related_ids": {"order_id": secrets.token_hex(8).upper()}},
    }


def test_an_order_that_only_an_event_of_paypals_knows_changes_nothing(paypal: Harness) -> None:
    _, payment = paypal.authorized(1000)
    before = books(paypal, payment)
    capture = capture_of_order(payment, before["payment"]["gateway_key"])
    taken(paypal, tell_paypal(paypal, "PAYMENT.CAPTURE.COMPLETED", capture))
    taken(paypal, tell_paypal(paypal, "PAYMENT.CAPTURE.COMPLETED", capture))
    assert books(paypal, payment) == before


@pytest.mark.parametrize("kind", ["COMPLETED", "DECLINED", "REFUNDED"])
def test_what_another_system_captured_at_paypal_under_our_id_changes_nothing(
    paypal: Harness, kind: str
) -> None:
    _, payment = paypal.authorized(1000)
    before = books(paypal, payment)
    capture = capture_of_order(payment, "another-systems-key") | {"status": kind}
    taken(paypal, tell_paypal(paypal, f"PAYMENT.CAPTURE.{kind}", capture))
    assert books(paypal, payment) == before


def foreign_charge(intent: dict[str, Any]) -> dict[str, Any]:
    """The charge of a PaymentIntent; its metadata are copies of the intent's."""
    return {
        "id": f"ch_{secrets.token_hex(12)}",
        "object": "charge",
        "amount": intent["amount"],
        "captured": False,
        "currency": intent["currency"],
        "metadata": intent["metadata"],
        "payment_intent": intent["id"],
    }


def foreign_refund(intent: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"re_{secrets.token_hex(12)}",
        "object": "refund",
        "amount": intent["amount"],
        "currency": intent["currency"],
        "metadata": {"payment_id": intent["metadata"]["payment_id"], "refund_id": "1"},
        "payment_intent": intent["id"],
        "status": "succeeded",
    }


def foreign_dispute(intent: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"du_{secrets.token_hex(12)}",
        "object": "dispute",
        "amount": intent["amount"],
        "currency": intent["currency"],
        "metadata": intent["metadata"],
        "payment_intent": intent["id"],
        "reason": "fraudulent",
        "status": "needs_response",
    }


FOREIGN: list[tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = [
    ("payment_intent.succeeded", succeeded),
    ("payment_intent.processing", lambda intent: {**intent, "status": "processing"}),
    (
        "payment_intent.amount_capturable_updated",
        lambda intent: {**intent, "status": "requires_capture", "amount_received": 0},
    ),
    (
        "payment_intent.payment_failed",
        lambda intent: {**intent, "status": "requires_payment_method", "amount_received": 0},
    ),
    ("payment_intent.canceled", lambda intent: {**intent, "status": "canceled"}),
    ("charge.refunded", foreign_charge),
    ("charge.dispute.created", foreign_dispute),
    ("refund.created", foreign_refund),
    ("charge.expired", foreign_charge),
]


WITH_A_KEY = {kind for kind, _ in FOREIGN if kind.startswith("payment_intent.")} | {
    "charge.expired"
}


def of_another_system(intent: dict[str, Any], payment: dict[str, Any]) -> dict[str, Any]:
    """The PaymentIntent of a system that shares the account, and has a payment with our id."""
    metadata = {"payment_id": str(payment["id"]), "order_id": "1", "key": "another-systems-key"}
    return {**intent, "id": f"pi_{secrets.token_hex(12)}", "metadata": metadata}


@pytest.mark.parametrize("state", ["authorized", "captured"])
@pytest.mark.parametrize(("kind", "make"), FOREIGN, ids=[kind for kind, _ in FOREIGN])
def test_what_another_system_charged_under_our_id_changes_nothing(
    stripe: Harness, kind: str, make: Callable[[dict[str, Any]], dict[str, Any]], state: str
) -> None:
    _, payment = stripe.authorized(1000) if state == "authorized" else stripe.paid(1000)
    before = books(stripe, payment)
    theirs = of_another_system(intent_of(stripe, payment), payment)
    taken(stripe, tell_stripe(stripe, kind, make(theirs)))
    assert books(stripe, payment) == before


def test_what_another_system_charged_under_the_id_of_an_open_payment_changes_nothing(
    stripe: Harness,
) -> None:
    _, model = stripe.paid()
    (payment,) = open_payments(stripe, 1)
    before = books(stripe, payment)
    believed, refused = [], []
    for kind, make in FOREIGN:
        found = make(of_another_system(intent_of(stripe, model), payment))
        answer = stripe.relay.post(tell_stripe(stripe, kind, found))
        # One without a key may yet turn out to be about the open payment; one with another key
        # never will.
        if answer.status_code != 200 and (answer.status_code != 409 or kind in WITH_A_KEY):
            refused.append((kind, answer.status_code))
        after = books(stripe, payment)
        believed += [kind] if after != before else []
        before = after
    stripe.proxy.disarm()
    stripe.agree(stripe.becomes(payment["id"], "captured"))
    assert (believed, refused) == ([], [])


def order_of_another_system(harness: Harness, payment: dict[str, Any]) -> str:
    """An order at PayPal that a system made which shares the account and has our id, too."""
    double = paypal_double(harness)
    with double.lock:
        double.access_tokens.add("another-systems-token")
    body = {
        "intent": "CAPTURE",
        "purchase_units": [
            {
                "amount": {"currency_code": "USD", "value": "10.99"},
                "custom_id": str(payment["id"]),
                "invoice_id": "another-systems-key",
            }
        ],
        "payment_source": {
            "paypal": {
                "experience_context": {
                    "return_url": "https://another.example/",
                    "cancel_url": "https://another.example/",
                }
            }
        },
    }
    answer = httpx.post(
        f"{double.base_url}/v2/checkout/orders",
        json=body,
        headers={
            "Authorization": "Bearer another-systems-token",
            "PayPal-Request-Id": secrets.token_hex(12),
        },
        trust_env=False,
    )
    return str(ok(answer, 201)["id"])


def test_what_the_payer_of_another_system_approved_under_our_id_pays_nothing_of_ours(
    paypal: Harness,
) -> None:
    client = paypal.shopper()
    save_by_email = paypal.target.method("action")
    ok(paypal.post(client, "/payment-methods", **save_by_email), 201)
    payment = ok(paypal.pay(client, paypal.place(client)), 201)
    assert payment["status"] == "requires_action"
    before = books(paypal, payment)
    theirs = order_of_another_system(paypal, payment)
    paypal.relay.holds = True
    paypal.target.approve(theirs, yes=True)
    taken(paypal, sent(paypal, "CHECKOUT.ORDER.APPROVED", theirs))
    assert books(paypal, payment) == before
    # Nor is the reconciler led to their order, whenever it asks.
    records(paypal.engine, "UPDATE payments SET check_at = now() WHERE id = :id", id=payment["id"])
    paypal.until(
        lambda: records(
            paypal.engine,
            "SELECT 1 AS asked FROM payments WHERE id = :id AND check_at > now()",
            id=payment["id"],
        ),
        "the reconciler has taken it",
    )
    assert ok(client.get(f"/payments/{payment['id']}"), 200)["status"] == "requires_action"
    asked = [one.path for one in paypal.proxy.log]
    assert f"/v2/checkout/orders/{theirs}/capture" not in asked


# Nothing ----------------------------------------------------------------------------------------


def open_payments(harness: Harness, count: int) -> list[dict[str, Any]]:
    """Payments that the gateway never heard of, and that have no reference yet.

    No repeat of them reaches the gateway either, until the faults are disarmed.
    """
    payments = []
    harness.arm("drop_before", "charge", times=1000)
    for _ in range(count):
        client = harness.shopper()
        harness.save(client)
        payment = ok(harness.pay(client, harness.place(client)), 202)
        assert (payment["status"], payment["gateway_reference"]) == ("pending", None)
        payments.append(payment)
    return payments


NOTHING_OF_STRIPE: list[tuple[str, dict[str, Any]]] = [
    ("payment_intent.created", {"id": "pi_somebody", "object": "payment_intent"}),
    ("unheard.of", {}),
    ("customer.updated", {"id": "cus_1", "object": "customer", "metadata": {}}),
    (
        "payment_method.automatically_updated",
        {"id": "pm_1", "object": "payment_method", "type": "sepa_debit"},
    ),
    (
        "charge.expired",
        {"id": "ch_1", "amount": 1099, "currency": "usd", "metadata": {}, "payment_intent": None},
    ),
    ("charge.refunded", {"id": "ch_1", "amount": 1099, "currency": "usd", "metadata": {}}),
    (
        "refund.created",
        {"id": "re_1", "amount": 1099, "currency": "usd", "status": "succeeded", "metadata": {}},
    ),
    (
        "charge.dispute.created",
        {"id": "du_1", "amount": 1099, "currency": "usd", "status": "lost", "metadata": {}},
    ),
    (
        "payment_intent.succeeded",
        {
            "id": "pi_by_hand",
            "amount": 1099,
            "amount_received": 1099,
            "currency": "usd",
            "status": "succeeded",
            "metadata": {},
        },
    ),
]


def test_an_event_about_nothing_of_ours_changes_no_open_payment_of_stripe(stripe: Harness) -> None:
    payments = open_payments(stripe, 2)
    before = [books(stripe, payment) for payment in payments]
    for kind, found in NOTHING_OF_STRIPE:
        answer = stripe.relay.post(tell_stripe(stripe, kind, found))
        assert answer.status_code == 200, f"{kind}: {answer.text}"
        assert [books(stripe, payment) for payment in payments] == before, kind
    stripe.proxy.disarm()
    for payment in payments:
        stripe.agree(stripe.becomes(payment["id"], "captured"))


NOTHING_OF_PAYPAL: list[tuple[str, dict[str, Any]]] = [
    ("BILLING.PLAN.CREATED", {"id": "P-1"}),
    ("PAYMENT.AUTHORIZATION.VOIDED", {"id": "A-1"}),
    ("CHECKOUT.PAYMENT-APPROVAL.REVERSED", {}),
    (
        "PAYMENT.CAPTURE.COMPLETED",
        {"id": "C-1", "status": "COMPLETED", "amount": {"currency_code": "USD", "value": "10.99"}},
    ),
    (
        "PAYMENT.CAPTURE.REFUNDED",
        {"id": "R-1", "status": "COMPLETED", "amount": {"currency_code": "USD", "value": "10.99"}},
    ),
    (
        "CUSTOMER.DISPUTE.CREATED",
        {
            "dispute_id": "PP-D-1",
            "status": "OPEN",
            "dispute_amount": {"currency_code": "USD", "value": "10.99"},
        },
    ),
]


def test_an_event_about_nothing_of_ours_changes_no_open_payment_of_paypal(paypal: Harness) -> None:
    payments = open_payments(paypal, 2)
    before = [books(paypal, payment) for payment in payments]
    for kind, resource in NOTHING_OF_PAYPAL:
        answer = paypal.relay.post(tell_paypal(paypal, kind, resource))
        assert answer.status_code == 200, f"{kind}: {answer.text}"
        assert [books(paypal, payment) for payment in payments] == before, kind
    paypal.proxy.disarm()
    for payment in payments:
        paypal.agree(paypal.becomes(payment["id"], "captured"))


def test_an_event_about_what_nobody_knows_is_sent_again_while_a_payment_has_no_reference_yet(
    paypal: Harness,
) -> None:
    (payment,) = open_payments(paypal, 1)
    before = books(paypal, payment)
    event = tell_paypal(paypal, "CHECKOUT.PAYMENT-APPROVAL.REVERSED", {"order_id": "NOBODYSORDER"})
    assert ok(paypal.relay.post(event), 409)["code"] == "payment_in_progress"
    assert books(paypal, payment) == before
    paypal.proxy.disarm()
    paypal.becomes(payment["id"], "captured")
    taken(paypal, event)
