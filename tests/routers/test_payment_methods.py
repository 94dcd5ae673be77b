"""Saving, reading, changing and removing payment methods."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from config import Settings
from gateways.base import Capabilities, MethodDeclined, NotExecuted, OutcomeUnknown
from gateways.sandbox import SandboxGateway
from tests.support.clients import ABSENT, Api, but_request_id, code, fields, ids, watched
from tests.support.factories import VISA, card, check_digit, number, pay, place_order

SHAPE = {
    *("id", "user_id", "payment_type", "gateway", "details", "is_active", "is_default"),
    *("created_at", "updated_at"),
}
MASTERCARD = "5555555555554444"
AMEX = "378282246310005"
IBAN = "DE89370400440532013000"


@pytest.fixture
def api(base_url: str, settings: Settings) -> Iterator[Api]:
    yield from watched(base_url, settings)


@pytest.fixture
def bob(api: Api, user: str) -> httpx.Client:
    """Another shopper."""
    return api(f"{user}-bob")


def by(**changes: Any) -> dict[str, Any]:
    """A card's details with changes; None removes a field."""
    details = card()["details"] | changes
    return {name: value for name, value in details.items() if value is not None}


def paypal(email: str = "alice@example.com", **changes: Any) -> dict[str, Any]:
    return {"payment_type": "paypal", "details": {"email": email}} | changes


def bank(iban: str = IBAN, holder: str = "Alice Example", **changes: Any) -> dict[str, Any]:
    details = {"iban": iban, "account_holder": holder}
    return {"payment_type": "bank_account", "details": details} | changes


def token(value: str = "tok_success", **changes: Any) -> dict[str, Any]:
    return {"payment_type": "card", "gateway": "sandbox", "details": {"token": value}} | changes


