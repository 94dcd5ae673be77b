"""Reads Adyen's answers: errors as errors of the contract, result codes as charges."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from domain.declines import ADYEN, normalize_decline_code
from domain.states import ChargeStatus
from gateways.adyen.amounts import read_amount
from gateways.base import Charge, Decline, NotExecuted, OutcomeUnknown, Refused
from gateways.transport import Reply

# The first request with this key is under way.
IN_PROGRESS: Final = "704"
CODE: Final = re.compile(r"[0-9A-Za-z_]{1,32}")  # other texts stay out of the log

# resultCode -> our decline code, where `refusalReasonCode` is not known.
DECLINED: Final[Mapping[str, str]] = {
    "Refused": "generic_decline",
    "Error": "processing_error",
    "Cancelled": "authentication_failed",
}


@dataclass(frozen=True, slots=True)
class Expected:
    """The charge that was requested. The amount is in minor units."""

    reference: str  # ours
    amount: int
    currency: str
    capture: bool


def accepted(reply: Reply) -> Mapping[str, Any]:
    """The body of an answer below 300. Raises Refused, NotExecuted or OutcomeUnknown for any other.

    Adyen stores a refusal under the key, so a replay that is refused had no effect the first time
    either. A transient error is not stored; the key can be used again.
    """
    if reply.status < 300:
        return reply.body
    code, kind = reply.body.get("errorCode"), reply.body.get("errorType")
    why = f"HTTP {reply.status}, errorCode {_loggable(code)}, errorType {_loggable(kind)}"
    if code == IN_PROGRESS or reply.headers.get("transient-error", "").lower() == "true":
        raise OutcomeUnknown(why)
    if reply.status in (401, 403, 404):
        raise NotExecuted(why)
    if reply.status in (400, 422):
        if kind == "validation":
            raise Refused(why)
        if kind in ("security", "configuration"):
            raise NotExecuted(why)
    raise OutcomeUnknown(why)


def received(answer: Mapping[str, Any], payment: str) -> str:
    """Adyen's reference of a capture, void or refund that it has received for this payment.

    Raises OutcomeUnknown for any other answer.
    """
    reference = text(answer, "pspReference")
    about = answer.get("paymentPspReference", answer.get("paymentReference"))
    if answer.get("status") != "received" or reference is None or about != payment:
        raise OutcomeUnknown("the answer does not say that the request was received")
    return reference


def charge_of(answer: Mapping[str, Any], expected: Expected) -> Charge:
    """The charge that an answer to /payments or /payments/details shows.

    Adyen may change its reference until the payment is decided, so the charge has ours until then.
    Raises OutcomeUnknown for an answer that lacks a field or is about another payment.
    """
    result, reference = text(answer, "resultCode"), text(answer, "pspReference")
    if result is None or answer.get("merchantReference", expected.reference) != expected.reference:
        raise OutcomeUnknown("the answer is not about this payment")
    amount: tuple[int, str] | None = (expected.amount, expected.currency)
    if "amount" in answer:
        amount = read_amount(answer["amount"])
    if amount is None or (result == "Authorised" and reference is None):
        raise OutcomeUnknown("the answer lacks what a charge has")
    status: ChargeStatus = "processing"
    url = decline = None
    if result == "Authorised":
        status = "captured" if expected.capture else "authorized"
    elif result in DECLINED:
        status, decline = "declined", _decline(result, answer.get("refusalReasonCode"))
    elif result == "RedirectShopper":
        url = _page(answer.get("action"))
        status = "processing" if url is None else "requires_action"
    decided = status in ("captured", "authorized", "declined")
    return Charge(
        reference=reference if decided and reference else expected.reference,
        status=status,
        amount=amount[0],
        currency=amount[1],
        amount_captured=amount[0] if status == "captured" else 0,
        redirect_url=url,
        decline=decline,
        replaces=expected.reference if decided and reference else None,
    )


def text(found: Mapping[str, Any], name: str) -> str | None:
    """A field that is a text with something in it, or None."""
    value = found.get(name)
    return value if isinstance(value, str) and value else None


def _decline(result: str, code: object) -> Decline:
    raw = code if isinstance(code, str) and CODE.fullmatch(code) else None
    return Decline(normalize_decline_code(ADYEN, raw) if raw in ADYEN else DECLINED[result], raw)


def _page(action: object) -> str | None:
    """The page to send the shopper to; None for an action that is more than a link."""
    if not isinstance(action, Mapping):
        return None
    if action.get("type") != "redirect" or action.get("method") != "GET":
        return None
    url = text(action, "url")
    return url if url is not None and url.startswith(("https://", "http://")) else None


def _loggable(word: object) -> str:
    return word if isinstance(word, str) and CODE.fullmatch(word) else "none"
