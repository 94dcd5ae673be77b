"""The repository: every resource's rows, by small functions that flush and never commit.

`get_x` returns a row or None, `require_x` a row or raises NotFound, `lock_x` holds the row until
the transaction ends. What locks or changes a row names its user: one transaction is about one
user, and a row that is found without its user is read first. `tests/test_statements.py` sees to it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Exists,
    ScalarSelect,
    Select,
    and_,
    bindparam,
    exists,
    func,
    insert,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

import schemas
from database import age, read_all, read_one, seconds_from_now
from domain.events import Actor, EventType
from domain.states import DEAD_PAYMENT_STATUSES, CaptureMethod, RefundOrigin
from errors import NotFound
from models import (
    OPEN_PAYMENT,
    OPEN_REFUND,
    Dispute,
    Event,
    GatewayEvent,
    Order,
    Payment,
    PaymentMethod,
    Refund,
)
from permissions import EVERYONE, VisibleTo
from rows import (
    OrderRow,
    PaymentAges,
    PaymentMethodRow,
    PaymentRow,
    RefundAges,
    RefundRow,
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

METHODS = select(*[METHOD_COLUMNS[name] for name in PaymentMethodRow._fields])
ORDERS = select(*[ORDER_COLUMNS[name] for name in OrderRow._fields])
PAYMENTS = select(*[PAYMENT_COLUMNS[name] for name in PaymentRow._fields])
REFUNDS = select(*[REFUND_COLUMNS[name] for name in RefundRow._fields])


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


def locked(query: Select[T]) -> Select[T]:
    """Hold the rows until the transaction ends, as they are now."""
    return query.with_for_update().execution_options(populate_existing=True)


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


def get_charged_payment_method(session: Session, payment: Payment | PaymentRow) -> PaymentMethodRow:
    """The method of a payment, whether or not its user has removed it since."""
    query = METHODS.where(
        METHOD_COLUMNS.user_id == payment.user_id, METHOD_COLUMNS.id == payment.payment_method_id
    )
    return PaymentMethodRow._make(session.execute(query).one())


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
    SELECT row_to_json(shown)::text, id FROM shown"""  # noqa: S608 - names of columns
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


def require_order(session: Session, order_id: int, visible_to: VisibleTo) -> OrderRow:
    query = ORDERS.where(ORDER_COLUMNS.id == possible_id(order_id))
    if visible_to is not EVERYONE:
        query = query.where(ORDER_COLUMNS.user_id == visible_to)
    return found(read_one(session, OrderRow, query))


def lock_order(session: Session, user_id: str, order_id: int) -> Order:
    """The order, locked. Payments and refunds are only ever locked after it. Raises NotFound."""
    query = select(Order).where(Order.user_id == user_id, Order.id == possible_id(order_id))
    return found(session.scalar(locked(query)))


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
    rows, filters = SHOWN_ORDERS, 0
    if "status" in given:
        rows, filters = rows.where(ORDER_COLUMNS.status == bindparam("status")), filters + 1
    if "created_after" in given:
        rows = rows.where(ORDER_COLUMNS.created_at > bindparam("created_after"))
    if "payment_method_id" in given:
        method_id = bindparam("payment_method_id", type_=BigInteger)
        rows, filters = rows.where(ORDER_COLUMNS.payment_method_id == method_id), filters + 1
        if "user_id" in given:  # all orders of a method are its user's
            rows = rows.where(is_method_of(method_id, bindparam("user_id")))
    elif "user_id" in given:
        rows, filters = rows.where(ORDER_COLUMNS.user_id == bindparam("user_id")), filters + 1
    return page_by_time(
        rows,
        Order.__table__,
        filters=filters,
        of_user="user_id" in given,
        cursor="cursor" in given,
        before="created_before" in given,
    )


# Payments -----------------------------------------------------------------------------------------


ANSWER_IS_DUE = 3600  # seconds in which a look-up finds nearly every charge


def open_payment(
    session: Session,
    order: Order,
    method: PaymentMethodRow,
    *,
    capture_method: CaptureMethod,
    return_url: str,
    off_session: bool,
    lookup_after: float,
) -> Payment | None:
    """Claim the one live payment that an order can have; None when it has one already.

    `lookup_after`: seconds until the gateway is asked what became of it, if nobody settled it.
    """
    return session.scalar(
        upsert(Payment)
        .values(
            order_id=order.id,
            user_id=order.user_id,
            payment_method_id=method.id,
            gateway=method.gateway,
            gateway_key=str(uuid.uuid4()),
            amount=order.total_amount,
            currency=order.currency,
            capture_method=capture_method,
            return_url=return_url,
            off_session=off_session,
            next_lookup_at=seconds_from_now(lookup_after),
        )
        .on_conflict_do_nothing()
        .returning(Payment)
    )


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
    width = len(PaymentRow._fields)
    return PaymentRow._make(row[:width]), PaymentAges._make(row[width:])


