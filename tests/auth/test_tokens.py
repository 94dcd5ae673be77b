"""What a token must be beyond its signature, and what one with fewer scopes gets on a repeat."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import string
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest

import auth
from config import Settings
from errors import Unauthenticated
from permissions import Principal
from tests.support.clients import Api
from tests.support.factories import card, order
from tests.support.shop import Shop, problem

SECRET = "a-secret-of-this-test-and-of-nothing-else"
ALPHABET = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def configured(**changes: Any) -> Settings:
    return Settings(_env_file=None, algorithm="HS256", secret_key=SECRET, **changes)


def encoded(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def token(header: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token with a good signature."""
    payload = {"sub": "alice", "exp": int(time.time()) + 600} | claims
    signed = f"{encoded({'alg': 'HS256'} | (header or {}))}.{encoded(payload)}"
    return f"{signed}.{signature(signed)}"


def signature(signed: str) -> str:
    digest = hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


async def is_good(made: str, **settings: Any) -> bool:
    try:
        await auth.TokenVerifier(configured(**settings)).verify(f"Bearer {made}")
    except Unauthenticated:
        return False
    return True


@pytest.mark.anyio
async def test_a_token_has_one_spelling() -> None:
    made = token()
    spellings = [made[:-1] + letter for letter in ALPHABET]
    assert [other for other in spellings if await is_good(other)] == [made]


@pytest.mark.anyio
@pytest.mark.parametrize("spare", ["", " ", "  "])
async def test_a_header_and_a_payload_have_one_spelling_too(spare: str) -> None:
    now = int(time.time())
    header = base64.urlsafe_b64encode(b'{"alg":"HS256"}' + spare.encode()).rstrip(b"=").decode()
    claims = json.dumps({"sub": "alice", "exp": now + 600}).encode() + spare.encode()
    payload = base64.urlsafe_b64encode(claims).rstrip(b"=").decode()
    for first, second in [
        *((header[:-1] + letter, payload) for letter in ALPHABET),
        *((header, payload[:-1] + letter) for letter in ALPHABET),
    ]:
        signed = f"{first}.{second}"
        # Signed as it is spelled: only the spelling itself can be wrong. Another letter may also
        # make another text, which is no JSON, or spare white space.
        same = all(
            base64.urlsafe_b64decode(part + "==") == base64.urlsafe_b64decode(good + "==")
            for part, good in ((first, header), (second, payload))
        )
        if same:
            good = (first, second) == (header, payload)
            assert await is_good(f"{signed}.{signature(signed)}") is good, signed


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt"])
async def test_a_token_may_say_that_it_is_one(kind: str) -> None:
    assert await is_good(token({"typ": kind}))


@pytest.mark.anyio
@pytest.mark.parametrize(
    "kind",
    ["", "JWE", "JWS", "JOSE", "dpop+jwt", "secevent+jwt", "id+jwt", "jwt ", None, 1, ["JWT"]],
)
async def test_a_token_of_another_type_is_refused_though_its_signature_is_right(kind: Any) -> None:
    assert not await is_good(token({"typ": kind}))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("issued", "expires", "good"),
    [
        (0, 3600, True),
        (0, 3601, False),
        (-3000, 600, True),
        (-3001, 600, False),
        (-86_400, 1, False),  # it is over in a second, and was too long all the same
        (None, 3600, True),
        (None, 3700, False),
        (None, 250_000_000_000, False),
    ],
)
async def test_a_token_that_lives_too_long_is_refused(
    issued: int | None, expires: int, good: bool
) -> None:
    now = int(time.time())
    claims: dict[str, Any] = {} if issued is None else {"iat": now + issued}
    made = token(None, **claims, exp=now + expires)
    assert await is_good(made, jwt_max_lifetime=3600) is good


