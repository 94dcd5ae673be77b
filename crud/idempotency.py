"""Idempotency keys: who works on a request, and the answer that all its repeats get.

A key has one owner at a time. Everything an owner commits names it, so that one who was taken
for dead and replaced cannot commit any more.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, cast

from sqlalchemy import Row, Table, and_, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from crud.reaping import delete_oldest
from database import seconds_from_now
from models import IdempotencyKey

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
