"""What is saved of a payment method and shown of it, and what is forgotten."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from tests.support.clients import code, fields
from tests.support.factories import VISA, card, check_digit, number, pay, place_order
from tests.support.payment_methods import (
    AMEX,
    MASTERCARD,
    bank,
    by,
    month_from_now,
    paypal,
    refused,
    save,
    token,
)

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
