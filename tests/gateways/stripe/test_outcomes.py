"""What each answer and each error means, also answers that no Stripe gives."""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import stripe
import stripe.oauth_error

from conformance.doubles.server import Answer, Double, Request
from gateways.base import (
    Charge,
    ChargeLookup,
    Decline,
    GatewayError,
    MethodDeclined,
    MethodInvalid,
    MethodRequest,
    NotExecuted,
    OutcomeUnknown,
    RefundLookup,
    Refused,
    RetryLater,
)
from gateways.stripe import StripeGateway
from gateways.stripe.client import CardDeclined, translate
from tests.support.stripe import (
    LONG_AGO,
    NOW,
    change_request,
    charge_request,
    gateway_for,
    refund_request,
)
from tests.support.stripe_answers import CHARGED, INTENT, by_number, error

# Outcomes ---------------------------------------------------------------------------------------


class Script(Double):
    """A server that answers everything alike, and not as Stripe does."""

    def __init__(self) -> None:
        super().__init__()
        self.reply = Answer(500)

    def __enter__(self) -> Script:
        super().__enter__()
        return self

    def answer(self, request: Request) -> Answer:
        return self.reply


REFUND = {"id": "re_1", "status": "succeeded", "amount": 100, "currency": "usd"}


Scripted = Callable[[Answer], tuple[StripeGateway, Script]]


@pytest.fixture(scope="module")
def server_and_gateway() -> Iterator[tuple[Script, StripeGateway]]:
    with Script() as script:
        gateway = gateway_for(script.base_url, raw_cards=True)
        yield script, gateway
        gateway.close()


@pytest.fixture
def scripted(server_and_gateway: tuple[Script, StripeGateway]) -> Scripted:
    """A gateway that gets this answer to whatever it asks."""
    script, gateway = server_and_gateway

    def start(answer: Answer) -> tuple[StripeGateway, Script]:
        script.reply = answer
        script.requests.clear()
        return gateway, script

    return start


MONEY: dict[str, Callable[[StripeGateway], object]] = {
    "charge": lambda gateway: gateway.charge(charge_request()),
    "capture": lambda gateway: gateway.capture(change_request(CHARGED, "capture")),
    "void": lambda gateway: gateway.void(change_request(CHARGED, "void")),
    "refund": lambda gateway: gateway.refund(refund_request(CHARGED, 100)),
}


every_money = pytest.mark.parametrize("money", MONEY.values(), ids=MONEY)


SURELY_NOT: dict[str, tuple[Answer, type[NotExecuted]]] = {
    "400": (error(400, code="parameter_invalid_integer"), Refused),
    "400 state": (error(400, code="payment_intent_unexpected_state"), Refused),
    "404": (error(404, code="resource_missing"), Refused),
    "401": (error(401), NotExecuted),
    "403": (error(403), NotExecuted),
    "429": (error(429, code="rate_limit"), RetryLater),
    "429 lock": (error(429, code="lock_timeout"), RetryLater),
    "429 without JSON": (Answer(429, b"slow down"), RetryLater),
    "400 rate limit": (error(400, code="rate_limit"), RetryLater),
}


