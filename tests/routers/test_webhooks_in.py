"""`POST /webhooks/sandbox`: verified first, stored once, applied once, never backwards."""

from __future__ import annotations

import itertools
import json
import secrets
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from gateways.sandbox import SandboxGateway, sign
from tests.support.database import sql
from tests.support.shop import Bearer, Shop, problem, settle, together, unreachable

pytestmark = pytest.mark.usefixtures("invariants_hold")

Payload = dict[str, Any]


def secret_of(engine: sa.Engine) -> str:
    (row,) = sql(engine, "SELECT webhook_secret FROM sandbox.account")
    return str(row.webhook_secret)


def kept(engine: sa.Engine, event_id: str) -> int:
    query = "SELECT count(*) FROM gateway_events WHERE event_id = :id AND gateway = 'sandbox'"
    return int(sql(engine, query, id=event_id)[0][0])


def event_of(payment: dict[str, Any], reference: str, status: str, **more: Any) -> Payload:
    """A webhook about a charge."""
    charge = {
        "reference": reference,
        "status": status,
        "amount": payment["amount"],
        "currency": payment["currency"],
        "amount_captured": payment["amount"] if status == "captured" else 0,
        "capture_before": None,
        "redirect_url": None,
        "decline": None,
    }
    return {
        "id": f"evt_{secrets.token_hex(8)}",
        "type": "charge.created" if status == "processing" else f"charge.{status}",
        "payment_id": payment["id"],
        "reference": reference,
        "charge": charge | more,
    }


def send(
    client: httpx.Client,
    payload: Payload,
    secret: str,
    *,
    seconds: int = 0,
    change: Callable[[bytes], bytes] = bytes,
    gateway: str = "sandbox",
) -> httpx.Response:
    body = json.dumps(payload).encode()
    headers = sign(secret, body, int(time.time()) + seconds)
    return client.post(f"/webhooks/{gateway}", content=change(body), headers=headers)


@pytest.fixture
def lost(shop: Shop, sandbox: SandboxGateway) -> Any:
    """Makes a payment that was captured at the gateway, whose answer we never heard."""

    def make() -> tuple[dict[str, Any], str]:
        answer = shop.try_pay(shop.place(), headers={"Sandbox-Fault": "timeout_after_charge"})
        assert (answer.status_code, answer.json()["status"]) == (202, "pending")
        (entry,) = shop.books(answer.json()["order_id"])
        return answer.json(), entry["reference"]

    with unreachable(sandbox):
        yield make


Lost = Callable[[], tuple[dict[str, Any], str]]


@pytest.fixture
def gateway_client(crowd: list[httpx.Client]) -> httpx.Client:
    """A gateway has no token of ours."""
    return crowd[0]


def test_a_webhook_that_comes_before_the_answer_settles_the_payment(
    shop: Shop, lost: Lost, gateway_client: httpx.Client, engine: sa.Engine
) -> None:
    payment, reference = lost()
    event = event_of(payment, reference, "captured")
    answer = send(gateway_client, event, secret_of(engine))
    assert (answer.status_code, answer.json()) == (200, {"received": True})
    assert shop.status(payment) == ("captured", "paid")
    assert shop.payment(payment)["gateway_reference"] == reference
    told = shop.events(payment["order_id"])[-1]
    assert told["actor"] == {"type": "gateway", "id": "sandbox"}
    assert kept(engine, event["id"]) == 1


def test_a_webhook_that_comes_twice_is_200_and_applied_once(
    shop: Shop, lost: Lost, gateway_client: httpx.Client, engine: sa.Engine
) -> None:
    payment, reference = lost()
    event = event_of(payment, reference, "captured")
    for _ in range(3):
        assert send(gateway_client, event, secret_of(engine)).status_code == 200
    assert shop.told(payment["order_id"]) == ["payment.captured", "order.status_changed"]
    assert kept(engine, event["id"]) == 1


