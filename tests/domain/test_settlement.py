"""The rule of settlement, as a table and by laws, over every combination of state and news."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

import pytest

from domain.settlement import (
    CHARGE_STATUSES_WITH_MONEY,
    Decision,
    PaymentFacts,
    RefundFacts,
    Source,
    decide,
    decide_not_executed,
    decide_refund,
    decide_refund_not_executed,
    decide_unknown,
    relation_of,
)
from domain.states import (
    CAPTURED_PAYMENT_STATUSES,
    CHARGE_TRANSITIONS,
    DEAD_PAYMENT_STATUSES,
    ORDER_TRANSITIONS,
    REFUND_STATUSES,
    REFUND_TRANSITIONS,
    ChargeStatus,
    OrderStatus,
    PaymentStatus,
    RefundStatus,
    ReviewReason,
)


@dataclass(frozen=True)
class Charge:
    """A charge as any gateway could show it."""

    status: ChargeStatus
    reference: str = "ch_1"
    amount: int | None = 1000
    currency: str = "USD"
    amount_captured: int = 0
    replaces: str | None = None


@dataclass(frozen=True)
class Refund:
    status: RefundStatus
    reference: str = "re_1"
    amount: int = 400
    currency: str = "USD"


CHARGE_STATUSES: tuple[ChargeStatus, ...] = get_args(ChargeStatus)
CHARGES: tuple[Charge, ...] = tuple(
    Charge(status, reference, amount, currency, captured if status == "captured" else 0)
    for status, reference, amount, currency, captured in itertools.product(
        CHARGE_STATUSES,
        ("ch_1", "ch_2"),
        (1000, 900, None),
        ("USD", "EUR"),
        (1000, 600, 1001),
    )
)

# The order as it is beside a payment in that status.
ORDERS: dict[PaymentStatus, tuple[OrderStatus, ...]] = {
    "pending": ("pending",),
    "requires_action": ("pending",),
    "authorized": ("authorized",),
    "captured": ("paid", "shipped", "delivered"),
    "partially_refunded": ("paid",),
    "refunded": ("refunded",),
    "failed": ("pending", "paid", "canceled"),
    "voided": ("canceled",),
    "canceled": ("pending", "canceled"),
}


def payments() -> Iterator[PaymentFacts]:
    for status, orders in ORDERS.items():
        operations: tuple[Any, ...] = (None,)
        if status in ("authorized", "requires_action"):
            operations = (None, "void", "cancel")
        if status == "authorized":
            operations += ("capture",)
        for order, method, reference, operation, can_retrieve, not_executed in itertools.product(
            orders,
            ("automatic", "manual"),
            (None, "ch_1"),
            operations,
            (True, False),
            (True, False),
        ):
            if reference is None and status not in ("pending", "failed"):
                continue
            if not_executed and operation is None:
                continue
            yield PaymentFacts(
                status=status,
                amount=1000,
                currency="USD",
                amount_captured=1000 if status in CAPTURED_PAYMENT_STATUSES else 0,
                capture_method=method,  # type: ignore[arg-type]
                reference=reference,
                operation=operation,
                operation_amount=600 if operation == "capture" else 1000 if operation else None,
                order_status=order,
                can_retrieve=can_retrieve,
                not_executed=not_executed,
            )


KNOWN = tuple(payments())
SOURCES: tuple[Source, ...] = ("answer", "hint")
EVERY = tuple(itertools.product(KNOWN, CHARGES, SOURCES))


def after(facts: PaymentFacts, decision: Decision, charge: Charge | None = None) -> PaymentFacts:
    """What is known once a decision has been written down."""
    changed = replace(
        facts,
        status=decision.payment_status or facts.status,
        order_status=decision.order_status or facts.order_status,
        review_reason=None
        if decision.ends_review
        else decision.review_reason or facts.review_reason,
    )
    if decision.operation_result is not None:
        changed = replace(changed, operation=None, operation_amount=None)
    if charge is not None and facts.reference in (None, charge.replaces):
        changed = replace(changed, reference=charge.reference)
    if decision.payment_status == "captured" and charge is not None:
        changed = replace(changed, amount_captured=charge.amount_captured)
    return changed


# The table --------------------------------------------------------------------------------------

AHEAD, LEVEL, CONTRADICTS = "ahead", "level", "contradiction"
# Our status, then what the gateway shows, of our amount under our reference.
TABLE: dict[PaymentStatus, dict[ChargeStatus, str]] = {
    "pending": {
        "processing": LEVEL,
        "requires_action": AHEAD,  # their approval is gone again
        "approved": LEVEL,
        "authorized": AHEAD,
        "captured": AHEAD,
        "declined": AHEAD,
        "voided": AHEAD,
    },
    "requires_action": {
        "processing": AHEAD,
        "requires_action": LEVEL,
        "approved": AHEAD,
        "authorized": AHEAD,
        "captured": AHEAD,
        "declined": AHEAD,
        "voided": AHEAD,
    },
    "authorized": {
        "processing": LEVEL,
        "requires_action": LEVEL,
        "approved": LEVEL,
        "authorized": LEVEL,
        "captured": AHEAD,
        "declined": CONTRADICTS,
        "voided": AHEAD,
    },
    **{
        status: {
            "processing": LEVEL,
            "requires_action": LEVEL,
            "approved": LEVEL,
            "authorized": LEVEL,
            "captured": LEVEL,
            "declined": CONTRADICTS,
            "voided": CONTRADICTS,
        }
        for status in CAPTURED_PAYMENT_STATUSES
    },
    **{
        status: {
            "processing": LEVEL,
            "requires_action": LEVEL,
            "approved": LEVEL,
            "authorized": CONTRADICTS,
            "captured": CONTRADICTS,
            "declined": LEVEL,
            "voided": LEVEL,
        }
        for status in DEAD_PAYMENT_STATUSES
    },
}


@pytest.mark.parametrize("status", TABLE)
def test_how_a_state_of_our_amount_relates_to_ours(status: PaymentStatus) -> None:
    for facts in KNOWN:
        if facts.status != status or facts.reference is None or facts.operation is not None:
            continue
        if not facts.can_retrieve:
            continue
        captured = facts.amount_captured or facts.amount
        for shown, relation in TABLE[status].items():
            charge = Charge(shown, amount_captured=captured if shown == "captured" else 0)
            assert relation_of(facts, charge) == relation, (facts, shown)


def test_a_first_answer_may_send_the_shopper_away() -> None:
    facts = replace(KNOWN[0], reference=None)
    assert facts.status == "pending"
    assert decide(facts, Charge("requires_action"), "answer").payment_status == "requires_action"


def test_another_reference_is_another_charge_and_only_held_money_needs_a_person() -> None:
    for facts, charge, source in EVERY:
        if facts.reference is None or charge.reference == facts.reference:
            continue
        expected: ReviewReason | None = (
            "second_charge" if charge.status in CHARGE_STATUSES_WITH_MONEY else None
        )
        assert decide(facts, charge, source) == Decision(review_reason=expected)


def test_a_reference_that_the_gateway_replaces_is_the_same_charge() -> None:
    facts = next(one for one in KNOWN if one.status == "pending" and one.reference == "ch_1")
    charge = Charge("captured", "ch_2", amount_captured=1000, replaces="ch_1")
    assert decide(facts, charge, "answer").payment_status == "captured"


@pytest.mark.parametrize(
    "charge",
    [
        Charge("captured", amount=1001, amount_captured=1001),
        Charge("captured", currency="EUR", amount_captured=1000),
        Charge("captured", amount_captured=1),
        Charge("authorized", amount=500),
    ],
)
def test_another_amount_moves_nothing_and_an_answer_with_it_is_a_persons(charge: Charge) -> None:
    for facts in KNOWN:
        automatic = facts.capture_method == "automatic" and facts.operation is None
        if facts.reference is None or not (automatic and facts.status in ("pending", "authorized")):
            continue
        answer = decide(facts, charge, "answer")
        assert (answer.payment_status, answer.review_reason) == (None, "amount_differs"), facts
        hint = decide(facts, charge, "hint")
        assert hint.payment_status is None
        assert (
            hint.lookup == "now" if facts.can_retrieve else hint.review_reason == "amount_differs"
        )


def test_an_authorization_may_be_captured_in_part_by_whoever() -> None:
    for facts in KNOWN:
        if facts.status != "authorized" or facts.capture_method != "manual":
            continue
        decision = decide(facts, Charge("captured", amount_captured=600), "answer")
        assert (decision.payment_status, decision.order_status) == ("captured", "paid")
        if facts.operation == "capture":
            assert decision.operation_result == "executed"  # the 600 that were asked for
        elif facts.operation is not None:
            assert decision.operation_result == "not_executed"


def test_a_declined_capture_leaves_the_money_held() -> None:
    for facts in KNOWN:
        if facts.operation != "capture":
            continue
        decision = decide(facts, Charge("declined"), "answer")
        assert decision == Decision(operation_result="not_executed", lookup="at_expiry")


# The laws ---------------------------------------------------------------------------------------


def test_all_moves_are_legal() -> None:
    for facts, charge, source in EVERY:
        decision = decide(facts, charge, source)
        if decision.payment_status is not None:
            assert (facts.status, decision.payment_status) in CHARGE_TRANSITIONS
        if decision.order_status is not None:
            assert "payments" in ORDER_TRANSITIONS[(facts.order_status, decision.order_status)] or (
                # with `cancel` the caller who asked for it cancels the order
                facts.operation == "cancel" and decision.order_status == "canceled"
            )


def test_held_money_is_never_dropped() -> None:
    """It is in our books, or a person is asked, or the gateway is asked at once."""
    for facts, charge, source in EVERY:
        if charge.status not in CHARGE_STATUSES_WITH_MONEY:
            continue
        decision = decide(facts, charge, source)
        final = after(facts, decision, charge)
        if decision.review_reason is not None or decision.lookup == "now":
            continue
        if source == "hint" and (facts.status, charge.status) == ("voided", "authorized"):
            continue  # it was, before it was voided
        assert charge.reference == final.reference, (facts, charge)
        held = (*CAPTURED_PAYMENT_STATUSES, "authorized")
        assert final.status in held, (facts, charge, source)
        assert charge.amount in (None, facts.amount)
        assert charge.currency == facts.currency
        if charge.status == "captured":
            assert charge.amount_captured == final.amount_captured


def declines_a_capture(facts: PaymentFacts, charge: Charge) -> bool:
    """The answer to a capture itself: what the books show after it is "authorized"."""
    return facts.operation == "capture" and charge.status == "declined"


def test_a_hint_and_then_the_answer_equals_the_answer() -> None:
    for facts, charge in itertools.product(KNOWN, CHARGES):
        if declines_a_capture(facts, charge):
            continue
        hinted = after(facts, decide(facts, charge, "hint"), charge)
        answered = after(facts, decide(facts, charge, "answer"), charge)
        both = after(hinted, decide(hinted, charge, "answer"), charge)
        assert both == answered, (facts, charge)


def test_the_same_news_twice_equals_once() -> None:
    for facts, charge, source in EVERY:
        if declines_a_capture(facts, charge):
            continue
        once = after(facts, decide(facts, charge, source), charge)
        again = decide(once, charge, source)
        assert (again.payment_status, again.order_status, again.operation_result) == (
            None,
            None,
            None,
        )
        assert after(once, again, charge) == once, (facts, charge, source)


def test_a_hint_never_ends_in_less_than_was_known() -> None:
    """Old news moves nothing back, and calls no look-up off."""
    for facts, charge in itertools.product(KNOWN, CHARGES):
        decision = decide(facts, charge, "hint")
        if decision.payment_status is None:
            assert decision.lookup in ("keep", "now") or not facts.can_retrieve


def test_what_is_open_is_always_looked_up() -> None:
    for facts, charge, source in EVERY:
        decision = decide(facts, charge, source)
        final = after(facts, decision, charge)
        if final.is_open or final.status == "requires_action":
            assert decision.lookup in ("keep", "now", "soon", "later"), (facts, charge)


def test_an_operation_is_over_exactly_when_the_charge_is_decided() -> None:
    for facts, charge, source in EVERY:
        final = after(facts, decide(facts, charge, source), charge)
        if facts.operation is not None and final.status not in ("authorized", "requires_action"):
            assert final.operation is None


def test_an_order_follows_its_payment() -> None:
    for facts, charge, source in EVERY:
        decision = decide(facts, charge, source)
        final = after(facts, decision, charge)
        if decision.payment_status == "captured":
            assert final.order_status in ("paid", "shipped", "delivered", "refunded", "canceled")
        if decision.payment_status == "authorized" and facts.order_status == "pending":
            assert final.order_status == "authorized"
        if decision.payment_status == "canceled" and facts.operation != "cancel":
            assert decision.order_status is None  # the order may be paid in another way


# No charge, or nobody knows -----------------------------------------------------------------------


def test_a_charge_that_never_happened_frees_the_order() -> None:
    for facts in KNOWN:
        decision = decide_not_executed(facts, "answer")
        if facts.operation is not None:
            assert (decision.payment_status, decision.operation_result) == (None, "not_executed")
        elif facts.status == "pending":
            assert (decision.payment_status, decision.lookup) == ("failed", "never")
        else:
            assert (decision.payment_status, decision.review_reason) == (None, None)
        assert decide_not_executed(facts, "hint") == Decision()


def test_only_what_is_open_for_too_long_goes_to_a_person() -> None:
    for facts in KNOWN:
        may_move = facts.is_open or facts.status == "requires_action"
        expected = "outcome_unknown" if may_move else None
        assert decide_unknown(facts, overdue=True).review_reason == expected
        assert decide_unknown(facts, overdue=False) == Decision()
        asked = replace(facts, review_reason="amount_differs")
        assert decide_unknown(asked, overdue=True) == Decision()


def test_an_outcome_that_is_known_at_last_needs_no_person() -> None:
    facts = replace(KNOWN[0], review_reason="outcome_unknown")
    assert decide(facts, Charge("captured", amount_captured=1000), "answer").ends_review
    assert decide_not_executed(facts, "answer").ends_review
    assert not decide(facts, Charge("processing"), "answer").ends_review
    other = replace(facts, review_reason="amount_differs")
    assert not decide(other, Charge("captured", amount_captured=1000), "answer").ends_review


# Refunds ----------------------------------------------------------------------------------------


def refunds() -> Iterator[RefundFacts]:
    for status, reference, before, order, can_retrieve in itertools.product(
        REFUND_STATUSES, (None, "re_1"), (0, 600), ("paid", "refunded"), (True, False)
    ):
        refunded = before + (400 if status == "succeeded" else 0)
        yield RefundFacts(
            status=status,
            amount=400,
            currency="USD",
            reference=reference,
            amount_captured=1000,
            amount_refunded=refunded,
            order_status=order,  # type: ignore[arg-type]
            can_retrieve=can_retrieve,
        )


KNOWN_REFUNDS = tuple(refunds())
REFUNDS = tuple(
    Refund(status, reference, amount, currency)
    for status, reference, amount, currency in itertools.product(
        REFUND_STATUSES, ("re_1", "re_2"), (400, 300), ("USD", "EUR")
    )
)


def test_refunds_move_only_as_they_may_and_the_sums_follow() -> None:
    for facts, state, source in itertools.product(KNOWN_REFUNDS, REFUNDS, SOURCES):
        decision = decide_refund(facts, state, source)
        if decision.refund_status is not None:
            assert (facts.status, decision.refund_status) in REFUND_TRANSITIONS
            assert decision.refund_status == state.status
            was = 400 if facts.status == "succeeded" else 0
            assert (
                decision.refunded_change
                == (400 if decision.refund_status == "succeeded" else 0) - was
            )
        if decision.payment_status is not None:
            total = facts.amount_refunded + decision.refunded_change
            expected = {0: "captured", facts.amount_captured: "refunded"}
            assert decision.payment_status == expected.get(total, "partially_refunded")


def test_money_that_went_back_is_never_dropped() -> None:
    for facts, state, source in itertools.product(KNOWN_REFUNDS, REFUNDS, SOURCES):
        if state.status != "succeeded" or facts.status == "succeeded":
            continue
        decision = decide_refund(facts, state, source)
        moved = decision.refund_status == "succeeded"
        assert moved or decision.review_reason is not None or decision.lookup == "now", (
            facts,
            state,
        )


def test_a_refund_under_another_reference_was_made_twice() -> None:
    facts = next(one for one in KNOWN_REFUNDS if one.reference == "re_1")
    assert (
        decide_refund(facts, Refund("succeeded", "re_2"), "hint").review_reason
        == "refund_made_twice"
    )
    assert decide_refund(facts, Refund("failed", "re_2"), "answer").review_reason is None


def test_a_refund_that_fails_after_its_order_has_ended_is_a_persons() -> None:
    facts = RefundFacts("succeeded", 400, "USD", "re_1", 400, 400, "refunded")
    decision = decide_refund(facts, Refund("failed"), "answer")
    assert (decision.refund_status, decision.payment_status, decision.refunded_change) == (
        "failed",
        "captured",
        -400,
    )
    assert decision.review_reason == "refund_failed_late"


def test_a_refund_that_never_happened_frees_its_amount_unless_that_is_old_news() -> None:
    for facts in KNOWN_REFUNDS:
        decision = decide_refund_not_executed(facts, "answer")
        assert decision.refund_status == ("failed" if facts.status == "pending" else None)
        assert decide_refund_not_executed(facts, "hint").refund_status is None


def test_refund_news_twice_equals_once() -> None:
    for facts, state, source in itertools.product(KNOWN_REFUNDS, REFUNDS, SOURCES):
        decision = decide_refund(facts, state, source)
        once = replace(
            facts,
            status=decision.refund_status or facts.status,
            reference=facts.reference or state.reference,
            amount_refunded=facts.amount_refunded + decision.refunded_change,
            order_status=decision.order_status or facts.order_status,
        )
        again = decide_refund(once, state, source)
        assert (again.refund_status, again.refunded_change, again.order_status) == (None, 0, None)
