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

from tests.gateways.bench import NotApplicable, Step
from tests.gateways.contract_outside import OUTSIDE
from tests.gateways.contract_resend import RESEND
from tests.gateways.proxy import Delivery
from tests.gateways.stand import GATEWAY_TIMEOUT, Scenario, Stand, ok, together

SCENARIOS: list[Scenario] = []
DAY: Final = 86_400.0  # seconds
TURNS: Final = 6  # orders in which webhooks are delivered, evenly from as sent to reversed
STALL: Final = GATEWAY_TIMEOUT + 0.7  # seconds: longer than anybody waits


def scenario(run: Scenario) -> Scenario:
    """Part of the contract; its name is the rule."""
    SCENARIOS.append(run)
    return run


# Payment methods --------------------------------------------------------------------------------


@scenario
def a_saved_method_shows_what_the_gateway_knows_of_it(stand: Stand) -> None:
    client = stand.shopper()
    method = stand.save(client)
    assert method["gateway"] == stand.gateway
    if method["payment_type"] == "card":
        details = method["details"]
        assert len(details["last4"]) == 4
        assert details["brand"]
        assert 1 <= details["exp_month"] <= 12
        assert details["exp_year"] > 2025
    assert "token" not in method["details"]


@scenario
def the_same_method_is_not_saved_twice(stand: Stand) -> None:
    client = stand.shopper()
    body = stand.bench.method("good")
    first = ok(stand.post(client, "/payment-methods", **body), 201)
    again = stand.post(client, "/payment-methods", **body)
    assert ok(again, 409)["payment_method_id"] == first["id"]
    ok(stand.post(stand.shopper(), "/payment-methods", **stand.bench.method("good_too")), 201)


@scenario
def a_method_that_the_gateway_refuses_is_402_and_not_saved(stand: Stand) -> None:
    client = stand.shopper()
    answer = stand.post(client, "/payment-methods", **stand.bench.method("refused"))
    assert ok(answer, 402)["code"] == "payment_method_declined"
    assert ok(client.get("/payment-methods"), 200) == []


@scenario
def a_token_that_the_gateway_does_not_know_is_400(stand: Stand) -> None:
    body = stand.bench.method("good")
    if "token" not in body["details"]:
        raise NotApplicable("this gateway saves without tokens")
    client = stand.shopper()
    answer = stand.post(client, "/payment-methods", **body | {"details": {"token": "nonsense"}})
    problem = ok(answer, 400)
    assert problem["code"] == "invalid_request"
    assert problem["errors"][0]["field"] == "details.token"
    assert "nonsense" not in answer.text


@scenario
def a_card_number_goes_only_to_gateways_that_take_numbers(stand: Stand) -> None:
    gateway = stand.app.state.gateways.get(stand.gateway)
    if "card" not in gateway.capabilities.payment_types or gateway.capabilities.card_numbers:
        raise NotApplicable("this gateway takes numbers, or no cards at all")
    answer = stand.post(
        stand.shopper(),
        "/payment-methods",
        payment_type="card",
        details={"card_number": "4242424242424242", "exp_month": 12, "exp_year": 2040},
    )
    assert ok(answer, 400)["code"] == "card_number_not_accepted"
    assert "token" in answer.json()["detail"]


# The life of a payment --------------------------------------------------------------------------


@scenario
def a_payment_is_captured_once(stand: Stand) -> None:
    client, payment = stand.paid(1234)
    assert payment["status"] == "captured"
    assert payment["amount_captured"] == 1234
    assert stand.order(payment["order_id"])["status"] == "paid"
    assert ok(stand.pay(client, {"id": payment["order_id"]}), 409)["code"] == "order_already_paid"
    stand.agree(payment)


@scenario
def twenty_at_once_charge_an_order_once(stand: Stand) -> None:
    client = stand.shopper()
    stand.save(client)
    order = stand.place(client)
    answers = together(20, lambda _: client.post(f"/orders/{order['id']}/payments", json={}))
    codes = sorted(answer.status_code for answer in answers)
    assert codes.count(201) == 1, codes
    assert set(codes) == {201, 409}, codes
    payment = next(answer.json() for answer in answers if answer.status_code == 201)
    stand.agree(stand.payment(payment["id"]))


