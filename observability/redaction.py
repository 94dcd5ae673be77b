"""Removes card numbers and secrets from text: a second defense, behind never logging them."""

import re
from collections.abc import Mapping
from typing import Any, Final

from observability.card_numbers import has_check_digit, hide_card_numbers

SECRET_NAMES: Final = frozenset(
    {
        "account_holder",
        "authorization",
        "access_token",
        "api_key",
        "card_number",
        "client_secret",
        "cvc",
        "details",
        "email",
        "fingerprint",
        "gateway_token",
        "iban",
        "password",
        "secret",
        "secret_key",
        "token",
    }
)
HIDDEN: Final = "[redacted]"

# Digits as people type card numbers, of whatever brand: 12 to 19 of them, single spaces or dashes
# between. Those of known brands are found anywhere (see card_numbers.py).
_FEWEST_DIGITS: Final = 12
_LEAST_CARD: Final = 10 ** (_FEWEST_DIGITS - 1)
_CARD = re.compile(r"(?<![0-9A-Za-z])(?:[0-9][ -]?){11,18}[0-9](?![0-9A-Za-z])")
_BEARER = re.compile(r"(?i)(bearer\s+)[A-Za-z0-9._~+/=-]+")
_JWT = re.compile(r"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
# Keys of gateways, secrets of webhooks, client secrets of payment intents, PayPal's access tokens.
_GATEWAY_SECRET = re.compile(
    r"\b(?:[sr]k_(?:test|live)_|whsec_|A21AA)[A-Za-z0-9_-]{6,}|\b(?:pi|seti)_\w+_secret_\w+"
)
_URL_PASSWORD = re.compile(r"(://[^/\s:@]+:)[^@\s/]+@")


def redact(text: str) -> str:
    """The text without card numbers, tokens, gateways' secrets, and passwords in URLs."""
    if len(text) >= _FEWEST_DIGITS:
        text = _CARD.sub(_hide_card, hide_card_numbers(text, HIDDEN))
    # Every log line passes here, and finding a word is faster than a pattern.
    if "bearer" in text.lower():
        text = _BEARER.sub(rf"\1{HIDDEN}", text)
    if "eyJ" in text:
        text = _JWT.sub(HIDDEN, text)
    if "_" in text or "A21AA" in text:
        text = _GATEWAY_SECRET.sub(HIDDEN, text)
    if "://" in text:
        text = _URL_PASSWORD.sub(rf"\1{HIDDEN}@", text)
    return text


def redact_value(name: str, value: Any) -> Any:
    """The value of a log field, by its name and its content."""
    if name.lower() in SECRET_NAMES:
        return HIDDEN
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(str(key)): redact_value(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact_value("", item) for item in value]
    if value is None or (isinstance(value, int | float) and abs(value) < _LEAST_CARD):
        return value
    text = repr(value)  # what the renderer would write out
    redacted = redact(text)
    return value if redacted == text else redacted


def _hide_card(match: re.Match[str]) -> str:
    digits = re.sub("[^0-9]", "", match.group())
    return HIDDEN if has_check_digit(digits) else match.group()
