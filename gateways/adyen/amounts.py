"""Amounts as Adyen writes them: `{"value": 1099, "currency": "USD"}`, in decimals of its own."""

from collections.abc import Mapping
from typing import Any, Final

from domain.money import EXPONENTS, rescale, unscale

# Where Adyen counts otherwise than ISO 4217:
# https://docs.adyen.com/development-resources/currency-codes
DECIMALS: Final[Mapping[str, int]] = {"CLP": 2, "CVE": 0, "IDR": 0, "ISK": 2}


def read_amount(found: object) -> tuple[int, str] | None:
    """An amount of Adyen's as our minor units and currency; None for what is no such amount."""
    if not isinstance(found, Mapping):
        return None
    value, currency = found.get("value"), found.get("currency")
    if type(value) is not int or not isinstance(currency, str) or currency not in EXPONENTS:
        return None
    amount = unscale(value, currency, _decimals(currency))
    return None if amount is None else (amount, currency)


def amount_object(amount: int, currency: str) -> dict[str, Any] | None:
    """Our minor units as Adyen's object; None for a fraction that it cannot take."""
    value = rescale(amount, currency, _decimals(currency))
    return None if value is None else {"value": value, "currency": currency}


def _decimals(currency: str) -> int:
    return DECIMALS.get(currency, EXPONENTS[currency])
