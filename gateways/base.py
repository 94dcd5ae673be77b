"""The contract between the service and a payment gateway.

An adapter answers a request for money in one of three ways. Shoppers are charged only once because
it tells them apart:

* It returns a state, as the gateway shows it. A decline is such a state.
* It raises `NotExecuted`: the request had no effect, and never will have.
* It raises `OutcomeUnknown`: anything else after the first byte was sent. The service then calls
  `look_up`.

Every request carries an idempotency key. The service stores it before the call, and a repeat has
the same. Amounts are integers in minor units.

Adapters are synchronous. A guard around each limits time and concurrency, repeats what was not
executed, and opens the circuit breaker (see `gateways/guard.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from sqlalchemy import Engine
from typing_extensions import Self

from config import ConfigurationError, Settings
from domain.money import EXPONENTS, MAX_AMOUNT
from domain.states import ChargeStatus, DisputeStatus, RefundStatus

T = TypeVar("T")

ChargeOperation = Literal["capture", "void", "complete"]
PaymentType = Literal["card", "paypal", "bank_account"]


class GatewayError(Exception):
    """A gateway did not answer with a state."""


class NotExecuted(GatewayError):
    """The request had no effect: it was not sent, or the gateway refused it."""


class Refused(NotExecuted):
    """The gateway refuses the request by its own checks, now and later.

    A decline is a state instead. An API key that the gateway does not accept is NotExecuted.
    """


class RetryLater(NotExecuted):
    """The gateway was not reached or is busy (429). The same request may be sent again."""

    def __init__(self, why: str, retry_after: float | None = None) -> None:
        self.retry_after = retry_after  # seconds, where the gateway says
        super().__init__(why)


class OutcomeUnknown(GatewayError):
    """The request may have had its effect. Only a look-up can tell."""


class OutcomeNotShown(OutcomeUnknown):
    """The gateway works, but does not show the outcome of the request."""


class MethodDeclined(GatewayError):
    """The gateway refuses to keep this payment method."""

    def __init__(self, decline_code: str) -> None:
        self.decline_code = decline_code
        super().__init__(decline_code)


class MethodInvalid(GatewayError):
    """The gateway does not know what was sent as a payment method.

    `field` is the field of the request, `message` says what to send. Neither repeats the input.
    """

    def __init__(self, field: str, code: str, message: str) -> None:
        self.field, self.code, self.message = field, code, message
        super().__init__(message)


class SignatureInvalid(GatewayError):
    """A webhook is not from the gateway."""


MAX_TEXT = 255  # characters of a gateway's id or status
MAX_URL = 4096


def _require_text(text: str | None, most: int = MAX_TEXT) -> None:
    """Raises OutcomeUnknown for a text that cannot be an id, or that no database can store."""
    if text is not None and not (0 < len(text) <= most and text.isprintable()):
        raise OutcomeUnknown("an answer with a text that cannot be one")


def _require_shown(value: Any) -> None:
    """Raises OutcomeUnknown for a name that no database can store."""
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= c <= "\udfff" for c in value)):
        raise OutcomeUnknown("an answer with a text that cannot be one")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a gateway can do."""

    payment_types: frozenset[PaymentType]
    card_numbers: bool = False  # takes card numbers; others take tokens only
    manual_capture: bool = True
    partial_capture: bool = True
    partial_refund: bool = True
    can_retrieve: bool = True  # charges can be read; else only webhooks report changes
    lists_charges: bool = False  # `list_charges` shows what was made or changed lately
    lists_disputes: bool = False  # `list_charges` shows what was disputed lately, and only that
    needs_redirect_params: bool = False  # completes only with the parameters of the return URL


@dataclass(frozen=True, slots=True)
class MethodRequest:
    """A payment method as the shopper gave it. Its repr hides the secret parts."""

    payment_type: PaymentType
    user_id: str
    details: Mapping[str, Any]  # the fields that may be stored and shown
    card_number: str | None = field(default=None, repr=False)
    cvc: str | None = field(default=None, repr=False)
    email: str | None = field(default=None, repr=False)
    iban: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    # The gateway's own id of this user, if an earlier method of theirs came with one.
    customer: str | None = None