@scenario
def a_decline_is_402_and_the_order_can_be_paid_otherwise(stand: Stand) -> None:
    client = stand.shopper()
    stand.save(client, "declined")
    order = stand.place(client)
    problem = ok(stand.pay(client, order), 402)
    assert problem["code"] == "payment_declined"
    assert problem["decline_code"] == "generic_decline"
    assert stand.order(order["id"])["status"] == "pending"
    stand.agree(stand.payment(problem["payment_id"]))
    good = stand.save(client, "good_too")
    assert ok(stand.pay(client, order, payment_method_id=good["id"]), 201)["status"] == "captured"


@scenario
def insufficient_funds_have_a_code_of_their_own(stand: Stand) -> None:
    client = stand.shopper()
    stand.save(client, "insufficient")
    problem = ok(stand.pay(client, stand.place(client)), 402)
    assert problem["decline_code"] == "insufficient_funds"


@scenario
def an_authorization_is_captured_whole(stand: Stand) -> None:
    _, payment = stand.authorized(5000)
    stand.agree(payment)
    answer = stand.post(stand.manager, f"/payments/{payment['id']}/capture")
    assert answer.status_code in (200, 202), answer.text
    payment = stand.becomes(payment["id"], "captured")
    assert payment["amount_captured"] == 5000
    assert stand.order(payment["order_id"])["status"] == "paid"
    stand.agree(payment)


@scenario
def a_partial_capture_releases_the_rest(stand: Stand) -> None:
    _, payment = stand.authorized(5000)
    answer = stand.post(stand.manager, f"/payments/{payment['id']}/capture", amount=3000)
    assert answer.status_code in (200, 202), answer.text
    payment = stand.becomes(payment["id"], "captured")
    assert (payment["amount"], payment["amount_captured"]) == (5000, 3000)
    stand.agree(payment)
    again = stand.post(stand.manager, f"/payments/{payment['id']}/capture", amount=2000)
    assert ok(again, 409)["code"] == "invalid_status_transition"


@scenario
def a_voided_authorization_cancels_its_order(stand: Stand) -> None:
    _, payment = stand.authorized()
    answer = stand.post(stand.manager, f"/payments/{payment['id']}/void")
    assert answer.status_code in (200, 202), answer.text
    payment = stand.becomes(payment["id"], "voided")
    assert stand.order(payment["order_id"])["status"] == "canceled"
    stand.agree(payment)


@scenario
def a_payment_is_refunded_in_parts_and_never_beyond(stand: Stand) -> None:
    _, payment = stand.paid(1000)
    path = f"/payments/{payment['id']}/refunds"
    first = stand.post(stand.manager, path, amount=400, reason="one of two came back")
    assert first.status_code in (201, 202), first.text
    assert stand.refund_settled(payment["id"], first.json()["id"])["status"] == "succeeded"
    assert ok(stand.post(stand.manager, path, amount=700), 409)["remaining"] == 600
    rest = stand.post(stand.manager, path)
    assert rest.status_code in (201, 202), rest.text
    assert stand.refund_settled(payment["id"], rest.json()["id"])["status"] == "succeeded"
    payment = stand.becomes(payment["id"], "refunded")
    assert payment["amount_refunded"] == 1000
    assert stand.order(payment["order_id"])["status"] == "refunded"
    stand.agree(payment)


@scenario
def a_refund_that_fails_after_it_succeeded_gives_its_amount_back(stand: Stand) -> None:
    stand.need_webhooks()
    _, payment = stand.paid(1000)
    answer = stand.post(stand.manager, f"/payments/{payment['id']}/refunds", amount=300)
    refund = stand.refund_settled(payment["id"], answer.json()["id"])
    assert refund["status"] == "succeeded"
    stand.bench.fail_refund(refund["gateway_reference"])
    stand.until(
        lambda: stand.refund(payment["id"], refund["id"])["status"] == "failed", "it has failed"
    )
    payment = stand.payment(payment["id"])
    assert (payment["status"], payment["amount_refunded"]) == ("captured", 0)


