"""Ending a review: what a person states is applied as if the gateway had said it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from config import Settings
from gateways import base
from gateways.registry import Gateways
from gateways.sandbox import SandboxGateway
from tests.support.database import sql
from tests.support.quiet import LOST, UNHEARD, command, pay, run_once, unknown
from tests.support.shop import Shop, problem, seen

NOTE = "dashboard of the gateway, 25 November"


@pytest.fixture(autouse=True)
def nothing_else_is_due(quiet: Shop) -> None:
    for table in ("payments", "refunds"):
        later = f"UPDATE {table} SET check_at = now() + interval '1 day' WHERE check_at IS NOT NULL"
        sql(quiet.engine, later)


def overdue(
    quiet: Shop,
    gateways: Gateways,
    gateway: SandboxGateway,
    monkeypatch: pytest.MonkeyPatch,
    payment: dict[str, Any],
) -> dict[str, Any]:
    """A day passes in which the gateway cannot tell."""
    for table, column in (("payments", "id"), ("refunds", "payment_id")):
        sql(
            quiet.engine,
            f"UPDATE {table} SET asked_at = now() - interval '25 hours', check_at = now(),"
            " checks = 300"
            f" WHERE {column} = :id AND check_at IS NOT NULL",
            id=payment["id"],
        )
    with monkeypatch.context() as patch:
        patch.setattr(gateway, "look_up", unknown)
        patch.setattr(gateway, "look_up_refund", unknown)
        run_once(quiet, gateways)
    flagged = quiet.payment(payment)
    assert (flagged["needs_review"], flagged["review_reason"]) == (True, "outcome_unknown")
    return flagged


def resolve(quiet: Shop, payment: dict[str, Any], resolution: str, **more: Any) -> Any:
    body = {"resolution": resolution, "note": NOTE, **more}
    return quiet.manager.post(f"/payments/{payment['id']}/review", json=body)


def contradict(
    quiet: Shop,
    gateways: Gateways,
    gateway: SandboxGateway,
    monkeypatch: pytest.MonkeyPatch,
    charge: base.Charge,
    payment: dict[str, Any],
) -> None:
    """The gateway's books show this charge when they are asked."""
    sql(quiet.engine, "UPDATE payments SET check_at = now() WHERE id = :id", id=payment["id"])
    with monkeypatch.context() as patch:
        patch.setattr(gateway, "look_up", lambda query: charge)
        run_once(quiet, gateways)


@pytest.mark.parametrize(
    ("fault", "resolution", "payment_status", "order_status"),
    [
        (UNHEARD, "captured", "captured", "paid"),
        (LOST, "not_charged", "failed", "pending"),
        (LOST, "voided", "canceled", "pending"),
    ],
)
def test_a_person_settles_a_charge_that_nobody_knew(
    quiet: Shop,
    gateways: Gateways,
    gateway: SandboxGateway,
    monkeypatch: pytest.MonkeyPatch,
    fault: dict[str, str],
    resolution: str,
    payment_status: str,
    order_status: str,
) -> None:
    payment = pay(quiet, fault)
    overdue(quiet, gateways, gateway, monkeypatch, payment)
    if resolution == "captured":
        answer = resolve(quiet, payment, resolution)
        assert problem(answer) == (400, "invalid_request")  # which charge is it?
        (entry,) = quiet.books(payment["order_id"])
        answer = resolve(quiet, payment, resolution, gateway_reference=entry["reference"])
    else:
        answer = resolve(quiet, payment, resolution)
    assert answer.status_code == 200, answer.text
    after = answer.json()
    assert (after["needs_review"], after["review_reason"]) == (False, None)
    assert quiet.status(payment) == (payment_status, order_status)
    event = quiet.events(payment["order_id"])[-1]
    assert event["type"] == "payment.reviewed"
    assert event["actor"] == {"type": "user", "id": event["actor"]["id"]}
    assert event["actor"]["id"].startswith("clerk-")
    assert event["data"]["review"] == {
        "reason": "outcome_unknown",
        "resolution": resolution,
        "note": NOTE,
    }
    assert event["data"]["status"] == payment_status
    if order_status == "pending":
        assert quiet.pay(payment["order_id"])["status"] == "captured"
    else:
        assert quiet.do(payment, "refunds").status_code == 201  # its reference is known now
    if resolution == "voided":  # nothing was ever charged, which only a person may overlook
        sql(
            quiet.engine,
            "UPDATE payments SET review_state = 'accepted' WHERE id = :id",
            id=payment["id"],
        )