def save(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    answer = client.post("/payment-methods", json=body)
    assert answer.status_code == 201, answer.text
    method: dict[str, Any] = answer.json()
    assert method.keys() == SHAPE
    return method


def refused(client: httpx.Client, body: dict[str, Any]) -> set[str]:
    """The fields for which a body is refused."""
    return fields(client.post("/payment-methods", json=body))


def default_of(client: httpx.Client) -> int:
    """The one default method."""
    methods = client.get("/payment-methods").json()
    [default] = [method["id"] for method in methods if method["is_default"]]
    return int(default)


# --- What is saved ----------------------------------------------------------------------------


def test_the_suites_own_check_digits_are_right() -> None:
    for known in (VISA, MASTERCARD, AMEX, "4000000000000002", "6200000000000005"):
        assert check_digit(known[:-1]) == known[-1]


def test_a_saved_card_shows_what_stays_and_nothing_else(alice: httpx.Client, user: str) -> None:
    body = card(details=by(cardholder_name="Alice Example"))
    method = save(alice, body)
    assert method == {
        "id": method["id"],
        "user_id": user,
        "payment_type": "card",
        "gateway": "sandbox",
        "details": {
            "brand": "visa",
            "last4": "4242",
            "exp_month": 12,
            "exp_year": 2040,
            "cardholder_name": "Alice Example",
        },
        "is_active": True,
        "is_default": True,
        "created_at": method["created_at"],
        "updated_at": method["created_at"],
    }


@pytest.mark.parametrize("make", [card, paypal, bank, token])
def test_a_saved_method_is_read_where_its_location_says(alice: httpx.Client, make: Any) -> None:
    answer = alice.post("/payment-methods", json=make())
    assert alice.get(answer.headers["location"]).json() == answer.json()
    assert alice.get("/payment-methods").json() == [answer.json()]


@pytest.mark.parametrize("make", [card, paypal, bank, token])
def test_what_was_refused_is_not_saved(alice: httpx.Client, make: Any) -> None:
    assert refused(alice, make() | {"surprise": 1}) == {"surprise"}
    assert refused(alice, make() | {"details": {}})
    assert alice.get("/payment-methods").json() == []


def test_a_card_without_a_name_shows_none(alice: httpx.Client) -> None:
    assert save(alice, card())["details"]["cardholder_name"] is None


def test_a_paypal_account_shows_its_email_masked(alice: httpx.Client) -> None:
    method = save(alice, paypal("alice.long-name@shop.example.com"))
    assert method["details"].keys() == {"email"}
    assert re.fullmatch(r"a[^a-z@]+@shop\.example\.com", method["details"]["email"])


@pytest.mark.parametrize("local", ["a", "ab", "a.b", "a+tag", "Ömer", "用户", "o'neil"])
def test_an_email_keeps_its_first_letter_and_its_domain(alice: httpx.Client, local: str) -> None:
    shown = save(alice, paypal(f"{local}@example.com"))["details"]["email"]
    assert shown.startswith(local[0])
    assert shown.endswith("@example.com")
    assert local[1:] not in shown or not local[1:]
    # The length of what is hidden is hidden as well.
    assert len(shown) == len(save(alice, paypal(f"{local}xyz@example.com"))["details"]["email"])


def test_a_bank_account_shows_country_and_last_four(alice: httpx.Client) -> None:
    assert save(alice, bank())["details"] == {
        "country": "DE",
        "last4": "3000",
        "account_holder": "Alice Example",
    }


def test_a_token_shows_the_card_as_the_gateway_reports_it(alice: httpx.Client) -> None:
    details = save(alice, token())["details"]
    assert details.keys() == {"brand", "last4", "exp_month", "exp_year", "cardholder_name"}
    assert (details["brand"], details["last4"]) == ("visa", "4242")


def test_a_vault_token_shows_a_masked_email(alice: httpx.Client) -> None:
    body = {"payment_type": "paypal", "gateway": "sandbox", "details": {"token": "tok_success"}}
    details = save(alice, body)["details"]
    assert details.keys() == {"email"}
    assert re.fullmatch(r".[^a-zA-Z@]+@.+", details["email"])


@pytest.mark.parametrize(
    ("digits", "brand"),
    [
        (VISA, "visa"),
        ("4000056655665556", "visa"),
        ("4222222222222", "visa"),
        (MASTERCARD, "mastercard"),
        ("2223003122003222", "mastercard"),
        ("5200828282828210", "mastercard"),
        ("5105105105105100", "mastercard"),
        (AMEX, "amex"),
        ("371449635398431", "amex"),
        ("6011111111111117", "discover"),
        ("6011000990139424", "discover"),
        ("3056930009020004", None),
        ("36227206271667", None),
        ("3566002020360505", "jcb"),
        ("6200000000000005", "unionpay"),
        ("6205500000000000004", "unionpay"),
        ("6759649826438453", "maestro"),
    ],
)
def test_every_brand_is_taken(alice: httpx.Client, digits: str, brand: str | None) -> None:
    details = save(alice, card(digits))["details"]
    assert details["last4"] == digits[-4:]
    assert isinstance(details["brand"], str)
    assert brand is None or details["brand"] == brand


@pytest.mark.parametrize("prefix", ["9", "6304"])
@pytest.mark.parametrize("length", range(12, 20))
def test_a_number_has_12_to_19_digits(alice: httpx.Client, prefix: str, length: int) -> None:
    digits = number(prefix, length)
    assert save(alice, card(digits))["details"]["last4"] == digits[-4:]


@pytest.mark.parametrize(
    ("prefix", "length"), [("4", 12), ("4", 14), ("4", 18), ("51", 13), ("34", 16), ("62", 12)]
)
def test_no_brand_is_held_to_a_length(alice: httpx.Client, prefix: str, length: int) -> None:
    # The contract asks for 12 to 19 digits and the check digit, and for no more.
    digits = number(prefix, length)
    assert save(alice, card(digits))["details"]["last4"] == digits[-4:]


@pytest.mark.parametrize("length", [2, 4, 10, 11, 20, 21, 30, 1000])
@pytest.mark.parametrize("prefix", ["4", "9"])
def test_a_number_of_another_length_is_refused(
    alice: httpx.Client, prefix: str, length: int
) -> None:
    digits = number(prefix, length)
    assert refused(alice, card(digits)) == {"details.card_number"}


@pytest.mark.parametrize("position", [0, 1, 7, 8, 14, 15])
def test_one_wrong_digit_is_found(alice: httpx.Client, position: int) -> None:
    wrong = str((int(VISA[position]) + 1) % 10)
    typed = VISA[:position] + wrong + VISA[position + 1 :]
    assert refused(alice, card(typed)) == {"details.card_number"}


@pytest.mark.parametrize(
    "typed",
    [
        *("", " ", "-", "    -    ", "abcd", "4242x4242x4242x4242", "4242_4242_4242_4242"),
        *("4242.4242.4242.4242", "4242/4242/4242/4242", "4242\t4242\t4242\t4242", VISA + "\n"),
        *("4242\u00a04242\u00a04242\u00a04242", "4242–4242–4242–4242", "4242\u20104242\u20104242"),
        *(
            "+4242424242424242",
            "４２４２４２４２４２４２４２４２",
            "٤٢٤٢٤٢٤٢٤٢٤٢٤٢٤٢",
            "४२४२४२४२४२४२४२४२",
        ),
        *("𝟒𝟐𝟒𝟐𝟒𝟐𝟒𝟐𝟒𝟐𝟒𝟐𝟒𝟐𝟒𝟐", "424242424242424²", "424242424242424２", "0x4242424242424242"),
        *("4242424242424242;", "4242 4242 4242 4242 cvc 123", "4242424242424242\u200b", "4.2e15"),
        *("'4242424242424242'", "\u200e4242424242424242", "1" * 5000, "-" * 60, " " * 60_000),
    ],
    ids=lambda typed: ascii(typed[:18]),
)
def test_only_ascii_digits_are_digits(alice: httpx.Client, typed: str) -> None:
    assert refused(alice, card(typed)) == {"details.card_number"}


@pytest.mark.parametrize("typed", [4242424242424242, 4242424242424242.0, True, None, [VISA], {}])
def test_a_number_is_a_string(alice: httpx.Client, typed: Any) -> None:
    body = card(details=card()["details"] | {"card_number": typed})
    assert refused(alice, body) == {"details.card_number"}


@pytest.mark.parametrize("missing", ["card_number", "exp_month", "exp_year"])
def test_a_card_needs_number_and_expiry(alice: httpx.Client, missing: str) -> None:
    assert refused(alice, card(details=by(**{missing: None}))) == {f"details.{missing}"}


def test_a_card_needs_neither_cvc_nor_name(alice: httpx.Client) -> None:
    save(alice, card(details=by(cvc=None)))


# --- Expiry and CVC ---------------------------------------------------------------------------


def month_from_now(months: int) -> dict[str, int]:
    today = datetime.now(timezone.utc)
    years, month = divmod(today.month - 1 + months, 12)
    return {"exp_month": month + 1, "exp_year": today.year + years}


@pytest.mark.parametrize("months", [0, 1, 12, 120, 600])
def test_a_card_is_good_through_its_month(alice: httpx.Client, months: int) -> None:
    expiry = month_from_now(months)
    assert save(alice, card(details=by(**expiry)))["details"].items() >= expiry.items()


# Last month ended somewhere on earth perhaps an hour ago.
@pytest.mark.parametrize("months", [-2, -3, -12, -120])
def test_an_expired_card_is_refused(alice: httpx.Client, months: int) -> None:
    [place] = refused(alice, card(details=by(**month_from_now(months))))
    assert place in ("details.exp_month", "details.exp_year")


@pytest.mark.parametrize("month", [0, -1, 13, 99, 12_000, 2**63, 10**30])
def test_a_month_is_1_to_12(alice: httpx.Client, month: int) -> None:
    assert refused(alice, card(details=by(exp_month=month))) == {"details.exp_month"}


@pytest.mark.parametrize("year", [-1, 0, 1, 30, 40, 99, 999, 1999, 10_000, 20_400, 2**63, 10**30])
def test_a_year_has_four_digits(alice: httpx.Client, year: int) -> None:
    [place] = refused(alice, card(details=by(exp_year=year)))
    assert place == "details.exp_year"


@pytest.mark.parametrize("cvc", ["123", "000", "1234", "9999"])
def test_a_cvc_of_3_or_4_digits_is_taken_and_never_seen_again(
    alice: httpx.Client, engine: sa.Engine, cvc: str
) -> None:
    method = save(alice, card(details=by(cvc=cvc)))
    assert "cvc" not in json.dumps(method)
    with engine.connect() as connection:
        row = connection.execute(
            sa.text("SELECT details FROM payment_methods WHERE id = :id"), {"id": method["id"]}
        ).scalar_one()
    assert row.keys() == {"brand", "last4", "exp_month", "exp_year", "cardholder_name"}


@pytest.mark.parametrize(
    "cvc",
    [
        *("", "1", "12", "12345", "12a", "abc", " 123", "123 ", "1 23", "1-23", "１２３", "١٢٣"),
        *("+12", "-12", "1.2", "123\n", "0x1", "𝟏𝟐𝟑", "12²", "1" * 5000, 123, 1.0, True, [], {}),
    ],
    ids=lambda cvc: ascii(cvc)[:12],
)
def test_another_cvc_is_refused(alice: httpx.Client, cvc: Any) -> None:
    body = card(details=card()["details"] | {"cvc": cvc})
    assert refused(alice, body) == {"details.cvc"}


@pytest.mark.parametrize("name", ["", "a" * 256, 1, True, [], {}])
def test_a_cardholder_has_a_name_of_1_to_255_characters(alice: httpx.Client, name: Any) -> None:
    assert refused(alice, card(details=by(cardholder_name=name))) == {"details.cardholder_name"}


# --- The number is forgotten ------------------------------------------------------------------


def stored(engine: sa.Engine) -> str:
    """Everything that the database holds, the sandbox's books included."""
    with engine.connect() as connection:
        names = connection.execute(
            sa.text(
                "SELECT schemaname || '.' || tablename FROM pg_tables "
                "WHERE schemaname IN ('public', 'sandbox')"
            )
        ).scalars()
        tables = [
            connection.execute(sa.text(f"SELECT string_agg(t::text, ' ') FROM {name} t"))
            for name in names.all()
        ]
        return " ".join(table.scalar_one() or "" for table in tables)


def test_no_table_holds_a_number_a_cvc_an_iban_or_an_email(
    alice: httpx.Client, engine: sa.Engine
) -> None:
    good, wrong = number("4", 16), number("51", 16)
    spaced = " ".join(good[start : start + 4] for start in range(0, 16, 4))
    email = f"{number('9', 14)}@example.com"
    method = save(alice, card(spaced, details=by(card_number=spaced, cvc="8361")))
    save(alice, paypal(email))
    save(alice, bank("GB29NWBK60161331926819", holder="Planted"))
    assert code(alice.post("/payment-methods", json=card(good)))[0] == 409
    assert refused_number(alice, wrong[:-1] + str((int(wrong[-1]) + 1) % 10))
    pay(alice, place_order(alice)["id"], payment_method_id=method["id"])
    everything = stored(engine)
    assert "Planted" in everything  # it does find what is there
    for secret in (good, spaced, wrong[:-1], email, "GB29NWBK60161331926819"):
        assert secret not in everything
    # The CVC, where it is no part of a fingerprint, a key or a moment.
    assert not re.search(r"(?<![0-9a-f.])8361(?![0-9a-f])", everything)
    assert '"cvc"' not in everything
    assert "card_number" not in everything


def refused_number(client: httpx.Client, digits: str) -> bool:
    return fields(client.post("/payment-methods", json=card(digits))) == {"details.card_number"}


def test_no_answer_shows_the_fingerprint_or_the_token(
    alice: httpx.Client, engine: sa.Engine
) -> None:
    method = save(alice, card(number("4", 16)))
    with engine.connect() as connection:
        row = connection.execute(
            sa.text("SELECT fingerprint, gateway_token FROM payment_methods WHERE id = :id"),
            {"id": method["id"]},
        ).one()
    assert re.fullmatch(r"[0-9a-f]{64}", row.fingerprint)
    for path in ("/payment-methods", f"/payment-methods/{method['id']}"):
        shown = alice.get(path).text
        assert row.fingerprint not in shown
        assert row.gateway_token not in shown


def test_two_users_fingerprints_of_one_card_are_no_key_to_it(
    alice: httpx.Client, engine: sa.Engine
) -> None:
    digits = number("4", 16)
    method = save(alice, card(digits))
    with engine.connect() as connection:
        fingerprint = connection.execute(
            sa.text("SELECT fingerprint FROM payment_methods WHERE id = :id"), {"id": method["id"]}
        ).scalar_one()
    for guess in (digits, f"card:{digits}"):  # a plain hash is reversed within a day
        assert hashlib.sha256(guess.encode()).hexdigest() != fingerprint


# --- Types, tokens and gateways ---------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        *(
            "Card",
            "CARD",
            "card ",
            "",
            "crypto",
            "bank",
            "bank-account",
            "<card>",
            "cash",
            "paypal ",
        ),
        *(None, 1, True, [], ["card"], {}, {"card": 1}),
    ],
    ids=ascii,
)
def test_there_are_three_types(alice: httpx.Client, kind: Any) -> None:
    assert refused(alice, card(payment_type=kind)) == {"payment_type"}


