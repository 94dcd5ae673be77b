"""`auth.py`: which tokens name a caller, and that every other one is a 401 and nothing worse."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import hmac
import json
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext, suppress
from datetime import timedelta
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from fastapi import FastAPI, Request, Response
from jose import jwk
from jose.backends.base import Key
from structlog.testing import CapturingLogger

import auth
from config import ConfigurationError, Settings
from errors import Overloaded, ServiceError, Unauthenticated
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


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in claims().items() if key != name}


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


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(auth, "time", clock)
    return clock


@pytest.fixture
def signature_checks(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What python-jose was asked to verify with SECRET_KEY."""
    seen: list[bytes] = []
    key_class = type(jwk.construct(SECRET, "HS256"))
    verify = key_class.verify

    def counting(self: Key, message: bytes, signature: bytes) -> bool:
        seen.append(message)
        return verify(self, message, signature)

    monkeypatch.setattr(key_class, "verify", counting)
    return seen


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> CapturingLogger:
    log = CapturingLogger()
    monkeypatch.setattr(auth, "log", log)
    return log


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


# --- Valid tokens ---


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        pytest.param(claims(), Principal("alice"), id="the least"),
        pytest.param(claims(scope=""), Principal("alice"), id="an empty scope"),
        pytest.param(
            claims(scope="orders:manage  a b a "),
            Principal("alice", frozenset({"orders:manage", "a", "b"})),
            id="scopes with spare spaces",
        ),
        pytest.param(claims(sub="é💳" * 127 + "x"), Principal("é💳" * 127 + "x"), id="255 signs"),
        pytest.param(claims(sub=" "), Principal(" "), id="a blank"),
        pytest.param(claims(exp=NOW + 0.5), Principal("alice"), id="a fractional exp"),
        pytest.param(claims(nbf=NOW, iat=NOW), Principal("alice"), id="nbf and iat now"),
        pytest.param(claims(nbf=NOW + 5, iat=NOW + 5), Principal("alice"), id="skewed clock"),
        pytest.param(claims(aud="elsewhere", iss="x"), Principal("alice"), id="aud unconfigured"),
        pytest.param(claims(extra={"a": [1, {}]}), Principal("alice"), id="unknown claims"),
    ],
)
async def test_a_valid_token_names_its_caller(payload: Any, expected: Principal) -> None:
    assert await verify(verifier(), token(payload)) == expected


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
async def test_the_scheme_is_read_in_any_case(scheme: str) -> None:
    assert await verifier().verify(f"{scheme} {token()}") == Principal("alice")


@pytest.mark.anyio
async def test_spaces_around_the_token_are_those_of_the_header() -> None:
    assert await verifier().verify(f"Bearer   {token()} ") == Principal("alice")


@pytest.mark.anyio
async def test_a_shared_secret_needs_no_kid_and_ignores_one() -> None:
    assert await verify(verifier(), token(header=HS256 | {"kid": "any"})) == Principal("alice")


@pytest.mark.anyio
@pytest.mark.parametrize("named", ["shop", ["shop"], ["other", "shop"]])
async def test_the_configured_audience_may_be_one_of_several(named: Any) -> None:
    subject = verifier(jwt_audience="shop")
    assert await verify(subject, token(claims(aud=named))) == Principal("alice")


@pytest.mark.anyio
async def test_the_configured_issuer_is_accepted() -> None:
    subject = verifier(jwt_issuer="https://issuer.example")
    assert await verify(subject, token(claims(iss="https://issuer.example")))


@pytest.mark.anyio
async def test_a_token_of_exactly_the_greatest_length_is_accepted() -> None:
    assert await verify(verifier(), padded(8192)) == Principal("alice")


def padded(length: int) -> str:
    """A valid token of that many characters."""
    for filler in range(length * 3 // 4 - 300, length):
        made = token(claims(filler="x" * filler))
        if len(made) == length:
            return made
    raise AssertionError("no filler gives this length")


# --- Attacks on the header's value ---


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("authorization", "says"),
    [
        (None, "missing"),
        ("", "form"),
        ("Bearer", "form"),
        ("Bearer ", "form"),
        ("Bearer   ", "form"),
        ("Basic YWxpY2U6c2VjcmV0", "form"),
        (f"Token {token()}", "form"),
        (f"BearerX {token()}", "form"),
        (f"Bearer\t{token()}", "form"),
        (f" Bearer {token()}", "form"),
        (token(), "form"),
        (f"Bearer {token()} {token()}", "malformed"),
        (f"Bearer {token()}, Bearer {token()}", "malformed"),
        (f"Bearer {token()},", "malformed"),
        (f"Bearer {token()}\n", "malformed"),
        (f"Bearer \t{token()}", "malformed"),
        (f"Bearer {token()}\0", "malformed"),
        (f'Bearer "{token()}"', "malformed"),
        ("Bearer x", "malformed"),
        ("Bearer ..", "malformed"),
        ("Bearer a.b", "malformed"),
        ("Bearer a.b.c.d", "malformed"),
        ("Bearer a.b.c.d.e", "malformed"),
        (f"Bearer {token()}.", "malformed"),
        (f"Bearer {token()}=", "malformed"),
        (f"Bearer {token().rpartition('.')[0]}.", "malformed"),
        (f"Bearer {token().replace('.', '..', 1)}", "malformed"),
        (f"Bearer {token().replace('.', '+.', 1)}", "malformed"),
        (f"Bearer {token()}é", "malformed"),
        (f"Bearer {token()}\ud800", "malformed"),
        (f"Bearer {token()}١", "malformed"),
        ("Bearer a.b.c", "header is not base64url"),
        (f"Bearer {token()}AA", "signature is not base64url"),
        (f"Bearer {'a' * 8193}", "longer"),
        (f"Bearer {padded(8193)}", "longer"),
    ],
    ids=short,
)
async def test_a_header_that_is_not_one_bearer_token_is_refused(
    authorization: str | None, says: str
) -> None:
    assert says in await refusal(verifier(), authorization)


