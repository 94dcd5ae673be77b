"""Two gateways at once: routes, declines, and one that fails while the other works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from conformance import harness as stands
from conformance.doubles.server import BookEntry
from conformance.doubles.stripe import CARDS, Card, StripeDouble
from conformance.fault_proxy import FaultProxy
from conformance.harness import Harness, ok
from conformance.target import Method, Target
from conformance.targets import PaypalTarget, StripeTarget
from gateways.sandbox import SandboxGateway
from greenlets import GATEWAY_THREADS
from services import reconciliation
from tests.support.database import records
from tests.support.harness import ORDERS, double_of

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
    for payment in records(
        harness.engine, "SELECT * FROM payments WHERE gateway IN ('stripe', 'paypal')"
    ):
        harness.agree(payment)


def paypal_order(harness: Harness, target: TwoBenches) -> tuple[httpx.Client, str]:
    """Somebody new with an order, and with PayPal to pay it; and the path to do so."""
    client = harness.shopper()
    ok(harness.post(client, "/payment-methods", **target.paypal.method("good")), 201)
    return client, f"/orders/{harness.place(client)['id']}/payments"


def at_work(harness: Harness) -> int:
    """How many payments through PayPal have been begun."""
    (row,) = records(
        harness.engine, "SELECT count(*) AS number FROM payments WHERE gateway = 'paypal'"
    )
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
    rows = records(both.engine, "SELECT id, failure FROM payments WHERE status = 'failed'")
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
    (row,) = records(harness.engine, "SELECT failure FROM payments WHERE id = :id", id=payment_id)
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
