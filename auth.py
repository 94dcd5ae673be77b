"""Who is calling, by their bearer token; what they may do is the work of `permissions.py`."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
from collections import OrderedDict
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol, TypeGuard

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from config import MIN_SECRET_BYTES, ConfigurationError, Settings
from errors import Unauthenticated
from permissions import Principal

if TYPE_CHECKING:
    import httpx

MAX_TOKEN = 8 * 1024  # what proxies allow for one header line; checked before anything is parsed
MAX_VERIFIED = 4096  # tokens remembered, mostly under a kilobyte each

# The issuer's clock may run ahead of ours, so a token may begin a moment from now. Its end has no
# such grace: the holder of an expired token can always ask for a new one.
LEEWAY = 5.0
LAST_SECOND = 253_402_300_799  # the end of the year 9999; a greater number was in milliseconds

# RFC 7519 §5.1 and RFC 9068 §4; media types are compared in lower case (RFC 7515 §4.1.9).
TOKEN_TYPES = {"jwt", "at+jwt", "application/at+jwt"}
# In PEM files and public keys of SSH: with one as SECRET_KEY anybody could sign (RFC 8725 §2.1).
PUBLIC_KEY_MARKS = ("-----BEGIN ", "ssh-rsa", "ssh-dss", "ssh-ed25519", "ecdsa-sha2-")

COMPACT_JWS = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
SCOPE = re.compile(r"[\x20\x21\x23-\x5B\x5D-\x7E]*")  # RFC 6749 §3.3


class TokenVerifier:
    """Verifies bearer tokens with the one algorithm that the settings name.

    Made once per process. Raises ConfigurationError when the settings cannot verify safely.
    """

    def __init__(self, settings: Settings, *, http: httpx.AsyncClient | None = None) -> None:
        self._settings = settings
        self._keys: _Keys
        if settings.algorithm == "HS256":
            self._keys = _SharedKey(settings)
        else:
            # It loads cryptography and httpx: 10 MiB that SECRET_KEY has no use for.
            from issuer_keys import IssuerKeys

            self._keys = IssuerKeys(settings, http)
        # By hash, so that memory holds no token that anyone could use. The oldest go first.
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()

    async def verify(self, authorization: str | None) -> Principal:
        """The caller that the value of an `Authorization` header names.

        Raises Unauthenticated for every token that is not valid, and Overloaded (503) when the
        issuer's keys cannot be had at all: such a token was not judged, and a 401 would make
        clients throw good tokens away.
        """
        token = _bearer_token(authorization)
        digest = hashlib.sha256(token.encode()).digest()
        known = self._verified.get(digest)
        kid = known.kid if known else self._read_kid(token)
        key = await self._keys.require_key(kid)
        if known is None or known.key is not key:  # a refresh makes new keys: each judges anew
            known = self._verify_claims(token, kid, key)
        if known.expires_at <= time.time():
            self._verified.pop(digest, None)
            raise Unauthenticated("The token has expired.")
        self._verified[digest] = known
        self._verified.move_to_end(digest)
        if len(self._verified) > MAX_VERIFIED:
            self._verified.popitem(last=False)
        return known.principal

    async def aclose(self) -> None:
        """Stop what is under way, and close the HTTP client unless it was passed in."""
        await self._keys.aclose()

    def _read_kid(self, token: str) -> str | None:
        """The `kid` of a header we accept. `jwk`, `jku`, `x5c` and `x5u` are never looked at."""
        header = _json_object(token.split(".")[0], "header")
        if header.get("alg") != self._settings.algorithm:
            raise Unauthenticated(f"The token is not signed with {self._settings.algorithm}.")
        if "crit" in header:  # RFC 7515 §4.1.11: what we do not understand, we refuse
            raise Unauthenticated("The token demands extensions (`crit`), and none is supported.")
        kind = header.get("typ", "JWT")
        if not (isinstance(kind, str) and kind.lower() in TOKEN_TYPES):
            raise Unauthenticated("The token's `typ` is neither JWT nor at+jwt.")
        if not isinstance(header.get("kid", ""), str):
            raise Unauthenticated("The token's `kid` must be a string.")
        return header.get("kid")

    def _verify_claims(self, token: str, kid: str | None, key: Key) -> _Verified:
        """Check the signature, then everything about the claims but whether they have expired."""
        # The key itself is asked, not `jwt.decode`, which lets claims be missing, takes `exp` from
        # a string, and meets deeply nested JSON with RecursionError.
        signed, _, signature = token.rpartition(".")
        if not key.verify(signed.encode(), _decoded(signature, "signature")):
            raise Unauthenticated("The token's signature does not fit: another key, or changed.")
        claims = _json_object(signed.partition(".")[2], "payload")
        expires_at = _seconds(claims, "exp")
        for name in ("nbf", "iat"):
            if name in claims and _seconds(claims, name) > time.time() + LEEWAY:
                raise Unauthenticated(f"The token is not valid yet: `{name}` lies in the future.")
        # One that does not say when it was issued cannot be younger than it is now.
        issued_at = _seconds(claims, "iat") if "iat" in claims else time.time() + LEEWAY
        longest = self._settings.jwt_max_lifetime
        if expires_at - issued_at > longest:
            raise Unauthenticated(f"The token is valid for more than {longest} seconds.")
        issuer, audience = self._settings.jwt_issuer, self._settings.jwt_audience
        if issuer is not None and claims.get("iss") != issuer:
            raise Unauthenticated("The token's `iss` is not the issuer that this service trusts.")
        named = claims.get("aud")
        if audience is not None and audience not in (named if isinstance(named, list) else [named]):
            raise Unauthenticated("The token's `aud` does not name this service.")
        user_id, scope = claims.get("sub"), claims.get("scope", "")
        if not _is_user_id(user_id):
            raise Unauthenticated("The token's `sub` must be a user id of 1 to 255 characters.")
        if not (isinstance(scope, str) and SCOPE.fullmatch(scope)):
            raise Unauthenticated(
                "The token's `scope` must be a string, with spaces between words."
            )
        scopes = frozenset(word for word in scope.split(" ") if word)
        return _Verified(Principal(user_id, scopes), expires_at, kid, key)


def mint(
    settings: Settings,
    user_id: str,
    scope: str = "",
    lifetime: timedelta = timedelta(hours=12),  # a working day of trying things out
) -> str:
    """A token for `user_id`, signed with SECRET_KEY, valid for `lifetime` or JWT_MAX_LIFETIME.

    Raises ValueError when the user id or the scope is not valid, or when tokens come from an
    issuer (RS256, ES256), whose private key is not ours to have.
    """
    if settings.algorithm != "HS256":
        raise ValueError(f"{settings.algorithm} tokens come from the issuer behind JWKS_URL")
    if not _is_user_id(user_id):
        raise ValueError("a user id has 1 to 255 characters, none of them NUL or a surrogate")
    if not SCOPE.fullmatch(scope):
        raise ValueError("a scope is made of printable ASCII, with spaces between words")
    now = int(time.time())
    claims = {
        "sub": user_id,
        "scope": scope,
        "iat": now,
        "exp": now + min(int(lifetime.total_seconds()), settings.jwt_max_lifetime),
        "iss": settings.jwt_issuer,
        "aud": settings.jwt_audience,
    }
    present = {name: value for name, value in claims.items() if value is not None}
    header = {"alg": "HS256", "typ": "JWT"}
    signed = ".".join(_encoded(json.dumps(part).encode()) for part in (header, present))
    return f"{signed}.{_encoded(_secret_key(settings).sign(signed.encode()))}"


async def authenticate(request: Request) -> Principal:
    """The caller of this request, verified once however often it is asked for."""
    state: dict[str, Any] = request.scope.setdefault("state", {})
    known: Principal | None = state.get("principal")
    if known is not None:
        return known
    headers = [value for name, value in request.scope["headers"] if name == b"authorization"]
    if len(headers) > 1:  # a proxy before us may have read the other one
        raise Unauthenticated("The Authorization header must be sent once, not several times.")
    verifier: TokenVerifier = request.app.state.verifier
    principal = await verifier.verify(headers[0].decode("latin-1") if headers else None)
    state["principal"] = principal
    return principal


bearer = HTTPBearer(
    auto_error=False,  # the answer to a missing token is ours: a problem document
    bearerFormat="JWT",
    scheme_name="bearer",
    description="A JWT with `sub` (the user id) and `exp`; `scope` is a space-separated list. "
    "In development `python cli.py token --user alice` prints one.",
)


async def _current_user(
    request: Request,
    _documented: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)] = None,
) -> Principal:
    return await authenticate(request)


CurrentUser = Annotated[Principal, Depends(_current_user)]


class _Verified(NamedTuple):
    principal: Principal
    expires_at: float
    kid: str | None
    key: Key


class Key(Protocol):
    def verify(self, signed: bytes, signature: bytes, /) -> bool: ...


class SecretKey:
    """HS256 (RFC 7518 §3.2)."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def sign(self, signed: bytes) -> bytes:
        return hmac.digest(self._key, signed, "sha256")

    def verify(self, signed: bytes, signature: bytes) -> bool:
        return hmac.compare_digest(self.sign(signed), signature)


