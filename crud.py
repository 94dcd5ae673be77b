"""The repository: every resource's rows, by small functions that flush and never commit.

`get_x` returns a row or None, `require_x` a row or raises NotFound, `lock_x` holds the row until
the transaction ends. What locks or changes a row names its user: one transaction is about one
user, and a row that is found without its user is read first. `tests/test_statements.py` sees to it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, TypeVar, cast

from sqlalchemy import (
    BigInteger,
    Exists,
    ScalarSelect,
    Select,
    Table,
    and_,
    bindparam,
    exists,
    func,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

import schemas
from database import Session, age, read_all, read_one, seconds_from_now
from domain.events import Actor, EventType
from domain.states import DEAD_PAYMENT_STATUSES, CaptureMethod, RefundOrigin
from errors import NotFound
from models import (
    LISTS_ALL,
    LISTS_BY_ONE_FILTER,
    LISTS_OF_USER,
    LISTS_OF_USER_BY_STATUS,
    OPEN_PAYMENT,
    OPEN_REFUND,
    Dispute,
    Event,
    GatewayEvent,
    Order,
    Payment,
    PaymentMethod,
    Refund,
    one_of,
)
from permissions import EVERYONE, VisibleTo
from rows import (
    DisputeRow,
    OrderRow,
    Payable,
    PaymentAges,
    PaymentMethodRow,
    PaymentRow,
    RefundAges,
    RefundRow,
    columns_of,
)
from schemas import MAX_ID
from statements import (
    Listed,
    Sender,
    Statement,
    given_of,
    page_by_time,
    page_of,
    show,
    shown,
    shown_of,
)

T = TypeVar("T")

METHOD_COLUMNS = PaymentMethod.__table__.c
ORDER_COLUMNS = Order.__table__.c
PAYMENT_COLUMNS = Payment.__table__.c
REFUND_COLUMNS = Refund.__table__.c
DISPUTE_COLUMNS = Dispute.__table__.c
EVENT_COLUMNS = Event.__table__.c
GATEWAY_EVENTS = cast(Table, GatewayEvent.__table__)

METHODS = select(*[METHOD_COLUMNS[name] for name in PaymentMethodRow._fields])
ORDERS = select(*[ORDER_COLUMNS[name] for name in columns_of(OrderRow)])
PAYMENTS = select(*[PAYMENT_COLUMNS[name] for name in columns_of(PaymentRow)])
REFUNDS = select(*[REFUND_COLUMNS[name] for name in columns_of(RefundRow)])


ACTIVE_METHODS = shown(METHOD_COLUMNS, schemas.PaymentMethod).where(METHOD_COLUMNS.is_active)
SHOWN_ORDERS = shown(ORDER_COLUMNS, schemas.Order, metadata=Order.metadata_)
SHOWN_PAYMENTS = shown(
    PAYMENT_COLUMNS,
    schemas.Payment,
    # The rest is for those who run the store.
    failure=PAYMENT_COLUMNS.failure.op("-")("gateway_code").op("-")("retryable"),
)
REFUNDS_OF_PAYMENT = shown(REFUND_COLUMNS, schemas.Refund).where(
    REFUND_COLUMNS.payment_id == bindparam("payment_id")
)
SHOWN_DISPUTES = shown(
    DISPUTE_COLUMNS, schemas.DisputeDetails, order_id=PAYMENT_COLUMNS.order_id
).join(
    PAYMENT_COLUMNS.id.table,
    and_(
        PAYMENT_COLUMNS.user_id == DISPUTE_COLUMNS.user_id,
        PAYMENT_COLUMNS.id == DISPUTE_COLUMNS.payment_id,
    ),
)
SHOWN_EVENTS = shown(EVENT_COLUMNS, schemas.Event)


# Lists of columns -------------------------------------------------------------------------------


def listed(kind: type, columns: Any, alias: str) -> str:
    """The columns of a row, as SQL lists them."""
    return ", ".join(f"{alias}.{columns[name].name}" for name in columns_of(kind))


def listed_method(alias: str) -> str:
    return ", ".join(f"{alias}.{name}" for name in PaymentMethodRow._fields)


ORDER_LIST = listed(OrderRow, ORDER_COLUMNS, "o")
PAYMENT_LIST = listed(PaymentRow, PAYMENT_COLUMNS, "p")
REFUND_LIST = listed(RefundRow, REFUND_COLUMNS, "r")
DISPUTE_LIST = listed(DisputeRow, DISPUTE_COLUMNS, "d")
ORDER_WIDTH = len(columns_of(OrderRow))
PAYMENT_WIDTH = len(columns_of(PaymentRow))


# What is common -----------------------------------------------------------------------------------


def is_id(value: int | None) -> bool:
    """Whether a row can have this id; PostgreSQL refuses to compare with larger numbers."""
    return value is not None and 0 < value <= MAX_ID


def possible_id(value: int) -> int | None:
    """The id, or NULL, which is no row's, for what cannot be one."""
    return value if is_id(value) else None


def found(row: T | None) -> T:
    """The row. Raises NotFound for None."""
    if row is None:
        raise NotFound
    return row


# Payment methods ----------------------------------------------------------------------------------


# Reads bypass the ORM's identity map: a row is read once, shown and forgotten.


