"""The repository: every resource's rows, by small functions that never commit.

`get_x` returns a row or None, `require_x` a row or raises NotFound, `lock_x` holds the row until
the transaction ends; `show_x` and `list_x` return JSON as PostgreSQL writes it. What locks or
changes a row names its user: one transaction is about one user, and a row that is found without its
user is read first. `tests/database/test_statements.py` sees to it. `locks.py` has what money needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    BigInteger,
    Exists,
    ScalarSelect,
    Select,
    and_,
    bindparam,
    exists,
    func,
    or_,
    select,
    text,
    update,
)

import schemas
from database import age, read_all, read_one, seconds_from_now
from domain.events import Actor
from domain.states import DEAD_PAYMENT_STATUSES
from errors import IdempotencyInProgress, NotFound, PaymentMethodNotFound
from models import (
    LISTS_ALL,
    LISTS_BY_ONE_FILTER,
    LISTS_OF_USER,
    LISTS_OF_USER_BY_STATUS,
    OPEN_PAYMENT,
    OPEN_REFUND,
    Dispute,
    Event,
    Order,
    Payment,
    PaymentMethod,
    Refund,
    one_of,
)
from permissions import EVERYONE, VisibleTo
from rows import (
    OrderRow,
    PaymentAges,
    PaymentMethodRow,
    PaymentOfEvent,
    PaymentRow,
    RefundAges,
    RefundRow,
    columns_of,
)
from sessions import Session
from statements import (
    METHOD_LIST,
    NO_ROWS,
    ORDER_LIST,
    PAYMENT_LIST,
    PAYMENT_WIDTH,
    REFUND_LIST,
    Listed,
    Sender,
    Statement,
    given_of,
    is_id,
    list_of,
    page_by_time,
    page_of,
    possible_id,
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

METHODS = select(*[METHOD_COLUMNS[name] for name in PaymentMethodRow._fields])
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


# What is common -----------------------------------------------------------------------------------


def found(row: T | None) -> T:
    """The row. Raises NotFound for None."""
    if row is None:
        raise NotFound
    return row


# Payment methods ----------------------------------------------------------------------------------


# What the release before this one locks in the place of the row; the next release drops it.
LOCK_USER = Statement(
    "SELECT pg_advisory_xact_lock(hashtextextended(%(user_id)s, 0))", prepare=True
)
LOCK_FIRST_METHOD = Statement(
    "SELECT id FROM payment_methods WHERE user_id = %(user_id)s"
    " ORDER BY id LIMIT 1 FOR NO KEY UPDATE",
    prepare=True,
)
KNOWN_METHODS = Statement(
    """
    SELECT
        (SELECT id FROM payment_methods WHERE user_id = %(user_id)s
            AND fingerprint = ANY(%(fingerprints)s) AND is_active LIMIT 1),
        EXISTS (SELECT FROM payment_methods WHERE user_id = %(user_id)s
            AND is_active AND is_default),
        (SELECT gateway_customer FROM payment_methods WHERE user_id = %(user_id)s
            AND gateway = %(gateway)s AND gateway_customer IS NOT NULL ORDER BY id DESC LIMIT 1)""",
    prepare=True,
)
CREATE_METHOD = Statement(
    f"""
    INSERT INTO payment_methods AS m (
        user_id, payment_type, gateway, gateway_token, gateway_customer, fingerprint, details,
        is_default
    )
    VALUES (
        %(user_id)s, %(payment_type)s, %(gateway)s, %(gateway_token)s, %(gateway_customer)s,
        %(fingerprint)s, %(details)s, %(is_default)s
    )
    ON CONFLICT DO NOTHING RETURNING {METHOD_LIST}""",
    prepare=True,
)


class KnownMethods(NamedTuple):
    """What decides whether and how a user may save another method."""

    duplicate: int | None  # the id of an active method with one of these fingerprints
    has_default: bool
    gateway_customer: str | None  # the gateway's own id of this user, from their latest method


def lock_user(sender: Sender, user_id: str) -> None:
    """Let one transaction at a time change which methods a user has, and which is the default.

    The user's first method stands for all of them, for rows are never deleted. Of two who save a
    first one at once, the index of default methods lets one in (see `create_payment_method`).
    """
    sender.rows(LOCK_USER, user_id=user_id)
    sender.rows(LOCK_FIRST_METHOD, user_id=user_id)


def find_known_methods(
    sender: Sender, user_id: str, gateway: str, fingerprints: Sequence[str]
) -> KnownMethods:
    rows = sender.rows(
        KNOWN_METHODS, user_id=user_id, gateway=gateway, fingerprints=list(fingerprints)
    )
    return KnownMethods(*rows[0])


def create_payment_method(
    sender: Sender, *, details: Mapping[str, Any], **values: Any
) -> PaymentMethodRow | None:
    """Insert a method; None when the user already has an active one with its fingerprint, or a
    default one although this one was to be it."""
    rows = sender.rows(CREATE_METHOD, details=json.dumps(details), **values)
    return PaymentMethodRow(*rows[0]) if rows else None


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
    f"SELECT {METHOD_LIST} FROM payment_methods m WHERE m.user_id = %(user_id)s AND m.id = %(id)s",
    prepare=True,
)


def get_charged_payment_method(sender: Sender, payment: PaymentRow) -> PaymentMethodRow:
    """The method of a payment, whether or not its user has removed it since."""
    [row] = sender.rows(CHARGED_METHOD, user_id=payment.user_id, id=payment.payment_method_id)
    return PaymentMethodRow(*row)


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


def lock_payment_method(session: Session, method_id: int, user_id: str) -> PaymentMethod:
    """The user's active method. Raises NotFound."""
    query = select(PaymentMethod).where(
        PaymentMethod.user_id == user_id, PaymentMethod.id == method_id, PaymentMethod.is_active
    )
    return found(session.scalar(query.with_for_update()))


