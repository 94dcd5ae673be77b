"""The rows of Idempotency-Keys: who works on a request, and the response that its repeats get."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple, cast

from pydantic import BaseModel
from sqlalchemy import ColumnElement, Table, and_, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from database import NOW, Old, find_old, read_all, read_one, seconds_from_now
from errors import ServiceError
from models import IdempotencyKey
from rows import KeyRow

KEY_TTL = timedelta(hours=72)  # a Friday deploy can be mended on Monday

KEYS = cast(Table, IdempotencyKey.__table__)

# A key whose outcome is open does not expire: taken anew, it would move the money again.
HAS_EXPIRED = and_(
    KEYS.c.created_at < func.now() - KEY_TTL,
    or_(KEYS.c.status.is_not(None), KEYS.c.gateway_key.is_(None)),
)


JSON = "application/json"
PROBLEM_JSON = "application/problem+json"  # RFC 9457


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A finished response, rendered inside the transaction whose outcome it reports."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_row(cls, status: int, body: bytes, headers: dict[str, str] | None) -> StoredResponse:
        return cls(status, bytes(body), headers or {})

    @classmethod
    def resource(
        cls, status: int, resource: BaseModel, location: str | None = None
    ) -> StoredResponse:
        headers = {"Content-Type": JSON} | ({"Location": location} if location else {})
        return cls(status, resource.model_dump_json().encode(), headers)

    @classmethod
    def json(cls, status: int, text: str, location: str) -> StoredResponse:
        """A resource that is JSON already."""
        return cls(status, text.encode(), {"Content-Type": JSON, "Location": location})

    @classmethod
    def problem(cls, error: ServiceError, request_id: str) -> StoredResponse:
        headers = {"Content-Type": PROBLEM_JSON, **error.headers}
        return cls(error.status, error.body(request_id), headers)


class KeyClaim(NamedTuple):
    """A key that is ours to work on, as long as nobody takes it over."""

    id: int
    owner: str


class WaitingKey(NamedTuple):
    """A key whose request waits for an outcome."""

    id: int
    user_id: str
    request_id: str


def claim_key(
    session: Session, user_id: str, key: str, *, fingerprint: str, request_id: str, seconds: float
) -> KeyClaim | None:
    """Own a key that is new. None when it is known."""
    return read_one(
        session,
        KeyClaim,
        upsert(KEYS)
        .values(user_id=user_id, key=key, **_new(fingerprint, request_id, seconds))
        .on_conflict_do_nothing()
        .returning(KEYS.c.id, KEYS.c.owner),
    )


def claim_expired_key(
    session: Session,
    user_id: str,
    key_id: int,
    *,
    fingerprint: str,
    request_id: str,
    seconds: float,
) -> KeyClaim:
    """Own a locked key that has expired, as if it were new."""
    cleared = dict.fromkeys(("gateway_key", "status", "headers", "body"))
    return _own(session, user_id, key_id, **cleared, **_new(fingerprint, request_id, seconds))


def take_over_key(session: Session, user_id: str, key_id: int, seconds: float) -> KeyClaim:
    """Own a locked key whose owner is gone."""
    return _own(session, user_id, key_id, **_ownership(seconds))


def _own(session: Session, user_id: str, key_id: int, **values: Any) -> KeyClaim:
    query = update(KEYS).where(_is_key(user_id, key_id)).values(**values)
    return KeyClaim._make(session.execute(query.returning(KEYS.c.id, KEYS.c.owner)).one())


def _new(fingerprint: str, request_id: str, seconds: float) -> dict[str, Any]:
    of_request = {"fingerprint": fingerprint, "request_id": request_id, "created_at": NOW}
    return of_request | _ownership(seconds)


def _ownership(seconds: float) -> dict[str, Any]:
    return {"owner": secrets.token_hex(16), "owned_until": seconds_from_now(seconds)}


def _is_key(user_id: str, key_id: int) -> ColumnElement[bool]:
    return and_(KEYS.c.user_id == user_id, KEYS.c.id == key_id)


def lock_key(session: Session, user_id: str, key: str) -> KeyRow | None:
    """The key, locked."""
    query = (
        select(
            *[KEYS.c[name] for name in KeyRow._fields[:-2]], KEYS.c.owned_until > NOW, HAS_EXPIRED
        )
        .where(KEYS.c.user_id == user_id, KEYS.c.key == key)
        .with_for_update()
    )
    return read_one(session, KeyRow, query)


def link_key(session: Session, user_id: str, key_id: int, owner: str, *, gateway_key: str) -> bool:
    """Remember the money request that this one led to. False when the key has another owner."""
    linked = session.execute(
        update(KEYS)
        .where(_is_key(user_id, key_id), KEYS.c.owner == owner)
        .values(gateway_key=gateway_key)
        .returning(KEYS.c.id)
    )
    return linked.one_or_none() is not None


def list_waiting_keys(session: Session, gateway_key: str) -> list[WaitingKey]:
    """The keys that wait for the outcome of this money request; staff's may be among them."""
    query = select(*[KEYS.c[name] for name in WaitingKey._fields]).where(
        KEYS.c.gateway_key == gateway_key, KEYS.c.status.is_(None)
    )
    return read_all(session, WaitingKey, query)


def get_stored_response(session: Session, user_id: str, key_id: int) -> StoredResponse | None:
    query = select(KEYS.c.status, KEYS.c.body, KEYS.c.headers).where(
        _is_key(user_id, key_id), KEYS.c.status.is_not(None)
    )
    row = session.execute(query).one_or_none()
    return None if row is None else StoredResponse.from_row(*row)


def store_response(
    session: Session, user_id: str, key_id: int, response: StoredResponse, owner: str | None = None
) -> bool:
    """Store the response. False if the key has one already, or has another owner."""
    query = update(KEYS).where(_is_key(user_id, key_id), KEYS.c.status.is_(None))
    if owner is not None:
        query = query.where(KEYS.c.owner == owner)
    values = {"status": response.status, "headers": response.headers, "body": response.body}
    stored = session.execute(query.values(values).returning(KEYS.c.id))
    return stored.one_or_none() is not None


def release_key(session: Session, user_id: str, key_id: int, owner: str) -> None:
    """Stop working on a request: forget it if nothing came of it, else leave it to its repeats."""
    is_ours = and_(_is_key(user_id, key_id), KEYS.c.owner == owner)
    session.execute(
        delete(KEYS).where(is_ours, KEYS.c.gateway_key.is_(None), KEYS.c.status.is_(None))
    )
    session.execute(update(KEYS).where(is_ours).values(owned_until=func.now()))


def find_expired(session: Session, limit: int) -> list[Old]:
    """Keys that have expired, the oldest, at most so many."""
    return find_old(session, KEYS, HAS_EXPIRED, limit)