# --- Attacks on the token's header; every one of these has a valid signature ---


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"alg": "none"}, "not signed with HS256"),
        ({"alg": "None"}, "not signed with HS256"),
        ({"alg": "hs256"}, "not signed with HS256"),
        ({"alg": "HS256 "}, "not signed with HS256"),
        ({"alg": "HS384"}, "not signed with HS256"),
        ({"alg": "HS512"}, "not signed with HS256"),
        ({"alg": "RS256"}, "not signed with HS256"),
        ({"alg": "ES256"}, "not signed with HS256"),
        ({"alg": "dir"}, "not signed with HS256"),
        ({"alg": ["HS256"]}, "not signed with HS256"),
        ({"alg": {"HS256": 1}}, "not signed with HS256"),
        ({"alg": None}, "not signed with HS256"),
        ({"alg": ""}, "not signed with HS256"),
        ({"typ": "JWT"}, "not signed with HS256"),
        (HS256 | {"crit": ["b64"], "b64": False}, "crit"),
        (HS256 | {"crit": ["exp"]}, "crit"),
        (HS256 | {"crit": []}, "crit"),
        (HS256 | {"crit": None}, "crit"),
        (HS256 | {"kid": 7}, "`kid` must be a string"),
        (HS256 | {"kid": None}, "`kid` must be a string"),
        (HS256 | {"kid": ["a"]}, "`kid` must be a string"),
        (b'{"alg":"none","alg":"HS256"}', "header is not a JSON object"),
        (b'{"alg":"HS256","kid":"a","kid":"b"}', "header is not a JSON object"),
        (["HS256"], "header is not a JSON object"),
        ("HS256", "header is not a JSON object"),
        (None, "header is not a JSON object"),
        (1, "header is not a JSON object"),
        (b"{", "header is not a JSON object"),
        (b'{"alg":"HS256"}{}', "header is not a JSON object"),
        (b"\xff\xfe", "header is not a JSON object"),
        (b'\xef\xbb\xbf{"alg":"HS256"}', "header is not a JSON object"),
        ('{"alg":"HS256"}'.encode("utf-16"), "header is not a JSON object"),
        ('{"alg":"HS256"}'.encode("utf-32-le"), "header is not a JSON object"),
        (b"[" * 3000, "header is not a JSON object"),
        (b'{"alg":' + b"9" * 5000 + b"}", "The token"),
    ],
    ids=short,
)
async def test_a_header_that_is_not_ours_is_refused_though_its_signature_is_right(
    header: Any, says: str
) -> None:
    assert says in await refusal(verifier(), f"Bearer {token(header=header)}")


@pytest.mark.anyio
@pytest.mark.parametrize("depth", [900, 980, 990, 1000, 1100])
async def test_deep_nesting_is_never_worse_than_a_401(depth: int) -> None:
    """Each Python has a depth of its own at which reading JSON ends in RecursionError."""
    nested = b'"a":' + b'{"":' * depth + b"1" + b"}" * depth + b"}"
    header = compact(b'{"alg":"HS256",' + nested, b"{}")
    payload = compact(HS256, b'{"sub":"alice","exp":1900000600,' + nested)
    assert await refusal(verifier(), f"Bearer {header}")
    with suppress(Unauthenticated):
        assert await verify(verifier(), payload) == Principal("alice")


@pytest.mark.anyio
async def test_keys_that_a_token_brings_along_are_never_used() -> None:
    own = b"a-key-that-the-attacker-has-chosen-freely"
    header = HS256 | {
        "jwk": {"kty": "oct", "k": b64(own)},
        "jku": "https://attacker.example/keys",
        "x5u": "https://attacker.example/certificate",
        "x5c": [base64.b64encode(own).decode()],
    }
    forged = compact(header, claims(), lambda message: with_secret(message, own))
    assert "signature" in await refusal(verifier(), f"Bearer {forged}")
    assert await verify(verifier(), compact(header, claims())) == Principal("alice")


# --- Attacks on the claims; every one of these has a valid signature ---


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ([], "payload is not a JSON object"),
        ([["sub", "alice"]], "payload is not a JSON object"),
        ("alice", "payload is not a JSON object"),
        (None, "payload is not a JSON object"),
        (b"null", "payload is not a JSON object"),
        (b"1", "payload is not a JSON object"),
        (b"{", "payload is not a JSON object"),
        (b"\x80abc", "payload is not a JSON object"),
        (b"\xef\xbb\xbf" + as_bytes(claims()), "payload is not a JSON object"),
        (json.dumps(claims()).encode("utf-16"), "payload is not a JSON object"),
        (b'{"sub":"alice","sub":"bob","exp":1900000600}', "payload is not a JSON object"),
        (b'{"sub":"alice","exp":1,"exp":1900000600}', "payload is not a JSON object"),
        (b'{"sub":"a","exp":1900000600,"x":{"y":1,"y":2}}', "payload is not a JSON object"),
        (b"[" * 5000, "payload is not a JSON object"),
        ({}, "`exp` must be"),
        (without("exp"), "`exp` must be"),
        (claims(exp=None), "`exp` must be"),
        (claims(exp=True), "`exp` must be"),
        (claims(exp=str(int(NOW + 600))), "`exp` must be"),
        (claims(exp=[NOW + 600]), "`exp` must be"),
        (claims(exp={}), "`exp` must be"),
        (claims(exp=float("nan")), "`exp` must be"),
        (claims(exp=float("inf")), "`exp` must be"),
        (claims(exp=float("-inf")), "`exp` must be"),
        (b'{"sub":"alice","exp":1e999}', "`exp` must be"),
        (claims(exp=10**400), "`exp` must be"),
        (claims(exp=-(10**400)), "`exp` must be"),
        (b'{"sub":"alice","exp":' + b"9" * 5000 + b"}", "The token's"),
        (claims(exp=(NOW + 600) * 1000), "`exp` must be"),
        (claims(exp=253_402_300_800), "`exp` must be"),
        (claims(exp=-1), "`exp` must be"),
        (claims(exp=0), "expired"),
        (claims(exp=NOW), "expired"),
        (claims(exp=NOW - 0.001), "expired"),
        (claims(exp=NOW - 3600), "expired"),
        (claims(nbf=NOW + 5.1), "not valid yet: `nbf`"),
        (claims(nbf=None), "`nbf` must be"),
        (claims(nbf=False), "`nbf` must be"),
        (claims(nbf="0"), "`nbf` must be"),
        (claims(nbf=float("nan")), "`nbf` must be"),
        (claims(nbf=10**400), "`nbf` must be"),
        (claims(iat=NOW + 5.1), "not valid yet: `iat`"),
        (claims(iat=None), "`iat` must be"),
        (claims(iat="now"), "`iat` must be"),
        (claims(iat=float("nan")), "`iat` must be"),
        (without("sub"), "`sub` must be"),
        (claims(sub=None), "`sub` must be"),
        (claims(sub=7), "`sub` must be"),
        (claims(sub=True), "`sub` must be"),
        (claims(sub=["alice"]), "`sub` must be"),
        (claims(sub={"alice": 1}), "`sub` must be"),
        (claims(sub=""), "`sub` must be"),
        (claims(sub="a" * 256), "`sub` must be"),
        (claims(sub="a\0lice"), "`sub` must be"),
        (claims(sub="alice\ud800"), "`sub` must be"),
        (claims(sub="\udfffalice"), "`sub` must be"),
        (claims(scope=None), "`scope` must be"),
        (claims(scope=["orders:manage"]), "`scope` must be"),
        (claims(scope={"orders:manage": True}), "`scope` must be"),
        (claims(scope=True), "`scope` must be"),
        (claims(scope=0), "`scope` must be"),
        (claims(scope="a\norders:manage"), "`scope` must be"),
        (claims(scope="orders:manage\n"), "`scope` must be"),
        (claims(scope="a\u00a0orders:manage"), "`scope` must be"),
        (claims(scope="a\0"), "`scope` must be"),
        (claims(scope="\ud800"), "`scope` must be"),
        (claims(scope='"'), "`scope` must be"),
    ],
    ids=short,
)
async def test_claims_that_break_a_rule_are_refused_though_the_signature_is_right(
    payload: Any, says: str
) -> None:
    made = compact(HS256, payload)
    assert says in await refusal(verifier(), f"Bearer {made}")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "named", [..., None, "", "Shop", "shop ", "workshop", [], ["other"], [["shop"]], {"shop": 1}, 1]
)
async def test_a_configured_audience_must_be_named(named: Any) -> None:
    made = token(claims() if named is ... else claims(aud=named))
    assert "`aud`" in await refusal(verifier(jwt_audience="shop"), f"Bearer {made}")