def show_payment_method(sender: Sender, method_id: int, visible_to: VisibleTo) -> str:
    """An active method as JSON. Raises NotFound."""
    return show(sender, ACTIVE_METHODS, PaymentMethod.__table__, method_id, visible_to)


def list_payment_methods(sender: Sender, query: schemas.PaymentMethodQuery, user_id: str) -> Listed:
    given = given_of(query, user_id)
    return list_of(sender, _payment_methods("cursor" in given), given)


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


# The Idempotency-Key of the request, if it has one; the order, if its method is an active one of
# its user; its event; and the answer, which the key keeps.
_CREATE_ORDER = f"""
    WITH {{key}} placed AS (
        INSERT INTO orders (
            user_id, product_id, quantity, total_amount, currency, payment_method_id, metadata,
            last_sequence
        )
        SELECT %(user_id)s, %(product_id)s, %(quantity)s, %(total_amount)s, %(currency)s,
            CAST(%(payment_method_id)s AS bigint), CAST(%(metadata)s AS jsonb), 1
        {{with_key}}
        WHERE CAST(%(payment_method_id)s AS bigint) IS NULL OR EXISTS (
            SELECT FROM payment_methods
            WHERE user_id = %(user_id)s AND id = %(payment_method_id)s AND is_active
        )
        RETURNING *
    ), shown AS ({shown_of("placed", schemas.Order)}), told AS (
        INSERT INTO events (type, user_id, order_id, sequence, actor, request_id, data)
        SELECT 'order.created', user_id, id, 1, CAST(%(actor)s AS jsonb), %(request_id)s,
            to_jsonb(shown)
        FROM shown
    ), answer AS (SELECT id, row_to_json(shown)::text AS body FROM shown) {{stored}}
    SELECT {{is_owned}}, answer.id, answer.body FROM (VALUES (1)) AS one LEFT JOIN answer ON true"""
CREATE_ORDER = Statement(
    _CREATE_ORDER.format(key="", with_key="", stored="", is_owned="true"), prepare=True
)
CREATE_ORDER_FOR_KEY = Statement(
    _CREATE_ORDER.format(
        key="""key AS (
        SELECT FROM idempotency_keys
        WHERE user_id = %(key_user_id)s AND key = %(key)s AND owner = %(key_owner)s
            AND status IS NULL
        FOR UPDATE
    ),""",
        with_key="FROM key",
        stored=""", stored AS (
        UPDATE idempotency_keys SET status = 201, body = convert_to(answer.body, 'UTF8'),
            headers = jsonb_build_object(
                'Content-Type', 'application/json', 'Location', '/orders/' || answer.id
            )
        FROM answer
        WHERE idempotency_keys.user_id = %(key_user_id)s AND idempotency_keys.key = %(key)s
    )""",
        is_owned="EXISTS (SELECT FROM key)",
    ),
    prepare=True,
)


