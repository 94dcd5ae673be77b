"""Payment methods: one active per card and user, one default per user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Exists, Row, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

import schemas
from crud.paging import is_id, page_of
from errors import NotFound
from models import PaymentMethod

# Reads bypass the ORM's identity map: a row is read once, shown and forgotten.
METHOD_COLUMNS = PaymentMethod.__table__.c


def lock_user(session: Session, user_id: str) -> None:
    """Let one transaction at a time change which methods a user has, and which is the default.

    There is no row to lock for a user who has none yet. The lock ends with the transaction.
    """
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(user_id, 0))))


def find_payment_method(
    session: Session, user_id: str, fingerprints: Sequence[str]
) -> Row[Any] | None:
    """The user's active method with one of these fingerprints."""
    return session.execute(
        select(METHOD_COLUMNS.id).where(
            METHOD_COLUMNS.user_id == user_id,
            METHOD_COLUMNS.fingerprint.in_(fingerprints),
            METHOD_COLUMNS.is_active,
        )
    ).first()


def create_payment_method(session: Session, **values: Any) -> PaymentMethod | None:
    """Insert a method; None when the user already has an active one with its fingerprint."""
    return session.scalar(
        upsert(PaymentMethod).values(**values).on_conflict_do_nothing().returning(PaymentMethod)
    )


def get_payment_method(session: Session, method_id: int, reader: str | None) -> Row[Any] | None:
    """An active method that the reader may see."""
    if not is_id(method_id):
        return None
    query = select(*METHOD_COLUMNS).where(METHOD_COLUMNS.id == method_id, METHOD_COLUMNS.is_active)
    if reader is not None:
        query = query.where(METHOD_COLUMNS.user_id == reader)
    return session.execute(query).one_or_none()


def require_payment_method(session: Session, method_id: int, reader: str | None) -> Row[Any]:
    row = get_payment_method(session, method_id, reader)
    if row is None:
        raise NotFound
    return row


def is_method_of(method_id: int, user_id: str) -> Exists:
    """The condition that a method, active or not, is this user's. It is looked up once."""
    return exists().where(METHOD_COLUMNS.id == method_id, METHOD_COLUMNS.user_id == user_id)


def get_charged_payment_method(session: Session, method_id: int) -> Row[Any]:
    """The method of a payment, whether or not its user has removed it since."""
    return session.execute(select(*METHOD_COLUMNS).where(METHOD_COLUMNS.id == method_id)).one()


def get_gateway_customer(session: Session, user_id: str, gateway: str) -> str | None:
    """What this gateway calls this user, by the latest method that it told us of."""
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


def list_methods_of_token(session: Session, gateway: str, token: str) -> Sequence[Row[Any]]:
    """The active methods behind a gateway's token."""
    return session.execute(
        select(*METHOD_COLUMNS).where(
            METHOD_COLUMNS.gateway == gateway,
            METHOD_COLUMNS.gateway_token == token,
            METHOD_COLUMNS.is_active,
        )
    ).all()


def get_default_payment_method(session: Session, user_id: str) -> Row[Any] | None:
    return session.execute(
        select(*METHOD_COLUMNS).where(
            METHOD_COLUMNS.user_id == user_id, METHOD_COLUMNS.is_active, METHOD_COLUMNS.is_default
        )
    ).one_or_none()


def lock_payment_method(session: Session, method_id: int, user_id: str) -> PaymentMethod:
    """The user's active method. Raises NotFound."""
    method = session.scalar(
        select(PaymentMethod)
        .where(
            PaymentMethod.id == method_id,
            PaymentMethod.user_id == user_id,
            PaymentMethod.is_active,
        )
        .with_for_update()
    )
    if method is None:
        raise NotFound
    return method


def list_payment_methods(
    session: Session, query: schemas.PaymentMethodQuery, user_id: str
) -> Sequence[Row[Any]]:
    rows = select(*METHOD_COLUMNS).where(
        METHOD_COLUMNS.user_id == user_id, METHOD_COLUMNS.is_active
    )
    return page_of(session, rows, METHOD_COLUMNS.id, query)


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
        .where(PaymentMethod.id == newest)
        .values(is_default=True)
        .returning(PaymentMethod)
    )