@scenario
def each_currency_is_charged_in_the_gateways_own_units(stand: Stand) -> None:
    known = [a for a in (stand.bench.zero_decimals, stand.bench.other_decimals) if a is not None]
    if not known:
        raise NotApplicable("this bench names no amounts in other currencies")
    client = stand.shopper()
    stand.save(client)
    for amount, currency in known:
        payment = ok(stand.pay(client, stand.place(client, amount, currency)), 201)
        assert (payment["amount_captured"], payment["currency"]) == (amount, currency)
        stand.agree(payment)


@scenario
def an_amount_that_the_gateway_cannot_take_is_409_before_anything_happens(stand: Stand) -> None:
    if stand.bench.refused_amount is None:
        raise NotApplicable("this gateway takes every amount")
    client = stand.shopper()
    stand.save(client)
    order = stand.place(client, *stand.bench.refused_amount)
    assert ok(stand.pay(client, order), 409)["code"] == "operation_not_supported"
    assert ok(client.get(f"/orders/{order['id']}/payments"), 200) == []


# The shopper has to act -------------------------------------------------------------------------

SHOP: Final = "https://shop.example/back"


def waiting(stand: Stand, **body: Any) -> dict[str, Any]:
    """A payment that waits for its shopper."""
    client = stand.shopper()
    stand.save(client, "action")
    answer = stand.pay(client, stand.place(client), return_url=SHOP, **body)
    payment: dict[str, Any] = ok(answer, 201)
    assert payment["status"] == "requires_action"
    assert payment["next_action"]["type"] == "redirect"
    assert payment["next_action"]["url"].startswith("http")
    return payment


@scenario
def an_approved_payment_is_captured_when_only_the_gateway_tells_us(stand: Stand) -> None:
    payment = waiting(stand)
    stand.bench.approve(payment["gateway_reference"], yes=True)
    if stand.bench.returned(payment["gateway_reference"]):
        raise NotApplicable("this gateway waits for what it added to the return URL")
    payment = stand.becomes(payment["id"], "captured")
    assert payment["next_action"] is None
    assert stand.order(payment["order_id"])["status"] == "paid"
    stand.agree(payment)


@scenario
def an_approved_payment_is_captured_when_the_shopper_is_back(stand: Stand) -> None:
    payment = waiting(stand)
    stand.relay.holds = True
    stand.bench.approve(payment["gateway_reference"], yes=True)
    returned = stand.bench.returned(payment["gateway_reference"])
    answer = stand.post(stand.manager, f"/payments/{payment['id']}/confirm", returned=returned)
    assert answer.status_code in (200, 202), answer.text
    payment = stand.becomes(payment["id"], "captured")
    stand.agree(payment)


@scenario
def an_approved_authorization_is_held_and_captured_later(stand: Stand) -> None:
    payment = waiting(stand, capture_method="manual")
    stand.bench.approve(payment["gateway_reference"], yes=True)
    returned = stand.bench.returned(payment["gateway_reference"])
    stand.post(stand.manager, f"/payments/{payment['id']}/confirm", returned=returned)
    payment = stand.becomes(payment["id"], "authorized")
    assert stand.order(payment["order_id"])["status"] == "authorized"
    stand.agree(payment)
    stand.post(stand.manager, f"/payments/{payment['id']}/capture")
    stand.agree(stand.becomes(payment["id"], "captured"))


@scenario
def a_shopper_who_says_no_can_pay_otherwise(stand: Stand) -> None:
    payment = waiting(stand)
    stand.bench.approve(payment["gateway_reference"], yes=False)
    returned = stand.bench.returned(payment["gateway_reference"])
    stand.post(stand.manager, f"/payments/{payment['id']}/confirm", returned=returned)
    payment = stand.becomes(payment["id"], "failed")
    assert payment["failure"]["code"] == "payment_declined"
    assert stand.order(payment["order_id"])["status"] == "pending"
    stand.agree(payment)


