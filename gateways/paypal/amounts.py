"""Amounts as PayPal writes them: decimal strings, in the currencies and decimals it supports."""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from domain.money import EXPONENTS, MAX_AMOUNT, rescale, to_major
from gateways.base import OutcomeUnknown, Refused

# https://developer.paypal.com/api/rest/reference/currency-codes/
CURRENCIES: Final = frozenset(
    {
        *("AUD", "BRL", "CAD", "CHF", "CNY", "CZK", "DKK", "EUR", "GBP", "HKD", "HUF", "ILS"),
        *("JPY", "MXN", "MYR", "NOK", "NZD", "PHP", "PLN", "SEK", "SGD", "THB", "TWD", "USD"),
    }
)
# ISO 4217 gives HUF and TWD two decimals; PayPal takes none.
WITHOUT_DECIMALS: Final = frozenset({"HUF", "JPY", "TWD"})

VALUE: Final = re.compile(r"[0-9]{1,15}(\.[0-9]{1,3})?", re.ASCII)


def unsupported_reason(amount: int, currency: str) -> str | None:
    """Why PayPal cannot move this amount of minor units, or None if it can."""
    if currency not in CURRENCIES:
        return f"PayPal does not take {currency}."
    if rescale(amount, currency, _decimals(currency)) is None:
        return f"PayPal takes whole amounts of {currency} only, without decimals."
    return None


def write(amount: int, currency: str) -> dict[str, str]:
    """1099 USD is {"currency_code": "USD", "value": "10.99"}. Raises Refused."""
    why_not = unsupported_reason(amount, currency)
    if why_not is not None:
        raise Refused(why_not)
    value = f"{to_major(amount, currency):.{_decimals(currency)}f}"
    return {"currency_code": currency, "value": value}


def read(money: Any) -> tuple[int, str]:
    """Minor units and the currency of an amount. Raises OutcomeUnknown for what is none."""
    value = money.get("value") if isinstance(money, Mapping) else None
    currency = money.get("currency_code") if isinstance(money, Mapping) else None
    if not (isinstance(value, str) and VALUE.fullmatch(value) and isinstance(currency, str)):
        raise OutcomeUnknown("an answer without an amount")
    if currency not in EXPONENTS:
        raise OutcomeUnknown("an answer in no currency")
    minor = Decimal(value).scaleb(EXPONENTS[currency])
    if minor != int(minor) or minor > MAX_AMOUNT:
        raise OutcomeUnknown("an amount that minor units cannot hold")
    return int(minor), currency


def _decimals(currency: str) -> int:
    return 0 if currency in WITHOUT_DECIMALS else 2
