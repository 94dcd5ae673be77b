"""The sandbox gateway: its numbers and tokens, its books, its page, and its promise."""

from __future__ import annotations

import re
import secrets
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import sqlalchemy as sa

from gateways import base
from gateways.sandbox import SandboxGateway
from tests.support.clients import Api
from tests.support.database import sql
from tests.support.factories import VISA
from tests.support.shop import (
    ACTION,
    DECLINED,
    REFUND_FAILS,
    Shop,
    problem,
    settle,
    together,
    until,
)

pytestmark = pytest.mark.usefixtures("invariants_hold")

# The contract's table.
NUMBERS = {
    "4242 4242 4242 4242": "captured",
    "5555 5555 5555 4444": "captured",
    "3782 822463 10005": "captured",
    "6011 1111 1111 1117": "captured",  # and other valid numbers
    "4000 0000 0000 0002": "generic_decline",
    "4000 0000 0000 9995": "insufficient_funds",
    "4000 0000 0000 0069": "expired_card",
    "4000 0000 0000 0127": "incorrect_cvc",
    "4000 0000 0000 0119": "processing_error",
    "4100 0000 0000 0019": "fraudulent",
    "4000 0027 6000 3184": "requires_action",
    "4000 0000 0000 0259": "captured",
    "4000 0000 0000 5126": "captured",
}
TOKENS = {
    "tok_success": "captured",
    "tok_generic_decline": "generic_decline",
    "tok_insufficient_funds": "insufficient_funds",
    "tok_expired_card": "expired_card",
    "tok_incorrect_cvc": "incorrect_cvc",
    "tok_processing_error": "processing_error",
    "tok_fraudulent": "fraudulent",
    "tok_requires_action": "requires_action",
    "tok_dispute": "captured",
    "tok_refund_fails": "captured",
}


def expect(shop: Shop, method: dict[str, Any], outcome: str) -> dict[str, Any]:
    """Pay a new order with this method, automatically and manually, and see this outcome."""
    for capture_method in ("automatic", "manual"):
        order_id = shop.place()
        body = {"payment_method_id": method["id"], "capture_method": capture_method}
        answer = shop.shopper.post(f"/orders/{order_id}/payments", json=body)
        (entry,) = shop.books(order_id)
        if outcome in ("captured", "requires_action"):
            assert answer.status_code == 201, answer.text
            held = "authorized" if outcome == "captured" and capture_method == "manual" else outcome
            assert answer.json()["status"] == entry["status"] == held
        else:
            assert problem(answer) == (402, "payment_declined")
            assert answer.json()["decline_code"] == outcome
            assert entry["status"] == "declined"
    return entry


def save(shop: Shop, **body: Any) -> dict[str, Any]:
    answer = shop.shopper.post("/payment-methods", json=body)
    assert answer.status_code == 201, answer.text
    saved: dict[str, Any] = answer.json()
    return saved


@pytest.mark.parametrize(("number", "outcome"), NUMBERS.items())
def test_a_number_does_what_developers_know_of_it(shop: Shop, number: str, outcome: str) -> None:
    details = {"card_number": number, "exp_month": 12, "exp_year": 2040}
    expect(shop, save(shop, payment_type="card", details=details), outcome)


@pytest.mark.parametrize(("token", "outcome"), TOKENS.items())
def test_a_token_does_the_same_as_its_number(shop: Shop, token: str, outcome: str) -> None:
    method = save(shop, payment_type="card", details={"token": token}, gateway="sandbox")
    expect(shop, method, outcome)


def test_paypal_and_bank_accounts_succeed_at_once(shop: Shop) -> None:
    paypal = save(shop, payment_type="paypal", details={"email": "ann@example.com"})
    details = {"iban": "DE89 3704 0044 0532 0130 00", "account_holder": "Ann"}
    for method in (paypal, save(shop, payment_type="bank_account", details=details)):
        expect(shop, method, "captured")


def test_an_unknown_token_is_400(shop: Shop) -> None:
    for token in ("tok_nonsense", "tok_", "success", "pm_card_visa", "tok_success_1"):
        body = {"payment_type": "card", "details": {"token": token}, "gateway": "sandbox"}
        assert problem(shop.shopper.post("/payment-methods", json=body)) == (400, "invalid_request")


# The books --------------------------------------------------------------------------------------