@scenario
def a_payment_that_waits_is_canceled_with_its_order(stand: Stand) -> None:
    payment = waiting(stand)
    answer = stand.manager.put(f"/orders/{payment['order_id']}/status", json={"status": "canceled"})
    assert answer.status_code in (200, 202), answer.text
    payment = stand.becomes(payment["id"], "canceled")
    assert stand.order(payment["order_id"])["status"] == "canceled"
    stand.agree(payment)


@scenario
def without_the_shopper_what_needs_them_is_declined(stand: Stand) -> None:
    client = stand.shopper()
    if not stand.bench.off_session:
        raise NotApplicable("this gateway always asks the shopper")
    stand.save(client, "action")
    order = stand.place(client)
    answer = stand.pay(stand.manager, order)  # the store pays, and names no address to return to
    assert ok(answer, 402)["decline_code"] == "authentication_required"
    stand.agree(stand.payment(answer.json()["payment_id"]))


@scenario
def a_lost_answer_to_the_completion_never_charges_twice(stand: Stand) -> None:
    for kind in ("drop_before", "drop_after", "status_after"):
        payment = waiting(stand)
        stand.arm(kind, "complete")
        stand.bench.approve(payment["gateway_reference"], yes=True)
        returned = stand.bench.returned(payment["gateway_reference"])
        stand.post(stand.manager, f"/payments/{payment['id']}/confirm", returned=returned)
        if returned and not kind.endswith("_after"):
            # It never arrived, and this gateway waits for the very same from the storefront.
            stand.post(stand.manager, f"/payments/{payment['id']}/confirm", returned=returned)
        stand.agree(stand.becomes(payment["id"], "captured"))


# Faults -----------------------------------------------------------------------------------------

LOST: Final[Sequence[dict[str, Any]]] = (
    {"kind": "drop_before"},
    {"kind": "drop_after"},
    {"kind": "status_before", "status": 500},
    {"kind": "status_before", "status": 500, "times": 3},
    {"kind": "status_before", "status": 503},
    {"kind": "status_after", "status": 500},
    {"kind": "html_after"},
    {"kind": "truncated_after"},
    {"kind": "cut_after"},
    {"kind": "empty_after"},
    {"kind": "redirect_before"},
)


def charge_with(stand: Stand, fault: dict[str, Any], amount: int = 1099) -> Any:
    """Pay while something goes wrong. Returns the answer to the shopper."""
    client = stand.shopper()
    stand.save(client)
    order = stand.place(client, amount)
    stand.relay.holds = True  # webhooks are lost as well: look-ups alone have to find out
    stand.arm(step="charge", **fault)
    return stand.pay(client, order)


def reaches(fault: dict[str, Any]) -> bool:
    """Whether the gateway has heard the request, so that it has happened."""
    return str(fault["kind"]).endswith("_after")


def lost_charge(fault: dict[str, Any]) -> Scenario:
    def run(stand: Stand) -> None:
        answer = charge_with(stand, fault)
        assert ok(answer, 202)["status"] == "pending"
        payment = stand.settled(answer.json()["id"])
        if payment["status"] == "failed" and not reaches(fault):
            # It never arrived, and never will: then the order may be paid again.
            assert payment["failure"]["code"] == "not_charged"
        else:
            assert payment["status"] == "captured"
            assert stand.order(payment["order_id"])["status"] == "paid"
        assert not payment["needs_review"]
        stand.agree(payment)

    run.__name__ = f"a_charge_with_{_name(fault)}_is_pending_and_then_charged_once"
    return run


def _name(fault: dict[str, Any]) -> str:
    return "_".join(str(value) for value in fault.values())


for _fault in LOST:
    scenario(lost_charge(_fault))


@scenario
def a_charge_that_arrives_after_we_gave_up_waiting_is_made_once(stand: Stand) -> None:
    answer = charge_with(stand, {"kind": "stall_before", "seconds": STALL})
    assert ok(answer, 202)["status"] == "pending"
    payment = stand.settled(answer.json()["id"])
    stand.until(lambda: len(stand.charges(payment["id"])) >= 1, "the late request has arrived")
    stand.agree(payment)