@pytest.mark.anyio
@pytest.mark.parametrize("issuer", [..., None, "", "Issuer", "issuer/", ["issuer"], {}, 1])
async def test_a_configured_issuer_must_be_the_one(issuer: Any) -> None:
    made = token(claims() if issuer is ... else claims(iss=issuer))
    assert "`iss`" in await refusal(verifier(jwt_issuer="issuer"), f"Bearer {made}")


# --- Attacks on the signature ---


@pytest.mark.anyio
async def test_a_change_of_any_one_character_is_refused() -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    subject, good = verifier(), token()
    for index, sign in enumerate(good):
        # The top bit of its six: the lower ones of a last character may stand for nothing.
        other = "A" if sign == "." else alphabet[alphabet.index(sign) ^ 32]
        await refusal(subject, f"Bearer {good[:index]}{other}{good[index + 1 :]}")
    assert await verify(subject, good) == Principal("alice")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "signature",
    [
        with_secret(b"something else"),
        hmac.new(SECRET.encode(), token().rpartition(".")[0].encode(), hashlib.sha512).digest(),
        with_secret(token().rpartition(".")[0].encode(), b"another secret of more than 32 bytes"),
        with_secret(token().rpartition(".")[0].encode())[:31],
        with_secret(token().rpartition(".")[0].encode()) + b"\0",
        b"\0" * 32,
        b"\0",
    ],
    ids=short,
)
async def test_another_signature_is_refused(signature: bytes) -> None:
    forged = f"{token().rpartition('.')[0]}.{b64(signature)}"
    assert "signature" in await refusal(verifier(), f"Bearer {forged}")


@pytest.mark.anyio
async def test_nothing_that_is_made_up_causes_anything_but_a_401() -> None:
    dice, subject, good = random.Random(7), verifier(), token()
    values: list[Any] = [None, True, -1, 1e308, "", "\ud800", [], {}, [[]], {"a": None}, 10**30]
    for _ in range(1500):
        header, payload = dict(HS256), claims(scope="a", nbf=1, iat=1)
        header["kid"] = dice.choice(values)
        payload[dice.choice(list(payload))] = dice.choice(values)
        header[dice.choice(list(header))] = dice.choice(values)
        garbled = list(good)
        garbled[dice.randrange(len(good) - 1)] = chr(dice.randrange(0x250))
        for made in (
            compact(header, payload),
            "".join(garbled),
            dice.randbytes(99).decode("latin1"),
        ):
            try:
                await subject.verify(f"Bearer {made}")
            except Unauthenticated:
                continue
            assert made == good or isinstance(header["kid"], str)


# --- Algorithm confusion ---


@pytest.mark.anyio
@pytest.mark.parametrize("header_algorithm", ["HS256", "RS256"])
async def test_a_public_key_is_no_hmac_secret(header_algorithm: str) -> None:
    public, entry = rsa_key("good").public_key(), good_jwk("RS256")
    info, pkcs1 = serialization.PublicFormat.SubjectPublicKeyInfo, serialization.PublicFormat.PKCS1
    secrets = [
        public.public_bytes(serialization.Encoding.PEM, info),
        public.public_bytes(serialization.Encoding.PEM, info).strip(),
        public.public_bytes(serialization.Encoding.DER, info),
        public.public_bytes(serialization.Encoding.PEM, pkcs1),
        json.dumps(entry).encode(),
        entry["n"].encode(),
        b"",
    ]
    subject = issued("RS256", Issuer(entry))
    for secret in secrets:
        header = {"alg": header_algorithm, "kid": "good"}
        forged = compact(header, claims(), partial(with_secret, secret=secret))
        assert "sign" in await refusal(subject, f"Bearer {forged}")
    assert await verify(subject, signed("RS256")) == Principal("alice")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("configured", "used"),
    [("RS256", "ES256"), ("ES256", "RS256"), ("RS256", "HS256"), ("ES256", "HS256")],
)
async def test_only_the_configured_algorithm_is_accepted(configured: str, used: str) -> None:
    issuer = Issuer(
        good_jwk("RS256", kid="rsa"),
        good_jwk("ES256", kid="ec"),
        {"kty": "oct", "k": b64(SECRET.encode()), "kid": "oct", "alg": "HS256"},
    )
    subject = auth.TokenVerifier(
        settings(algorithm=configured, jwks_url=URL, secret_key=SECRET), http=issuer.http
    )
    kid = {"RS256": "rsa", "ES256": "ec", "HS256": "oct"}[used]
    sign = with_secret if used == "HS256" else with_private(private_key(used, "good"))
    for stated in (used, configured):
        forged = compact({"alg": stated, "kid": kid}, claims(), sign)
        await refusal(subject, f"Bearer {forged}")
    own = signed(configured, kid={"RS256": "rsa", "ES256": "ec"}[configured])
    assert await verify(subject, own) == Principal("alice")


