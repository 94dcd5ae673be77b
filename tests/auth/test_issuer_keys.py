"""Which keys of an issuer verify a token."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

import auth
from errors import Overloaded
from permissions import Principal
from tests.support.tokens import (
    ALGORITHMS,
    NOW,
    URL,
    Issuer,
    claims,
    compact,
    ec_key,
    good_jwk,
    issued,
    number,
    public_jwk,
    refusal,
    rsa_key,
    settings,
    signed,
    verify,
    with_private,
)

pytestmark = pytest.mark.usefixtures("clock")  # as `auth.py` reads it


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