@scenario
def a_charge_whose_answer_comes_too_late_is_made_once(stand: Stand) -> None:
    answer = charge_with(stand, {"kind": "stall_after", "seconds": STALL})
    assert ok(answer, 202)["status"] == "pending"
    stand.agree(stand.settled(answer.json()["id"]))


@scenario
def an_answer_with_an_amount_that_is_not_ours_is_not_believed(stand: Stand) -> None:
    amount = 54_321
    shown = (b"54321", b"54322") if stand.gateway != "paypal" else (b"543.21", b"543.22")
    fault = {"kind": "replace_after", "old": shown[0], "new": shown[1]}
    answer = charge_with(stand, fault, amount)
    assert answer.status_code in (201, 202), answer.text
    payment = stand.settled(answer.json()["id"]) if answer.status_code == 202 else answer.json()
    assert payment["status"] in ("captured", "pending")
    if payment["status"] == "captured":
        assert payment["amount_captured"] == amount
    assert len(stand.charges(payment["id"])) == 1


@scenario
def a_gateway_that_is_busy_for_a_moment_is_asked_again(stand: Stand) -> None:
    answer = charge_with(stand, {"kind": "status_before", "status": 429})
    assert ok(answer, 201)["status"] == "captured"
    stand.agree(answer.json())


@scenario
def a_gateway_that_stays_busy_has_charged_nothing(stand: Stand) -> None:
    client = stand.shopper()
    stand.save(client)
    order = stand.place(client)
    stand.arm("status_before", "charge", status=429, times=100)
    answer = stand.pay(client, order)
    if answer.status_code == 202:  # a look-up came first, which asks the same again
        stand.proxy.disarm()
        payment = stand.settled(answer.json()["id"])
        assert payment["status"] == "captured"
    else:
        stand.proxy.disarm()
        problem = ok(answer, 502)
        assert problem["code"] == "gateway_unavailable"
        payment = stand.payment(problem["payment_id"])
        assert payment["failure"]["code"] == "not_charged"
        assert ok(stand.pay(client, order), 201)["status"] == "captured"
    stand.agree(stand.payment(payment["id"]))


def lost_change(step: Step, fault: dict[str, Any]) -> Scenario:
    def run(stand: Stand) -> None:
        if step == "refund":
            _, payment = stand.paid(900)
            stand.relay.holds = stand.bench.reads_back
            stand.arm(step="refund", **fault)
            answer = stand.post(stand.manager, f"/payments/{payment['id']}/refunds", amount=300)
            assert answer.status_code in (201, 202), answer.text
            refund = stand.refund_settled(payment["id"], answer.json()["id"])
            assert refund["status"] == "succeeded" or not reaches(fault)
            payment = stand.payment(payment["id"])
            assert payment["amount_refunded"] == (300 if refund["status"] == "succeeded" else 0)
        else:
            _, payment = stand.authorized(900)
            stand.relay.holds = stand.bench.reads_back
            stand.arm(step=step, **fault)
            answer = stand.post(stand.manager, f"/payments/{payment['id']}/{step}")
            assert answer.status_code in (200, 202), answer.text
            payment = stand.settled(payment["id"])
            done = "captured" if step == "capture" else "voided"
            assert payment["status"] == done or not reaches(fault)
            assert payment["status"] in (done, "authorized")
        assert not payment["needs_review"]
        stand.agree(payment)

    run.__name__ = f"a_{step}_with_{_name(fault)}_happens_once"
    return run


CHANGES: Final[Sequence[Step]] = ("capture", "void", "refund")
LOST_CHANGES: Final[Sequence[dict[str, Any]]] = (
    {"kind": "drop_before"},
    {"kind": "drop_after"},
    {"kind": "status_before", "status": 500, "times": 3},
    {"kind": "status_after", "status": 500},
    {"kind": "truncated_after"},
    {"kind": "redirect_before"},
)
for _step, _fault in itertools.product(CHANGES, LOST_CHANGES):
    scenario(lost_change(_step, _fault))