def lock_user(session: Session, user_id: str) -> None:
    """Let one transaction at a time change which methods a user has, and which is the default.

    The user's first method stands for all of them, for rows are never deleted. Of two who save a
    first one at once, the index of default methods lets one in (see `create_payment_method`).
    """
    # The release before this one locks this key instead; the next one drops it.
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(user_id, 0))))
    first = select(METHOD_COLUMNS.id).where(METHOD_COLUMNS.user_id == user_id)
    session.execute(first.order_by(METHOD_COLUMNS.id).limit(1).with_for_update(key_share=True))


def find_payment_method(session: Session, user_id: str, fingerprints: Sequence[str]) -> int | None:
    """The id of the user's active method with one of these fingerprints."""
    return session.scalar(
        select(METHOD_COLUMNS.id).where(
            METHOD_COLUMNS.user_id == user_id,
            METHOD_COLUMNS.fingerprint.in_(fingerprints),
            METHOD_COLUMNS.is_active,
        )
    )


def create_payment_method(session: Session, **values: Any) -> PaymentMethod | None:
    """Insert a method; None when the user already has an active one with its fingerprint, or a
    default one although this one was to be it."""
    return session.scalar(
        upsert(PaymentMethod).values(**values).on_conflict_do_nothing().returning(PaymentMethod)
    )


def get_payment_method(
    session: Session, method_id: int, visible_to: VisibleTo
) -> PaymentMethodRow | None:
    """An active method that is visible to this caller."""
    if not is_id(method_id):
        return None
    query = METHODS.where(METHOD_COLUMNS.id == method_id, METHOD_COLUMNS.is_active)
    if visible_to is not EVERYONE:
        query = query.where(METHOD_COLUMNS.user_id == visible_to)
    return read_one(session, PaymentMethodRow, query)


def require_payment_method(
    session: Session, method_id: int, visible_to: VisibleTo
) -> PaymentMethodRow:
    return found(get_payment_method(session, method_id, visible_to))


def is_method_of(method_id: Any, user_id: Any) -> Exists:
    """The condition that a method, active or not, is this user's. It is looked up once."""
    return exists().where(METHOD_COLUMNS.id == method_id, METHOD_COLUMNS.user_id == user_id)


CHARGED_METHOD = Statement(
    f"SELECT {listed_method('m')} FROM payment_methods m"
    " WHERE m.user_id = %(user_id)s AND m.id = %(id)s"
)


def get_charged_payment_method(sender: Sender, payment: PaymentRow) -> PaymentMethodRow:
    """The method of a payment, whether or not its user has removed it since."""
    [row] = sender.rows(CHARGED_METHOD, user_id=payment.user_id, id=payment.payment_method_id)
    return PaymentMethodRow(*row)


def get_gateway_customer(session: Session, user_id: str, gateway: str) -> str | None:
    """The gateway's own id of this user, from the latest method that has one."""
    return session.scalar(
        select(METHOD_COLUMNS.gateway_customer)
        .where(
            METHOD_COLUMNS.user_id == user_id,
            METHOD_COLUMNS.gateway == gateway,
            METHOD_COLUMNS.gateway_customer.is_not(None),
        )
        .order_by(METHOD_COLUMNS.id.desc())
        .limit(1)
    )


def is_token_of_another(session: Session, gateway: str, token: str, user_id: str) -> bool:
    """Whether another user has, or had, a method with this token."""
    found = session.scalar(
        select(METHOD_COLUMNS.id)
        .where(
            METHOD_COLUMNS.gateway == gateway,
            METHOD_COLUMNS.gateway_token == token,
            METHOD_COLUMNS.user_id != user_id,
        )
        .limit(1)
    )
    return found is not None


def list_methods_of_token(session: Session, gateway: str, token: str) -> list[PaymentMethodRow]:
    """The active methods behind a gateway's token."""
    query = METHODS.where(
        METHOD_COLUMNS.gateway == gateway,
        METHOD_COLUMNS.gateway_token == token,
        METHOD_COLUMNS.is_active,
    )
    return read_all(session, PaymentMethodRow, query)


def get_default_payment_method(session: Session, user_id: str) -> PaymentMethodRow | None:
    query = METHODS.where(
        METHOD_COLUMNS.user_id == user_id, METHOD_COLUMNS.is_active, METHOD_COLUMNS.is_default
    )
    return read_one(session, PaymentMethodRow, query)


def lock_payment_method(session: Session, method_id: int, user_id: str) -> PaymentMethod:
    """The user's active method. Raises NotFound."""
    query = select(PaymentMethod).where(
        PaymentMethod.user_id == user_id, PaymentMethod.id == method_id, PaymentMethod.is_active
    )
    return found(session.scalar(query.with_for_update()))


def show_payment_method(sender: Sender, method_id: int, visible_to: VisibleTo) -> str:
    """An active method as JSON. Raises NotFound."""
    return show(sender, ACTIVE_METHODS, PaymentMethod.__table__, method_id, visible_to)


def list_payment_methods(
    sender: Sender, query: schemas.PaymentMethodQuery, user_id: str
) -> list[Listed]:
    given = given_of(query, user_id)
    return sender.rows(_payment_methods("cursor" in given), **given)


