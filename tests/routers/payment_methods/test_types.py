"""Types, tokens and gateways; IBANs and emails."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateways.base import Capabilities, MethodDeclined, NotExecuted, OutcomeUnknown
from gateways.sandbox import SandboxGateway
from tests.support.clients import code
from tests.support.factories import VISA, card
from tests.support.payment_methods import (
    IBAN,
    bank,
    by,
    paypal,
    refused,
    save,
    token,
)

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
