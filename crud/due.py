"""What is due to be looked up at a gateway, and when it is looked up again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import ColumnElement, Table, case, func, select, true, update

from models import Payment, Refund

MAX_PAUSE = 300  # seconds; a gateway that has been silent for an hour is not asked more often
SHOPPER_PAUSE = 3600  # seconds; nor is one whose shopper has been away for as long


def after(seconds: Any) -> Any:
    """That many seconds from now, by the database's clock."""
    return func.now() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def is_at(of: str | None, but: Sequence[str] | None) -> ColumnElement[bool]:
    """Payments of one gateway, of all but these, or of all."""
    if of is not None:
        return Payment.gateway == of
    return true() if but is None else Payment.gateway.not_in(but)


def take_due(
    model: type[Payment] | type[Refund],
    limit: int,
    ids: Sequence[int] | None,
    at_gateway: ColumnElement[bool],
) -> Any:
    """Take rows that are due, and put off their next look-up by twice the last pause.

    Others skip what is taken (SKIP LOCKED), so any number of workers may do this at once.
    With `ids`, take those of these that are open, due or not.
    """
    table = cast(Table, model.__table__)
    columns = table.c
    due = columns.check_at <= func.now() if ids is None else columns.id.in_(ids)
    taken = (
        select(columns.id)
        .where(columns.check_at.is_not(None), due, at_gateway)
        .order_by(columns.check_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    longest = case((columns.status == "requires_action", SHOPPER_PAUSE), else_=MAX_PAUSE)
    return (
        update(table)
        .where(columns.id.in_(taken.scalar_subquery()))
        .values(
            checks=columns.checks + 1,
            check_at=after(func.least(func.power(2, columns.checks), longest)),
        )
        .returning(*columns)
    )
