"""Tokens made by hand, as attackers make them, and an issuer whose host has bad days."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

import auth
from config import Settings
from errors import Unauthenticated
from permissions import Principal

SECRET = "a-secret-of-this-test-and-of-nothing-else"


NOW = 1_900_000_000.0


URL = "https://issuer.example/keys"


ALGORITHMS = ["RS256", "ES256"]


Header = dict[str, Any]


Sign = Callable[[bytes], bytes]


# --- Tokens, made by hand: what python-jose would refuse to write is what attackers send ---


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def as_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def with_secret(message: bytes, secret: bytes = SECRET.encode()) -> bytes:
    return hmac.new(secret, message, hashlib.sha256).digest()


def compact(header: Any, payload: Any, sign: Sign = with_secret) -> str:
    signed = f"{b64(as_bytes(header))}.{b64(as_bytes(payload))}"
    return f"{signed}.{b64(sign(signed.encode()))}"


def claims(**changes: Any) -> dict[str, Any]:
    return {"sub": "alice", "exp": NOW + 600} | changes


HS256 = {"alg": "HS256", "typ": "JWT"}


def token(payload: Any = None, header: Any = HS256) -> str:
    """A valid token, but for what the caller changes."""
    return compact(header, claims() if payload is None else payload)


@cache
def rsa_key(name: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@cache
def ec_key(name: str, curve: type[ec.EllipticCurve] = ec.SECP256R1) -> Any:
    return ec.generate_private_key(curve())


def private_key(algorithm: str, name: str) -> Any:
    return rsa_key(name) if algorithm == "RS256" else ec_key(name)


def with_private(key: Any) -> Sign:
    def sign(message: bytes) -> bytes:
        if isinstance(key, rsa.RSAPrivateKey):
            return key.sign(message, padding.PKCS1v15(), hashes.SHA256())
        size = (key.curve.key_size + 7) // 8
        pair = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
        return b"".join(number.to_bytes(size, "big") for number in pair)

    return sign


def signed(algorithm: str, name: str = "good", kid: str | None = "good", **changes: Any) -> str:
    """An issuer's token."""
    header: Header = {"alg": algorithm, "typ": "JWT"} | ({"kid": kid} if kid else {})
    return compact(header, claims(**changes), with_private(private_key(algorithm, name)))


def number(value: int) -> str:
    return b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def public_jwk(key: Any, **members: Any) -> dict[str, Any]:
    public = key.public_key().public_numbers()
    if isinstance(key, rsa.RSAPrivateKey):
        return {"kty": "RSA", "n": number(public.n), "e": number(public.e)} | members
    curve = {"secp256r1": "P-256", "secp384r1": "P-384"}[key.curve.name]
    return {"kty": "EC", "crv": curve, "x": number(public.x), "y": number(public.y)} | members


def good_jwk(algorithm: str, name: str = "good", **members: Any) -> dict[str, Any]:
    return public_jwk(private_key(algorithm, name), **({"kid": name} | members))


# --- The world around the verifier ---


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = NOW

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now - NOW  # nothing, as on a machine that has just been started

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Issuer:
    """A JWKS host: counts its visitors, and can be told to misbehave."""

    def __init__(self, *keys: Any) -> None:
        self.keys = list(keys)
        self.requests: list[httpx.Request] = []
        self.answer: Callable[[], Awaitable[httpx.Response]] | None = None
        self.http = httpx.AsyncClient(transport=httpx.MockTransport(self._handle))

    @property
    def fetches(self) -> int:
        return len(self.requests)

    @property
    def urls(self) -> list[str]:
        return [str(request.url) for request in self.requests]

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.answer is not None:
            return await self.answer()
        return httpx.Response(200, json={"keys": self.keys})

    def goes_down(self) -> None:
        async def fail() -> httpx.Response:
            raise httpx.ConnectError("refused")

        self.answer = fail

    def comes_back(self) -> None:
        self.answer = None

    def hangs(self) -> tuple[asyncio.Event, asyncio.Event]:
        """Set by the first visitor; and, once set by the test, the host answers."""
        visited, gate = asyncio.Event(), asyncio.Event()

        async def wait() -> httpx.Response:
            visited.set()
            await gate.wait()
            return httpx.Response(200, json={"keys": self.keys})

        self.answer = wait
        return visited, gate


def short(value: object) -> str:
    """The id of a case in a table."""
    return ascii(value)[:48]


def settings(**changes: Any) -> Settings:
    fixed: dict[str, Any] = {
        "environment": "development",
        "secret_key": SECRET,
        "algorithm": "HS256",
        "jwks_url": None,
        "jwt_issuer": None,
        "jwt_audience": None,
    }
    return Settings(_env_file=None, **(fixed | changes))


def verifier(**changes: Any) -> auth.TokenVerifier:
    return auth.TokenVerifier(settings(**changes))


def issued(algorithm: str, issuer: Issuer, **changes: Any) -> auth.TokenVerifier:
    configured = settings(algorithm=algorithm, jwks_url=URL, secret_key=None, **changes)
    return auth.TokenVerifier(configured, http=issuer.http)


async def verify(subject: auth.TokenVerifier, token: str) -> Principal:
    return await subject.verify(f"Bearer {token}")


async def refusal(subject: auth.TokenVerifier, authorization: str | None) -> str:
    """The detail of the 401, after checking what every 401 has to be."""
    with pytest.raises(Unauthenticated) as caught:
        await subject.verify(authorization)
    error = caught.value
    assert error.status == 401
    assert error.headers == {"WWW-Authenticate": "Bearer"}
    for word in (authorization or "").split(" ")[1:]:
        for part in word.split("."):
            assert len(part) < 8 or part not in error.detail
    return error.detail
