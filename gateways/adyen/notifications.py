"""Adyen's standard webhook: verifies the signature, then reads the event.

Only the eight signed fields decide about money. An attacker could change the others (`reason`,
`additionalData`); they only choose a decline code.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
    """The signed fields of a notification, and its reason, which is not signed."""

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
    def succeeded(self) -> bool:
        return self.success == "true"

    @property
    def payment(self) -> str:
        """Adyen's reference of the payment, or ours until it has one."""
        if self.original_reference:
            return self.original_reference
        # A charge that is canceled while it waits for the shopper may have none of Adyen's yet.
        canceled_offer = self.event_code == TECHNICAL_CANCEL and is_ours(self.merchant_reference)
        return self.merchant_reference if canceled_offer else self.psp_reference

    @property
    def ours(self) -> Reference:
        return read(self.merchant_reference)

    @property
    def amount(self) -> tuple[int, str] | None:
        """Our minor units and the currency; None if our minor units cannot express it."""
        return read_amount({"value": self.value, "currency": self.currency})


# The signature ------------------------------------------------------------------------------------


def verify(body: bytes, keys: Sequence[bytes], merchant_account: str) -> Notification:
    """The notification in a body that is signed with one of the keys and is for this account.

    The signature is inside the JSON, so the JSON is parsed first. Raises SignatureInvalid for
    everything else, also for more than one item. Adyen sends one item as JSON
    (https://docs.adyen.com/development-resources/webhooks/webhook-types), and we cannot accept
    half of a batch.
    """
    try:
        (wrapped,) = json.loads(body)["notificationItems"]
        item = wrapped["NotificationRequestItem"]
        found = _notification(item)
        signed = signed_text(found).encode()
        given = item["additionalData"]["hmacSignature"].encode()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise SignatureInvalid from None
    # Every key is tried, so that the time it takes reveals nothing.
    fits = [hmac.compare_digest(sign(key, signed), given) for key in keys]
    account = merchant_account.encode()
    if not any(fits) or not hmac.compare_digest(found.merchant_account.encode(), account):
        raise SignatureInvalid
    return found


def sign(key: bytes, signed: bytes) -> bytes:
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())


def signed_text(found: Notification) -> str:
    """The signed fields, separated by colons. Adyen does not escape colons in them.

    So only one field, our reference, may hold colons. Otherwise the same text could be split into
    other fields. Raises ValueError.
    """
    before = [found.psp_reference, found.original_reference, found.merchant_account]
    after = [str(found.value), found.currency, found.event_code, found.success]
    if any(":" in part for part in (*before, *after)):
        raise ValueError("a colon in a field of Adyen's")
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


# Events -------------------------------------------------------------------------------------------


def event_of(found: Notification) -> GatewayEvent:
    """The event of a notification; without a state if it means nothing to us.

    Captures, cancellations and refunds that somebody makes by hand carry any reference. Adyen's
    own reference, which is signed too, names their payment. No event asks for a look-up, because
    nothing at Adyen can be read.
    """
    if found.event_code in DISPUTES:
        return _dispute(found)
    meaning = MEANINGS.get(found.event_code)
    return _irrelevant(found) if meaning is None else meaning(found)


def _authorization(found: Notification) -> GatewayEvent:
    if found.ours.capture is None:
        return _irrelevant(found)  # another system made the payment
    if found.amount is None:
        return _needs_review(found)
    if not found.succeeded:
        code = REASON_CODES.get(found.reason.strip().lower())
        decline = Decline(normalize_decline_code(ADYEN, code), code)
        return _charge(found, found.amount, "declined", decline)
    return _charge(found, found.amount, "captured" if found.ours.capture else "authorized")


def _capture(found: Notification) -> GatewayEvent:
    if not found.succeeded:
        return _operation_failed(found)
    if found.amount is None:
        return _needs_review(found)
    amount, currency = found.amount
    captured = Charge(
        found.payment, "captured", found.ours.charge_amount, currency, amount_captured=amount
    )
    return _event(found, charge=captured, executed_key=found.ours.key)


def _operation_failed(found: Notification) -> GatewayEvent:
    """A capture or void failed. One that somebody tried by hand changes nothing."""
    if found.ours.key is not None:
        return _event(found, failed_key=found.ours.key)
    if found.ours.payment_id is not None and found.event_code == TECHNICAL_CANCEL:
        # It repeats the reference of the payment. That of the cancel would hold our key.
        return _event(found, failed_operation="void")
    return _event(found)