def get_live_payment(session: Session, user_id: str, order_id: int) -> PaymentRow | None:
    """The payment of this order that holds, took or may yet take money."""
    query = PAYMENTS.where(
        PAYMENT_COLUMNS.user_id == user_id,
        PAYMENT_COLUMNS.order_id == order_id,
        PAYMENT_COLUMNS.status.not_in(DEAD_PAYMENT_STATUSES),
    )
    return read_one(session, PaymentRow, query)


def get_payment(session: Session, payment_id: int, visible_to: VisibleTo) -> PaymentRow | None:
    if not is_id(payment_id):
        return None
    query = PAYMENTS.where(PAYMENT_COLUMNS.id == payment_id)
    if visible_to is not EVERYONE:
        query = query.where(PAYMENT_COLUMNS.user_id == visible_to)
    return read_one(session, PaymentRow, query)


def require_payment(session: Session, payment_id: int, visible_to: VisibleTo) -> PaymentRow:
    return found(get_payment(session, payment_id, visible_to))


def lock_payment(session: Session, user_id: str, payment_id: int) -> Payment:
    """The payment, locked; its order was locked before it. Raises NotFound."""
    query = select(Payment).where(Payment.user_id == user_id, Payment.id == payment_id)
    return found(session.scalar(locked(query)))


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
    rows, filters = SHOWN_PAYMENTS, 0
    if "user_id" in given:
        rows, filters = rows.where(PAYMENT_COLUMNS.user_id == bindparam("user_id")), filters + 1
    if "status" in given:
        rows, filters = rows.where(PAYMENT_COLUMNS.status == bindparam("status")), filters + 1
    if "order_id" in given:  # an order has few payments, and
        rows, filters = rows.where(PAYMENT_COLUMNS.order_id == bindparam("order_id")), filters + 2
    if needs_review is True:  # few need a review: these indexes do, whatever else is asked
        rows, filters = rows.where(PAYMENT_COLUMNS.needs_review), filters + 2
    elif needs_review is False:
        rows = rows.where(~PAYMENT_COLUMNS.needs_review)
    return page_by_time(
        rows,
        Payment.__table__,
        filters=filters,
        of_user="user_id" in given,
        cursor="cursor" in given,
    )


def find_payment(
    session: Session, gateway: str, payment_id: int | None, reference: str | None
) -> PaymentRow | None:
    """The payment that a gateway means: by our id if it knows it, or else by its reference."""
    if payment_id is None and reference is None:
        return None  # NULL would match payments whose reference we have not heard yet
    query = PAYMENTS.where(PAYMENT_COLUMNS.gateway == gateway)
    if payment_id is not None:
        query = query.where(PAYMENT_COLUMNS.id == payment_id)
    else:
        query = query.where(PAYMENT_COLUMNS.gateway_reference == reference)
    return read_one(session, PaymentRow, query)


def is_other_payments_reference(session: Session, payment: Payment, reference: str) -> bool:
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


def open_refund(
    session: Session,
    payment: Payment,
    *,
    amount: int,
    reason: str | None,
    lookup_after: float,
    origin: RefundOrigin = "service",
) -> Refund:
    """Reserve the amount. The payment is locked, and the caller has checked what is left of it;
    a trigger and a CHECK refuse more than was captured all the same."""
    refund = session.scalars(
        insert(Refund)
        .values(
            user_id=payment.user_id,
            payment_id=payment.id,
            gateway=payment.gateway,
            gateway_key=str(uuid.uuid4()),
            amount=amount,
            currency=payment.currency,
            reason=reason,
            origin=origin,
            next_lookup_at=seconds_from_now(lookup_after),
        )
        .returning(Refund)
    ).one()
    session.refresh(payment, ["refund_reserved"])
    return refund


def get_blocking_dispute(session: Session, payment: Payment) -> int | None:
    """The id of a dispute of this payment that is open or lost: its money goes back, or may."""
    return session.scalar(
        select(Dispute.id)
        .where(
            Dispute.user_id == payment.user_id,
            Dispute.payment_id == payment.id,
            Dispute.status.in_(("open", "lost")),
        )
        .order_by(Dispute.id.desc())
        .limit(1)
    )


def lock_refund(session: Session, user_id: str, payment_id: int, refund_id: int) -> Refund | None:
    """The refund, locked, if it is one of this payment."""
    of_payment = _refunds_to_lock(user_id, payment_id)
    return session.scalar(of_payment.where(Refund.id == possible_id(refund_id)))