def test_the_books_have_the_shape_of_the_contract(shop: Shop) -> None:
    payment = shop.paid(1000)
    refund = shop.do(payment, "refunds", amount=400).json()
    (entry,) = shop.books(payment["order_id"])
    key = entry.pop("idempotency_key")
    assert isinstance(key, str)
    assert key
    created_at = entry.pop("created_at")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", created_at)
    assert entry == {
        "reference": payment["gateway_reference"],
        "order_id": payment["order_id"],
        "payment_id": payment["id"],
        "amount": 1000,
        "currency": "USD",
        "status": "captured",
        "amount_captured": 1000,
        "amount_refunded": 400,
        "refunds": [
            {"reference": refund["gateway_reference"], "amount": 400, "status": "succeeded"}
        ],
    }


def test_the_books_have_one_entry_for_each_charge_made_or_declined(shop: Shop) -> None:
    order_id = shop.place()
    assert shop.books(order_id) == []
    assert shop.try_pay(order_id, DECLINED).status_code == 402
    assert shop.try_pay(order_id, DECLINED).status_code == 402
    shop.pay(order_id)
    entries = shop.books(order_id)
    assert [entry["status"] for entry in entries] == ["declined", "declined", "captured"]
    assert [entry["amount_captured"] for entry in entries] == [0, 0, 1099]
    assert len({entry["idempotency_key"] for entry in entries}) == 3
    assert len({entry["reference"] for entry in entries}) == 3


def test_the_books_are_read_with_payments_manage_only(shop: Shop, api: Api) -> None:
    for scope in ("", "orders:manage", "webhooks:manage"):
        assert problem(api("somebody", scope).get("/sandbox/charges")) == (403, "forbidden")
    assert problem(api().get("/sandbox/charges")) == (401, "unauthenticated")
    everything = api("somebody", "payments:manage").get("/sandbox/charges")
    assert everything.status_code == 200
    assert isinstance(everything.json(), list)


def test_the_books_of_an_order_that_cannot_be_are_empty(shop: Shop) -> None:
    for order_id in (0, -1, 2**63, 10**25):
        assert shop.books(order_id) == []
    answer = shop.manager.get("/sandbox/charges?order_id=abc")
    assert problem(answer) == (400, "invalid_request")


def test_the_books_hold_no_card_number(shop: Shop, engine: sa.Engine) -> None:
    shop.paid()
    for table in ("charges", "requests", "webhooks", "refunds", "disputes"):
        rows = sql(engine, f"SELECT t::text FROM sandbox.{table} t")
        assert not any(VISA in row[0] for row in rows), table


# The page ---------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser makes of a page, without JavaScript."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.forms: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.text = ""
        self._form = ("", "")
        self._button = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        assert not any(name.startswith("on") for name in given), "works without JavaScript"
        if tag == "form":
            self._form = (given.get("method") or "get", given.get("action") or "")
        self._button = tag == "button"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._button:
            self.forms.append((data, *self._form))
            self._button = False


@pytest.fixture
def browser(base_url: str, crowd: list[httpx.Client]) -> httpx.Client:
    """Nobody is logged in."""
    return crowd[0]


@pytest.mark.parametrize(
    ("currency", "amount", "shown"),
    [("USD", 123456, "1,234.56"), ("JPY", 5000, "5,000"), ("KWD", 1234, "1.234")],
)
def test_the_page_is_for_a_person_and_works_without_javascript(
    shop: Shop, browser: httpx.Client, currency: str, amount: int, shown: str
) -> None:
    payment = shop.pay(shop.place(amount, currency), ACTION)
    url = payment["next_action"]["url"]
    assert url.startswith(str(shop.shopper.base_url).rstrip("/"))
    answer = browser.get(url)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    page = Page(answer.text)
    assert f"{shown} {currency}" in page.text
    assert "EStore" in page.text  # the shop
    assert not {"script", "img", "link", "iframe"} & set(page.tags)
    assert [(name, method.lower()) for name, method, _ in page.forms] == [
        ("Approve", "post"),
        ("Decline", "post"),
    ]
    before = shop.payment(payment)
    browser.get(url)  # looking changes nothing
    assert shop.payment(payment) == before
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    approved = browser.post(httpx.URL(url).join(page.forms[0][2]), content=b"", headers=form)
    assert approved.status_code == 200, approved.text
    assert "approved" in approved.text.lower()
    assert shop.status(payment) == ("captured", "paid")
    assert Page(browser.get(url).text).forms == []  # nothing is left to ask


