"""Adyen's standard webhook: its signature, and what its events mean for a payment of ours.

Only the eight signed fields decide anything about money. The others (`reason`, `additionalData`)
could be changed by whoever gets hold of a notification, and only choose words.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from domain.declines import ADYEN, normalize_decline_code
from gateways.adyen.amounts import read_amount
from gateways.adyen.references import Reference, is_ours, read
from gateways.base import Charge, Decline, Dispute, GatewayEvent, Refund, SignatureInvalid

# `reason` of a refused authorization -> the `refusalReasonCode` that the API's answer has:
# https://docs.adyen.com/development-resources/refusal-reasons/
REASON_CODES: Final[Mapping[str, str]] = {
    "refused": "2",
    "referral": "3",
    "acquirer error": "4",
    "blocked card": "5",
    "expired card": "6",
    "invalid amount": "7",
    "invalid card number": "8",
    "issuer unavailable": "9",
    "not supported": "10",
    "3d not authenticated": "11",
    "not enough balance": "12",
    "acquirer fraud": "14",
    "cancelled": "15",
    "shopper cancelled": "16",
    "invalid pin": "17",
    "pin tries exceeded": "18",
    "fraud": "20",
    "not submitted": "21",
    "fraud-cancelled": "22",
    "transaction not permitted": "23",
    "cvc declined": "24",
    "restricted card": "25",
    "revocation of auth": "26",
    "declined non generic": "27",
    "withdrawal amount exceeded": "28",
    "withdrawal count exceeded": "29",
    "issuer suspected fraud": "31",
    "avs declined": "32",
    "card requires online pin": "33",
    "authentication required": "38",
    "rreq not received from ds": "39",
    "3ds authentication error": "42",
}

# https://docs.adyen.com/risk-management/disputes-api/dispute-notifications
DISPUTES: Final[Mapping[str, Literal["open", "won", "lost"]]] = {
    "NOTIFICATION_OF_CHARGEBACK": "open",
    "CHARGEBACK": "open",  # the money is gone, but it can still be defended
    "CHARGEBACK_REVERSED": "won",  # unless the issuer comes again
    "ISSUER_RESPONSE_TIMEFRAME_EXPIRED": "won",
    "PREARBITRATION_WON": "won",
    "PREARBITRATION_ISSUER_WITHDRAWN": "won",
    "SCHEME_ARBITRATION_WON": "won",
    "SECOND_CHARGEBACK": "lost",
    "DISPUTE_DEFENSE_PERIOD_ENDED": "lost",  # nobody defended it
    "PREARBITRATION_LOST": "lost",
    "SCHEME_ARBITRATION_LOST": "lost",
}
LONGEST_REASON: Final = 200
TECHNICAL_CANCEL: Final = "TECHNICAL_CANCEL"  # the outcome of a cancel by our reference


@dataclass(frozen=True, slots=True)
class Notification:
    """A notification as it was signed, and the reason that was sent along."""

    psp_reference: str
    original_reference: str  # of the payment, where the event is about a change of one
    merchant_account: str
    merchant_reference: str
    value: int  # as Adyen counts
    currency: str
    event_code: str
    success: str  # "true" or "false"
    reason: str

    @property
    def done(self) -> bool:
        return self.success == "true"

    @property
    def payment(self) -> str:
        """Adyen's reference of the payment, or ours until it has one."""
        if self.original_reference:
            return self.original_reference
        # What is canceled while it waits for the shopper may have no reference of Adyen's yet.
        gave_up_offer = self.event_code == TECHNICAL_CANCEL and is_ours(self.merchant_reference)
        return self.merchant_reference if gave_up_offer else self.psp_reference

    @property
    def ours(self) -> Reference | None:
        return read(self.merchant_reference)

    @property
    def amount(self) -> tuple[int, str] | None:
        """Our minor units and the currency; None if we cannot hold that."""
        return read_amount({"value": self.value, "currency": self.currency})


# The signature ------------------------------------------------------------------------------------