@pytest.mark.anyio
@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_an_issuers_token_is_refused_where_the_secret_rules(algorithm: str) -> None:
    assert "HS256" in await refusal(verifier(), f"Bearer {signed(algorithm)}")


@pytest.mark.anyio
@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_an_attackers_key_in_the_header_is_never_fetched_or_used(algorithm: str) -> None:
    issuer, own = Issuer(good_jwk(algorithm)), private_key(algorithm, "attacker")
    header = {
        "alg": algorithm,
        "kid": "good",
        "jwk": public_jwk(own, kid="good"),
        "jku": "https://attacker.example/keys",
    }
    subject = issued(algorithm, issuer)
    forged = compact(header, claims(), with_private(own))
    assert "signature" in await refusal(subject, f"Bearer {forged}")
    assert issuer.urls == [URL]


@pytest.mark.anyio
async def test_ecdsa_signatures_of_zeros_or_in_der_are_refused() -> None:
    subject, header = issued("ES256", Issuer(good_jwk("ES256"))), {"alg": "ES256", "kid": "good"}
    unsigned = compact(header, claims()).rpartition(".")[0]
    der = ec_key("good").sign(unsigned.encode(), ec.ECDSA(hashes.SHA256()))
    for signature in (b"\0" * 64, b"\0" * 63 + b"\1", b"\xff" * 64, der):
        forged = f"{unsigned}.{b64(signature)}"
        assert "signature" in await refusal(subject, f"Bearer {forged}")


# --- The cache of verified tokens ---


@pytest.mark.anyio
async def test_a_token_seen_before_is_not_verified_again(signature_checks: list[bytes]) -> None:
    subject, again = verifier(), token(claims(scope="a b"))
    first = await verify(subject, again)
    assert await verify(subject, again) == first == Principal("alice", frozenset({"a", "b"}))
    assert len(signature_checks) == 1


@pytest.mark.anyio
async def test_a_token_seen_before_still_expires_to_the_moment(
    clock: Clock, signature_checks: list[bytes]
) -> None:
    subject, again = verifier(), token(claims(exp=NOW + 60))
    await verify(subject, again)
    clock.advance(59.9)
    await verify(subject, again)
    clock.advance(0.1)
    assert "expired" in await refusal(subject, f"Bearer {again}")
    assert len(signature_checks) == 1


@pytest.mark.anyio
async def test_an_expired_token_takes_no_room(clock: Clock) -> None:
    subject = verifier()
    await verify(subject, token(claims(exp=NOW + 60)))
    clock.advance(60)
    await refusal(subject, f"Bearer {token(claims(exp=NOW + 60))}")
    await refusal(subject, f"Bearer {token(claims(exp=NOW))}")
    assert not subject._verified


@pytest.mark.anyio
async def test_a_refused_token_is_refused_again(signature_checks: list[bytes]) -> None:
    subject = verifier()
    for bad in (f"{token()[:-8]}AAAAAAAA", token(claims(sub=""))):
        await refusal(subject, f"Bearer {bad}")
        await refusal(subject, f"Bearer {bad}")
    assert len(signature_checks) == 4


@pytest.mark.anyio
async def test_the_token_used_longest_ago_is_forgotten_first(
    monkeypatch: pytest.MonkeyPatch, signature_checks: list[bytes]
) -> None:
    monkeypatch.setattr(auth, "MAX_VERIFIED", 2)
    subject = verifier()
    a, b, c = (token(claims(sub=name)) for name in "abc")
    for made in (a, b, a, c, a):
        await verify(subject, made)
    assert len(signature_checks) == 3
    await verify(subject, b)
    assert len(signature_checks) == 4


@pytest.mark.anyio
async def test_the_cache_is_bounded_and_holds_no_token_and_no_signature() -> None:
    subject = verifier()
    for number in range(auth.MAX_VERIFIED + 10):
        await verify(subject, token(claims(sub=str(number))))
    assert len(subject._verified) == auth.MAX_VERIFIED
    assert token(claims(sub="4100")).rpartition(".")[2] not in repr(subject._verified)


@pytest.mark.anyio
async def test_a_token_is_verified_on_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def hop(*_: object) -> None:
        raise AssertionError("a thread hop")

    monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", hop)
    assert await verify(issued("RS256", Issuer(good_jwk("RS256"))), signed("RS256"))
    assert await verify(verifier(), token())


# --- The issuer's keys ---


@pytest.mark.anyio
@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_an_issuers_token_is_verified_with_the_key_it_names(algorithm: str) -> None:
    issuer = Issuer(good_jwk(algorithm), good_jwk(algorithm, "other"))
    subject = issued(algorithm, issuer)
    assert await verify(subject, signed(algorithm)) == Principal("alice")
    assert await verify(subject, signed(algorithm, "other", "other")) == Principal("alice")
    crossed = signed(algorithm, "other", "good")
    assert "signature" in await refusal(subject, f"Bearer {crossed}")
    [request] = issuer.requests
    assert (request.method, str(request.url)) == ("GET", URL)
    assert request.headers["Accept-Encoding"] == "identity"
    assert "Authorization" not in request.headers


@pytest.mark.anyio
@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_the_claims_of_an_issuers_token_are_checked_too(algorithm: str) -> None:
    subject = issued(algorithm, Issuer(good_jwk(algorithm)), jwt_audience="shop")
    assert await verify(subject, signed(algorithm, aud="shop")) == Principal("alice")
    assert "`aud`" in await refusal(subject, f"Bearer {signed(algorithm)}")
    late = signed(algorithm, aud="shop", exp=NOW)
    assert "expired" in await refusal(subject, f"Bearer {late}")