def test_a_method_needs_its_type_and_its_details(alice: httpx.Client) -> None:
    assert refused(alice, {"details": card()["details"]}) == {"payment_type"}
    assert refused(alice, {"payment_type": "card"}) == {"details"}
    for kind in ("card", "paypal", "bank_account"):
        assert refused(alice, {"payment_type": kind, "details": {}})


@pytest.mark.parametrize(
    "body",
    [
        card(payment_type="paypal"),
        card(payment_type="bank_account"),
        paypal(payment_type="card"),
        paypal(payment_type="bank_account"),
        bank(payment_type="card"),
        bank(payment_type="paypal"),
        card(details=by(token="tok_success"), gateway="sandbox"),
        card(details=by(email="a@example.com")),
        card(details=by(iban=IBAN)),
        paypal(details={"email": "a@example.com", "token": "tok_success"}),
        bank(details={"iban": IBAN, "account_holder": "A", "token": "tok_success"}),
        token(details={"token": "tok_success", "exp_month": 12, "exp_year": 2040}),
        token(details={"token": "tok_success", "cvc": "123"}),
        token(details={"token": "tok_success", "brand": "visa"}),
        card(details=by(brand="visa")),
        card(details=by(last4="4242")),
        card(details=by(fingerprint="x")),
        card(id=7),
        card(is_active=True),
        card(gateway_token="tok_success"),
        card(created_at="2026-01-01T00:00:00Z"),
    ],
)
def test_details_of_another_type_are_refused(alice: httpx.Client, body: dict[str, Any]) -> None:
    assert refused(alice, body)


