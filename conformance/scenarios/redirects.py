"""Payments that wait for their shopper, who approves or refuses on the gateway's page."""

from __future__ import annotations

from typing import Any, Final

from conformance.harness import Harness, ok
from conformance.registry import scenario
from conformance.target import NotApplicable

SHOP: Final = "https://shop.example/back"


def waiting(harness: Harness, **body: Any) -> dict[str, Any]:
    """A payment that waits for its shopper."""
    client = harness.shopper()
    harness.save(client, "action")
    answer = harness.pay(client, harness.place(client), return_url=SHOP, **body)
    payment: dict[str, Any] = ok(answer, 201)
    assert payment["status"] == "requires_action"
    assert payment["next_action"]["type"] == "redirect"
    assert payment["next_action"]["url"].startswith("http")
    return payment


@scenario
def an_approved_payment_is_captured_when_only_the_gateway_tells_us(harness: Harness) -> None:
    payment = waiting(harness)
    harness.target.approve(payment["gateway_reference"], yes=True)
    if harness.target.redirect_params(payment["gateway_reference"]):
        raise NotApplicable("this gateway waits for what it added to the return URL")
    payment = harness.becomes(payment["id"], "captured")
    assert payment["next_action"] is None
    assert harness.order(payment["order_id"])["status"] == "paid"
    harness.agree(payment)


@scenario
def an_approved_payment_is_captured_when_the_shopper_is_back(harness: Harness) -> None:
    payment = waiting(harness)
    harness.relay.holds = True
    harness.target.approve(payment["gateway_reference"], yes=True)
    returned = harness.target.redirect_params(payment["gateway_reference"])
    answer = harness.post(harness.manager, f"/payments/{payment['id']}/confirm", returned=returned)
    assert answer.status_code in (200, 202), answer.text
    payment = harness.becomes(payment["id"], "captured")
    harness.agree(payment)


@scenario
def an_approved_authorization_is_held_and_captured_later(harness: Harness) -> None:
    payment = waiting(harness, capture_method="manual")
    harness.target.approve(payment["gateway_reference"], yes=True)
    returned = harness.target.redirect_params(payment["gateway_reference"])
    harness.post(harness.manager, f"/payments/{payment['id']}/confirm", returned=returned)
    payment = harness.becomes(payment["id"], "authorized")
    assert harness.order(payment["order_id"])["status"] == "authorized"
    harness.agree(payment)
    harness.post(harness.manager, f"/payments/{payment['id']}/capture")
    harness.agree(harness.becomes(payment["id"], "captured"))


@scenario
def a_shopper_who_says_no_can_pay_otherwise(harness: Harness) -> None:
    payment = waiting(harness)
    harness.target.approve(payment["gateway_reference"], yes=False)
    returned = harness.target.redirect_params(payment["gateway_reference"])
    harness.post(harness.manager, f"/payments/{payment['id']}/confirm", returned=returned)
    payment = harness.becomes(payment["id"], "failed")
    assert payment["failure"]["code"] == "payment_declined"
    assert harness.order(payment["order_id"])["status"] == "pending"
    harness.agree(payment)


@scenario
def a_payment_that_waits_is_canceled_with_its_order(harness: Harness) -> None:
    payment = waiting(harness)
    answer = harness.manager.put(
        f"/orders/{payment['order_id']}/status", json={"status": "canceled"}
    )
    assert answer.status_code in (200, 202), answer.text
    payment = harness.becomes(payment["id"], "canceled")
    assert harness.order(payment["order_id"])["status"] == "canceled"
    harness.agree(payment)


@scenario
def without_the_shopper_what_needs_them_is_declined(harness: Harness) -> None:
    client = harness.shopper()
    if not harness.target.off_session:
        raise NotApplicable("this gateway always asks the shopper")
    harness.save(client, "action")
    order = harness.place(client)
    answer = harness.pay(
        harness.manager, order
    )  # the store pays, and names no address to return to
    assert ok(answer, 402)["decline_code"] == "authentication_required"
    harness.agree(harness.payment(answer.json()["payment_id"]))


@scenario
def a_lost_answer_to_the_completion_never_charges_twice(harness: Harness) -> None:
    for kind in ("drop_before", "drop_after", "status_after"):
        payment = waiting(harness)
        harness.arm(kind, "complete")
        harness.target.approve(payment["gateway_reference"], yes=True)
        returned = harness.target.redirect_params(payment["gateway_reference"])
        harness.post(harness.manager, f"/payments/{payment['id']}/confirm", returned=returned)
        if returned and not kind.endswith("_after"):
            # It never arrived, and this gateway waits for the very same from the storefront.
            harness.post(harness.manager, f"/payments/{payment['id']}/confirm", returned=returned)
        harness.agree(harness.becomes(payment["id"], "captured"))