@pytest.mark.parametrize("operation", ["capture", "void"])
@pytest.mark.parametrize("done", [True, False])
def test_a_person_says_whether_a_capture_or_void_was_done(
    quiet: Shop,
    gateways: Gateways,
    gateway: SandboxGateway,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    done: bool,
) -> None:
    payment = quiet.authorized()
    assert quiet.do(payment, operation, UNHEARD if done else LOST).status_code == 202
    overdue(quiet, gateways, gateway, monkeypatch, payment)
    resolution = {"capture": "captured", "void": "voided"}[operation] if done else "authorized"
    answer = resolve(quiet, payment, resolution)
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == resolution
    if not done:  # and may be tried again
        assert quiet.do(payment, operation).status_code == 200


def test_a_person_may_state_what_was_captured_in_part_and_no_more_than_all(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = pay(quiet, UNHEARD)
    overdue(quiet, gateways, gateway, monkeypatch, payment)
    (entry,) = quiet.books(payment["order_id"])
    stated = {"gateway_reference": entry["reference"]}
    answer = resolve(quiet, payment, "captured", amount=1100, **stated)
    assert problem(answer) == (409, "amount_exceeds_remaining")
    answer = resolve(quiet, payment, "captured", amount=600, **stated)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["status"], answer.json()["amount_captured"]) == ("captured", 600)
    part = "UPDATE sandbox.charges SET amount_captured = 600 WHERE payment_id = :id"
    sql(quiet.engine, part, id=payment["id"])


@pytest.mark.parametrize("made", [True, False])
def test_a_person_says_whether_a_refund_was_made(
    quiet: Shop,
    gateways: Gateways,
    gateway: SandboxGateway,
    monkeypatch: pytest.MonkeyPatch,
    made: bool,
) -> None:
    payment = quiet.paid(1000)
    answer = quiet.do(payment, "refunds", UNHEARD if made else LOST, amount=400)
    refund_id = answer.json()["id"]
    overdue(quiet, gateways, gateway, monkeypatch, payment)
    assert problem(resolve(quiet, payment, "refunded")) == (400, "invalid_request")
    assert problem(resolve(quiet, payment, "accepted", refund_id=refund_id)) == (
        400,
        "invalid_request",
    )
    assert problem(resolve(quiet, payment, "not_refunded", refund_id=2**40)) == (404, "not_found")
    if made:
        (entry,) = quiet.books(payment["order_id"])
        reference = entry["refunds"][0]["reference"]
        assert problem(resolve(quiet, payment, "refunded", refund_id=refund_id)) == (
            400,
            "invalid_request",
        )
        answer = resolve(
            quiet, payment, "refunded", refund_id=refund_id, gateway_reference=reference
        )
    else:
        answer = resolve(quiet, payment, "not_refunded", refund_id=refund_id)
    assert answer.status_code == 200, answer.text
    assert answer.json()["amount_refunded"] == (400 if made else 0)
    assert quiet.refunds(payment)[0]["status"] == ("succeeded" if made else "failed")
    assert quiet.payment(payment)["needs_review"] is False


