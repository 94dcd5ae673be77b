"""The shopper is back, and what a gateway is sent."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from conformance.doubles.stripe import decode
from conformance.fault_proxy import Exchange
from conformance.harness import MANAGES, Harness, ok
from tests.support.harness import CHARGE, ORDERS, schedule_lookup_now

SHOP = "https://shop.example/back?basket=7"


def confirm(
    client: httpx.Client, payment: dict[str, Any], key: str | None = None, **body: Any
) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key is not None else {}
    answer = client.post(f"/payments/{payment['id']}/confirm", json=body, headers=headers)
    assert answer.status_code < 500, answer.text
    return answer


def waiting(harness: Harness, **body: Any) -> tuple[httpx.Client, dict[str, Any]]:
    """A shopper, and their payment that waits for them."""
    client = harness.shopper()
    harness.save(client, "action")
    payment = ok(harness.pay(client, harness.place(client), **{"return_url": SHOP, **body}), 201)
    assert payment["status"] == "requires_action"
    return client, payment


# The shopper is back ----------------------------------------------------------------------------


def test_nobody_confirms_somebody_elses_payment(paypal: Harness) -> None:
    _, payment = waiting(paypal)
    paypal.relay.holds = True
    paypal.target.approve(payment["gateway_reference"], yes=True)
    asked = len(paypal.proxy.log)
    problem = ok(confirm(paypal.shopper(), payment), 404)
    assert problem["code"] == "not_found"
    assert not [one for one in paypal.proxy.log[asked:] if one.path.endswith("/capture")]
    assert confirm(paypal.shopper(), {"id": 2**62}).status_code == 404
    no_token = httpx.post(f"{paypal.url}/payments/{payment['id']}/confirm", trust_env=False)
    assert no_token.status_code == 401


@pytest.mark.parametrize("returned", [{}, {"returned": {"payment_intent": "pi_of_another"}}])
def test_a_settled_payment_is_confirmed_as_it_is(stripe: Harness, returned: dict[str, Any]) -> None:
    for client, payment in (stripe.paid(), stripe.authorized()):
        events = stripe.events(payment["order_id"])
        asked = len(stripe.proxy.log)
        assert ok(confirm(client, payment, **returned), 200) == stripe.payment(payment["id"])
        assert stripe.payment(payment["id"]) == payment
        assert stripe.events(payment["order_id"]) == events
        assert len(stripe.proxy.log) == asked, "there is nothing to ask"


def test_a_declined_payment_is_confirmed_as_it_is(stripe: Harness) -> None:
    client = stripe.shopper()
    stripe.save(client, "declined")
    problem = ok(stripe.pay(client, stripe.place(client)), 402)
    seen = ok(confirm(client, {"id": problem["payment_id"]}), 200)
    assert (seen["status"], seen["failure"]["code"]) == ("failed", "payment_declined")


def test_a_confirmation_with_an_idempotency_key_is_answered_the_same_again(paypal: Harness) -> None:
    client, payment = waiting(paypal)
    paypal.relay.holds = True
    paypal.target.approve(payment["gateway_reference"], yes=True)
    key = f"confirm-{payment['id']}"
    first = confirm(client, payment, key)
    assert ok(first, 200)["status"] == "captured"
    ok(paypal.post(paypal.manager, f"/payments/{payment['id']}/refunds"), 201)
    again = confirm(client, payment, key)
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["Idempotent-Replayed"] == "true"


def test_a_key_of_one_confirmation_is_not_for_another(stripe: Harness) -> None:
    client, payment = stripe.paid()
    key = f"confirm-{payment['id']}"
    ok(confirm(client, payment, key), 200)
    other = confirm(client, payment, key, returned={"redirectResult": "another"})
    assert other.status_code == 422, other.text
    assert other.json()["code"] == "idempotency_key_reused"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"status": "captured"}, "status"),
        ({"returned": {}, "amount": 1}, "amount"),
        ({"returned": {"redirectResult": 7}}, "returned.…"),
        ({"returned": {"redirectResult": "x" * 8193}}, "returned.…"),
        ({"returned": {f"p{number}": "" for number in range(21)}}, "returned"),
        ({"returned": "redirectResult=x"}, "returned"),
    ],
)
def test_a_confirmation_with_what_it_does_not_know_is_400(
    stripe: Harness, body: dict[str, Any], field: str
) -> None:
    client, payment = waiting(stripe)
    problem = ok(confirm(client, payment, **body), 400)
    assert problem["code"] == "invalid_request"
    assert [error["field"] for error in problem["errors"]] == [field]
    assert stripe.payment(payment["id"])["status"] == "requires_action"


def test_a_payment_that_the_gateway_has_not_heard_of_is_confirmed_as_open(stripe: Harness) -> None:
    client = stripe.shopper()
    stripe.save(client)
    stripe.arm("drop_before", "charge", times=1000)
    payment = ok(stripe.pay(client, stripe.place(client)), 202)
    assert ok(confirm(client, payment), 202)["status"] == "pending"
    stripe.proxy.disarm()
    payment = stripe.becomes(payment["id"], "captured")
    assert ok(confirm(client, payment), 200)["status"] == "captured"


@pytest.mark.parametrize("kind", ["drop_before", "status_after"])
def test_while_the_outcome_of_the_completion_is_unknown_a_confirmation_is_202(
    paypal: Harness, kind: str
) -> None:
    client, payment = waiting(paypal)
    paypal.relay.holds = True
    paypal.target.approve(payment["gateway_reference"], yes=True)
    paypal.arm(kind, "complete", times=1000)
    for _ in range(2):
        assert ok(confirm(client, payment), 202)["status"] == "pending"
    assert paypal.order(payment["order_id"])["status"] == "pending"
    paypal.proxy.disarm()
    schedule_lookup_now(paypal, payment["id"])
    paypal.agree(paypal.becomes(payment["id"], "captured"))
    assert ok(confirm(client, payment), 200)["status"] == "captured"


def test_an_approved_payment_is_captured_by_the_confirmation_itself(paypal: Harness) -> None:
    client, payment = waiting(paypal)
    paypal.relay.holds = True
    paypal.target.approve(payment["gateway_reference"], yes=True)
    confirmed = ok(confirm(client, payment), 200)
    assert (confirmed["status"], confirmed["amount_captured"]) == ("captured", 1099)
    assert confirmed["next_action"] is None
    assert paypal.order(payment["order_id"])["status"] == "paid"
    paypal.agree(confirmed)


def test_a_confirmation_before_the_shopper_has_acted_changes_nothing(paypal: Harness) -> None:
    client, payment = waiting(paypal)
    confirmed = ok(confirm(client, payment), 200)
    assert (confirmed["status"], confirmed["next_action"]) == (
        "requires_action",
        payment["next_action"],
    )
    assert "payment.captured" not in paypal.events(payment["order_id"])


# What the gateway is sent -----------------------------------------------------------------------


def last_sent(harness: Harness, path: str) -> Exchange:
    return [one for one in harness.proxy.log if one.method == "POST" and one.path == path][-1]


def sent_to_stripe(harness: Harness, payment: dict[str, Any]) -> dict[str, Any]:
    """The charge of this payment as Stripe was asked for it."""
    fields = decode(last_sent(harness, CHARGE).body.decode())
    assert fields["metadata"]["payment_id"] == str(payment["id"])
    return fields


def test_a_shopper_who_pays_lands_on_the_services_own_page(
    stripe: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    _, payment = stripe.paid()
    fields = sent_to_stripe(stripe, payment)
    assert fields["return_url"] == f"{stripe.url}/checkout/return"
    assert "off_session" not in fields

    added = {"payment_intent": "pi_in_the_address", "redirect_status": "<script>succeeded</script>"}
    page = httpx.get(fields["return_url"], params=added, trust_env=False)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "<script" not in page.text.lower()
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "script-src" not in page.headers["content-security-policy"]
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cache-control"] == "no-store"
    for told in (page.text, str(page.headers)):
        assert "pi_in_the_address" not in told
        assert "succeeded" not in told
    stripe.until(lambda: "/checkout/return" in caplog.text, "the visit is logged")
    assert "pi_in_the_address" not in caplog.text
    assert page.content == httpx.get(fields["return_url"], trust_env=False).content


def test_a_shopper_who_pays_lands_where_the_storefront_says(stripe: Harness) -> None:
    _, payment = stripe.paid(return_url=SHOP)
    fields = sent_to_stripe(stripe, payment)
    assert (fields["return_url"], "off_session" in fields) == (SHOP, False)


def test_a_store_that_pays_for_a_shopper_does_so_without_them(stripe: Harness) -> None:
    client = stripe.shopper()
    stripe.save(client)
    payment = ok(stripe.pay(stripe.manager, stripe.place(client)), 201)
    fields = sent_to_stripe(stripe, payment)
    assert fields["off_session"] == "true"
    assert fields["automatic_payment_methods"]["allow_redirects"] == "never"
    assert "return_url" not in fields


def test_a_store_that_says_where_to_return_pays_with_the_shopper_there(stripe: Harness) -> None:
    client = stripe.shopper()
    stripe.save(client, "action")
    payment = ok(stripe.pay(stripe.manager, stripe.place(client), return_url=SHOP), 201)
    assert payment["status"] == "requires_action"
    fields = sent_to_stripe(stripe, payment)
    assert (fields["return_url"], "off_session" in fields) == (SHOP, False)


def test_a_manager_who_pays_their_own_order_is_there(stripe: Harness) -> None:
    boss = stripe.client("boss", MANAGES)
    stripe.save(boss)
    fields = sent_to_stripe(stripe, ok(stripe.pay(boss, stripe.place(boss)), 201))
    assert fields["return_url"] == f"{stripe.url}/checkout/return"
    assert "off_session" not in fields


def test_a_repeat_by_the_reconciler_says_the_same_about_the_shopper(stripe: Harness) -> None:
    client = stripe.shopper()
    stripe.save(client)
    stripe.arm("drop_before", "charge")
    payment = ok(stripe.pay(stripe.manager, stripe.place(client)), 202)
    first = last_sent(stripe, CHARGE)
    stripe.becomes(payment["id"], "captured")
    again = last_sent(stripe, CHARGE)
    assert again is not first
    assert again.body == first.body
    assert again.headers["idempotency-key"] == first.headers["idempotency-key"]
    assert decode(again.body.decode())["off_session"] == "true"


def test_paypal_is_sent_where_the_payer_returns_to_unless_nobody_is_there(paypal: Harness) -> None:
    def sent(body: dict[str, Any], payer: httpx.Client | None = None) -> Any:
        client = paypal.shopper()
        paypal.save(client)
        ok(paypal.pay(payer or client, paypal.place(client), **body), 201)
        sent = json.loads(last_sent(paypal, ORDERS).body)
        return sent["payment_source"]["paypal"].get("experience_context")

    assert sent({})["return_url"] == f"{paypal.url}/checkout/return"
    assert sent({"return_url": SHOP})["return_url"] == SHOP
    assert sent({"return_url": SHOP}, paypal.manager)["return_url"] == SHOP
    assert sent({}, paypal.manager) is None