UNKNOWN: dict[str, Answer] = {
    "500": error(500, "api_error"),
    "502 HTML": Answer(502, b"<html>bad gateway</html>"),
    "503 empty": Answer(503, b""),
    "409 key in use": error(409, code="idempotency_key_in_use"),
    "400 key in use": error(400, code="idempotency_key_in_use"),
    "400 idempotency": error(400, "idempotency_error"),
    "402 without a charge": error(402, "card_error", code="card_declined"),
    "402 with nonsense": error(402, "card_error", code="card_declined", payment_intent={}),
    "418": error(418),
    "301": Answer(301, b"", {"Location": "/elsewhere"}),
    "307 with JSON": Answer(307, {"id": "pi_1"}, {"Location": "/elsewhere"}),
    "400 HTML": Answer(400, b"<html>"),
    "401 HTML": Answer(401, b"<html>"),
    "400 OAuth": Answer(400, {"error": "invalid_request"}),
    "401 OAuth": Answer(401, {"error": "invalid_client"}),
    "400 null": Answer(400, {"error": None}),
    "400 list": Answer(400, []),
    "200 HTML": Answer(200, b"<html>ok</html>"),
    "200 empty": Answer(200, b""),
    "200 not UTF-8": Answer(200, b'{"id": "\xff"}'),
    "200 cut off": Answer(200, b'{"id": "pi_1", "obj'),
    "200 deep": Answer(200, b"[" * 100_000),
    "200 {}": Answer(200, {}),
    "200 []": Answer(200, []),
    "200 null": Answer(200, b"null"),
    "200 text": Answer(200, b'"pi_1"'),
    "200 without id": Answer(200, {**INTENT, "id": None}),
    "200 without status": Answer(200, {**INTENT, "status": None}),
    "200 amount as text": Answer(200, {**INTENT, "amount": "1099"}),
    "200 amount as truth": Answer(200, {**INTENT, "amount": True}),
    "200 negative amount": Answer(200, {**INTENT, "amount": -1}),
    "200 no currency": Answer(200, {**INTENT, "currency": "nothing"}),
    "200 number for all": Answer(200, dict.fromkeys(INTENT, 1)),
}


@every_money
@pytest.mark.parametrize(("answer", "kind"), SURELY_NOT.values(), ids=SURELY_NOT)
def test_an_answer_that_says_no_is_surely_not_done(
    scripted: Scripted,
    answer: Answer,
    kind: type[NotExecuted],
    money: Callable[[StripeGateway], object],
) -> None:
    gateway, script = scripted(answer)
    with pytest.raises(NotExecuted) as caught:
        money(gateway)
    assert type(caught.value) is kind or (kind is Refused and isinstance(caught.value, Refused))
    assert len(script.requests) == 1  # adapters never repeat
    assert "4242" not in str(caught.value)


@every_money
@pytest.mark.parametrize("answer", UNKNOWN.values(), ids=UNKNOWN)
def test_an_answer_that_says_nothing_is_unknown(
    scripted: Scripted, answer: Answer, money: Callable[[StripeGateway], object]
) -> None:
    gateway, script = scripted(answer)
    with pytest.raises(OutcomeUnknown) as caught:
        money(gateway)
    assert len(script.requests) == 1
    assert "4242" not in str(caught.value)


def test_busy_tells_when_to_come_back(scripted: Scripted) -> None:
    gateway, _ = scripted(dataclasses.replace(error(429), headers={"Retry-After": "3"}))
    with pytest.raises(RetryLater) as caught:
        gateway.charge(charge_request())
    assert caught.value.retry_after == 3.0


