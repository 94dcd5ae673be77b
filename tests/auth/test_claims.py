"""Which tokens name a caller; headers and claims that break a rule are a 401, nothing worse."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from typing import Any

import pytest

from errors import Unauthenticated
from permissions import Principal
from tests.support.tokens import (
    HS256,
    NOW,
    as_bytes,
    b64,
    claims,
    compact,
    refusal,
    short,
    token,
    verifier,
    verify,
    with_secret,
)

pytestmark = pytest.mark.usefixtures("clock")  # as `auth.py` reads it


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in claims().items() if key != name}


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