RETURN_URLS = [
    "https://shop.example/thanks",
    "https://shop.example/thanks?order=7&a=b%20c#done",
    "http://localhost:3000/x",
    "https://shop.example/%C3%A9?next=https%3A%2F%2Fa.example%2F&q=~!*()',;@[]$",
]


@pytest.mark.parametrize("return_url", RETURN_URLS)
@pytest.mark.parametrize("decision", ["approve", "decline"])
def test_the_shopper_comes_back_to_exactly_the_return_url(
    shop: Shop, browser: httpx.Client, return_url: str, decision: str
) -> None:
    payment = shop.pay(shop.place(), ACTION, return_url=return_url)
    answer = shop.answer_page(payment, decision)
    assert answer.status_code == 303
    assert answer.headers["Location"] == return_url
    # The shop finds it settled when the shopper arrives.
    expected = ("captured", "paid") if decision == "approve" else ("failed", "pending")
    assert shop.status(payment) == expected


@pytest.mark.parametrize(("first", "second"), [("approve", "decline"), ("decline", "approve")])
def test_a_second_answer_changes_nothing(shop: Shop, first: str, second: str) -> None:
    payment = shop.pay(shop.place(), ACTION, return_url="https://shop.example/")
    shop.answer_page(payment, first)
    before, history = shop.payment(payment), shop.told(payment["order_id"])
    for decision in (second, first):
        answer = shop.answer_page(payment, decision)
        assert answer.status_code == 303
    assert shop.payment(payment) == before
    assert shop.told(payment["order_id"]) == history


def test_approve_and_decline_at_once_is_one_answer(shop: Shop, crowd: list[httpx.Client]) -> None:
    for _ in range(5):
        payment = shop.pay(shop.place(), ACTION)
        page = httpx.URL(payment["next_action"]["url"]).path

        def answer(number: int, page: str = page) -> int:
            decision = ("approve", "decline")[number % 2]
            return crowd[number].post(f"{page}/{decision}").status_code

        assert set(together(10, answer)) == {200}
        status = shop.status(payment)
        assert status in [("captured", "paid"), ("failed", "pending")]
        assert len(shop.told(payment["order_id"])) == (3 if status[0] == "captured" else 2)


def test_an_unknown_reference_or_answer_is_404(shop: Shop, browser: httpx.Client) -> None:
    payment = shop.pay(shop.place(), ACTION)
    page = httpx.URL(payment["next_action"]["url"]).path
    nobody = "/sandbox/actions/ch_nobody"
    assert problem(browser.get(nobody)) == (404, "not_found")
    for decision in ("approve", "decline"):
        assert problem(browser.post(f"{nobody}/{decision}")) == (404, "not_found")
    assert problem(browser.post(f"{page}/perhaps")) == (404, "not_found")
    assert problem(browser.get(f"{page}/approve")) == (405, "method_not_allowed")
    assert shop.status(payment) == ("requires_action", "pending")


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{amount}{0}%s"]
)
def test_nothing_that_was_sent_is_markup_on_the_page(
    shop: Shop, browser: httpx.Client, text: str
) -> None:
    order_id = shop.place(product_id=text, metadata={"note": text})
    payment = shop.pay(order_id, ACTION, return_url="https://shop.example/?q=%3Cscript%3E")
    page = browser.get(payment["next_action"]["url"]).text
    assert text not in page
    assert "<script" not in page
    missing = browser.get(f"/sandbox/actions/{quote(text, safe='')}")
    assert missing.status_code in (404, 405)  # a slash makes it another path
    assert "<script" not in missing.text


@pytest.mark.parametrize(
    "return_url",
    [
        "javascript:alert(1)",
        "//shop.example",
        "/thanks",
        "ftp://a.example/",
        "https://",
        "https://a.example/" + "x" * 2048,
        "https://a.example/\r\nSet-Cookie: a=b",
        "data:text/html,x",
        "https://a.example/\u202e",
    ],
    ids=range(9),
)
def test_a_return_url_that_is_no_web_address_is_400(shop: Shop, return_url: str) -> None:
    answer = shop.try_pay(shop.place(), ACTION, return_url=return_url)
    assert problem(answer) == (400, "invalid_request")


