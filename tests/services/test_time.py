"""What time does: what waits for days, is asked about again and again, or arrives late."""

from __future__ import annotations

import random
import threading
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import crud
import database
from gateways import base
from gateways.registry import Gateways
from gateways.sandbox import SandboxGateway
from models import Payment, Refund
from services import lookups, payments, reconciliation
from tests.support.database import sql
from tests.support.quiet import LOST, UNHEARD, make_due, pay, rules, run_once, unknown
from tests.support.shop import ACTION, Shop, problem, seen, together


def age(shop: Shop, payment: dict[str, Any], hours: float) -> None:
    """Let hours pass for one payment, with a look-up every five minutes, and make it due."""
    past = ", ".join(
        f"{column} = {column} - make_interval(secs => :hours * 3600)"
        for column in ("created_at", "asked_at")
    )
    set_ = f"{past}, check_at = now(), checks = checks + :lookups"
    statement = f"UPDATE payments SET {set_} WHERE id = :id"
    sql(shop.engine, statement, hours=hours, lookups=int(hours * 12), id=payment["id"])


@pytest.fixture(autouse=True)
def nothing_else_is_due(quiet: Shop) -> None:
    for table in ("payments", "refunds"):
        later = f"UPDATE {table} SET check_at = now() + interval '1 day' WHERE check_at IS NOT NULL"
        sql(quiet.engine, later)


def due(shop: Shop, *payments: dict[str, Any]) -> None:
    for payment in payments:
        age(shop, payment, 0)


def count_lookups(shop: Shop, payment: dict[str, Any]) -> int:
    (row,) = sql(shop.engine, "SELECT checks FROM payments WHERE id = :id", id=payment["id"])
    count: int = row.checks
    return count