@pytest.mark.parametrize(
    "outcome",
    [
        *("success", "generic_decline", "insufficient_funds", "expired_card", "incorrect_cvc"),
        *("processing_error", "fraudulent", "requires_action", "dispute", "refund_fails"),
    ],
)
def test_the_sandbox_knows_its_tokens(alice: httpx.Client, outcome: str) -> None:
    assert save(alice, token(f"tok_{outcome}"))["gateway"] == "sandbox"


@pytest.mark.parametrize(
    "value",
    [
        *("tok_", "tok", "success", "tok_Success", "TOK_SUCCESS", "tok_success ", " tok_success"),
        *("tok_success_", "tok_success_0123456789abcdef", "pm_card_visa", "tok_tok_success", "x"),
        *("a" * 256, "😀", "", VISA, 1, True, [], {}, None),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_another_token_is_refused(alice: httpx.Client, value: Any) -> None:
    assert refused(alice, token(value)) == {"details.token"}


def test_a_cards_token_names_its_gateway(alice: httpx.Client) -> None:
    body = {"payment_type": "card", "details": {"token": "tok_success"}}
    assert refused(alice, body) == {"gateway"}
    assert refused(alice, body | {"gateway": None}) == {"gateway"}


@pytest.mark.parametrize(
    "gateway", ["stripe", "paypal", "Sandbox", "sandbox ", "", "x" * 256, "😀", 1, True, [], {}]
)
def test_a_gateway_that_is_not_on_is_refused(alice: httpx.Client, gateway: Any) -> None:
    for body in (card(), paypal(), bank(), token()):
        assert refused(alice, body | {"gateway": gateway}) == {"gateway"}


@pytest.mark.parametrize("make", [card, paypal, bank])
def test_the_gateway_may_be_named_or_left_out(alice: httpx.Client, make: Any) -> None:
    assert save(alice, make() | {"gateway": "sandbox"})["gateway"] == "sandbox"


def test_a_card_number_goes_only_where_numbers_are_taken(
    alice: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    types = SandboxGateway.capabilities.payment_types
    monkeypatch.setattr(SandboxGateway, "capabilities", Capabilities(payment_types=types))
    answer = alice.post("/payment-methods", json=card())
    assert code(answer) == (400, "card_number_not_accepted")
    assert save(alice, token())["payment_type"] == "card"


def test_a_gateway_that_does_not_take_a_type_is_refused(
    alice: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_cards = Capabilities(payment_types=frozenset({"card"}), card_numbers=True)
    monkeypatch.setattr(SandboxGateway, "capabilities", only_cards)
    assert refused(alice, paypal(gateway="sandbox")) == {"gateway"}
    assert refused(alice, bank()) <= {"payment_type", "gateway"}


def test_a_method_that_the_gateway_refuses_is_402_and_not_saved(
    alice: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decline(*_: Any) -> None:
        raise MethodDeclined("expired_card")

    with monkeypatch.context() as patch:
        patch.setattr(SandboxGateway, "save_method", decline)
        answer = alice.post("/payment-methods", json=card())
    assert code(answer) == (402, "payment_method_declined")
    assert answer.json()["decline_code"] == "expired_card"
    assert alice.get("/payment-methods").json() == []
    save(alice, card())


@pytest.mark.parametrize("error", [NotExecuted("canary-7261"), OutcomeUnknown("canary-7261")])
def test_a_gateway_that_does_not_answer_saves_nothing(
    base_url: str,
    alice: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(SandboxGateway, "save_method", fail)
        answer = httpx.post(
            f"{base_url}/payment-methods", json=card(), headers=alice.headers, verify=False
        )
    assert code(answer) == (502, "gateway_unavailable")
    assert "canary" not in answer.text
    save(alice, card())


# --- IBANs and emails -------------------------------------------------------------------------

# From the examples of SWIFT's IBAN registry.
IBANS = [
    *("AD1200012030200359100100", "AE070331234567890123456", "AL47212110090000000235698741"),
    *("AT611904300234573201", "BE68539007547034", "BG80BNBG96611020345678"),
    *("BR9700360305000010009795493P1", "CH9300762011623852957", "CY17002001280000001200527600"),
    *("CZ6508000000192000145399", "DE89370400440532013000", "DK5000400440116243"),
    *("EE382200221020145685", "ES9121000418450200051332", "FI2112345600000785"),
    *("FR1420041010050500013M02606", "GB29NWBK60161331926819", "GR1601101250000000012300695"),
    *("HR1210010051863000160", "HU42117730161111101800000000", "IE29AIBK93115212345678"),
    *("IL620108000000099999999", "IT60X0542811101000000123456", "LC55HEMM000100010012001200023015"),
    *("LT121000011101001000", "LU280019400644750000", "LV80BANK0000435195001"),
    *("MC5811222000010123456789030", "MT84MALT011000012345MTLCAST001S", "NL91ABNA0417164300"),
    *("NO9386011117947", "PL61109010140000071219812874", "PT50000201231234567890154"),
    *("QA58DOHB00001234567890ABCDEFG", "RO49AAAA1B31007593840000", "SA0380000000608010167519"),
    *("SC18SSCB11010000000000001497USD", "SE4550000000058398257466", "SI56263300012039086"),
    *("SK3112000000198742637541", "TR330006100519786457841326", "UA213223130000026007233566001"),
]


@pytest.mark.parametrize("iban", IBANS)
def test_the_ibans_of_all_countries_are_taken(alice: httpx.Client, iban: str) -> None:
    details = save(alice, bank(iban))["details"]
    assert (details["country"], details["last4"]) == (iban[:2], iban[-4:])


@pytest.mark.parametrize(
    "typed",
    [
        "DE89 3704 0044 0532 0130 00",
        "de89370400440532013000",
        "de89 3704 0044 0532 0130 00",
        " DE89370400440532013000 ",
        "dE8937 0400 44053 2013000",
    ],
)
def test_an_iban_is_the_same_however_it_is_written(alice: httpx.Client, typed: str) -> None:
    method = save(alice, bank(typed))
    assert (method["details"]["country"], method["details"]["last4"]) == ("DE", "3000")
    answer = alice.post("/payment-methods", json=bank(holder="Somebody Else"))
    assert code(answer) == (409, "duplicate_payment_method")
    assert answer.json()["payment_method_id"] == method["id"]


@pytest.mark.parametrize("iban", IBANS[::4])
def test_an_iban_with_a_wrong_digit_is_refused(alice: httpx.Client, iban: str) -> None:
    wrong = iban[:-1] + ("1" if iban[-1] != "1" else "2")
    assert refused(alice, bank(wrong)) == {"details.iban"}


@pytest.mark.parametrize(
    "iban",
    [
        *("", " ", "DE", "DE89", "89", "XX89370400440532013000", "ZZ00", "DE0037040044053201300"),
        *("DE8937040044053201300", "DE893704004405320130000", "ＤＥ89370400440532013000", VISA),
        *(
            "ΔΕ89370400440532013000",
            "DE８９370400440532013000",
            "DE89-\u20103704",
            "😀",
            "a" * 5000,
        ),
        *(1, True, None, [], {}, [IBAN], "DE89370400440532013000\0", "DE8937040044053201300O"),
    ],
    ids=lambda iban: ascii(iban)[:24],
)
def test_what_is_no_iban_is_refused(alice: httpx.Client, iban: Any) -> None:
    assert refused(alice, bank(iban)) == {"details.iban"}


@pytest.mark.parametrize("holder", ["", "a" * 256, 1, True, None, [], {}])
def test_an_account_has_a_holder(alice: httpx.Client, holder: Any) -> None:
    assert refused(alice, bank(holder=holder)) == {"details.account_holder"}
    assert refused(alice, bank(details={"iban": IBAN})) == {"details.account_holder"}


@pytest.mark.parametrize(
    "email",
    [
        *("alice@example.com", "a@b.co", "a.b+c@sub.domain.example.org", "A@EXAMPLE.COM"),
        *("jörg@example.com", "user@exämple.com", "用户@例子.公司", "o'neil@example.ie", "1@2.de"),
        *("a" * 64 + "@example.com", "_@example.com", "a-b_c@example-shop.com"),
    ],
    ids=lambda email: ascii(email[:24]),
)
def test_an_email_is_taken(alice: httpx.Client, email: str) -> None:
    shown = save(alice, paypal(email))["details"]["email"]
    assert shown[0] == email[0]
    assert shown.rpartition("@")[2].lower() == email.rpartition("@")[2].lower()


@pytest.mark.parametrize(
    "email",
    [
        *("", " ", "alice", "alice@", "@example.com", "a@b@c.de", "a b@example.com", "a@b..com"),
        *("a@.com", "a@com.", "a..b@example.com", ".a@example.com", "a@exa mple.com", "a@-b.com"),
        *("Alice <a@example.com>", "a@example.com, b@example.com", "a@example.com\n", "a@[::1]x"),
        *("a" * 255 + "@example.com", "a@" + "b" * 64 + ".com", "a@" + "b." * 200 + "com"),
        *("a@example.com\r\nBcc: b@example.com", "a" * 60_000, 1, True, None, [], {}, ["a@b.co"]),
    ],
    ids=lambda email: ascii(email)[:24],
)
def test_what_is_no_email_is_refused(alice: httpx.Client, email: Any) -> None:
    assert refused(alice, paypal(email)) == {"details.email"}


# --- No card twice ----------------------------------------------------------------------------


def duplicate_of(answer: httpx.Response) -> Any:
    assert code(answer) == (409, "duplicate_payment_method"), answer.text
    return answer.json()["payment_method_id"]


@pytest.mark.parametrize(
    "typed",
    [
        VISA,
        "4242 4242 4242 4242",
        "4242-4242-4242-4242",
        "4242 4242-4242 4242",
        "42 42 42 42 42 42 42 42",
        "4 2 4 2 4 2 4 2 4 2 4 2 4 2 4 2",
        "424242 4242424242",
        "4242  4242  4242  4242",
        " 4242424242424242",
        "4242424242424242 ",
    ],
)
def test_a_card_spaced_differently_is_the_same_card(alice: httpx.Client, typed: str) -> None:
    method = save(alice, card(typed))
    for again in (VISA, "4242-4242 4242 4242", typed):
        assert duplicate_of(alice.post("/payment-methods", json=card(again))) == method["id"]
    assert ids(alice.get("/payment-methods").json()) == [method["id"]]


@pytest.mark.parametrize(
    "changes",
    [
        {"exp_month": 1},
        {"exp_year": 2041},
        {"exp_month": 2, "exp_year": 2050},
        {"cvc": "999"},
        {"cvc": None},
        {"cardholder_name": "Somebody Else"},
    ],
)
def test_a_card_with_other_particulars_is_the_same_card(
    alice: httpx.Client, changes: dict[str, Any]
) -> None:
    method = save(alice, card())
    answer = alice.post("/payment-methods", json=card(details=by(**changes)))
    assert duplicate_of(answer) == method["id"]
    assert alice.get(f"/payment-methods/{method['id']}").json() == method


@pytest.mark.parametrize("make", [card, paypal, bank, token])
def test_a_duplicate_is_one_whatever_its_type(alice: httpx.Client, make: Any) -> None:
    method = save(alice, make())
    again = make() | {"is_default": True, "gateway": "sandbox"}
    assert duplicate_of(alice.post("/payment-methods", json=again)) == method["id"]


def test_a_duplicate_changes_no_default(alice: httpx.Client) -> None:
    first, second = save(alice, card()), save(alice, card(MASTERCARD))
    answer = alice.post("/payment-methods", json=card(MASTERCARD, is_default=True))
    assert duplicate_of(answer) == second["id"]
    assert default_of(alice) == first["id"]


@pytest.mark.parametrize("make", [card, paypal, bank, token])
def test_another_user_may_save_the_same(alice: httpx.Client, bob: httpx.Client, make: Any) -> None:
    assert save(alice, make())["id"] != save(bob, make())["id"]


@pytest.mark.parametrize("make", [card, paypal, bank, token])
def test_what_was_removed_may_be_saved_again(alice: httpx.Client, make: Any) -> None:
    known = set()
    for _ in range(3):
        method = save(alice, make())
        assert duplicate_of(alice.post("/payment-methods", json=make())) == method["id"]
        assert alice.delete(f"/payment-methods/{method['id']}").status_code == 204
        known.add(method["id"])
    assert len(known) == 3


def test_cards_with_the_same_last_four_are_different(alice: httpx.Client) -> None:
    ends = {save(alice, card(digits))["details"]["last4"] for digits in (VISA, "4000000000024242")}
    assert ends == {"4242"}


def test_a_manager_learns_which_method_a_user_has(manager: httpx.Client, user: str) -> None:
    method = save(manager, card(user_id=user))
    assert duplicate_of(manager.post("/payment-methods", json=card(user_id=user))) == method["id"]


# --- The default ------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [None, True, False])
def test_the_first_method_is_the_default(alice: httpx.Client, asked: bool | None) -> None:
    assert save(alice, card(is_default=asked))["is_default"] is True


@pytest.mark.parametrize("changes", [{}, {"is_default": False}, {"is_default": None}])
def test_a_second_method_is_not_the_default(alice: httpx.Client, changes: dict[str, Any]) -> None:
    first = save(alice, card())
    assert save(alice, card(MASTERCARD, **changes))["is_default"] is False
    assert default_of(alice) == first["id"]


def test_a_method_may_be_saved_as_the_default(alice: httpx.Client) -> None:
    first = save(alice, card())
    second = save(alice, card(MASTERCARD, is_default=True))
    assert second["is_default"] is True
    assert default_of(alice) == second["id"]
    assert alice.get(f"/payment-methods/{first['id']}").json()["is_default"] is False


def test_patch_moves_the_default(alice: httpx.Client) -> None:
    methods = [save(alice, card(digits))["id"] for digits in (VISA, MASTERCARD, AMEX)]
    for method in (*methods, *reversed(methods)):
        answer = alice.patch(f"/payment-methods/{method}", json={"is_default": True})
        assert answer.status_code == 200
        assert answer.json()["is_default"] is True
        assert default_of(alice) == method


def test_making_the_default_the_default_changes_nothing(alice: httpx.Client) -> None:
    method = save(alice, card())
    answer = alice.patch(f"/payment-methods/{method['id']}", json={"is_default": True})
    assert answer.json() == method


def test_the_default_cannot_be_given_up_but_only_passed_on(alice: httpx.Client) -> None:
    first, second = save(alice, card()), save(alice, card(MASTERCARD))
    answer = alice.patch(f"/payment-methods/{first['id']}", json={"is_default": False})
    assert answer.status_code in (200, 400)
    assert default_of(alice) in (first["id"], second["id"])
    answer = alice.patch(f"/payment-methods/{second['id']}", json={"is_default": False})
    assert answer.status_code in (200, 400)
    assert default_of(alice) in (first["id"], second["id"])


def test_removing_the_default_makes_another_one_the_default(alice: httpx.Client) -> None:
    methods = [save(alice, card(digits))["id"] for digits in (VISA, MASTERCARD, AMEX)]
    while methods:
        default = default_of(alice)
        assert default in methods
        assert alice.delete(f"/payment-methods/{default}").status_code == 204
        methods.remove(default)
    assert alice.get("/payment-methods").json() == []
    assert save(alice, card())["is_default"] is True


def test_removing_another_method_leaves_the_default(alice: httpx.Client) -> None:
    first, second = save(alice, card()), save(alice, card(MASTERCARD))
    alice.delete(f"/payment-methods/{second['id']}")
    assert default_of(alice) == first["id"]


def test_the_users_defaults_are_their_own(alice: httpx.Client, bob: httpx.Client) -> None:
    mine, theirs = save(alice, card()), save(bob, card())
    save(bob, card(MASTERCARD, is_default=True))
    alice.delete(f"/payment-methods/{mine['id']}")
    assert default_of(bob) != theirs["id"]


# --- Changing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"exp_month": 3},
        {"exp_year": 2050},
        {"exp_month": 1, "exp_year": 2099},
        {"cardholder_name": "Alice Married"},
        {"cardholder_name": None},
        {"exp_month": 2, "exp_year": 2035, "cardholder_name": "名前"},
    ],
)
@pytest.mark.parametrize("make", [card, token])
def test_patch_changes_what_it_names_and_nothing_else(
    alice: httpx.Client, make: Any, changes: dict[str, Any]
) -> None:
    method = save(alice, make())
    path = f"/payment-methods/{method['id']}"
    answer = alice.patch(path, json={"details": changes})
    assert answer.status_code == 200, answer.text
    changed = answer.json()
    assert changed.keys() == SHAPE
    assert changed["details"] == method["details"] | changes
    assert changed == method | {
        "details": changed["details"],
        "updated_at": changed["updated_at"],
    }
    assert alice.get(path).json() == changed


@pytest.mark.parametrize("body", [{}, {"details": {}}, {"details": {"exp_month": 12}}])
def test_a_patch_without_a_change_changes_nothing(
    alice: httpx.Client, body: dict[str, Any]
) -> None:
    method = save(alice, card())
    answer = alice.patch(f"/payment-methods/{method['id']}", json=body)
    assert answer.status_code == 200
    assert answer.json() == method


def test_patch_does_both_at_once(alice: httpx.Client) -> None:
    save(alice, card())
    method = save(alice, card(MASTERCARD))
    body = {"details": {"exp_year": 2045}, "is_default": True}
    changed = alice.patch(f"/payment-methods/{method['id']}", json=body).json()
    assert (changed["details"]["exp_year"], changed["is_default"]) == (2045, True)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"details": {"card_number": MASTERCARD}}, "details.card_number"),
        ({"details": {"cvc": "123"}}, "details.cvc"),
        ({"details": {"token": "tok_success"}}, "details.token"),
        ({"details": {"brand": "visa"}}, "details.brand"),
        ({"details": {"fingerprint": "1111"}}, "details.fingerprint"),
        ({"details": {"exp_month": 0}}, "details.exp_month"),
        ({"details": {"exp_month": 13}}, "details.exp_month"),
        ({"details": {"exp_month": None}}, "details.exp_month"),
        ({"details": {"exp_year": None}}, "details.exp_year"),
        ({"details": {"exp_year": 35}}, "details.exp_year"),
        ({"details": {"exp_year": 10_000}}, "details.exp_year"),
        ({"details": {"cardholder_name": ""}}, "details.cardholder_name"),
        ({"details": {"cardholder_name": 1}}, "details.cardholder_name"),
        ({"details": []}, "details"),
        ({"details": "text"}, "details"),
        ({"payment_type": "card"}, "payment_type"),
        ({"gateway": "sandbox"}, "gateway"),
        ({"user_id": "somebody"}, "user_id"),
        ({"is_active": False}, "is_active"),
        ({"id": 1}, "id"),
    ],
)
def test_patch_refuses_what_cannot_be_changed(
    alice: httpx.Client, body: dict[str, Any], place: str
) -> None:
    method = save(alice, card())
    path = f"/payment-methods/{method['id']}"
    assert fields(alice.patch(path, json=body)) == {place}
    both = {"is_default": True, "details": {"exp_year": 2050}} | body
    assert place in fields(alice.patch(path, json=both))
    assert alice.get(path).json() == method


