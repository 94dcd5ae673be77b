"""The contract between the service and a payment gateway.

A gateway answers a request for money in one of three ways, and the difference is all that keeps
a shopper from being charged twice:

* it returns a state: that is what its books say (a decline is such a state);
* it raises `NotExecuted`: the request surely had no effect, and never will have;
* it raises `OutcomeUnknown`: anything else once a byte was sent. The service then asks `look_up`.

Every request carries a key of ours, stored before the gateway is asked and the same for every
repeat. Amounts are integers in minor units.

Adapters are plain and synchronous. Time limits of the whole call, repeats of what surely was not
done, the circuit breaker and the bulkhead are around them (see `gateways/guard.py`).
"""

from __future__ import annotations

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
    """The request surely had no effect: refused before it was sent, or by the gateway's checks."""


class Refused(NotExecuted):
    """The gateway has read the request and refuses it by its own checks, now and later.

    A decline is not that (it is a state), nor is a key of ours that it does not know (401).
    """


class RetryLater(NotExecuted):
    """Not reached, or sent away at the door (429): the very same request may be sent again."""

    def __init__(self, why: str, retry_after: float | None = None) -> None:
        self.retry_after = retry_after  # seconds, where the gateway says
        super().__init__(why)


class OutcomeUnknown(GatewayError):
    """The request may have had its effect; only the gateway's books can tell."""


class OutcomeNotShown(OutcomeUnknown):
    """The gateway is well, but its books do not show what became of the request."""


class MethodDeclined(GatewayError):
    """The gateway refuses to keep this payment method."""

    def __init__(self, decline_code: str) -> None:
        self.decline_code = decline_code
        super().__init__(decline_code)


class MethodInvalid(GatewayError):
    """What was sent as a payment method is none to this gateway.

    `field` is the request's field, `message` says what to send; neither repeats what was sent.
    """

    def __init__(self, field: str, code: str, message: str) -> None:
        self.field, self.code, self.message = field, code, message
        super().__init__(message)


class SignatureInvalid(GatewayError):
    """A webhook is not from the gateway."""


MAX_TEXT = 255  # characters of an id or a word of a gateway's
MAX_URL = 4096


def _require_text(text: str | None, most: int = MAX_TEXT) -> None:
    """Raises OutcomeUnknown for what no id or word can be, and no database can hold, whoever sent
    it."""
    if text is not None and not (0 < len(text) <= most and text.isprintable()):
        raise OutcomeUnknown("an answer with a text that cannot be one")


def _require_shown(value: Any) -> None:
    """Raises OutcomeUnknown for a name or the like that no database can hold."""
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= c <= "\udfff" for c in value)):
        raise OutcomeUnknown("an answer with a text that cannot be one")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a gateway can do. The service asks before it calls."""

    payment_types: frozenset[PaymentType]
    card_numbers: bool = False  # takes card numbers; others want their own token
    manual_capture: bool = True
    partial_capture: bool = True
    partial_refund: bool = True
    can_retrieve: bool = True  # its books can be read; else only events tell what has changed
    lists_charges: bool = False  # `list_charges` tells what was made or changed lately
    lists_disputes: bool = False  # `list_charges` tells what was disputed lately, and only that
    needs_redirect_params: bool = False  # completes only with what it added to the return URL


@dataclass(frozen=True, slots=True)
class MethodRequest:
    """A payment method as the shopper gave it. Secret parts stay out of its repr."""

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
    # What may be stored and shown: the fields of `details` out, an email already masked.
    details: Mapping[str, Any]
    # The gateway's own identity of the card or account behind a token, if it tells.
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
    off_session: bool = False  # the shopper is not there to be asked anything
    service_url: str | None = None  # where a browser reaches this service
    fault: str | None = None  # Sandbox-Fault; only the sandbox is ever given one


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """A capture, a void, or the completion of a charge that the shopper has approved."""

    operation: ChargeOperation
    key: str
    reference: str
    payment_id: int
    amount: int  # to capture
    currency: str
    charged: int  # the amount of the whole charge
    capture: bool = True  # of the charge: False if it is, or was, to be authorized only
    # Of a completion: what the gateway added to the return URL, if the storefront told us.
    returned: Mapping[str, str] = field(default_factory=dict, repr=False)
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
    """What became of a request: of a charge, or of the change of one.

    It holds the request as it was sent, because some gateways are asked by repeating it: under
    the same key it has no second effect, for as long as the gateway remembers the key.

    `resend` says whether that is still allowed. A request that may never have arrived is sent
    again for some minutes only (RESEND_WITHIN): later the shopper may have paid in another way.
    From then on the gateway must not be made to do it. It is fenced where there is a way (the key
    is used up by something harmless, so that a late original is refused), then its books are read.
    """

    request: ChargeRequest | ChangeRequest
    reference: str | None  # the gateway's, if we have heard it
    requested_at: datetime  # when the request was first sent
    resend: bool = True

    @property
    def key(self) -> str:
        return self.request.key


@dataclass(frozen=True, slots=True)
class RefundLookup:
    """What became of a refund; see `ChargeLookup`."""

    request: RefundRequest
    reference: str | None
    requested_at: datetime
    resend: bool = True

    @property
    def key(self) -> str:
        return self.request.key


@dataclass(frozen=True, slots=True)
class Decline:
    """Why a charge was declined: our word for it and the gateway's own."""

    code: str
    raw: str | None = None


