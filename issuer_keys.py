"""The public keys of an issuer of tokens, from JWKS_URL. Loaded only when ALGORITHM needs them."""

from __future__ import annotations

import asyncio
import json
import math
import time
from typing import Any

import httpx
from jose import jwk
from jose.backends.base import Key
from jose.utils import base64_to_long

from config import ConfigurationError, Settings
from errors import Overloaded, Unauthenticated
from observability.logs import get_logger

JWKS_FRESH = 300.0  # a key that the issuer withdraws stays good for five minutes,
JWKS_STALE = 3600.0  # and, while its host is down, for an hour: time to repair it
JWKS_PAUSE = 10.0  # between two fetches, however many unknown keys the tokens name
JWKS_TIMEOUT = 3.0
MAX_JWKS = 64 * 1024
MIN_RSA_BITS = 2048  # RFC 7518 §3.3
KEY_TYPES = {"RS256": ("RSA", ("n", "e")), "ES256": ("EC", ("crv", "x", "y"))}

# Keys of Infineon's chips (CVE-2017-15361) can be factored. Modulo each of these primes such a
# modulus is a power of 65537; of all others one in 2**27 is.
ROCA_PRIMES = [n for n in range(3, 168) if all(n % divisor for divisor in range(2, n))]
ROCA_RESIDUES = [(p, {pow(65537, power, p) for power in range(p)}) for p in ROCA_PRIMES]

log = get_logger()


class IssuerKeys:
    """The issuer's public keys (RFC 7517), cached: one fetch at a time, with pauses between."""

    def __init__(self, settings: Settings, http: httpx.AsyncClient | None) -> None:
        self._url = _address(settings)
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


def _address(settings: Settings) -> str:
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
