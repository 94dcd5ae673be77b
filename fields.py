"""The types of the API's fields and the rules of their values; `schemas` says who has which.

No message repeats what was sent.
"""

import re
from datetime import date, datetime, timedelta, timezone
from ipaddress import IPv6Address
from typing import Annotated, Any
from urllib.parse import unquote_plus

import email_validator
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError
from pydantic_extra_types.payment import PaymentCardNumber

from domain.money import EXPONENTS, MAX_AMOUNT, MIN_AMOUNT
from observability.card_numbers import holds_card_number

MAX_ID = 2**63 - 1
MAX_QUANTITY = 2**53 - 1  # the largest integer that every JSON reader keeps exactly (RFC 8259 §6)


def invalid_value(code: str, message: str, field: str | None = None) -> PydanticCustomError:
    """A rule that was broken. The message never holds what was sent.

    `field` names the field of a rule that is about more than one.
    """
    return PydanticCustomError(code, message, {"field": field} if field else None)


def _matching(pattern: str, code: str, message: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value, re.ASCII):
            raise invalid_value(code, message)
        return value

    return AfterValidator(check)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _text(value: str) -> str:
    """Text that PostgreSQL and UTF-8 can hold."""
    if "\0" in value:
        raise invalid_value("text_nul", "Text cannot hold the NUL character")
    if not value.isascii() and _SURROGATE.search(value):
        raise invalid_value("text_surrogate", "Text cannot hold half of a surrogate pair")
    return value


# The pattern is for readers of the OpenAPI document; `_text` is what holds.
Text = Annotated[str, AfterValidator(_text), Field(json_schema_extra={"pattern": r"^[^\u0000]*$"})]
Name = Annotated[Text, StringConstraints(min_length=1, max_length=255)]


def _no_card_number(value: str) -> str:
    if holds_card_number(value):
        raise invalid_value("card_number_not_allowed", "This holds a card number; take it out")
    return value


# What people type. An identifier of the store's own, such as a product id, is left alone.
NoCardNumber = AfterValidator(_no_card_number)
TypedName = Annotated[Name, NoCardNumber]
Note = Annotated[Text, StringConstraints(min_length=1, max_length=500), NoCardNumber]
MetadataKey = Annotated[Text, StringConstraints(min_length=1, max_length=40), NoCardNumber]
MetadataValue = Annotated[Text, StringConstraints(max_length=500), NoCardNumber]


def _by_name(schema: dict[str, Any]) -> None:
    """Say of an object that all its names keep the pattern, not what those that do hold."""
    ((pattern, value),) = schema.pop("patternProperties").items()
    schema["propertyNames"]["pattern"] = pattern
    schema["additionalProperties"] = value


Metadata = Annotated[
    dict[MetadataKey, MetadataValue], Field(max_length=20, json_schema_extra=_by_name)
]

MinorUnits = Annotated[
    int, Field(description="In the currency's minor unit: 1099 is 10.99 USD, or 1099 JPY.")
]
Amount = Annotated[MinorUnits, Field(ge=MIN_AMOUNT, le=MAX_AMOUNT)]


def _currency(value: str) -> str:
    if value not in EXPONENTS:
        raise invalid_value("currency_unknown", "Use an ISO 4217 code in upper case, such as USD")
    return value


Currency = Annotated[
    Text,
    AfterValidator(_currency),
    WithJsonSchema({"type": "string", "enum": sorted(EXPONENTS), "examples": ["USD"]}),
]

# RFC 3339 §5.6, with the offset that says which moment is meant.
_RFC_3339 = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)


def _rfc_3339(value: Any) -> Any:
    if isinstance(value, str) and _RFC_3339.fullmatch(value):
        return value
    raise invalid_value(
        "timestamp",
        "Use RFC 3339 with an offset, such as 2026-01-31T12:00:00Z; in a URL write + as %2B",
    )


def _utc(value: datetime) -> datetime:
    """PostgreSQL takes offsets of less than 16 hours; RFC 3339 those of less than 24."""
    try:
        return value.astimezone(timezone.utc)
    except OverflowError:  # in the first or the last hours that there are
        return value.replace(tzinfo=timezone.utc)