@dataclass(frozen=True, slots=True)
class Refund:
    """A refund as the gateway's books show it now.

    `refund_id` is our id of it, where it carries one. In the books of a gateway that shows what a
    refund was made with, one without it was made by somebody else: in the gateway's own dashboard.
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
    """A charge as the gateway's books show it now.

    `amount` is that of the whole charge. None: the amount that was authorized, which this event
    does not repeat. `refunds` are all that the books show, whoever made them; None if this answer
    does not tell.
    """

    reference: str
    status: ChargeStatus
    amount: int | None
    currency: str
    amount_captured: int = 0
    capture_before: datetime | None = None
    redirect_url: str | None = None
    decline: Decline | None = None
    replaces: str | None = None  # a reference that the gateway had for it before
    refunds: tuple[Refund, ...] | None = None

    def __post_init__(self) -> None:
        _require_text(self.reference)
        _require_text(self.redirect_url, MAX_URL)


@dataclass(frozen=True, slots=True)
class Dispute:
    """A dispute as the gateway's books show it now."""

    reference: str
    status: DisputeStatus
    amount: int
    currency: str
    reason: str
    evidence_due_at: datetime | None = None  # until when the store may defend itself

    def __post_init__(self) -> None:
        _require_text(self.reference)
        _require_text(self.reason)
        if self.currency not in EXPONENTS or not 0 <= self.amount <= MAX_AMOUNT:
            raise OutcomeUnknown("the dispute's amount is none that we know")


