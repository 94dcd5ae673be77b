"""What comes in and what goes out: the DTOs of the API, and their rules.

Input is strict: unknown fields, other types and characters that no database can hold are
refused, and no message repeats what was sent. Output has no defaults.
"""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta, timezone
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import email_validator
import stdnum.exceptions
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    StringConstraints,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_extra_types.payment import PaymentCardNumber
from stdnum import iban

from domain.money import EXPONENTS, MAX_AMOUNT, MIN_AMOUNT
from domain.states import CaptureMethod, OrderStatus, PaymentStatus, RefundStatus

MAX_ID = 2**63 - 1
MAX_QUANTITY = 2**53 - 1  # the largest integer that every JSON reader keeps exactly (RFC 8259 §6)

# Types ------------------------------------------------------------------------------------------


def wrong(code: str, message: str, field: str | None = None) -> PydanticCustomError:
    """A rule that was broken. The message never holds what was sent.

    `field` names the field of a rule that is about more than one.
    """
    return PydanticCustomError(code, message, {"field": field} if field else None)


def _text(value: str) -> str:
    """Text that PostgreSQL and UTF-8 can hold."""
    if "\0" in value:
        raise wrong("text_nul", "Text cannot hold the NUL character")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise wrong("text_surrogate", "Text cannot hold half of a surrogate pair")
    return value


Text = Annotated[str, AfterValidator(_text)]
Name = Annotated[Text, StringConstraints(min_length=1, max_length=255)]
MetadataKey = Annotated[Text, StringConstraints(min_length=1, max_length=40)]
MetadataValue = Annotated[Text, StringConstraints(max_length=500)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=20)]

MinorUnits = Annotated[
    int, Field(description="In the currency's minor unit: 1099 is 10.99 USD, or 1099 JPY.")
]
Amount = Annotated[MinorUnits, Field(ge=MIN_AMOUNT, le=MAX_AMOUNT)]


def _currency(value: str) -> str:
    if value not in EXPONENTS:
        raise wrong("currency_unknown", "Use an ISO 4217 code in upper case, such as USD")
    return value


Currency = Annotated[
    Text,
    AfterValidator(_currency),
    WithJsonSchema({"type": "string", "pattern": "^[A-Z]{3}$", "examples": ["USD"]}),
]

# RFC 3339 §5.6, with the offset that says which moment is meant.
_RFC_3339 = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)


def _rfc_3339(value: Any) -> Any:
    if isinstance(value, str) and _RFC_3339.fullmatch(value):
        return value
    raise wrong(
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
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,30}", value, re.ASCII):
        return int(value)
    raise wrong("integer", "Use an integer, such as 50")


QueryInteger = Annotated[int, BeforeValidator(_integer)]


def _flag(value: Any) -> Any:
    if value in (True, False):
        return value
    if value in ("true", "false"):
        return value == "true"
    raise wrong("boolean", "Use true or false")


QueryFlag = Annotated[bool, BeforeValidator(_flag)]


class In(BaseModel):
    """A request body or a query: strict, and silent about what was in it."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class Out(BaseModel):
    """A resource, read from a row's attributes."""

    model_config = ConfigDict(from_attributes=True)


# Payment methods --------------------------------------------------------------------------------

PaymentType = Literal["card", "paypal", "bank_account"]


def _card_number(value: str) -> str:
    digits = re.sub(r"[ -]", "", value)
    if not re.fullmatch(r"[0-9]{12,19}", digits, re.ASCII):
        raise wrong(
            "card_number_digits", "Send 12 to 19 digits; spaces and dashes between them are fine"
        )
    try:
        PaymentCardNumber.validate_luhn_check_digit(digits)
    except PydanticCustomError:
        raise wrong(
            "card_number_luhn",
            "The card number's check digit is wrong: there is a typing error in it",
        ) from None
    return digits


def card_brand(card_number: str) -> str:
    """The brand by the number's first digits, such as "visa"; "other" if no brand is like that."""
    try:
        return PaymentCardNumber.validate_brand(card_number).name
    except PydanticCustomError:  # the digits of a brand, in a length that it does not have
        return "other"


def _cvc(value: str) -> str:
    if not re.fullmatch(r"[0-9]{3,4}", value, re.ASCII):
        raise wrong("cvc_digits", "Send the 3 or 4 digits of the security code")
    return value


def _email(value: str) -> str:
    try:
        # Offline: whether the domain takes mail is the gateway's question, not ours.
        email_validator.validate_email(value, check_deliverability=False, test_environment=True)
    except email_validator.EmailNotValidError:
        raise wrong("email", "Send an email address, such as name@example.com") from None
    return value


def _iban(value: str) -> str:
    try:
        return str(iban.validate(value if value.isascii() else "", check_country=False))
    except stdnum.exceptions.ValidationError:
        raise wrong("iban", "Send a valid IBAN; its checksum or its format is wrong") from None


def check_expiry(month: int, year: int) -> None:
    """A card is good through the last day of its month, in the last time zone to reach it."""
    today = (datetime.now(timezone.utc) - timedelta(hours=12)).date()
    if date(year, month, 1) < today.replace(day=1):
        raise wrong("card_expired", "The card has expired; send an expiry that is not past")


