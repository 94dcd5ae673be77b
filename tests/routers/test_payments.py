"""Paying an order at once through the sandbox: who pays with what, success, and declines."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from gateways.base import NotExecuted
from gateways.sandbox import SandboxGateway
from tests.support.clients import (
    ABSENT,
    JSON,
    Api,
    but_request_id,
    code,
    every,
    fields,
    ids,
)
from tests.support.database import sandbox_charges
from tests.support.factories import card, pay, place_order, save_card

SHAPE = {
    *("id", "order_id", "user_id", "payment_method_id", "gateway", "gateway_reference", "status"),
    *("amount", "amount_captured", "amount_refunded", "currency", "capture_method"),
    *("capture_before", "next_action", "failure", "needs_review", "review_reason"),
    *("created_at", "updated_at"),
}
SUCCEEDS = ["4242424242424242", "5555555555554444", "378282246310005", "4000000000000259"]
SUCCEEDS += ["4000000000005126", "4000056655665556", "6011111111111117", "3566002020360505"]
DECLINES = {
    "4000000000000002": "generic_decline",
    "4000000000009995": "insufficient_funds",
    "4000000000000069": "expired_card",
    "4000000000000127": "incorrect_cvc",
    "4000000000000119": "processing_error",
    "4100000000000019": "fraudulent",
}
GOOD, BAD = SUCCEEDS[0], "4000000000000002"
MASTERCARD = SUCCEEDS[1]
PAYMENT_STATUSES = [
    *("pending", "requires_action", "authorized", "captured", "partially_refunded", "refunded"),
    *("failed", "voided", "canceled"),
]


def save(client: httpx.Client, body: dict[str, Any]) -> int:
    answer = client.post("/payment-methods", json=body)
    assert answer.status_code == 201, answer.text
    return int(answer.json()["id"])


def token(value: str) -> dict[str, Any]:
    return {"payment_type": "card", "gateway": "sandbox", "details": {"token": value}}


def try_to_pay(client: httpx.Client, order_id: int, **body: Any) -> httpx.Response:
    return client.post(f"/orders/{order_id}/payments", json=body)


def status_of(client: httpx.Client, order_id: int) -> str:
    return str(client.get(f"/orders/{order_id}").json()["status"])


# --- Success ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", SUCCEEDS)
def test_a_good_card_pays(alice: httpx.Client, engine: sa.Engine, user: str, number: str) -> None:
    method, placed = save_card(alice, number), place_order(alice)
    payment = pay(alice, placed["id"], payment_method_id=method["id"])
    [charge] = sandbox_charges(engine, placed["id"])
    assert payment == {
        "id": payment["id"],
        "order_id": placed["id"],
        "user_id": user,
        "payment_method_id": method["id"],
        "gateway": "sandbox",
        "gateway_reference": charge.reference,
        "status": "captured",
        "amount": 1099,
        "amount_captured": 1099,
        "amount_refunded": 0,
        "currency": "USD",
        "capture_method": "automatic",
        "capture_before": None,
        "next_action": None,
        "failure": None,
        "needs_review": False,
        "review_reason": None,
        "created_at": payment["created_at"],
        "updated_at": payment["updated_at"],
    }
    assert (charge.payment_id, charge.status) == (payment["id"], "captured")
    assert (charge.amount, charge.amount_captured, charge.currency) == (1099, 1099, "USD")
    assert status_of(alice, placed["id"]) == "paid"
    assert alice.get(f"/payments/{payment['id']}").json() == payment


@pytest.mark.parametrize("outcome", ["success", "dispute", "refund_fails"])
def test_a_good_token_pays(alice: httpx.Client, outcome: str) -> None:
    save(alice, token(f"tok_{outcome}"))
    order_id = place_order(alice)["id"]
    assert pay(alice, order_id)["status"] == "captured"
    assert status_of(alice, order_id) == "paid"


@pytest.mark.parametrize(
    "body",
    [
        {"payment_type": "paypal", "details": {"email": "alice@example.com"}},
        {
            "payment_type": "bank_account",
            "details": {"iban": "DE89370400440532013000", "account_holder": "Alice"},
        },
        {"payment_type": "paypal", "gateway": "sandbox", "details": {"token": "tok_success"}},
    ],
)
def test_paypal_and_bank_accounts_pay_at_once(alice: httpx.Client, body: dict[str, Any]) -> None:
    method = save(alice, body)
    payment = pay(alice, place_order(alice)["id"], payment_method_id=method)
    assert (payment["status"], payment["payment_method_id"]) == ("captured", method)


@pytest.mark.parametrize(
    ("currency", "amount"),
    [
        *(("USD", 1), ("USD", 999_999_999_999), ("JPY", 1099), ("JPY", 999_999_999_999)),
        *(("KRW", 1), ("KWD", 1), ("KWD", 1099), ("BHD", 999_999_999_999), ("CLF", 2**31)),
    ],
)
def test_the_amount_is_charged_in_minor_units_of_every_currency(
    alice: httpx.Client, engine: sa.Engine, currency: str, amount: int
) -> None:
    save_card(alice)
    order_id = place_order(alice, total_amount=amount, currency=currency)["id"]
    payment = pay(alice, order_id)
    assert (payment["amount"], payment["currency"]) == (amount, currency)
    assert payment["amount_captured"] == amount
    [charge] = sandbox_charges(engine, order_id)
    assert (charge.amount, charge.amount_captured, charge.currency) == (amount, amount, currency)


def test_the_amount_is_the_orders_whatever_the_quantity(alice: httpx.Client) -> None:
    save_card(alice)
    order_id = place_order(alice, quantity=7, total_amount=500)["id"]
    assert pay(alice, order_id)["amount"] == 500


# --- The request ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"headers": JSON},
        {"json": {}},
        {"json": {"payment_method_id": None}},
        {"json": {"capture_method": "automatic"}},
        {"json": {"capture_method": "automatic", "payment_method_id": None}},
        {"json": {"return_url": "https://shop.example/thanks?order=1"}},
        {"json": {"return_url": None}},
    ],
)
def test_everything_in_the_request_may_be_left_out(
    alice: httpx.Client, options: dict[str, Any]
) -> None:
    method = save_card(alice)
    order_id = place_order(alice)["id"]
    answer = alice.post(f"/orders/{order_id}/payments", **options)
    assert answer.status_code == 201, answer.text
    assert answer.json().keys() == SHAPE
    assert answer.json()["payment_method_id"] == method["id"]
    assert answer.json()["capture_method"] == "automatic"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("capture_method", ""),
        ("capture_method", "auto"),
        ("capture_method", "Automatic"),
        ("capture_method", None),
        ("capture_method", 1),
        ("capture_method", []),
        ("return_url", ""),
        ("return_url", "nonsense"),
        ("return_url", "/thanks"),
        ("return_url", 1),
        ("return_url", {}),
        ("return_url", "javascript:alert(1)"),
        ("return_url", "file:///etc/passwd"),
        ("return_url", "https://shop.example/\0"),
        ("return_url", "https://shop.example/\ud800"),
        ("return_url", "https://shop.example/" + "a" * 60_000),
        ("amount", 1),
        ("currency", "USD"),
        ("order_id", 1),
        ("gateway", "sandbox"),
        ("user_id", "alice"),
        ("details", {}),
        ("cvc", "123"),
    ],
    ids=lambda part: ascii(part)[:24],
)
def test_another_request_is_refused_and_charges_nothing(
    alice: httpx.Client, engine: sa.Engine, name: str, value: Any
) -> None:
    save_card(alice)
    order_id = place_order(alice)["id"]
    body = json.dumps({name: value})
    answer = alice.post(f"/orders/{order_id}/payments", content=body, headers=JSON)
    assert fields(answer) == {name}
    assert alice.get(f"/orders/{order_id}/payments").json() == []
    assert sandbox_charges(engine, order_id) == []


# --- Which method pays ------------------------------------------------------------------------


def test_the_named_method_pays_before_the_orders_and_the_default(alice: httpx.Client) -> None:
    default = save_card(alice, GOOD)["id"]
    ordered = save_card(alice, MASTERCARD)["id"]
    named = save_card(alice, "378282246310005")["id"]
    paid = [
        pay(alice, place_order(alice, payment_method_id=ordered)["id"], payment_method_id=named),
        pay(alice, place_order(alice, payment_method_id=ordered)["id"]),
        pay(alice, place_order(alice)["id"]),
    ]
    assert [payment["payment_method_id"] for payment in paid] == [named, ordered, default]


def test_the_order_keeps_the_method_it_named(alice: httpx.Client) -> None:
    ordered, named = save_card(alice, BAD)["id"], save_card(alice, GOOD)["id"]
    placed = place_order(alice, payment_method_id=ordered)
    pay(alice, placed["id"], payment_method_id=named)
    assert alice.get(f"/orders/{placed['id']}").json()["payment_method_id"] == ordered


def test_the_default_is_the_one_of_the_moment_of_paying(alice: httpx.Client) -> None:
    save_card(alice, GOOD)
    order_id = place_order(alice)["id"]
    new = save(alice, card(MASTERCARD, is_default=True))
    assert pay(alice, order_id)["payment_method_id"] == new


def test_without_any_method_nothing_is_paid(alice: httpx.Client) -> None:
    order_id = place_order(alice)["id"]
    assert fields(try_to_pay(alice, order_id)) == {"payment_method_id"}
    save_card(alice)
    pay(alice, order_id)


def unknown_method(answer: httpx.Response) -> None:
    assert code(answer) == (400, "payment_method_not_found"), answer.text


def test_a_removed_method_pays_nothing(alice: httpx.Client, engine: sa.Engine) -> None:
    removed, other = save_card(alice, GOOD)["id"], save_card(alice, MASTERCARD)["id"]
    ordered = place_order(alice, payment_method_id=removed)["id"]
    plain = place_order(alice)["id"]
    alice.delete(f"/payment-methods/{removed}")
    unknown_method(try_to_pay(alice, plain, payment_method_id=removed))
    unknown_method(try_to_pay(alice, ordered))
    assert sandbox_charges(engine, ordered) == sandbox_charges(engine, plain) == []
    assert pay(alice, ordered, payment_method_id=other)["payment_method_id"] == other
    assert pay(alice, plain)["payment_method_id"] == other


def test_a_foreign_method_pays_nothing(
    alice: httpx.Client, bob: httpx.Client, engine: sa.Engine
) -> None:
    theirs = save_card(bob)["id"]
    save_card(alice)
    order_id = place_order(alice)["id"]
    for number in (theirs, ABSENT, 0, -1, 2**63):
        unknown_method(try_to_pay(alice, order_id, payment_method_id=number))
    assert sandbox_charges(engine, order_id) == []
    pay(alice, order_id)


# --- Once -------------------------------------------------------------------------------------


def test_a_paid_order_is_not_paid_again(alice: httpx.Client, engine: sa.Engine) -> None:
    first, second = save_card(alice, GOOD)["id"], save_card(alice, MASTERCARD)["id"]
    order_id = place_order(alice)["id"]
    payment = pay(alice, order_id, payment_method_id=first)
    for method in (first, second, None):
        answer = try_to_pay(alice, order_id, payment_method_id=method)
        assert code(answer) == (409, "order_already_paid")
        assert answer.json()["payment_id"] == payment["id"]
    assert ids(alice.get(f"/orders/{order_id}/payments").json()) == [payment["id"]]
    assert len(sandbox_charges(engine, order_id)) == 1


def test_a_canceled_order_is_not_paid(alice: httpx.Client, engine: sa.Engine) -> None:
    save_card(alice)
    order_id = place_order(alice)["id"]
    alice.put(f"/orders/{order_id}/status", json={"status": "canceled"})
    answer = try_to_pay(alice, order_id)
    assert code(answer) == (409, "invalid_status_transition")
    assert answer.json()["current_status"] == "canceled"
    assert status_of(alice, order_id) == "canceled"
    assert sandbox_charges(engine, order_id) == []


@pytest.mark.parametrize("way", [["paid"], ["paid", "shipped"], ["paid", "shipped", "delivered"]])
def test_an_order_that_was_settled_elsewhere_is_not_paid(
    alice: httpx.Client, manager: httpx.Client, engine: sa.Engine, way: list[str]
) -> None:
    save_card(alice)
    order_id = place_order(alice)["id"]
    for status in way:
        manager.put(f"/orders/{order_id}/status", json={"status": status})
    assert code(try_to_pay(alice, order_id)) == (409, "order_already_paid")
    assert sandbox_charges(engine, order_id) == []


# --- Declines ---------------------------------------------------------------------------------


def declined(answer: httpx.Response, reason: str) -> int:
    assert code(answer) == (402, "payment_declined"), answer.text
    assert answer.json()["decline_code"] == reason
    return int(answer.json()["payment_id"])


@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize(("number", "reason"), DECLINES.items())
def test_a_declined_card_leaves_the_order_to_another(
    alice: httpx.Client,
    engine: sa.Engine,
    number: str,
    reason: str,
    by_token: bool,
) -> None:
    body = token(f"tok_{reason}") if by_token else card(number)
    bad, good = save(alice, body), save(alice, card(GOOD))
    order_id = place_order(alice)["id"]
    failed = declined(try_to_pay(alice, order_id, payment_method_id=bad), reason)
    assert status_of(alice, order_id) == "pending"
    payment = alice.get(f"/payments/{failed}").json()
    assert payment.keys() == SHAPE
    assert payment["status"] == "failed"
    assert payment["failure"].keys() == {"code", "decline_code", "message"}
    assert payment["failure"]["decline_code"] == reason
    assert payment["failure"]["message"]
    assert (payment["amount"], payment["amount_captured"]) == (1099, 0)
    assert payment["payment_method_id"] == bad
    assert payment["needs_review"] is False
    paid = pay(alice, order_id, payment_method_id=good)
    assert status_of(alice, order_id) == "paid"
    listed = alice.get(f"/orders/{order_id}/payments").json()
    assert listed == [paid, payment]
    assert [charge.status for charge in sandbox_charges(engine, order_id)] == [
        "declined",
        "captured",
    ]


def test_every_attempt_is_a_payment_of_its_own(alice: httpx.Client, engine: sa.Engine) -> None:
    save_card(alice, BAD)
    order_id = place_order(alice)["id"]
    failed = [declined(try_to_pay(alice, order_id), "generic_decline") for _ in range(3)]
    assert len(set(failed)) == 3
    assert ids(alice.get(f"/orders/{order_id}/payments").json()) == failed[::-1]
    charges = sandbox_charges(engine, order_id)
    assert [charge.payment_id for charge in charges] == failed
    assert len({charge.idempotency_key for charge in charges}) == 3


def test_a_decline_says_nothing_of_the_card(alice: httpx.Client) -> None:
    save_card(alice, BAD)
    answer = try_to_pay(alice, place_order(alice)["id"])
    assert BAD not in answer.text
    assert "tok_" not in answer.text
    assert answer.json()["retryable"] is False


def test_a_gateway_that_was_not_reached_charges_nothing(
    base_url: str, alice: httpx.Client, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_card(alice)
    order_id = place_order(alice)["id"]

    def unreachable(*_: Any) -> None:
        raise NotExecuted("canary-5512")

    with monkeypatch.context() as patch:
        patch.setattr(SandboxGateway, "charge", unreachable)
        answer = httpx.post(
            f"{base_url}/orders/{order_id}/payments", headers=alice.headers, verify=False
        )
    assert code(answer) == (502, "gateway_unavailable")
    assert "canary" not in answer.text
    assert status_of(alice, order_id) == "pending"
    [payment] = alice.get(f"/orders/{order_id}/payments").json()
    assert payment["status"] == "failed"
    assert payment["failure"]["code"] == "not_charged"
    assert sandbox_charges(engine, order_id) == []
    assert pay(alice, order_id)["status"] == "captured"


# --- Whose ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["", "webhooks:manage", "payments:manage"])
def test_a_foreign_order_is_not_paid(
    api: Api, alice: httpx.Client, engine: sa.Engine, user: str, scope: str
) -> None:
    stranger = api(f"{user}-eve", scope)
    save_card(stranger)
    order_id = place_order(alice)["id"]
    there, nowhere = try_to_pay(stranger, order_id), try_to_pay(stranger, ABSENT)
    assert code(there) == (404, "not_found")
    assert but_request_id(there) == but_request_id(nowhere)
    assert sandbox_charges(engine, order_id) == []


@pytest.mark.parametrize("scope", ["", "webhooks:manage"])
def test_a_foreign_payment_is_as_absent_as_one_that_never_was(
    api: Api, alice: httpx.Client, user: str, scope: str
) -> None:
    save_card(alice)
    payment = pay(alice, place_order(alice)["id"])
    stranger = api(f"{user}-eve", scope)
    for path in ("/payments/{}", "/orders/{}/payments"):
        number = payment["id"] if path.startswith("/payments") else payment["order_id"]
        there, nowhere = stranger.get(path.format(number)), stranger.get(path.format(ABSENT))
        assert code(there) == (404, "not_found")
        assert but_request_id(there) == but_request_id(nowhere)
    assert stranger.get("/payments").json() == []
    assert stranger.get("/payments", params={"order_id": payment["order_id"]}).json() == []
    assert code(stranger.get("/payments", params={"user_id": user})) == (403, "forbidden")


@pytest.mark.parametrize("scope", ["payments:manage", "orders:manage"])
def test_either_scope_reads_every_payment(
    api: Api, alice: httpx.Client, user: str, scope: str
) -> None:
    save_card(alice)
    payment = pay(alice, place_order(alice)["id"])
    cashier = api(f"{user}-cashier", scope)
    assert cashier.get(f"/payments/{payment['id']}").json() == payment
    assert cashier.get("/payments", params={"order_id": payment["order_id"]}).json() == [payment]
    assert cashier.get("/payments", params={"user_id": user}).json() == [payment]
    assert cashier.get(f"/orders/{payment['order_id']}/payments").json() == [payment]


def test_ones_own_payment_is_read_without_any_scope(alice: httpx.Client, user: str) -> None:
    save_card(alice)
    payment = pay(alice, place_order(alice)["id"])
    assert alice.get(f"/payments/{payment['id']}").json() == payment
    assert alice.get("/payments").json() == [payment]
    assert alice.get("/payments", params={"user_id": user}).json() == [payment]


def test_a_manager_pays_a_users_order_with_the_users_method(
    alice: httpx.Client, manager: httpx.Client, user: str
) -> None:
    method = save_card(alice)["id"]
    order_id = place_order(alice)["id"]
    payment = pay(manager, order_id)
    assert (payment["user_id"], payment["payment_method_id"]) == (user, method)
    assert alice.get(f"/payments/{payment['id']}").json() == payment


# --- Lists ------------------------------------------------------------------------------------


def test_payments_are_filtered(
    alice: httpx.Client, bob: httpx.Client, manager: httpx.Client, user: str
) -> None:
    bad, good = save_card(alice, BAD)["id"], save_card(alice, GOOD)["id"]
    save_card(bob)
    first, second = place_order(alice)["id"], place_order(alice)["id"]
    failed = declined(try_to_pay(alice, first, payment_method_id=bad), "generic_decline")
    paid = [pay(alice, order_id, payment_method_id=good)["id"] for order_id in (first, second)]
    pay(bob, place_order(bob)["id"])

    def found(client: httpx.Client = alice, **query: Any) -> list[int]:
        answer = client.get("/payments", params=query)
        assert answer.status_code == 200, answer.text
        return ids(answer.json())

    assert found() == [paid[1], paid[0], failed]
    assert found(order_id=first) == [paid[0], failed]
    assert found(order_id=second) == [paid[1]]
    assert found(status="captured") == paid[::-1]
    assert found(status="failed") == [failed]
    assert found(status="captured", order_id=first) == [paid[0]]
    assert found(needs_review="false") == [paid[1], paid[0], failed]
    assert found(needs_review="true") == []
    assert found(user_id=user, status="failed", order_id=first, needs_review="false") == [failed]
    assert found(manager, user_id=user) == [paid[1], paid[0], failed]
    assert found(manager, user_id=f"{user}-bob", order_id=first) == []
    assert ids(every(manager, "/payments", user_id=user, limit=1)) == [paid[1], paid[0], failed]
    for status in PAYMENT_STATUSES:
        assert set(found(status=status)) <= {failed, *paid}
    for order_id in (0, -1, ABSENT, 2**63, 10**25):
        assert found(order_id=order_id) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("status", value) for value in ("", "paid", "Captured", "captured,failed", "*", "a\0")),
        *(("needs_review", value) for value in ("", "1", "0", "True", "yes", "null", "on", "２")),
        *(("order_id", value) for value in ("", "abc", "1.0", "1e0", "true", "１", "a\0", "0x1")),
        *(("user_id", value) for value in ("", "a" * 256, "a\0")),
    ],
    ids=lambda part: ascii(part)[:16],
)
def test_a_filter_that_is_none_is_refused(manager: httpx.Client, name: str, value: str) -> None:
    assert fields(manager.get("/payments", params={name: value})) == {name}


def test_an_unpaid_order_has_no_payments(alice: httpx.Client) -> None:
    order_id = place_order(alice)["id"]
    assert alice.get(f"/orders/{order_id}/payments").json() == []
    assert alice.get("/payments", params={"order_id": order_id}).json() == []
