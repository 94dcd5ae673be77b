"""Networks that lose, delay and garble requests and answers, and gateways that are busy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final

from conformance.harness import GATEWAY_TIMEOUT, Harness, ok
from conformance.registry import Scenario, scenario
from conformance.target import Step

STALL: Final = GATEWAY_TIMEOUT + 0.7  # seconds: longer than anybody waits


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


def charge_with(harness: Harness, fault: dict[str, Any], amount: int = 1099) -> Any:
    """Pay while something goes wrong. Returns the answer to the shopper."""
    client = harness.shopper()
    harness.save(client)
    order = harness.place(client, amount)
    harness.relay.holds = True  # webhooks are lost as well: look-ups alone have to find out
    harness.arm(step="charge", **fault)
    return harness.pay(client, order)


def reaches(fault: dict[str, Any]) -> bool:
    """Whether the gateway has heard the request, so that it has happened."""
    return str(fault["kind"]).endswith("_after")


def lost_charge(fault: dict[str, Any]) -> Scenario:
    def run(harness: Harness) -> None:
        answer = charge_with(harness, fault)
        assert ok(answer, 202)["status"] == "pending"
        payment = harness.settled(answer.json()["id"])
        if payment["status"] == "failed" and not reaches(fault):
            # It never arrived, and never will: then the order may be paid again.
            assert payment["failure"]["code"] == "not_charged"
        else:
            assert payment["status"] == "captured"
            assert harness.order(payment["order_id"])["status"] == "paid"
        assert not payment["needs_review"]
        harness.agree(payment)

    run.__name__ = f"a_charge_with_{_name(fault)}_is_pending_and_then_charged_once"
    return run


def _name(fault: dict[str, Any]) -> str:
    return "_".join(str(value) for value in fault.values())


for _fault in LOST:
    scenario(lost_charge(_fault))


@scenario
def a_charge_that_arrives_after_we_gave_up_waiting_is_made_once(harness: Harness) -> None:
    answer = charge_with(harness, {"kind": "stall_before", "seconds": STALL})
    assert ok(answer, 202)["status"] == "pending"
    payment = harness.settled(answer.json()["id"])
    harness.until(lambda: len(harness.charges(payment["id"])) >= 1, "the late request has arrived")
    harness.agree(payment)


@scenario
def a_charge_whose_answer_comes_too_late_is_made_once(harness: Harness) -> None:
    answer = charge_with(harness, {"kind": "stall_after", "seconds": STALL})
    assert ok(answer, 202)["status"] == "pending"
    harness.agree(harness.settled(answer.json()["id"]))


@scenario
def an_answer_with_an_amount_that_is_not_ours_is_not_believed(harness: Harness) -> None:
    amount = 54_321
    shown = (b"54321", b"54322") if harness.gateway != "paypal" else (b"543.21", b"543.22")
    fault = {"kind": "replace_after", "old": shown[0], "new": shown[1]}
    answer = charge_with(harness, fault, amount)
    assert answer.status_code in (201, 202), answer.text
    payment = harness.settled(answer.json()["id"]) if answer.status_code == 202 else answer.json()
    assert payment["status"] in ("captured", "pending")
    if payment["status"] == "captured":
        assert payment["amount_captured"] == amount
    assert len(harness.charges(payment["id"])) == 1


@scenario
def a_gateway_that_is_busy_for_a_moment_is_asked_again(harness: Harness) -> None:
    answer = charge_with(harness, {"kind": "status_before", "status": 429})
    assert ok(answer, 201)["status"] == "captured"
    harness.agree(answer.json())


@scenario
def a_gateway_that_stays_busy_has_charged_nothing(harness: Harness) -> None:
    client = harness.shopper()
    harness.save(client)
    order = harness.place(client)
    harness.arm("status_before", "charge", status=429, times=100)
    answer = harness.pay(client, order)
    if answer.status_code == 202:  # a look-up came first, which asks the same again
        harness.proxy.disarm()
        payment = harness.settled(answer.json()["id"])
        assert payment["status"] == "captured"
    else:
        harness.proxy.disarm()
        problem = ok(answer, 502)
        assert problem["code"] == "gateway_unavailable"
        payment = harness.payment(problem["payment_id"])
        assert payment["failure"]["code"] == "not_charged"
        assert ok(harness.pay(client, order), 201)["status"] == "captured"
    harness.agree(harness.payment(payment["id"]))


def lost_change(step: Step, fault: dict[str, Any]) -> Scenario:
    def run(harness: Harness) -> None:
        if step == "refund":
            _, payment = harness.paid(900)
            harness.relay.holds = harness.target.can_retrieve
            harness.arm(step="refund", **fault)
            answer = harness.post(harness.manager, f"/payments/{payment['id']}/refunds", amount=300)
            assert answer.status_code in (201, 202), answer.text
            refund = harness.refund_settled(payment["id"], answer.json()["id"])
            assert refund["status"] == "succeeded" or not reaches(fault)
            payment = harness.payment(payment["id"])
            assert payment["amount_refunded"] == (300 if refund["status"] == "succeeded" else 0)
        else:
            _, payment = harness.authorized(900)
            harness.relay.holds = harness.target.can_retrieve
            harness.arm(step=step, **fault)
            answer = harness.post(harness.manager, f"/payments/{payment['id']}/{step}")
            assert answer.status_code in (200, 202), answer.text
            payment = harness.settled(payment["id"])
            done = "captured" if step == "capture" else "voided"
            assert payment["status"] == done or not reaches(fault)
            assert payment["status"] in (done, "authorized")
        assert not payment["needs_review"]
        harness.agree(payment)

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
def the_same_request_with_its_key_is_answered_once_it_is_known(harness: Harness) -> None:
    client = harness.shopper()
    harness.save(client)
    order = harness.place(client)
    harness.arm("drop_after", "charge")
    key = f"order-{order['id']}"
    # 201 if its webhook was here before we gave the answer up.
    payment = harness.settled(ok(harness.pay(client, order, key=key), 202, 201)["id"])
    again = harness.pay(client, order, key=key)
    assert ok(again, 201)["id"] == payment["id"]
    assert again.headers["Idempotent-Replayed"] == "true"
    harness.agree(payment)
