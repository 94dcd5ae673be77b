"""The contract between the service and a payment gateway.

A gateway answers a request for money in one of three ways, and the difference is all that keeps
a shopper from being charged twice:

* it returns a state: that is what its books say (a decline is such a state);
* it raises `NotDone`: the request surely had no effect, and never will have;
* it raises `Unknown`: anything else once a byte was sent. The service then asks `look_up`.

Every request carries a key of ours, stored before the gateway is asked and the same for every
repeat. Amounts are integers in minor units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

ChargeStatus = Literal[
    "processing",  # the gateway has it and has not decided
    "requires_action",
    "authorized",
    "captured",
    "declined",
    "voided",  # given up or expired, before or after an authorization
]
RefundState = Literal["pending", "succeeded", "failed"]
PaymentType = Literal["card", "paypal", "bank_account"]


class GatewayError(Exception):
    """A gateway did not answer with a state."""


class NotDone(GatewayError):
    """The request surely had no effect: refused before it was sent, or by the gateway's checks."""


class Unknown(GatewayError):
    """The request may have had its effect; only the gateway's books can tell."""


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


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a gateway can do. The service asks before it calls."""

    payment_types: frozenset[PaymentType]
    card_numbers: bool = False  # takes card numbers; others want their own token
    manual_capture: bool = True
    partial_capture: bool = True
    partial_refund: bool = True


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


@dataclass(frozen=True, slots=True)
class SavedMethod:
    """A payment method as the gateway keeps it."""

    token: str = field(repr=False)
    details: Mapping[str, Any]
    # The gateway's own identity of the card or account behind a token, if it tells.
    identity: str | None = field(default=None, repr=False)


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
    return_url: str | None = None
    service_url: str | None = None  # where a browser reaches this service
    fault: str | None = None  # Sandbox-Fault; only the sandbox is ever given one


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """A capture or a void of an authorized charge."""

    key: str
    reference: str
    payment_id: int
    amount: int
    currency: str
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
class LookUp:
    """What became of a request: by its key, or by the gateway's reference where we have one."""

    key: str
    payment_id: int
    reference: str | None
    asked_at: datetime
    refund_id: int | None = None


@dataclass(frozen=True, slots=True)
class Decline:
    """Why a charge was declined: our word for it and the gateway's own."""

    code: str
    raw: str | None = None


@dataclass(frozen=True, slots=True)
class Charge:
    """A charge as the gateway's books show it now."""

    reference: str
    status: ChargeStatus
    amount: int
    currency: str
    amount_captured: int = 0
    capture_before: datetime | None = None
    redirect_url: str | None = None
    decline: Decline | None = None


@dataclass(frozen=True, slots=True)
class Refund:
    """A refund as the gateway's books show it now."""

    reference: str
    status: RefundState
    amount: int
    currency: str


@dataclass(frozen=True, slots=True)
class Dispute:
    """A dispute as the gateway's books show it now."""

    reference: str
    status: Literal["open", "won", "lost"]
    amount: int
    currency: str
    reason: str


@dataclass(frozen=True, slots=True)
class GatewayEvent:
    """A verified webhook. At most one of the states is given; the payment is found by either id."""

    id: str
    type: str
    payment_id: int | None
    reference: str | None
    charge: Charge | None = None
    refund: Refund | None = None
    refund_id: int | None = None
    dispute: Dispute | None = None


class Gateway(ABC):
    """One payment gateway."""

    name: str
    capabilities: Capabilities

    @abstractmethod
    def save_method(self, request: MethodRequest) -> SavedMethod:
        """Exchange what the shopper gave for a token.

        Raises MethodDeclined, MethodInvalid, NotDone or Unknown. A token nobody uses is harmless,
        so an unknown outcome may simply be tried again.
        """

    @abstractmethod
    def charge(self, request: ChargeRequest) -> Charge:
        """Authorize, and capture unless told not to. Raises NotDone or Unknown."""

    @abstractmethod
    def capture(self, request: ChangeRequest) -> Charge:
        """Capture `amount` of an authorization and release the rest. Raises NotDone or Unknown."""

    @abstractmethod
    def void(self, request: ChangeRequest) -> Charge:
        """Give up an authorization, or a charge that waits for the shopper.

        Raises NotDone or Unknown.
        """

    @abstractmethod
    def refund(self, request: RefundRequest) -> Refund:
        """Give back `amount` of what was captured. Raises NotDone or Unknown."""

    @abstractmethod
    def look_up(self, query: LookUp) -> Charge | None:
        """What became of a charge, capture or void.

        None is a promise: the request with this key had no effect and will have none, however
        late it may still arrive. A gateway that cannot promise that (yet) raises Unknown.
        """

    @abstractmethod
    def look_up_refund(self, query: LookUp) -> Refund | None:
        """What became of a refund; None is the same promise as in `look_up`."""

    @abstractmethod
    def parse_webhook(self, headers: Mapping[str, str], body: bytes) -> GatewayEvent:
        """Verify a webhook and read it, in one call. Raises SignatureInvalid."""

    def books(self) -> list[dict[str, Any]] | None:
        """Every charge of this gateway, to compare with ours; None for one that cannot list them.

        The fields are those of `GET /sandbox/charges`.
        """
        return None
