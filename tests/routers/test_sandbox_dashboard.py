"""`/sandbox`: the sandbox's dashboard as a person with a browser uses it, and who may not."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import sqlalchemy as sa

import main
from config import load_settings
from tests.support.factories import VISA, card, place_order
from tests.support.shop import until

ACTION, DECLINED, DISPUTED = "4000002760003184", "4000000000000002", "4000000000000259"


@dataclass
class Form:
    """A form with one button, as a browser would send it."""

    action: str
    button: str = ""
    fields: dict[str, str] = field(default_factory=dict)


class Page(HTMLParser):
    """What a browser makes of the page, without JavaScript."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.charges: dict[str, list[Form]] = {}  # forms by reference, in order; "" are switches
        self.text = self.alert = ""
        self.links: dict[str, str] = {}
        self.tags: set[str] = set()
        self._forms: list[Form] = self.charges.setdefault("", [])
        self._last: tuple[str, dict[str, str | None]] = ("", {})  # the tag that data follows
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert not any(name.startswith("on") for name in given), "works without JavaScript"
        self.tags.add(tag)
        self._last = (tag, given)
        if tag == "li":
            self._forms = self.charges.setdefault(str(given["id"]), [])
        if tag == "form":
            assert given["method"] == "post"
            self._forms.append(Form(str(given["action"])))
        if tag == "input":
            self._forms[-1].fields[str(given["name"])] = str(given.get("value") or "")
            assert given.get("type") == "hidden" or given.get("aria-label"), "nobody knows what for"

    def handle_endtag(self, _: str) -> None:
        self._last = ("", {})

    def handle_data(self, data: str) -> None:
        self.text += data
        tag, given = self._last
        if tag == "button":
            self._forms[-1].button += data
        if given.get("role") == "alert":
            self.alert += data
        if tag == "a":
            self.links[data] = str(given["href"])


class Browser:
    """Somebody at the dashboard, who follows redirects."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def open(self, path: str = "/sandbox") -> Page:
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return Page(answer.text)

    def find(self, charge: str, button: str, page: Page | None = None) -> Form:
        forms = (page or self.open()).charges[charge]
        (form,) = [form for form in forms if form.button == button]
        return form

    def send(self, form: Form, **headers: str) -> httpx.Response:
        url = httpx.URL(self.client.base_url).join("/sandbox").join(form.action)
        return self.client.post(url, data=form.fields, headers=headers)

    def press(self, charge: str, button: str, **fields: str) -> Page:
        """Press a button of a charge (or a switch, ""), and see the page that comes then."""
        form = self.find(charge, button)
        form.fields |= fields
        answer = self.send(form)
        assert answer.status_code == 303, answer.text
        assert answer.next_request is not None
        page = self.client.get(answer.next_request.url)
        assert page.status_code == 200
        return Page(page.text)


@pytest.fixture
def browser(base_url: str) -> Iterator[Browser]:
    with httpx.Client(base_url=base_url, timeout=60) as client:
        yield Browser(client)


@dataclass
class Shopper:
    """Pays orders, and reads the sandbox's books."""

    client: httpx.Client
    manager: httpx.Client

    def pay(
        self, number: str = VISA, amount: int = 1099, currency: str = "USD", **body: Any
    ) -> dict[str, Any]:
        """What the books hold after an order was paid, or not."""
        method = self.client.post("/payment-methods", json=card(number)).json()
        order = place_order(self.client, total_amount=amount, currency=currency)
        body["payment_method_id"] = method.get("id") or method["payment_method_id"]
        self.client.post(f"/orders/{order['id']}/payments", json=body)
        return self.books(order["id"])

    def books(self, order_id: int) -> dict[str, Any]:
        answer = self.manager.get("/sandbox/charges", params={"order_id": order_id})
        (entry,) = answer.json()
        return dict(entry)


@pytest.fixture
def shopper(alice: httpx.Client, manager: httpx.Client) -> Shopper:
    return Shopper(alice, manager)


def buttons(page: Page, charge: str) -> list[str]:
    return [form.button for form in page.charges[charge]]


# The page ---------------------------------------------------------------------------------------


