"""An issuer's keys are fetched once, rarely, and never in the way of a caller."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from structlog.testing import CapturingLogger

import issuer_keys
from errors import Overloaded
from permissions import Principal
from tests.support.tokens import (
    NOW,
    URL,
    Clock,
    Issuer,
    good_jwk,
    issued,
    refusal,
    signed,
    token,
    verifier,
    verify,
)

pytestmark = pytest.mark.usefixtures("clock")  # as `issuer_keys.py` reads it


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> CapturingLogger:
    log = CapturingLogger()
    monkeypatch.setattr(issuer_keys, "log", log)
    return log


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
        clock.advance(issuer_keys.JWKS_PAUSE)
        for _ in range(3):
            made = [signed("ES256", kid=f"unknown-{n}") for n in range(100)]
            await asyncio.gather(*(refusal(subject, f"Bearer {one}") for one in made))
            clock.advance(issuer_keys.JWKS_PAUSE / 4)
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
    clock.advance(issuer_keys.JWKS_PAUSE)
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
    clock.advance(issuer_keys.JWKS_FRESH)
    assert "`kid`" in await refusal(subject, f"Bearer {made}")


@pytest.mark.anyio
async def test_another_key_under_an_old_name_ends_the_tokens_of_the_first(clock: Clock) -> None:
    issuer, made = Issuer(good_jwk("ES256")), signed("ES256", exp=NOW + 9999)
    subject = issued("ES256", issuer)
    await verify(subject, made)
    issuer.keys = [good_jwk("ES256", "next", kid="good")]
    clock.advance(issuer_keys.JWKS_FRESH)
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
    clock.now = NOW + issuer_keys.JWKS_STALE
    with pytest.raises(Overloaded):
        await verify(subject, known)
    issuer.comes_back()
    clock.advance(issuer_keys.JWKS_PAUSE)
    assert await verify(subject, known) == Principal("alice")


@pytest.mark.anyio
async def test_a_host_that_is_down_is_asked_once_per_pause(clock: Clock) -> None:
    issuer = Issuer(good_jwk("ES256"))
    subject = issued("ES256", issuer)
    await verify(subject, signed("ES256"))
    issuer.goes_down()
    clock.advance(issuer_keys.JWKS_FRESH)
    for _ in range(5):
        await verify(subject, signed("ES256"))
    assert issuer.fetches == 2


@pytest.mark.anyio
async def test_nobody_waits_again_for_a_host_that_was_down(clock: Clock) -> None:
    issuer, known = Issuer(good_jwk("ES256")), signed("ES256", exp=NOW + 9999)
    subject = issued("ES256", issuer)
    await verify(subject, known)
    issuer.goes_down()
    clock.advance(issuer_keys.JWKS_FRESH)
    await verify(subject, known)
    visited, gate = issuer.hangs()
    issuer.keys = []
    clock.advance(issuer_keys.JWKS_PAUSE)
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
    clock.advance(issuer_keys.JWKS_PAUSE)
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
            lambda: httpx.Response(200, content=KEYS + b" " * issuer_keys.MAX_JWKS), id="too much"
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
    clock.advance(issuer_keys.JWKS_PAUSE)
    await verify(subject, signed("ES256"))
    issuer.answer = answer
    clock.advance(issuer_keys.JWKS_FRESH)
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

    monkeypatch.setattr(issuer_keys, "JWKS_TIMEOUT", 0.02)
    monkeypatch.setattr(issuer_keys, "MAX_JWKS", 10**12)
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
    clock.advance(issuer_keys.JWKS_FRESH)
    await verify(subject, signed("ES256"))
    issuer.hangs()
    clock.advance(issuer_keys.JWKS_PAUSE)
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