def test_patch_does_not_let_a_card_expire(alice: httpx.Client) -> None:
    method = save(alice, card(details=by(**month_from_now(1))))
    path = f"/payment-methods/{method['id']}"
    for changes in (month_from_now(-2), {"exp_year": month_from_now(-24)["exp_year"]}):
        [place] = fields(alice.patch(path, json={"details": changes}))
        assert place in ("details.exp_month", "details.exp_year")
    assert alice.get(path).json() == method


def test_the_name_on_an_expired_card_may_be_changed(alice: httpx.Client, engine: sa.Engine) -> None:
    method = save(alice, card())
    with engine.begin() as connection:  # time has passed
        connection.execute(
            sa.text(
                "UPDATE payment_methods SET details = details || '{\"exp_year\": 2020}' "
                "WHERE id = :id"
            ),
            {"id": method["id"]},
        )
    path = f"/payment-methods/{method['id']}"
    answer = alice.patch(path, json={"details": {"cardholder_name": "Alice"}})
    assert answer.status_code == 200
    assert alice.patch(path, json={"details": {"exp_year": 2044}}).status_code == 200


@pytest.mark.parametrize("make", [paypal, bank])
@pytest.mark.parametrize(
    "details", [{"exp_month": 1}, {"cardholder_name": "A"}, {"email": "b@example.com"}]
)
def test_only_a_cards_details_can_be_changed(
    alice: httpx.Client, make: Any, details: dict[str, Any]
) -> None:
    method = save(alice, make())
    path = f"/payment-methods/{method['id']}"
    assert fields(alice.patch(path, json={"details": details}))
    assert alice.get(path).json() == method
    assert alice.patch(path, json={"is_default": True}).status_code == 200


