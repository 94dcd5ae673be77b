"""What is done in the gateway's own dashboard is in our books: once, with webhooks or without."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import database
import leases
from gateways.base import Charge, ChargePage, ListedCharge, NotExecuted
from gateways.registry import Gateways
from gateways.sandbox import SandboxGateway
from services import reconciliation, webhooks
from tests.support.database import sql
from tests.support.quiet import UNHEARD, rules, run_once
from tests.support.shop import ACTION, Shop, problem

Find = Callable[[], None]  # how the service hears of it


def compare(quiet: Shop, gateways: Gateways) -> None:
    """The role compares the recent window, and the look-ups that it asks for are made."""
    sql(quiet.engine, "UPDATE comparisons SET next_at = now()")
    with database.new_session(quiet.engine) as session:
        reconciliation.run_once(session, rules(gateways), "sandbox")
    run_once(quiet, gateways)


def deliver(quiet: Shop, gateways: Gateways, times: int = 1) -> None:
    """The webhooks come, so many times each, and the look-ups that they ask for are made."""
    sandbox = gateways.get("sandbox")
    assert isinstance(sandbox, SandboxGateway)
    sql(quiet.engine, "UPDATE sandbox.webhooks SET due_at = now() WHERE delivered_at IS NULL")
    while waiting := sandbox.due_webhooks():
        for webhook_id, headers, body in waiting:
            for _ in range(times):
                with database.new_session(quiet.engine) as session:
                    webhooks.receive(session, gateways, "sandbox", headers, body)
            sandbox.delivered(webhook_id)
    run_once(quiet, gateways)


@pytest.fixture(params=["compared", "told", "told twice", "told and compared"])
def find(request: pytest.FixtureRequest, quiet: Shop, gateways: Gateways) -> Find:
    deliver(quiet, gateways)  # what others have left

    def find_out() -> None:
        if request.param.startswith("told"):
            deliver(quiet, gateways, 2 if request.param == "told twice" else 1)
        if request.param.endswith("compared"):
            compare(quiet, gateways)

    return find_out


def actor_of(quiet: Shop, payment: dict[str, Any], event_type: str) -> Any:
    """Who made the one event of this type."""
    events = quiet.events(payment["order_id"])
    (event,) = [event for event in events if event["type"] == event_type]
    return event["actor"]


def test_a_refund_of_all(quiet: Shop, gateway: SandboxGateway, find: Find) -> None:
    payment = quiet.paid(1000)
    gateway.dashboard.refund(payment["gateway_reference"])
    find()
    assert quiet.status(payment) == ("refunded", "refunded")
    (refund,) = quiet.refunds(payment)
    assert (refund["origin"], refund["amount"], refund["status"]) == ("gateway", 1000, "succeeded")
    assert refund["reason"] is None
    assert quiet.payment(payment)["needs_review"] is False
    assert actor_of(quiet, payment, "refund.succeeded")["type"] in ("gateway", "service")
    find()
    assert len(quiet.refunds(payment)) == 1


def test_refunds_of_a_part_beside_one_of_ours(
    quiet: Shop, gateway: SandboxGateway, find: Find
) -> None:
    payment = quiet.paid(1000)
    assert quiet.do(payment, "refunds", amount=100).status_code == 201
    for amount in (200, 300):
        gateway.dashboard.refund(payment["gateway_reference"], amount)
    find()
    after = quiet.payment(payment)
    assert (after["status"], after["amount_refunded"]) == ("partially_refunded", 600)
    assert sorted((one["origin"], one["amount"]) for one in quiet.refunds(payment)) == [
        ("gateway", 200),
        ("gateway", 300),
        ("service", 100),
    ]
    assert problem(quiet.do(payment, "refunds", amount=401)) == (409, "amount_exceeds_remaining")
    assert quiet.do(payment, "refunds").json()["amount"] == 400
    assert quiet.status(payment) == ("refunded", "refunded")


def test_a_refund_outside_while_ours_is_open_waits_for_it(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, find: Find
) -> None:
    """There is room for one of them only; the gateway has taken the other, ours never came."""
    payment = quiet.paid(1000)
    lost = {"Sandbox-Fault": "timeout_before_charge"}
    assert quiet.do(payment, "refunds", lost, amount=600).status_code == 202
    gateway.dashboard.refund(payment["gateway_reference"], 600)
    find()
    for table in ("refunds", "payments"):
        sql(quiet.engine, f"UPDATE {table} SET check_at = now() WHERE check_at IS NOT NULL")
        run_once(quiet, gateways)
    after = quiet.payment(payment)
    assert (after["amount_refunded"], after["needs_review"]) == (600, False)
    assert sorted((one["origin"], one["status"]) for one in quiet.refunds(payment)) == [
        ("gateway", "succeeded"),
        ("service", "failed"),
    ]


def test_a_capture_and_a_capture_of_a_part(
    quiet: Shop, gateway: SandboxGateway, find: Find
) -> None:
    whole, part = quiet.authorized(), quiet.authorized()
    gateway.dashboard.capture(whole["gateway_reference"])
    gateway.dashboard.capture(part["gateway_reference"], 500)
    find()
    assert quiet.status(whole) == quiet.status(part) == ("captured", "paid")
    assert quiet.payment(part)["amount_captured"] == 500
    assert actor_of(quiet, part, "payment.captured")["type"] in ("gateway", "service")


def test_a_cancellation_of_what_was_held_and_of_what_waited(
    quiet: Shop, gateway: SandboxGateway, find: Find
) -> None:
    held, waiting = quiet.authorized(), quiet.pay(quiet.place(), ACTION)
    for payment in (held, waiting):
        gateway.dashboard.cancel(payment["gateway_reference"])
    find()
    assert quiet.status(held) == ("voided", "canceled")
    assert quiet.status(waiting) == ("canceled", "pending")
    assert quiet.pay(waiting["order_id"])["status"] == "captured"


@pytest.mark.parametrize("won", [True, False])
def test_a_dispute_that_is_opened_and_closed(
    quiet: Shop, gateway: SandboxGateway, find: Find, won: bool
) -> None:
    payment = quiet.paid()
    gateway.dashboard.open_dispute(payment["gateway_reference"])
    find()
    (dispute,) = quiet.manager.get(f"/disputes?payment_id={payment['id']}").json()
    assert (dispute["status"], dispute["order_id"]) == ("open", payment["order_id"])
    assert problem(quiet.do(payment, "refunds")) == (409, "payment_disputed")
    gateway.dashboard.close_dispute(payment["gateway_reference"], won=won)
    find()
    closed = quiet.manager.get(f"/disputes/{dispute['id']}").json()
    assert closed["status"] == ("won" if won else "lost")
    told = [event["type"] for event in quiet.events(payment["order_id"])]
    assert (told.count("dispute.opened"), told.count("dispute.closed")) == (1, 1)


def test_a_refund_in_another_currency_is_a_persons(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    payment = quiet.paid(1000)
    gateway.dashboard.refund(payment["gateway_reference"], 400)
    answer = gateway.look_up

    def in_euros(query: Any) -> Any:
        charge = answer(query)
        assert charge is not None
        assert charge.refunds is not None
        return replace(
            charge, refunds=tuple(replace(one, currency="EUR") for one in charge.refunds)
        )

    sql(quiet.engine, "UPDATE payments SET check_at = now() WHERE id = :id", id=payment["id"])
    with monkeypatch.context() as patch:
        patch.setattr(gateway, "look_up", in_euros)
        run_once(quiet, gateways)
    assert quiet.payment(payment)["review_reason"] == "amount_differs"
    sql(quiet.engine, "UPDATE payments SET needs_review = false WHERE id = :id", id=payment["id"])
    sql(quiet.engine, "UPDATE payments SET review_reason = NULL, review_state = NULL")


def test_the_comparison_is_made_once_in_its_time(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway
) -> None:
    compare(quiet, gateways)
    (row,) = sql(quiet.engine, "SELECT * FROM comparisons")
    with database.new_session(quiet.engine) as session:
        assert reconciliation.run_once(session, rules(gateways), "sandbox") == 0  # not due yet
    (same,) = sql(quiet.engine, "SELECT * FROM comparisons")
    assert same == row


def test_a_comparison_that_fails_is_made_again_from_where_it_began(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = quiet.paid(1000)
    compare(quiet, gateways)
    gateway.dashboard.refund(payment["gateway_reference"])

    def away(*_: Any) -> Any:
        raise NotExecuted("not reached")

    with monkeypatch.context() as patch:
        patch.setattr(gateway, "list_charges", away)
        with pytest.raises(NotExecuted):
            compare(quiet, gateways)
    compare(quiet, gateways)
    assert quiet.payment(payment)["status"] == "refunded"


ACTS: dict[str, Callable[[SandboxGateway, str, random.Random], Any]] = {
    "refund": lambda gateway, ref, _: gateway.dashboard.refund(ref),
    "refund in part": lambda gateway, ref, rng: gateway.dashboard.refund(ref, rng.randint(1, 500)),
    "capture": lambda gateway, ref, _: gateway.dashboard.capture(ref),
    "capture in part": lambda gateway, ref, rng: gateway.dashboard.capture(
        ref, rng.randint(1, 900)
    ),
    "cancel": lambda gateway, ref, _: gateway.dashboard.cancel(ref),
    "dispute": lambda gateway, ref, _: gateway.dashboard.open_dispute(ref),
    "win": lambda gateway, ref, _: gateway.dashboard.close_dispute(ref, won=True),
    "lose": lambda gateway, ref, _: gateway.dashboard.close_dispute(ref, won=False),
}


def test_five_hundred_acts_at_random(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, find: Find
) -> None:
    rng = random.Random(20261125)
    makers = [
        lambda: quiet.paid(1000),
        lambda: quiet.authorized(1000),
        lambda: quiet.pay(quiet.place(1000), ACTION),
    ]
    payments = [rng.choice(makers)() for _ in range(60)]
    open_refund = quiet.paid(1000)
    assert quiet.do(open_refund, "refunds", UNHEARD, amount=100).status_code == 202
    payments.append(open_refund)
    done = 0
    for _ in range(500):
        reference = rng.choice(payments)["gateway_reference"]
        try:
            ACTS[rng.choice(list(ACTS))](gateway, reference, rng)
            done += 1
        except NotExecuted:
            pass  # it cannot be done there, either
    assert done > 60
    find()
    report = reconciliation.reconcile(quiet.engine, rules(gateways))
    assert (report["mismatches"], report["still_open"], report["needs_review"]) == ([], 0, 0)


# What a list shows and a look-up does not ---------------------------------------------------------


def test_a_second_charge_that_only_the_list_shows_is_a_persons(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = quiet.paid(1000)
    (row,) = sql(quiet.engine, "SELECT gateway_key FROM payments WHERE id = :id", id=payment["id"])
    second = ListedCharge(
        Charge("ch_second", "captured", 1000, "USD", 1000), row.gateway_key, payment["id"]
    )
    with monkeypatch.context() as patch:
        patch.setattr(gateway, "list_charges", lambda *_: ChargePage((second,), None))
        compare(quiet, gateways)
        after = quiet.payment(payment)
        assert (after["needs_review"], after["review_reason"]) == (True, "second_charge")
        report = reconciliation.reconcile(quiet.engine, rules(gateways))
        assert payment["id"] in {one["payment_id"] for one in report["mismatches"]}
    body = {"resolution": "accepted", "note": "refunded there"}
    assert quiet.manager.post(f"/payments/{payment['id']}/review", json=body).status_code == 200


def test_a_payment_that_was_accepted_once_is_compared_all_the_same(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = quiet.paid(1000)
    sql(quiet.engine, "UPDATE payments SET check_at = now() WHERE id = :id", id=payment["id"])
    with monkeypatch.context() as patch:
        gone = Charge(payment["gateway_reference"], "voided", 1000, "USD")
        patch.setattr(gateway, "look_up", lambda query: gone)
        run_once(quiet, gateways)
    body = {"resolution": "accepted", "note": "a mistake of theirs"}
    assert quiet.manager.post(f"/payments/{payment['id']}/review", json=body).status_code == 200
    gateway.dashboard.refund(payment["gateway_reference"])
    reconciliation.reconcile(quiet.engine, rules(gateways))
    assert quiet.payment(payment)["status"] == "refunded"


def test_a_comparison_that_takes_long_is_held_by_one_worker(quiet: Shop) -> None:
    for _ in range(2):  # the first makes the row
        sql(quiet.engine, "UPDATE comparisons SET next_at = now() - interval '1 s'")
        with database.new_session(quiet.engine) as session, database.phase(session):
            window = leases.claim_comparison(
                session, "sandbox", first_window=timedelta(days=1), lease=600
            )
    assert window is not None
    with database.new_session(quiet.engine) as session, database.phase(session):
        renewed = leases.renew_comparison(session, "sandbox", window.leased_until, lease=700)
        assert renewed is not None
        assert leases.renew_comparison(session, "sandbox", window.leased_until, lease=700) is None
        leases.finish_comparison(
            session, "sandbox", window.leased_until, until=window.until, next_in=1
        )  # by who has lost it: nothing happens
    (row,) = sql(quiet.engine, "SELECT next_at FROM comparisons WHERE gateway = 'sandbox'")
    assert row.next_at == renewed