@cache
def _payment_methods(cursor: bool) -> Statement:
    methods = ACTIVE_METHODS.where(METHOD_COLUMNS.user_id == bindparam("user_id"))
    return page_of(methods, "id", cursor=cursor)


def clear_default_payment_method(session: Session, user_id: str) -> PaymentMethod | None:
    """Take the default away from the method that has it, and return that method."""
    return session.scalar(
        update(PaymentMethod)
        .where(PaymentMethod.user_id == user_id, PaymentMethod.is_active, PaymentMethod.is_default)
        .values(is_default=False)
        .returning(PaymentMethod)
    )


def promote_newest_payment_method(session: Session, user_id: str) -> PaymentMethod | None:
    """Make the user's newest active method the default one."""
    newest = (
        select(func.max(METHOD_COLUMNS.id))
        .where(METHOD_COLUMNS.user_id == user_id, METHOD_COLUMNS.is_active)
        .scalar_subquery()
    )
    return session.scalar(
        update(PaymentMethod)
        .where(PaymentMethod.user_id == user_id, PaymentMethod.id == newest)
        .values(is_default=True)
        .returning(PaymentMethod)
    )


# Orders -------------------------------------------------------------------------------------------


# The order, if its method is an active one of its user, and its event.
CREATE_ORDER = Statement(
    f"""
    WITH placed AS (
        INSERT INTO orders (
            user_id, product_id, quantity, total_amount, currency, payment_method_id, metadata,
            last_sequence
        )
        SELECT %(user_id)s, %(product_id)s, %(quantity)s, %(total_amount)s, %(currency)s,
            CAST(%(payment_method_id)s AS bigint), CAST(%(metadata)s AS jsonb), 1
        WHERE %(payment_method_id)s IS NULL OR EXISTS (
            SELECT FROM payment_methods
            WHERE user_id = %(user_id)s AND id = %(payment_method_id)s AND is_active
        )
        RETURNING *
    ), shown AS ({shown_of("placed", schemas.Order)}), told AS (
        INSERT INTO events (type, user_id, order_id, sequence, actor, request_id, data)
        SELECT 'order.created', user_id, id, 1, CAST(%(actor)s AS jsonb), %(request_id)s,
            to_jsonb(shown)
        FROM shown
    )
    SELECT row_to_json(shown)::text, id FROM shown"""
)


def create_order(
    sender: Sender,
    data: schemas.OrderCreate,
    *,
    user_id: str,
    currency: str,
    actor: Actor,
    request_id: str,
) -> Listed | None:
    """Place an order, with its event; the order as JSON, and its id.

    None when its payment method is not an active one of the same user.
    """
    method_id = data.payment_method_id
    if method_id is not None and not is_id(method_id):
        return None
    rows = sender.rows(
        CREATE_ORDER,
        user_id=user_id,
        product_id=data.product_id,
        quantity=data.quantity,
        total_amount=data.total_amount,
        currency=currency,
        payment_method_id=method_id,
        metadata=json.dumps(data.metadata),
        actor=json.dumps(actor),
        request_id=request_id,
    )
    return rows[0] if rows else None


ORDER = Statement(f"SELECT {ORDER_LIST} FROM orders o WHERE o.id = %(id)s")
ORDER_OF_USER = Statement(f"{ORDER.sql} AND o.user_id = %(user_id)s")


def require_order(sender: Sender, order_id: int, visible_to: VisibleTo) -> OrderRow:
    rows = _visible(sender, ORDER, ORDER_OF_USER, order_id, visible_to)
    return OrderRow(*found(rows))


def _visible(
    sender: Sender, of_id: Statement, of_user: Statement, row_id: int, visible_to: VisibleTo
) -> Any:
    """The row with this id, if it is visible to this caller."""
    if not is_id(row_id):
        return None
    if visible_to is EVERYONE:
        rows = sender.rows(of_id, id=row_id)
    else:
        rows = sender.rows(of_user, id=row_id, user_id=visible_to)
    return rows[0] if rows else None


LOCK_ORDER = Statement(
    f"SELECT now(), {ORDER_LIST} FROM orders o"
    " WHERE o.user_id = %(user_id)s AND o.id = %(id)s FOR UPDATE"
)


def lock_order(sender: Sender, user_id: str, order_id: int) -> tuple[datetime, OrderRow]:
    """The order, locked, and when this transaction began. Raises NotFound."""
    rows = sender.rows(LOCK_ORDER, user_id=user_id, id=possible_id(order_id))
    if not rows:
        raise NotFound
    [(now, *order)] = rows
    return now, OrderRow(*order)


def show_order(sender: Sender, order_id: int, visible_to: VisibleTo) -> str:
    """An order as JSON. Raises NotFound."""
    return show(sender, SHOWN_ORDERS, Order.__table__, order_id, visible_to)


def list_orders(sender: Sender, query: schemas.OrderQuery, visible_to: VisibleTo) -> list[Listed]:
    """The orders of one user, or of everybody."""
    if query.payment_method_id is not None and not is_id(query.payment_method_id):
        return []
    given = given_of(query, visible_to)
    return sender.rows(_orders(frozenset(given)), **given)


