"""The life of a payment: charge, decline, capture, void, refund."""

from __future__ import annotations

from conformance.harness import Harness, ok, together
from conformance.registry import scenario
from conformance.target import NotApplicable


@scenario
def a_payment_is_captured_once(harness: Harness) -> None:
    client, payment = harness.paid(1234)
    assert payment["status"] == "captured"
    assert payment["amount_captured"] == 1234
    assert harness.order(payment["order_id"])["status"] == "paid"
    assert ok(harness.pay(client, {"id": payment["order_id"]}), 409)["code"] == "order_already_paid"
    harness.agree(payment)


@scenario
def twenty_at_once_charge_an_order_once(harness: Harness) -> None:
    client = harness.shopper()
    harness.save(client)
    order = harness.place(client)
    answers = together(20, lambda _: client.post(f"/orders/{order['id']}/payments", json={}))
    codes = sorted(answer.status_code for answer in answers)
    assert codes.count(201) == 1, codes
    assert set(codes) == {201, 409}, codes
    payment = next(answer.json() for answer in answers if answer.status_code == 201)
    harness.agree(harness.payment(payment["id"]))


@scenario
def a_decline_is_402_and_the_order_can_be_paid_otherwise(harness: Harness) -> None:
    client = harness.shopper()
    harness.save(client, "declined")
    order = harness.place(client)
    problem = ok(harness.pay(client, order), 402)
    assert problem["code"] == "payment_declined"
    assert problem["decline_code"] == "generic_decline"
    assert harness.order(order["id"])["status"] == "pending"
    harness.agree(harness.payment(problem["payment_id"]))
    good = harness.save(client, "good_too")
    assert ok(harness.pay(client, order, payment_method_id=good["id"]), 201)["status"] == "captured"


@scenario
def insufficient_funds_have_a_code_of_their_own(harness: Harness) -> None:
    client = harness.shopper()
    harness.save(client, "insufficient")
    problem = ok(harness.pay(client, harness.place(client)), 402)
    assert problem["decline_code"] == "insufficient_funds"


@scenario
def an_authorization_is_captured_whole(harness: Harness) -> None:
    _, payment = harness.authorized(5000)
    harness.agree(payment)
    answer = harness.post(harness.manager, f"/payments/{payment['id']}/capture")
    assert answer.status_code in (200, 202), answer.text
    payment = harness.becomes(payment["id"], "captured")
    assert payment["amount_captured"] == 5000
    assert harness.order(payment["order_id"])["status"] == "paid"
    harness.agree(payment)


@scenario
def a_partial_capture_releases_the_rest(harness: Harness) -> None:
    _, payment = harness.authorized(5000)
    answer = harness.post(harness.manager, f"/payments/{payment['id']}/capture", amount=3000)
    assert answer.status_code in (200, 202), answer.text
    payment = harness.becomes(payment["id"], "captured")
    assert (payment["amount"], payment["amount_captured"]) == (5000, 3000)
    harness.agree(payment)
    again = harness.post(harness.manager, f"/payments/{payment['id']}/capture", amount=2000)
    assert ok(again, 409)["code"] == "invalid_status_transition"


@scenario
def a_voided_authorization_cancels_its_order(harness: Harness) -> None:
    _, payment = harness.authorized()
    answer = harness.post(harness.manager, f"/payments/{payment['id']}/void")
    assert answer.status_code in (200, 202), answer.text
    payment = harness.becomes(payment["id"], "voided")
    assert harness.order(payment["order_id"])["status"] == "canceled"
    harness.agree(payment)


@scenario
def a_payment_is_refunded_in_parts_and_never_beyond(harness: Harness) -> None:
    _, payment = harness.paid(1000)
    path = f"/payments/{payment['id']}/refunds"
    first = harness.post(harness.manager, path, amount=400, reason="one of two came back")
    assert first.status_code in (201, 202), first.text
    assert harness.refund_settled(payment["id"], first.json()["id"])["status"] == "succeeded"
    assert ok(harness.post(harness.manager, path, amount=700), 409)["remaining"] == 600
    rest = harness.post(harness.manager, path)
    assert rest.status_code in (201, 202), rest.text
    assert harness.refund_settled(payment["id"], rest.json()["id"])["status"] == "succeeded"
    payment = harness.becomes(payment["id"], "refunded")
    assert payment["amount_refunded"] == 1000
    assert harness.order(payment["order_id"])["status"] == "refunded"
    harness.agree(payment)


@scenario
def a_refund_that_fails_after_it_succeeded_gives_its_amount_back(harness: Harness) -> None:
    harness.need_webhooks()
    _, payment = harness.paid(1000)
    answer = harness.post(harness.manager, f"/payments/{payment['id']}/refunds", amount=300)
    refund = harness.refund_settled(payment["id"], answer.json()["id"])
    assert refund["status"] == "succeeded"
    harness.target.fail_refund(refund["gateway_reference"])
    harness.until(
        lambda: harness.refund(payment["id"], refund["id"])["status"] == "failed", "it has failed"
    )
    payment = harness.payment(payment["id"])
    assert (payment["status"], payment["amount_refunded"]) == ("captured", 0)


@scenario
def each_currency_is_charged_in_the_gateways_own_units(harness: Harness) -> None:
    known = [
        a for a in (harness.target.zero_decimals, harness.target.other_decimals) if a is not None
    ]
    if not known:
        raise NotApplicable("this target names no amounts in other currencies")
    client = harness.shopper()
    harness.save(client)
    for amount, currency in known:
        payment = ok(harness.pay(client, harness.place(client, amount, currency)), 201)
        assert (payment["amount_captured"], payment["currency"]) == (amount, currency)
        harness.agree(payment)


@scenario
def an_amount_that_the_gateway_cannot_take_is_409_before_anything_happens(harness: Harness) -> None:
    if harness.target.refused_amount is None:
        raise NotApplicable("this gateway takes every amount")
    client = harness.shopper()
    harness.save(client)
    order = harness.place(client, *harness.target.refused_amount)
    assert ok(harness.pay(client, order), 409)["code"] == "operation_not_supported"
    assert ok(client.get(f"/orders/{order['id']}/payments"), 200) == []