@pytest.mark.anyio
async def test_keys_come_over_http_from_a_real_server(
    monkeypatch: pytest.MonkeyPatch, jwks_server: str
) -> None:
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    subject = auth.TokenVerifier(settings(algorithm="ES256", jwks_url=f"{jwks_server}/keys"))
    assert await verify(subject, signed("ES256")) == Principal("alice")
    await subject.aclose()
    assert subject._keys._http.is_closed  # type: ignore[attr-defined]
    moved = auth.TokenVerifier(settings(algorithm="ES256", jwks_url=f"{jwks_server}/moved"))
    with pytest.raises(Overloaded):
        await verify(moved, signed("ES256"))
    await moved.aclose()


@pytest.fixture
def jwks_server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"keys": [good_jwk("ES256")]}).encode()
            self.send_response(200 if self.path == "/keys" else 302)
            self.send_header("Location", "/keys")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.anyio
async def test_a_token_without_kid_works_while_one_key_fits() -> None:
    issuer = Issuer(good_jwk("ES256"), good_jwk("RS256", kid="rsa"), good_jwk("ES256", use="enc"))
    assert await verify(issued("ES256", issuer), signed("ES256", kid=None)) == Principal("alice")


@pytest.mark.anyio
async def test_a_key_without_kid_serves_tokens_without_kid_only() -> None:
    subject = issued("ES256", Issuer(public_jwk(ec_key("good"))))
    assert await verify(subject, signed("ES256", kid=None)) == Principal("alice")
    assert "`kid`" in await refusal(subject, f"Bearer {signed('ES256')}")


@pytest.mark.anyio
@pytest.mark.parametrize("kid", [None, "good"])
async def test_a_token_that_fits_two_keys_is_refused(kid: str | None) -> None:
    issuer = Issuer(good_jwk("ES256"), good_jwk("ES256", "other", kid=kid or "other"))
    made = signed("ES256", kid=kid)
    assert "`kid`" in await refusal(issued("ES256", issuer), f"Bearer {made}")


UNFIT: list[dict[str, Any]] = [
    {"use": "enc"},
    {"use": ["sig"]},
    {"alg": "RS512"},
    {"alg": "ES384"},
    {"alg": None},
    {"key_ops": ["sign", "encrypt"]},
    {"key_ops": 7},
    {"key_ops": None},
    {"kty": "oct"},
    {"kty": None},
    {"kid": 7},
    {"kid": ["bad"]},
    {"d": "Aw"},
]
NO_NUMBERS: list[Any] = [None, 7, 10**12, [], "", "=", "é", "AA"]
NO_CURVES: list[Any] = [None, 7, [], "", "p-256", "P-384", "secp256k1"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("algorithm", "members"),
    [(algorithm, members) for algorithm in ALGORITHMS for members in UNFIT]
    + [("RS256", {part: value}) for part in ("n", "e") for value in NO_NUMBERS]
    + [("RS256", {"e": list(b"AQAB")})]  # what jose takes for text
    + [("ES256", {part: value}) for part in ("x", "y") for value in NO_NUMBERS]
    + [("ES256", {"crv": value}) for value in NO_CURVES],
    ids=repr,
)
async def test_a_key_that_does_not_fit_is_ignored_and_the_others_serve(
    algorithm: str, members: dict[str, Any]
) -> None:
    subject = issued(algorithm, Issuer(good_jwk(algorithm, "bad") | members, good_jwk(algorithm)))
    made = signed(algorithm, "bad", "bad")
    assert "`kid`" in await refusal(subject, f"Bearer {made}")
    assert await verify(subject, signed(algorithm)) == Principal("alice")
    assert await verify(subject, signed(algorithm, kid=None)) == Principal("alice")


@pytest.mark.anyio
async def test_rsa_keys_under_2048_bits_and_curves_other_than_p_256_are_ignored() -> None:
    for algorithm, key in (
        ("RS256", rsa_key("bad", 1024)),
        ("ES256", ec_key("bad", ec.SECP384R1)),
    ):
        subject = issued(algorithm, Issuer(public_jwk(key, kid="bad"), good_jwk(algorithm)))
        made = compact({"alg": algorithm, "kid": "bad"}, claims(), with_private(key))
        assert "`kid`" in await refusal(subject, f"Bearer {made}")


@pytest.mark.anyio
async def test_a_key_whose_private_part_is_published_is_ignored() -> None:
    keys = {
        "RS256": number(rsa_key("bad").private_numbers().d),
        "ES256": number(ec_key("bad").private_numbers().private_value),
    }
    for algorithm, d in keys.items():
        subject = issued(algorithm, Issuer(good_jwk(algorithm, "bad", d=d), good_jwk(algorithm)))
        made = signed(algorithm, "bad", "bad")
        assert "`kid`" in await refusal(subject, f"Bearer {made}")


@pytest.mark.anyio
@pytest.mark.parametrize("entry", [None, "bad", 7, [], ["kty"], {}, {"kid": "bad"}], ids=repr)
async def test_what_is_no_key_at_all_is_ignored(entry: Any) -> None:
    subject = issued("ES256", Issuer(entry, good_jwk("ES256"), entry))
    assert await verify(subject, signed("ES256")) == Principal("alice")


@pytest.mark.anyio
@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_what_an_issuer_usually_says_about_a_key_is_understood(algorithm: str) -> None:
    entry = good_jwk(algorithm, use="sig", alg=algorithm, key_ops=["verify"], x5t="x", x5c=["y"])
    assert await verify(issued(algorithm, Issuer(entry)), signed(algorithm)) == Principal("alice")


# --- Fetching them: once, rarely, and never in the way ---


@pytest.mark.anyio
async def test_a_hundred_first_callers_share_one_fetch() -> None:
    issuer = Issuer(good_jwk("ES256"))
    (visited, gate), subject = issuer.hangs(), issued("ES256", issuer)
    callers = [
        asyncio.create_task(verify(subject, signed("ES256", sub=f"u{n}"))) for n in range(100)
    ]
    await visited.wait()
    gate.set()
    found = await asyncio.gather(*callers)
    assert {caller.user_id for caller in found} == {f"u{n}" for n in range(100)}
    assert issuer.fetches == 1


