"""Authorizations of PayPal that expire, and cards at Stripe that are changed."""

from __future__ import annotations

import pytest

from conformance.doubles.paypal import PaypalDouble
from conformance.harness import Harness, ok
from tests.support.harness import double_of, schedule_lookup_now

# PayPal's authorizations ------------------------------------------------------------------------


def test_a_capture_after_the_honor_period_renews_the_authorization_and_captures_once(
    paypal: Harness,
) -> None:
    double = double_of(paypal)
    assert isinstance(double, PaypalDouble)
    _, payment = paypal.authorized(2000)
    double.pass_days(4)
    asked = len(paypal.proxy.log)
    captured = ok(paypal.post(paypal.manager, f"/payments/{payment['id']}/capture"), 200)
    assert (captured["status"], captured["amount_captured"]) == ("captured", 2000)
    reference = payment["gateway_reference"]
    with double.lock:
        old, new = (one for one in double.authorizations.values() if one["order"] == reference)
        captures = [one for one in double.captures.values() if one["order"] == reference]
    posted = [one for one in paypal.proxy.log[asked:] if one.method == "POST"]
    assert [one.path for one in posted] == [
        f"/v2/payments/authorizations/{old['id']}/reauthorize",
        f"/v2/payments/authorizations/{new['id']}/capture",
    ]
    assert len({one.headers["paypal-request-id"] for one in posted}) == 2
    assert len(captures) == 1
    paypal.agree(captured)
    assert paypal.order(payment["order_id"])["status"] == "paid"


def test_a_capture_within_the_honor_period_does_not_renew(paypal: Harness) -> None:
    double = double_of(paypal)
    assert isinstance(double, PaypalDouble)
    _, payment = paypal.authorized(2000)
    double.pass_days(2)
    asked = len(paypal.proxy.log)
    captured = ok(paypal.post(paypal.manager, f"/payments/{payment['id']}/capture"), 200)
    assert not [one for one in paypal.proxy.log[asked:] if one.path.endswith("/reauthorize")]
    paypal.agree(captured)


def test_an_authorization_that_has_expired_is_voided_and_its_order_canceled(
    paypal: Harness,
) -> None:
    double = double_of(paypal)
    assert isinstance(double, PaypalDouble)
    _, payment = paypal.authorized(2000)
    double.pass_days(30)
    schedule_lookup_now(paypal, payment["id"])
    voided = paypal.becomes(payment["id"], "voided")
    assert paypal.order(payment["order_id"])["status"] == "canceled"
    assert not voided["needs_review"]
    assert paypal.events(payment["order_id"])[-2:] == ["payment.voided", "order.status_changed"]
    paypal.agree(voided)
    answer = paypal.post(paypal.manager, f"/payments/{payment['id']}/capture")
    assert ok(answer, 409)["code"] == "invalid_status_transition"


def test_a_capture_of_an_authorization_that_has_expired_voids_it(paypal: Harness) -> None:
    double = double_of(paypal)
    assert isinstance(double, PaypalDouble)
    _, payment = paypal.authorized(2000)
    double.pass_days(30)
    answer = paypal.post(paypal.manager, f"/payments/{payment['id']}/capture")
    problem = ok(answer, 409)
    assert (problem["code"], problem["current_status"]) == ("invalid_status_transition", "voided")
    paypal.agree(paypal.payment(payment["id"]))
    assert paypal.order(payment["order_id"])["status"] == "canceled"


# Cards ------------------------------------------------------------------------------------------


def test_a_card_at_stripe_is_changed_by_its_user(stripe: Harness) -> None:
    client = stripe.shopper()
    method = stripe.save(client)
    changes = {"exp_month": 5, "exp_year": 2042, "cardholder_name": "Alice Example"}
    path = f"/payment-methods/{method['id']}"
    changed = ok(client.patch(path, json={"details": changes}), 200)
    assert changed["details"] == {**method["details"], **changes}
    assert ok(client.get(path), 200) == changed
    assert ok(stripe.pay(client, stripe.place(client)), 201)["status"] == "captured"
    assert stripe.shopper().patch(path, json={"details": changes}).status_code == 404


@pytest.mark.parametrize("token", ["the same", "a new one"])
def test_a_card_at_stripe_that_was_removed_is_saved_again(stripe: Harness, token: str) -> None:
    client = stripe.shopper()
    body = stripe.target.method("good")
    first = ok(stripe.post(client, "/payment-methods", **body), 201)
    again = body if token == "the same" else stripe.target.method("good")
    taken = ok(stripe.post(client, "/payment-methods", **again), 409)
    assert taken["payment_method_id"] == first["id"]
    assert client.delete(f"/payment-methods/{first['id']}").status_code == 204
    second = ok(stripe.post(client, "/payment-methods", **again), 201)
    assert second["id"] != first["id"]
    assert second["is_default"] is True
    assert second["details"]["last4"] == first["details"]["last4"]
    paid = ok(stripe.pay(client, stripe.place(client)), 201)
    assert (paid["status"], paid["payment_method_id"]) == ("captured", second["id"])