@dataclass(frozen=True, slots=True)
class SavedMethod:
    """A payment method as the gateway keeps it."""

    token: str = field(repr=False)
    # What may be stored and shown: the `details` of the API, with a masked email address.
    details: Mapping[str, Any]
    # The gateway's id of the card or account behind the token: the same for duplicates.
    identity: str | None = field(default=None, repr=False)
    customer: str | None = None  # the gateway's own id of this user

    def __post_init__(self) -> None:
        _require_text(self.token)
        _require_text(self.customer)
        for value in self.details.values():
            _require_shown(value)


@dataclass(frozen=True, slots=True)
class ChargeRequest:
    """A charge. The same key always comes with the same amount, currency and token."""

    key: str
    payment_id: int
    order_id: int
    amount: int
    currency: str
    token: str = field(repr=False)
    capture: bool  # False: authorize only
    return_url: str  # where the shopper's browser goes after a redirect
    customer: str | None = None  # as `SavedMethod.customer`
    off_session: bool = False  # the shopper is absent and cannot approve anything
    service_url: str | None = None  # where a browser reaches this service
    fault: str | None = None  # the Sandbox-Fault header, for the sandbox only


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """A capture, a void, or the completion of a charge that the shopper has approved."""

    operation: ChargeOperation
    key: str
    reference: str
    payment_id: int
    amount: int  # to capture
    currency: str
    charge_amount: int  # the amount of the whole charge
    capture: bool = True  # of the charge: False if it was to be authorized only
    # Of a completion: the parameters that the gateway added to the return URL, if we have them.
    redirect_params: Mapping[str, str] = field(default_factory=dict, repr=False)
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class RefundRequest:
    """A refund of a captured charge, of all or of a part."""

    key: str
    reference: str
    payment_id: int
    refund_id: int
    amount: int
    currency: str
    reason: str | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class ChargeLookup:
    """A look-up of the outcome of a charge, or of the change of one.

    It holds the request as it was sent, because an adapter may replay it: under the same key it
    has no second effect, as long as the gateway remembers the key.

    `resend` says whether a replay is allowed. It is for some minutes only (RESEND_WITHIN), because
    later the shopper may have paid in another way. From then on the adapter fences the request if
    it can: it uses up the key with a harmless request, so that the gateway refuses a late
    original. Then it reads the charge.
    """

    request: ChargeRequest | ChangeRequest
    reference: str | None  # the gateway's, if we have received it
    requested_at: datetime  # when the request was first sent
    resend: bool = True


@dataclass(frozen=True, slots=True)
class RefundLookup:
    """A look-up of the outcome of a refund; see `ChargeLookup`."""

    request: RefundRequest
    reference: str | None
    requested_at: datetime
    resend: bool = True


@dataclass(frozen=True, slots=True)
class Decline:
    """Why a charge was declined: our code and the gateway's own."""

    code: str
    raw: str | None = None


@dataclass(frozen=True, slots=True)
class Refund:
    """A refund as the gateway shows it now.

    `refund_id` is our id, which our refunds carry. One without it was made by somebody else, in
    the gateway's dashboard.
    """

    reference: str
    status: RefundStatus
    amount: int
    currency: str
    refund_id: int | None = None

    def __post_init__(self) -> None:
        _require_text(self.reference)


@dataclass(frozen=True, slots=True)
class Charge:
    """A charge as the gateway shows it now.

    `amount` is the amount of the whole charge; None if an event does not repeat it. `refunds` are
    all refunds, whoever made them; None if this answer does not show them.
    """

    reference: str
    status: ChargeStatus
    amount: int | None
    currency: str
    amount_captured: int = 0
    capture_before: datetime | None = None
    redirect_url: str | None = None
    decline: Decline | None = None
    replaces: str | None = None  # the reference that the charge had before
    refunds: tuple[Refund, ...] | None = None

    def __post_init__(self) -> None:
        _require_text(self.reference)
        _require_text(self.redirect_url, MAX_URL)