@pytest.mark.anyio
async def test_unknown_kids_cause_one_fetch_per_pause_however_many_they_are(clock: Clock) -> None:
    issuer = Issuer(good_jwk("ES256"))
    subject = issued("ES256", issuer)
    await verify(subject, signed("ES256"))
    for expected in (2, 3):
        clock.advance(auth.JWKS_PAUSE)
        for _ in range(3):
            made = [signed("ES256", kid=f"unknown-{n}") for n in range(100)]
            await asyncio.gather(*(refusal(subject, f"Bearer {one}") for one in made))
            clock.advance(auth.JWKS_PAUSE / 4)
        assert issuer.fetches == expected
    assert await verify(subject, signed("ES256")) == Principal("alice")


@pytest.mark.anyio
async def test_known_keys_serve_for_minutes_without_a_fetch(clock: Clock) -> None:
    issuer = Issuer(good_jwk("ES256"))
    subject = issued("ES256", issuer)
    await verify(subject, signed("ES256"))
    clock.advance(299.9)
    await verify(subject, signed("ES256"))
    assert issuer.fetches == 1
    clock.advance(0.1)
    await verify(subject, signed("ES256"))
    assert issuer.fetches == 2


@pytest.mark.anyio
async def test_a_new_key_is_found_as_soon_as_a_token_names_it(clock: Clock) -> None:
    issuer = Issuer(good_jwk("ES256"))
    subject = issued("ES256", issuer)
    await verify(subject, signed("ES256"))
    clock.advance(auth.JWKS_PAUSE)
    issuer.keys.append(good_jwk("ES256", "next"))
    assert await verify(subject, signed("ES256", "next", "next")) == Principal("alice")
    assert await verify(subject, signed("ES256")) == Principal("alice")
    assert issuer.fetches == 2


@pytest.mark.anyio
@pytest.mark.parametrize("keys", [[good_jwk("ES256", "next")], []])
async def test_a_withdrawn_key_ends_the_tokens_that_were_verified_with_it(
    clock: Clock, keys: list[Any]
) -> None:
    issuer, made = Issuer(good_jwk("ES256")), signed("ES256", exp=NOW + 9999)
    subject = issued("ES256", issuer)
    await verify(subject, made)
    issuer.keys = keys
    await verify(subject, made)
    clock.advance(auth.JWKS_FRESH)
    assert "`kid`" in await refusal(subject, f"Bearer {made}")


@pytest.mark.anyio
async def test_another_key_under_an_old_name_ends_the_tokens_of_the_first(clock: Clock) -> None:
    issuer, made = Issuer(good_jwk("ES256")), signed("ES256", exp=NOW + 9999)
    subject = issued("ES256", issuer)
    await verify(subject, made)
    issuer.keys = [good_jwk("ES256", "next", kid="good")]
    clock.advance(auth.JWKS_FRESH)
    assert "signature" in await refusal(subject, f"Bearer {made}")
    assert await verify(subject, signed("ES256", "next", "good")) == Principal("alice")


@pytest.mark.anyio
async def test_old_keys_serve_for_an_hour_while_the_host_is_down(clock: Clock) -> None:
    issuer, known = Issuer(good_jwk("ES256")), signed("ES256", exp=NOW + 9999)
    subject = issued("ES256", issuer)
    await verify(subject, known)
    issuer.goes_down()
    for age in (300, 301, 1800, 3599.9):
        clock.now = NOW + age
        assert await verify(subject, known) == Principal("alice")
        fresh = signed("ES256", sub=f"at-{age}", exp=NOW + 9999)
        assert await verify(subject, fresh) == Principal(f"at-{age}")
    clock.now = NOW + auth.JWKS_STALE
    with pytest.raises(Overloaded):
        await verify(subject, known)
    issuer.comes_back()
    clock.advance(auth.JWKS_PAUSE)
    assert await verify(subject, known) == Principal("alice")


@pytest.mark.anyio
async def test_a_host_that_is_down_is_asked_once_per_pause(clock: Clock) -> None:
    issuer = Issuer(good_jwk("ES256"))
    subject = issued("ES256", issuer)
    await verify(subject, signed("ES256"))
    issuer.goes_down()
    clock.advance(auth.JWKS_FRESH)
    for _ in range(5):
        await verify(subject, signed("ES256"))
    assert issuer.fetches == 2


@pytest.mark.anyio
async def test_nobody_waits_again_for_a_host_that_was_down(clock: Clock) -> None:
    issuer, known = Issuer(good_jwk("ES256")), signed("ES256", exp=NOW + 9999)
    subject = issued("ES256", issuer)
    await verify(subject, known)
    issuer.goes_down()
    clock.advance(auth.JWKS_FRESH)
    await verify(subject, known)
    visited, gate = issuer.hangs()
    issuer.keys = []
    clock.advance(auth.JWKS_PAUSE)
    assert await asyncio.wait_for(verify(subject, known), 1) == Principal("alice")
    await visited.wait()
    gate.set()  # the fetch went on behind the answer, and its result counts
    fetch = subject._keys._fetch  # type: ignore[attr-defined]
    await fetch
    assert "`kid`" in await refusal(subject, f"Bearer {known}")


@pytest.mark.anyio
async def test_without_any_key_the_answer_is_503_until_the_host_is_back(clock: Clock) -> None:
    issuer = Issuer(good_jwk("ES256"))
    issuer.goes_down()
    subject = issued("ES256", issuer)
    for _ in range(3):
        with pytest.raises(Overloaded) as caught:
            await verify(subject, signed("ES256"))
        assert caught.value.status == 503
        assert "Retry-After" in caught.value.headers
    assert issuer.fetches == 1
    issuer.comes_back()
    clock.advance(auth.JWKS_PAUSE)
    assert await verify(subject, signed("ES256")) == Principal("alice")


@pytest.mark.anyio
async def test_a_malformed_token_is_a_401_and_fetches_nothing_while_the_host_is_down() -> None:
    issuer = Issuer()
    issuer.goes_down()
    subject = issued("ES256", issuer)
    assert "malformed" in await refusal(subject, "Bearer x")
    assert "ES256" in await refusal(subject, f"Bearer {token()}")
    assert issuer.fetches == 0


