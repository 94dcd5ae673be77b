"""The service with real gateways behind it: confirmation, what a gateway is sent, two gateways at
once, declines, crashes between claim and answer, authorizations that grow old, cards."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

import auth
from config import load_settings
from conformance import harness as stands
from conformance.doubles.paypal import PaypalDouble
from conformance.doubles.server import BookEntry, Double
from conformance.doubles.stripe import CARDS, Card, StripeDouble, decode
from conformance.fault_proxy import Exchange, FaultProxy
from conformance.harness import MANAGES, Harness, ok
from conformance.target import Method, Target
from conformance.targets import PaypalTarget, StripeTarget
from gateways.sandbox import SandboxGateway
from services import reconciliation
from tests.support.processes import Service, copy_sources, wait_for
from web.route import GATEWAY_THREADS

SHOP = "https://shop.example/back?basket=7"
CHARGE = "/v1/payment_intents"
ORDERS = "/v2/checkout/orders"


def double_of(harness: Harness) -> Double:
    assert isinstance(harness.target, StripeTarget | PaypalTarget)
    return harness.target.double


def sql(harness: Harness, query: str, **values: Any) -> list[dict[str, Any]]:
    with harness.engine.begin() as connection:
        result = connection.execute(sa.text(query), values)
        return [dict(row) for row in result.mappings()] if result.returns_rows else []


def schedule_lookup_now(harness: Harness, payment_id: int) -> None:
    """Let the reconciler ask at once, whenever it would have asked."""
    sql(harness, "UPDATE payments SET check_at = now(), checks = 0 WHERE id = :id", id=payment_id)


def confirm(
    client: httpx.Client, payment: dict[str, Any], key: str | None = None, **body: Any
) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key is not None else {}
    answer = client.post(f"/payments/{payment['id']}/confirm", json=body, headers=headers)
    assert answer.status_code < 500, answer.text
    return answer


def waiting(harness: Harness, **body: Any) -> tuple[httpx.Client, dict[str, Any]]:
    """A shopper, and their payment that waits for them."""
    client = harness.shopper()
    harness.save(client, "action")
    payment = ok(harness.pay(client, harness.place(client), **{"return_url": SHOP, **body}), 201)
    assert payment["status"] == "requires_action"
    return client, payment


# The shopper is back ----------------------------------------------------------------------------


def test_nobody_confirms_somebody_elses_payment(paypal: Harness) -> None:
    _, payment = waiting(paypal)
    paypal.relay.holds = True
    paypal.target.approve(payment["gateway_reference"], yes=True)
    asked = len(paypal.proxy.log)
    problem = ok(confirm(paypal.shopper(), payment), 404)
    assert problem["code"] == "not_found"
    assert not [one for one in paypal.proxy.log[asked:] if one.path.endswith("/capture")]
    assert confirm(paypal.shopper(), {"id": 2**62}).status_code == 404
    no_token = httpx.post(f"{paypal.url}/payments/{payment['id']}/confirm", trust_env=False)
    assert no_token.status_code == 401


@pytest.mark.parametrize("returned", [{}, {"returned": {"payment_intent": "pi_of_another"}}])
def test_a_settled_payment_is_confirmed_as_it_is(stripe: Harness, returned: dict[str, Any]) -> None:
    for client, payment in (stripe.paid(), stripe.authorized()):
        events = stripe.events(payment["order_id"])
        asked = len(stripe.proxy.log)
        assert ok(confirm(client, payment, **returned), 200) == stripe.payment(payment["id"])
        assert stripe.payment(payment["id"]) == payment
        assert stripe.events(payment["order_id"]) == events
        assert len(stripe.proxy.log) == asked, "there is nothing to ask"


def test_a_declined_payment_is_confirmed_as_it_is(stripe: Harness) -> None:
    client = stripe.shopper()
    stripe.save(client, "declined")
    problem = ok(stripe.pay(client, stripe.place(client)), 402)
    seen = ok(confirm(client, {"id": problem["payment_id"]}), 200)
    assert (seen["status"], seen["failure"]["code"]) == ("failed", "payment_declined")


def test_a_confirmation_with_an_idempotency_key_is_answered_the_same_again(paypal: Harness) -> None:
    client, payment = waiting(paypal)
    paypal.relay.holds = True
    paypal.target.approve(payment["gateway_reference"], yes=True)
    key = f"confirm-{payment['id']}"
    first = confirm(client, payment, key)
    assert ok(first, 200)["status"] == "captured"
    ok(paypal.post(paypal.manager, f"/payments/{payment['id']}/refunds"), 201)
    again = confirm(client, payment, key)
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["Idempotent-Replayed"] == "true"


def test_a_key_of_one_confirmation_is_not_for_another(stripe: Harness) -> None:
    client, payment = stripe.paid()
    key = f"confirm-{payment['id']}"
    ok(confirm(client, payment, key), 200)
    other = confirm(client, payment, key, returned={"redirectResult": "another"})
    assert other.status_code == 422, other.text
    assert other.json()["code"] == "idempotency_key_reused"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"status": "captured"}, "status"),
        ({"returned": {}, "amount": 1}, "amount"),
        ({"returned": {"redirectResult": 7}}, "returned.…"),
        ({"returned": {"redirectResult": "x" * 8193}}, "returned.…"),
        ({"returned": {f"p{number}": "" for number in range(21)}}, "returned"),
        ({"returned": "redirectResult=x"}, "returned"),
    ],
)
def test_a_confirmation_with_what_it_does_not_know_is_400(
    stripe: Harness, body: dict[str, Any], field: str
) -> None:
    client, payment = waiting(stripe)
    problem = ok(confirm(client, payment, **body), 400)
    assert problem["code"] == "invalid_request"
    assert [error["field"] for error in problem["errors"]] == [field]
    assert stripe.payment(payment["id"])["status"] == "requires_action"


def test_a_payment_that_the_gateway_has_not_heard_of_is_confirmed_as_open(stripe: Harness) -> None:
    client = stripe.shopper()
    stripe.save(client)
    stripe.arm("drop_before", "charge", times=1000)
    payment = ok(stripe.pay(client, stripe.place(client)), 202)
    assert ok(confirm(client, payment), 202)["status"] == "pending"
    stripe.proxy.disarm()
    payment = stripe.becomes(payment["id"], "captured")
    assert ok(confirm(client, payment), 200)["status"] == "captured"


@pytest.mark.parametrize("kind", ["drop_before", "status_after"])
def test_while_the_outcome_of_the_completion_is_unknown_a_confirmation_is_202(
    paypal: Harness, kind: str
) -> None:
    client, payment = waiting(paypal)
    paypal.relay.holds = True
    paypal.target.approve(payment["gateway_reference"], yes=True)
    paypal.arm(kind, "complete", times=1000)
    for _ in range(2):
        assert ok(confirm(client, payment), 202)["status"] == "pending"
    assert paypal.order(payment["order_id"])["status"] == "pending"
    paypal.proxy.disarm()
    schedule_lookup_now(paypal, payment["id"])
    paypal.agree(paypal.becomes(payment["id"], "captured"))
    assert ok(confirm(client, payment), 200)["status"] == "captured"


def test_an_approved_payment_is_captured_by_the_confirmation_itself(paypal: Harness) -> None:
    client, payment = waiting(paypal)
    paypal.relay.holds = True
    paypal.target.approve(payment["gateway_reference"], yes=True)
    confirmed = ok(confirm(client, payment), 200)
    assert (confirmed["status"], confirmed["amount_captured"]) == ("captured", 1099)
    assert confirmed["next_action"] is None
    assert paypal.order(payment["order_id"])["status"] == "paid"
    paypal.agree(confirmed)


def test_a_confirmation_before_the_shopper_has_acted_changes_nothing(paypal: Harness) -> None:
    client, payment = waiting(paypal)
    confirmed = ok(confirm(client, payment), 200)
    assert (confirmed["status"], confirmed["next_action"]) == (
        "requires_action",
        payment["next_action"],
    )
    assert "payment.captured" not in paypal.events(payment["order_id"])


# What the gateway is sent -----------------------------------------------------------------------


def last_sent(harness: Harness, path: str) -> Exchange:
    return [one for one in harness.proxy.log if one.method == "POST" and one.path == path][-1]


def sent_to_stripe(harness: Harness, payment: dict[str, Any]) -> dict[str, Any]:
    """The charge of this payment as Stripe was asked for it."""
    fields = decode(last_sent(harness, CHARGE).body.decode())
    assert fields["metadata"]["payment_id"] == str(payment["id"])
    return fields


def test_a_shopper_who_pays_lands_on_the_services_own_page(
    stripe: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    _, payment = stripe.paid()
    fields = sent_to_stripe(stripe, payment)
    assert fields["return_url"] == f"{stripe.url}/checkout/return"
    assert "off_session" not in fields

    added = {"payment_intent": "pi_in_the_address", "redirect_status": "<script>succeeded</script>"}
    page = httpx.get(fields["return_url"], params=added, trust_env=False)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "<script" not in page.text.lower()
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "script-src" not in page.headers["content-security-policy"]
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cache-control"] == "no-store"
    for told in (page.text, str(page.headers)):
        assert "pi_in_the_address" not in told
        assert "succeeded" not in told
    stripe.until(lambda: "/checkout/return" in caplog.text, "the visit is logged")
    assert "pi_in_the_address" not in caplog.text
    assert page.content == httpx.get(fields["return_url"], trust_env=False).content


def test_a_shopper_who_pays_lands_where_the_storefront_says(stripe: Harness) -> None:
    _, payment = stripe.paid(return_url=SHOP)
    fields = sent_to_stripe(stripe, payment)
    assert (fields["return_url"], "off_session" in fields) == (SHOP, False)


def test_a_store_that_pays_for_a_shopper_does_so_without_them(stripe: Harness) -> None:
    client = stripe.shopper()
    stripe.save(client)
    payment = ok(stripe.pay(stripe.manager, stripe.place(client)), 201)
    fields = sent_to_stripe(stripe, payment)
    assert fields["off_session"] == "true"
    assert fields["automatic_payment_methods"]["allow_redirects"] == "never"
    assert "return_url" not in fields


def test_a_store_that_says_where_to_return_pays_with_the_shopper_there(stripe: Harness) -> None:
    client = stripe.shopper()
    stripe.save(client, "action")
    payment = ok(stripe.pay(stripe.manager, stripe.place(client), return_url=SHOP), 201)
    assert payment["status"] == "requires_action"
    fields = sent_to_stripe(stripe, payment)
    assert (fields["return_url"], "off_session" in fields) == (SHOP, False)


def test_a_manager_who_pays_their_own_order_is_there(stripe: Harness) -> None:
    boss = stripe.client("boss", MANAGES)
    stripe.save(boss)
    fields = sent_to_stripe(stripe, ok(stripe.pay(boss, stripe.place(boss)), 201))
    assert fields["return_url"] == f"{stripe.url}/checkout/return"
    assert "off_session" not in fields


def test_a_repeat_by_the_reconciler_says_the_same_about_the_shopper(stripe: Harness) -> None:
    client = stripe.shopper()
    stripe.save(client)
    stripe.arm("drop_before", "charge")
    payment = ok(stripe.pay(stripe.manager, stripe.place(client)), 202)
    first = last_sent(stripe, CHARGE)
    stripe.becomes(payment["id"], "captured")
    again = last_sent(stripe, CHARGE)
    assert again is not first
    assert again.body == first.body
    assert again.headers["idempotency-key"] == first.headers["idempotency-key"]
    assert decode(again.body.decode())["off_session"] == "true"


def test_paypal_is_sent_where_the_payer_returns_to_unless_nobody_is_there(paypal: Harness) -> None:
    def sent(body: dict[str, Any], payer: httpx.Client | None = None) -> Any:
        client = paypal.shopper()
        paypal.save(client)
        ok(paypal.pay(payer or client, paypal.place(client), **body), 201)
        sent = json.loads(last_sent(paypal, ORDERS).body)
        return sent["payment_source"]["paypal"].get("experience_context")

    assert sent({})["return_url"] == f"{paypal.url}/checkout/return"
    assert sent({"return_url": SHOP})["return_url"] == SHOP
    assert sent({"return_url": SHOP}, paypal.manager)["return_url"] == SHOP
    assert sent({}, paypal.manager) is None


# Two gateways at once ---------------------------------------------------------------------------

CONCURRENCY = 4
STALLED = GATEWAY_THREADS + 40  # payments: more than there are threads that wait for gateways
STRICT_TIMEOUT = 25.0  # seconds: whoever waits for PayPal waits longer than the test takes
ROUTES = """
[[route]]
payment_type = "card"
currency = "JPY"
gateway = "sandbox"