def verify(body: bytes, keys: Sequence[bytes], merchant_account: str) -> Notification:
    """The notification in a body, if it was signed with one of the keys and is for this account.

    The signature stands inside of what it signs, so the JSON has to be read first. Raises
    SignatureInvalid for everything else, also for more than one item: as JSON, Adyen sends one
    (https://docs.adyen.com/development-resources/webhooks/webhook-types), and half of a batch
    must not be taken on when the other half is refused.
    """
    try:
        (wrapped,) = json.loads(body)["notificationItems"]
        item = wrapped["NotificationRequestItem"]
        found = _notification(item)
        signed = signed_text(found).encode()
        given = item["additionalData"]["hmacSignature"].encode()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise SignatureInvalid from None
    # Every key is tried, whichever fits: how long it takes tells nothing.
    fits = [hmac.compare_digest(sign(key, signed), given) for key in keys]
    account = merchant_account.encode()
    if not any(fits) or not hmac.compare_digest(found.merchant_account.encode(), account):
        raise SignatureInvalid
    return found


def sign(key: bytes, signed: bytes) -> bytes:
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())


def signed_text(found: Notification) -> str:
    """The signed fields, with a colon between. Nothing is escaped in this kind of webhook.

    So a text could be cut into other fields than it was made of. It cannot as long as only one of
    them may hold colons; Adyen's own fields have none.
    """
    before = [found.psp_reference, found.original_reference, found.merchant_account]
    after = [str(found.value), found.currency, found.event_code, found.success]
    if any(":" in part for part in (*before, *after)):
        raise ValueError("a colon where none can be")
    return ":".join([*before, found.merchant_reference, *after])


def _notification(item: Mapping[str, Any]) -> Notification:
    value = item["amount"]["value"]
    if type(value) is not int:
        raise TypeError
    found = Notification(
        psp_reference=item["pspReference"],
        original_reference=item.get("originalReference") or "",
        merchant_account=item["merchantAccountCode"],
        merchant_reference=item.get("merchantReference") or "",
        value=value,
        currency=item["amount"]["currency"],
        event_code=item["eventCode"],
        success=item["success"],
        reason=_printable(item.get("reason")),
    )
    if found.success not in ("true", "false"):
        raise ValueError
    return found


def _printable(reason: object) -> str:
    kept = reason[:LONGEST_REASON] if isinstance(reason, str) else ""
    return "".join(character for character in kept if character.isprintable())


# What they mean -----------------------------------------------------------------------------------


def event_of(found: Notification) -> GatewayEvent:
    """What a notification says; an event without a state for those that mean nothing to us.

    Captures, cancellations and refunds that were made by hand come with whatever reference was
    typed there. They are about the payment that Adyen's own reference names, which is signed too.
    No event makes us ask, because nothing at Adyen can be read.
    """
    if found.event_code in DISPUTES:
        return _dispute(found)
    meaning = MEANINGS.get(found.event_code)
    return _irrelevant(found) if meaning is None else meaning(found)


def _authorization(found: Notification) -> GatewayEvent:
    ours = found.ours
    if ours is None or ours.capture is None:
        return _irrelevant(found)  # a payment that was not made through us
    if found.amount is None:
        return _unclear(found)
    if not found.done:
        code = REASON_CODES.get(found.reason.strip().lower())
        return _charge(
            found, found.amount, "declined", Decline(normalize_decline_code(ADYEN, code), code)
        )
    return _charge(found, found.amount, "captured" if ours.capture else "authorized")


def _capture(found: Notification) -> GatewayEvent:
    ours, amount = found.ours, found.amount
    if not found.done:
        return _failed(found)
    if amount is None:
        return _unclear(found)
    charged = ours.charged if ours is not None else None
    captured = Charge(found.payment, "captured", charged, amount[1], amount_captured=amount[0])
    return _event(found, charge=captured, executed_key=ours.key if ours is not None else None)


def _failed(found: Notification) -> GatewayEvent:
    """A capture or void was not done. One that was tried by hand leaves everything as it was."""
    ours = found.ours
    if ours is not None and ours.key is not None:
        return _event(found, failed_key=ours.key)
    if ours is not None and found.event_code == TECHNICAL_CANCEL:
        # It repeats the reference of the payment, not that of the cancel, which has our key.
        return _event(found, failed_operation="void")
    return _event(found)