KEYS = json.dumps({"keys": [good_jwk("ES256")]}).encode()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "response",
    [
        pytest.param(lambda: httpx.Response(404, content=KEYS), id="404"),
        pytest.param(lambda: httpx.Response(500, content=KEYS), id="500"),
        pytest.param(lambda: httpx.Response(206, content=KEYS), id="206"),
        pytest.param(lambda: httpx.Response(302, headers={"Location": URL}), id="a redirect"),
        pytest.param(lambda: httpx.Response(200, content=b""), id="nothing"),
        pytest.param(lambda: httpx.Response(200, content=b"<html>"), id="a web page"),
        pytest.param(lambda: httpx.Response(200, content=b"[" * 60_000), id="nested"),
        pytest.param(lambda: httpx.Response(200, json=[good_jwk("ES256")]), id="an array"),
        pytest.param(lambda: httpx.Response(200, json={}), id="no keys"),
        pytest.param(lambda: httpx.Response(200, json={"keys": "x"}), id="keys that are text"),
        pytest.param(lambda: httpx.Response(200, json={"keys": {"good": 1}}), id="keys by name"),
        pytest.param(
            lambda: httpx.Response(200, content=KEYS + b" " * auth.MAX_JWKS), id="too much"
        ),
        pytest.param(
            lambda: httpx.Response(
                200, content=gzip.compress(KEYS), headers={"Content-Encoding": "gzip"}
            ),
            id="compressed",
        ),
    ],
)
async def test_an_answer_that_is_no_key_set_is_no_answer(
    response: Callable[[], httpx.Response], clock: Clock
) -> None:
    async def answer() -> httpx.Response:
        return response()

    issuer = Issuer(good_jwk("ES256"))
    issuer.answer = answer
    subject = issued("ES256", issuer)
    with pytest.raises(Overloaded):
        await verify(subject, signed("ES256"))
    assert issuer.urls == [URL]
    issuer.comes_back()
    clock.advance(auth.JWKS_PAUSE)
    await verify(subject, signed("ES256"))
    issuer.answer = answer
    clock.advance(auth.JWKS_FRESH)
    assert await verify(subject, signed("ES256")) == Principal("alice")
    assert issuer.fetches == 3


@pytest.mark.anyio
async def test_a_host_that_never_finishes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Trickle(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            while True:
                yield b" "
                await asyncio.sleep(0)

    async def answer() -> httpx.Response:
        return httpx.Response(200, stream=Trickle())

    monkeypatch.setattr(auth, "JWKS_TIMEOUT", 0.02)
    monkeypatch.setattr(auth, "MAX_JWKS", 10**12)
    issuer = Issuer()
    issuer.answer = answer
    with pytest.raises(Overloaded):
        await asyncio.wait_for(verify(issued("ES256", issuer), signed("ES256")), 2)


@pytest.mark.anyio
async def test_a_caller_that_hangs_up_does_not_take_the_fetch_of_the_others_along() -> None:
    issuer = Issuer(good_jwk("ES256"))
    (visited, gate), subject = issuer.hangs(), issued("ES256", issuer)
    first, second = (asyncio.create_task(verify(subject, signed("ES256"))) for _ in range(2))
    await visited.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.set()
    assert await second == Principal("alice")
    assert issuer.fetches == 1


@pytest.mark.anyio
async def test_closing_stops_the_fetch_and_leaves_a_client_passed_in_open(clock: Clock) -> None:
    issuer = Issuer(good_jwk("ES256"))
    subject = issued("ES256", issuer)
    await verify(subject, signed("ES256"))
    issuer.goes_down()
    clock.advance(auth.JWKS_FRESH)
    await verify(subject, signed("ES256"))
    issuer.hangs()
    clock.advance(auth.JWKS_PAUSE)
    await verify(subject, signed("ES256"))
    await asyncio.wait_for(subject.aclose(), 1)
    assert not issuer.http.is_closed
    assert all(task is asyncio.current_task() for task in _unfinished())
    await verifier().aclose()


def _unfinished() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if "_load" in repr(task.get_coro())}


@pytest.mark.anyio
async def test_a_failed_fetch_is_logged_with_its_reason_and_without_the_token(
    log: CapturingLogger,
) -> None:
    issuer = Issuer()
    issuer.goes_down()
    with pytest.raises(Overloaded):
        await verify(issued("ES256", issuer), signed("ES256"))
    [call] = log.calls
    assert (call.method_name, call.args) == ("warning", ("auth.jwks_unavailable",))
    assert call.kwargs == {"error": "ConnectError", "reason": "refused"}


@pytest.mark.anyio
async def test_a_key_set_without_a_usable_key_is_believed_and_logged(
    log: CapturingLogger,
) -> None:
    subject = issued("ES256", Issuer(good_jwk("RS256")))
    assert "`kid`" in await refusal(subject, f"Bearer {signed('ES256')}")
    [call] = log.calls
    assert (call.method_name, call.args) == ("error", ("auth.jwks_without_usable_key",))


# --- Settings that cannot verify safely ---


@pytest.mark.parametrize(
    ("url", "environment", "fits"),
    [
        ("https://issuer.example/keys", "production", True),
        ("http://127.0.0.1:8080/keys", "production", False),
        ("http://[::1]/keys", "production", False),
        ("http://localhost/keys", "production", False),
        ("http://issuer.example/keys", "production", False),
        ("http://127.0.0.1.issuer.example/keys", "production", False),
        ("http://localhost@issuer.example/keys", "production", False),
        ("http://keycloak:8080/keys", "development", True),
        ("ftp://127.0.0.1/keys", "development", False),
        ("file:///etc/keys", "development", False),
        ("/keys", "development", False),
        ("https://", "development", False),
        ("https://issuer.example:port/", "development", False),
        (None, "development", False),
    ],
)
def test_keys_come_over_https_but_in_development(
    url: str | None, environment: str, fits: bool
) -> None:
    configured = settings(algorithm="RS256", jwks_url=url, environment=environment)
    http = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(500)))
    expected = nullcontext() if fits else pytest.raises(ConfigurationError, match="JWKS_URL")
    with expected:
        auth.TokenVerifier(configured, http=http)