def test_the_page_loads_nothing_and_is_not_to_be_framed(browser: Browser, shopper: Shopper) -> None:
    shopper.pay()
    answer = browser.client.get("/sandbox")
    assert answer.headers["Content-Type"].startswith("text/html")
    assert answer.headers["Cache-Control"] == "no-store"
    policy = answer.headers["Content-Security-Policy"].split("; ")
    assert {"default-src 'none'", "form-action 'self'", "frame-ancestors 'none'"} <= set(policy)
    # With no-referrer browsers would send `Origin: null`.
    assert answer.headers["Referrer-Policy"] == "same-origin"
    page = Page(answer.text)
    assert not {"script", "img", "link", "iframe"} & page.tags
    assert {"html", "main", "h1", "h2", "label"} <= page.tags


def test_charges_are_listed_newest_first_in_pages(browser: Browser, shopper: Shopper) -> None:
    references = [shopper.pay()["reference"] for _ in range(45)][::-1]
    page = browser.open()
    assert list(page.charges)[1:] == references[:20]
    assert "Newest" not in page.links
    second = browser.open(f"/{page.links['Older']}")
    assert list(second.charges)[1:] == references[20:40]
    assert second.links["Newest"] == "sandbox"
    third = browser.open(f"/{second.links['Older']}")
    assert list(third.charges)[1:6] == references[40:]
    # Who acts on an older page stays there.
    form = browser.find(references[25], "Refund", second)
    answer = browser.send(form)
    assert answer.next_request is not None
    again = browser.client.get(answer.next_request.url)
    assert list(Page(again.text).charges) == list(second.charges)
    assert answer.next_request.url.fragment == references[25]


@pytest.mark.parametrize(
    ("number", "body", "shown", "offered"),
    [
        (VISA, {}, "captured", ["Refund", "Open a dispute"]),
        (VISA, {"capture_method": "manual"}, "authorized", ["Capture", "Cancel"]),
        (ACTION, {}, "requires action", ["Cancel"]),
        (DECLINED, {}, "declined: generic decline", []),
        (DISPUTED, {}, "dispute open", ["Refund", "Dispute won", "Dispute lost"]),
    ],
)
def test_a_charge_has_the_buttons_of_what_can_be_done_with_it(
    browser: Browser,
    shopper: Shopper,
    number: str,
    body: dict[str, Any],
    shown: str,
    offered: list[str],
) -> None:
    entry = shopper.pay(number, **body)
    page = browser.open()
    assert buttons(page, entry["reference"]) == offered
    for text in (shown, "10.99 USD", f"order {entry['order_id']}", entry["reference"]):
        assert text in page.text


def test_nothing_in_the_books_is_markup_on_the_page(browser: Browser, engine: sa.Engine) -> None:
    odd = "<b>&\"'"
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO sandbox.charges (reference, order_id, payment_id, idempotency_key,"
                " amount, amount_captured, currency, outcome, capture, status) VALUES"
                " (:odd, 1, 1, :odd, 9, 9, 'USD', :odd, true, 'captured')"
            ),
            {"odd": odd},
        )
        connection.execute(
            sa.text(
                "INSERT INTO sandbox.refunds (reference, charge, amount, status)"
                " VALUES (:odd, :odd, 1, :odd)"
            ),
            {"odd": odd},
        )
    page = browser.open()
    assert "b" not in page.tags
    assert page.text.count(odd) == 3
    browser.press(odd, "Refund")
    with engine.connect() as connection:
        query = sa.text("SELECT sum(amount) FROM sandbox.refunds WHERE charge = :odd")
        assert connection.execute(query, {"odd": odd}).scalar_one() == 9


# What its buttons do ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("currency", "paid", "written", "refunded"),
    [
        ("USD", 1099, None, 1099),  # the amount that stands there
        ("USD", 1099, "", 1099),
        ("USD", 1099, "4", 400),
        ("USD", 1099, " 4.5 ", 450),
        ("JPY", 5000, "1500", 1500),
        ("KWD", 1234, "0.234", 234),
    ],
)
def test_a_refund_is_of_what_is_written_or_of_all_that_is_left(
    browser: Browser,
    shopper: Shopper,
    currency: str,
    paid: int,
    written: str | None,
    refunded: int,
) -> None:
    entry = shopper.pay(amount=paid, currency=currency)
    fields = {} if written is None else {"amount": written}
    page = browser.press(entry["reference"], "Refund", **fields)
    after = shopper.books(entry["order_id"])
    assert [refund["amount"] for refund in after["refunds"]] == [refunded]
    assert "refunded here" in page.text
    assert ("Refund" in buttons(page, entry["reference"])) == (refunded < paid)
    if refunded < paid:
        browser.press(entry["reference"], "Refund")
        assert shopper.books(entry["order_id"])["amount_refunded"] == paid


