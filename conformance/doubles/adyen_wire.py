"""What Adyen's requests, answers and notifications look like on the wire, for its double."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from typing import Any

from conformance.doubles.server import Answer

API_KEY = "AQE-test-key-of-the-double"
MERCHANT_ACCOUNT = "EStoreECOM"
HMAC_KEY = "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056"
FOREIGN_HMAC_KEY = "B8E4D3FCF2A1949DB515D6CFDCF4C44F82C2E5574C60A10F999F93E76300E4F2"

# https://docs.adyen.com/development-resources/currency-codes, written out on purpose: the
# adapter's own table is what this one checks.
NO_DECIMALS = {
    "CVE",
    "DJF",
    "GNF",
    "IDR",
    "JPY",
    "KMF",
    "KRW",
    "PYG",
    "RWF",
    "UGX",
    "VND",
    "VUV",
    "XAF",
    "XOF",
    "XPF",
}
THREE_DECIMALS = {"BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"}

AMOUNT_FIELDS = {"currency", "value"}

# kind -> brand, last four digits, holder, and the refusal that it stands for
CARDS: dict[str, tuple[str, str, str, tuple[str, str] | None]] = {
    "good": ("visa", "1111", "Ada Lovelace", None),
    "good_too": ("mc", "4444", "Ada Lovelace", None),
    "declined": ("visa", "0002", "DECLINED", ("2", "Refused")),
    "insufficient": ("visa", "9995", "NOT_ENOUGH_BALANCE", ("12", "Not enough balance")),
    "action": ("visa", "1142", "Ada Lovelace", None),
}


class Violation(Exception):
    """The request is refused, and should not have been made."""


def signed_body(item: dict[str, Any], key: str = HMAC_KEY) -> bytes:
    """A notification of one item as Adyen sends it. Its signature is put into the item."""
    item.setdefault("additionalData", {})["hmacSignature"] = signature(item, key)
    return json.dumps(
        {"live": "false", "notificationItems": [{"NotificationRequestItem": item}]}
    ).encode()


def signature(item: Mapping[str, Any], key: str = HMAC_KEY) -> str:
    """https://docs.adyen.com/development-resources/webhooks/verify-hmac-signatures"""
    signed = ":".join(
        str(part)
        for part in (
            item["pspReference"],
            item.get("originalReference", ""),
            item["merchantAccountCode"],
            item["merchantReference"],
            item["amount"]["value"],
            item["amount"]["currency"],
            item["eventCode"],
            item["success"],
        )
    )
    digest = hmac.new(bytes.fromhex(key), signed.encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


def refusal(status: int, code: str, kind: str) -> Answer:
    body = {
        "status": status,
        "errorCode": code,
        "errorType": kind,
        "message": "No.",
        "pspReference": new_reference(),
    }
    return Answer(status, body)


def new_reference() -> str:
    return "".join(secrets.choice("BCDFGHJKLMNPQRSTVWXZ23456789") for _ in range(16))


def require(fact: bool, violation: str) -> None:
    if not fact:
        raise Violation(violation)


def read_amount(body: Mapping[str, Any]) -> tuple[int, str]:
    amount = body.get("amount")
    require(isinstance(amount, dict) and set(amount) == AMOUNT_FIELDS, "no amount")
    assert isinstance(amount, dict)
    value, currency = amount["value"], amount["currency"]
    require(type(value) is int and value > 0, "no amount in whole minor units")
    require(isinstance(currency, str) and len(currency) == 3 and currency.isupper(), "no currency")
    return value, currency


def stored_card(token: str, kind: str) -> dict[str, Any]:
    brand, last_four, holder, _ = CARDS[kind]
    return {
        "id": token,
        "type": "scheme",
        "brand": brand,
        "name": brand.upper(),
        "lastFour": last_four,
        "expiryMonth": "03",
        "expiryYear": "2030",
        "holderName": holder,
        "networkTxReference": "MCC123456789012",
        "supportedRecurringProcessingModels": ["CardOnFile", "UnscheduledCardOnFile"],
    }