@cache
def _orders(given: frozenset[str]) -> Statement:
    rows = SHOWN_ORDERS
    condition: str | None = LISTS_ALL
    if "status" in given:
        rows = rows.where(ORDER_COLUMNS.status == bindparam("status"))
        condition = LISTS_BY_ONE_FILTER
    if "created_after" in given:
        rows = rows.where(ORDER_COLUMNS.created_at > bindparam("created_after"))
    if "payment_method_id" in given:
        method_id = bindparam("payment_method_id", type_=BigInteger)
        rows = rows.where(ORDER_COLUMNS.payment_method_id == method_id)
        condition = None if "status" in given else LISTS_BY_ONE_FILTER
        if "user_id" in given:  # all orders of a method are its user's
            rows = rows.where(is_method_of(method_id, bindparam("user_id")))
    elif "user_id" in given:
        rows = rows.where(ORDER_COLUMNS.user_id == bindparam("user_id"))
        condition = LISTS_OF_USER_BY_STATUS if "status" in given else LISTS_OF_USER
    return page_by_time(
        rows,
        Order.__table__,
        condition=condition,
        of_user="user_id" in given,
        cursor="cursor" in given,
        before="created_before" in given,
    )


# Payments -----------------------------------------------------------------------------------------


ANSWER_IS_DUE = 3600  # seconds in which a look-up finds nearly every charge


# Dead payments are those of DEAD_PAYMENT_STATUSES; the unique index of live ones says the same.
_PAYABLE = f"""
    SELECT {ORDER_LIST}, {PAYMENT_LIST}, {listed_method("m")}
    FROM orders o
    LEFT JOIN payments p ON p.user_id = o.user_id AND p.order_id = o.id
        AND NOT ({one_of("p.status", DEAD_PAYMENT_STATUSES)})
    LEFT JOIN payment_methods m ON m.user_id = o.user_id AND m.is_active AND CASE
        WHEN coalesce(CAST(%(method_id)s AS bigint), o.payment_method_id) IS NULL THEN m.is_default
        ELSE m.id = coalesce(CAST(%(method_id)s AS bigint), o.payment_method_id) END
    WHERE o.id = %(id)s"""
PAYABLE = Statement(_PAYABLE)
PAYABLE_OF_USER = Statement(f"{_PAYABLE} AND o.user_id = %(user_id)s")


def find_payable(
    sender: Sender, order_id: int, visible_to: VisibleTo, method_id: int | None
) -> Payable:
    """The order, if it is visible to this caller, its live payment, and the method to charge: the
    one with this id, or else the order's, or else the user's default one. Raises NotFound."""
    given = {
        "id": possible_id(order_id),
        "method_id": method_id if method_id is None or is_id(method_id) else 0,  # no method's
    }
    if visible_to is EVERYONE:
        rows = sender.rows(PAYABLE, **given)
    else:
        rows = sender.rows(PAYABLE_OF_USER, **given, user_id=visible_to)
    if not rows:
        raise NotFound
    row = rows[0]
    live, method = row[ORDER_WIDTH:][:PAYMENT_WIDTH], row[ORDER_WIDTH + PAYMENT_WIDTH :]
    return Payable(
        OrderRow(*row[:ORDER_WIDTH]),
        PaymentRow(*live) if live[0] is not None else None,
        PaymentMethodRow(*method) if method[0] is not None else None,
    )


# The Idempotency-Key of the request, if it has one; the order, if it can be paid still; then the
# payment, for which the key waits from now on.
_CLAIM_PAYMENT = f"""
    WITH {{key}} payable AS (
        SELECT user_id, id, total_amount, currency FROM orders
        WHERE user_id = %(user_id)s AND id = %(order_id)s AND status = 'pending'
        FOR UPDATE
    ), claimed AS (
        INSERT INTO payments AS p (
            user_id, order_id, amount, currency, payment_method_id, gateway, gateway_key,
            capture_method, return_url, off_session, check_at
        )
        SELECT payable.*, %(method_id)s, %(gateway)s, %(gateway_key)s, %(capture_method)s,
            %(return_url)s, %(off_session)s, now() + make_interval(secs => %(lookup_after)s)
        FROM payable {{with_key}}
        ON CONFLICT DO NOTHING
        RETURNING {PAYMENT_LIST}
    ) {{linked}}
    SELECT claimed.* FROM claimed"""
CLAIM_PAYMENT = Statement(_CLAIM_PAYMENT.format(key="", with_key="", linked=""))
CLAIM_PAYMENT_FOR_KEY = Statement(
    _CLAIM_PAYMENT.format(
        key="""key AS (
        SELECT FROM idempotency_keys
        WHERE user_id = %(key_user_id)s AND key = %(key)s AND owner = %(key_owner)s
        FOR UPDATE
    ),""",
        with_key=", key",
        linked=""", linked AS (
        UPDATE idempotency_keys SET gateway_key = %(gateway_key)s FROM claimed
        WHERE idempotency_keys.user_id = %(key_user_id)s AND idempotency_keys.key = %(key)s
    )""",
    )
)