def asked_about(
    gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> list[base.ChargeLookup]:
    """The questions that the sandbox is asked from now on; it answers them as ever."""
    asked: list[base.ChargeLookup] = []
    answer = gateway.look_up

    def look_up(query: base.ChargeLookup) -> base.Charge | None:
        asked.append(query)
        return answer(query)

    monkeypatch.setattr(gateway, "look_up", look_up)
    return asked


# What nobody can tell ---------------------------------------------------------------------------


def test_five_thousand_look_ups_of_one_payment_keep_no_other_waiting(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    hopeless, fine = pay(quiet, UNHEARD), pay(quiet, UNHEARD)
    refunded = quiet.paid()
    assert quiet.do(refunded, "refunds", UNHEARD).status_code == 202
    sql(quiet.engine, "UPDATE payments SET checks = 5000 WHERE id = :id", id=hopeless["id"])
    answer = gateway.look_up

    def some(query: base.ChargeLookup) -> base.Charge | None:
        return unknown(query) if query.request.payment_id == hopeless["id"] else answer(query)

    with monkeypatch.context() as patch:
        patch.setattr(gateway, "look_up", some)
        make_due(quiet)
        run_once(quiet, gateways)
        assert quiet.status(fine) == ("captured", "paid")
        assert quiet.payment(refunded)["status"] == "refunded"
        assert count_lookups(quiet, hopeless) == 5001
        report = reconciliation.reconcile(quiet.engine, rules(gateways))
        assert report["still_open"] == 1


def test_a_gateway_that_is_away_for_a_minute_sends_nothing_old_to_review(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is open may be handed over by its age; these were held, or wait, for long."""
    old = [quiet.pay(quiet.place(), ACTION), quiet.authorized(), quiet.paid()]
    for payment in old:
        age(quiet, payment, 23.5)  # the shopper of the first may come for half an hour yet
    sql(quiet.engine, "UPDATE payments SET asked_at = now() - interval '9 days'")
    with monkeypatch.context() as patch:
        patch.setattr(gateway, "look_up", unknown)
        patch.setattr(gateway, "void", unknown)
        for _ in range(3):
            make_due(quiet)
            run_once(quiet, gateways)
    assert [quiet.payment(payment)["needs_review"] for payment in old] == [False] * 3


def test_a_completion_that_its_gateway_keeps_refusing_reaches_a_person(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = quiet.pay(quiet.place(), ACTION)
    completions: list[base.ChangeRequest] = []

    def refuse(request: base.ChangeRequest) -> base.Charge:
        completions.append(request)
        raise base.Refused("no")

    with monkeypatch.context() as patch:
        patch.setattr(gateway, "look_up", lambda query: seen(payment, "approved"))
        patch.setattr(gateway, "complete", refuse)
        make_due(quiet)
        run_once(quiet, gateways)
        assert (quiet.payment(payment)["status"], len(completions)) == ("pending", 1)
        age(quiet, payment, 1)  # its shopper has left: it is not captured any more
        run_once(quiet, gateways)
        assert len(completions) == 1
        age(quiet, payment, 24)
        run_once(quiet, gateways)
    after = quiet.payment(payment)
    assert (after["needs_review"], after["review_reason"]) == (True, "outcome_unknown")
    resolved = quiet.manager.post(
        f"/payments/{payment['id']}/review", json={"resolution": "voided", "note": "not paid"}
    )
    assert resolved.status_code == 200, resolved.text
    gateway.void(
        base.ChangeRequest(
            "void", "by-hand", payment["gateway_reference"], payment["id"], 1099, "USD", 1099
        )
    )


# Leases -----------------------------------------------------------------------------------------


def test_a_look_up_is_leased_for_as_long_as_it_lasts(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = pay(quiet, UNHEARD)
    answer, asked = gateway.look_up, 0

    def slow(query: base.ChargeLookup) -> base.Charge | None:
        nonlocal asked
        asked += 1
        # Another worker comes by while this one still waits for the gateway.
        assert run_once(quiet, gateways) == 0
        return answer(query)

    with monkeypatch.context() as patch:
        patch.setattr(gateway, "look_up", slow)
        due(quiet, payment)
        assert run_once(quiet, gateways) == 1
    assert asked == 1
    assert quiet.status(payment) == ("captured", "paid")
    lease = rules(gateways).lease
    assert lease > lookups.MAX_CALLS_PER_LOOKUP * 2  # GATEWAY_TIMEOUT here


def test_reconcile_asks_about_each_authorization_once_and_leaves_its_time_alone(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [quiet.authorized() for _ in range(6)]
    query = "SELECT id, check_at FROM payments WHERE status = 'authorized' ORDER BY id"
    ends = query.replace("check_at", "capture_before")
    with monkeypatch.context() as patch:
        asked = asked_about(gateway, patch)
        reconciliation.reconcile(quiet.engine, rules(gateways))
        ids = [query.request.payment_id for query in asked]
        assert all(ids.count(payment["id"]) == 1 for payment in held)
    assert sql(quiet.engine, query) == sql(quiet.engine, ends)
    with monkeypatch.context() as patch:
        patch.setattr(gateway, "look_up", unknown)
        reconciliation.reconcile(quiet.engine, rules(gateways))
    assert sql(quiet.engine, query) == sql(quiet.engine, ends)


def test_several_look_ups_run_at_once(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    due(quiet, *[pay(quiet, UNHEARD) for _ in range(lookups.LOOKUP_CONCURRENCY["open"])])
    answer = gateway.look_up
    all_there = threading.Barrier(lookups.LOOKUP_CONCURRENCY["open"])

    def together_only(query: base.ChargeLookup) -> base.Charge | None:
        all_there.wait(30)  # breaks if they come one after the other
        return answer(query)

    with monkeypatch.context() as patch:
        patch.setattr(gateway, "look_up", together_only)
        assert run_once(quiet, gateways) == lookups.LOOKUP_CONCURRENCY["open"]
    assert sql(quiet.engine, "SELECT count(*) FROM payments WHERE status = 'pending'")[0][0] == 0


def test_shoppers_who_are_away_keep_no_unknown_charge_waiting(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are looked up apart from what is open, however many they are."""
    waiting = [quiet.pay(quiet.place(), ACTION) for _ in range(5)]
    payment = pay(quiet, UNHEARD)
    due(quiet, payment, *waiting)
    with monkeypatch.context() as patch:
        asked = asked_about(gateway, patch)
        assert lookups.run_once(quiet.engine, rules(gateways), "open", "sandbox") == 1
        assert [query.request.payment_id for query in asked] == [payment["id"]]
    assert quiet.status(payment) == ("captured", "paid")
    assert lookups.run_once(quiet.engine, rules(gateways), "waiting", "sandbox") == len(waiting)


# Requests that may not have arrived -------------------------------------------------------------


@pytest.mark.parametrize("what", ["charge", "capture", "refunds"])
def test_a_request_may_be_sent_again_for_minutes_only(
    quiet: Shop,
    gateways: Gateways,
    gateway: SandboxGateway,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    if what == "charge":
        payment = pay(quiet, UNHEARD)
    else:
        payment = quiet.paid() if what == "refunds" else quiet.authorized()
        assert quiet.do(payment, what, UNHEARD).status_code == 202
    table = "refunds" if what == "refunds" else "payments"
    allowed = []

    def ask(query: Any) -> Any:
        allowed.append(query.resend)
        raise base.OutcomeUnknown("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(gateway, "look_up", ask)
        patch.setattr(gateway, "look_up_refund", ask)
        for seconds in (590, 20):
            sql(
                quiet.engine,
                f"UPDATE {table} SET created_at = created_at - make_interval(secs => :seconds),"
                " asked_at = asked_at - make_interval(secs => :seconds), check_at = now()"
                f" WHERE {'payment_id' if what == 'refunds' else 'id'} = :id",
                seconds=seconds,
                id=payment["id"],
            )
            run_once(quiet, gateways)
    assert allowed == [True, False]


def test_asking_about_a_settled_payment_never_sends_it_again(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = quiet.paid()
    sql(quiet.engine, "UPDATE payments SET check_at = now() WHERE id = :id", id=payment["id"])
    with monkeypatch.context() as patch:
        asked = asked_about(gateway, patch)
        run_once(quiet, gateways)
    assert [query.resend for query in asked] == [False]


# A shopper who stays away -----------------------------------------------------------------------


def test_a_new_payment_gives_up_the_one_that_waits_for_its_shopper(quiet: Shop) -> None:
    waiting = quiet.pay(quiet.place(), ACTION)
    paid = quiet.pay(waiting["order_id"])
    assert paid["status"] == "captured"
    assert quiet.payment(waiting)["status"] == "canceled"
    entries = quiet.books(waiting["order_id"])
    assert sorted(entry["status"] for entry in entries) == ["captured", "voided"]
    assert quiet.told(waiting["order_id"]) == [
        "payment.requires_action",
        "payment.canceled",
        "payment.captured",
        "order.status_changed",
    ]


def test_a_payment_that_its_shopper_has_approved_meanwhile_is_not_given_up(
    quiet: Shop, gateway: SandboxGateway, gateways: Gateways
) -> None:
    waiting = quiet.pay(quiet.place(), ACTION)
    assert gateway.answer_action(waiting["gateway_reference"], approve=True) is not None
    answer = quiet.try_pay(waiting["order_id"])
    assert problem(answer) == (409, "payment_in_progress")
    assert answer.json()["payment_id"] == waiting["id"]
    assert quiet.status(waiting) == ("captured", "paid")
    assert problem(quiet.try_pay(waiting["order_id"])) == (409, "order_already_paid")


def test_a_gateway_that_does_not_say_whether_it_gave_up_keeps_the_order(
    quiet: Shop, gateway: SandboxGateway, gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = quiet.pay(quiet.place(), ACTION)
    void = gateway.void

    def unheard(request: base.ChangeRequest) -> base.Charge:
        void(request)
        raise base.OutcomeUnknown("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(gateway, "void", unheard)
        assert problem(quiet.try_pay(waiting["order_id"])) == (409, "payment_in_progress")
    make_due(quiet)
    run_once(quiet, gateways)
    assert quiet.payment(waiting)["status"] == "canceled"
    assert quiet.pay(waiting["order_id"])["status"] == "captured"


def test_a_bad_request_gives_nothing_up(quiet: Shop) -> None:
    waiting = quiet.pay(quiet.place(), ACTION)
    answer = quiet.shopper.post(
        f"/orders/{waiting['order_id']}/payments", json={"payment_method_id": 2**40}
    )
    assert problem(answer) == (400, "payment_method_not_found")
    assert quiet.payment(waiting)["status"] == "requires_action"


def test_a_shopper_who_stays_away_is_given_up_and_the_order_may_still_be_paid(
    quiet: Shop, gateways: Gateways
) -> None:
    waiting = quiet.pay(quiet.place(), ACTION)
    age(quiet, waiting, 23.9)
    run_once(quiet, gateways)
    assert quiet.status(waiting) == ("requires_action", "pending")
    age(quiet, waiting, 0.2)
    run_once(quiet, gateways)
    assert quiet.status(waiting) == ("canceled", "pending")
    (entry,) = quiet.books(waiting["order_id"])
    assert entry["status"] == "voided"
    event = quiet.events(waiting["order_id"])[-1]
    assert (event["type"], event["actor"]["type"]) == ("payment.canceled", "service")
    assert quiet.pay(waiting["order_id"])["status"] == "captured"


def test_a_payment_that_cannot_be_given_up_reaches_a_person_a_day_later(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = quiet.pay(quiet.place(), ACTION)

    def refuse(request: base.ChangeRequest) -> base.Charge:
        raise base.Refused("no")

    with monkeypatch.context() as patch:
        patch.setattr(gateway, "void", refuse)
        age(quiet, waiting, 25)
        run_once(quiet, gateways)
        pause = "SELECT extract(epoch FROM check_at - now()) AS s FROM payments WHERE id = :id"
        assert sql(quiet.engine, pause, id=waiting["id"])[0].s > 3000  # not again and again
        assert quiet.payment(waiting)["needs_review"] is False
        age(quiet, waiting, 24)
        run_once(quiet, gateways)
        assert quiet.payment(waiting)["review_reason"] == "outcome_unknown"
    quiet.answer_page(waiting, "decline")


@pytest.mark.parametrize("number", range(3))
def test_new_payments_that_race_the_shoppers_approval_charge_once(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, number: int
) -> None:
    waiting = quiet.pay(quiet.place(), ACTION)
    quiet.method()

    def act(index: int) -> Any:
        if index == number:
            return gateway.answer_action(waiting["gateway_reference"], approve=True)
        return quiet.try_pay(waiting["order_id"])

    answers = [one for one in together(6, act) if isinstance(one, httpx.Response)]
    assert {answer.status_code for answer in answers} <= {201, 409}
    make_due(quiet)
    run_once(quiet, gateways)
    held = [one for one in quiet.books(waiting["order_id"]) if one["status"] == "captured"]
    assert len(held) == 1
    ours = quiet.shopper.get(f"/orders/{waiting['order_id']}/payments").json()
    assert [one["status"] for one in ours].count("captured") == 1
    assert len([answer for answer in answers if answer.status_code == 201]) <= 1


# Answers that were overtaken --------------------------------------------------------------------


def test_a_void_between_the_question_of_confirm_and_its_answer_asks_no_person(
    quiet: Shop,
    quiet_app: FastAPI,
    gateways: Gateways,
    gateway: SandboxGateway,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    payment = quiet.pay(quiet.place(), ACTION)
    answer = gateway.look_up

    def overtaken(query: base.ChargeLookup) -> base.Charge | None:
        found = answer(query)  # still waiting
        with monkeypatch.context() as inner:
            inner.setattr(gateway, "look_up", answer)
            assert quiet.do(payment, "void").status_code == 200
        # By the time it comes, it tells of an approval that was never heard of here.
        assert found is not None
        return replace(found, status="authorized", redirect_url=None)

    with monkeypatch.context() as patch:
        patch.setattr(gateway, "look_up", overtaken)
        confirmed = quiet.shopper.post(f"/payments/{payment['id']}/confirm", json={})
        assert confirmed.json()["status"] == "canceled"
    after = quiet.payment(payment)
    assert (after["status"], after["needs_review"]) == ("canceled", False)
    run_once(quiet, gateways)  # the books are asked again, and agree
    assert quiet.payment(payment)["needs_review"] is False


def test_a_charge_that_was_surely_not_sent_is_open_while_a_look_up_may_have_sent_it(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    charge = gateway.charge

    def late(request: base.ChargeRequest) -> base.Charge:
        with monkeypatch.context() as inner:
            inner.setattr(gateway, "look_up", lambda query: charge(request))
            make_due(quiet)
            run_once(quiet, gateways)
        raise base.NotExecuted("no call to this gateway has ended in time")

    with monkeypatch.context() as patch:
        patch.setattr(gateway, "charge", late)
        payment = quiet.pay(quiet.place())
    assert quiet.status(payment) == ("captured", "paid")


def test_an_authorization_of_another_amount_is_not_swallowed(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = quiet.authorized()
    with monkeypatch.context() as patch:
        less = replace(seen(payment, "authorized"), amount=500)
        patch.setattr(gateway, "look_up", lambda query: less)
        make_due(quiet)
        run_once(quiet, gateways)
    after = quiet.payment(payment)
    assert (after["needs_review"], after["review_reason"]) == (True, "amount_differs")


def test_an_authorization_past_its_end_is_not_asked_about_in_a_loop(
    quiet: Shop, gateways: Gateways
) -> None:
    """Whichever clock is ahead: all times are the database's."""
    payment = quiet.authorized()
    sql(
        quiet.engine,
        "UPDATE payments SET capture_before = now() - interval '3 seconds', check_at = now()"
        " WHERE id = :id",
        id=payment["id"],
    )
    sql(
        quiet.engine,
        "UPDATE sandbox.charges SET capture_before = now() - interval '3 seconds'"
        " WHERE payment_id = :id",
        id=payment["id"],
    )
    assert run_once(quiet, gateways) == 1
    assert run_once(quiet, gateways) == 0
    gateway_ = gateways.get("sandbox")
    assert isinstance(gateway_, SandboxGateway)
    gateway_.tick()
    make_due(quiet)
    run_once(quiet, gateways)
    assert quiet.payment(payment)["status"] == "voided"


def test_a_lost_charge_is_settled_although_its_look_up_died(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease ends, and somebody else takes it."""
    payment = pay(quiet, LOST)
    due(quiet, payment)
    with database.new_session(quiet.engine) as session:
        taken = lookups._lease_due(session, rules(gateways), "open", "sandbox", 1)
    assert len(taken) == 1  # and its process is gone
    assert run_once(quiet, gateways) == 0
    due(quiet, payment)  # as time does
    assert run_once(quiet, gateways) == 1
    assert quiet.status(payment) == ("failed", "pending")


def test_giving_up_twice_at_once_does_it_once(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway
) -> None:
    waiting = quiet.pay(quiet.place(), ACTION)

    def give_up(_: int) -> None:
        with database.new_session(quiet.engine) as session:
            with database.phase(session):
                seen = crud.require_payment(session, waiting["id"], waiting["user_id"])
            payments.void_waiting_payment(session, rules(gateways).access, lookups.RECONCILER, seen)

    together(3, give_up)
    assert quiet.payment(waiting)["status"] == "canceled"
    assert quiet.told(waiting["order_id"]).count("payment.canceled") == 1


@pytest.mark.parametrize("first", [Payment, Refund])
def test_open_refunds_keep_no_charge_waiting_nor_the_other_way_round(
    quiet: Shop, gateways: Gateways, monkeypatch: pytest.MonkeyPatch, first: type[Any]
) -> None:
    refunded = quiet.paid()
    for _ in range(3):
        assert quiet.do(refunded, "refunds", UNHEARD, amount=1).status_code == 202
    payment = pay(quiet, UNHEARD)
    make_due(quiet)
    others = [model for model in (Payment, Refund) if model is not first]
    monkeypatch.setattr(random, "sample", lambda *_: [first, *others])
    with database.new_session(quiet.engine) as session:
        one = lookups._lease_due(session, rules(gateways), "open", "sandbox", 1)
        assert [lease.model for lease in one] == [first]  # whichever comes first by chance
        some = lookups._lease_due(session, rules(gateways), "open", "sandbox", 4)
    taken = [lease.model for lease in (*one, *some)]
    assert {Payment, Refund} <= set(taken)
    make_due(quiet)
    run_once(quiet, gateways)
    assert quiet.status(payment) == ("captured", "paid")


def test_one_failed_try_to_give_up_an_old_payment_asks_no_person(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have waited for days because the service was down, or was upgraded."""
    waiting = quiet.pay(quiet.place(), ACTION)
    age(quiet, waiting, 49)
    with monkeypatch.context() as patch:
        patch.setattr(gateway, "void", unknown)
        run_once(quiet, gateways)
    assert quiet.payment(waiting)["needs_review"] is False
    for _ in range(2):  # the void is found not to have come, then it is tried again
        due(quiet, waiting)
        run_once(quiet, gateways)
    assert quiet.payment(waiting)["status"] == "canceled"


def test_a_void_of_a_waiting_payment_that_was_not_done_is_502_and_may_be_repeated(
    quiet: Shop, gateway: SandboxGateway, gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = quiet.pay(quiet.place(), ACTION)

    def away(request: base.ChangeRequest) -> base.Charge:
        raise base.NotExecuted("the circuit breaker is open")

    with monkeypatch.context() as patch:
        patch.setattr(gateway, "void", away)
        assert problem(quiet.do(waiting, "void")) == (502, "gateway_unavailable")
    assert quiet.payment(waiting)["status"] == "requires_action"
    assert quiet.do(waiting, "void").status_code == 200


def test_an_approval_that_is_gone_again_leaves_the_order_free(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = quiet.pay(quiet.place(), ACTION)
    with monkeypatch.context() as patch:
        patch.setattr(gateway, "look_up", lambda query: seen(waiting, "processing"))
        due(quiet, waiting)
        run_once(quiet, gateways)
        assert quiet.payment(waiting)["status"] == "pending"
    due(quiet, waiting)
    run_once(quiet, gateways)  # the books show that it waits again
    assert quiet.payment(waiting)["status"] == "requires_action"
    assert quiet.pay(waiting["order_id"])["status"] == "captured"


def test_a_look_up_that_changes_nothing_is_no_update_to_readers(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = pay(quiet, UNHEARD)
    with monkeypatch.context() as patch:
        patch.setattr(gateway, "look_up", unknown)
        due(quiet, payment)
        before = quiet.payment(payment)["updated_at"]
        run_once(quiet, gateways)
    assert quiet.payment(payment)["updated_at"] == before
