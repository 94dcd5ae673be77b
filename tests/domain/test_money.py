"""Amounts: minor units of each currency, as people write them, and as gateways count them."""

from __future__ import annotations

from itertools import product

import pytest

from domain.money import (
    EXPONENTS,
    MAX_AMOUNT,
    exponent,
    format_money,
    from_major,
    rescale,
    to_major,
    unscale,
)


@pytest.mark.parametrize(
    ("text", "currency", "amount"),
    [
        *[("10.99", "USD", 1099), ("10.9", "USD", 1090), ("10", "USD", 1000), (" 0.01 ", "USD", 1)],
        *[("0", "USD", 0), ("007", "JPY", 7), ("1.234", "KWD", 1234), ("1.2", "KWD", 1200)],
        ("999999999999", "JPY", 999_999_999_999),
    ],
)
def test_an_amount_in_the_major_unit_is_read(text: str, currency: str, amount: int) -> None:
    assert from_major(text, currency) == amount


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "10.999",
        "10.",
        ".5",
        "-1",
        "+1",
        "1e3",
        "1,5",
        "1 000",
        "٣",
        "NaN",
        "1\n2",
        "1" * 13,
    ],
)
def test_what_is_not_an_amount_is_none(text: str) -> None:
    assert from_major(text, "USD") is None


def test_a_currency_without_decimals_takes_none() -> None:
    assert from_major("1.0", "JPY") is None


@pytest.mark.parametrize(("amount", "currency"), [(1099, "USD"), (5000, "JPY"), (1, "KWD")])
def test_what_is_written_out_is_read_back(amount: int, currency: str) -> None:
    assert from_major(f"{to_major(amount, currency):f}", currency) == amount
    assert format_money(amount, currency).endswith(currency)


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        (1099, "USD", "10.99 USD"),
        (5, "EUR", "0.05 EUR"),
        (1099, "JPY", "1,099 JPY"),
        (1099, "KWD", "1.099 KWD"),
        (MAX_AMOUNT, "USD", "9,999,999,999.99 USD"),
    ],
)
def test_an_amount_is_shown_with_the_decimals_of_its_currency(
    amount: int, currency: str, text: str
) -> None:
    assert format_money(amount, currency) == text


@pytest.mark.parametrize(
    ("currency", "decimals"), [("USD", 2), ("JPY", 0), ("KWD", 3), ("CLF", 4), ("HUF", 2)]
)
def test_the_decimals_of_a_currency_are_those_of_iso_4217(currency: str, decimals: int) -> None:
    assert exponent(currency) == decimals


@pytest.mark.parametrize("code", ["XAU", "XTS", "XXX", "usd", "", "ZZZ"])
def test_what_nobody_can_be_charged_in_is_no_currency(code: str) -> None:
    with pytest.raises(KeyError):
        exponent(code)


@pytest.mark.parametrize(
    ("amount", "currency", "decimals", "counted"),
    [
        (1099, "USD", 2, 1099),
        (500, "ISK", 2, 50_000),  # Stripe counts it with two decimals that are always zero
        (1050, "HUF", 0, None),
        (1000, "HUF", 0, 10),
        (1230, "KWD", 2, 123),
        (1234, "KWD", 2, None),
    ],
)
def test_an_amount_is_counted_with_other_decimals_or_not_at_all(
    amount: int, currency: str, decimals: int, counted: int | None
) -> None:
    assert rescale(amount, currency, decimals) == counted
    if counted is not None:
        assert unscale(counted, currency, decimals) == amount


def test_an_amount_that_our_minor_units_cannot_hold_is_not_counted_back() -> None:
    assert unscale(50_050, "ISK", 2) is None


@pytest.mark.parametrize("decimals", range(5))
def test_what_is_counted_otherwise_is_counted_back(decimals: int) -> None:
    for currency, amount in product(EXPONENTS, (1, 10, 1099, 10_000, MAX_AMOUNT)):
        counted = rescale(amount, currency, decimals)
        assert counted is None or unscale(counted, currency, decimals) == amount