@every_money
def test_a_refused_connection_is_surely_not_done(
    money: Callable[[StripeGateway], object],
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refused
        gateway = gateway_for(f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(RetryLater):
            money(gateway)
        gateway.close()


@pytest.mark.parametrize("base_url", ["http://nowhere.invalid", "http://", "ftp://127.0.0.1"])
def test_a_host_that_is_none_is_surely_not_done(base_url: str) -> None:
    gateway = gateway_for(base_url)
    with pytest.raises(RetryLater):
        gateway.charge(charge_request())
    gateway.close()


@contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that takes one connection and treats it as it likes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            connection, _ = server.accept()
            with connection:
                serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def test_a_failed_handshake_is_surely_not_done() -> None:
    def no_tls(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 400 this is no TLS\r\n\r\n")

    with raw_server(no_tls) as port:
        gateway = gateway_for(f"https://127.0.0.1:{port}")
        with pytest.raises(RetryLater):
            gateway.charge(charge_request())
        gateway.close()


def close_at_once(connection: socket.socket) -> None:
    connection.recv(65536)


def reset(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def half_an_answer(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")


def no_http(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"nonsense\r\n\r\n")


def say_nothing(connection: socket.socket) -> None:
    while connection.recv(65536):  # until the caller has had enough
        pass


@every_money
@pytest.mark.parametrize("serve", [close_at_once, reset, half_an_answer, no_http, say_nothing])
def test_a_connection_that_breaks_after_the_request_is_unknown(
    serve: Callable[[socket.socket], None], money: Callable[[StripeGateway], object]
) -> None:
    with raw_server(serve) as port:
        gateway = gateway_for(f"http://127.0.0.1:{port}", timeout=0.2)
        with pytest.raises(OutcomeUnknown):
            money(gateway)
        gateway.close()


def exceptions_of_the_sdk(of: type[stripe.StripeError]) -> list[type[stripe.StripeError]]:
    below = [deeper for found in of.__subclasses__() for deeper in exceptions_of_the_sdk(found)]
    return [of, *below]


MAPPED: dict[str, type[GatewayError]] = {
    "RateLimitError": RetryLater,
    "AuthenticationError": NotExecuted,
    "PermissionError": NotExecuted,
    "InvalidRequestError": Refused,
    "CardError": CardDeclined,
}


def instance(of: type[stripe.StripeError], status: int) -> stripe.StripeError:
    """An exception as the SDK makes it: with its message, and the body of an answer."""
    answer: dict[str, Any] = {
        "http_body": "echo 4242",
        "http_status": status,
        "json_body": {"error": {"code": "echo 4242", "message": "echo 4242"}},
        "headers": {"request-id": "req_1"},
    }
    if issubclass(of, stripe.SignatureVerificationError):
        return of("echo 4242", "t=1")
    if issubclass(of, stripe.oauth_error.OAuthError):
        return of("echo 4242", "echo 4242", **answer)
    if of in (stripe.CardError, stripe.InvalidRequestError):
        return of("echo 4242", param="echo 4242", code="echo 4242", **answer)
    return of("echo 4242", **answer)


def test_every_exception_of_the_sdk_is_mapped() -> None:
    walked = exceptions_of_the_sdk(stripe.StripeError)
    assert len(walked) > 20
    assert {of.__name__ for of in walked} >= MAPPED.keys()
    for of in walked:
        ours = translate(instance(of, 400))
        oauth = issubclass(of, stripe.oauth_error.OAuthError)
        expected = OutcomeUnknown if oauth else MAPPED.get(of.__name__, OutcomeUnknown)
        assert isinstance(ours, expected), of
        assert isinstance(ours, NotExecuted) == issubclass(expected, NotExecuted), of
        assert "4242" not in str(ours), of
        # An answer that says it does not know is unknown, whatever the exception is called.
        if of is stripe.InvalidRequestError:
            assert isinstance(translate(instance(of, 500)), OutcomeUnknown)


@pytest.mark.parametrize("found", [ValueError("echo 4242"), KeyError("x"), RuntimeError()])
def test_an_exception_that_is_not_the_sdks_is_unknown(
    found: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise found

    gateway = gateway_for("http://127.0.0.1:9")
    monkeypatch.setattr(stripe.HTTPClient, "request_with_retries", fail)
    with pytest.raises(OutcomeUnknown) as caught:
        gateway.charge(charge_request())
    assert str(caught.value) == type(found).__name__
    gateway.close()


STATES = {
    "requires_confirmation": "processing",
    "processing": "processing",
    "a word of next year": "processing",
    "requires_action": "processing",  # without a URL
    "requires_capture": "authorized",
    "requires_payment_method": "declined",
    "canceled": "voided",
    "succeeded": "captured",
}


@pytest.mark.parametrize(("theirs", "ours"), STATES.items())
def test_every_status_has_its_word(scripted: Scripted, theirs: str, ours: str) -> None:
    gateway, _ = scripted(Answer(200, {**INTENT, "status": theirs}))
    charge = gateway.charge(charge_request())
    assert charge.status == ours
    assert charge.amount_captured == (1099 if ours == "captured" else 0)
    if ours == "authorized":  # where the charge does not tell
        created = datetime.fromtimestamp(1_800_000_000, timezone.utc)
        assert charge.capture_before == created + timedelta(days=7)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        *(("succeeded", "succeeded"), ("pending", "pending"), ("failed", "failed")),
        *(("canceled", "failed"), ("requires_action", "pending"), ("a new word", "pending")),
    ],
)
def test_every_status_of_a_refund_has_its_word(scripted: Scripted, theirs: str, ours: str) -> None:
    gateway, _ = scripted(Answer(200, {**REFUND, "status": theirs}))
    assert gateway.refund(refund_request(CHARGED, 100)).status == ours


def test_what_is_not_ours_is_reported_as_it_is(scripted: Scripted) -> None:
    other = {**INTENT, "id": "pi_other", "amount": 5, "amount_received": 5, "currency": "jpy"}
    gateway, _ = scripted(Answer(200, other))
    assert gateway.charge(charge_request()) == Charge("pi_other", "captured", 5, "JPY", 5)


def test_a_capture_that_is_declined_leaves_the_money_held(scripted: Scripted) -> None:
    held = {**INTENT, "status": "requires_capture", "amount_received": 0}
    answer = error(402, "card_error", code="card_declined", payment_intent=held)
    gateway, _ = scripted(answer)
    charge = gateway.capture(change_request(CHARGED, "capture"))
    assert charge.status == "declined"
    assert charge.decline == Decline("generic_decline", "card_declined")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
def test_a_question_that_fails_says_nothing_about_the_charge(
    scripted: Scripted, status: int
) -> None:
    queries = [
        ChargeLookup(charge_request(), "pi_1", NOW),
        ChargeLookup(charge_request(), None, LONG_AGO),
        ChargeLookup(change_request(CHARGED, "capture"), "pi_1", NOW),
    ]
    gateway, _ = scripted(error(status))
    for query in queries:
        with pytest.raises(OutcomeUnknown):
            gateway.look_up(query)
    for reference, requested_at in (("re_1", NOW), (None, LONG_AGO)):
        refunded = RefundLookup(refund_request(CHARGED, 1), reference, requested_at)
        with pytest.raises(OutcomeUnknown):
            gateway.look_up_refund(refunded)


@pytest.mark.parametrize("status", [401, 403, 429])
def test_a_repeat_that_is_not_let_in_says_nothing_about_the_first(
    scripted: Scripted, status: int
) -> None:
    gateway, script = scripted(error(status))
    with pytest.raises(OutcomeUnknown):
        gateway.look_up(ChargeLookup(charge_request(), None, NOW))
    with pytest.raises(OutcomeUnknown):
        gateway.look_up_refund(RefundLookup(refund_request(CHARGED, 1), None, NOW))
    assert [request.method for request in script.requests] == ["POST", "POST"]


SAVING = MethodRequest("card", "ann", {}, token="pm_1")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        *((error(400), MethodInvalid), (error(404), MethodInvalid)),
        *((error(401), NotExecuted), (error(403), NotExecuted), (error(429), RetryLater)),
        *(
            (error(500), OutcomeUnknown),
            (Answer(200, {}), OutcomeUnknown),
            (Answer(200, b"<"), OutcomeUnknown),
        ),
        (error(402, "card_error", code="expired_card"), MethodDeclined),
    ],
)
def test_saving_a_method_fails_with_the_errors_of_the_contract(
    scripted: Scripted, answer: Answer, kind: type[GatewayError]
) -> None:
    gateway, _ = scripted(answer)
    with pytest.raises(kind):
        gateway.save_method(SAVING)


def test_raw_cards_that_stripe_does_not_allow_are_refused(scripted: Scripted) -> None:
    gateway, _ = scripted(error(400))
    with pytest.raises(Refused):
        gateway.save_method(by_number("4242424242424242"))