[[route]]
payment_type = "card"
country = ["NL", "BE"]
gateway = "acme"

[[route]]
payment_type = "bank_account"
country = "DE"
gateway = "acme"
"""


class Acme(SandboxGateway):
    """One more gateway, to have something to choose from."""

    name = "acme"

    # Both keep the same books, and the sandbox lists them.
    capabilities = replace(SandboxGateway.capabilities, lists_charges=False)


class TwoBenches(Target):
    """Stripe as in any harness, and PayPal behind a proxy of its own. Nobody reconciles."""

    name = "stripe and paypal"
    gateway = f"stripe,paypal,sandbox,{__name__}:Acme"
    key_header = "Idempotency-Key"
    steps = StripeTarget.steps

    def __init__(self, folder: Path) -> None:
        self.stripe, self.paypal = StripeTarget(), PaypalTarget(folder)
        self._routes = folder / "routes.toml"
        self._routes.write_text(ROUTES)

    def __enter__(self) -> TwoBenches:
        self.stripe.__enter__()
        self.paypal.__enter__()
        self.upstream = self.stripe.upstream
        self.paypal_proxy = FaultProxy(self.paypal.upstream)
        self.paypal_proxy.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.paypal_proxy.stop()
        self.paypal.__exit__(*exception)
        self.stripe.__exit__(*exception)

    def settings(self, address: str) -> dict[str, Any]:
        return {
            **self.stripe.settings(address),
            **self.paypal.settings(self.paypal_proxy.url),
            "stripe_raw_cards": True,
            "routes": self._routes,
            "gateway_concurrency": CONCURRENCY,
            "run_workers": False,
        }

    def method(self, kind: Method) -> dict[str, Any]:
        return self.stripe.method(kind)

    def approve(self, reference: str, *, yes: bool) -> None:
        self.stripe.approve(reference, yes=yes)

    def charges(self, payment_id: int) -> list[BookEntry]:
        return [*self.stripe.charges(payment_id), *self.paypal.charges(payment_id)]

    def violations(self) -> list[str]:
        return [*self.stripe.violations(), *self.paypal.violations()]


@pytest.fixture(scope="module")
def two_benches(tmp_path_factory: pytest.TempPathFactory) -> TwoBenches:
    return TwoBenches(tmp_path_factory.mktemp("gateways"))


@pytest.fixture(scope="module")
def both_stand(
    two_benches: TwoBenches,
    make_database: Callable[[], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Harness]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stands, "GATEWAY_TIMEOUT", STRICT_TIMEOUT)
        with Harness(two_benches, make_database(), tmp_path_factory.mktemp("data")) as harness:
            yield harness


@pytest.fixture
def both(both_stand: Harness, two_benches: TwoBenches) -> Iterator[Harness]:
    """A service with Stripe, PayPal, and two gateways inside it. Afterwards all invariants hold."""
    yield both_stand
    two_benches.paypal_proxy.disarm()
    both_stand.check()


def all_agree(harness: Harness) -> None:
    """Whatever is open is settled, and both sets of books show the same."""
    report = reconciliation.reconcile(harness.engine, harness.app.state.lookup_rules)
    assert (report["still_open"], report["needs_review"]) == (0, 0)
    for payment in sql(harness, "SELECT * FROM payments WHERE gateway IN ('stripe', 'paypal')"):
        harness.agree(payment)


def paypal_order(harness: Harness, target: TwoBenches) -> tuple[httpx.Client, str]:
    """Somebody new with an order, and with PayPal to pay it; and the path to do so."""
    client = harness.shopper()
    ok(harness.post(client, "/payment-methods", **target.paypal.method("good")), 201)
    return client, f"/orders/{harness.place(client)['id']}/payments"


def at_work(harness: Harness) -> int:
    """How many payments through PayPal have been begun."""
    (row,) = sql(harness, "SELECT count(*) AS number FROM payments WHERE gateway = 'paypal'")
    return int(row["number"])


def test_while_paypal_stalls_a_payment_through_stripe_succeeds(
    both: Harness, two_benches: TwoBenches
) -> None:
    payer = both.shopper()
    both.save(payer)
    order = both.place(payer)
    client, _ = paypal_order(both, two_benches)
    orders = [both.place(client)["id"] for _ in range(STALLED)]
    began = at_work(both)
    held = two_benches.paypal_proxy.arm("hold_after", ORDERS, times=1000)

    def pay(order_id: int) -> httpx.Response:
        return many.post(f"/orders/{order_id}/payments", json={})

    with (
        httpx.Client(
            base_url=both.url,
            headers={"Authorization": client.headers["Authorization"]},
            timeout=60,
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        ) as many,
        ThreadPoolExecutor(STALLED) as pool,
    ):
        try:
            stalled: list[Future[httpx.Response]] = [pool.submit(pay, one) for one in orders]
            both.until(
                lambda: at_work(both) - began >= GATEWAY_THREADS, "as many as there are threads"
            )
            paid = ok(both.pay(payer, order), 201)
            still_held = [one for one in stalled if not one.done()]
            assert not held.release.is_set()
            assert len(still_held) >= CONCURRENCY, "nobody waits for PayPal any more"
        finally:
            two_benches.paypal_proxy.disarm()  # and releases what is held
        answers = [one.result(60) for one in stalled]
    assert (paid["gateway"], paid["status"]) == ("stripe", "captured")
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {201, 502}, set(codes)
    assert codes.count(201) >= CONCURRENCY
    refused = {answer.json()["payment_id"] for answer in answers if answer.status_code == 502}
    rows = sql(both, "SELECT id, failure FROM payments WHERE status = 'failed'")
    failures = {row["id"]: row["failure"]["code"] for row in rows}
    assert {failures[payment_id] for payment_id in refused} == {"not_charged"}
    charged = {entry.payment_id for entry in two_benches.paypal.double.books()}
    assert not charged & refused, "it was told that nothing was charged"
    all_agree(both)


def test_when_paypal_fails_ten_times_in_a_row_it_is_left_alone_and_stripe_still_works(
    both: Harness, two_benches: TwoBenches, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = two_benches.paypal_proxy
    client, path = paypal_order(both, two_benches)
    assert ok(client.post(path, json={}), 201)["status"] == "captured"  # none in a row so far
    shoppers = [paypal_order(both, two_benches) for _ in range(12)]
    payer = both.shopper()
    both.save(payer)
    order = both.place(payer)
    fault = proxy.arm("status_before", ORDERS, status=500, times=1000)
    for client, path in shoppers[:10]:
        assert ok(client.post(path, json={}), 202)["status"] == "pending"
    assert fault.times == 1000 - 10, "each was asked for once"
    asked = len(proxy.log)

    client, path = shoppers[10]
    problem = ok(client.post(path, json={}), 502)
    assert problem["code"] == "gateway_unavailable"
    payment = both.payment(problem["payment_id"])
    assert (payment["status"], payment["failure"]["code"]) == ("failed", "not_charged")
    assert len(proxy.log) == asked, "no request was sent"
    assert "gateway.circuit_open" in caplog.text
    assert ok(both.pay(payer, order), 201)["gateway"] == "stripe"

    proxy.disarm()  # PayPal is well again, and some time later it is asked again

    def pay_again() -> dict[str, Any] | None:
        answer = client.post(path, json={})
        assert answer.status_code in (201, 502), answer.text
        return dict(answer.json()) if answer.status_code == 201 else None

    assert both.until(pay_again, "PayPal is asked again")["status"] == "captured"
    all_agree(both)


CARD = {"card_number": "4242 4242 4242 4242", "exp_month": 12, "exp_year": 2040}
GERMAN = {"iban": "DE89 3704 0044 0532 0130 00", "account_holder": "Alice"}
FRENCH = {"iban": "FR14 2004 1010 0505 0001 3M02 606", "account_holder": "Alice"}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"payment_type": "card", "details": CARD}, "stripe"),
        ({"payment_type": "card", "details": CARD, "currency": "JPY"}, "sandbox"),
        ({"payment_type": "card", "details": CARD, "currency": "EUR"}, "stripe"),
        ({"payment_type": "card", "details": CARD, "country": "NL"}, "acme"),
        ({"payment_type": "card", "details": CARD, "country": "DE"}, "stripe"),
        # Both routes fit; the first one is taken.
        ({"payment_type": "card", "details": CARD, "currency": "JPY", "country": "NL"}, "sandbox"),
        # Whoever names a gateway gets it.
        ({"payment_type": "card", "details": CARD, "country": "NL", "gateway": "stripe"}, "stripe"),
        (
            {"payment_type": "card", "details": CARD, "currency": "JPY", "gateway": "acme"},
            "acme",
        ),
        ({"payment_type": "paypal", "details": {"email": "alice@example.com"}}, "paypal"),
        ({"payment_type": "bank_account", "details": GERMAN}, "acme"),
        ({"payment_type": "bank_account", "details": FRENCH}, "sandbox"),
        ({"payment_type": "bank_account", "details": GERMAN, "country": "FR"}, "sandbox"),
        ({"payment_type": "bank_account", "details": FRENCH, "country": "DE"}, "acme"),
        ({"payment_type": "bank_account", "details": GERMAN, "gateway": "sandbox"}, "sandbox"),
    ],
)
def test_a_method_goes_to_the_gateway_that_is_named_or_else_to_that_of_its_route(
    both: Harness, body: dict[str, Any], expected: str
) -> None:
    client = both.shopper()
    method = ok(both.post(client, "/payment-methods", **body), 201)
    assert method["gateway"] == expected


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"country": "nl"}, "country"),
        ({"country": "Netherlands"}, "country"),
        ({"currency": "jpy"}, "currency"),
        ({"gateway": "adyen"}, "gateway"),
        ({"gateway": "paypal"}, "gateway"),
    ],
)
def test_a_method_that_no_gateway_can_be_chosen_for_is_400(
    both: Harness, changes: dict[str, Any], field: str
) -> None:
    client = both.shopper()
    body = {"payment_type": "card", "details": CARD, **changes}
    problem = ok(both.post(client, "/payment-methods", **body), 400)
    assert [error["field"] for error in problem["errors"]] == [field]
    assert ok(client.get("/payment-methods"), 200) == []


# Declines ---------------------------------------------------------------------------------------


def failure_of(harness: Harness, payment_id: int) -> dict[str, Any]:
    (row,) = sql(harness, "SELECT failure FROM payments WHERE id = :id", id=payment_id)
    failure: dict[str, Any] = row["failure"]
    return failure


@pytest.mark.parametrize(
    ("raw", "ours", "retryable"),
    [
        ("stolen_card", "generic_decline", False),
        ("merchant_blacklist", "fraudulent", False),
        ("reenter_transaction", "processing_error", True),
        ("issuer_not_available", "try_again_later", True),
    ],
)
def test_what_a_gateway_calls_a_decline_is_kept_for_the_store_and_never_shown(
    stripe: Harness, caplog: pytest.LogCaptureFixture, raw: str, ours: str, retryable: bool
) -> None:
    double = double_of(stripe)
    assert isinstance(double, StripeDouble)
    client = stripe.shopper()
    body = stripe.target.method("good")
    with double.lock:
        double.cards[body["details"]["token"]] = Card(
            CARDS["good"].number, decline=("card_declined", raw)
        )
    ok(stripe.post(client, "/payment-methods", **body), 201)
    order = stripe.place(client)
    key = f"order-{order['id']}"
    declined = stripe.pay(client, order, key=key)
    problem = ok(declined, 402)
    assert (problem["decline_code"], problem["retryable"]) == (ours, retryable)
    failure = failure_of(stripe, problem["payment_id"])
    assert (failure["gateway_code"], failure["retryable"]) == (raw, retryable)
    assert (failure["code"], failure["decline_code"]) == ("payment_declined", ours)
    assert stripe.pay(client, order, key=key).content == declined.content
    told = [
        declined,
        *(
            who.get(f"{path}?limit=200" if path.endswith("s") else path)
            for who in (client, stripe.manager)
            for path in (
                f"/payments/{problem['payment_id']}",
                f"/orders/{order['id']}/payments",
                f"/orders/{order['id']}/events",
            )
        ),
    ]
    for answer in told:
        assert raw not in answer.text, answer.url
        assert "gateway_code" not in answer.text, answer.url
    assert set(told[1].json()["failure"]) == {"code", "decline_code", "message"}
    assert raw in caplog.text


@pytest.mark.parametrize(
    ("token", "retryable"), [("tok_processing_error", True), ("tok_generic_decline", False)]
)
def test_whether_the_sandbox_is_worth_another_try_is_told(
    both: Harness, token: str, retryable: bool
) -> None:
    client = both.shopper()
    body: dict[str, Any] = {"gateway": "sandbox", "details": {"token": token}}
    ok(both.post(client, "/payment-methods", payment_type="card", **body), 201)
    problem = ok(both.pay(client, both.place(client)), 402)
    assert problem["retryable"] is retryable
    assert failure_of(both, problem["payment_id"])["retryable"] is retryable


# Crashes ----------------------------------------------------------------------------------------


class Shopper:
    """Somebody who uses a started service, whichever of its lives it is in."""

    def __init__(self, double: StripeDouble, database_url: str, data_dir: Path) -> None:
        settings = load_settings(_env_file=None, database_url=database_url, data_dir=data_dir)
        token = auth.mint(settings, "alice", MANAGES)
        self._double = double
        self._headers = {"Authorization": f"Bearer {token}"}

    def use(self, service: Service) -> Shopper:
        self._url = service.url
        return self

    def ask(self, method: str, path: str, **body: Any) -> httpx.Response:
        return httpx.request(
            method,
            f"{self._url}{path}",
            json=body if method == "POST" else None,
            headers=self._headers,
            timeout=60,
            trust_env=False,
        )

    def save(self) -> None:
        ok(self.ask("POST", "/payment-methods", **(self._double.method("good") or {})), 201)

    def place(self) -> int:
        order = {"product_id": "sku-1", "quantity": 1, "total_amount": 1099, "currency": "USD"}
        return int(ok(self.ask("POST", "/orders", **order), 201)["id"])

    def pay(self, **body: Any) -> dict[str, Any]:
        return dict(ok(self.ask("POST", f"/orders/{self.place()}/payments", **body), 201))

    def payment(self, payment_id: int) -> dict[str, Any]:
        return dict(ok(self.ask("GET", f"/payments/{payment_id}"), 200))

    def get(self, path: str) -> Any:
        return ok(self.ask("GET", path), 200)


def test_what_was_asked_of_stripe_when_the_service_was_killed_happens_once(
    make_database: Callable[[], str], tmp_path: Path
) -> None:
    sources, data_dir = copy_sources(tmp_path / "service"), tmp_path / "data"
    database_url = make_database()
    paths = {
        "charge": CHARGE,
        "capture": rf"{CHARGE}/\w+/capture",
        "refund": "/v1/refunds",
    }
    with StripeDouble() as double:
        proxy = FaultProxy(double.base_url)
        proxy.start()
        settings = {
            "DATABASE_URL": database_url,
            "GATEWAYS": "stripe",
            "RECONCILE_AFTER": 0.2,
            **{name.upper(): _plain(value) for name, value in double.settings().items()},
            "STRIPE_API_BASE": proxy.url,
        }
        try:
            with Service(sources, data_dir, **settings).wait_until_ready() as service:
                alice = Shopper(double, database_url, data_dir).use(service)
                alice.save()
                authorized = alice.pay(capture_method="manual")
                paid = alice.pay()
                order_id = alice.place()
                asked = len(proxy.log)
                # The repeats of the reconciler before the crash are held as well.
                held = {
                    step: proxy.arm("hold_after", path, times=1000) for step, path in paths.items()
                }
                requests: list[tuple[str, dict[str, Any]]] = [
                    (f"/orders/{order_id}/payments", {}),
                    (f"/payments/{authorized['id']}/capture", {"amount": 700}),
                    (f"/payments/{paid['id']}/refunds", {"amount": 300}),
                ]
                threads = [
                    threading.Thread(target=_ask_in_vain, args=(alice, path, body))
                    for path, body in requests
                ]
                for thread in threads:
                    thread.start()
                wait_for(
                    lambda: {*paths} == {_step(one, paths) for one in proxy.log[asked:]},
                    "all three are done at Stripe",
                    30,
                )
                service.kill()
                for thread in threads:
                    thread.join(30)
            assert all(fault.reached.is_set() for fault in held.values())
            before_the_crash = len(proxy.log)
            proxy.disarm()
            with Service(sources, data_dir, **settings).wait_until_ready() as service:
                alice.use(service)
                (charged,) = alice.get(f"/orders/{order_id}/payments")
                wait_for(lambda: _is(alice, charged["id"], "captured"), "the charge settles", 40)
                wait_for(lambda: _is(alice, authorized["id"], "captured"), "so does the capture")
                wait_for(lambda: _is(alice, paid["id"], "partially_refunded"), "and the refund")
                (refund,) = alice.get(f"/payments/{paid['id']}/refunds")
                charged, authorized, paid = (
                    alice.payment(one["id"]) for one in (charged, authorized, paid)
                )
                order = alice.get(f"/orders/{order_id}")
        finally:
            proxy.stop()
        assert (refund["status"], refund["amount"]) == ("succeeded", 300)
        assert order["status"] == "paid"
        assert charged["amount_captured"] == 1099
        assert authorized["amount_captured"] == 700
        assert paid["amount_refunded"] == 300
        assert not any(one["needs_review"] for one in (charged, authorized, paid))
        entries = {entry.payment_id: entry for entry in double.books()}
        assert len(double.intents) == len(entries) == 3, "one PaymentIntent for each payment"
        assert len(double.refunds) == 1
        for payment in (charged, authorized, paid):
            entry = entries[payment["id"]]
            assert entry.reference == payment["gateway_reference"]
            assert entry.status == "captured"
            assert entry.amount_captured == payment["amount_captured"]
            assert entry.amount_refunded == payment["amount_refunded"]
        for step in paths:
            same = [one for one in proxy.log[asked:] if _step(one, paths) == step]
            assert len({(one.path, one.headers["idempotency-key"], one.body) for one in same}) == 1
            assert [one for one in proxy.log[before_the_crash:] if _step(one, paths) == step] or (
                step == "capture"  # the books may tell of it without a repeat
            )
        assert double.violations == []


def _plain(value: Any) -> Any:
    return value.get_secret_value() if hasattr(value, "get_secret_value") else value


def _ask_in_vain(alice: Shopper, path: str, body: dict[str, Any]) -> None:
    with contextlib.suppress(httpx.TransportError):
        alice.ask("POST", path, **body)


def _step(exchange: Exchange, paths: dict[str, str]) -> str | None:
    fits = (step for step, path in paths.items() if re.fullmatch(path, exchange.path))
    return next(fits, None) if exchange.method == "POST" else None


def _is(alice: Shopper, payment_id: int, status: str) -> bool:
    return bool(alice.payment(payment_id)["status"] == status)


# PayPal's authorizations ------------------------------------------------------------------------


def test_a_capture_after_the_honor_period_renews_the_authorization_and_captures_once(
    paypal: Harness,
) -> None:
    double = double_of(paypal)
    assert isinstance(double, PaypalDouble)
    _, payment = paypal.authorized(2000)
    double.pass_days(4)
    asked = len(paypal.proxy.log)
    captured = ok(paypal.post(paypal.manager, f"/payments/{payment['id']}/capture"), 200)
    assert (captured["status"], captured["amount_captured"]) == ("captured", 2000)
    reference = payment["gateway_reference"]
    with double.lock:
        old, new = (one for one in double.authorizations.values() if one["order"] == reference)
        captures = [one for one in double.captures.values() if one["order"] == reference]
    posted = [one for one in paypal.proxy.log[asked:] if one.method == "POST"]
    assert [one.path for one in posted] == [
        f"/v2/payments/authorizations/{old['id']}/reauthorize",
        f"/v2/payments/authorizations/{new['id']}/capture",
    ]
    assert len({one.headers["paypal-request-id"] for one in posted}) == 2
    assert len(captures) == 1
    paypal.agree(captured)
    assert paypal.order(payment["order_id"])["status"] == "paid"


def test_a_capture_within_the_honor_period_does_not_renew(paypal: Harness) -> None:
    double = double_of(paypal)
    assert isinstance(double, PaypalDouble)
    _, payment = paypal.authorized(2000)
    double.pass_days(2)
    asked = len(paypal.proxy.log)
    captured = ok(paypal.post(paypal.manager, f"/payments/{payment['id']}/capture"), 200)
    assert not [one for one in paypal.proxy.log[asked:] if one.path.endswith("/reauthorize")]
    paypal.agree(captured)


def test_an_authorization_that_has_expired_is_voided_and_its_order_canceled(
    paypal: Harness,
) -> None:
    double = double_of(paypal)
    assert isinstance(double, PaypalDouble)
    _, payment = paypal.authorized(2000)
    double.pass_days(30)
    schedule_lookup_now(paypal, payment["id"])
    voided = paypal.becomes(payment["id"], "voided")
    assert paypal.order(payment["order_id"])["status"] == "canceled"
    assert not voided["needs_review"]
    assert paypal.events(payment["order_id"])[-2:] == ["payment.voided", "order.status_changed"]
    paypal.agree(voided)
    answer = paypal.post(paypal.manager, f"/payments/{payment['id']}/capture")
    assert ok(answer, 409)["code"] == "invalid_status_transition"


def test_a_capture_of_an_authorization_that_has_expired_voids_it(paypal: Harness) -> None:
    double = double_of(paypal)
    assert isinstance(double, PaypalDouble)
    _, payment = paypal.authorized(2000)
    double.pass_days(30)
    answer = paypal.post(paypal.manager, f"/payments/{payment['id']}/capture")
    problem = ok(answer, 409)
    assert (problem["code"], problem["current_status"]) == ("invalid_status_transition", "voided")
    paypal.agree(paypal.payment(payment["id"]))
    assert paypal.order(payment["order_id"])["status"] == "canceled"


# Cards ------------------------------------------------------------------------------------------


def test_a_card_at_stripe_is_changed_by_its_user(stripe: Harness) -> None:
    client = stripe.shopper()
    method = stripe.save(client)
    changes = {"exp_month": 5, "exp_year": 2042, "cardholder_name": "Alice Example"}
    path = f"/payment-methods/{method['id']}"
    changed = ok(client.patch(path, json={"details": changes}), 200)
    assert changed["details"] == {**method["details"], **changes}
    assert ok(client.get(path), 200) == changed
    assert ok(stripe.pay(client, stripe.place(client)), 201)["status"] == "captured"
    assert stripe.shopper().patch(path, json={"details": changes}).status_code == 404


@pytest.mark.parametrize("token", ["the same", "a new one"])
def test_a_card_at_stripe_that_was_removed_is_saved_again(stripe: Harness, token: str) -> None:
    client = stripe.shopper()
    body = stripe.target.method("good")
    first = ok(stripe.post(client, "/payment-methods", **body), 201)
    again = body if token == "the same" else stripe.target.method("good")
    taken = ok(stripe.post(client, "/payment-methods", **again), 409)
    assert taken["payment_method_id"] == first["id"]
    assert client.delete(f"/payment-methods/{first['id']}").status_code == 204
    second = ok(stripe.post(client, "/payment-methods", **again), 201)
    assert second["id"] != first["id"]
    assert second["is_default"] is True
    assert second["details"]["last4"] == first["details"]["last4"]
    paid = ok(stripe.pay(client, stripe.place(client)), 201)
    assert (paid["status"], paid["payment_method_id"]) == ("captured", second["id"])