def test_a_webhook_that_comes_a_hundred_times_at_once_has_one_effect(
    shop: Shop, lost: Lost, crowd: list[httpx.Client], engine: sa.Engine
) -> None:
    payment, reference = lost()
    event, secret = event_of(payment, reference, "captured"), secret_of(engine)

    answers = together(100, lambda number: send(crowd[number % 50], event, secret))
    assert [answer.status_code for answer in answers] == [200] * 100
    assert shop.told(payment["order_id"]) == ["payment.captured", "order.status_changed"]
    assert kept(engine, event["id"]) == 1


def test_different_events_of_one_capture_at_once_have_one_effect(
    shop: Shop, lost: Lost, crowd: list[httpx.Client], engine: sa.Engine
) -> None:
    payment, reference = lost()
    secret = secret_of(engine)
    events = [event_of(payment, reference, "captured") for _ in range(20)]
    answers = together(20, lambda number: send(crowd[number], events[number], secret))
    assert {answer.status_code for answer in answers} == {200}
    assert shop.told(payment["order_id"]) == ["payment.captured", "order.status_changed"]


# Not from the gateway ---------------------------------------------------------------------------


def flip(body: bytes) -> bytes:
    return body.replace(b"captured", b"capturee", 1)


def test_what_is_not_signed_by_the_gateway_is_400_and_nothing_is_stored(
    shop: Shop, lost: Lost, gateway_client: httpx.Client, engine: sa.Engine
) -> None:
    payment, reference = lost()
    event, secret = event_of(payment, reference, "captured"), secret_of(engine)
    body = json.dumps(event).encode()
    now = int(time.time())
    good = sign(secret, body, now)["sandbox-signature"]
    refused = [
        send(gateway_client, event, secret, change=flip),
        send(gateway_client, event, secret, change=lambda body: body + b" "),
        send(gateway_client, event, secret, change=lambda body: b""),
        send(gateway_client, event, secret, seconds=-301),
        send(gateway_client, event, secret, seconds=305),
        send(gateway_client, event, secret, seconds=-(10**9)),
        send(gateway_client, event, "another secret"),
        send(gateway_client, event, ""),
        gateway_client.post("/webhooks/sandbox", content=body),
    ]
    headers: list[str | bytes] = [
        "",
        "nonsense",
        "t=,v1=",
        f"t={now}",
        good.replace("t=", "t=0"),
        good.replace("t=", "t=-"),
        good.upper(),
        good[:-1],
        f"{good},v1=0",
        good.replace("v1", "v0"),
        f"t={'9' * 5000},v1=00",
        "t=\u0661,v1=00".encode(),
        b"t=\xff\xfe,v1=\xff",
    ]
    for header in headers:
        signed: Any = {"Sandbox-Signature": header}
        refused.append(gateway_client.post("/webhooks/sandbox", content=body, headers=signed))
    for number, answer in enumerate(refused):
        assert problem(answer) == (400, "invalid_signature"), number
    assert kept(engine, event["id"]) == 0
    assert shop.status(payment) == ("pending", "pending")
    assert shop.told(payment["order_id"]) == []


@pytest.mark.parametrize(
    "body",
    [b"\xff\xfe\x00", b"", b"{", b"null", b"[]", b"{}", b'{"id": 1}', b'"text"', b"[" * 60_000],
    ids=["not_utf8", "empty", "half", "null", "array", "object", "bare", "text", "deep"],
)
def test_nonsense_that_is_signed_is_400_and_nothing_is_stored(
    shop: Shop, gateway_client: httpx.Client, engine: sa.Engine, body: bytes
) -> None:
    settle(engine)
    headers = sign(secret_of(engine), body, int(time.time()))
    answer = gateway_client.post("/webhooks/sandbox", content=body, headers=headers)
    assert answer.status_code == 400, answer.text


def test_a_body_that_is_not_utf_8_is_400(shop: Shop, gateway_client: httpx.Client) -> None:
    answer = gateway_client.post("/webhooks/sandbox", content=b"\xff\xfe\x00\x80")
    assert problem(answer) == (400, "invalid_signature")