class _Keys(Protocol):
    async def require_key(self, kid: str | None) -> Key: ...
    async def aclose(self) -> None: ...


class _SharedKey:
    """SECRET_KEY: one key for every token, whatever its `kid` says."""

    def __init__(self, settings: Settings) -> None:
        self._key = _secret_key(settings)

    async def require_key(self, kid: str | None) -> Key:
        return self._key

    async def aclose(self) -> None:
        pass


def _bearer_token(authorization: str | None) -> str:
    if authorization is None:
        raise Unauthenticated("The token is missing: send `Authorization: Bearer <JWT>`.")
    scheme, _, token = authorization.partition(" ")
    token = token.strip(" ")
    if scheme.lower() != "bearer" or not token:  # RFC 9110 §11.1: the scheme in any case
        raise Unauthenticated("The header is not of the form `Authorization: Bearer <JWT>`.")
    if len(token) > MAX_TOKEN:
        raise Unauthenticated(f"The token is longer than {MAX_TOKEN} characters.")
    if not COMPACT_JWS.fullmatch(token):
        raise Unauthenticated(
            "The token is malformed: a JWT is three base64url parts and two dots."
        )
    return token


def _decoded(part: str, name: str) -> bytes:
    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        data = b""  # no part is empty
    # Another last letter may stand for the same bytes; then one token would have many spellings.
    if _encoded(data) != part:
        raise Unauthenticated(f"The token's {name} is not base64url.")
    return data


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _json_object(part: str, name: str) -> dict[str, Any]:
    try:  # decoded first: given bytes, json would read UTF-16 and UTF-32 too
        text = _decoded(part, name).decode()
        value = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Unauthenticated(f"The token's {name} is not a JSON object.")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):  # a proxy before us may have read the other
        raise ValueError("duplicate key")
    return found


def _seconds(claims: dict[str, Any], name: str) -> float:
    value = claims.get(name)
    # Compared before it is converted: float() overflows on an integer of 400 digits.
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LAST_SECOND:
        return float(value)
    raise Unauthenticated(f"The token's `{name}` must be a time in seconds since 1970.")


def _is_user_id(value: object) -> TypeGuard[str]:
    return (
        isinstance(value, str)
        and 1 <= len(value) <= 255
        and not any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in value)
    )


def _secret_key(settings: Settings) -> SecretKey:
    key = settings.signing_key if settings.secret_key is not None else ""
    if len(key.encode()) < MIN_SECRET_BYTES:
        raise ConfigurationError(f"HS256 needs a SECRET_KEY of at least {MIN_SECRET_BYTES} bytes")
    if any(mark in key for mark in PUBLIC_KEY_MARKS):
        raise ConfigurationError("SECRET_KEY looks like a public key, which is no secret")
    return SecretKey(key.encode())
