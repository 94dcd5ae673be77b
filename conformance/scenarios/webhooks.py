"""Webhooks: twice, early, in any order, and forged."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from conformance.fault_proxy import Delivery
from conformance.harness import Harness, ok, together
from conformance.registry import Scenario, scenario

DAY: Final = 86_400.0  # seconds
TURNS: Final = 6  # orders in which webhooks are delivered, evenly from as sent to reversed


def deliveries_about(
    harness: Harness, *about: dict[str, Any], at_least: int = 1
) -> Sequence[Delivery]:
    """The webhooks about a payment and its refunds, once there are so many."""
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
        deliveries = harness.until(lambda: harness.relay.about(reference), "a webhook is sent")
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
        if ok_or_accepted.status_code == 202:  # only a webhook reports the outcome
            _deliver_all(harness, turn, deliveries_about(harness, payment, at_least=2))
        payment = harness.becomes(payment["id"], "captured")
        path = f"/payments/{payment['id']}/refunds"
        harness.post(harness.manager, path, amount=200)
        refund = _known_refund(harness, path)
        _deliver_all(harness, turn, deliveries_about(harness, payment, refund, at_least=3))
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
        delivery = change(harness, deliveries_about(harness, payment)[-1])
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