@scenario
def the_same_request_with_its_key_is_answered_once_it_is_known(stand: Stand) -> None:
    client = stand.shopper()
    stand.save(client)
    order = stand.place(client)
    stand.arm("drop_after", "charge")
    key = f"order-{order['id']}"
    payment = stand.settled(ok(stand.pay(client, order, key=key), 202)["id"])
    again = stand.pay(client, order, key=key)
    assert ok(again, 201)["id"] == payment["id"]
    assert again.headers["Idempotent-Replayed"] == "true"
    stand.agree(payment)


# Webhooks ---------------------------------------------------------------------------------------


def told(stand: Stand, *about: dict[str, Any], at_least: int = 1) -> Sequence[Delivery]:
    """What the gateway has sent about a payment and its refunds, once it is so much."""
    stand.need_webhooks()
    references = [resource["gateway_reference"] for resource in about]

    def look() -> Sequence[Delivery] | None:
        found = stand.relay.about(*references)
        return found if len(found) >= at_least else None

    return stand.until(look, f"{at_least} webhooks about {references}")


@scenario
def a_webhook_twice_or_a_hundred_times_at_once_has_one_effect(stand: Stand) -> None:
    stand.need_webhooks()
    stand.relay.holds = True
    client = stand.shopper()
    stand.save(client)
    order = stand.place(client)
    held = stand.arm("hold_after", "charge")
    paying = threading.Thread(target=stand.pay, args=(client, order))
    paying.start()
    try:
        stand.until(lambda: bool(stand.charges(_latest(stand, order))), "it is charged")
        payment_id = _latest(stand, order)
        reference = stand.charges(payment_id)[0].reference
        deliveries = stand.until(lambda: stand.relay.about(reference), "it is told")
        answers = together(
            100, lambda number: stand.relay.post(deliveries[number % len(deliveries)])
        )
        assert {answer.status_code for answer in answers} == {200}
    finally:
        held.release.set()
        paying.join(30)
    payment = stand.becomes(payment_id, "captured")
    for delivery in deliveries:
        assert stand.relay.post(delivery).status_code == 200
    assert stand.events(order["id"]).count("payment.captured") == 1
    assert stand.events(order["id"]).count("order.status_changed") == 1
    stand.agree(stand.payment(payment["id"]))


def _latest(stand: Stand, order: dict[str, Any]) -> int:
    rows = ok(stand.manager.get(f"/orders/{order['id']}/payments"), 200)
    return int(rows[0]["id"]) if rows else 0


@scenario
def a_webhook_before_the_answer_settles_the_payment(stand: Stand) -> None:
    stand.need_webhooks()
    client = stand.shopper()
    stand.save(client)
    order = stand.place(client)
    held = stand.arm("hold_after", "charge")
    answers: list[Any] = []
    paying = threading.Thread(target=lambda: answers.append(stand.pay(client, order)))
    paying.start()
    try:
        assert held.reached.wait(20)
        stand.until(lambda: _latest(stand, order), "it is claimed")
        stand.becomes(_latest(stand, order), "captured")
    finally:
        held.release.set()
        paying.join(30)
    assert answers[0].status_code in (201, 202)
    assert stand.events(order["id"]).count("payment.captured") == 1
    stand.agree(stand.payment(_latest(stand, order)))


@scenario
def webhooks_in_every_order_end_in_the_same_state(stand: Stand) -> None:
    stand.need_webhooks()
    for turn in range(TURNS):
        stand.relay.holds = True
        _, payment = stand.authorized(700)
        ok_or_accepted = stand.post(stand.manager, f"/payments/{payment['id']}/capture")
        assert ok_or_accepted.status_code in (200, 202)
        if ok_or_accepted.status_code == 202:  # only a webhook will tell
            _deliver_all(stand, turn, told(stand, payment, at_least=2))
        payment = stand.becomes(payment["id"], "captured")
        path = f"/payments/{payment['id']}/refunds"
        stand.post(stand.manager, path, amount=200)
        refund = _known_refund(stand, path)
        _deliver_all(stand, turn, told(stand, payment, refund, at_least=3))
        stand.refund_settled(payment["id"], refund["id"])
        after = stand.settled(payment["id"])
        assert (after["status"], after["amount_captured"]) == ("partially_refunded", 700)
        assert after["amount_refunded"] == 200
        assert not after["needs_review"]
        stand.agree(after)


