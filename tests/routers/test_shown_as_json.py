"""What PostgreSQL writes as JSON is what the documented resource would be, to the last field."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

import schemas
from tests.support.shop import DECLINED, DISPUTED, Shop, until

READS: dict[str, tuple[type[BaseModel], str]] = {
    "order": (schemas.Order, "/orders/{order}"),
    "orders": (schemas.Order, "/orders"),
    "events": (schemas.Event, "/orders/{order}/events"),
    "payment": (schemas.Payment, "/payments/{payment}"),
    "payments": (schemas.Payment, "/payments"),
    "declined": (schemas.Payment, "/payments/{declined}"),
    "refund": (schemas.Refund, "/payments/{payment}/refunds/{refund}"),
    "refunds": (schemas.Refund, "/payments/{payment}/refunds"),
    "methods": (schemas.PaymentMethod, "/payment-methods"),
    "dispute": (schemas.DisputeDetails, "/disputes/{dispute}"),
    "disputes": (schemas.DisputeDetails, "/disputes"),
}


@pytest.fixture
def ids(shop: Shop) -> dict[str, Any]:
    paid = shop.paid()
    refund = shop.do(paid, "refunds", amount=100, reason="ein Stück kam zurück").json()
    order = shop.place()
    assert shop.try_pay(order, DECLINED).status_code == 402
    declined = shop.shopper.get(f"/orders/{order}/payments").json()[0]
    query = {"payment_id": shop.paid(number=DISPUTED)["id"]}
    (dispute,) = until(lambda: shop.manager.get("/disputes", params=query).json(), "the dispute")
    return {
        "order": paid["order_id"],
        "payment": paid["id"],
        "refund": refund["id"],
        "declined": declined["id"],
        "dispute": dispute["id"],
    }


@pytest.mark.parametrize("name", READS)
def test_a_resource_is_shown_as_its_document_says(
    shop: Shop, ids: dict[str, Any], name: str
) -> None:
    resource, path = READS[name]
    client = shop.manager if "dispute" in name else shop.shopper
    answer = client.get(path.format(**ids)).json()
    shown = answer if isinstance(answer, list) else [answer]
    assert shown
    for one in shown:
        as_documented = resource.model_validate(one, by_name=True, by_alias=False)
        assert as_documented.model_dump(mode="json") == one