def claim_payment(
    sender: Sender,
    order: OrderRow,
    method: PaymentMethodRow,
    *,
    capture_method: CaptureMethod,
    return_url: str,
    off_session: bool,
    lookup_after: float,
    key: Mapping[str, Any] | None,
) -> PaymentRow | None:
    """Claim the one live payment that an order can have, for the request with this key.

    None when the order cannot be paid any more, or somebody else works on the key.
    `lookup_after`: seconds until the gateway is asked what became of it, if nobody settled it.
    """
    rows = sender.rows(
        CLAIM_PAYMENT if key is None else CLAIM_PAYMENT_FOR_KEY,
        user_id=order.user_id,
        order_id=order.id,
        method_id=method.id,
        gateway=method.gateway,
        gateway_key=str(uuid.uuid4()),
        capture_method=capture_method,
        return_url=return_url,
        off_session=off_session,
        lookup_after=lookup_after,
        **(key or {}),
    )
    return PaymentRow(*rows[0]) if rows else None


def require_payment_to_look_up(
    session: Session, user_id: str, payment_id: int
) -> tuple[PaymentRow, PaymentAges]:
    """The payment, and how old it and its open request are."""
    looked_at = func.greatest(PAYMENT_COLUMNS.requested_at, PAYMENT_COLUMNS.reviewed_at)
    row = session.execute(
        PAYMENTS.add_columns(
            age(PAYMENT_COLUMNS.created_at),
            age(PAYMENT_COLUMNS.requested_at),
            age(looked_at),
            age(PAYMENT_COLUMNS.reviewed_at),
        ).where(PAYMENT_COLUMNS.user_id == user_id, PAYMENT_COLUMNS.id == payment_id)
    ).one()
    return PaymentRow(*row[:PAYMENT_WIDTH]), PaymentAges(*row[PAYMENT_WIDTH:])


LIVE_PAYMENT = Statement(
    f"SELECT {PAYMENT_LIST} FROM payments p"
    " WHERE p.user_id = %(user_id)s AND p.order_id = %(order_id)s"
    f" AND NOT ({one_of('p.status', DEAD_PAYMENT_STATUSES)})"
)


def get_live_payment(sender: Sender, user_id: str, order_id: int) -> PaymentRow | None:
    """The payment of this order that holds, took or may yet take money."""
    rows = sender.rows(LIVE_PAYMENT, user_id=user_id, order_id=order_id)
    return PaymentRow(*rows[0]) if rows else None


PAYMENT = Statement(f"SELECT {PAYMENT_LIST} FROM payments p WHERE p.id = %(id)s")
PAYMENT_OF_USER = Statement(f"{PAYMENT.sql} AND p.user_id = %(user_id)s")


def get_payment(sender: Sender, payment_id: int, visible_to: VisibleTo) -> PaymentRow | None:
    row = _visible(sender, PAYMENT, PAYMENT_OF_USER, payment_id, visible_to)
    return None if row is None else PaymentRow(*row)


def require_payment(sender: Sender, payment_id: int, visible_to: VisibleTo) -> PaymentRow:
    return found(get_payment(sender, payment_id, visible_to))


# The rows are locked in this sequence; another one could deadlock.
LOCK_PAYMENT = Statement(
    f"""
    SELECT now(), {ORDER_LIST}, {PAYMENT_LIST}
    FROM orders o JOIN payments p ON p.user_id = o.user_id AND p.order_id = o.id
    WHERE o.user_id = %(user_id)s AND o.id = %(order_id)s AND p.id = %(id)s
    FOR UPDATE OF o, p"""
)


def lock_payment(
    sender: Sender, user_id: str, order_id: int, payment_id: int
) -> tuple[datetime, OrderRow, PaymentRow]:
    """The order, then this payment of it, locked, and when this transaction began.

    Payments and refunds are only ever locked after their order. Raises NotFound.
    """
    rows = sender.rows(LOCK_PAYMENT, user_id=user_id, order_id=order_id, id=payment_id)
    if not rows:
        raise NotFound
    row = rows[0]
    end = 1 + ORDER_WIDTH
    return row[0], OrderRow(*row[1:end]), PaymentRow(*row[end:])


def show_payment(sender: Sender, payment_id: int, visible_to: VisibleTo) -> str:
    """A payment as JSON. Raises NotFound."""
    return show(sender, SHOWN_PAYMENTS, Payment.__table__, payment_id, visible_to)


def list_payments(
    sender: Sender, query: schemas.PaymentQuery, visible_to: VisibleTo
) -> list[Listed]:
    """The payments of one user, or of everybody."""
    if query.order_id is not None and not is_id(query.order_id):
        return []
    given = given_of(query, visible_to)
    return sender.rows(_payments(frozenset(given), query.needs_review), **given)


@cache
def _payments(given: frozenset[str], needs_review: bool | None) -> Statement:
    rows = SHOWN_PAYMENTS
    condition: str | None = LISTS_ALL
    if "status" in given:
        rows = rows.where(PAYMENT_COLUMNS.status == bindparam("status"))
        condition = LISTS_BY_ONE_FILTER
    if "user_id" in given:
        rows = rows.where(PAYMENT_COLUMNS.user_id == bindparam("user_id"))
        condition = LISTS_OF_USER_BY_STATUS if "status" in given else LISTS_OF_USER
    if "order_id" in given:  # an order has few payments, and
        rows, condition = rows.where(PAYMENT_COLUMNS.order_id == bindparam("order_id")), None
    if needs_review is True:  # few need a review: these indexes do, whatever else is asked
        rows, condition = rows.where(PAYMENT_COLUMNS.needs_review), None
    elif needs_review is False:
        rows = rows.where(~PAYMENT_COLUMNS.needs_review)
    return page_by_time(
        rows,
        Payment.__table__,
        condition=condition,
        of_user="user_id" in given,
        cursor="cursor" in given,
    )


