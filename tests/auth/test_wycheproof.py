"""Wycheproof's vectors for JSON Web Signatures through the verifier that serves requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from jose.utils import base64url_decode

import auth
from config import MIN_SECRET_BYTES, Settings
from errors import Unauthenticated
from tests.support.paths import CORPORA

CORPUS = CORPORA / "wycheproof"
URL = "https://issuer.example/keys"
SECRET = "a-secret-of-this-test-and-of-nothing-else"
# The payload of the vectors is no claims. Only a token whose signature was found to be right, with
# the key at hand, is refused for that.
VERIFIED = "The token's payload is not a JSON object."

Vector = tuple[str, dict[str, Any], dict[str, Any]]  # its name, its group's key or keys, the vector


def vectors() -> Iterator[Vector]:
    for path in sorted(CORPUS.glob("*.json")):
        for group in json.loads(path.read_text())["testGroups"]:
            for vector in group["tests"]:
                name = f"{path.stem}-{vector['tcId']}-{vector['comment']}"
                yield name, group.get("public", group["private"]), vector


class OneKey:
    """A shared key of any bytes; SECRET_KEY is a text."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self.key = auth.SecretKey(base64url_decode(entry["k"].encode()))

    async def require_key(self, kid: str | None) -> auth.SecretKey:
        return self.key

    async def aclose(self) -> None:
        pass


def is_secret_key(entry: dict[str, Any]) -> bool:
    """Whether the settings would take such a SECRET_KEY; it has no other use than HS256."""
    if entry["kty"] != "oct" or entry.get("alg") != "HS256":
        return False
    return len(base64url_decode(entry["k"].encode())) >= MIN_SECRET_BYTES


def verifier(algorithm: str, keys: dict[str, Any]) -> auth.TokenVerifier:
    entries = keys.get("keys", [keys])
    settings = Settings(
        _env_file=None,
        algorithm=algorithm,
        secret_key=SECRET,
        jwks_url=URL,
        jwt_issuer=None,
        jwt_audience=None,
    )
    document = {"keys": entries}
    issuer = httpx.MockTransport(lambda _: httpx.Response(200, json=document))
    made = auth.TokenVerifier(settings, http=httpx.AsyncClient(transport=issuer))
    if algorithm == "HS256" and len(entries) == 1 and is_secret_key(entries[0]):
        made._keys = OneKey(entries[0])
    return made


async def is_verified(algorithm: str, keys: dict[str, Any], vector: dict[str, Any]) -> bool:
    """Whether the signature was accepted: then the token is refused for its payload, or not."""
    given = vector.get("jws", vector.get("jwe"))
    token = given if isinstance(given, str) else json.dumps(given)
    try:
        await verifier(algorithm, keys).verify(f"Bearer {token}")
    except Unauthenticated as error:
        return error.detail == VERIFIED
    return True


VALID = [vector for vector in vectors() if vector[2]["result"] == "valid"]
# To the letter the token that is called valid, ValidMac, under the same key.
MISTAKES = {"json_web_signature_test-367-", "json_web_signature_test-370-"}
INVALID = [
    vector
    for vector in vectors()
    if vector[2]["result"] == "invalid" and not vector[0].startswith(tuple(MISTAKES))
]


@pytest.mark.anyio
@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "ES256"])
async def test_nothing_that_wycheproof_calls_invalid_is_accepted(algorithm: str) -> None:
    accepted = [
        name for name, keys, vector in INVALID if await is_verified(algorithm, keys, vector)
    ]
    assert len(INVALID) == 451
    assert accepted == []


@pytest.mark.anyio
@pytest.mark.parametrize(("algorithm", "least"), [("HS256", 10), ("RS256", 9), ("ES256", 3)])
async def test_the_valid_ones_of_the_configured_algorithm_are_verified(
    algorithm: str, least: int
) -> None:
    """Else nothing at all might be accepted, and the test above would mean nothing."""
    accepted = [vector for _, keys, vector in VALID if await is_verified(algorithm, keys, vector)]
    assert len(accepted) == least


def test_what_is_left_out_is_the_valid_token_itself() -> None:
    found = {name: (keys, vector["jws"]) for name, keys, vector in vectors() if "jws" in vector}
    valid = found["json_web_signature_test-357-ValidMac"]
    left_out = [token for name, token in found.items() if name.startswith(tuple(MISTAKES))]
    assert left_out == [valid, valid]