# Its promise ------------------------------------------------------------------------------------


def charge_request(key: str) -> base.ChargeRequest:
    return base.ChargeRequest(
        key=key,
        payment_id=2**61,
        order_id=2**61,
        amount=100,
        currency="USD",
        token="tok_success",
        capture=True,
        return_url="https://shop.example/",
    )


def change_request(key: str, reference: str, payment_id: int) -> base.ChangeRequest:
    return base.ChangeRequest("void", key, reference, payment_id, 100, "USD", charge_amount=100)


def test_a_key_that_was_looked_up_first_can_never_be_charged(
    sandbox: SandboxGateway, engine: sa.Engine
) -> None:
    key = f"key-{secrets.token_hex(8)}"
    requested_at = sql(engine, "SELECT now()")[0][0]
    query = base.ChargeLookup(charge_request(key), None, requested_at)
    assert sandbox.look_up(query) is None
    for _ in range(2):
        with pytest.raises(base.NotExecuted):
            sandbox.charge(charge_request(key))
        assert sandbox.look_up(query) is None
    assert sandbox.page(limit=1, order_id=2**61) == []


def test_a_refund_key_that_was_looked_up_first_can_never_be_refunded(
    shop: Shop, sandbox: SandboxGateway, engine: sa.Engine
) -> None:
    payment, key = shop.paid(1000), f"key-{secrets.token_hex(8)}"
    requested_at = sql(engine, "SELECT now()")[0][0]
    reference = payment["gateway_reference"]
    request = base.RefundRequest(key, reference, payment["id"], 1, 100, "USD")
    assert sandbox.look_up_refund(base.RefundLookup(request, None, requested_at)) is None
    with pytest.raises(base.NotExecuted):
        sandbox.refund(request)
    change = change_request(key, reference, payment["id"])
    with pytest.raises(base.NotExecuted):
        sandbox.void(change)
    assert shop.books(payment["order_id"])[0]["refunds"] == []


def test_look_up_against_charge_has_one_winner(sandbox: SandboxGateway, engine: sa.Engine) -> None:
    requested_at = sql(engine, "SELECT now()")[0][0]
    keys = [f"key-{secrets.token_hex(8)}" for _ in range(20)]
    try:
        for key in keys:
            query = base.ChargeLookup(charge_request(key), None, requested_at)

            def act(
                number: int, key: str = key, query: base.ChargeLookup = query
            ) -> base.Charge | base.NotExecuted | None:
                if number == 0:
                    return sandbox.look_up(query)
                try:
                    return sandbox.charge(charge_request(key))
                except base.NotExecuted as error:
                    return error

            found, charged = together(2, act)
            assert (found is None) == isinstance(charged, base.NotExecuted)
            if found is not None:
                assert isinstance(found, base.Charge)
                assert found.refunds == ()  # which a look-up tells too
                assert replace(found, refunds=None) == charged
    finally:  # these charges are of no payment of ours
        sql(engine, "DELETE FROM sandbox.charges WHERE payment_id = :id", id=2**61)


def test_the_same_key_is_one_charge_at_the_gateway(
    sandbox: SandboxGateway, engine: sa.Engine
) -> None:
    request = charge_request(f"key-{secrets.token_hex(8)}")
    try:
        charges = together(8, lambda _: sandbox.charge(request))
        assert len({charge.reference for charge in charges}) == 1
        assert len(sandbox.page(limit=2, order_id=2**61)) == 1
    finally:
        sql(engine, "DELETE FROM sandbox.charges WHERE payment_id = :id", id=2**61)


def test_a_refund_on_the_number_that_fails_is_pending_first(shop: Shop) -> None:
    payment = shop.paid(number=REFUND_FAILS)
    refund = shop.do(payment, "refunds").json()
    assert refund["status"] == "pending"
    (entry,) = shop.books(payment["order_id"])
    assert [row["status"] for row in entry["refunds"]] == ["pending"]
    until(
        lambda: shop.books(payment["order_id"])[0]["refunds"][0]["status"] == "failed",
        "the refund fails",
    )
    settle(shop.engine)
    assert shop.refunds(payment)[0]["status"] == "failed"
