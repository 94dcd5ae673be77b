"""Saves payment methods: an email address alone, or the token of an account in PayPal's vault.

https://developer.paypal.com/docs/api/payment-tokens/v3/
"""

import re
from collections.abc import Mapping
from typing import Final

from domain.declines import PAYPAL, normalize_decline_code
from domain.masking import mask_email
from gateways.base import MethodDeclined, MethodInvalid, MethodRequest, OutcomeUnknown, SavedMethod
from gateways.paypal.client import Client, NotFound, Rejected
from gateways.paypal.states import DECLINES, Object, plain_id

TOKENS: Final = "/v3/vault/payment-tokens"
SETUP_TOKEN: Final = re.compile(r"[0-9A-Z_-]{1,36}")  # as PayPal's specification has it

# The token of a method that is an email address: the payer approves each payment on a page.
REDIRECT: Final = "redirect"


def save(client: Client, request: MethodRequest) -> SavedMethod:
    """Raises MethodDeclined, MethodInvalid, NotExecuted or OutcomeUnknown."""
    if request.token is None:
        if request.email is None:
            raise MethodInvalid(
                "details", "token_unknown", "Send an email address or a PayPal vault token."
            )
        return SavedMethod(REDIRECT, dict(request.details))
    if plain_id(request.token) is None:
        raise _token_unknown()
    try:
        answer = client.get(f"{TOKENS}/{request.token}")
    except (NotFound, Rejected):
        if not SETUP_TOKEN.fullmatch(request.token):
            raise _token_unknown() from None
        answer = _exchange_setup_token(client, request.token)
    return _saved_method(answer)


def is_gone(client: Client, token: str) -> bool:
    """Whether PayPal has deleted the token. Raises NotExecuted or OutcomeUnknown."""
    return client.find(f"{TOKENS}/{token}") is None


def _exchange_setup_token(client: Client, token: str) -> Object:
    """Exchange a setup token that the payer has approved for a payment token."""
    source = {"token": {"id": token, "type": "SETUP_TOKEN"}}
    try:
        # The same token twice is the same request: the second answer repeats the first.
        return client.post(TOKENS, {"payment_source": source}, key=f"vault-{token}")
    except Rejected as refusal:
        if refusal.issue in DECLINES:
            raise MethodDeclined(normalize_decline_code(PAYPAL, refusal.issue)) from None
        raise _token_unknown() from None
    except NotFound:
        raise _token_unknown() from None


def _saved_method(answer: Object) -> SavedMethod:
    """Raises MethodInvalid for a card in the vault, OutcomeUnknown for an invalid answer."""
    token, source = plain_id(answer.get("id")), answer.get("payment_source")
    if token is None or not isinstance(source, Mapping):
        raise OutcomeUnknown("an answer without a payment token")
    wallet = source.get("paypal")
    if not isinstance(wallet, Mapping):
        raise MethodInvalid(
            "details.token", "token_unknown", "The token is not of a PayPal account."
        )
    email, customer = wallet.get("email_address"), answer.get("customer")
    return SavedMethod(
        token,
        details={"email": mask_email(email)} if isinstance(email, str) else {},
        identity=plain_id(wallet.get("account_id")) or plain_id(wallet.get("payer_id")) or token,
        customer=plain_id(customer.get("id")) if isinstance(customer, Mapping) else None,
    )


def _token_unknown() -> MethodInvalid:
    return MethodInvalid(
        "details.token",
        "token_unknown",
        "Send a PayPal vault token, or a setup token that its payer has approved.",
    )