def _known_refund(stand: Stand, path: str) -> dict[str, Any]:
    """The only refund of a payment, once the gateway has a name for it."""

    def look() -> dict[str, Any] | None:
        (refund,) = ok(stand.manager.get(path), 200)
        return refund if refund["gateway_reference"] else None

    return stand.until(look, "the gateway has a name for the refund")


def _deliver_all(stand: Stand, turn: int, deliveries: Sequence[Delivery]) -> None:
    """In the order of this turn: as they were sent in the first, reversed in the last."""
    orders = list(itertools.permutations(deliveries))
    for delivery in orders[turn * (len(orders) - 1) // (TURNS - 1)]:
        assert stand.relay.post(delivery).status_code == 200


def forged(about: str, change: Callable[[Stand, Delivery], Delivery]) -> Scenario:
    def run(stand: Stand) -> None:
        _, payment = stand.paid()
        before = stand.events(payment["order_id"])
        delivery = change(stand, told(stand, payment)[-1])
        answer = stand.relay.post(delivery)
        if stand.bench.signs_all or answer.status_code != 200:
            assert answer.status_code == 400, answer.text
            assert answer.json()["code"] == "invalid_signature"
        assert stand.events(payment["order_id"]) == before
        stand.agree(stand.payment(payment["id"]))

    run.__name__ = f"a_webhook_{about}_is_refused"
    return run


def _with_one_byte_changed(_: Stand, delivery: Delivery) -> Delivery:
    place = len(delivery.body) // 2
    changed = bytes([delivery.body[place] ^ 1])
    return Delivery(delivery.headers, delivery.body[:place] + changed + delivery.body[place + 1 :])


def _forge(**how: Any) -> Callable[[Stand, Delivery], Delivery]:
    return lambda stand, delivery: Delivery(
        *stand.bench.forge(delivery.headers, delivery.body, **how)
    )


def _signed_but_not_utf8(stand: Stand, delivery: Delivery) -> Delivery:
    return Delivery(*stand.bench.forge(delivery.headers, b'{"id": "\xff\xfe"}'))


scenario(forged("with_one_byte_changed", _with_one_byte_changed))
scenario(forged("with_an_old_timestamp", _forge(age=8 * DAY)))
scenario(forged("from_the_future", _forge(age=-0.5 * DAY)))
scenario(forged("with_another_endpoints_secret", _forge(foreign=True)))
scenario(forged("without_its_headers", lambda _, sent: Delivery({}, sent.body)))
scenario(forged("that_is_not_utf8", _signed_but_not_utf8))


@scenario
def a_dispute_is_told_when_it_opens_and_when_it_closes(stand: Stand) -> None:
    stand.need_webhooks()
    _, payment = stand.paid()
    dispute = stand.bench.dispute(payment["gateway_reference"])
    stand.until(lambda: "dispute.opened" in stand.events(payment["order_id"]), "it is opened")
    stand.bench.close_dispute(dispute, won=True)
    stand.until(lambda: "dispute.closed" in stand.events(payment["order_id"]), "it is closed")
    assert stand.events(payment["order_id"]).count("dispute.opened") == 1


# Secrets ----------------------------------------------------------------------------------------


@scenario
def no_secret_is_in_the_logs_or_in_the_database(stand: Stand) -> None:
    stand.paid()
    waiting_kind = charge_with(stand, {"kind": "drop_after"})
    stand.settled(waiting_kind.json()["id"])
    secrets = stand.secrets_seen()
    if not secrets:
        raise NotApplicable("this gateway has no secrets")
    log, dump = stand.log_text, stand.dump()
    assert "http.request" in log
    for secret in secrets:
        assert secret not in log, f"a secret that begins with {secret[:6]} is in the logs"
        assert secret not in dump, f"a secret that begins with {secret[:6]} is in the database"


SCENARIOS += [*RESEND, *OUTSIDE]  # they ask the gateway beside the service