# --- Removing ---------------------------------------------------------------------------------


def test_a_removed_method_leaves_every_list_and_read(
    alice: httpx.Client, manager: httpx.Client, user: str
) -> None:
    method = save(alice, card())
    path = f"/payment-methods/{method['id']}"
    answer = alice.delete(path)
    assert (answer.status_code, answer.content) == (204, b"")
    absent = but_request_id(alice.get(f"/payment-methods/{ABSENT}"))
    for client in (alice, manager):
        assert but_request_id(client.get(path)) == absent
        assert but_request_id(client.delete(path)) == absent
        assert but_request_id(client.patch(path, json={"is_default": True})) == absent
    assert alice.get("/payment-methods").json() == []
    assert manager.get("/payment-methods", params={"user_id": user}).json() == []


def test_the_orders_and_payments_of_a_removed_method_stay(alice: httpx.Client) -> None:
    method = save(alice, card())
    placed = place_order(alice, payment_method_id=method["id"])
    payment = pay(alice, placed["id"])
    unpaid = place_order(alice, payment_method_id=method["id"])
    before = alice.get(f"/orders/{placed['id']}").json()
    alice.delete(f"/payment-methods/{method['id']}")
    assert alice.get(f"/orders/{placed['id']}").json() == before
    assert alice.get(f"/payments/{payment['id']}").json() == payment
    assert alice.get(f"/orders/{unpaid['id']}").json() == unpaid
    found = alice.get("/orders", params={"payment_method_id": method["id"]}).json()
    assert ids(found) == [unpaid["id"], placed["id"]]