def test_a_huge_body_is_413(gateway_client: httpx.Client, engine: sa.Engine) -> None:
    body = b"x" * (64 * 1024 + 1)
    headers = sign(secret_of(engine), body, int(time.time()))
    answer = gateway_client.post("/webhooks/sandbox", content=body, headers=headers)
    assert problem(answer) == (413, "body_too_large")


@pytest.mark.parametrize("gateway", ["nobody", "stripe", "paypal", "SANDBOX", "%00", "sandbox%20"])
def test_an_unknown_gateway_is_404(
    gateway_client: httpx.Client, engine: sa.Engine, gateway: str
) -> None:
    payload = {"id": "evt_1"}
    answer = send(gateway_client, payload, secret_of(engine), gateway=gateway)
    assert problem(answer) == (404, "not_found")


def test_an_event_of_an_unknown_payment_is_200(
    gateway_client: httpx.Client, engine: sa.Engine
) -> None:
    payment = {"id": 2**60, "amount": 100, "currency": "USD"}
    event = event_of(payment, "ch_nobody", "captured")
    for _ in range(2):
        assert send(gateway_client, event, secret_of(engine)).status_code == 200
    nameless = event_of(payment | {"id": None}, "ch_nobody", "captured")
    assert send(gateway_client, nameless, secret_of(engine)).status_code == 200


def test_the_payment_is_found_by_the_gateways_reference_too(
    shop: Shop, gateway_client: httpx.Client, engine: sa.Engine
) -> None:
    payment = shop.paid(1000)
    refund = shop.do(payment, "refunds", amount=400).json()
    event = {
        "id": f"evt_{secrets.token_hex(8)}",
        "type": "refund.failed",
        "payment_id": None,
        "reference": payment["gateway_reference"],
        "refund_id": refund["id"],
        "refund": {
            "reference": refund["gateway_reference"],
            "status": "failed",
            "amount": 400,
            "currency": "USD",
        },
    }
    query = "UPDATE sandbox.refunds SET status = 'failed' WHERE reference = :reference"
    sql(engine, query, reference=refund["gateway_reference"])
    assert send(gateway_client, event, secret_of(engine)).status_code == 200
    assert shop.refunds(payment)[0]["status"] == "failed"


def test_a_refund_of_another_payment_is_not_touched(
    shop: Shop, gateway_client: httpx.Client, engine: sa.Engine
) -> None:
    mine, other = shop.paid(1000), shop.paid(1000)
    refund = shop.do(other, "refunds", amount=400).json()
    state = {"reference": "re_x", "status": "failed", "amount": 400, "currency": "USD"}
    event = {"id": f"evt_{secrets.token_hex(8)}", "type": "refund.failed"}
    event |= {"payment_id": mine["id"], "reference": mine["gateway_reference"]}
    event |= {"refund": state, "refund_id": refund["id"]}  # type: ignore[dict-item]
    assert send(gateway_client, event, secret_of(engine)).status_code == 200
    assert shop.refunds(other)[0]["status"] == "succeeded"


def test_an_event_of_a_refund_made_outside_is_200_and_adopted_once(
    shop: Shop, sandbox: SandboxGateway, gateway_client: httpx.Client, engine: sa.Engine
) -> None:
    payment = shop.paid(1000)
    made = sandbox.dashboard.refund(payment["gateway_reference"], 400)  # which is told, too
    event: Payload = {"id": f"evt_{secrets.token_hex(8)}", "type": "refund.succeeded"}
    event |= {"payment_id": payment["id"], "reference": payment["gateway_reference"]}
    event["refund"] = {
        "reference": made.reference,
        "status": "succeeded",
        "amount": 400,
        "currency": "USD",
    }
    for _ in range(2):
        assert send(gateway_client, event, secret_of(engine)).status_code == 200
    (refund,) = shop.refunds(payment)
    assert (refund["gateway_reference"], refund["origin"]) == (made.reference, "gateway")
    assert shop.payment(payment)["amount_refunded"] == 400


