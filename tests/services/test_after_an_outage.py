"""The service was down for days; when it is back its gateway happens to be away for a minute."""

from __future__ import annotations

from typing import Any

import pytest

from gateways import base
from gateways.registry import Gateways
from gateways.sandbox import SandboxGateway
from services.lookups import REVIEW_AFTER_LOOKUPS
from tests.support.database import sql
from tests.support.quiet import LOST, UNHEARD, make_due, pay, run_once
from tests.support.shop import ACTION, Shop


def pass_days(shop: Shop, days: int) -> None:
    for table in ("payments", "refunds"):
        sql(
            shop.engine,
            f"UPDATE {table} SET created_at = created_at - make_interval(days => :days),"
            " asked_at = asked_at - make_interval(days => :days)",
            days=days,
        )
    make_due(shop)


def open_ones(shop: Shop) -> list[dict[str, Any]]:
    """A charge, a capture and a refund whose outcome nobody knows, and two who wait."""
    held, paid = shop.authorized(), shop.paid()
    assert shop.do(held, "capture", LOST).status_code == 202
    assert shop.do(paid, "refunds", UNHEARD).status_code == 202
    waiting = [shop.pay(shop.place(), ACTION) for _ in range(2)]
    return [pay(shop, UNHEARD), held, paid, *waiting]


@pytest.mark.parametrize(
    "error", [base.OutcomeUnknown("no answer"), base.NotExecuted("not reached")]
)
def test_a_gateway_that_is_away_for_a_minute_sends_nothing_to_review(
    quiet: Shop,
    gateways: Gateways,
    gateway: SandboxGateway,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    old = open_ones(quiet)
    pass_days(quiet, 3)

    def away(_: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        for call in ("look_up", "look_up_refund", "void"):
            patch.setattr(gateway, call, away)
        for _ in range(REVIEW_AFTER_LOOKUPS - 1):  # after 1, 2, 4 … seconds: more than a minute
            make_due(quiet)
            assert run_once(quiet, gateways) >= len(old)
    assert [quiet.payment(payment)["needs_review"] for payment in old] == [False] * len(old)
    for _ in range(2):  # a request that was lost is found out to be lost, then sent again
        make_due(quiet)
        run_once(quiet, gateways)
    statuses = [quiet.payment(payment)["status"] for payment in old]
    assert statuses == ["captured", "authorized", "refunded", "canceled", "canceled"]


def test_a_gateway_that_stays_away_is_a_persons_after_some_look_ups(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = open_ones(quiet)[:3]
    pass_days(quiet, 3)

    def away(_: Any) -> Any:
        raise base.OutcomeUnknown("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(gateway, "look_up", away)
        patch.setattr(gateway, "look_up_refund", away)
        for _ in range(REVIEW_AFTER_LOOKUPS):
            make_due(quiet)
            run_once(quiet, gateways)
    reasons = [quiet.payment(payment)["review_reason"] for payment in old]
    assert reasons == ["outcome_unknown"] * len(old)


# A capture of ours was lost, and somebody has captured in the gateway's dashboard meanwhile.


def test_a_capture_outside_of_another_amount_than_ours_that_was_lost_is_adopted(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway
) -> None:
    payment = quiet.authorized(1000)
    assert quiet.do(payment, "capture", LOST, amount=600).status_code == 202
    gateway.dashboard.capture(payment["gateway_reference"], 400)
    make_due(quiet)
    run_once(quiet, gateways)
    after = quiet.payment(payment)
    assert (after["status"], after["amount_captured"]) == ("captured", 400)
    assert after["needs_review"] is False


def test_a_capture_that_is_refused_since_another_was_made_outside_tells_so(
    quiet: Shop, gateway: SandboxGateway
) -> None:
    payment = quiet.authorized(1000)
    gateway.dashboard.capture(payment["gateway_reference"], 400)
    answer = quiet.do(payment, "capture", amount=600)
    assert (answer.status_code, answer.json()["code"]) == (409, "invalid_status_transition")
    assert answer.json()["current_status"] == "captured"
    after = quiet.payment(payment)
    assert (after["amount_captured"], after["needs_review"]) == (400, False)
