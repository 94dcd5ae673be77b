"""The rows of Idempotency-Keys: who works on a request, and the response that its repeats get."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple, cast

from pydantic import BaseModel
from sqlalchemy import Boolean, Table, literal_column

from database import Old, find_old
from errors import ServiceError
from models import IdempotencyKey
from rows import KeyRow
from sessions import Session
from statements import Changes, Sender, Statement

KEY_TTL = timedelta(hours=72)  # a Friday deploy can be mended on Monday

KEYS = cast(Table, IdempotencyKey.__table__)

# A key whose outcome is open does not expire: taken anew, it would move the money again.
_HAS_EXPIRED = f"""(
    created_at < now() - make_interval(secs => {KEY_TTL.total_seconds():.0f})
    AND (status IS NOT NULL OR gateway_key IS NULL)
)"""


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
        return cls.json(status, resource.model_dump_json(), location)

    @classmethod
    def json(cls, status: int, text: str, location: str | None = None) -> StoredResponse:
        """A resource that is JSON already."""
        headers = {"Content-Type": JSON} | ({"Location": location} if location else {})
        return cls(status, text.encode(), headers)

    @classmethod
    def problem(cls, error: ServiceError, request_id: str) -> StoredResponse:
        headers = {"Content-Type": PROBLEM_JSON, **error.headers}
        return cls(error.status, error.body(request_id), headers)


class WaitingKey(NamedTuple):
    """A key whose request waits for an outcome."""

    key: str
    user_id: str
    request_id: str


_NEW = {
    "fingerprint": "%(fingerprint)s",
    "request_id": "%(request_id)s",
    "created_at": "now()",
}
_OWNED = {
    "owner": "%(owner)s",
    "owned_until": "now() + make_interval(secs => %(seconds)s)",
}
_CLEARED = dict.fromkeys(("gateway_key", "status", "headers", "body"), "NULL")
# As its unique index has it, so that it is found at once however many keys the user has.
_IS_KEY = "user_id = %(user_id)s AND key = %(key)s"


def _assigned(values: dict[str, str]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items())


# As in `KeyRow`.
_KNOWN = f"fingerprint, gateway_key, status, headers, body, owned_until > now(), {_HAS_EXPIRED}"
CLAIM_KEY = Statement(
    f"INSERT INTO idempotency_keys (user_id, key, {', '.join(_NEW | _OWNED)})"
    f" VALUES (%(user_id)s, %(key)s, {', '.join((_NEW | _OWNED).values())})"
    " ON CONFLICT DO NOTHING RETURNING owner",
    prepare=True,
)
KNOWN_KEY = Statement(f"SELECT {_KNOWN} FROM idempotency_keys WHERE {_IS_KEY}", prepare=True)
CLAIM_EXPIRED_KEY = Statement(
    f"UPDATE idempotency_keys SET {_assigned(_CLEARED | _NEW | _OWNED)} WHERE {_IS_KEY}"
    " RETURNING owner"
)
TAKE_OVER_KEY = Statement(
    f"UPDATE idempotency_keys SET {_assigned(_OWNED)} WHERE {_IS_KEY} RETURNING owner"
)
LOCK_KEY = Statement(f"{KNOWN_KEY.sql} FOR UPDATE", prepare=True)
WAITING_KEYS = Statement(
    f"SELECT {', '.join(WaitingKey._fields)} FROM idempotency_keys"
    " WHERE gateway_key = %(gateway_key)s AND status IS NULL",
    prepare=True,
)
STORED_RESPONSE = Statement(
    f"SELECT status, body, headers FROM idempotency_keys WHERE {_IS_KEY} AND status IS NOT NULL",
    prepare=True,
)
FORGET_KEY = Statement(
    f"DELETE FROM idempotency_keys WHERE {_IS_KEY} AND owner = %(owner)s"
    " AND gateway_key IS NULL AND status IS NULL",
    prepare=True,
)
LEAVE_KEY = Statement(
    f"UPDATE idempotency_keys SET owned_until = now() WHERE {_IS_KEY} AND owner = %(owner)s",
    prepare=True,
)


def claim_key(
    sender: Sender, user_id: str, key: str, *, fingerprint: str, request_id: str, seconds: float
) -> str | None:
    """Own a key that is new: its owner from now on. None when it is known."""
    rows = sender.rows(
        CLAIM_KEY,
        user_id=user_id,
        key=key,
        fingerprint=fingerprint,
        request_id=request_id,
        seconds=seconds,
        owner=_new_owner(),
    )
    return rows[0][0] if rows else None


def claim_expired_key(
    sender: Sender,
    user_id: str,
    key: str,
    *,
    fingerprint: str,
    request_id: str,
    seconds: float,
) -> str:
    """Own a locked key that has expired, as if it were new."""
    [(owner,)] = sender.rows(
        CLAIM_EXPIRED_KEY,
        user_id=user_id,
        key=key,
        fingerprint=fingerprint,
        request_id=request_id,
        seconds=seconds,
        owner=_new_owner(),
    )
    return str(owner)


def take_over_key(sender: Sender, user_id: str, key: str, seconds: float) -> str:
    """Own a locked key whose owner is gone."""
    [(owner,)] = sender.rows(
        TAKE_OVER_KEY, user_id=user_id, key=key, seconds=seconds, owner=_new_owner()
    )
    return str(owner)


def _new_owner() -> str:
    return secrets.token_hex(16)


def find_key(sender: Sender, user_id: str, key: str) -> KeyRow | None:
    """What is known of the key, unless it was released this very moment."""
    rows = sender.rows(KNOWN_KEY, user_id=user_id, key=key)
    return KeyRow(*rows[0]) if rows else None


def lock_key(sender: Sender, user_id: str, key: str) -> KeyRow | None:
    """The key, locked."""
    rows = sender.rows(LOCK_KEY, user_id=user_id, key=key)
    return KeyRow(*rows[0]) if rows else None


def link_key(
    changes: Changes,
    user_id: str,
    key: str,
    owner: str,
    *,
    gateway_key: str,
    required: Exception,
) -> None:
    """Remember with these changes the money request that this one led to. `required` is raised
    when the key has another owner."""
    is_ours = {"user_id": user_id, "key": key, "owner": owner}
    changes.update(KEYS, is_ours, {"gateway_key": gateway_key}, required=required)


def list_waiting_keys(sender: Sender, gateway_key: str) -> list[WaitingKey]:
    """The keys that wait for the outcome of this money request; staff's may be among them."""
    return [WaitingKey(*row) for row in sender.rows(WAITING_KEYS, gateway_key=gateway_key)]


