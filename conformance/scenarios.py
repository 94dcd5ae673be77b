"""One contract for all gateways: the same scenarios and the same faults, whichever stands behind.

Each scenario drives the real service over HTTP, with the gateway's double (or the real thing)
behind a proxy that loses, delays and garbles what passes, and then compares both sets of books.
Plain functions without a test framework, so that `python cli.py gateway check` runs them as well.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from conformance.fault_proxy import Delivery
from conformance.harness import Harness, Scenario, ok, together
from conformance.scenarios_faults import FAULTS, charge_with
from conformance.scenarios_outside import OUTSIDE
from conformance.scenarios_resend import RESEND
from conformance.target import NotApplicable

SCENARIOS: list[Scenario] = []
DAY: Final = 86_400.0  # seconds
TURNS: Final = 6  # orders in which webhooks are delivered, evenly from as sent to reversed


def scenario(run: Scenario) -> Scenario:
    """Part of the contract; its name is the rule."""
    SCENARIOS.append(run)
    return run


# Payment methods --------------------------------------------------------------------------------


@scenario
def a_saved_method_shows_what_the_gateway_knows_of_it(harness: Harness) -> None:
    client = harness.shopper()
    method = harness.save(client)
    assert method["gateway"] == harness.gateway
    if method["payment_type"] == "card":
        details = method["details"]
        assert len(details["last4"]) == 4
        assert details["brand"]
        assert 1 <= details["exp_month"] <= 12
        assert details["exp_year"] > 2025
    assert "token" not in method["details"]


@scenario
def the_same_method_is_not_saved_twice(harness: Harness) -> None:
    client = harness.shopper()
    body = harness.target.method("good")
    first = ok(harness.post(client, "/payment-methods", **body), 201)
    again = harness.post(client, "/payment-methods", **body)
    assert ok(again, 409)["payment_method_id"] == first["id"]
    ok(
        harness.post(harness.shopper(), "/payment-methods", **harness.target.method("good_too")),
        201,
    )


@scenario
def a_method_that_the_gateway_refuses_is_402_and_not_saved(harness: Harness) -> None:
    client = harness.shopper()
    answer = harness.post(client, "/payment-methods", **harness.target.method("refused"))
    assert ok(answer, 402)["code"] == "payment_method_declined"
    assert ok(client.get("/payment-methods"), 200) == []


@scenario
def a_token_that_the_gateway_does_not_know_is_400(harness: Harness) -> None:
    body = harness.target.method("good")
    if "token" not in body["details"]:
        raise NotApplicable("this gateway saves without tokens")
    client = harness.shopper()
    answer = harness.post(client, "/payment-methods", **body | {"details": {"token": "nonsense"}})
    problem = ok(answer, 400)
    assert problem["code"] == "invalid_request"
    assert problem["errors"][0]["field"] == "details.token"
    assert "nonsense" not in answer.text


@scenario
def a_card_number_goes_only_to_gateways_that_take_numbers(harness: Harness) -> None:
    gateway = harness.app.state.gateways.get(harness.gateway)
    if "card" not in gateway.capabilities.payment_types or gateway.capabilities.card_numbers:
        raise NotApplicable("this gateway takes numbers, or no cards at all")
    answer = harness.post(
        harness.shopper(),
        "/payment-methods",
        payment_type="card",
        details={"card_number": "4242424242424242", "exp_month": 12, "exp_year": 2040},
    )
    assert ok(answer, 400)["code"] == "card_number_not_accepted"
    assert "token" in answer.json()["detail"]


# The life of a payment --------------------------------------------------------------------------


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
        raise NotApplicable("this bench names no amounts in other currencies")
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


# The shopper has to act -------------------------------------------------------------------------

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
    if harness.target.returned(payment["gateway_reference"]):
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
    returned = harness.target.returned(payment["gateway_reference"])
    answer = harness.post(harness.manager, f"/payments/{payment['id']}/confirm", returned=returned)
    assert answer.status_code in (200, 202), answer.text
    payment = harness.becomes(payment["id"], "captured")
    harness.agree(payment)


@scenario
def an_approved_authorization_is_held_and_captured_later(harness: Harness) -> None:
    payment = waiting(harness, capture_method="manual")
    harness.target.approve(payment["gateway_reference"], yes=True)
    returned = harness.target.returned(payment["gateway_reference"])
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
    returned = harness.target.returned(payment["gateway_reference"])
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
        returned = harness.target.returned(payment["gateway_reference"])
        harness.post(harness.manager, f"/payments/{payment['id']}/confirm", returned=returned)
        if returned and not kind.endswith("_after"):
            # It never arrived, and this gateway waits for the very same from the storefront.
            harness.post(harness.manager, f"/payments/{payment['id']}/confirm", returned=returned)
        harness.agree(harness.becomes(payment["id"], "captured"))


# Webhooks ---------------------------------------------------------------------------------------


def told(harness: Harness, *about: dict[str, Any], at_least: int = 1) -> Sequence[Delivery]:
    """What the gateway has sent about a payment and its refunds, once it is so much."""
    harness.need_webhooks()
    references = [resource["gateway_reference"] for resource in about]

    def look() -> Sequence[Delivery] | None:
        found = harness.relay.about(*references)
        return found if len(found) >= at_least else None

    return harness.until(look, f"{at_least} webhooks about {references}")


@scenario
def a_webhook_twice_or_a_hundred_times_at_once_has_one_effect(harness: Harness) -> None:
    harness.need_webhooks()
    harness.relay.holds = True
    client = harness.shopper()
    harness.save(client)
    order = harness.place(client)
    held = harness.arm("hold_after", "charge")
    paying = threading.Thread(target=harness.pay, args=(client, order))
    paying.start()
    try:
        harness.until(lambda: bool(harness.charges(_latest(harness, order))), "it is charged")
        payment_id = _latest(harness, order)
        reference = harness.charges(payment_id)[0].reference
        deliveries = harness.until(lambda: harness.relay.about(reference), "it is told")
        answers = together(
            100, lambda number: harness.relay.post(deliveries[number % len(deliveries)])
        )
        assert {answer.status_code for answer in answers} == {200}
    finally:
        held.release.set()
        paying.join(30)
    payment = harness.becomes(payment_id, "captured")
    for delivery in deliveries:
        assert harness.relay.post(delivery).status_code == 200
    assert harness.events(order["id"]).count("payment.captured") == 1
    assert harness.events(order["id"]).count("order.status_changed") == 1
    harness.agree(harness.payment(payment["id"]))


def _latest(harness: Harness, order: dict[str, Any]) -> int:
    rows = ok(harness.manager.get(f"/orders/{order['id']}/payments"), 200)
    return int(rows[0]["id"]) if rows else 0


@scenario
def a_webhook_before_the_answer_settles_the_payment(harness: Harness) -> None:
    harness.need_webhooks()
    client = harness.shopper()
    harness.save(client)
    order = harness.place(client)
    held = harness.arm("hold_after", "charge")
    answers: list[Any] = []
    paying = threading.Thread(target=lambda: answers.append(harness.pay(client, order)))
    paying.start()
    try:
        assert held.reached.wait(20)
        harness.until(lambda: _latest(harness, order), "it is claimed")
        harness.becomes(_latest(harness, order), "captured")
    finally:
        held.release.set()
        paying.join(30)
    assert answers[0].status_code in (201, 202)
    assert harness.events(order["id"]).count("payment.captured") == 1
    harness.agree(harness.payment(_latest(harness, order)))


@scenario
def webhooks_in_every_order_end_in_the_same_state(harness: Harness) -> None:
    harness.need_webhooks()
    for turn in range(TURNS):
        harness.relay.holds = True
        _, payment = harness.authorized(700)
        ok_or_accepted = harness.post(harness.manager, f"/payments/{payment['id']}/capture")
        assert ok_or_accepted.status_code in (200, 202)
        if ok_or_accepted.status_code == 202:  # only a webhook will tell
            _deliver_all(harness, turn, told(harness, payment, at_least=2))
        payment = harness.becomes(payment["id"], "captured")
        path = f"/payments/{payment['id']}/refunds"
        harness.post(harness.manager, path, amount=200)
        refund = _known_refund(harness, path)
        _deliver_all(harness, turn, told(harness, payment, refund, at_least=3))
        harness.refund_settled(payment["id"], refund["id"])
        after = harness.settled(payment["id"])
        assert (after["status"], after["amount_captured"]) == ("partially_refunded", 700)
        assert after["amount_refunded"] == 200
        assert not after["needs_review"]
        harness.agree(after)


def _known_refund(harness: Harness, path: str) -> dict[str, Any]:
    """The only refund of a payment, once the gateway has a name for it."""

    def look() -> dict[str, Any] | None:
        (refund,) = ok(harness.manager.get(path), 200)
        return refund if refund["gateway_reference"] else None

    return harness.until(look, "the gateway has a name for the refund")


def _deliver_all(harness: Harness, turn: int, deliveries: Sequence[Delivery]) -> None:
    """In the order of this turn: as they were sent in the first, reversed in the last."""
    orders = list(itertools.permutations(deliveries))
    for delivery in orders[turn * (len(orders) - 1) // (TURNS - 1)]:
        assert harness.relay.post(delivery).status_code == 200


def forged(about: str, change: Callable[[Harness, Delivery], Delivery]) -> Scenario:
    def run(harness: Harness) -> None:
        _, payment = harness.paid()
        before = harness.events(payment["order_id"])
        delivery = change(harness, told(harness, payment)[-1])
        answer = harness.relay.post(delivery)
        if harness.target.signs_all or answer.status_code != 200:
            assert answer.status_code == 400, answer.text
            assert answer.json()["code"] == "invalid_signature"
        assert harness.events(payment["order_id"]) == before
        harness.agree(harness.payment(payment["id"]))

    run.__name__ = f"a_webhook_{about}_is_refused"
    return run


def _with_one_byte_changed(_: Harness, delivery: Delivery) -> Delivery:
    place = len(delivery.body) // 2
    changed = bytes([delivery.body[place] ^ 1])
    return Delivery(delivery.headers, delivery.body[:place] + changed + delivery.body[place + 1 :])


def _forge(**how: Any) -> Callable[[Harness, Delivery], Delivery]:
    return lambda harness, delivery: Delivery(
        *harness.target.forge(delivery.headers, delivery.body, **how)
    )


def _signed_but_not_utf8(harness: Harness, delivery: Delivery) -> Delivery:
    return Delivery(*harness.target.forge(delivery.headers, b'{"id": "\xff\xfe"}'))


scenario(forged("with_one_byte_changed", _with_one_byte_changed))
scenario(forged("with_an_old_timestamp", _forge(age=8 * DAY)))
scenario(forged("from_the_future", _forge(age=-0.5 * DAY)))
scenario(forged("with_another_endpoints_secret", _forge(foreign=True)))
scenario(forged("without_its_headers", lambda _, sent: Delivery({}, sent.body)))
scenario(forged("that_is_not_utf8", _signed_but_not_utf8))


@scenario
def a_dispute_is_told_when_it_opens_and_when_it_closes(harness: Harness) -> None:
    harness.need_webhooks()
    _, payment = harness.paid()
    dispute = harness.target.dispute(payment["gateway_reference"])
    harness.until(lambda: "dispute.opened" in harness.events(payment["order_id"]), "it is opened")
    harness.target.close_dispute(dispute, won=True)
    harness.until(lambda: "dispute.closed" in harness.events(payment["order_id"]), "it is closed")
    assert harness.events(payment["order_id"]).count("dispute.opened") == 1


# Secrets ----------------------------------------------------------------------------------------


@scenario
def no_secret_is_in_the_logs_or_in_the_database(harness: Harness) -> None:
    harness.paid()
    waiting_kind = charge_with(harness, {"kind": "drop_after"})
    harness.settled(waiting_kind.json()["id"])
    secrets = harness.secrets_seen()
    if not secrets:
        raise NotApplicable("this gateway has no secrets")
    log, dump = harness.log_text, harness.dump()
    assert "http.request" in log
    for secret in secrets:
        assert secret not in log, f"a secret that begins with {secret[:6]} is in the logs"
        assert secret not in dump, f"a secret that begins with {secret[:6]} is in the database"


SCENARIOS += [*FAULTS, *RESEND, *OUTSIDE]  # they ask the gateway beside the service
