"""Bodies that save payment methods, and what came of them."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import httpx

from tests.support.clients import fields
from tests.support.factories import card

SHAPE = {
    *("id", "user_id", "payment_type", "gateway", "details", "is_active", "is_default"),
    *("created_at", "updated_at"),
}


MASTERCARD = "5555555555554444"


AMEX = "378282246310005"


IBAN = "DE89370400440532013000"


def by(**changes: Any) -> dict[str, Any]:
    """A card's details with changes; None removes a field."""
    details = card()["details"] | changes
    return {name: value for name, value in details.items() if value is not None}


def paypal(email: str = "alice@example.com", **changes: Any) -> dict[str, Any]:
    return {"payment_type": "paypal", "details": {"email": email}} | changes


def bank(iban: str = IBAN, holder: str = "Alice Example", **changes: Any) -> dict[str, Any]:
    details = {"iban": iban, "account_holder": holder}
    return {"payment_type": "bank_account", "details": details} | changes


def token(value: str = "tok_success", **changes: Any) -> dict[str, Any]:
    return {"payment_type": "card", "gateway": "sandbox", "details": {"token": value}} | changes


def save(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    answer = client.post("/payment-methods", json=body)
    assert answer.status_code == 201, answer.text
    method: dict[str, Any] = answer.json()
    assert method.keys() == SHAPE
    return method


def refused(client: httpx.Client, body: dict[str, Any]) -> set[str]:
    """The fields for which a body is refused."""
    return fields(client.post("/payment-methods", json=body))


# --- Expiry and CVC ---------------------------------------------------------------------------


def month_from_now(months: int) -> dict[str, int]:
    today = datetime.now(timezone.utc)
    years, month = divmod(today.month - 1 + months, 12)
    return {"exp_month": month + 1, "exp_year": today.year + years}