@pytest.mark.parametrize(("fields", "captured"), [({}, 1099), ({"amount": "4.00"}, 400)])
def test_an_authorization_is_captured_whole_or_in_part(
    browser: Browser, shopper: Shopper, fields: dict[str, str], captured: int
) -> None:
    entry = shopper.pay(capture_method="manual")
    browser.press(entry["reference"], "Capture", **fields)
    after = shopper.books(entry["order_id"])
    assert (after["status"], after["amount_captured"]) == ("captured", captured)


@pytest.mark.parametrize("number", [VISA, ACTION])
def test_what_is_not_captured_is_canceled(browser: Browser, shopper: Shopper, number: str) -> None:
    entry = shopper.pay(number, capture_method="manual")
    page = browser.press(entry["reference"], "Cancel")
    assert shopper.books(entry["order_id"])["status"] == "voided"
    assert buttons(page, entry["reference"]) == []


@pytest.mark.parametrize("outcome", ["won", "lost"])
def test_a_dispute_is_opened_and_closed(browser: Browser, shopper: Shopper, outcome: str) -> None:
    entry = shopper.pay()
    page = browser.press(entry["reference"], "Open a dispute")
    assert buttons(page, entry["reference"]) == ["Refund", "Dispute won", "Dispute lost"]
    page = browser.press(entry["reference"], f"Dispute {outcome}")
    assert buttons(page, entry["reference"]) == ["Refund"]
    assert f"dispute {outcome}" in page.text


def test_the_next_charge_is_declined_when_somebody_asks_for_it(
    browser: Browser, shopper: Shopper
) -> None:
    page = browser.press("", "Decline the next")
    assert "The next charge is declined" in page.text
    browser.press("", "Do not decline it")
    assert shopper.pay()["status"] == "captured"
    browser.press("", "Decline the next")
    assert shopper.pay()["status"] == "declined"
    assert shopper.pay()["status"] == "captured"


def test_webhooks_wait_until_they_are_to_be_delivered(
    browser: Browser, shopper: Shopper, engine: sa.Engine
) -> None:
    browser.press("", "Hold them back")
    entry = shopper.pay()
    page = browser.press(entry["reference"], "Refund", amount="1")
    assert "Webhooks are held back: " in page.text
    query = sa.text(
        "SELECT payload ->> 'type', delivered_at IS NOT NULL FROM sandbox.webhooks"
        " WHERE payload ->> 'reference' = :reference ORDER BY id"
    )

    def webhooks() -> list[Any]:
        with engine.connect() as connection:
            rows = connection.execute(query, {"reference": entry["reference"]})
            return [tuple(row) for row in rows]

    types = ["charge.created", "charge.captured", "refund.succeeded"]
    assert webhooks() == [(name, False) for name in types]
    page = browser.press("", "Deliver them")
    assert "Webhooks are delivered" in page.text
    until(lambda: webhooks() == [(name, True) for name in types], "they are delivered")


# What it refuses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "amount",
    ["abc", "10,99", "1.999", "-1", "1e1", "0", "11", "٣", "1.", ".5", "NaN", "9" * 400, "\0"],
)
def test_an_amount_that_cannot_be_is_told_and_changes_nothing(
    browser: Browser, shopper: Shopper, amount: str
) -> None:
    entry = shopper.pay()
    page = browser.press(entry["reference"], "Refund", amount=amount)
    assert page.alert.startswith("Nothing was done")
    assert shopper.books(entry["order_id"]) == entry