_OF_GATEWAY = f"""
    SELECT {PAYMENT_LIST}, EXISTS (
        SELECT FROM gateway_events WHERE gateway = %(gateway)s AND event_id = %(event_id)s
    ) OR EXISTS (
        SELECT FROM gateway_events WHERE gateway = %(gateway)s AND delivery_id = %(delivery_id)s
    )
    FROM payments p WHERE p.gateway = %(gateway)s"""
PAYMENT_OF_ID = Statement(f"{_OF_GATEWAY} AND p.id = %(id)s")
PAYMENT_OF_REFERENCE = Statement(f"{_OF_GATEWAY} AND p.gateway_reference = %(reference)s")


def find_payment_of_event(
    sender: Sender,
    gateway: str,
    payment_id: int | None,
    reference: str | None,
    event_id: str | None = None,
    delivery_id: str | None = None,
) -> tuple[PaymentRow | None, bool]:
    """The payment that a gateway means, by our id if it knows it, or else by its reference; and
    whether this event was stored, or came in a delivery that was."""
    event = {"gateway": gateway, "event_id": event_id, "delivery_id": delivery_id}
    if payment_id is not None:
        rows = sender.rows(PAYMENT_OF_ID, **event, id=possible_id(payment_id))
    elif reference is not None:
        rows = sender.rows(PAYMENT_OF_REFERENCE, **event, reference=reference)
    else:
        rows = []  # NULL would match payments whose reference we have not heard yet
    return (PaymentRow(*rows[0][:-1]), rows[0][-1]) if rows else (None, False)


def find_payment(
    sender: Sender, gateway: str, payment_id: int | None, reference: str | None
) -> PaymentRow | None:
    """The payment that a gateway means."""
    return find_payment_of_event(sender, gateway, payment_id, reference)[0]


def is_other_payments_reference(session: Session, payment: PaymentRow, reference: str) -> bool:
    """Whether another payment at the same gateway has this reference."""
    found = find_payment(session, payment.gateway, None, reference)
    return found is not None and found.id != payment.id


def has_unreferenced_payment(session: Session, gateway: str) -> bool:
    """Whether this gateway has been asked for a charge whose reference we have not heard yet."""
    found = session.scalar(
        select(PAYMENT_COLUMNS.id)
        .where(
            PAYMENT_COLUMNS.status == "pending",
            PAYMENT_COLUMNS.gateway == gateway,
            PAYMENT_COLUMNS.gateway_reference.is_(None),
            # One that is never found must not let events be refused for ever.
            PAYMENT_COLUMNS.created_at > seconds_from_now(-ANSWER_IS_DUE),
        )
        .limit(1)
    )
    return found is not None


def get_payment_of_key(session: Session, gateway_key: str) -> PaymentRow | None:
    """The payment whose charge, capture or void carries this key."""
    is_key = or_(
        PAYMENT_COLUMNS.gateway_key == gateway_key, PAYMENT_COLUMNS.operation_key == gateway_key
    )
    return read_one(session, PaymentRow, PAYMENTS.where(is_key))


def count_open(session: Session, at_most: int | None = None) -> int:
    """Payments and refunds whose outcome is not known: asked, and not answered.

    Of each at most so many are counted, and only those are read.
    """
    payments = select(PAYMENT_COLUMNS.id).where(text(OPEN_PAYMENT)).limit(at_most)
    refunds = select(Refund.id).where(text(OPEN_REFUND)).limit(at_most)
    return session.scalar(select(_number_of(payments) + _number_of(refunds))) or 0


def count_needs_review(session: Session, at_most: int | None = None) -> int:
    rows = select(PAYMENT_COLUMNS.id).where(PAYMENT_COLUMNS.needs_review).limit(at_most)
    return session.scalar(select(_number_of(rows))) or 0


def _number_of(rows: Select[Any]) -> ScalarSelect[int]:
    return select(func.count()).select_from(rows.subquery()).scalar_subquery()


# Refunds ------------------------------------------------------------------------------------------


OPEN_REFUND_OF_PAYMENT = Statement(
    f"""
    INSERT INTO refunds AS r (
        user_id, payment_id, gateway, gateway_key, amount, currency, reason, origin, check_at
    )
    VALUES (
        %(user_id)s, %(payment_id)s, %(gateway)s, %(gateway_key)s, %(amount)s, %(currency)s,
        %(reason)s, %(origin)s, now() + make_interval(secs => %(lookup_after)s)
    )
    RETURNING {REFUND_LIST}"""
)


