"""The first paid order."""

import httpx

from tests.support.factories import pay, place_order, save_card


def test_a_saved_card_pays_an_order(alice: httpx.Client) -> None:
    method = save_card(alice)
    order = place_order(alice, payment_method_id=method["id"])
    payment = pay(alice, order["id"])
    assert payment["status"] == "captured"
    assert payment["amount_captured"] == order["total_amount"]
    assert alice.get(f"/orders/{order['id']}").json()["status"] == "paid"
