"""Amounts are integers in minor units; only this module knows the currencies' exponents.

Currencies and their decimals come from the ISO 4217 table of the `iso4217` package. Nothing here
assumes two decimals.
"""

import re
from decimal import Decimal

from iso4217 import Currency

MIN_AMOUNT = 1
MAX_AMOUNT = 999_999_999_999  # twelve digits: what card schemes carry in ISO 8583 field 4

# Codes without a minor unit (gold, test and no-currency codes such as XAU, XTS, XXX) cannot be
# charged, so the service does not take them.
EXPONENTS: dict[str, int] = {
    currency.code: currency.exponent for currency in Currency if currency.exponent is not None
}


def exponent(currency: str) -> int:
    """Decimal places of a currency: 2 for USD, 0 for JPY, 3 for KWD. KeyError if it is none."""
    return EXPONENTS[currency]


def to_major(amount: int, currency: str) -> Decimal:
    """Minor units to the major unit: 1099, "USD" is 10.99."""
    return Decimal(amount).scaleb(-exponent(currency))


def from_major(text: str, currency: str) -> int | None:
    """Minor units of an amount that a person typed: "10.99" with USD is 1099.

    None for what is not an amount of this currency.
    """
    match = re.fullmatch(r"(\d{1,12})(?:\.(\d+))?", text.strip(), re.ASCII)
    if match is None or len(match[2] or "") > exponent(currency):
        return None
    return int(match[1] + (match[2] or "").ljust(exponent(currency), "0"))


def rescale(amount: int, currency: str, decimals: int) -> int | None:
    """Minor units for a gateway that counts the currency with so many decimals.

    None when that would lose something: 10.50 HUF without decimals. 1099 USD stays 1099 with two
    decimals; 500 ISK are 50000 with two.
    """
    return _shifted(amount, decimals - exponent(currency))


def unscale(amount: int, currency: str, decimals: int) -> int | None:
    """The inverse of `rescale`; None for an amount that our minor units cannot hold."""
    return _shifted(amount, exponent(currency) - decimals)


def _shifted(amount: int, places: int) -> int | None:
    if places >= 0:
        return amount * int(10**places)
    whole, lost = divmod(amount, int(10**-places))
    return None if lost else whole


def format_money(amount: int, currency: str) -> str:
    """An amount as people read it: "10.99 USD", "1099 JPY", "1.099 KWD"."""
    return f"{to_major(amount, currency):,.{exponent(currency)}f} {currency}"
