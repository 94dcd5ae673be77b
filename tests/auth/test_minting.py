"""Settings that cannot verify safely, and minting."""

from __future__ import annotations

import base64
import json
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import httpx
import pytest

import auth
from config import ConfigurationError
from permissions import Principal
from tests.support.tokens import (
    ALGORITHMS,
    NOW,
    URL,
    Clock,
    refusal,
    settings,
    verifier,
    verify,
)

pytestmark = pytest.mark.usefixtures("clock")  # as `auth.py` reads it


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