def test_what_cannot_follow_from_the_state_is_refused_and_nothing_changes(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = quiet.paid()
    assert problem(resolve(quiet, payment, "accepted")) == (409, "invalid_status_transition")
    gone = replace(seen(payment, "voided"))
    contradict(quiet, gateways, gateway, monkeypatch, gone, payment)
    assert quiet.payment(payment)["review_reason"] == "state_contradicts"
    for resolution in ("authorized", "not_charged", "voided"):
        answer = resolve(quiet, payment, resolution)
        assert problem(answer) == (409, "invalid_status_transition"), resolution
    before = quiet.payment(payment)
    assert before["needs_review"] is True
    answer = resolve(quiet, payment, "captured")  # as our books have it
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "captured"


def test_what_was_accepted_is_not_asked_about_again_and_news_are(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = quiet.paid()
    gone = seen(payment, "voided")
    contradict(quiet, gateways, gateway, monkeypatch, gone, payment)
    assert resolve(quiet, payment, "accepted").status_code == 200
    contradict(quiet, gateways, gateway, monkeypatch, gone, payment)
    assert quiet.payment(payment)["needs_review"] is False
    other = replace(seen(payment, "captured", 1099), amount=5000)
    contradict(quiet, gateways, gateway, monkeypatch, other, payment)
    assert quiet.payment(payment)["review_reason"] == "amount_differs"
    assert resolve(quiet, payment, "accepted").status_code == 200


def test_an_open_outcome_that_was_accepted_is_asked_about_again_a_day_later(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = pay(quiet, UNHEARD)
    overdue(quiet, gateways, gateway, monkeypatch, payment)
    assert resolve(quiet, payment, "accepted").json()["status"] == "pending"
    with monkeypatch.context() as patch:
        patch.setattr(gateway, "look_up", unknown)
        sql(quiet.engine, "UPDATE payments SET check_at = now() WHERE id = :id", id=payment["id"])
        run_once(quiet, gateways)
        assert quiet.payment(payment)["needs_review"] is False
    sql(
        quiet.engine,
        "UPDATE payments SET reviewed_at = reviewed_at - interval '25 hours' WHERE id = :id",
        id=payment["id"],
    )
    overdue(quiet, gateways, gateway, monkeypatch, payment)


@pytest.mark.parametrize("what", ["charge", "refund"])
def test_an_outcome_that_is_learned_after_all_needs_no_person(
    quiet: Shop,
    gateways: Gateways,
    gateway: SandboxGateway,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    if what == "charge":
        payment = pay(quiet, UNHEARD)
    else:
        payment = quiet.paid()
        assert quiet.do(payment, "refunds", UNHEARD).status_code == 202
    overdue(quiet, gateways, gateway, monkeypatch, payment)
    table, column = ("payments", "id") if what == "charge" else ("refunds", "payment_id")
    due = f"UPDATE {table} SET check_at = now() WHERE {column} = :id"
    sql(quiet.engine, due, id=payment["id"])
    run_once(quiet, gateways)
    after = quiet.payment(payment)
    assert after["status"] == ("captured" if what == "charge" else "refunded")
    assert (after["needs_review"], after["review_reason"]) == (False, None)


def test_only_who_manages_payments_may_end_a_review(quiet: Shop) -> None:
    payment = quiet.paid()
    body = {"resolution": "accepted", "note": NOTE}
    own = quiet.shopper.post(f"/payments/{payment['id']}/review", json=body)
    assert problem(own) == (403, "forbidden")
    none = quiet.manager.post(f"/payments/{2**50}/review", json=body)
    assert problem(none) == (404, "not_found")


@pytest.mark.parametrize(
    "body",
    [
        {"resolution": "accepted"},
        {"resolution": "accepted", "note": ""},
        {"resolution": "accepted", "note": "x" * 501},
        {"resolution": "paid", "note": NOTE},
        {"note": NOTE},
        {"resolution": "captured", "amount": 0, "note": NOTE},
        {"resolution": "captured", "gateway_reference": "", "note": NOTE},
        {"resolution": "captured", "gateway_reference": "a\0b", "note": NOTE},
    ],
)
def test_a_malformed_review_is_refused(quiet: Shop, body: dict[str, Any]) -> None:
    payment = quiet.paid()
    answer = quiet.manager.post(f"/payments/{payment['id']}/review", json=body)
    assert problem(answer) == (400, "invalid_request")


def test_a_reference_of_another_payment_is_refused(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, payment = quiet.paid(), pay(quiet, UNHEARD)
    overdue(quiet, gateways, gateway, monkeypatch, payment)
    answer = resolve(quiet, payment, "captured", gateway_reference=other["gateway_reference"])
    assert problem(answer) == (400, "invalid_request")
    assert quiet.status(payment) == ("pending", "pending")


def test_the_same_key_ends_a_review_once(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = pay(quiet, LOST)
    overdue(quiet, gateways, gateway, monkeypatch, payment)
    path, body = f"/payments/{payment['id']}/review", {"resolution": "not_charged", "note": NOTE}
    headers = {"Idempotency-Key": f"review-{payment['id']}"}
    first = quiet.manager.post(path, json=body, headers=headers)
    again = quiet.manager.post(path, json=body, headers=headers)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.content == first.content
    told = [event["type"] for event in quiet.events(payment["order_id"])]
    assert told.count("payment.reviewed") == 1


def test_the_command_ends_a_review_as_the_endpoint_does(
    quiet: Shop,
    quiet_settings: Settings,
    gateways: Gateways,
    gateway: SandboxGateway,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    payment = pay(quiet, LOST)
    overdue(quiet, gateways, gateway, monkeypatch, payment)
    arguments = ["--resolution", "not_charged", "--note", NOTE]
    code, shown = command(quiet_settings, "review", str(payment["id"]), *arguments)
    assert (code, shown["status"], shown["needs_review"]) == (0, "failed", False)
    event = quiet.events(payment["order_id"])[-1]
    assert event["actor"] == {"type": "service", "id": "cli"}
    assert command(quiet_settings, "review", str(payment["id"]), *arguments)[0] == 1


# Disputes ---------------------------------------------------------------------------------------


def test_a_refund_of_disputed_money_is_refused_unless_it_is_meant(quiet: Shop) -> None:
    payment = quiet.paid()
    (dispute,) = sql(
        quiet.engine,
        "INSERT INTO disputes (payment_id, gateway, gateway_reference, status, amount, currency,"
        " reason) VALUES (:id, 'sandbox', :reference, 'open', 1099, 'USD', 'fraudulent')"
        " RETURNING id",
        id=payment["id"],
        reference=f"dp_{payment['id']}",
    )
    for status in ("open", "lost"):
        sql(quiet.engine, "UPDATE disputes SET status = :s WHERE id = :id", s=status, id=dispute.id)
        answer = quiet.do(payment, "refunds", amount=100)
        assert problem(answer) == (409, "payment_disputed")
        assert answer.json()["dispute_id"] == dispute.id
    assert quiet.do(payment, "refunds", amount=100, allow_disputed=True).status_code == 201
    sql(quiet.engine, "UPDATE disputes SET status = 'won' WHERE id = :id", id=dispute.id)
    assert quiet.do(payment, "refunds", amount=100).status_code == 201


# What another look finds --------------------------------------------------------------------------


def test_a_second_finding_is_told_although_the_first_is_open(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = quiet.paid()
    other = replace(seen(payment, "captured", 1099), amount=5000)
    contradict(quiet, gateways, gateway, monkeypatch, other, payment)
    assert quiet.payment(payment)["review_reason"] == "amount_differs"
    second = replace(seen(payment, "captured", 1099), reference="ch_second")
    contradict(quiet, gateways, gateway, monkeypatch, second, payment)
    assert quiet.payment(payment)["review_reason"] == "second_charge"
    contradict(quiet, gateways, gateway, monkeypatch, other, payment)
    assert quiet.payment(payment)["review_reason"] == "second_charge"  # the gravest stays
    told = [event["type"] for event in quiet.events(payment["order_id"])]
    assert told.count("payment.needs_review") == 3
    assert resolve(quiet, payment, "accepted").status_code == 200


def test_a_capture_of_a_part_is_stated_without_its_amount(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = quiet.authorized()
    assert quiet.do(payment, "capture", UNHEARD, amount=600).status_code == 202
    overdue(quiet, gateways, gateway, monkeypatch, payment)
    assert resolve(quiet, payment, "captured").json()["amount_captured"] == 600


def test_a_refund_cannot_be_stated_under_the_name_of_another(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = quiet.paid(1000)
    first = quiet.do(payment, "refunds", amount=100).json()
    refund_id = quiet.do(payment, "refunds", LOST, amount=100).json()["id"]
    overdue(quiet, gateways, gateway, monkeypatch, payment)
    stated = {"refund_id": refund_id, "gateway_reference": first["gateway_reference"]}
    assert problem(resolve(quiet, payment, "refunded", **stated)) == (400, "invalid_request")
    assert resolve(quiet, payment, "not_refunded", refund_id=refund_id).status_code == 200
