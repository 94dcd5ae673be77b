"""Decline codes: ours, and the tables that translate each gateway's.

The gateway's own code is kept beside ours for operators, and never shown to shoppers: whoever holds
a stolen card must not learn that it was reported (Stripe says so, too).
"""

from collections.abc import Mapping
from typing import Final

# What a shopper may be shown. Any other code of a gateway becomes `generic_decline`.
DECLINE_MESSAGES: Final[dict[str, str]] = {
    "generic_decline": "The card was declined.",
    "insufficient_funds": "The account has insufficient funds.",
    "expired_card": "The card has expired.",
    "incorrect_cvc": "The card's security code is incorrect.",
    "incorrect_number": "The card number is incorrect.",
    "processing_error": "The issuer could not process the card; it is worth another try.",
    "try_again_later": "The issuer could not be asked; it is worth another try later.",
    "fraudulent": "The payment was refused as suspicious.",
    "authentication_failed": "The shopper did not approve the payment.",
    "authentication_required": "The shopper has to be there to approve this payment.",
    "not_supported": "The card does not allow this kind of payment.",
    "limit_exceeded": "The payment is over a limit of the card or the account.",
}

# The very same payment may succeed later. The others need another method, or the shopper.
RETRYABLE_DECLINES: Final = frozenset({"processing_error", "try_again_later"})

# https://docs.stripe.com/declines/codes (`decline_code`, else the error's `code`)
STRIPE: Final[Mapping[str, str]] = {
    "approve_with_id": "try_again_later",
    "authentication_not_handled": "authentication_required",
    "authentication_required": "authentication_required",
    "card_not_supported": "not_supported",
    "card_velocity_exceeded": "limit_exceeded",
    "currency_not_supported": "not_supported",
    "expired_card": "expired_card",
    "fraudulent": "fraudulent",
    "incorrect_cvc": "incorrect_cvc",
    "incorrect_number": "incorrect_number",
    "insufficient_funds": "insufficient_funds",
    "invalid_cvc": "incorrect_cvc",
    "invalid_expiry_month": "expired_card",
    "invalid_expiry_year": "expired_card",
    "invalid_number": "incorrect_number",
    "issuer_not_available": "try_again_later",
    "merchant_blacklist": "fraudulent",
    "offline_pin_required": "authentication_required",
    "online_or_offline_pin_required": "authentication_required",
    "payment_intent_authentication_failure": "authentication_failed",
    "processing_error": "processing_error",
    "reenter_transaction": "processing_error",
    "setup_intent_authentication_failure": "authentication_failed",
    "transaction_not_allowed": "not_supported",
    "try_again_later": "try_again_later",
    "withdrawal_count_limit_exceeded": "limit_exceeded",
}

# `details[0].issue` of PayPal's errors, and `processor_response.response_code` of a capture:
# https://developer.paypal.com/api/rest/reference/orders/v2/errors/
PAYPAL: Final[Mapping[str, str]] = {
    "CARD_CLOSED": "generic_decline",
    "CARD_EXPIRED": "expired_card",
    "COMPLIANCE_VIOLATION": "fraudulent",
    "INSTRUMENT_DECLINED": "generic_decline",
    "MAX_NUMBER_OF_PAYMENT_ATTEMPTS_EXCEEDED": "limit_exceeded",
    "PAYER_ACCOUNT_LOCKED_OR_CLOSED": "generic_decline",
    "PAYER_ACCOUNT_RESTRICTED": "generic_decline",
    "PAYER_CANNOT_PAY": "generic_decline",
    "REDIRECT_PAYER_FOR_ALTERNATE_FUNDING": "authentication_required",
    "TRANSACTION_AMOUNT_EXCEEDS_MONTHLY_MAX_LIMIT": "limit_exceeded",
    "TRANSACTION_LIMIT_EXCEEDED": "limit_exceeded",
    "TRANSACTION_BLOCKED_BY_PAYEE": "fraudulent",
    "TRANSACTION_REFUSED": "generic_decline",
    "0500": "generic_decline",
    "1330": "incorrect_number",
    "5100": "generic_decline",
    "5110": "incorrect_cvc",
    "5120": "insufficient_funds",
    "5130": "authentication_failed",
    "5180": "incorrect_number",
    "5400": "expired_card",
    "9500": "fraudulent",
}

# `refusalReasonCode`: https://docs.adyen.com/development-resources/refusal-reasons/
ADYEN: Final[Mapping[str, str]] = {
    "4": "processing_error",
    "6": "expired_card",
    "8": "incorrect_number",
    "9": "try_again_later",
    "10": "not_supported",
    "11": "authentication_failed",
    "12": "insufficient_funds",
    "14": "fraudulent",
    "15": "authentication_failed",
    "16": "authentication_failed",
    "20": "fraudulent",
    "22": "fraudulent",
    "23": "not_supported",
    "24": "incorrect_cvc",
    "28": "limit_exceeded",
    "29": "limit_exceeded",
    "31": "fraudulent",
    "38": "authentication_required",
    "39": "authentication_failed",
    "42": "authentication_failed",
}


def normalize_decline_code(table: Mapping[str, str], raw: str | None) -> str:
    """Our code for a gateway's: "lost_card" of STRIPE is "generic_decline"."""
    return table.get(raw or "", "generic_decline")


def decline_message(decline_code: str) -> str:
    """The message of a decline code; the generic one for an unknown code."""
    return DECLINE_MESSAGES.get(decline_code, DECLINE_MESSAGES["generic_decline"])