def _capture_undone(found: Notification) -> GatewayEvent:
    """The bank did not pay after all: before or after the capture was told as done."""
    if found.ours is not None and found.ours.key is not None:
        return _event(found, failed_key=found.ours.key)
    return _unclear(found)  # which capture it is about it does not say


def _cancellation(found: Notification) -> GatewayEvent:
    if not found.done:
        return _failed(found)
    return _gone(found)


def _gone(found: Notification) -> GatewayEvent:
    """Canceled or expired: what was authorized is authorized no more."""
    return _ended(found, "voided")


def _abandoned(found: Notification) -> GatewayEvent:
    """The shopper never came back from the page; Adyen waits 12 hours for card payments."""
    return _ended(found, "declined", Decline("authentication_failed", found.event_code))


def _ended(
    found: Notification,
    status: Literal["voided", "declined"],
    decline: Decline | None = None,
) -> GatewayEvent:
    if found.amount is None:
        return _unclear(found)
    # Its own amount may be what was left of the charge only.
    charged = found.ours.charged if found.ours is not None else None
    return _charge(found, (charged, found.amount[1]), status, decline)


def _refund(found: Notification) -> GatewayEvent:
    return _refund_state(found, "succeeded" if found.done else "failed")


def _refund_undone(found: Notification) -> GatewayEvent:
    return _refund_state(found, "failed")


def _refund_state(found: Notification, status: Literal["succeeded", "failed"]) -> GatewayEvent:
    if found.amount is None:
        return _unclear(found)
    refund_id = found.ours.refund_id if found.ours is not None else None
    refund = Refund(found.psp_reference, status, *found.amount, refund_id=refund_id)
    return _event(found, refund=refund)


def _reversal(found: Notification) -> GatewayEvent:
    """Made by hand: a cancel or a refund, whichever the payment allowed.

    Which of both is said outside of the signed fields only, but it follows from our payment.
    """
    if not found.done:
        return _event(found)
    return replace(_gone(found), refund=_refund(found).refund)


def _dispute(found: Notification) -> GatewayEvent:
    if found.amount is None or not found.done:
        return _event(found)
    reason = found.reason or found.event_code
    dispute = Dispute(found.psp_reference, DISPUTES[found.event_code], *found.amount, reason)
    return _event(found, dispute=dispute)


MEANINGS: Final[Mapping[str, Callable[[Notification], GatewayEvent]]] = {
    "AUTHORISATION": _authorization,
    "CAPTURE": _capture,
    "CAPTURE_FAILED": _capture_undone,
    "CANCELLATION": _cancellation,
    TECHNICAL_CANCEL: _cancellation,
    "EXPIRE": _gone,
    "OFFER_CLOSED": _abandoned,
    "REFUND": _refund,
    "REFUND_FAILED": _refund_undone,
    "REFUNDED_REVERSED": _refund_undone,
    "CANCEL_OR_REFUND": _reversal,
}


def _charge(
    found: Notification,
    amount: tuple[int | None, str],
    status: Literal["authorized", "captured", "declined", "voided"],
    decline: Decline | None = None,
) -> GatewayEvent:
    ours = found.ours
    of_charge = ours is not None and ours.capture is not None
    state = Charge(
        found.payment,
        status,
        *amount,
        amount_captured=(amount[0] or 0) if status == "captured" else 0,
        decline=decline,
        replaces=found.merchant_reference if of_charge else None,
    )
    return _event(found, charge=state, executed_key=ours.key if ours is not None else None)


def _unclear(found: Notification) -> GatewayEvent:
    """It is about our payment, and only a person can find out what it means for it."""
    return _event(found, review=True)


def _irrelevant(found: Notification) -> GatewayEvent:
    """It changes nothing here, and needs no payment: whoever has none for it may take it at once.

    Its reference is the name of a file (REPORT_AVAILABLE), or that of a payment of somebody else.
    """
    return replace(_event(found), reference=None)


def _event(found: Notification, **said: Any) -> GatewayEvent:
    """Duplicates have the same id: that is how Adyen tells to know them."""
    return GatewayEvent(
        id=f"{found.event_code}:{found.psp_reference}:{found.success}",
        type=found.event_code,
        payment_id=found.ours.payment_id if found.ours is not None else None,
        reference=found.payment,
        **said,
    )
