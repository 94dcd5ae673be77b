"""Decline codes: the words we answer with, whichever gateway declined."""

from __future__ import annotations

from typing import Final

# What a shopper may be told. Everything a gateway says beyond these becomes `generic_decline`;
# its own word stays beside it in the payment's failure.
DECLINE_MESSAGES: Final[dict[str, str]] = {
    "generic_decline": "The card was declined.",
    "insufficient_funds": "The account has insufficient funds.",
    "expired_card": "The card has expired.",
    "incorrect_cvc": "The card's security code is incorrect.",
    "processing_error": "The issuer could not process the card; it is worth another try.",
    "fraudulent": "The payment was refused as suspicious.",
    "authentication_failed": "The shopper did not approve the payment.",
}


def decline_message(decline_code: str) -> str:
    """The sentence for a decline code; the generic one for a code we do not know."""
    return DECLINE_MESSAGES.get(decline_code, DECLINE_MESSAGES["generic_decline"])
