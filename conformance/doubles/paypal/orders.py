"""Orders v2 at the double, and its page where payers approve them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs, urlencode

from conformance.doubles.paypal.account import (
    VALID_DAYS,
    Fail,
    One,
    days,
    find,
    link,
    minor,
    money_of,
    new_id,
    time_of,
)
from conformance.doubles.paypal.payments import Payments
from conformance.doubles.server import Answer, BookEntry, Request

INTENTS = ("CAPTURE", "AUTHORIZE")
WAITS = ("CREATED", "PAYER_ACTION_REQUIRED")
LINKS = {"CREATED": "approve", "PAYER_ACTION_REQUIRED": "payer-action"}


class Orders(Payments):
    """Orders of one purchase unit."""

    # What a test does ---------------------------------------------------------------------------

    def approve(self, reference: str, *, yes: bool = True) -> None:
        """The payer on PayPal's page. A payer who cancels leaves the order as it is."""
        with self.lock:
            order = self.orders[reference]
            if not yes or order["status"] not in WAITS:
                return
            order["status"] = "APPROVED"
            self._send("CHECKOUT.ORDER.APPROVED", "checkout-order", self._order(order))

    def fund(self, reference: str, funding: str) -> None:
        """How the payment of an order ends that waits for its payer; see `vault_token`."""
        with self.lock:
            self.orders[reference]["funding"] = funding

    def forget(self, reference: str) -> None:
        """An order that nobody paid is gone after a few hours."""
        with self.lock:
            del self.orders[reference]

    def books(self) -> list[BookEntry]:
        """Every order that could be paid; one without a payment source holds no money."""
        with self.lock:
            return [self._book_entry(one) for one in self.orders.values() if one["custom_id"]]

    # By the API ---------------------------------------------------------------------------------

    def _payer_page(self, request: Request) -> Answer:
        """The payer approves at once, or cancels with `&cancel=1`."""
        query = parse_qs(request.query)
        order = self.orders.get(query.get("token", [""])[0])
        if order is None:
            return Answer(404, {})
        self.approve(order["id"], yes="cancel" not in query)
        if "cancel" in query:
            url, added = order["cancel_url"], {"token": order["id"]}
        else:
            url, added = order["return_url"], {"token": order["id"], "PayerID": "PAYERDOUBLE01"}
        url += ("&" if "?" in url else "?") + urlencode(added)
        return Answer(302, None, {"Location": url})

    def _create_order(self, body: dict[str, Any]) -> Callable[[], Any]:
        (unit,) = body["purchase_units"]
        amount, currency = self._amount(unit["amount"])
        if body["intent"] not in INTENTS:
            self.violations.append("create_order: intent")
            raise Fail(400, "INVALID_PARAMETER_VALUE")
        order = {
            "id": new_id(),
            "created": datetime.now(timezone.utc),
            "intent": body["intent"],
            "status": "CREATED",
            "amount": amount,
            "currency": currency,
            "unit": unit.get("reference_id", "default"),
            "custom_id": unit.get("custom_id"),
            "invoice_id": unit.get("invoice_id"),
            "funding": "COMPLETED",
        }
        if "payment_source" in body:
            self._custom_id(order["custom_id"])
            self._pay_by(order, body["payment_source"]["paypal"])
        self.orders[str(order["id"])] = order
        return lambda: self._order(order)

    def _pay_by(self, order: One, wallet: dict[str, Any]) -> None:
        context = wallet.get("experience_context", {})
        order["status"] = "PAYER_ACTION_REQUIRED"
        order["return_url"], order["cancel_url"] = (
            context.get(name) for name in ("return_url", "cancel_url")
        )
        if "vault_id" in wallet:
            token = self.vault.get(wallet["vault_id"])
            if token is None or token["card"]:
                raise Fail(422, "TOKEN_ID_NOT_FOUND")
            if token["funding"] != "PAYER_ACTION_REQUIRED":
                order["funding"] = token["funding"]
                self._pay(order)
        elif not (order["return_url"] and order["cancel_url"]):
            self.violations.append("create_order: no return_url or cancel_url")

    def _patch_order(self, changes: list[dict[str, Any]], order_id: str) -> None:
        order = find(self.orders, order_id)
        (change,) = changes
        if change.get("op") != "replace" or change.get("path") != "/intent":
            self.violations.append(f"patch_order: {change}")
            raise Fail(422, "NOT_PATCHABLE")
        if change.get("value") not in INTENTS:
            raise Fail(422, "UNSUPPORTED_INTENT")
        if order["status"] == "COMPLETED":
            raise Fail(422, "ORDER_ALREADY_COMPLETED")
        order["intent"], order["patched"] = change["value"], True

    def _capture_order(self, body: dict[str, Any], order_id: str) -> Callable[[], Any]:
        return self._complete_order(order_id, "CAPTURE", "ORDER_ALREADY_CAPTURED")

    def _authorize_order(self, body: dict[str, Any], order_id: str) -> Callable[[], Any]:
        return self._complete_order(order_id, "AUTHORIZE", "ORDER_ALREADY_AUTHORIZED")

    def _complete_order(self, order_id: str, intent: str, already: str) -> Callable[[], Any]:
        order = find(self.orders, order_id)
        if order["intent"] != intent:
            if "patched" not in order:
                self.violations.append("complete: not what the order is for")
            raise Fail(422, "ACTION_DOES_NOT_MATCH_INTENT")
        if order["status"] == "COMPLETED":
            raise Fail(422, already)
        if order["status"] != "APPROVED":
            raise Fail(422, "ORDER_NOT_APPROVED")
        self._pay(order)
        return lambda: self._order(order)

    def _pay(self, order: One) -> None:
        funding = order["funding"]
        if "_" in funding:  # an issue, such as INSTRUMENT_DECLINED
            raise Fail(422, funding)
        order["status"] = "COMPLETED"
        self.orders[order["id"]] = order
        if order["intent"] == "CAPTURE":
            self._new_capture(order, order["amount"])
        else:
            self._new_authorization(order, order["amount"])

    def _get_order(self, order_id: str) -> One:
        return self._order(find(self.orders, order_id))

    # What it says -------------------------------------------------------------------------------

    def _order(self, order: One) -> One:
        def of(objects: dict[str, One], show: Callable[[One], One]) -> list[One]:
            return [show(one) for one in objects.values() if one["order"] == order["id"]]

        payments = {
            "authorizations": of(self.authorizations, self._authorization),
            "captures": of(self.captures, self._capture),
            "refunds": of(self.refunds, self._refund),
        }
        unit = {
            "reference_id": order["unit"],
            "amount": money_of(order["amount"], order["currency"]),
            **{name: order[name] for name in ("custom_id", "invoice_id") if order[name]},
            "payments": {kind: found for kind, found in payments.items() if found},
        }
        links = [link(self.base_url, f"/v2/checkout/orders/{order['id']}", "self")]
        if order["status"] in LINKS:
            page = f"/checkoutnow?token={order['id']}"
            links.append(link(self.base_url, page, LINKS[order["status"]]))
        return {
            "id": order["id"],
            "intent": order["intent"],
            "status": order["status"],
            "create_time": time_of(order["created"]),
            "payment_source": {"paypal": {}},
            "purchase_units": [unit],
            "links": links,
        }

    def _book_entry(self, order: One) -> BookEntry:
        captures = [one for one in self.captures.values() if one["order"] == order["id"]]
        taken = [one for one in captures if one["status"] not in ("PENDING", "DECLINED")]
        authorizations = [
            one for one in self.authorizations.values() if one["order"] == order["id"]
        ]
        if taken:
            status = "captured"
        elif any(one["status"] == "PENDING" for one in (*captures, *authorizations)):
            status = "processing"
        elif any(one["status"] == "CREATED" and days(one) < VALID_DAYS for one in authorizations):
            status = "authorized"
        elif captures or any(one["status"] == "DENIED" for one in authorizations):
            status = "declined"
        elif authorizations:
            status = "voided"
        else:
            status = "requires_action"
        currency = order["currency"]
        refunded = sum((self._refunded(one, settled=True) for one in taken), Decimal(0))
        return BookEntry(
            reference=order["id"],
            payment_id=int(order["custom_id"]),
            amount=minor(order["amount"], currency),
            currency=currency,
            status=status,
            amount_captured=minor(sum((one["amount"] for one in taken), Decimal(0)), currency),
            amount_refunded=minor(refunded, currency),
        )