def _country(value: str) -> str:
    if not re.fullmatch(r"[A-Z]{2}", value, re.ASCII):
        raise wrong("country", "Use two capital letters as in ISO 3166-1, such as DE")
    return value


Country = Annotated[
    Text,
    AfterValidator(_country),
    WithJsonSchema({"type": "string", "pattern": "^[A-Z]{2}$", "examples": ["DE"]}),
]
CardNumber = Annotated[Text, StringConstraints(max_length=60), AfterValidator(_card_number)]
Cvc = Annotated[Text, StringConstraints(max_length=8), AfterValidator(_cvc)]
Email = Annotated[Text, StringConstraints(max_length=254), AfterValidator(_email)]
Iban = Annotated[Text, StringConstraints(max_length=60), AfterValidator(_iban)]
ExpiryMonth = Annotated[int, Field(ge=1, le=12)]
ExpiryYear = Annotated[int, Field(ge=2000, le=9999)]


class CardByNumber(In):
    card_number: CardNumber = Field(
        description="12 to 19 digits; spaces and dashes are allowed. Never stored.",
        examples=["4242 4242 4242 4242"],
    )
    exp_month: ExpiryMonth = Field(examples=[12])
    exp_year: ExpiryYear = Field(description="Four digits.", examples=[2030])
    cvc: Cvc | None = Field(default=None, description="3 or 4 digits. Never stored.")
    cardholder_name: Name | None = None

    @field_validator("exp_year")
    @classmethod
    def _not_expired(cls, year: int, info: ValidationInfo) -> int:
        if "exp_month" in info.data:  # else it has an error of its own
            check_expiry(info.data["exp_month"], year)
        return year


class ByToken(In):
    token: Name = Field(description="The gateway's own token.", examples=["tok_success"])


class PaypalByEmail(In):
    email: Email


class BankAccountDetails(In):
    iban: Iban = Field(examples=["DE89 3704 0044 0532 0130 00"])
    account_holder: Name


def _by(details: Any) -> str:
    return "<token>" if isinstance(details, dict) and "token" in details else "<details>"


# The tags stand in the paths of validation errors; the brackets keep them apart from fields.
CardDetails = Annotated[
    Annotated[CardByNumber, Tag("<details>")] | Annotated[ByToken, Tag("<token>")],
    Discriminator(_by),
]
PaypalDetails = Annotated[
    Annotated[PaypalByEmail, Tag("<details>")] | Annotated[ByToken, Tag("<token>")],
    Discriminator(_by),
]


class _PaymentMethodCreate(In):
    gateway: Name | None = Field(
        default=None, description="By default the first gateway that takes this type."
    )
    currency: Currency | None = Field(
        default=None,
        description="What it will mostly pay in; helps to choose the gateway when none is named.",
    )
    country: Country | None = Field(
        default=None,
        description="The shopper's country, ISO 3166-1 alpha-2; helps to choose the gateway.",
    )
    is_default: bool | None = Field(
        default=None, description="The first method becomes the default anyway."
    )
    user_id: Name | None = Field(
        default=None, description="For whom; another user needs the scope `orders:manage`."
    )


class CardCreate(_PaymentMethodCreate):
    payment_type: Literal["card"]
    details: CardDetails

    @model_validator(mode="after")
    def _token_names_its_gateway(self) -> CardCreate:
        if isinstance(self.details, ByToken) and self.gateway is None:
            raise wrong(
                "gateway_missing", "A token belongs to a gateway; name it in `gateway`", "gateway"
            )
        return self


class PaypalCreate(_PaymentMethodCreate):
    payment_type: Literal["paypal"]
    details: PaypalDetails


class BankAccountCreate(_PaymentMethodCreate):
    payment_type: Literal["bank_account"]
    details: BankAccountDetails


def _payment_type(value: Any) -> str | None:
    given = value.get("payment_type") if isinstance(value, dict) else None
    return f"<{given}>" if given in get_args(PaymentType) else None


PaymentMethodCreate = Annotated[
    Annotated[CardCreate, Tag("<card>")]
    | Annotated[PaypalCreate, Tag("<paypal>")]
    | Annotated[BankAccountCreate, Tag("<bank_account>")],
    Discriminator(
        _payment_type,
        custom_error_type="payment_type",
        custom_error_message="`payment_type` is card, paypal or bank_account",
        custom_error_context={"field": "payment_type"},
    ),
]


class CardUpdate(In):
    exp_month: ExpiryMonth | None = None
    exp_year: ExpiryYear | None = None
    cardholder_name: Name | None = None


class PaymentMethodUpdate(In):
    details: CardUpdate | None = Field(default=None, description="Of a card only.")
    is_default: bool | None = None


class PaymentMethod(Out):
    id: int
    user_id: str
    payment_type: PaymentType
    gateway: str
    details: dict[str, Any]
    is_active: bool
    is_default: bool
    created_at: Timestamp
    updated_at: Timestamp


# Orders -----------------------------------------------------------------------------------------