def open_refund(
    sender: Sender,
    payment: PaymentRow,
    *,
    amount: int,
    reason: str | None,
    lookup_after: float,
    origin: RefundOrigin = "service",
) -> RefundRow:
    """Reserve the amount. The payment is locked, and the caller has checked what is left of it;
    a trigger, which counts it, and a CHECK refuse more than was captured all the same."""
    [row] = sender.rows(
        OPEN_REFUND_OF_PAYMENT,
        user_id=payment.user_id,
        payment_id=payment.id,
        gateway=payment.gateway,
        gateway_key=str(uuid.uuid4()),
        amount=amount,
        currency=payment.currency,
        reason=reason,
        origin=origin,
        lookup_after=lookup_after,
    )
    payment.refund_reserved += amount
    return RefundRow(*row)


BLOCKING_DISPUTE = Statement(
    "SELECT id FROM disputes WHERE user_id = %(user_id)s AND payment_id = %(payment_id)s"
    " AND status IN ('open', 'lost') ORDER BY id DESC LIMIT 1"
)


def get_blocking_dispute(sender: Sender, payment: PaymentRow) -> int | None:
    """The id of a dispute of this payment that is open or lost: its money goes back, or may."""
    rows = sender.rows(BLOCKING_DISPUTE, user_id=payment.user_id, payment_id=payment.id)
    return rows[0][0] if rows else None


_LOCK_REFUNDS = f"""
    SELECT {REFUND_LIST} FROM refunds r
    WHERE r.user_id = %(user_id)s AND r.payment_id = %(payment_id)s AND {{which}} FOR UPDATE"""
LOCK_REFUND = Statement(_LOCK_REFUNDS.format(which="r.id = %(id)s"))
LOCK_REFUND_OF_REFERENCE = Statement(
    _LOCK_REFUNDS.format(which="r.gateway_reference = %(reference)s")
)
LOCK_PENDING_REFUNDS = Statement(_LOCK_REFUNDS.format(which="r.status = 'pending' ORDER BY r.id"))


def lock_refund(sender: Sender, user_id: str, payment_id: int, refund_id: int) -> RefundRow | None:
    """The refund, locked, if it is one of this payment."""
    of_payment = {"user_id": user_id, "payment_id": payment_id}
    rows = sender.rows(LOCK_REFUND, **of_payment, id=possible_id(refund_id))
    return RefundRow(*rows[0]) if rows else None


def lock_refund_of_state(
    sender: Sender, payment: PaymentRow, reference: str, refund_id: int | None
) -> RefundRow | None:
    """The refund of this payment that its gateway means, locked: the one that it calls so, or
    else the one whose id of ours it shows."""
    user_id, payment_id = payment.user_id, payment.id
    rows = sender.rows(
        LOCK_REFUND_OF_REFERENCE, user_id=user_id, payment_id=payment_id, reference=reference
    )
    if rows:
        return RefundRow(*rows[0])
    return None if refund_id is None else lock_refund(sender, user_id, payment_id, refund_id)


def lock_pending_refunds(sender: Sender, payment: PaymentRow) -> list[RefundRow]:
    """The refunds of this payment that are not settled, locked."""
    of_payment = {"user_id": payment.user_id, "payment_id": payment.id}
    return [RefundRow(*row) for row in sender.rows(LOCK_PENDING_REFUNDS, **of_payment)]


def require_refund_to_look_up(
    session: Session, user_id: str, refund_id: int
) -> tuple[RefundRow, RefundAges]:
    """The refund, and how long it has been open."""
    looked_at = func.greatest(REFUND_COLUMNS.requested_at, PAYMENT_COLUMNS.reviewed_at)
    row = session.execute(
        REFUNDS.add_columns(age(REFUND_COLUMNS.requested_at), age(looked_at))
        .join(
            PAYMENT_COLUMNS.id.table,
            and_(
                PAYMENT_COLUMNS.user_id == REFUND_COLUMNS.user_id,
                PAYMENT_COLUMNS.id == REFUND_COLUMNS.payment_id,
            ),
        )
        .where(REFUND_COLUMNS.user_id == user_id, REFUND_COLUMNS.id == refund_id)
    ).one()
    return RefundRow(*row[:-2]), RefundAges(*row[-2:])


def get_refund_of_key(session: Session, gateway_key: str) -> RefundRow | None:
    return read_one(session, RefundRow, REFUNDS.where(REFUND_COLUMNS.gateway_key == gateway_key))


def show_refund(sender: Sender, user_id: str, payment_id: int, refund_id: int) -> str:
    """A refund of this payment as JSON. Raises NotFound."""
    return show(
        sender, REFUNDS_OF_PAYMENT, Refund.__table__, refund_id, user_id, payment_id=payment_id
    )


def list_refunds(sender: Sender, user_id: str, payment_id: int, page: schemas.Page) -> list[Listed]:
    given = given_of(page, user_id)
    return sender.rows(_refunds("cursor" in given), **given, payment_id=payment_id)


@cache
def _refunds(cursor: bool) -> Statement:
    refunds = REFUNDS_OF_PAYMENT.where(REFUND_COLUMNS.user_id == bindparam("user_id"))
    return page_of(refunds, "id", cursor=cursor)


# Disputes -----------------------------------------------------------------------------------------


