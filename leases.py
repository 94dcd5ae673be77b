"""Who works on what: SQL that hands out look-ups and comparisons, so that each is done once.

The only place that turns "soon" or "at expiry" into a time, always by the database's clock. A
row that is taken is leased: for as long as its look-up may last nobody else takes it, and when
the look-up has ended the next one is set by how many there were."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal, cast

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    CompoundSelect,
    DateTime,
    Row,
    Select,
    Table,
    Text,
    and_,
    any_,
    case,
    delete,
    false,
    func,
    literal,
    not_,
    or_,
    select,
    true,
    tuple_,
    union,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session, object_session

from database import seconds_from_now, wake_after_commit
from domain.settlement import NextLookup
from domain.states import CAPTURED_PAYMENT_STATUSES
from models import Comparison, GatewayEvent, IdempotencyKey, Payment, Refund

Lane = Literal["open", "waiting"]

FIRST_PAUSE: Final = 5  # seconds before what has just moved is looked up
# Pauses double with each look-up: 1, 2, 4 … seconds, up to these.
MAX_PAUSE: Final = 300  # of what is open; a gateway that has been silent for an hour stays so
WAITING_PAUSE: Final = 3600  # of what waits: a shopper who is away, an authorization past its end
REVIEW_PAUSE: Final = 3600  # of what a person has been asked about
HOLD_OR_HELD_MONEY: Final = ("authorized", *CAPTURED_PAYMENT_STATUSES)
MAX_DOUBLINGS: Final = 20  # the power of two stays a number however often it is asked

COMPARISONS = cast(Table, Comparison.__table__)
PAYMENTS = cast(Table, Payment.__table__)
REFUNDS = cast(Table, Refund.__table__)
GATEWAY_EVENTS = cast(Table, GatewayEvent.__table__)


# When next --------------------------------------------------------------------------------------


def schedule_first_lookup(session: Session, row: Payment | Refund, seconds: float) -> None:
    """A request is about to be sent: look up what became of it in so many seconds."""
    row.requested_at = func.now()
    row.next_lookup_at = seconds_from_now(seconds)
    row.lookup_count = 0
    session.flush()


def schedule_lookup(row: Payment | Refund, lookup: NextLookup) -> None:
    """Set when the gateway of a locked row is asked next; the caller flushes."""
    if lookup == "keep":
        return
    if lookup != "at_expiry":
        row.lookup_count = 0
    if lookup == "never":
        row.next_lookup_at = None
    elif lookup == "now":
        row.next_lookup_at = func.now()
        session = object_session(row)
        assert session is not None  # that locked it
        wake_after_commit(session)
    elif lookup == "soon":
        row.next_lookup_at = seconds_from_now(FIRST_PAUSE)
    elif lookup == "later":
        row.next_lookup_at = seconds_from_now(WAITING_PAUSE)
    elif isinstance(row, Payment) and row.capture_before is None:
        row.next_lookup_at = None
    elif isinstance(row, Payment):  # at its expiry; after that as the last look-up has set it
        ends = literal(row.capture_before, DateTime(timezone=True))
        is_ahead = ends > func.now()
        kept = func.coalesce(Payment.next_lookup_at, seconds_from_now(FIRST_PAUSE))
        row.next_lookup_at = case((is_ahead, ends), else_=kept)
        row.lookup_count = case((is_ahead, 0), else_=Payment.lookup_count)


def finish_lookup(session: Session, model: type[Payment] | type[Refund], leased: Row[Any]) -> None:
    """The look-up of a leased row has ended and changed nothing: set the next one.

    Leaves a row alone whose next look-up somebody has set meanwhile.
    """
    table = cast(Table, model.__table__)
    columns = table.c
    longest: Any = MAX_PAUSE
    if model is Payment:
        longest = case(
            (columns.needs_review, REVIEW_PAUSE), (_is_open(), MAX_PAUSE), else_=WAITING_PAUSE
        )
    pause = func.least(func.power(2, func.least(columns.lookup_count - 1, MAX_DOUBLINGS)), longest)
    session.execute(
        update(table)
        .where(columns.id == leased.id, columns.next_lookup_at == leased.next_lookup_at)
        # One that was looked up before its time keeps its time.
        .values(
            next_lookup_at=func.greatest(leased.due_at, seconds_from_now(pause)),
            updated_at=columns.updated_at,
        )
    )


# What is due ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DueWork:
    """For whom there is something to do now. Gateways may be switched on or off."""

    lookups: dict[Lane, Sequence[str]]  # gateways
    comparisons: Sequence[str]  # gateways
    sandbox: bool


def find_due_work(session: Session, sandbox: ColumnElement[bool] | None) -> DueWork:
    """Find out what is due, with one statement that costs the same whatever the tables hold.

    `sandbox`: whether the sandbox gateway has something to do; None where it is switched off.
    """
    payments = _due_gateways("open_payments", PAYMENTS, _is_open())
    refunds = _due_gateways("open_refunds", REFUNDS, true())
    waiting = _due_gateways("waiting_payments", PAYMENTS, not_(_is_open()))
    comparisons = select(COMPARISONS.c.gateway).where(COMPARISONS.c.next_at <= func.now())
    row = session.execute(
        select(
            _array(union(payments, refunds)).label("open"),
            _array(waiting).label("waiting"),
            _array(comparisons).label("comparisons"),
            (false() if sandbox is None else sandbox).label("sandbox"),
        )
    ).one()
    return DueWork({"open": row.open, "waiting": row.waiting}, row.comparisons, row.sandbox)


def _due_gateways(name: str, table: Table, lane_is: ColumnElement[bool]) -> Select[tuple[str]]:
    """The gateways whose earliest look-up is due; from gateway to gateway, as the index has them.

    The earliest is the first entry of an index. A plan for "any that is due" would depend on how
    many the statistics expect, and might read the whole table to find none.
    """
    gateway, next_lookup_at = table.c.gateway, table.c.next_lookup_at
    scheduled = and_(next_lookup_at.is_not(None), lane_is)
    first = select(func.min(gateway).label("gateway")).where(scheduled)
    each = first.cte(name, recursive=True)
    following = select(func.min(gateway)).where(scheduled, gateway > each.c.gateway)
    every = each.union_all(select(following.scalar_subquery()).where(each.c.gateway.is_not(None)))
    earliest = select(func.min(next_lookup_at)).where(lane_is, gateway == every.c.gateway)
    return select(every.c.gateway).where(earliest.scalar_subquery() <= func.now())


def _array(names: Select[tuple[str]] | CompoundSelect[tuple[str]]) -> ColumnElement[Sequence[str]]:
    return func.array(names.scalar_subquery(), type_=ARRAY(Text))


def lease_due_payments(
    session: Session, lane: Lane, at_gateways: ColumnElement[bool], *, limit: int, lease: float
) -> Sequence[Row[Any]]:
    """Lease payments that are due, for so many seconds.

    Those whose outcome is open and those that wait are taken apart, so that ten thousand
    shoppers who are away keep nobody waiting. Others skip what is taken (SKIP LOCKED), so any
    number of workers may do this at once.
    """
    lane_is = _is_open() if lane == "open" else not_(_is_open())
    due = and_(PAYMENTS.c.next_lookup_at <= func.now(), lane_is, at_gateways)
    return _lease(session, PAYMENTS, due, limit, lease)


def lease_due_refunds(
    session: Session, at_gateways: ColumnElement[bool], *, limit: int, lease: float
) -> Sequence[Row[Any]]:
    """Lease refunds that are due; see `lease_due_payments`."""
    due = and_(REFUNDS.c.next_lookup_at <= func.now(), at_gateways)
    return _lease(session, REFUNDS, due, limit, lease)


def lease_next_unsettled(
    session: Session,
    model: type[Payment] | type[Refund],
    after_id: int,
    *,
    limit: int,
    lease: float,
) -> Sequence[Row[Any]]:
    """Lease the next rows by id that their gateways may know more about, due or not."""
    table = cast(Table, model.__table__)
    unsettled = and_(table.c.next_lookup_at.is_not(None), table.c.id > after_id)
    return _lease(session, table, unsettled, limit, lease, order_by=table.c.id)


def at_gateway(model: type[Payment] | type[Refund], name: str) -> ColumnElement[bool]:
    """Rows of this gateway."""
    return model.gateway == name


def at_other_gateways(
    model: type[Payment] | type[Refund], names: Sequence[str]
) -> ColumnElement[bool]:
    """Rows of gateways that are none of these: they are switched off."""
    return model.gateway.not_in(names)


def _is_open() -> ColumnElement[bool]:
    """Payments whose outcome is not known; as in the partial indexes for look-ups."""
    return or_(PAYMENTS.c.status == "pending", PAYMENTS.c.operation.is_not(None))


def _lease(
    session: Session,
    table: Table,
    which: ColumnElement[bool],
    limit: int,
    seconds: float,
    order_by: Any = None,
) -> Sequence[Row[Any]]:
    columns = table.c
    due = (
        select(columns.id, columns.next_lookup_at.label("due_at"))
        .where(which)
        .order_by(columns.next_lookup_at if order_by is None else order_by)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    return session.execute(
        update(table)
        .where(columns.id == due.c.id)
        .values(
            lookup_count=columns.lookup_count + 1,
            next_lookup_at=seconds_from_now(seconds),
            updated_at=columns.updated_at,  # to its readers nothing has changed
        )
        .returning(*columns, due.c.due_at)
    ).all()


# Comparisons --------------------------------------------------------------------------------------


def claim_comparison(
    session: Session, gateway: str, *, first_window: timedelta, lease: float
) -> Row[Any] | None:
    """The window that is to be compared now: `since` and `until`. None if none is due.

    For `lease` seconds nobody else gets it.
    """
    session.execute(
        upsert(Comparison)
        .values(gateway=gateway, compared_until=func.now() - first_window, next_at=func.now())
        .on_conflict_do_nothing()
    )
    window: Row[Any] | None = session.execute(
        update(COMPARISONS)
        .where(COMPARISONS.c.gateway == gateway, COMPARISONS.c.next_at <= func.now())
        .values(next_at=seconds_from_now(lease))
        .returning(
            *[
                COMPARISONS.c.compared_until.label("since"),
                func.now().label("until"),
                COMPARISONS.c.next_at.label("leased_until"),
            ]
        )
    ).one_or_none()
    return window


def renew_comparison(
    session: Session, gateway: str, leased_until: datetime, *, lease: float
) -> datetime | None:
    """Hold on to a comparison that takes long; None if somebody else has it by now."""
    return session.execute(
        update(COMPARISONS)
        .where(COMPARISONS.c.gateway == gateway, COMPARISONS.c.next_at == leased_until)
        .values(next_at=seconds_from_now(lease))
        .returning(COMPARISONS.c.next_at)
    ).scalar_one_or_none()


def finish_comparison(
    session: Session, gateway: str, leased_until: datetime, *, until: datetime, next_in: float
) -> None:
    """All until then has been compared; the next window is due in so many seconds."""
    session.execute(
        update(COMPARISONS)
        .where(COMPARISONS.c.gateway == gateway, COMPARISONS.c.next_at == leased_until)
        .values(compared_until=until, next_at=seconds_from_now(next_in))
    )


def schedule_rereads(
    session: Session,
    gateway: str,
    since: datetime,
    until: datetime,
    cursor: tuple[datetime, int] | None,
    *,
    limit: int,
) -> tuple[datetime, int] | None:
    """Have payments that were made between the two times looked up now, a page at a time.

    Returns where the next page begins; None after the last.
    """
    columns = PAYMENTS.c
    begin = (since, 0) if cursor is None else cursor
    page = session.execute(
        select(columns.id, columns.created_at)
        .where(
            columns.gateway == gateway,
            columns.created_at >= begin[0],  # for the index
            tuple_(columns.created_at, columns.id) > tuple_(*begin),
            columns.created_at < until,
        )
        .order_by(columns.created_at, columns.id)
        .limit(limit)
    ).all()
    taken = session.execute(
        update(PAYMENTS)
        .where(
            columns.id.in_([row.id for row in page]),
            columns.status.in_(HOLD_OR_HELD_MONEY),
            columns.operation.is_(None),
            or_(columns.next_lookup_at.is_(None), columns.next_lookup_at > func.now()),
        )
        .values(next_lookup_at=func.now(), lookup_count=0, updated_at=columns.updated_at)
        .returning(columns.id)
    )
    if taken.first() is not None:
        wake_after_commit(session)
    return (page[-1].created_at, page[-1].id) if len(page) == limit else None


# Idempotency keys ---------------------------------------------------------------------------------


KEY_TTL = timedelta(hours=72)  # a Friday deploy can be mended on Monday

KEYS = cast(Table, IdempotencyKey.__table__)
KEY_COLUMNS = list(KEYS.c)

# A key whose outcome is open does not expire: taken anew, it would move the money again.
_HAS_EXPIRED = and_(
    KEYS.c.created_at < func.now() - KEY_TTL,
    or_(KEYS.c.status.is_not(None), KEYS.c.gateway_key.is_(None)),
)


def claim_key(
    session: Session, user_id: str, key: str, *, fingerprint: str, request_id: str, seconds: float
) -> Row[Any] | None:
    """Own a key that is new or has expired. None when it is known."""
    fresh: dict[str, Any] = {
        "fingerprint": fingerprint,
        "owner": secrets.token_hex(16),
        "owned_until": seconds_from_now(seconds),
        "gateway_key": None,
        "request_id": request_id,
        "status": None,
        "headers": None,
        "body": None,
        "created_at": func.now(),
    }
    return session.execute(
        upsert(KEYS)
        .values(user_id=user_id, key=key, **fresh)
        .on_conflict_do_update(
            index_elements=["user_id", "key"],
            set_=fresh,
            where=_HAS_EXPIRED,
        )
        .returning(*KEY_COLUMNS)
    ).one_or_none()


def lock_key(session: Session, user_id: str, key: str) -> Row[Any] | None:
    """The key, locked, with `owned`: whether somebody works on it right now."""
    return session.execute(
        select(*[*KEY_COLUMNS, (KEYS.c.owned_until > func.now()).label("owned")])
        .where(KEYS.c.user_id == user_id, KEYS.c.key == key)
        .with_for_update()
    ).one_or_none()


def take_over_key(session: Session, key_id: int, seconds: float) -> Row[Any]:
    """Own a key whose owner is gone."""
    return session.execute(
        update(KEYS)
        .where(KEYS.c.id == key_id)
        .values(owner=secrets.token_hex(16), owned_until=seconds_from_now(seconds))
        .returning(*KEY_COLUMNS)
    ).one()


def link_key(session: Session, key_id: int, owner: str, *, gateway_key: str) -> bool:
    """Remember the money request that this one led to. False when the key has another owner."""
    linked = session.execute(
        update(KEYS)
        .where(KEYS.c.id == key_id, KEYS.c.owner == owner)
        .values(gateway_key=gateway_key)
        .returning(KEYS.c.id)
    )
    return linked.one_or_none() is not None


def list_waiting_keys(session: Session, gateway_key: str) -> Sequence[Row[Any]]:
    """The keys that wait for the outcome of this money request."""
    return session.execute(
        select(*KEY_COLUMNS).where(KEYS.c.gateway_key == gateway_key, KEYS.c.status.is_(None))
    ).all()


def get_stored_response(session: Session, key_id: int) -> Row[Any] | None:
    """The answer that is stored under a key, or None."""
    return session.execute(
        select(*[KEYS.c.status, KEYS.c.body, KEYS.c.headers]).where(
            KEYS.c.id == key_id, KEYS.c.status.is_not(None)
        )
    ).one_or_none()


def store_response(
    session: Session,
    key_id: int,
    *,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    owner: str | None = None,
) -> bool:
    """Keep the answer. False when it has one already, or when the key has another owner."""
    query = update(KEYS).where(KEYS.c.id == key_id, KEYS.c.status.is_(None))
    if owner is not None:
        query = query.where(KEYS.c.owner == owner)
    stored = session.execute(
        query.values(status=status, headers=dict(headers), body=body).returning(KEYS.c.id)
    )
    return stored.one_or_none() is not None


def release_key(session: Session, key_id: int, owner: str) -> None:
    """Stop working on a request: forget it if nothing came of it, else leave it to its repeats."""
    session.execute(
        delete(KEYS).where(
            KEYS.c.id == key_id,
            KEYS.c.owner == owner,
            KEYS.c.gateway_key.is_(None),
            KEYS.c.status.is_(None),
        )
    )
    session.execute(
        update(KEYS)
        .where(KEYS.c.id == key_id, KEYS.c.owner == owner)
        .values(owned_until=func.now())
    )


def delete_expired_keys(session: Session, limit: int) -> int:
    """Forget keys that have expired."""
    return delete_oldest(session, KEYS, _HAS_EXPIRED, limit)


# Retention ----------------------------------------------------------------------------------------


def delete_oldest(session: Session, table: Table, is_old: ColumnElement[bool], limit: int) -> int:
    """Delete rows that are old, the oldest first, at most so many; return how many.

    Others skip what is taken (SKIP LOCKED), so any number of workers may do this at once.
    """
    oldest = (
        select(table.c.id)
        .where(is_old)
        .order_by(table.c.created_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    # As an array it is read once; in a join it may be read again, and the limit with it.
    ids = func.array(oldest.scalar_subquery(), type_=ARRAY(BigInteger))
    deleted = session.execute(delete(table).where(table.c.id == any_(ids)).returning(table.c.id))
    return len(deleted.all())


def delete_old_gateway_events(session: Session, days: int, limit: int) -> int:
    """Forget events that are older than any repeat of them: the oldest, at most so many.

    Each was applied in the transaction that stored it. An event that did come again would be
    applied again, and, as a hint, move nothing back.
    """
    is_old = GATEWAY_EVENTS.c.created_at < func.now() - func.make_interval(0, 0, 0, days)
    return delete_oldest(session, GATEWAY_EVENTS, is_old, limit)
