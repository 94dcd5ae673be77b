"""Who works on what: SQL that hands out look-ups and comparisons, so that each is done once.

The only place that turns "soon" or "at expiry" into a time, always by the database's clock. A
row that is taken is leased: for as long as its look-up may last nobody else takes it, and when
the look-up has ended the next one is set by how many there were.

What is due is found first, of all users, and locks nothing. Then each row is taken by
its user and id, in a transaction of its own: one transaction is about one user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal, NamedTuple, cast

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert

from database import (
    NOW,
    Old,
    find_old,
    read_all,
    read_one,
    seconds_from_now,
    wake_after_commit,
)
from domain.settlement import NextLookup
from domain.states import CAPTURED_PAYMENT_STATUSES, PaymentStatus, RefundStatus
from models import Comparison, GatewayEvent, Payment, Refund
from rows import PaymentRow, RefundRow
from sessions import Session

Lane = Literal["open", "waiting"]
LookedUp = type[Payment] | type[Refund]

FIRST_PAUSE: Final = 5  # seconds before what has just moved is looked up
# Pauses double with each look-up: 1, 2, 4 … seconds, up to these.
MAX_PAUSE: Final = 300  # of what is open; a gateway that has been silent for an hour stays so
WAITING_PAUSE: Final = 3600  # of what waits: a shopper who is away, an authorization past its end
REVIEW_PAUSE: Final = 3600  # of what a person has been asked about
HOLD_OR_HELD_MONEY: Final = ("authorized", *CAPTURED_PAYMENT_STATUSES)
MAX_DOUBLINGS: Final = 20  # the power of two stays a number however often it is asked

COMPARISONS = cast(sa.Table, Comparison.__table__)
PAYMENTS = cast(sa.Table, Payment.__table__)
REFUNDS = cast(sa.Table, Refund.__table__)
GATEWAY_EVENTS = cast(sa.Table, GatewayEvent.__table__)


# When next --------------------------------------------------------------------------------------


def schedule_first_lookup(row: PaymentRow | RefundRow, now: datetime, seconds: float) -> None:
    """A request is about to be sent: look up what became of it in so many seconds."""
    row.requested_at = now
    row.next_lookup_at = now + timedelta(seconds=seconds)
    row.lookup_count = 0


def schedule_lookup(
    session: Session, row: PaymentRow | RefundRow, now: datetime, lookup: NextLookup
) -> None:
    """Set when the gateway of a locked row is asked next.

    `now` is the begin of the transaction, by the database's clock.
    """
    if lookup == "keep":
        return
    if lookup != "at_expiry":
        row.lookup_count = 0
    if lookup == "never":
        row.next_lookup_at = None
    elif lookup == "now":
        row.next_lookup_at = now
        wake_after_commit(session)
    elif lookup == "soon":
        row.next_lookup_at = now + timedelta(seconds=FIRST_PAUSE)
    elif lookup == "later":
        row.next_lookup_at = now + timedelta(seconds=WAITING_PAUSE)
    elif isinstance(row, PaymentRow):
        _schedule_at_expiry(row, now)


def _schedule_at_expiry(row: PaymentRow, now: datetime) -> None:
    """Ask when the authorization ends; after that as the last look-up has set it."""
    if row.capture_before is None:
        row.next_lookup_at = None
    elif row.capture_before > now:
        row.next_lookup_at, row.lookup_count = row.capture_before, 0
    elif row.next_lookup_at is None:
        row.next_lookup_at = now + timedelta(seconds=FIRST_PAUSE)


def finish_lookup(session: Session, lease: Lease) -> None:
    """The look-up of a leased row has ended and changed nothing: set the next one.

    Leaves a row alone whose next look-up somebody has set meanwhile.
    """
    table = cast(sa.Table, lease.model.__table__)
    columns = table.c
    longest: Any = MAX_PAUSE
    if lease.model is Payment:
        longest = sa.case(
            (columns.needs_review, REVIEW_PAUSE), (_is_open(), MAX_PAUSE), else_=WAITING_PAUSE
        )
    pause = sa.func.least(
        sa.func.power(2, sa.func.least(columns.lookup_count - 1, MAX_DOUBLINGS)), longest
    )
    # In seconds since 1970: an interval that is made of columns may not be added to now() in an
    # UPDATE of a distributed table.
    next_at = sa.func.to_timestamp(sa.func.extract("epoch", NOW).cast(sa.Float) + pause)
    session.execute(
        sa.update(table)
        .where(
            columns.user_id == lease.user_id,
            columns.id == lease.id,
            columns.next_lookup_at == lease.until,
        )
        # One that was looked up before its time keeps its time.
        .values(
            next_lookup_at=sa.func.greatest(lease.due_at, next_at), updated_at=columns.updated_at
        )
    )


# What is due ------------------------------------------------------------------------------------


class Due(NamedTuple):
    """A row that may be looked up, as it was found; it may be taken by now."""

    model: LookedUp
    user_id: str
    id: int
    due_at: datetime


class Lease(NamedTuple):
    """A row that is ours to look up until a time."""

    model: LookedUp
    user_id: str
    id: int
    status: PaymentStatus | RefundStatus
    operation_key: str | None  # of payments
    due_at: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class DueWork:
    """The gateways with work that is due, switched on or not, and whether the sandbox has any."""

    lookups: dict[Lane, Sequence[str]]  # gateways
    comparisons: Sequence[str]  # gateways
    sandbox: bool


def find_due_work(session: orm.Session, sandbox: sa.ColumnElement[bool] | None) -> DueWork:
    """Find out what is due, with one statement that costs the same whatever the tables hold.

    `sandbox`: whether the sandbox gateway has something to do; None where it is switched off.
    """
    payments = _due_gateways("open_payments", PAYMENTS, _is_open())
    refunds = _due_gateways("open_refunds", REFUNDS, sa.true())
    waiting = _due_gateways("waiting_payments", PAYMENTS, sa.not_(_is_open()))
    comparisons = sa.select(COMPARISONS.c.gateway).where(COMPARISONS.c.next_at <= sa.func.now())
    row = session.execute(
        sa.select(
            _array(sa.union(payments, refunds)).label("open"),
            _array(waiting).label("waiting"),
            _array(comparisons).label("comparisons"),
            (sa.false() if sandbox is None else sandbox).label("sandbox"),
        )
    ).one()
    return DueWork({"open": row.open, "waiting": row.waiting}, row.comparisons, row.sandbox)


def _due_gateways(
    name: str, table: sa.Table, lane_is: sa.ColumnElement[bool]
) -> sa.Select[tuple[str]]:
    """The gateways whose earliest look-up is due; from gateway to gateway, as the index has them.

    The earliest is the first entry of an index. A plan for "any that is due" would depend on how
    many the statistics expect, and might read the whole table to find none.
    """
    gateway, next_lookup_at = table.c.gateway, table.c.next_lookup_at
    scheduled = sa.and_(next_lookup_at.is_not(None), lane_is)
    first = sa.select(sa.func.min(gateway).label("gateway")).where(scheduled)
    each = first.cte(name, recursive=True)
    following = sa.select(sa.func.min(gateway)).where(scheduled, gateway > each.c.gateway)
    every = each.union_all(
        sa.select(following.scalar_subquery()).where(each.c.gateway.is_not(None))
    )
    earliest = sa.select(sa.func.min(next_lookup_at)).where(lane_is, gateway == every.c.gateway)
    return sa.select(every.c.gateway).where(earliest.scalar_subquery() <= sa.func.now())


def _array(
    names: sa.Select[tuple[str]] | sa.CompoundSelect[tuple[str]],
) -> sa.ColumnElement[Sequence[str]]:
    return sa.func.array(names.scalar_subquery(), type_=ARRAY(sa.Text))


def find_due(
    session: Session,
    model: LookedUp,
    lane: Lane,
    gateway: str | None,
    enabled: Sequence[str],
    *,
    limit: int,
) -> list[Due]:
    """Rows that are due at a gateway, the longest due first; None: at all that are not enabled.

    Payments whose outcome is open and those that wait are found apart, so that ten thousand
    shoppers who are away keep nobody waiting.
    """
    columns = cast(sa.Table, model.__table__).c
    at = columns.gateway.not_in(enabled) if gateway is None else columns.gateway == gateway
    due = sa.and_(columns.next_lookup_at <= sa.func.now(), at)
    if model is Payment:
        due = sa.and_(due, _is_open() if lane == "open" else sa.not_(_is_open()))
    return _find(session, model, due, limit, columns.next_lookup_at)


def find_next_unsettled(
    session: Session, model: LookedUp, after_id: int, *, limit: int
) -> list[Due]:
    """The next rows by id that their gateways may know more about, due or not."""
    columns = cast(sa.Table, model.__table__).c
    unsettled = sa.and_(columns.next_lookup_at.is_not(None), columns.id > after_id)
    return _find(session, model, unsettled, limit, columns.id)


def _find(
    session: Session, model: LookedUp, which: sa.ColumnElement[bool], limit: int, order_by: Any
) -> list[Due]:
    columns = cast(sa.Table, model.__table__).c
    found = session.execute(
        sa.select(columns.user_id, columns.id, columns.next_lookup_at)
        .where(which)
        .order_by(order_by)
        .limit(limit)
    )
    return [Due(model, *row) for row in found]


def take(session: Session, due: Due, *, seconds: float) -> Lease | None:
    """Lease a row for so many seconds, if it is still as it was found.

    None if somebody else has it: they are not waited for (SKIP LOCKED), so any number of workers
    may do this at once.
    """
    table = cast(sa.Table, due.model.__table__)
    columns = table.c
    is_it = sa.and_(columns.user_id == due.user_id, columns.id == due.id)
    free = (
        sa.select(columns.id)
        .where(is_it, columns.next_lookup_at == due.due_at)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    operation_key = columns.operation_key if due.model is Payment else sa.null()
    row = session.execute(
        sa.update(table)
        .where(columns.user_id == due.user_id, columns.id == free)
        .values(
            lookup_count=columns.lookup_count + 1,
            next_lookup_at=seconds_from_now(seconds),
            updated_at=columns.updated_at,  # to its readers nothing has changed
        )
        .returning(columns.status, operation_key, columns.next_lookup_at)
    ).one_or_none()
    if row is None:
        return None
    status, key, until = row
    return Lease(due.model, due.user_id, due.id, status, key, due.due_at, until)


def _is_open() -> sa.ColumnElement[bool]:
    """Payments whose outcome is not known; as in the partial indexes for look-ups."""
    return sa.or_(PAYMENTS.c.status == "pending", PAYMENTS.c.operation.is_not(None))


# Comparisons --------------------------------------------------------------------------------------


class Window(NamedTuple):
    """The time whose changes are to be compared, and until when the comparison is leased."""

    since: datetime
    until: datetime
    leased_until: datetime


def claim_comparison(
    session: Session, gateway: str, *, first_window: timedelta, lease: float
) -> Window | None:
    """The window that is to be compared now. None if none is due.

    For `lease` seconds nobody else gets it.
    """
    session.execute(
        upsert(Comparison)
        .values(gateway=gateway, compared_until=sa.func.now() - first_window, next_at=sa.func.now())
        .on_conflict_do_nothing()
    )
    return read_one(
        session,
        Window,
        sa.update(COMPARISONS)
        .where(COMPARISONS.c.gateway == gateway, COMPARISONS.c.next_at <= sa.func.now())
        .values(next_at=seconds_from_now(lease))
        .returning(COMPARISONS.c.compared_until, sa.func.now(), COMPARISONS.c.next_at),
    )


def renew_comparison(
    session: Session, gateway: str, leased_until: datetime, *, lease: float
) -> datetime | None:
    """Hold on to a comparison that takes long; None if somebody else has it by now."""
    return session.execute(
        sa.update(COMPARISONS)
        .where(COMPARISONS.c.gateway == gateway, COMPARISONS.c.next_at == leased_until)
        .values(next_at=seconds_from_now(lease))
        .returning(COMPARISONS.c.next_at)
    ).scalar_one_or_none()


def finish_comparison(
    session: Session, gateway: str, leased_until: datetime, *, until: datetime, next_in: float
) -> None:
    """All until then has been compared; the next window is due in so many seconds."""
    session.execute(
        sa.update(COMPARISONS)
        .where(COMPARISONS.c.gateway == gateway, COMPARISONS.c.next_at == leased_until)
        .values(compared_until=until, next_at=seconds_from_now(next_in))
    )


class Aged(NamedTuple):
    """A payment that has come of an age to be read again."""

    created_at: datetime
    id: int
    user_id: str
    is_settled: bool  # it holds money, and no look-up is due by itself


def list_aged_payments(
    session: Session,
    gateway: str,
    since: datetime,
    until: datetime,
    after: Aged | None,
    *,
    limit: int,
) -> list[Aged]:
    """A page of the payments that were made between the two times, after the last one seen."""
    columns = PAYMENTS.c
    begin = (since, 0) if after is None else (after.created_at, after.id)
    query = (
        sa.select(columns.created_at, columns.id, columns.user_id, _is_settled())
        .where(
            columns.gateway == gateway,
            columns.created_at >= begin[0],  # for the index
            sa.tuple_(columns.created_at, columns.id) > sa.tuple_(*begin),
            columns.created_at < until,
        )
        .order_by(columns.created_at, columns.id)
        .limit(limit)
    )
    return read_all(session, Aged, query)


def schedule_reread(session: Session, user_id: str, payment_id: int) -> None:
    """Have a payment looked up now, unless that is due anyway."""
    columns = PAYMENTS.c
    taken = session.execute(
        sa.update(PAYMENTS)
        .where(columns.user_id == user_id, columns.id == payment_id, _is_settled())
        .values(next_lookup_at=sa.func.now(), lookup_count=0, updated_at=columns.updated_at)
        .returning(columns.id)
    )
    if taken.first() is not None:
        wake_after_commit(session)


def _is_settled() -> sa.ColumnElement[bool]:
    columns = PAYMENTS.c
    return sa.and_(
        columns.status.in_(HOLD_OR_HELD_MONEY),
        columns.operation.is_(None),
        sa.or_(columns.next_lookup_at.is_(None), columns.next_lookup_at > sa.func.now()),
    )


# Retention ----------------------------------------------------------------------------------------


def find_old_gateway_events(session: Session, days: int, limit: int) -> list[Old]:
    """Events that are older than any repeat of them: the oldest, at most so many.

    Each was applied in the transaction that stored it. An event that did come again would be
    applied again, and, as a hint, move nothing back.
    """
    is_old = GATEWAY_EVENTS.c.created_at < sa.func.now() - sa.func.make_interval(0, 0, 0, days)
    return find_old(session, GATEWAY_EVENTS, is_old, limit)