Moment = Annotated[
    AwareDatetime,
    BeforeValidator(_rfc_3339),
    AfterValidator(_utc),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
Timestamp = Annotated[
    datetime,
    AfterValidator(lambda value: value.astimezone(timezone.utc)),
    PlainSerializer(lambda value: value.isoformat().replace("+00:00", "Z"), when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


def _integer(value: Any) -> Any:
    """A query parameter that is an integer written in plain ASCII digits."""
    if isinstance(value, int):
        return value
    # Python reads no more digits; an id that no row can have is none that is wrong.
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,4300}", value, re.ASCII):
        return int(value)
    raise invalid_value("integer", "Use an integer, such as 50")


QueryInteger = Annotated[int, BeforeValidator(_integer)]


_UNCHANGED = "Use the cursor of a `Link` header, unchanged"
_ID, _CHARGE = "[1-9][0-9]{0,18}", "ch_[0-9a-f]{1,37}"
Cursor = Annotated[
    str,
    _matching(_ID, "cursor", _UNCHANGED),
    WithJsonSchema({"type": "string", "pattern": f"^{_ID}$"}),
]
SandboxCursor = Annotated[
    str,
    _matching(_CHARGE, "cursor", _UNCHANGED),
    WithJsonSchema({"type": "string", "pattern": f"^{_CHARGE}$"}),
]


def _flag(value: Any) -> Any:
    if value in (True, False):
        return value
    if value in ("true", "false"):
        return value == "true"
    raise invalid_value("boolean", "Use true or false")


QueryFlag = Annotated[bool, BeforeValidator(_flag)]


# Payment methods --------------------------------------------------------------------------------


def _card_number(value: str) -> str:
    digits = re.sub(r"[ -]", "", value)
    if not re.fullmatch(r"[0-9]{12,19}", digits, re.ASCII):
        raise invalid_value(
            "card_number_digits", "Send 12 to 19 digits; spaces and dashes between them are fine"
        )
    try:
        PaymentCardNumber.validate_luhn_check_digit(digits)
    except PydanticCustomError:
        raise invalid_value(
            "card_number_luhn",
            "The card number's check digit is wrong: there is a typing error in it",
        ) from None
    return digits


def card_brand(card_number: str) -> str:
    """The brand by the number's first digits, such as "visa"; "other" if no brand is like that."""
    try:
        return PaymentCardNumber.validate_brand(card_number).name
    except PydanticCustomError:  # the brand has no numbers of this length
        return "other"


def _email(value: str) -> str:
    try:
        # Offline: the gateway finds out whether the domain takes mail.
        email_validator.validate_email(value, check_deliverability=False, test_environment=True)
    except email_validator.EmailNotValidError:
        raise invalid_value("email", "Send an email address, such as name@example.com") from None
    return value


def _iban(value: str) -> str:
    from stdnum import exceptions, iban  # with pydoc and all: 1.4 MiB that few services need

    try:
        return str(iban.validate(value if value.isascii() else "", check_country=False))
    except exceptions.ValidationError:
        raise invalid_value(
            "iban", "Send a valid IBAN; its checksum or its format is wrong"
        ) from None


def check_expiry(month: int, year: int) -> None:
    """A card is good through the last day of its month, in the last time zone to reach it."""
    today = (datetime.now(timezone.utc) - timedelta(hours=12)).date()
    if date(year, month, 1) < today.replace(day=1):
        raise invalid_value("card_expired", "The card has expired; send an expiry that is not past")


Country = Annotated[
    Text,
    _matching("[A-Z]{2}", "country", "Use two capital letters as in ISO 3166-1, such as DE"),
    WithJsonSchema({"type": "string", "pattern": "^[A-Z]{2}$", "examples": ["DE"]}),
]
CardNumber = Annotated[
    Text,
    StringConstraints(max_length=60),
    AfterValidator(_card_number),
    Field(json_schema_extra={"pattern": "^[0-9 -]{12,60}$"}),
]
Cvc = Annotated[
    Text,
    StringConstraints(max_length=8),
    _matching("[0-9]{3,4}", "cvc_digits", "Send the 3 or 4 digits of the security code"),
    Field(json_schema_extra={"pattern": "^[0-9]{3,4}$"}),
]
Email = Annotated[
    Text,
    StringConstraints(max_length=254),
    NoCardNumber,
    AfterValidator(_email),
    Field(json_schema_extra={"format": "email"}),
]
Iban = Annotated[Text, StringConstraints(max_length=60), AfterValidator(_iban)]
ExpiryMonth = Annotated[int, Field(ge=1, le=12)]
ExpiryYear = Annotated[int, Field(ge=2000, le=9999)]


# Payments ---------------------------------------------------------------------------------------


# Stricter than any reader of addresses, so that none finds another host in it than we do: no user
# or password, no backslash, a host of ASCII characters.
_WEB_ADDRESS = re.compile(
    r"(https?)://([a-z0-9_](?:[a-z0-9_-]|\.(?!\.))*|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?"
    r"(?![^/?#])[^\\ \"<>^`{|}]*",
    re.ASCII | re.IGNORECASE,
)
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def web_origin(address: str) -> str | None:
    """Where an absolute http or https address leads (RFC 6454); None when it is none."""
    match = _WEB_ADDRESS.fullmatch(address)
    if match is None or not address.isprintable():
        return None
    scheme, host, port = match[1].lower(), match[2].lower(), match[3]
    if host.startswith("["):
        try:
            IPv6Address(host[1:-1])
        except ValueError:
            return None
    if port is None or port == _DEFAULT_PORTS[scheme]:
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{port}" if int(port) <= 65_535 else None


def _return_url(value: str) -> str:
    _no_card_number(value)
    _no_card_number(unquote_plus(value))
    if web_origin(value) is None:
        raise invalid_value(
            "url", "Use an absolute http or https address, without user and password"
        )
    return value


# In the OpenAPI document numbers are floats, and the largest id would be one more than it is.
RefundId = Annotated[int, Field(ge=1, le=MAX_ID, json_schema_extra={"maximum": MAX_QUANTITY})]

# What gateways put into a return URL; Adyen's redirectResult is the longest of them.
ReturnedValues = Annotated[
    dict[Name, Annotated[Text, StringConstraints(max_length=8192)]],
    Field(max_length=20, json_schema_extra=_by_name),
]
ReturnUrl = Annotated[Text, StringConstraints(max_length=2048), AfterValidator(_return_url)]
