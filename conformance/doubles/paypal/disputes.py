"""Customer disputes at the double: opened by a buyer, closed by PayPal, shown and listed."""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta, timezone
from typing import Any

from conformance.doubles.paypal.account import Fail, One, find, link, money_of, time_of
from conformance.doubles.paypal.orders import Orders

LIST_QUERY = {"update_time_after", "page_size", "next_page_token"}
# A list shows no more of a dispute than this; above all not which payment it is about.
SUMMARY = ("dispute_id", "reason", "status", "dispute_amount", "create_time", "update_time")
ANSWER_DAYS = 10  # until when the merchant has to answer


class Disputes(Orders):
    """Disputes about captured orders."""

    def dispute(self, reference: str) -> str:
        with self.lock:
            capture, now = self._captured(reference), datetime.now(timezone.utc)
            dispute_id = f"PP-D-{secrets.randbelow(10**9):09}"
            dispute: One = {
                "dispute_id": dispute_id,
                "status": "OPEN",
                "reason": "MERCHANDISE_OR_SERVICE_NOT_RECEIVED",
                "create_time": time_of(now),
                "update_time": time_of(now),
                "seller_response_due_date": time_of(now + timedelta(days=ANSWER_DAYS)),
                "dispute_amount": money_of(capture["amount"], capture["currency"]),
                "disputed_transactions": [{"seller_transaction_id": capture["id"]}],
            }
            self.disputes[dispute_id] = dispute
            self._send("CUSTOMER.DISPUTE.CREATED", "dispute", dispute)
            return dispute_id

    def close_dispute(self, dispute_id: str, *, won: bool) -> None:
        with self.lock:
            dispute = self.disputes[dispute_id]
            code = "RESOLVED_SELLER_FAVOUR" if won else "RESOLVED_BUYER_FAVOUR"
            dispute.update(
                status="RESOLVED",
                dispute_outcome={"outcome_code": code},
                update_time=time_of(datetime.now(timezone.utc)),
            )
            self._send("CUSTOMER.DISPUTE.RESOLVED", "dispute", dispute)

    def _get_dispute(self, dispute_id: str) -> One:
        return find(self.disputes, dispute_id)

    def _list_disputes(self, query: dict[str, str]) -> dict[str, Any]:
        """Latest first. The token of the next page is how many there were before it."""
        size, after = int(query.get("page_size", 10)), query.get("update_time_after", "")
        if not set(query) <= LIST_QUERY or not 1 <= size <= 50:
            self.violations.append(f"list_disputes: {query}")
            raise Fail(400, "INVALID_PARAMETER_VALUE")
        found = [
            {name: one[name] for name in SUMMARY}
            for one in reversed(self.disputes.values())
            if one["update_time"] >= after.replace(".000Z", "Z")
        ]
        start = int(query.get("next_page_token", 0))
        links = [link(self.base_url, "/v1/customer/disputes", "self")]
        if start + size < len(found):
            more = f"update_time_after={after}&page_size={size}&next_page_token={start + size}"
            links.append(link(self.base_url, f"/v1/customer/disputes?{more}", "next"))
        return {"items": found[start : start + size], "links": links}
