"""Test cards and tokens, and the outcome of each.

A card number is exchanged for a token, which holds the outcome. The number is not stored.
"""

import secrets
from datetime import datetime, timezone
from typing import Final

from gateways.base import MethodInvalid, MethodRequest, SavedMethod

# Test card -> outcome, with Stripe's test numbers. Every other valid number succeeds.
TEST_CARDS: Final[dict[str, str]] = {
    "4242424242424242": "success",
    "4000000000000002": "generic_decline",
    "4000000000009995": "insufficient_funds",
    "4000000000000069": "expired_card",
    "4000000000000127": "incorrect_cvc",
    "4000000000000119": "processing_error",
    "4100000000000019": "fraudulent",
    "4000002760003184": "requires_action",
    "4000000000000259": "dispute",
    "4000000000005126": "refund_fails",
}
OUTCOMES: Final = {outcome: number for number, outcome in TEST_CARDS.items()}
DECLINES: Final = frozenset(
    {
        "generic_decline",
        "insufficient_funds",
        "expired_card",
        "incorrect_cvc",
        "processing_error",
        "fraudulent",
    }
)


def save_method(request: MethodRequest) -> SavedMethod:
    """Tokens are stateless: `tok_<outcome>`, or `tok_<outcome>_<random>` for a number."""
    if request.payment_type != "card":
        shown = dict(request.details) or {"email": "s***@sandbox.example"}  # saved by a vault token
        return SavedMethod(f"tok_success_{secrets.token_hex(8)}", shown, request.token)
    if request.card_number is not None:
        outcome = TEST_CARDS.get(request.card_number, "success")
        return SavedMethod(f"tok_{outcome}_{secrets.token_hex(8)}", dict(request.details))
    outcome = (request.token or "").removeprefix("tok_")
    if request.token != f"tok_{outcome}" or outcome not in OUTCOMES:
        raise MethodInvalid(
            "details.token",
            "token_unknown",
            "The sandbox knows the tokens " + ", ".join(f"tok_{name}" for name in OUTCOMES),
        )
    details = {
        "brand": "visa",
        "last4": OUTCOMES[outcome][-4:],
        "exp_month": 12,
        "exp_year": datetime.now(timezone.utc).year + 3,
        "cardholder_name": None,
    }
    return SavedMethod(f"tok_{outcome}", details, identity=f"tok_{outcome}")


def outcome_of(token: str) -> str:
    """The outcome of a token; empty for one that names none, which succeeds."""
    name = token.removeprefix("tok_")
    return next((known for known in OUTCOMES if name == known or name.startswith(f"{known}_")), "")