# --- Whose ------------------------------------------------------------------------------------


def test_lists_show_the_newest_first_and_ones_own_only(
    alice: httpx.Client, bob: httpx.Client
) -> None:
    mine = [save(alice, card(digits))["id"] for digits in (VISA, MASTERCARD, AMEX)]
    save(bob, card())
    listed = alice.get("/payment-methods").json()
    assert ids(listed) == mine[::-1]
    assert all(method.keys() == SHAPE and method["is_active"] for method in listed)


@pytest.mark.parametrize("scope", ["", "payments:manage", "webhooks:manage", "orders:read"])
def test_a_foreign_method_is_as_absent_as_one_that_never_was(
    api: Api, alice: httpx.Client, user: str, scope: str
) -> None:
    foreign, stranger = save(alice, card())["id"], api(f"{user}-eve", scope)
    for method, body in (("GET", None), ("PATCH", {"is_default": True}), ("DELETE", None)):
        there = stranger.request(method, f"/payment-methods/{foreign}", json=body)
        nowhere = stranger.request(method, f"/payment-methods/{ABSENT}", json=body)
        assert code(there) == (404, "not_found")
        assert but_request_id(there) == but_request_id(nowhere)
    assert ids(alice.get("/payment-methods").json()) == [foreign]


def test_a_manager_reads_every_users_methods(
    alice: httpx.Client, manager: httpx.Client, user: str
) -> None:
    method = save(alice, card())
    assert manager.get(f"/payment-methods/{method['id']}").json() == method
    assert manager.get("/payment-methods", params={"user_id": user}).json() == [method]


