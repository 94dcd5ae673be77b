"""Payments: the claim, and what is due to be looked up."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, func, or_, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

import schemas
from crud.paging import is_id, page_of
from database import age, seconds_from_now
from domain.states import DEAD_PAYMENT_STATUSES, CaptureMethod
from errors import NotFound
from models import Order, Payment, Refund

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
    check_after: float,
) -> Payment | None:
    """Claim the one live payment that an order can have; None when it has one already.

    `check_after`: seconds until the gateway is asked what became of it, if nobody settled it.
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
            check_at=seconds_from_now(check_after),
        )
        .on_conflict_do_nothing()
        .returning(Payment)
    )


def require_payment_to_look_up(session: Session, payment_id: int) -> Row[Any]:
    """The payment, with its ages in seconds by the database's clock: `age` of the charge,
    `open_for` of the request that is open, `unreviewed_for` since that or since a person's last
    look, and `reviewed_ago` since the latter.
    """
    looked_at = func.greatest(PAYMENT_COLUMNS.asked_at, PAYMENT_COLUMNS.reviewed_at)
    return session.execute(
        select(
            *[
                *PAYMENT_COLUMNS,
                age(PAYMENT_COLUMNS.created_at).label("age"),
                age(PAYMENT_COLUMNS.asked_at).label("open_for"),
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
    rows = select(*PAYMENT_COLUMNS)
    if user_id is not None:
        rows = rows.where(PAYMENT_COLUMNS.user_id == user_id)
    if query.order_id is not None:
        if not is_id(query.order_id):
            return []
        rows = rows.where(PAYMENT_COLUMNS.order_id == query.order_id)
    if query.status is not None:
        rows = rows.where(PAYMENT_COLUMNS.status == query.status)
    if query.needs_review is not None:
        rows = rows.where(PAYMENT_COLUMNS.needs_review.is_(query.needs_review))
    return page_of(session, rows, PAYMENT_COLUMNS.id, query)


def find_payment(
    session: Session, gateway: str, payment_id: int | None, reference: str | None
) -> Row[Any] | None:
    """The payment that a gateway means: by our id if it knows it, or else by its reference."""
    if payment_id is None and reference is None:
        return None  # payments whose reference we have not heard yet are none of its business
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


def count_open(session: Session) -> int:
    """Payments and refunds whose outcome is not known: asked, and not answered."""
    unknown = or_(Payment.status == "pending", Payment.operation.is_not(None))
    payments = select(func.count()).select_from(Payment).where(unknown)
    refunds = (
        select(func.count())
        .select_from(Refund)
        .where(Refund.status == "pending", Refund.gateway_reference.is_(None))
    )
    return (session.scalar(payments) or 0) + (session.scalar(refunds) or 0)


def count_needs_review(session: Session) -> int:
    return session.scalar(select(func.count()).where(Payment.needs_review)) or 0


def list_charged_payments(session: Session, gateway: str) -> Sequence[Row[Any]]:
    """Every payment that this gateway was asked for."""
    return session.execute(
        select(*PAYMENT_COLUMNS)
        .where(PAYMENT_COLUMNS.gateway == gateway)
        .order_by(PAYMENT_COLUMNS.id)
    ).all()
