"""Payments: the claim, and what is due to be looked up."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, ScalarSelect, Select, func, or_, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

import schemas
from crud.paging import is_id, page_by_time
from database import age, seconds_from_now
from domain.states import DEAD_PAYMENT_STATUSES, CaptureMethod
from errors import NotFound
from models import OPEN_PAYMENT, OPEN_REFUND, Order, Payment, Refund

PAYMENT_COLUMNS = Payment.__table__.c
ANSWER_IS_DUE = 3600  # seconds in which a look-up finds nearly every charge


def open_payment(
    session: Session,
    order: Order,
    method: Row[Any],
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


def require_payment_to_look_up(session: Session, payment_id: int) -> Row[Any]:
    """The payment, with its ages in seconds by the database's clock: `age` of the charge,
    `open_for` of the request that is open, `unreviewed_for` since that or since a person's last
    look, and `reviewed_ago` since the latter.
    """
    looked_at = func.greatest(PAYMENT_COLUMNS.requested_at, PAYMENT_COLUMNS.reviewed_at)
    return session.execute(
        select(
            *[
                *PAYMENT_COLUMNS,
                age(PAYMENT_COLUMNS.created_at).label("age"),
                age(PAYMENT_COLUMNS.requested_at).label("open_for"),
                age(looked_at).label("unreviewed_for"),
                age(PAYMENT_COLUMNS.reviewed_at).label("reviewed_ago"),
            ]
        ).where(PAYMENT_COLUMNS.id == payment_id)
    ).one()


def get_live_payment(session: Session, order_id: int) -> Row[Any] | None:
    """The payment of this order that holds, took or may yet take money."""
    return session.execute(
        select(*PAYMENT_COLUMNS).where(
            PAYMENT_COLUMNS.order_id == order_id,
            PAYMENT_COLUMNS.status.not_in(DEAD_PAYMENT_STATUSES),
        )
    ).one_or_none()


def get_payment(session: Session, payment_id: int, reader: str | None) -> Row[Any] | None:
    if not is_id(payment_id):
        return None
    query = select(*PAYMENT_COLUMNS).where(PAYMENT_COLUMNS.id == payment_id)
    if reader is not None:
        query = query.where(PAYMENT_COLUMNS.user_id == reader)
    return session.execute(query).one_or_none()


def require_payment(session: Session, payment_id: int, reader: str | None) -> Row[Any]:
    row = get_payment(session, payment_id, reader)
    if row is None:
        raise NotFound
    return row


def lock_payment(session: Session, payment_id: int) -> Payment:
    """The payment, locked; its order was locked before it. Raises NotFound."""
    payment = session.scalar(
        select(Payment)
        .where(Payment.id == payment_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    if payment is None:
        raise NotFound
    return payment


def list_payments(
    session: Session, query: schemas.PaymentQuery, user_id: str | None
) -> Sequence[Row[Any]]:
    """The payments of one user, or of everybody."""
    rows = select(*PAYMENT_COLUMNS)
    filters = 0
    if user_id is not None:
        rows = rows.where(PAYMENT_COLUMNS.user_id == user_id)
        filters += 1
    if query.status is not None:
        rows = rows.where(PAYMENT_COLUMNS.status == query.status)
        filters += 1
    if query.order_id is not None:
        if not is_id(query.order_id):
            return []
        rows = rows.where(PAYMENT_COLUMNS.order_id == query.order_id)
        filters += 2  # an order has few payments, and
    if query.needs_review is True:  # few need a review: these indexes do, whatever else is asked
        rows = rows.where(PAYMENT_COLUMNS.needs_review)
        filters += 2
    elif query.needs_review is False:
        rows = rows.where(~PAYMENT_COLUMNS.needs_review)
    return page_by_time(session, rows, Payment.__table__, query, filters=filters, user_id=user_id)


def find_payment(
    session: Session, gateway: str, payment_id: int | None, reference: str | None
) -> Row[Any] | None:
    """The payment that a gateway means: by our id if it knows it, or else by its reference."""
    if payment_id is None and reference is None:
        return None  # NULL would match payments whose reference we have not heard yet
    query = select(*PAYMENT_COLUMNS).where(PAYMENT_COLUMNS.gateway == gateway)
    if payment_id is not None:
        query = query.where(PAYMENT_COLUMNS.id == payment_id)
    else:
        query = query.where(PAYMENT_COLUMNS.gateway_reference == reference)
    return session.execute(query).one_or_none()


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


def get_payment_of_key(session: Session, gateway_key: str) -> Row[Any] | None:
    """The payment whose charge, capture or void carries this key."""
    return session.execute(
        select(*PAYMENT_COLUMNS).where(
            or_(
                PAYMENT_COLUMNS.gateway_key == gateway_key,
                PAYMENT_COLUMNS.operation_key == gateway_key,
            )
        )
    ).one_or_none()


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