def get_stored_response(sender: Sender, user_id: str, key: str) -> StoredResponse | None:
    rows = sender.rows(STORED_RESPONSE, user_id=user_id, key=key)
    return StoredResponse.from_row(*rows[0]) if rows else None


def store_response(
    changes: Changes,
    user_id: str,
    key: str,
    response: StoredResponse,
    *,
    owner: str | None = None,
    required: Exception | None = None,
) -> int:
    """Store the response, unless the key has one already, with these changes; the number of this
    part. `required` is raised if it has one, or another owner."""
    is_key = {"user_id": user_id, "key": key}
    return changes.update(
        KEYS,
        is_key if owner is None else is_key | {"owner": owner},
        {"status": response.status, "headers": response.headers, "body": response.body},
        condition="status IS NULL",
        required=required,
    )


def release_key(sender: Sender, user_id: str, key: str, owner: str) -> None:
    """Stop working on a request: forget it if nothing came of it, else leave it to its repeats."""
    is_ours = {"user_id": user_id, "key": key, "owner": owner}
    sender.rows(FORGET_KEY, **is_ours)
    sender.rows(LEAVE_KEY, **is_ours)


def find_expired(session: Session, limit: int) -> list[Old]:
    """Keys that have expired, the oldest, at most so many."""
    return find_old(session, KEYS, literal_column(_HAS_EXPIRED, Boolean), limit)