# Out of order -----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_whatever_order_events_come_in_the_end_is_the_same(
    shop: Shop,
    gateway_client: httpx.Client,
    engine: sa.Engine,
    order: tuple[int, ...],
    sandbox: SandboxGateway,
) -> None:
    """created, captured, refund pending, refund succeeded, each at any time."""
    with unreachable(sandbox):
        placed = shop.try_pay(shop.place(1000), headers={"Sandbox-Fault": "timeout_after_charge"})
        payment = placed.json()
        (entry,) = shop.books(payment["order_id"])
        reference = entry["reference"]
        secret = secret_of(engine)
        # The refund needs a captured payment, whichever event told of that.
        first = event_of(payment, reference, "captured")
        events = [
            event_of(payment, reference, "processing"),
            event_of(payment, reference, "captured"),
        ]
        assert send(gateway_client, first, secret).status_code == 200
        lost = shop.do(payment, "refunds", {"Sandbox-Fault": "timeout_after_charge"}, amount=400)
        assert (lost.status_code, lost.json()["status"]) == (202, "pending")
        (made,) = shop.books(payment["order_id"])[0]["refunds"]
        for status in ("pending", "succeeded"):
            state = {"reference": made["reference"], "status": status}
            events.append(
                {
                    "id": f"evt_{secrets.token_hex(8)}",
                    "type": f"refund.{status}",
                    "payment_id": payment["id"],
                    "reference": reference,
                    "refund": state | {"amount": 400, "currency": "USD"},
                    "refund_id": lost.json()["id"],
                }
            )
        for number in order:
            assert send(gateway_client, events[number], secret).status_code == 200
        after = shop.payment(payment)
        assert (after["status"], after["amount_captured"], after["amount_refunded"]) == (
            "partially_refunded",
            1000,
            400,
        )
        assert after["needs_review"] is False
        assert shop.order(payment["order_id"])["status"] == "paid"
        assert shop.told(payment["order_id"]) == [
            "payment.captured",
            "order.status_changed",
            "refund.created",
            "refund.succeeded",
        ]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_whatever_order_the_events_of_a_manual_payment_come_in_the_end_is_the_same(
    shop: Shop,
    gateway_client: httpx.Client,
    engine: sa.Engine,
    order: tuple[int, ...],
    sandbox: SandboxGateway,
) -> None:
    """created, authorized, captured, all of them old news or new."""
    with unreachable(sandbox):
        payment = shop.authorized(1000)
        fault = {"Sandbox-Fault": "timeout_after_charge"}
        assert shop.do(payment, "capture", fault).status_code == 202
        secret, reference = secret_of(engine), payment["gateway_reference"]
        statuses = ["processing", "authorized", "captured"]
        for number in order:
            event = event_of(payment, reference, statuses[number])
            assert send(gateway_client, event, secret).status_code == 200
        assert shop.status(payment) == ("captured", "paid")
        assert shop.payment(payment)["needs_review"] is False
        assert shop.told(payment["order_id"])[2:] == ["payment.captured", "order.status_changed"]


def test_webhooks_and_answers_at_once_tell_each_change_once(
    shop: Shop, crowd: list[httpx.Client], bearer: Bearer, user: str
) -> None:
    """The gateway's webhooks race with the answers of twenty payments."""
    headers, body = bearer(user), {"payment_method_id": shop.method()}
    orders = [shop.place() for _ in range(20)]

    def pay(number: int) -> httpx.Response:
        fault = {
            "Sandbox-Fault": ["duplicate_webhook", "slow=0.3", "reordered_webhooks"][number % 3]
        }
        path = f"/orders/{orders[number]}/payments"
        return crowd[number].post(path, json=body, headers=headers | fault)

    answers = together(20, pay)
    assert {answer.status_code for answer in answers} == {201}
    sql(shop.engine, "UPDATE sandbox.webhooks SET due_at = now() WHERE delivered_at IS NULL")
    settle(shop.engine)
    for order_id in orders:
        assert shop.told(order_id) == ["payment.captured", "order.status_changed"]
