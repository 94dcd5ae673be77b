"""What comes in and what goes out: the DTOs of the API. The types of their fields: `fields`.

Input is strict: unknown fields, other types and characters that no database can hold are
refused, and no message repeats what was sent. Output has no defaults.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

import fields
from domain import states

MAX_ID = fields.MAX_ID


class In(BaseModel):
    """A request body or a query: strict, and silent about what was in it."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class Out(BaseModel):
    """A resource, read from a row's attributes."""

    model_config = ConfigDict(from_attributes=True)


# Payment methods --------------------------------------------------------------------------------

PaymentType = Literal["card", "paypal", "bank_account"]


class CardByNumber(In):
    card_number: fields.CardNumber = Field(
        repr=False,
        description="12 to 19 digits; spaces and dashes are allowed. Never stored.",
        examples=["4242 4242 4242 4242"],
    )
    exp_month: fields.ExpiryMonth = Field(examples=[12])
    exp_year: fields.ExpiryYear = Field(description="Four digits.", examples=[2030])
    cvc: fields.Cvc | None = Field(
        default=None, repr=False, description="3 or 4 digits. Never stored."
    )
    cardholder_name: fields.TypedName | None = None

    @field_validator("exp_year")
    @classmethod
    def _not_expired(cls, year: int, info: ValidationInfo) -> int:
        if "exp_month" in info.data:  # else it has an error of its own
            fields.check_expiry(info.data["exp_month"], year)
        return year


class ByToken(In):
    token: fields.Name = Field(
        repr=False, description="The gateway's own token.", examples=["tok_success"]
    )


class PaypalByEmail(In):
    email: fields.Email = Field(repr=False)


class BankAccountDetails(In):
    iban: fields.Iban = Field(repr=False, examples=["DE89 3704 0044 0532 0130 00"])
    account_holder: fields.TypedName


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
    gateway: fields.Name | None = Field(
        default=None, description="By default the first gateway that takes this type."
    )
    currency: fields.Currency | None = Field(
        default=None,
        description="What it will mostly pay in; helps to choose the gateway when none is named.",
    )
    country: fields.Country | None = Field(
        default=None,
        description="The shopper's country, ISO 3166-1 alpha-2; helps to choose the gateway.",
    )
    is_default: bool | None = Field(
        default=None, description="The first method becomes the default anyway."
    )
    user_id: fields.Name | None = Field(
        default=None, description="For whom; another user needs the scope `orders:manage`."
    )


