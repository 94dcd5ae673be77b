"""The states of orders, payments and refunds, and the moves between them."""

from __future__ import annotations

from itertools import product
from typing import Any, get_args

import pytest

from domain.states import (
    CAPTURED_PAYMENT_STATUSES,
    CHARGE_TRANSITIONS,
    DEAD_PAYMENT_STATUSES,
    ORDER_STATUSES,
    ORDER_TRANSITIONS,
    PAYMENT_STATUSES,
    REFUND_STATUSES,
    REFUND_TRANSITIONS,
    REFUNDED_TRANSITIONS,
    OrderStatus,
    TransitionRole,
    allowed_transitions,
)

PAYMENT_TRANSITIONS = CHARGE_TRANSITIONS | REFUNDED_TRANSITIONS
MOVERS: tuple[TransitionRole, ...] = get_args(TransitionRole)
MOVES: dict[str, tuple[Any, tuple[str, ...], set[str]]] = {  # moves, statuses, where they begin
    "order": (ORDER_TRANSITIONS, ORDER_STATUSES, {"pending"}),
    "payment": (PAYMENT_TRANSITIONS, PAYMENT_STATUSES, {"pending"}),
    "refund": (REFUND_TRANSITIONS, REFUND_STATUSES, {"pending"}),
}


@pytest.mark.parametrize(("moves", "statuses", "first"), MOVES.values(), ids=MOVES)
def test_every_status_is_reached_and_none_moves_to_itself(
    moves: Any, statuses: tuple[str, ...], first: set[str]
) -> None:
    assert all(start != end for start, end in moves)
    reached = first
    while more := {end for start, end in moves if start in reached} - reached:
        reached = reached | more
    assert reached == set(statuses)


def test_a_dead_payment_moves_no_more() -> None:
    assert not {start for start, _ in PAYMENT_TRANSITIONS} & set(DEAD_PAYMENT_STATUSES)


def test_money_that_was_taken_moves_by_refunds_only() -> None:
    taken = set(CAPTURED_PAYMENT_STATUSES)
    assert not {start for start, _ in CHARGE_TRANSITIONS} & taken
    assert {end for start, end in PAYMENT_TRANSITIONS if start in taken} == taken


def test_a_refund_that_failed_is_over() -> None:
    assert "failed" not in {start for start, _ in REFUND_TRANSITIONS}


@pytest.mark.parametrize(
    ("status", "movers", "allowed"),
    [
        ("pending", {"owner"}, ["canceled"]),
        ("pending", {"manager"}, ["paid", "canceled"]),
        ("pending", {"payments"}, ["authorized", "paid"]),
        ("pending", {"owner", "manager", "payments"}, ["authorized", "paid", "canceled"]),
        ("authorized", {"owner"}, []),
        ("authorized", {"owner", "manager"}, ["canceled"]),
        ("paid", {"manager"}, ["shipped"]),
        ("shipped", {"manager"}, ["delivered"]),
        ("canceled", {"owner", "manager", "payments"}, []),
        ("refunded", {"owner", "manager", "payments"}, []),
        ("pending", set(), []),
    ],
)
def test_the_next_statuses_are_those_of_the_callers_roles_in_the_order_of_an_orders_life(
    status: OrderStatus, movers: set[TransitionRole], allowed: list[OrderStatus]
) -> None:
    assert allowed_transitions(status, frozenset(movers)) == allowed


def test_the_next_statuses_are_the_table_read_by_status() -> None:
    for start, mover in product(ORDER_STATUSES, MOVERS):
        expected = {
            end for (begin, end), who in ORDER_TRANSITIONS.items() if begin == start if mover in who
        }
        assert set(allowed_transitions(start, frozenset({mover}))) == expected