@dataclass(frozen=True, slots=True)
class Dispute:
    """A dispute as the gateway shows it now."""

    reference: str
    status: DisputeStatus
    amount: int
    currency: str
    reason: str
    evidence_due_at: datetime | None = None  # until when the store may submit evidence

    def __post_init__(self) -> None:
        _require_text(self.reference)
        _require_text(self.reason)
        if self.currency not in EXPONENTS or not 0 <= self.amount <= MAX_AMOUNT:
            raise OutcomeUnknown("the dispute's amount is none that we know")


@dataclass(frozen=True, slots=True)
class ListedCharge:
    """A charge in a gateway's list.

    `key` is the idempotency key of our request, `payment_id` our id of the payment. Both are None
    for a charge that another system made. Its refunds are those that the list shows.
    """

    charge: Charge
    key: str | None
    payment_id: int | None
    disputes: tuple[Dispute, ...] = ()


@dataclass(frozen=True, slots=True)
class ChargePage:
    """One page of a gateway's list; `cursor` is where the next one begins, None after the last."""

    charges: tuple[ListedCharge, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class MethodChange:
    """A saved payment method changed at the gateway."""

    token: str = field(repr=False)
    details: Mapping[str, Any] | None  # the new details; None if the method was deleted

    def __post_init__(self) -> None:
        _require_text(self.token)
        for value in (self.details or {}).values():
            _require_shown(value)


@dataclass(frozen=True, slots=True)
class GatewayEvent:
    """A verified webhook. Either id finds the payment.

    At most one state is given. Only Adyen's CANCEL_OR_REFUND sets two, a `voided` charge and a
    refund; the state of the payment decides which of them happened.

    `needs_lookup` says that something happened and that a look-up has to find out what. If the
    signature does not cover the content of the event, the adapter sets only ids and
    `needs_lookup`. `delivery_id` is the part that such a signature covers. The service accepts it
    once, so that nobody can reuse a genuine signature.
    """

    id: str
    type: str
    payment_id: int | None
    reference: str | None
    charge: Charge | None = None
    refund: Refund | None = None
    dispute: Dispute | None = None
    key: str | None = None  # the idempotency key of the charge, if the event shows it
    refund_key: str | None = None  # the idempotency key of the refund
    method: MethodChange | None = None
    # The key of a capture or void that was `processing`, and now has succeeded or failed.
    executed_key: str | None = None
    failed_key: str | None = None
    # The operation that failed, if the gateway does not repeat its key.
    failed_operation: ChargeOperation | None = None
    needs_lookup: bool = False
    needs_review: bool = False  # only a person can find out what happened
    delivery_id: str | None = None

    def __post_init__(self) -> None:
        try:
            for text in (
                self.id,
                self.type,
                self.reference,
                self.key,
                self.executed_key,
                self.failed_key,
                self.delivery_id,
            ):
                _require_text(text)
        except OutcomeUnknown as error:
            raise SignatureInvalid(str(error)) from None


class Guard(Protocol):
    """Limits the calls of one gateway; see `gateways/guard.py`."""

    def run(self, call: Callable[[], T], seconds: float | None = None) -> T:
        """Make the call, in at most so many seconds. Raises what it raises, NotExecuted or
        OutcomeUnknown."""

    def close(self) -> None:
        """Take no more calls."""


class NoGuard:
    """For a gateway that is part of this process."""

    def run(self, call: Callable[[], T], seconds: float | None = None) -> T:
        return call()

    def close(self) -> None:
        pass


class Gateway(ABC):
    """One payment gateway. `build(settings, engine)` makes it; see `gateways/registry.py`."""

    name: str
    capabilities: Capabilities
    required_settings: ClassVar[tuple[str, ...]] = ()  # fields of Settings
    # False: part of this process. No guard then, and it calls what blocks with `in_thread`.
    remote: ClassVar[bool] = True
    guard: Guard = NoGuard()
    # Whether the service has accepted this `delivery_id` before. The service sets it, for adapters
    # that call their gateway to read an event: they do so only for new ones.
    is_known_delivery: Callable[[str], bool] = staticmethod(lambda delivery_id: False)

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Raises ConfigurationError for missing or invalid settings; never shows their values."""
        missing = [
            name.upper() for name in cls.required_settings if not getattr(settings, name, None)
        ]
        if missing:
            raise ConfigurationError(
                f"GATEWAYS names {cls.name}, which needs {' and '.join(missing)};"
                f" see docs/{cls.name}.md"
            )

    @classmethod
    @abstractmethod
    def build(cls, settings: Settings, engine: Engine) -> Self:
        """Make an adapter from settings that passed `check`."""

    def unsupported_amount_reason(self, amount: int, currency: str) -> str | None:
        """Why this gateway cannot move this amount of minor units, or None if it can."""
        return None

    @abstractmethod
    def save_method(self, request: MethodRequest) -> SavedMethod:
        """Exchange what the shopper gave for a token.

        Raises MethodDeclined, MethodInvalid, NotExecuted or OutcomeUnknown. An unused token does no
        harm, so the caller may simply repeat it.
        """

    @abstractmethod
    def charge(self, request: ChargeRequest) -> Charge:
        """Authorize, and capture if `capture` says so. Raises NotExecuted or OutcomeUnknown."""

    def complete(self, request: ChangeRequest) -> Charge:
        """Complete a charge that its shopper has approved. Raises NotExecuted or OutcomeUnknown.

        Only gateways that return `approved` need it. For a charge that is complete it returns the
        state.
        """
        raise Refused("this gateway completes charges by itself")

    @abstractmethod
    def capture(self, request: ChangeRequest) -> Charge:
        """Capture `amount` of an authorization and release the rest.

        A gateway that only answers "received" returns `processing`. Raises NotExecuted or
        OutcomeUnknown.
        """

    @abstractmethod
    def void(self, request: ChangeRequest) -> Charge:
        """Cancel an authorization, or a charge that waits for the shopper.

        A gateway that only answers "received" returns `processing`. Raises NotExecuted or
        OutcomeUnknown.
        """

    @abstractmethod
    def refund(self, request: RefundRequest) -> Refund:
        """Refund `amount` of a captured charge. Raises NotExecuted or OutcomeUnknown."""

    @abstractmethod
    def look_up(self, query: ChargeLookup) -> Charge | None:
        """The state of a charge after a request whose outcome is unknown.

        None is a promise: the request had no effect and will have none, however late it arrives.
        Raises OutcomeUnknown while the adapter cannot promise that. Without `query.resend` it
        sends nothing that could move money. If one answer shows the charge and its refunds, it
        returns both, so that the service finds refunds that were made outside.
        """

    @abstractmethod
    def look_up_refund(self, query: RefundLookup) -> Refund | None:
        """The state of a refund; None is the same promise as in `look_up`."""

    def list_charges(self, since: datetime | None, cursor: str | None = None) -> ChargePage:
        """A page of the charges that were made, refunded, captured, canceled or disputed since
        then (None: ever), in any order; one that is listed twice does no harm.

        With the capability `lists_disputes` it lists only charges that were disputed. Raises
        NotExecuted or OutcomeUnknown.
        """
        raise Refused("this gateway cannot list its charges")

    @abstractmethod
    def parse_webhook(self, headers: Mapping[str, str], body: bytes) -> GatewayEvent:
        """Verify a webhook and read it, in one call.

        Raises SignatureInvalid, or OutcomeUnknown if it had to call the gateway in vain.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing that is open
        """Close connections to the gateway. No call follows."""