@dataclass(frozen=True, slots=True)
class ListedCharge:
    """A charge in a gateway's list, with what shows whether it is one of ours.

    `key` is the key that our request carried, `payment_id` our id of the payment; both are None
    for a charge that was not made by this service. Its refunds are those that the list shows.
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
    details: Mapping[str, Any] | None  # what is new of it; None: it is gone

    def __post_init__(self) -> None:
        _require_text(self.token)
        for value in (self.details or {}).values():
            _require_shown(value)


@dataclass(frozen=True, slots=True)
class GatewayEvent:
    """A verified webhook. At most one of the states is given; the payment is found by either id.
    Adyen's CANCEL_OR_REFUND sets two, a charge that is `voided` and a refund: the payment's state
    decides which of them happened.

    With `ask` the event says
    that something happened, and the books have to be asked what. A gateway whose signature does
    not cover what the event says must set nothing but ids and `ask`. `delivery_id` is what such a
    signature does cover: it is taken once, so that one genuine signature cannot carry others.
    """

    id: str
    type: str
    payment_id: int | None
    reference: str | None
    charge: Charge | None = None
    refund: Refund | None = None
    dispute: Dispute | None = None
    key: str | None = None  # ours, of the charge, where the gateway shows it
    refund_key: str | None = None  # ours, of the refund
    method: MethodChange | None = None
    # The key of a capture or void that was taken on ("processing") and is done now, or is not.
    executed_key: str | None = None
    failed_key: str | None = None
    # Which of our operations is not done, where the gateway does not repeat its key.
    failed_operation: ChargeOperation | None = None
    ask: bool = False
    review: bool = False  # only a person can find out what it means
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
    """What stands between us and a gateway: limits of time and number, repeats, a breaker."""

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
    needs: ClassVar[tuple[str, ...]] = ()  # the settings that it cannot do without
    remote: ClassVar[bool] = True  # False: part of this process, needs no guard
    guard: Guard = NoGuard()
    # Whether an event with this `delivery_id` was taken before. The service sets it; an adapter
    # that has to ask its gateway what an event means asks only about those that are new.
    is_known: Callable[[str], bool] = staticmethod(lambda delivery_id: False)

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Whether it can be built. Raises ConfigurationError, which names the variables that are
        missing and never the values of others."""
        missing = [name.upper() for name in cls.needs if not getattr(settings, name, None)]
        if missing:
            raise ConfigurationError(
                f"GATEWAYS names {cls.name}, which needs {' and '.join(missing)};"
                f" see docs/{cls.name}.md"
            )

    @classmethod
    @abstractmethod
    def build(cls, settings: Settings, engine: Engine) -> Self:
        """Make it from settings that `check` has passed."""

    def unsupported_amount_reason(self, amount: int, currency: str) -> str | None:
        """Why this gateway cannot move this amount of minor units, or None if it can."""
        return None

    @abstractmethod
    def save_method(self, request: MethodRequest) -> SavedMethod:
        """Exchange what the shopper gave for a token.

        Raises MethodDeclined, MethodInvalid, NotExecuted or OutcomeUnknown. A token nobody uses is
        harmless, so an unknown outcome may simply be tried again.
        """

    @abstractmethod
    def charge(self, request: ChargeRequest) -> Charge:
        """Authorize, and capture unless told not to. Raises NotExecuted or OutcomeUnknown."""

    def complete(self, request: ChangeRequest) -> Charge:
        """Go on with a charge that is `approved`. Raises NotExecuted or OutcomeUnknown.

        Only gateways that answer `approved` need it. A completion of what is complete, by
        whichever request, answers with what the books show.
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
        """Give up an authorization, or a charge that waits for the shopper.

        A gateway that only answers "received" returns `processing`. Raises NotExecuted or
        OutcomeUnknown.
        """

    @abstractmethod
    def refund(self, request: RefundRequest) -> Refund:
        """Give back `amount` of what was captured. Raises NotExecuted or OutcomeUnknown."""

    @abstractmethod
    def look_up(self, query: ChargeLookup) -> Charge | None:
        """What became of a charge, or of a change of it.

        None is a promise: the request with this key had no effect and will have none, however
        late it may still arrive. A gateway that cannot promise that (yet) raises OutcomeUnknown.
        Without `query.resend` it sends nothing that could move money. The charge comes with its
        refunds where one answer shows both, so that those made outside are found.
        """

    @abstractmethod
    def look_up_refund(self, query: RefundLookup) -> Refund | None:
        """What became of a refund; None is the same promise as in `look_up`."""

    def list_charges(self, since: datetime | None, cursor: str | None = None) -> ChargePage:
        """A page of the charges that were made, refunded, captured, canceled or disputed since
        then (None: ever), in any order; one that is listed twice does no harm.

        For gateways with the capability `lists_charges`, or `lists_disputes`: then it is the
        charges that were disputed. Raises NotExecuted or OutcomeUnknown.
        """
        raise Refused("this gateway cannot list its charges")

    @abstractmethod
    def parse_webhook(self, headers: Mapping[str, str], body: bytes) -> GatewayEvent:
        """Verify a webhook and read it, in one call.

        Raises SignatureInvalid; OutcomeUnknown when the gateway had to be asked and did not answer.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing that is open
        """Close what is open to the gateway; nothing is asked any more."""
