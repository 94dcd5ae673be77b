"""Who is calling, by their bearer token; what they may do is the work of `permissions.py`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
import time
from collections import OrderedDict
from datetime import timedelta
from typing import Annotated, Any, NamedTuple, Protocol, TypeGuard

import httpx
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from jose import jwk, jwt
from jose.backends.base import Key
from jose.exceptions import JWKError
from jose.utils import base64_to_long, base64url_decode, base64url_encode

from config import MIN_SECRET_BYTES, ConfigurationError, Settings
from errors import Overloaded, Unauthenticated
from observability.logs import get_logger
from permissions import Principal

MAX_TOKEN = 8 * 1024  # what proxies allow for one header line; checked before anything is parsed
MAX_VERIFIED = 4096  # tokens remembered, mostly under a kilobyte each

# The issuer's clock may run ahead of ours, so a token may begin a moment from now. Its end has no
# such grace: the holder of an expired token can always ask for a new one.
LEEWAY = 5.0
LAST_SECOND = 253_402_300_799  # the end of the year 9999; a greater number was in milliseconds

JWKS_FRESH = 300.0  # a key that the issuer withdraws stays good for five minutes,
JWKS_STALE = 3600.0  # and, while its host is down, for an hour: time to repair it
JWKS_PAUSE = 10.0  # between two fetches, however many unknown keys the tokens name
JWKS_TIMEOUT = 3.0
MAX_JWKS = 64 * 1024
MIN_RSA_BITS = 2048  # RFC 7518 §3.3
KEY_TYPES = {"RS256": ("RSA", ("n", "e")), "ES256": ("EC", ("crv", "x", "y"))}

# RFC 7519 §5.1 and RFC 9068 §4; media types are compared in lower case (RFC 7515 §4.1.9).
TOKEN_TYPES = {"jwt", "at+jwt", "application/at+jwt"}
# Keys of Infineon's chips (CVE-2017-15361) can be factored. Modulo each of these primes such a
# modulus is a power of 65537; of all others one in 2**27 is.
ROCA_PRIMES = [n for n in range(3, 168) if all(n % divisor for divisor in range(2, n))]
ROCA_RESIDUES = [(p, {pow(65537, power, p) for power in range(p)}) for p in ROCA_PRIMES]

COMPACT_JWS = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
SCOPE = re.compile(r"[\x20\x21\x23-\x5B\x5D-\x7E]*")  # RFC 6749 §3.3

log = get_logger()


class TokenVerifier:
    """Verifies bearer tokens with the one algorithm that the settings name.

    Made once per process. Raises ConfigurationError when the settings cannot verify safely.
    """

    def __init__(self, settings: Settings, *, http: httpx.AsyncClient | None = None) -> None:
        self._settings = settings
        self._keys: _Keys = (
            _SharedKey(settings) if settings.algorithm == "HS256" else _KeySet(settings, http)
        )
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
    return jwt.encode(present, _hmac_key(settings), algorithm="HS256")


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


class _Keys(Protocol):
    async def require_key(self, kid: str | None) -> Key: ...
    async def aclose(self) -> None: ...


class _SharedKey:
    """SECRET_KEY: one key for every token, whatever its `kid` says."""

    def __init__(self, settings: Settings) -> None:
        self._key = _hmac_key(settings)

    async def require_key(self, kid: str | None) -> Key:
        return self._key

    async def aclose(self) -> None:
        pass


class _KeySet:
    """The issuer's public keys (RFC 7517), cached: one fetch at a time, with pauses between."""

    def __init__(self, settings: Settings, http: httpx.AsyncClient | None) -> None:
        self._url = _jwks_url(settings)
        self._algorithm = settings.algorithm
        self._http = http or httpx.AsyncClient()
        self._owns_http = http is None
        self._keys: list[tuple[str | None, Key]] = []
        self._fetched_at = self._asked_at = -math.inf
        self._host_is_down = False
        self._fetch: asyncio.Task[None] | None = None

    async def require_key(self, kid: str | None) -> Key:
        """The key of that name; without a name, the only one there is."""
        age = time.monotonic() - self._fetched_at
        if age >= JWKS_FRESH:
            # While the host is down the cached keys serve, and no request waits for it again.
            await self._refresh(wait=age >= JWKS_STALE or not self._host_is_down)
            if time.monotonic() - self._fetched_at >= JWKS_STALE:
                raise Overloaded("The keys that verify tokens cannot be fetched at the moment.")
        key = self._get_key(kid)
        if key is None:
            await self._refresh(wait=True)
            key = self._get_key(kid)
        if key is None:
            raise Unauthenticated("The token's `kid` names none of the issuer's present keys.")
        return key

    async def aclose(self) -> None:
        if self._fetch is not None and not self._fetch.done():
            self._fetch.cancel()
            await asyncio.wait([self._fetch])
        if self._owns_http:
            await self._http.aclose()

    def _get_key(self, kid: str | None) -> Key | None:
        found = [key for name, key in self._keys if kid is None or name == kid]
        return found[0] if len(found) == 1 else None

    async def _refresh(self, *, wait: bool) -> None:
        if self._fetch is None or self._fetch.done():
            if time.monotonic() - self._asked_at < JWKS_PAUSE:
                return
            self._asked_at = time.monotonic()
            self._fetch = asyncio.create_task(self._load())
        if wait:  # shielded: a client that hangs up does not cancel the fetch for the others
            await asyncio.shield(self._fetch)

    async def _load(self) -> None:
        try:
            # httpx times each read; this bounds their sum, should the host send byte by byte.
            document = json.loads(await asyncio.wait_for(self._download(), JWKS_TIMEOUT))
            keys = _public_keys(document, self._algorithm)
        except Exception as error:  # whatever the host does, the cached keys stay
            self._host_is_down = True
            log.warning("auth.jwks_unavailable", error=type(error).__name__, reason=str(error))
            return
        self._keys, self._fetched_at, self._host_is_down = keys, time.monotonic(), False
        if not keys:
            log.error("auth.jwks_without_usable_key", algorithm=self._algorithm)

    async def _download(self) -> bytes:
        # Uncompressed, so that the bound is one on memory too. A redirect could lead anywhere.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        async with self._http.stream(
            "GET", self._url, headers=headers, timeout=JWKS_TIMEOUT, follow_redirects=False
        ) as response:
            if response.status_code != httpx.codes.OK:
                raise ValueError(f"status {response.status_code}")
            if "content-encoding" in response.headers:
                raise ValueError("compressed, although it was not asked to be")
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_JWKS:
                    raise ValueError(f"more than {MAX_JWKS} bytes")
        return bytes(body)


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
        data = base64url_decode(part.encode())
    except ValueError:
        data = b""  # no part is empty
    # Another last letter may stand for the same bytes; then one token would have many spellings.
    if base64url_encode(data).decode() != part:
        raise Unauthenticated(f"The token's {name} is not base64url.")
    return data


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


