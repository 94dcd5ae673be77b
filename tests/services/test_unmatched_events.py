"""Events that come while the reference by which they name their payment is being written down."""

from __future__ import annotations

import secrets
from typing import Any

import pytest

import crud
from gateways.sandbox import SandboxGateway
from tests.support.shop import Shop, problem, seen, tell, unreachable, until, webhook

pytestmark = pytest.mark.usefixtures("invariants_hold")


def test_an_event_whose_payment_is_found_too_late_is_sent_again(
    shop: Shop, sandbox: SandboxGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its payment was looked for before the answer of the charge was written down, and what waits
    for its reference after that. Nobody would ever send it again."""
    with unreachable(sandbox):
        answer = shop.try_pay(shop.place(), headers={"Sandbox-Fault": "timeout_after_charge"})
        assert answer.status_code == 202
        payment = answer.json()
        (entry,) = shop.books(payment["order_id"])
        known = payment | {"gateway_reference": entry["reference"]}
        refund = {"reference": f"re_{secrets.token_hex(8)}", "status": "succeeded"}
        body, headers = webhook(
            shop.engine,
            {
                "id": f"evt_{secrets.token_hex(8)}",
                "type": "refund.succeeded",
                "payment_id": None,
                "reference": entry["reference"],
                "refund": refund | {"amount": 100, "currency": "USD"},
                "refund_id": None,
            },
        )
        has_unreferenced = crud.has_unreferenced_payment

        def settled_meanwhile(*arguments: Any) -> bool:
            tell(shop.engine, payment, seen(known, "captured", payment["amount"]))
            return has_unreferenced(*arguments)

        monkeypatch.setattr(crud, "has_unreferenced_payment", settled_meanwhile)
        refused = shop.manager.post("/webhooks/sandbox", content=body, headers=headers)
        assert problem(refused) == (409, "payment_in_progress")
    until(lambda: shop.status(payment) == ("captured", "paid"), "it is settled")