def create_order(
    sender: Sender,
    data: schemas.OrderCreate,
    *,
    user_id: str,
    currency: str,
    actor: Actor,
    request_id: str,
    key: Mapping[str, Any] | None,
) -> tuple[int, str]:
    """Place an order, with its event, and answer the request with this key: the order's id, and the
    order as JSON.

    Raises PaymentMethodNotFound when its payment method is not an active one of the same user, and
    IdempotencyInProgress when somebody else works on the key.
    """
    method_id = data.payment_method_id
    if method_id is not None and not is_id(method_id):
        raise PaymentMethodNotFound
    [(is_owned, order_id, body)] = sender.rows(
        CREATE_ORDER if key is None else CREATE_ORDER_FOR_KEY,
        user_id=user_id,
        product_id=data.product_id,
        quantity=data.quantity,
        total_amount=data.total_amount,
        currency=currency,
        payment_method_id=method_id,
        metadata=json.dumps(data.metadata),
        actor=json.dumps(actor),
        request_id=request_id,
        **(key or {}),
    )
    if not is_owned:
        raise IdempotencyInProgress
    if order_id is None:
        raise PaymentMethodNotFound
    return order_id, body


ORDER = Statement(f"SELECT {ORDER_LIST} FROM orders o WHERE o.id = %(id)s", prepare=True)
ORDER_OF_USER = Statement(f"{ORDER.sql} AND o.user_id = %(user_id)s", prepare=True)


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


def show_order(sender: Sender, order_id: int, visible_to: VisibleTo) -> str:
    """An order as JSON. Raises NotFound."""
    return show(sender, SHOWN_ORDERS, Order.__table__, order_id, visible_to)


def list_orders(sender: Sender, query: schemas.OrderQuery, visible_to: VisibleTo) -> Listed:
    """The orders of one user, or of everybody."""
    if query.payment_method_id is not None and not is_id(query.payment_method_id):
        return NO_ROWS
    given = given_of(query, visible_to)
    return list_of(sender, _orders(frozenset(given)), given)


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


PAYMENT = Statement(f"SELECT {PAYMENT_LIST} FROM payments p WHERE p.id = %(id)s", prepare=True)
PAYMENT_OF_USER = Statement(f"{PAYMENT.sql} AND p.user_id = %(user_id)s", prepare=True)


def get_payment(sender: Sender, payment_id: int, visible_to: VisibleTo) -> PaymentRow | None:
    row = _visible(sender, PAYMENT, PAYMENT_OF_USER, payment_id, visible_to)
    return None if row is None else PaymentRow(*row)


def require_payment(sender: Sender, payment_id: int, visible_to: VisibleTo) -> PaymentRow:
    return found(get_payment(sender, payment_id, visible_to))


def show_payment(sender: Sender, payment_id: int, visible_to: VisibleTo) -> str:
    """A payment as JSON. Raises NotFound."""
    return show(sender, SHOWN_PAYMENTS, Payment.__table__, payment_id, visible_to)