def test_a_manager_names_the_user_whose_methods_to_list(manager: httpx.Client) -> None:
    assert fields(manager.get("/payment-methods")) == {"user_id"}
    assert manager.get("/payment-methods", params={"user_id": "nobody"}).json() == []


def test_a_shopper_may_name_only_themselves(alice: httpx.Client, user: str) -> None:
    method = save(alice, card())
    assert alice.get("/payment-methods", params={"user_id": user}).json() == [method]
    answer = alice.get("/payment-methods", params={"user_id": f"{user}-bob"})
    assert code(answer) == (403, "forbidden")


def test_a_manager_may_not_change_what_is_a_users(
    alice: httpx.Client, manager: httpx.Client
) -> None:
    method = save(alice, card())
    path = f"/payment-methods/{method['id']}"
    assert code(manager.patch(path, json={"is_default": True})) == (403, "forbidden")
    assert code(manager.delete(path)) == (403, "forbidden")
    assert alice.get(path).json() == method


@pytest.mark.parametrize("make", [card, paypal, bank, token])
def test_a_manager_saves_for_a_user(api: Api, manager: httpx.Client, user: str, make: Any) -> None:
    method = save(manager, make() | {"user_id": user})
    assert (method["user_id"], method["is_default"]) == (user, True)
    assert api(user).get("/payment-methods").json() == [method]


def test_ones_own_user_id_is_accepted_and_anothers_is_not(alice: httpx.Client, user: str) -> None:
    assert save(alice, card(user_id=user))["user_id"] == user
    for name in (f"{user}-bob", user.upper(), f"{user} ", "manager"):
        answer = alice.post("/payment-methods", json=card(MASTERCARD, user_id=name))
        assert code(answer) == (403, "forbidden")


@pytest.mark.parametrize("scope", ["payments:manage", "webhooks:manage", "ORDERS:MANAGE", "orders"])
def test_only_the_right_scope_saves_for_a_user(api: Api, user: str, scope: str) -> None:
    answer = api(f"{user}-eve", scope).post("/payment-methods", json=card(user_id=user))
    assert code(answer) == (403, "forbidden")


# --- Events -----------------------------------------------------------------------------------


def events_of(engine: sa.Engine, user: str) -> list[sa.Row[Any]]:
    with engine.connect() as connection:
        return list(
            connection.execute(
                sa.text("SELECT * FROM events WHERE user_id = :user ORDER BY id"), {"user": user}
            )
        )


def test_every_change_is_an_event(alice: httpx.Client, engine: sa.Engine, user: str) -> None:
    created = alice.post("/payment-methods", json=card())
    method = created.json()
    path = f"/payment-methods/{method['id']}"
    changed = alice.patch(path, json={"details": {"exp_year": 2050}})
    alice.patch(path, json={"is_default": True})  # no change, no event
    removed = alice.delete(path)
    events = events_of(engine, user)
    assert [event.type for event in events] == [
        "payment_method.created",
        "payment_method.updated",
        "payment_method.deleted",
    ]
    answers = (created, changed, removed)
    for event, answer in zip(events, answers, strict=True):
        assert event.actor == {"type": "user", "id": user}
        assert event.request_id == answer.headers["x-request-id"]
        assert (event.order_id, event.sequence) == (None, None)
    assert events[0].data == method
    assert events[1].data == changed.json()
    assert events[2].data["is_active"] is False
    assert events[2].data["id"] == method["id"]


def test_a_default_that_moves_is_an_event_of_both_methods(
    alice: httpx.Client, engine: sa.Engine, user: str
) -> None:
    first, second = save(alice, card()), save(alice, card(MASTERCARD))
    alice.patch(f"/payment-methods/{second['id']}", json={"is_default": True})
    told = {
        event.data["id"]: event.data["is_default"]
        for event in events_of(engine, user)
        if event.type == "payment_method.updated"
    }
    assert told == {first["id"]: False, second["id"]: True}


def test_what_was_refused_is_no_event(alice: httpx.Client, engine: sa.Engine, user: str) -> None:
    save(alice, card())
    alice.post("/payment-methods", json=card())
    alice.post("/payment-methods", json=card("4242424242424241"))
    alice.post("/payment-methods", json=card(MASTERCARD, user_id=f"{user}-bob"))
    assert [event.type for event in events_of(engine, user)] == ["payment_method.created"]


def test_a_manager_is_the_actor_of_what_a_manager_does(
    manager: httpx.Client, engine: sa.Engine, user: str
) -> None:
    save(manager, card(user_id=user))
    [event] = events_of(engine, user)
    assert event.actor == {"type": "user", "id": "manager"}