def _hmac_key(settings: Settings) -> Key:
    if settings.secret_key is None or len(settings.signing_key.encode()) < MIN_SECRET_BYTES:
        raise ConfigurationError(f"HS256 needs a SECRET_KEY of at least {MIN_SECRET_BYTES} bytes")
    try:
        return jwk.construct(settings.signing_key, "HS256")
    except JWKError:
        raise ConfigurationError("SECRET_KEY looks like a public key, which is no secret") from None


def _jwks_url(settings: Settings) -> str:
    """Check JWKS_URL, which decides whose tokens are good: nobody on the way may change its answer.

    It is https; development may use its container network.
    """
    try:
        url = httpx.URL(settings.jwks_url or "")
    except httpx.InvalidURL:
        raise ConfigurationError("JWKS_URL is not a URL") from None
    if not url.host or url.scheme not in (("https",) if settings.production else ("https", "http")):
        raise ConfigurationError("JWKS_URL must be an https URL")
    return str(url)


def _public_keys(document: Any, algorithm: str) -> list[tuple[str | None, Key]]:
    """The keys of a JWK set that fit, with their names. The others are ignored (RFC 7517 §5)."""
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("not a JWK set")
    found = [(entry, _public_key(entry, algorithm)) for entry in document["keys"]]
    return [(entry.get("kid"), key) for entry, key in found if key is not None]


def _is_strong(modulus: int) -> bool:
    """Whether an RSA key is long enough and not one that Infineon's chips made."""
    return modulus.bit_length() >= MIN_RSA_BITS and not all(
        modulus % prime in residues for prime, residues in ROCA_RESIDUES
    )


def _public_key(entry: Any, algorithm: str) -> Key | None:
    kty, parts = KEY_TYPES[algorithm]
    try:
        fits = (
            entry["kty"] == kty
            and entry.get("use", "sig") == "sig"
            and entry.get("alg", algorithm) == algorithm
            and "verify" in entry.get("key_ops", ["verify"])
            and isinstance(entry.get("kid", ""), str)
            and all(isinstance(entry[part], str) for part in parts)
            and entry.get("crv", "P-256") == "P-256"
            and "d" not in entry  # a private key for all to read: anyone may sign with it
            and (kty != "RSA" or _is_strong(base64_to_long(entry["n"])))
        )
        return jwk.construct(entry, algorithm) if fits else None
    except Exception:  # jose and cryptography have many ways to say that this is no key
        return None