def list_payments(sender: Sender, query: schemas.PaymentQuery, visible_to: VisibleTo) -> Listed:
    """The payments of one user, or of everybody."""
    if query.order_id is not None and not is_id(query.order_id):
        return NO_ROWS
    given = given_of(query, visible_to)
    return list_of(sender, _payments(frozenset(given), query.needs_review), given)


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
    SELECT {PAYMENT_LIST}, o.status, EXISTS (
        SELECT FROM gateway_events WHERE gateway = %(gateway)s AND event_id = %(event_id)s
    ) OR EXISTS (
        SELECT FROM gateway_events WHERE gateway = %(gateway)s AND delivery_id = %(delivery_id)s
    )
    FROM payments p JOIN orders o ON o.user_id = p.user_id AND o.id = p.order_id
    WHERE p.gateway = %(gateway)s"""
PAYMENT_OF_ID = Statement(f"{_OF_GATEWAY} AND p.id = %(id)s", prepare=True)
PAYMENT_OF_REFERENCE = Statement(
    f"{_OF_GATEWAY} AND p.gateway_reference = %(reference)s", prepare=True
)


def find_payment_of_event(
    sender: Sender,
    gateway: str,
    payment_id: int | None,
    reference: str | None,
    event_id: str | None = None,
    delivery_id: str | None = None,
) -> PaymentOfEvent | None:
    """The payment that a gateway means: by our id if it knows it, or else by its reference."""
    event = {"gateway": gateway, "event_id": event_id, "delivery_id": delivery_id}
    if payment_id is not None:
        rows = sender.rows(PAYMENT_OF_ID, **event, id=possible_id(payment_id))
    elif reference is not None:
        rows = sender.rows(PAYMENT_OF_REFERENCE, **event, reference=reference)
    else:
        rows = []  # NULL would match payments whose reference we have not heard yet
    return PaymentOfEvent(PaymentRow(*rows[0][:-2]), *rows[0][-2:]) if rows else None


def find_payment(
    sender: Sender, gateway: str, payment_id: int | None, reference: str | None
) -> PaymentRow | None:
    """The payment that a gateway means."""
    found = find_payment_of_event(sender, gateway, payment_id, reference)
    return None if found is None else found.payment


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


BLOCKING_DISPUTE = Statement(
    "SELECT id FROM disputes WHERE user_id = %(user_id)s AND payment_id = %(payment_id)s"
    " AND status IN ('open', 'lost') ORDER BY id DESC LIMIT 1"
)


def get_blocking_dispute(sender: Sender, payment: PaymentRow) -> int | None:
    """The id of a dispute of this payment that is open or lost: its money goes back, or may."""
    rows = sender.rows(BLOCKING_DISPUTE, user_id=payment.user_id, payment_id=payment.id)
    return rows[0][0] if rows else None


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


REFUND_OF_REFERENCE = Statement(
    f"""
    SELECT {REFUND_LIST} FROM refunds r WHERE r.user_id = %(user_id)s
    AND r.payment_id = %(payment_id)s AND r.gateway_reference = %(reference)s""",
    prepare=True,
)


def get_refund_of_reference(
    sender: Sender, payment: PaymentRow, reference: str
) -> RefundRow | None:
    """The refund of this payment that its gateway calls so."""
    rows = sender.rows(
        REFUND_OF_REFERENCE, user_id=payment.user_id, payment_id=payment.id, reference=reference
    )
    return RefundRow(*rows[0]) if rows else None


def show_refund(sender: Sender, user_id: str, payment_id: int, refund_id: int) -> str:
    """A refund of this payment as JSON. Raises NotFound."""
    return show(
        sender, REFUNDS_OF_PAYMENT, Refund.__table__, refund_id, user_id, payment_id=payment_id
    )


def list_refunds(sender: Sender, user_id: str, payment_id: int, page: schemas.Page) -> Listed:
    given = given_of(page, user_id)
    return list_of(sender, _refunds("cursor" in given), given | {"payment_id": payment_id})


@cache
def _refunds(cursor: bool) -> Statement:
    refunds = REFUNDS_OF_PAYMENT.where(REFUND_COLUMNS.user_id == bindparam("user_id"))
    return page_of(refunds, "id", cursor=cursor)


# Disputes -----------------------------------------------------------------------------------------


def show_dispute(sender: Sender, dispute_id: int) -> str:
    """The dispute, with its payment's order, as JSON. Raises NotFound."""
    return show(sender, SHOWN_DISPUTES, Dispute.__table__, dispute_id, EVERYONE)


def list_disputes(sender: Sender, query: schemas.DisputeQuery) -> Listed:
    """Disputes, each with its payment's order."""
    if query.payment_id is not None and not is_id(query.payment_id):
        return NO_ROWS
    given = given_of(query)
    return list_of(sender, _disputes(frozenset(given)), given)


@cache
def _disputes(given: frozenset[str]) -> Statement:
    rows = SHOWN_DISPUTES
    if "payment_id" in given:
        rows = rows.where(DISPUTE_COLUMNS.payment_id == bindparam("payment_id"))
    if "status" in given:
        rows = rows.where(DISPUTE_COLUMNS.status == bindparam("status"))
    return page_by_time(rows, Dispute.__table__, of_user=False, cursor="cursor" in given)


# Events -------------------------------------------------------------------------------------------


def list_order_events(sender: Sender, user_id: str, order_id: int, page: schemas.Page) -> Listed:
    """The order's history; its sequence is the cursor."""
    given = given_of(page, user_id)
    return list_of(sender, _order_events("cursor" in given), given | {"order_id": order_id})


@cache
def _order_events(cursor: bool) -> Statement:
    events = SHOWN_EVENTS.where(
        EVENT_COLUMNS.user_id == bindparam("user_id"),
        EVENT_COLUMNS.order_id == bindparam("order_id"),
    )
    return page_of(events, "sequence", cursor=cursor)


# Events of gateways -------------------------------------------------------------------------------


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