ADD_DISPUTE = Statement(
    f"""
    INSERT INTO disputes AS d (
        user_id, payment_id, gateway, gateway_reference, status, amount, currency, reason,
        evidence_due_at
    )
    VALUES (
        %(user_id)s, %(payment_id)s, %(gateway)s, %(gateway_reference)s, %(status)s, %(amount)s,
        %(currency)s, %(reason)s, %(evidence_due_at)s
    )
    ON CONFLICT DO NOTHING RETURNING {DISPUTE_LIST}"""
)
LOCK_DISPUTE = Statement(
    f"""
    SELECT {DISPUTE_LIST} FROM disputes d WHERE d.user_id = %(user_id)s
    AND d.gateway = %(gateway)s AND d.gateway_reference = %(gateway_reference)s
    FOR UPDATE"""
)


def add_dispute(
    sender: Sender,
    payment: PaymentRow,
    gateway_reference: str,
    *,
    status: str,
    amount: int,
    currency: str,
    reason: str,
    evidence_due_at: datetime | None = None,
) -> DisputeRow | None:
    """Write down a dispute; None when it is known already."""
    rows = sender.rows(
        ADD_DISPUTE,
        user_id=payment.user_id,
        payment_id=payment.id,
        gateway=payment.gateway,
        gateway_reference=gateway_reference,
        status=status,
        amount=amount,
        currency=currency,
        reason=reason,
        evidence_due_at=evidence_due_at,
    )
    return DisputeRow(*rows[0]) if rows else None


def lock_dispute(
    sender: Sender, user_id: str, gateway: str, gateway_reference: str
) -> DisputeRow | None:
    """The dispute, locked; None for another user's: no gateway gives two one reference."""
    rows = sender.rows(
        LOCK_DISPUTE, user_id=user_id, gateway=gateway, gateway_reference=gateway_reference
    )
    return DisputeRow(*rows[0]) if rows else None


def show_dispute(sender: Sender, dispute_id: int) -> str:
    """The dispute, with its payment's order, as JSON. Raises NotFound."""
    return show(sender, SHOWN_DISPUTES, Dispute.__table__, dispute_id, EVERYONE)


def list_disputes(sender: Sender, query: schemas.DisputeQuery) -> list[Listed]:
    """Disputes, each with its payment's order."""
    if query.payment_id is not None and not is_id(query.payment_id):
        return []
    given = given_of(query)
    return sender.rows(_disputes(frozenset(given)), **given)


@cache
def _disputes(given: frozenset[str]) -> Statement:
    rows = SHOWN_DISPUTES
    if "payment_id" in given:
        rows = rows.where(DISPUTE_COLUMNS.payment_id == bindparam("payment_id"))
    if "status" in given:
        rows = rows.where(DISPUTE_COLUMNS.status == bindparam("status"))
    return page_by_time(rows, Dispute.__table__, of_user=False, cursor="cursor" in given)


# Events -------------------------------------------------------------------------------------------


def event_values(
    event_type: EventType,
    *,
    user_id: str,
    actor: Actor,
    request_id: str | None,
    data: Mapping[str, Any],
    order: OrderRow | None = None,
) -> dict[str, Any]:
    """An event, by the names of its columns.

    It is written with the change that it reports. With a locked order its sequence is the order's
    `last_sequence`, which the change has counted up already.
    """
    return {
        "type": event_type,
        "user_id": user_id,
        "order_id": order.id if order is not None else None,
        "sequence": order.last_sequence if order is not None else None,
        "actor": actor,
        "request_id": request_id,
        "data": data,
    }


def list_order_events(
    sender: Sender, user_id: str, order_id: int, page: schemas.Page
) -> list[Listed]:
    """The order's history; its sequence is the cursor."""
    given = given_of(page, user_id)
    return sender.rows(_order_events("cursor" in given), **given, order_id=order_id)


@cache
def _order_events(cursor: bool) -> Statement:
    events = SHOWN_EVENTS.where(
        EVENT_COLUMNS.user_id == bindparam("user_id"),
        EVENT_COLUMNS.order_id == bindparam("order_id"),
    )
    return page_of(events, "sequence", cursor=cursor)


# Events of gateways -------------------------------------------------------------------------------


def gateway_event_values(
    gateway: str,
    event_id: str,
    event_type: str,
    delivery_id: str | None = None,
    payment: PaymentRow | None = None,
) -> dict[str, Any]:
    """An event of a gateway, by the names of its columns. Each is stored once, and so is each
    delivery."""
    return {
        "gateway": gateway,
        "event_id": event_id,
        "delivery_id": delivery_id,
        "type": event_type,
        "user_id": payment.user_id if payment is not None else None,
        "payment_id": payment.id if payment is not None else None,
    }


IS_KNOWN_EVENT = Statement(
    "SELECT FROM gateway_events WHERE gateway = %(gateway)s AND event_id = %(event_id)s"
)
IS_KNOWN_DELIVERY = Statement(
    "SELECT FROM gateway_events WHERE gateway = %(gateway)s AND delivery_id = %(delivery_id)s"
)


def is_known_event(sender: Sender, gateway: str, event_id: str) -> bool:
    """Whether this event was stored."""
    return bool(sender.rows(IS_KNOWN_EVENT, gateway=gateway, event_id=event_id))


def is_known_delivery(sender: Sender, gateway: str, delivery_id: str) -> bool:
    """Whether an event of this delivery was stored."""
    return bool(sender.rows(IS_KNOWN_DELIVERY, gateway=gateway, delivery_id=delivery_id))