def _capture_failed(found: Notification) -> GatewayEvent:
    """The bank did not pay, even if Adyen reported that the capture succeeded."""
    if found.ours.key is not None:
        return _event(found, failed_key=found.ours.key)
    return _needs_review(found)  # it does not say which capture failed


def _cancellation(found: Notification) -> GatewayEvent:
    if not found.succeeded:
        return _operation_failed(found)
    return _authorization_ended(found)


def _authorization_ended(found: Notification) -> GatewayEvent:
    """The authorization was canceled or has expired."""
    return _charge_ended(found, "voided")


def _offer_closed(found: Notification) -> GatewayEvent:
    """The shopper never came back from the redirect. Adyen waits 12 hours for a card payment."""
    return _charge_ended(found, "declined", Decline("authentication_failed", found.event_code))


def _charge_ended(
    found: Notification, status: Literal["voided", "declined"], decline: Decline | None = None
) -> GatewayEvent:
    if found.amount is None:
        return _needs_review(found)
    # The amount of the event may be only a part of the charge.
    return _charge(found, (found.ours.charge_amount, found.amount[1]), status, decline)


def _refund(found: Notification) -> GatewayEvent:
    return _refund_state(found, "succeeded" if found.succeeded else "failed")


def _refund_state(found: Notification, status: Literal["succeeded", "failed"]) -> GatewayEvent:
    if found.amount is None:
        return _needs_review(found)
    refund = Refund(found.psp_reference, status, *found.amount, found.ours.refund_id)
    return _event(found, refund=refund)


def _reversal(found: Notification) -> GatewayEvent:
    """A cancel or a refund that somebody made by hand, whichever the payment allowed.

    No signed field says which; the state of our payment does.
    """
    if not found.succeeded:
        return _event(found)
    return replace(_authorization_ended(found), refund=_refund(found).refund)


def _dispute(found: Notification) -> GatewayEvent:
    if found.amount is None or not found.succeeded:
        return _event(found)
    reason = found.reason or found.event_code
    dispute = Dispute(found.psp_reference, DISPUTES[found.event_code], *found.amount, reason)
    return _event(found, dispute=dispute)


MEANINGS: Final[Mapping[str, Callable[[Notification], GatewayEvent]]] = {
    "AUTHORISATION": _authorization,
    "CAPTURE": _capture,
    "CAPTURE_FAILED": _capture_failed,
    "CANCELLATION": _cancellation,
    TECHNICAL_CANCEL: _cancellation,
    "EXPIRE": _authorization_ended,
    "OFFER_CLOSED": _offer_closed,
    "REFUND": _refund,
    "REFUND_FAILED": partial(_refund_state, status="failed"),
    "REFUNDED_REVERSED": partial(_refund_state, status="failed"),
    "CANCEL_OR_REFUND": _reversal,
}


def _charge(
    found: Notification,
    amount: tuple[int | None, str],
    status: Literal["authorized", "captured", "declined", "voided"],
    decline: Decline | None = None,
) -> GatewayEvent:
    state = Charge(
        found.payment,
        status,
        *amount,
        amount_captured=(amount[0] or 0) if status == "captured" else 0,
        decline=decline,
        replaces=found.merchant_reference if is_ours(found.merchant_reference) else None,
    )
    return _event(found, charge=state, executed_key=found.ours.key)


def _needs_review(found: Notification) -> GatewayEvent:
    """An event about our payment of which only a person can find out the meaning."""
    return _event(found, needs_review=True)


def _irrelevant(found: Notification) -> GatewayEvent:
    """An event that changes nothing here. Without a reference, no payment is searched for it.

    Its reference is the name of a file (REPORT_AVAILABLE) or of another system's payment.
    """
    return replace(_event(found), reference=None)


def _event(found: Notification, **said: Any) -> GatewayEvent:
    """Duplicates get the same id, from the fields by which Adyen defines them."""
    return GatewayEvent(
        id=f"{found.event_code}:{found.psp_reference}:{found.success}",
        type=found.event_code,
        payment_id=found.ours.payment_id,
        reference=found.payment,
        **said,
    )