@pytest.mark.anyio
async def test_a_token_lives_a_day_at_most_unless_the_settings_say_otherwise() -> None:
    now = int(time.time())
    day = token(iat=now, exp=now + 86_400)
    longer = token(iat=now, exp=now + 86_401)
    assert await is_good(day)
    assert not await is_good(longer)
    assert await is_good(longer, jwt_max_lifetime=86_401)


@pytest.mark.anyio
async def test_what_we_mint_is_never_too_long_for_ourselves() -> None:
    settings = configured(jwt_max_lifetime=60)
    made = auth.mint(settings, "alice", lifetime=timedelta(days=9))
    verified = await auth.TokenVerifier(settings).verify(f"Bearer {made}")
    assert verified == Principal("alice")


# A repeat with the same Idempotency-Key, and a token of the same user with fewer scopes ----------


def on_payment(operation: str, body: dict[str, Any]) -> Callable[[Shop, Api], tuple[Any, ...]]:
    def prepare(shop: Shop, api: Api) -> tuple[Any, ...]:
        payment = shop.paid() if operation == "refunds" else shop.authorized()
        return "POST", f"/payments/{payment['id']}/{operation}", body

    return prepare


def for_somebody(path: str, body: dict[str, Any]) -> Callable[[Shop, Api], tuple[Any, ...]]:
    return lambda shop, api: ("POST", path, body | {"user_id": f"somebody-{secrets.token_hex(4)}"})


def pay_somebodys_order(shop: Shop, api: Api) -> tuple[Any, ...]:
    return "POST", f"/orders/{shop.place()}/payments", {"payment_method_id": shop.method()}


def cancel_somebodys_order(shop: Shop, api: Api) -> tuple[Any, ...]:
    return "PUT", f"/orders/{shop.place()}/status", {"status": "canceled"}


def confirm_somebodys_payment(shop: Shop, api: Api) -> tuple[Any, ...]:
    return "POST", f"/payments/{shop.paid()['id']}/confirm", {}


@pytest.mark.parametrize(
    ("prepare", "refusal"),
    [
        (on_payment("refunds", {"amount": 100}), (404, "not_found")),
        (on_payment("capture", {"amount": 900}), (404, "not_found")),
        (on_payment("void", {}), (404, "not_found")),
        (for_somebody("/orders", order()), (403, "forbidden")),
        (for_somebody("/payment-methods", card()), (403, "forbidden")),
        (pay_somebodys_order, (404, "not_found")),
        (cancel_somebodys_order, (404, "not_found")),
        (confirm_somebodys_payment, (404, "not_found")),
    ],
    ids=["refund", "capture", "void", "order", "method", "pay", "cancel", "confirm"],
)
def test_a_token_without_the_scope_gets_no_stored_answer(
    shop: Shop, api: Api, prepare: Callable[[Shop, Api], tuple[Any, ...]], refusal: tuple[int, str]
) -> None:
    method, path, body = prepare(shop, api)
    clerk = f"clerk-{secrets.token_hex(6)}"
    key = {"Idempotency-Key": f"key-{secrets.token_hex(8)}"}

    def send(scope: str) -> httpx.Response:
        return api(clerk, scope).request(method, path, json=body, headers=key)

    scope = "orders:manage payments:manage"
    first = send(scope)
    assert first.status_code in (200, 201), first.text
    refused = send("")
    assert problem(refused) == refusal
    assert "Idempotent-Replayed" not in refused.headers
    again = send(scope)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["Idempotent-Replayed"] == "true"


def test_the_owner_without_the_scope_gets_no_refunds_answer(
    shop: Shop, api: Api, user: str
) -> None:
    path = f"/payments/{shop.paid()['id']}/refunds"
    key = {"Idempotency-Key": f"key-{secrets.token_hex(8)}"}
    first = api(user, "payments:manage").post(path, json={"amount": 100}, headers=key)
    assert first.status_code == 201, first.text
    refused = api(user).post(path, json={"amount": 100}, headers=key)
    assert problem(refused) == (403, "forbidden")
