"""What gateways tell of payment methods."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from conformance.harness import Harness, ok, together
from tests.support.database import records
from tests.support.gateway_events import (
    paypal_double,
    sent,
    stripe_double,
    taken,
    tell_stripe,
)

# Methods ----------------------------------------------------------------------------------------


def save(harness: Harness, client: httpx.Client, kind: str = "good") -> tuple[dict[str, Any], str]:
    """A saved method, and the gateway's token of it."""
    body = harness.target.method(kind)  # type: ignore[arg-type]
    method = ok(harness.post(client, "/payment-methods", **body), 201)
    return method, body["details"]["token"]


def shown(client: httpx.Client, method: dict[str, Any]) -> dict[str, Any] | None:
    answer = client.get(f"/payment-methods/{method['id']}")
    return None if answer.status_code == 404 else dict(ok(answer, 200))


def method_events(harness: Harness, method: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What was told of a method after it was created, and by whom."""
    rows = records(
        harness.engine,
        "SELECT type, actor, data FROM events WHERE type LIKE 'payment_method.%'"
        " AND type <> 'payment_method.created' AND (data->>'id')::bigint = :id ORDER BY id",
        id=method["id"],
    )
    assert all(row["actor"] == {"type": "gateway", "id": harness.gateway} for row in rows)
    return [(row["type"], row["data"]) for row in rows]


NEW_CARD = {"brand": "mastercard", "last4": "0077", "exp_month": 3, "exp_year": 2041}


def test_a_card_that_the_bank_replaced_is_shown_as_the_new_one(stripe: Harness) -> None:
    client = stripe.shopper()
    method, token = save(stripe, client)
    stripe_double(stripe).replace_card(token, **NEW_CARD)
    stripe.until(lambda: bool(method_events(stripe, method)), "the change is told")
    after = shown(client, method)
    assert after is not None
    assert after["details"] == {**method["details"], **NEW_CARD}
    assert {**after, "details": 0, "updated_at": 0} == {**method, "details": 0, "updated_at": 0}
    ((kind, told),) = method_events(stripe, method)
    assert kind == "payment_method.updated"
    assert told["details"] == after["details"]


def test_an_older_change_of_a_card_that_is_told_again_changes_nothing(stripe: Harness) -> None:
    client = stripe.shopper()
    method, token = save(stripe, client)
    double = stripe_double(stripe)
    double.replace_card(token, last4="1111")
    stripe.until(lambda: len(method_events(stripe, method)) == 1, "the first change is told")
    first = sent(stripe, "payment_method.automatically_updated", token)
    double.replace_card(token, last4="2222")
    stripe.until(lambda: len(method_events(stripe, method)) == 2, "the second change is told")
    assert [a.status_code for a in together(5, lambda _: stripe.relay.post(first))] == [200] * 5
    after = shown(client, method)
    assert after is not None
    assert after["details"]["last4"] == "2222"
    assert len(method_events(stripe, method)) == 2


def test_a_change_that_changes_nothing_is_not_told(stripe: Harness) -> None:
    client = stripe.shopper()
    method, token = save(stripe, client)
    double = stripe_double(stripe)
    with double.lock:
        same = json.loads(json.dumps(double.methods[token]))
    taken(stripe, tell_stripe(stripe, "payment_method.automatically_updated", same))
    assert method_events(stripe, method) == []


def test_a_detached_card_is_gone_and_another_one_becomes_the_default(stripe: Harness) -> None:
    client = stripe.shopper()
    first, token = save(stripe, client)
    second, _ = save(stripe, client, "good_too")
    assert (first["is_default"], second["is_default"]) == (True, False)
    stripe_double(stripe).detach(token)
    stripe.until(lambda: shown(client, first) is None, "the card is gone")
    (left,) = ok(client.get("/payment-methods"), 200)
    assert (left["id"], left["is_default"]) == (second["id"], True)
    event = sent(stripe, "payment_method.detached", token)
    assert {a.status_code for a in together(10, lambda _: stripe.relay.post(event))} == {200}
    assert [kind for kind, _ in method_events(stripe, first)] == ["payment_method.deleted"]
    ((kind, told),) = method_events(stripe, second)
    assert (kind, told["is_default"]) == ("payment_method.updated", True)
    order = stripe.place(client)
    assert ok(stripe.pay(client, order), 201)["payment_method_id"] == second["id"]


def test_a_detached_card_that_is_not_the_default_leaves_the_default(stripe: Harness) -> None:
    client = stripe.shopper()
    first, _ = save(stripe, client)
    second, token = save(stripe, client, "good_too")
    stripe_double(stripe).detach(token)
    stripe.until(lambda: shown(client, second) is None, "the card is gone")
    (left,) = ok(client.get("/payment-methods"), 200)
    assert (left["id"], left["is_default"]) == (first["id"], True)
    assert method_events(stripe, first) == []


def test_a_method_event_is_about_the_methods_of_its_own_gateway_only(stripe: Harness) -> None:
    client = stripe.shopper()
    method, token = save(stripe, client)
    records(
        stripe.engine,
        "UPDATE payment_methods SET gateway = 'paypal' WHERE id = :id",
        id=method["id"],
    )
    stripe_double(stripe).detach(token)
    event = sent(stripe, "payment_method.detached", token)
    taken(stripe, event)  # surely processed now, whichever came first
    assert shown(client, method) is not None


@pytest.mark.parametrize(
    "kind", ["payment_method.detached", "payment_method.automatically_updated"]
)
def test_a_card_that_nobody_saved_here_changes_nothing(stripe: Harness, kind: str) -> None:
    client = stripe.shopper()
    method, _ = save(stripe, client)
    before = shown(client, method)
    foreign = stripe_double(stripe).method("good")
    assert foreign is not None
    with stripe_double(stripe).lock:
        found = dict(stripe_double(stripe).methods[foreign["details"]["token"]])
    taken(stripe, tell_stripe(stripe, kind, found))
    assert shown(client, method) == before


def test_a_vault_token_that_the_payer_deleted_is_gone(paypal: Harness) -> None:
    client = paypal.shopper()
    method, token = save(paypal, client)
    other, _ = save(paypal, client, "good_too")
    paypal_double(paypal).delete_vault_token(token)
    paypal.until(lambda: shown(client, method) is None, "the method is gone")
    taken(paypal, sent(paypal, "VAULT.PAYMENT-TOKEN.DELETED", token))
    (left,) = ok(client.get("/payment-methods"), 200)
    assert (left["id"], left["is_default"]) == (other["id"], True)
    assert [kind for kind, _ in method_events(paypal, method)] == ["payment_method.deleted"]
    assert [kind for kind, _ in method_events(paypal, other)] == ["payment_method.updated"]
