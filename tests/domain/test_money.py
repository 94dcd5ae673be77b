"""Amounts as people write them."""

from __future__ import annotations

import pytest

from domain.money import format_money, from_major, to_major


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