def test_a_button_of_an_old_page_is_told_that_it_is_too_late(
    browser: Browser, shopper: Shopper
) -> None:
    entry = shopper.pay(capture_method="manual")
    form = browser.find(entry["reference"], "Capture")
    browser.press(entry["reference"], "Cancel")
    answer = browser.send(form)
    assert answer.status_code == 303
    assert "refused" in answer.headers["Location"]
    assert shopper.books(entry["order_id"])["status"] == "voided"
    assert not browser.open().alert


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://["},
    ],
)
def test_a_form_of_another_site_is_403_and_does_nothing(
    browser: Browser, shopper: Shopper, headers: dict[str, str]
) -> None:
    entry = shopper.pay()
    switch = browser.find("", "Hold them back")
    for form in (browser.find(entry["reference"], "Refund"), switch):
        answer = browser.send(form, **headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert shopper.books(entry["order_id"]) == entry
    assert browser.find("", "Hold them back") == switch


def test_a_form_of_the_page_itself_is_taken(browser: Browser, shopper: Shopper) -> None:
    own = str(browser.client.base_url).rstrip("/")
    given: list[dict[str, str]] = [{"Origin": own}, {"Sec-Fetch-Site": "same-origin"}, {}]
    for headers in given:
        entry = shopper.pay()
        answer = browser.send(browser.find(entry["reference"], "Refund"), **headers)
        assert answer.status_code == 303
        assert shopper.books(entry["order_id"])["amount_refunded"] == 1099


ODD_PATHS = [
    *("charges/ch_nobody/refund", "charges/%00/refund", "charges/%ED%A0%80/refund"),
    *("charges/{charge}/explode", "charges/{charge}/%00", "charges/" + "x" * 5000 + "/refund"),
    *("switches/webhooks/burn", "switches/%00/hold", "switches/next-charge/hold"),
]


@pytest.mark.parametrize("path", ODD_PATHS)
def test_an_act_that_there_is_not_is_404(browser: Browser, shopper: Shopper, path: str) -> None:
    charge = shopper.pay()["reference"]
    answer = browser.client.post(f"/sandbox/{path.format(charge=charge)}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("body", [b"", b"\xff\xfe\x00", b"amount", b"&&==&", b"amount=%FF%00"])
def test_a_form_that_is_none_is_no_server_error(
    browser: Browser, shopper: Shopper, body: bytes
) -> None:
    charge = shopper.pay()["reference"]
    answer = browser.client.post(f"/sandbox/charges/{charge}/refund", content=body)
    assert answer.status_code == 303


def test_a_form_that_is_too_large_is_413(browser: Browser, shopper: Shopper) -> None:
    charge = shopper.pay()["reference"]
    answer = browser.client.post(f"/sandbox/charges/{charge}/refund", content=b"a=" + b"b" * 70_000)
    assert answer.status_code == 413


@pytest.mark.parametrize("cursor", ["", "ch_nobody", "%00", "%ED%A0%80", "x" * 5000])
def test_a_page_that_there_is_not_is_400(browser: Browser, cursor: str) -> None:
    answer = browser.client.get(f"/sandbox?cursor={cursor}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("path", ["/sandbox/charges/x/refund", "/sandbox/switches/webhooks/hold"])
def test_looking_does_nothing(browser: Browser, path: str) -> None:
    assert browser.client.get(path).status_code == 405


def test_there_is_no_dashboard_in_production(tmp_path: Path) -> None:
    """Not even where the sandbox is named."""
    settings = load_settings(
        _env_file=None,
        environment="production",
        secret_key=secrets.token_urlsafe(48),
        fingerprint_key=secrets.token_urlsafe(48),
        database_url="postgresql://nobody@127.0.0.1:9/none",
        gateways="sandbox",
        data_dir=tmp_path,
    )
    # It is not started, so it needs no database.
    transport = httpx.ASGITransport(main.create_app(settings))

    async def visit() -> None:
        async with httpx.AsyncClient(transport=transport, base_url="http://shop.example") as client:
            for method, path in (
                ("GET", "/sandbox"),
                ("POST", "/sandbox/charges/ch_1/refund"),
                ("POST", "/sandbox/switches/webhooks/hold"),
            ):
                answer = await client.request(method, path)
                assert (answer.status_code, answer.json()["code"]) == (404, "not_found")

    anyio.run(visit)


# The shopper's page -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reference", ["%00", "%00ch_1", "ch_%00", "%ED%A0%80", "%FF", "%0a", "x" * 5000, "%20", "..%00"]
)
def test_a_page_of_no_charge_is_404(browser: Browser, reference: str) -> None:
    for answer in (
        browser.client.get(f"/sandbox/actions/{reference}"),
        browser.client.post(f"/sandbox/actions/{reference}/approve"),
        browser.client.post(f"/sandbox/actions/{reference}/%00"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