class OrderCreate(In):
    product_id: Name
    quantity: Annotated[int, Field(ge=1, le=MAX_QUANTITY)]
    total_amount: Amount
    currency: Currency | None = Field(
        default=None, description="ISO 4217, upper case; DEFAULT_CURRENCY (USD) by default."
    )
    payment_method_id: int | None = None
    metadata: Metadata = Field(default_factory=dict)
    user_id: Name | None = Field(
        default=None, description="For whom; another user needs the scope `orders:manage`."
    )


class OrderStatusUpdate(In):
    status: OrderStatus


class Order(Out):
    id: int
    user_id: str
    product_id: str
    quantity: int
    total_amount: MinorUnits
    currency: str
    status: OrderStatus
    payment_method_id: int | None
    metadata: dict[str, str]
    created_at: Timestamp
    updated_at: Timestamp

    @model_validator(mode="before")
    @classmethod
    def _from_model(cls, value: Any) -> Any:
        # SQLAlchemy's declarative classes cannot have an attribute named `metadata`.
        if hasattr(value, "metadata_"):
            return {name: getattr(value, name, None) for name in cls.model_fields} | {
                "metadata": value.metadata_
            }
        return value


class Actor(Out):
    type: Literal["user", "service", "gateway"]
    id: str


class Event(Out):
    id: int
    type: str
    created_at: Timestamp
    user_id: str
    order_id: int | None
    actor: Actor
    request_id: str | None
    sequence: int | None = Field(description="Counts per order.")
    data: dict[str, Any] = Field(description="The resource as the API showed it then.")


# Payments ---------------------------------------------------------------------------------------


def _return_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or not value.isprintable():
        raise wrong("url", "Use an absolute http or https address")
    return value


# What gateways put into a return URL; Adyen's redirectResult is the longest of them.
ReturnedValue = Annotated[Text, StringConstraints(max_length=8192)]


class PaymentCreate(In):
    payment_method_id: int | None = Field(
        default=None, description="By default the order's, or else the user's default method."
    )
    capture_method: CaptureMethod = Field(
        default="automatic", description="`manual`: authorize now, capture later."
    )
    return_url: (
        Annotated[Text, StringConstraints(max_length=2048), AfterValidator(_return_url)] | None
    ) = Field(default=None, description="Where the shopper's browser goes after a redirect.")


class PaymentConfirm(In):
    returned: Annotated[dict[Name, ReturnedValue], Field(max_length=20)] = Field(
        default_factory=dict,
        description="The query parameters that the gateway added to the return URL.",
    )


class CaptureCreate(In):
    amount: Amount | None = Field(
        default=None, description="All of it by default; the rest is released."
    )


class VoidCreate(In):
    """Nothing to say."""


class RefundCreate(In):
    amount: Amount | None = Field(default=None, description="What is left, by default.")
    reason: Annotated[Text, StringConstraints(min_length=1, max_length=500)] | None = None


class NextAction(Out):
    type: Literal["redirect"]
    url: str


class Failure(Out):
    code: str
    decline_code: str | None
    message: str


class Payment(Out):
    id: int
    order_id: int
    user_id: str
    payment_method_id: int
    gateway: str
    gateway_reference: str | None
    status: PaymentStatus
    amount: MinorUnits
    amount_captured: MinorUnits
    amount_refunded: MinorUnits
    currency: str
    capture_method: CaptureMethod
    capture_before: Timestamp | None
    next_action: NextAction | None
    failure: Failure | None
    needs_review: bool
    created_at: Timestamp
    updated_at: Timestamp


class Refund(Out):
    id: int
    payment_id: int
    amount: MinorUnits
    currency: str
    status: RefundStatus
    reason: str | None
    gateway_reference: str | None
    created_at: Timestamp
    updated_at: Timestamp


class Dispute(Out):
    id: int
    payment_id: int
    amount: MinorUnits
    currency: str
    status: Literal["open", "won", "lost"]
    reason: str


class SandboxRefund(Out):
    reference: str
    amount: MinorUnits
    status: RefundStatus


class SandboxCharge(Out):
    reference: str
    order_id: int
    payment_id: int
    idempotency_key: str
    amount: MinorUnits
    currency: str
    status: Literal["requires_action", "authorized", "captured", "voided", "declined"]
    amount_captured: MinorUnits
    amount_refunded: MinorUnits
    refunds: list[SandboxRefund]
    created_at: Timestamp


# Lists ------------------------------------------------------------------------------------------


class Page(BaseModel):
    """The query of a list. Newest first; `cursor` comes from the `Link` header."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    limit: QueryInteger = Field(default=50, ge=1, le=200)
    cursor: Annotated[str, StringConstraints(max_length=40)] | None = None


class PaymentMethodQuery(Page):
    user_id: Name | None = None


class OrderQuery(Page):
    status: OrderStatus | None = None
    created_after: Moment | None = None
    created_before: Moment | None = None
    payment_method_id: QueryInteger | None = None
    user_id: Name | None = None


class SandboxQuery(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    order_id: QueryInteger | None = None


class PaymentQuery(Page):
    order_id: QueryInteger | None = None
    status: PaymentStatus | None = None
    needs_review: QueryFlag | None = None
    user_id: Name | None = None