@pytest.mark.parametrize(
    "secret",
    [
        None,
        "short",
        "x" * 31,
        "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQ\n-----END PUBLIC KEY-----",
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQ alice@example",
    ],
)
def test_a_secret_that_is_none_is_refused_and_not_repeated(secret: str | None) -> None:
    configured = settings(secret_key=secret)
    for use in (auth.TokenVerifier, lambda given: auth.mint(given, "alice")):
        with pytest.raises(ConfigurationError, match="SECRET_KEY") as caught:
            use(configured)
        assert secret is None or secret not in str(caught.value)


# --- Minting ---


@pytest.mark.anyio
@pytest.mark.parametrize("user_id", ["alice", "é💳", "a" * 255, " "])
async def test_a_minted_token_is_accepted(user_id: str) -> None:
    configured = settings(jwt_issuer="issuer", jwt_audience="shop")
    made = auth.mint(configured, user_id, "orders:manage payments:manage")
    expected = Principal(user_id, frozenset({"orders:manage", "payments:manage"}))
    assert await verify(auth.TokenVerifier(configured), made) == expected


def test_a_minted_token_says_who_when_and_for_whom() -> None:
    made = auth.mint(
        settings(jwt_issuer="issuer", jwt_audience="shop"), "alice", lifetime=timedelta(minutes=5)
    )
    header, payload, _ = (base64.urlsafe_b64decode(part + "==") for part in made.split("."))
    assert json.loads(header) == {"alg": "HS256", "typ": "JWT"}
    assert json.loads(payload) == {
        "sub": "alice",
        "scope": "",
        "iat": int(NOW),
        "exp": int(NOW) + 300,
        "iss": "issuer",
        "aud": "shop",
    }
    plain = json.loads(base64.urlsafe_b64decode(auth.mint(settings(), "bob").split(".")[1] + "=="))
    assert plain.keys() == {"sub", "scope", "iat", "exp"}


@pytest.mark.anyio
async def test_a_minted_token_ends_with_its_lifetime(clock: Clock) -> None:
    made, subject = auth.mint(settings(), "alice", lifetime=timedelta(minutes=5)), verifier()
    clock.advance(299)
    assert await verify(subject, made) == Principal("alice")
    clock.advance(1)
    assert "expired" in await refusal(subject, f"Bearer {made}")


@pytest.mark.parametrize("user_id", ["", "a" * 256, "a\0", "\ud800", None, 7])
def test_no_token_is_minted_for_an_invalid_user(user_id: Any) -> None:
    with pytest.raises(ValueError, match="user id"):
        auth.mint(settings(), user_id)


@pytest.mark.parametrize("scope", ["orders:manage\n", "é", '"', "a\0"])
def test_no_token_is_minted_with_an_invalid_scope(scope: str) -> None:
    with pytest.raises(ValueError, match="scope"):
        auth.mint(settings(), "alice", scope)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_token_is_minted_in_the_name_of_an_issuer(algorithm: str) -> None:
    with pytest.raises(ValueError, match=algorithm):
        auth.mint(settings(algorithm=algorithm, jwks_url=URL), "alice")


# --- The request ---


class Recorder:
    """A verifier that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []

    async def verify(self, authorization: str | None) -> Principal:
        self.asked.append(authorization)
        return Principal("alice")


def request(app: FastAPI, *headers: tuple[str, str]) -> Request:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    return Request({"type": "http", "app": app, "headers": raw, "state": {}})


def shop(subject: Any) -> FastAPI:
    app = FastAPI()
    app.state.verifier = subject

    @app.exception_handler(ServiceError)
    async def answer(_: Request, error: ServiceError) -> Response:
        return Response(error.body("id"), error.status, error.headers)

    @app.get("/me")
    async def me(user: auth.CurrentUser) -> dict[str, Any]:
        return {"user_id": user.user_id, "scopes": sorted(user.scopes)}

    return app


def client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop")


@pytest.mark.anyio
async def test_an_endpoint_gets_its_caller() -> None:
    made = auth.mint(settings(), "alice", "b a")
    async with client(shop(verifier())) as http:
        answer = await http.get("/me", headers={"Authorization": f"bearer {made}"})
    assert answer.json() == {"user_id": "alice", "scopes": ["a", "b"]}


@pytest.mark.anyio
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "Bearer x")],
        [("Authorization", "Basic eA==")],
        [("Authorization", f"Bearer {token()}"), ("Authorization", f"Bearer {token()}")],
        [("Authorization", f"Bearer {token()}"), ("authorization", "Basic eA==")],
        [("Authorization", ""), ("Authorization", f"Bearer {token()}")],
    ],
)
async def test_an_endpoint_answers_401_unless_there_is_one_good_header(
    headers: list[tuple[str, str]],
) -> None:
    async with client(shop(verifier())) as http:
        answer = await http.get("/me", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json()["code"] == "unauthenticated"


@pytest.mark.anyio
async def test_a_request_is_verified_once() -> None:
    recorder = Recorder()
    incoming = request(shop(recorder), ("Authorization", "Bearer x"))
    assert await auth.authenticate(incoming) == await auth.authenticate(incoming)
    assert incoming.state.principal == Principal("alice")
    assert recorder.asked == ["Bearer x"]


@pytest.mark.anyio
async def test_a_caller_established_before_is_not_verified_again() -> None:
    recorder = Recorder()
    incoming = request(shop(recorder))
    incoming.state.principal = Principal("bob")
    assert await auth.authenticate(incoming) == Principal("bob")
    assert recorder.asked == []


@pytest.mark.anyio
async def test_one_request_is_not_anothers() -> None:
    app = shop(verifier())
    mine = request(app, ("Authorization", f"Bearer {token()}"))
    assert await auth.authenticate(mine) == Principal("alice")
    with pytest.raises(Unauthenticated):
        await auth.authenticate(request(app))


def test_the_openapi_document_shows_the_scheme() -> None:
    document = shop(verifier()).openapi()
    scheme = document["components"]["securitySchemes"]["bearer"]
    assert (scheme["type"], scheme["scheme"], scheme["bearerFormat"]) == ("http", "bearer", "JWT")
    assert "`sub`" in scheme["description"]
    operation = document["paths"]["/me"]["get"]
    assert operation["security"] == [{"bearer": []}]
    assert "parameters" not in operation