class CardCreate(_PaymentMethodCreate):
    payment_type: Literal["card"]
    details: CardDetails

    @model_validator(mode="after")
    def _token_names_its_gateway(self) -> CardCreate:
        if isinstance(self.details, ByToken) and self.gateway is None:
            raise fields.invalid_value(
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
    exp_month: fields.ExpiryMonth | None = None
    exp_year: fields.ExpiryYear | None = None
    cardholder_name: fields.TypedName | None = None


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
    created_at: fields.Timestamp
    updated_at: fields.Timestamp


# Orders -----------------------------------------------------------------------------------------


class OrderCreate(In):
    product_id: fields.Name
    quantity: Annotated[int, Field(ge=1, le=fields.MAX_QUANTITY)]
    total_amount: fields.Amount
    currency: fields.Currency | None = Field(
        default=None, description="ISO 4217, upper case; DEFAULT_CURRENCY (USD) by default."
    )
    payment_method_id: int | None = None
    metadata: fields.Metadata = Field(default_factory=dict)
    user_id: fields.Name | None = Field(
        default=None, description="For whom; another user needs the scope `orders:manage`."
    )


class OrderStatusUpdate(In):
    status: states.OrderStatus


class Order(Out):
    id: int
    user_id: str
    product_id: str
    quantity: int
    total_amount: fields.MinorUnits
    currency: str
    status: states.OrderStatus
    payment_method_id: int | None
    # SQLAlchemy's declarative classes cannot have an attribute named `metadata`.
    metadata: dict[str, str] = Field(validation_alias="metadata_")
    created_at: fields.Timestamp
    updated_at: fields.Timestamp


class Actor(Out):
    type: Literal["user", "service", "gateway"]
    id: str


class Event(Out):
    id: int
    type: str
    created_at: fields.Timestamp
    user_id: str
    order_id: int | None
    actor: Actor
    request_id: str | None
    sequence: int | None = Field(description="Counts per order.")
    data: dict[str, Any] = Field(description="The resource as the API showed it then.")


# Payments ---------------------------------------------------------------------------------------


class PaymentCreate(In):
    payment_method_id: int | None = Field(
        default=None, description="By default the order's, or else the user's default method."
    )
    capture_method: states.CaptureMethod = Field(
        default="automatic", description="`manual`: authorize now, capture later."
    )
    return_url: fields.ReturnUrl | None = Field(
        default=None, description="Where the shopper's browser goes after a redirect."
    )


class PaymentConfirm(In):
    returned: fields.ReturnedValues = Field(
        default_factory=dict,
        description="The query parameters that the gateway added to the return URL.",
    )


class CaptureCreate(In):
    amount: fields.Amount | None = Field(
        default=None, description="All of it by default; the rest is released."
    )


class VoidCreate(In):
    """Nothing to say."""


class RefundCreate(In):
    amount: fields.Amount | None = Field(default=None, description="What is left, by default.")
    reason: fields.Note | None = None
    allow_disputed: bool = Field(
        default=False,
        description="Refund although a dispute is open or lost: the shopper may get it twice.",
    )


class ReviewCreate(In):
    """What a person found in the gateway's books."""

    resolution: states.ReviewResolution = Field(
        description="What the gateway's books show; `accepted` keeps the payment as it is."
    )
    amount: fields.Amount | None = Field(
        default=None, description="What was captured: all of it, by default."
    )
    gateway_reference: fields.TypedName | None = Field(
        default=None, description="The gateway's id of the charge, if we do not know it."
    )
    refund_id: fields.RefundId | None = Field(
        default=None, description="With `refunded` or `not_refunded`: which refund."
    )
    note: fields.Note = Field(
        description="Where you looked and what you saw; kept in the payment's history."
    )


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
    status: states.PaymentStatus
    amount: fields.MinorUnits
    amount_captured: fields.MinorUnits
    amount_refunded: fields.MinorUnits
    currency: str
    capture_method: states.CaptureMethod
    capture_before: fields.Timestamp | None
    next_action: NextAction | None
    failure: Failure | None
    needs_review: bool
    review_reason: states.ReviewReason | None = Field(description="Why a person must look at it.")
    created_at: fields.Timestamp
    updated_at: fields.Timestamp


class Refund(Out):
    id: int
    payment_id: int
    amount: fields.MinorUnits
    currency: str
    status: states.RefundStatus
    reason: str | None
    origin: states.RefundOrigin = Field(
        description="`gateway`: it was made outside, in the gateway's own dashboard."
    )
    gateway_reference: str | None
    created_at: fields.Timestamp
    updated_at: fields.Timestamp


class Dispute(Out):
    """A dispute in an event."""

    id: int
    payment_id: int
    amount: fields.MinorUnits
    currency: str
    status: states.DisputeStatus
    reason: str


class DisputeDetails(Dispute):
    order_id: int
    gateway: str
    gateway_reference: str
    evidence_due_at: fields.Timestamp | None = Field(
        description="Until when the gateway takes evidence against it; null: it did not say."
    )
    created_at: fields.Timestamp
    updated_at: fields.Timestamp


class SandboxRefund(Out):
    reference: str
    amount: fields.MinorUnits
    status: states.RefundStatus


class SandboxCharge(Out):
    reference: str
    order_id: int
    payment_id: int
    idempotency_key: str
    amount: fields.MinorUnits
    currency: str
    status: Literal["requires_action", "authorized", "captured", "voided", "declined"]
    amount_captured: fields.MinorUnits
    amount_refunded: fields.MinorUnits
    refunds: list[SandboxRefund]
    created_at: fields.Timestamp


# Lists ------------------------------------------------------------------------------------------


class Page(BaseModel):
    """The query of a list. Newest first; `cursor` comes from the `Link` header."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    limit: fields.QueryInteger = Field(default=50, ge=1, le=200)
    cursor: fields.Cursor | None = None


class PaymentMethodQuery(Page):
    user_id: fields.Name | None = None


class OrderQuery(Page):
    status: states.OrderStatus | None = None
    created_after: fields.Moment | None = None
    created_before: fields.Moment | None = None
    payment_method_id: fields.QueryInteger | None = None
    user_id: fields.Name | None = None


class SandboxQuery(Page):
    """Newest first; with `order_id` the charges of this order, oldest first and 200 at a time."""

    cursor: fields.SandboxCursor | None = None
    order_id: fields.QueryInteger | None = None

    @model_validator(mode="after")
    def _show_whole_orders(self) -> SandboxQuery:
        if self.order_id is not None and "limit" not in self.model_fields_set:
            self.limit = 200  # few orders have more, so one page is enough
        return self


class PaymentQuery(Page):
    order_id: fields.QueryInteger | None = None
    status: states.PaymentStatus | None = None
    needs_review: fields.QueryFlag | None = None
    user_id: fields.Name | None = None


class DisputeQuery(Page):
    payment_id: fields.QueryInteger | None = None
    status: states.DisputeStatus | None = None
