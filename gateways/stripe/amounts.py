"""How Stripe counts money: where its decimals differ from ISO 4217, and what it does not take.

Source: https://docs.stripe.com/currencies
"""

from typing import Final

from domain.money import EXPONENTS, format_money, rescale, unscale

ZERO_DECIMAL: Final = frozenset(
    {
        *("BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA"),
        *("PYG", "RWF", "VND", "VUV", "XAF", "XOF", "XPF"),
    }
)
# They have no decimals any more, but requests go on to carry two, always 00.
FORMER_TWO_DECIMAL: Final = frozenset({"ISK", "UGX"})
# Three decimals of which the last must be 0.
THREE_DECIMAL: Final = frozenset({"BHD", "JOD", "KWD", "OMR", "TND"})

MAX_DIGITS: Final = 8  # of `amount`, as the reference of PaymentIntents says
MORE_DIGITS: Final = {"COP": 10, "IDR": 12, "INR": 9}


def to_stripe(amount: int, currency: str) -> int | None:
    """Our minor units in Stripe's; None for what Stripe's cannot express."""
    return rescale(amount, currency, _decimals(currency))


def from_stripe(amount: int, currency: str) -> int | None:
    """Stripe's units in ours; None for a currency or an amount that ours cannot express."""
    return unscale(amount, currency, _decimals(currency)) if currency in EXPONENTS else None


def unsupported_reason(amount: int, currency: str) -> str | None:
    """Why Stripe takes no charge of this amount of our minor units; None if it may."""
    units = to_stripe(amount, currency)
    if units is None:
        return f"Stripe takes no decimals of {currency}, so not {format_money(amount, currency)}"
    if currency in THREE_DECIMAL and units % 10:
        return (
            f"The last of the three decimals of {currency} has to be 0 at Stripe,"
            f" so not {format_money(amount, currency)}"
        )
    digits = MORE_DIGITS.get(currency, MAX_DIGITS)
    if units >= 10**digits:
        return (
            f"Stripe takes amounts of up to {digits} digits in {currency},"
            f" so not {format_money(amount, currency)}"
        )
    return None


def _decimals(currency: str) -> int:
    if currency in ZERO_DECIMAL:
        return 0
    return 2 if currency in FORMER_TWO_DECIMAL else EXPONENTS[currency]
