"""What one merchant has at the double, and the small change of all its parts."""

from __future__ import annotations

import json
import re
import secrets
import uuid
import zlib
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

from conformance.doubles.paypal.signer import signer_named
from conformance.doubles.server import Answer, Double
from domain.money import rescale, unscale

WEBHOOK_ID = "WEBHOOKDOUBLE0001"
WITHOUT_DECIMALS = {"HUF", "JPY", "TWD"}
VALID_DAYS = 29

REASONS = {
    400: "INVALID_REQUEST",
    401: "AUTHENTICATION_FAILURE",
    403: "NOT_AUTHORIZED",
    404: "RESOURCE_NOT_FOUND",
    409: "RESOURCE_CONFLICT",
    422: "UNPROCESSABLE_ENTITY",
}

One = dict[str, Any]  # an order, a capture, a dispute …


class Fail(Exception):
    """An error as PayPal answers it."""

    def __init__(self, status: int, issue: str) -> None:
        self.status, self.issue = status, issue

    def answer(self) -> Answer:
        debug_id = secrets.token_hex(7)
        body = {
            "name": REASONS[self.status],
            "message": "The requested action could not be performed.",
            "debug_id": debug_id,
            "details": [{"issue": self.issue, "description": "See the issue."}],
            "links": [],
        }
        return Answer(self.status, body, {"Paypal-Debug-Id": debug_id})


class Account(Double):
    """One merchant's account. The certificate authority is written to `directory`."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self.orders: dict[str, One] = {}
        self.authorizations: dict[str, One] = {}
        self.captures: dict[str, One] = {}
        self.refunds: dict[str, One] = {}
        self.disputes: dict[str, One] = {}
        self.vault: dict[str, One] = {}
        self.setup_tokens: dict[str, One] = {}
        # What may be turned: how refunds end.
        self.refund_status = "COMPLETED"
        self.signer, self.foreign = signer_named("double"), signer_named("foreign")

    def pass_days(self, days: float) -> None:
        """Everything that is there becomes so much older."""
        with self.lock:
            for objects in (self.orders, self.authorizations, self.captures, self.refunds):
                for one in objects.values():
                    one["created"] -= timedelta(days=days)

    # Checks -------------------------------------------------------------------------------------

    def _amount(self, money: dict[str, Any]) -> tuple[Decimal, str]:
        value, currency = money["value"], money["currency_code"]
        decimals = "" if currency in WITHOUT_DECIMALS else r"(\.[0-9]{2})"
        if not re.fullmatch(rf"[0-9]{{1,15}}{decimals}", value):
            self.violations.append(f"amount: {value!r} {currency}")
            raise Fail(422, "DECIMAL_PRECISION")
        if Decimal(value) <= 0:
            raise Fail(422, "CANNOT_BE_ZERO_OR_NEGATIVE")
        return Decimal(value), currency

    def _custom_id(self, value: Any) -> str:
        if not (isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_.,-]{1,127}", value)):
            self.violations.append(f"custom_id: {value!r}")
            raise Fail(400, "INVALID_PARAMETER_SYNTAX")
        return value

    # Webhooks -----------------------------------------------------------------------------------

    def _send(self, event_type: str, resource_type: str, resource: dict[str, Any]) -> None:
        body = json.dumps(
            {
                "id": f"WH-{new_id()}-{new_id()}",
                "event_version": "1.0",
                "create_time": time_of(datetime.now(timezone.utc)),
                "event_type": event_type,
                "resource_type": resource_type,
                "resource": resource,
            }
        ).encode()
        self.send_webhook(self.sign(body), body)

    def sign(self, body: bytes) -> dict[str, str]:
        """The headers of a webhook with this body."""
        return self._signed(body, datetime.now(timezone.utc))

    def _signed(self, body: bytes, sent_at: datetime, *, foreign: bool = False) -> dict[str, str]:
        signer = self.foreign if foreign else self.signer
        transmission_id, time = str(uuid.uuid4()), time_of(sent_at)
        signed = f"{transmission_id}|{time}|{WEBHOOK_ID}|{zlib.crc32(body)}".encode()
        return {
            "content-type": "application/json",
            "paypal-auth-algo": "SHA256withRSA",
            "paypal-cert-url": f"{self.base_url}/certs/{'foreign' if foreign else 'double'}",
            "paypal-transmission-id": transmission_id,
            "paypal-transmission-time": time,
            "paypal-transmission-sig": signer.sign(signed),
        }


def money_of(amount: Decimal, currency: str) -> dict[str, str]:
    return {"currency_code": currency, "value": str(amount)}


def minor(amount: Decimal, currency: str) -> int:
    decimals = 0 if currency in WITHOUT_DECIMALS else 2
    found = unscale(int(amount.scaleb(decimals)), currency, decimals)
    assert found is not None
    return found


def major(amount: int, currency: str) -> Decimal:
    decimals = 0 if currency in WITHOUT_DECIMALS else 2
    found = rescale(amount, currency, decimals)
    assert found is not None
    return Decimal(found).scaleb(-decimals)


def link(base_url: str, path: str, rel: str) -> dict[str, str]:
    return {"href": base_url + path, "rel": rel, "method": "GET"}


def find(objects: dict[str, One], one: str) -> One:
    if one not in objects:
        raise Fail(404, "INVALID_RESOURCE_ID")
    return objects[one]


def new_id() -> str:
    return "".join(secrets.choice("ABCDEFGHJKLMNPQRSTUVWXYZ23456789") for _ in range(17))


def time_of(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def days(one: One) -> float:
    age: timedelta = datetime.now(timezone.utc) - one["created"]
    return age.total_seconds() / 86400
