"""Amounts, ids and times, as PayPal writes them."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from conformance.doubles.paypal import PaypalDouble
from gateways.base import (
    OutcomeUnknown,
    Refused,
)
from gateways.paypal import PayPalGateway, amounts
from gateways.paypal.states import moment, payment_id
from tests.support.paypal import a_charge, book, captured


@pytest.mark.parametrize(
    ("amount", "currency", "value"),
    [
        (1099, "USD", "10.99"),
        (1, "EUR", "0.01"),
        (500, "JPY", "500"),
        (50_000, "HUF", "500"),
        (12_300, "TWD", "123"),
        (999_999_999_999, "USD", "9999999999.99"),
    ],
)
def test_amounts_are_written_with_paypals_decimals(
    paypal: PayPalGateway, double: PaypalDouble, amount: int, currency: str, value: str
) -> None:
    assert paypal.unsupported_amount_reason(amount, currency) is None
    assert amounts.write(amount, currency) == {"currency_code": currency, "value": value}
    charge = captured(paypal, double, amount=amount, currency=currency)
    assert (charge.amount, charge.currency, charge.amount_captured) == (amount, currency, amount)
    assert book(double, charge.reference).amount == amount


@pytest.mark.parametrize(("amount", "currency"), [(1050, "HUF"), (1, "TWD"), (100, "KWD")])
def test_amounts_that_paypal_cannot_take_are_refused_before_they_are_sent(
    paypal: PayPalGateway, double: PaypalDouble, amount: int, currency: str
) -> None:
    assert str(paypal.unsupported_amount_reason(amount, currency)).endswith(".")
    count = len(double.requests)
    with pytest.raises(Refused):
        paypal.charge(a_charge(amount=amount, currency=currency))
    assert len(double.requests) == count


@pytest.mark.parametrize("value", ["", "-1.00", "1e3", "NaN", "1.005", "1" * 15, "١.00", None, 5])
def test_an_amount_that_is_none_is_unknown(value: Any) -> None:
    with pytest.raises(OutcomeUnknown):
        amounts.read({"currency_code": "USD", "value": value})


@pytest.mark.parametrize(
    "money", [None, [], {}, {"value": "1.00"}, {"value": "1", "currency_code": "XXX"}]
)
def test_money_without_its_parts_is_unknown(money: Any) -> None:
    with pytest.raises(OutcomeUnknown):
        amounts.read(money)


def test_our_payment_ids_are_plain_positive_integers() -> None:
    assert payment_id("7") == 7
    assert payment_id(str(2**63 - 1)) == 2**63 - 1
    for other in (
        str(2**63),
        "0",
        "07",
        "-7",
        "+7",
        " 7",
        "7\n",
        "٧",
        "7.0",
        "",
        7,
        None,
        "9" * 5000,
    ):
        assert payment_id(other) is None


def test_times_are_read_with_their_zone_or_not_at_all() -> None:
    assert moment("2026-01-02T03:04:05Z") == datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    assert moment("2022-10-21T06:42:32.606Z") is not None
    for other in ("2026-01-02T03:04:05", "yesterday", "", "2" * 100, None, 5):
        assert moment(other) is None
