"""Attacks on the signature and the algorithm, and the cache of verified tokens."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import random
from functools import partial
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import auth
from errors import Unauthenticated
from permissions import Principal
from tests.support.tokens import (
    ALGORITHMS,
    HS256,
    NOW,
    SECRET,
    URL,
    Clock,
    Issuer,
    b64,
    claims,
    compact,
    ec_key,
    good_jwk,
    issued,
    private_key,
    public_jwk,
    refusal,
    rsa_key,
    settings,
    short,
    signed,
    token,
    verifier,
    verify,
    with_private,
    with_secret,
)

pytestmark = pytest.mark.usefixtures("clock")  # as `auth.py` reads it


@pytest.fixture
def signature_checks(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What SECRET_KEY was asked to verify."""
    seen: list[bytes] = []
    verify = auth.SecretKey.verify

    def counting(self: auth.SecretKey, message: bytes, signature: bytes) -> bool:
        seen.append(message)
        return verify(self, message, signature)

    monkeypatch.setattr(auth.SecretKey, "verify", counting)
    return seen


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