def lock_refund_of_state(
    session: Session, payment: Payment, reference: str, refund_id: int | None
) -> Refund | None:
    """The refund of this payment that its gateway means, locked: the one that it calls so, or
    else the one whose id of ours it shows."""
    of_payment = _refunds_to_lock(payment.user_id, payment.id)
    named = session.scalar(of_payment.where(Refund.gateway_reference == reference))
    if named is not None or refund_id is None:
        return named
    return lock_refund(session, payment.user_id, payment.id, refund_id)


def lock_pending_refunds(session: Session, payment: Payment) -> Sequence[Refund]:
    """The refunds of this payment that are not settled, locked."""
    of_payment = _refunds_to_lock(payment.user_id, payment.id)
    return session.scalars(of_payment.where(Refund.status == "pending").order_by(Refund.id)).all()


def _refunds_to_lock(user_id: str, payment_id: int) -> Select[Refund]:
    return locked(select(Refund).where(Refund.user_id == user_id, Refund.payment_id == payment_id))


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
    return RefundRow._make(row[:-2]), RefundAges._make(row[-2:])


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


def save_dispute(
    session: Session,
    *,
    user_id: str,
    payment_id: int,
    gateway: str,
    gateway_reference: str,
    status: str,
    amount: int,
    currency: str,
    reason: str,
    evidence_due_at: datetime | None = None,
) -> Dispute | None:
    """Write down a dispute; None when it is known to be so, or closed, already.

    A later `evidence_due_at` is kept in any case; an earlier one is old news, for gateways
    only prolong it.
    """
    created: Dispute | None = session.scalar(
        upsert(Dispute)
        .values(
            user_id=user_id,
            payment_id=payment_id,
            gateway=gateway,
            gateway_reference=gateway_reference,
            status=status,
            amount=amount,
            currency=currency,
            reason=reason,
            evidence_due_at=evidence_due_at,
        )
        .on_conflict_do_nothing()
        .returning(Dispute)
    )
    if created is not None:
        return created
    known = select(Dispute).where(
        Dispute.user_id == user_id,
        Dispute.gateway == gateway,
        Dispute.gateway_reference == gateway_reference,
    )
    dispute = session.scalar(locked(known))
    if dispute is None:
        return None  # another user's: no gateway gives two disputes one reference
    due_at = dispute.evidence_due_at
    if evidence_due_at is not None and (due_at is None or evidence_due_at > due_at):
        dispute.evidence_due_at = evidence_due_at
    closes = status not in ("open", dispute.status)  # a won one may be lost, none is reopened
    if closes:
        dispute.status = status
    session.flush()
    return dispute if closes else None


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
    return page_by_time(rows, Dispute.__table__, filters=2, of_user=False, cursor="cursor" in given)


# Events -------------------------------------------------------------------------------------------


def add_event(
    session: Session,
    event_type: EventType,
    *,
    user_id: str,
    actor: Actor,
    request_id: str | None,
    data: dict[str, Any],
    order: Order | None = None,
) -> None:
    """Write an event into the transaction of the change that it reports.

    With a locked order its sequence is the order's `last_sequence`, which the change has counted up
    already, so that both are one UPDATE.
    """
    session.execute(
        insert(Event).values(
            type=event_type,
            user_id=user_id,
            order_id=order.id if order is not None else None,
            sequence=order.last_sequence if order is not None else None,
            actor=actor,
            request_id=request_id,
            data=data,
        )
    )


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


def add_gateway_event(
    session: Session,
    gateway: str,
    event_id: str,
    event_type: str,
    payment: Payment | None,
    delivery_id: str | None = None,
) -> bool:
    """Store an event; False when it was stored before, or came in a delivery that was."""
    stored = session.scalar(
        upsert(GatewayEvent)
        .values(
            gateway=gateway,
            event_id=event_id,
            delivery_id=delivery_id,
            type=event_type,
            user_id=payment.user_id if payment is not None else None,
            payment_id=payment.id if payment is not None else None,
        )
        .on_conflict_do_nothing()
        .returning(GatewayEvent.id)
    )
    return stored is not None


def is_known_event(session: Session, gateway: str, event_id: str) -> bool:
    """Whether this event was stored."""
    query = select(GatewayEvent.id).where(
        GatewayEvent.gateway == gateway, GatewayEvent.event_id == event_id
    )
    return session.scalar(query) is not None


def is_known_delivery(session: Session, gateway: str, delivery_id: str) -> bool:
    """Whether an event of this delivery was stored."""
    query = select(GatewayEvent.id).where(
        GatewayEvent.gateway == gateway, GatewayEvent.delivery_id == delivery_id
    )
    return session.scalar(query) is not None
