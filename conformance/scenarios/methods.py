"""Payment methods: what is saved, what is refused, and what is shown of it."""

from __future__ import annotations

from conformance.harness import Harness, ok
from conformance.registry import scenario
from conformance.target import NotApplicable


@scenario
def a_saved_method_shows_what_the_gateway_knows_of_it(harness: Harness) -> None:
    client = harness.shopper()
    method = harness.save(client)
    assert method["gateway"] == harness.gateway
    if method["payment_type"] == "card":
        details = method["details"]
        assert len(details["last4"]) == 4
        assert details["brand"]
        assert 1 <= details["exp_month"] <= 12
        assert details["exp_year"] > 2025
    assert "token" not in method["details"]


@scenario
def the_same_method_is_not_saved_twice(harness: Harness) -> None:
    client = harness.shopper()
    body = harness.target.method("good")
    first = ok(harness.post(client, "/payment-methods", **body), 201)
    again = harness.post(client, "/payment-methods", **body)
    assert ok(again, 409)["payment_method_id"] == first["id"]
    ok(
        harness.post(harness.shopper(), "/payment-methods", **harness.target.method("good_too")),
        201,
    )


@scenario
def a_method_that_the_gateway_refuses_is_402_and_not_saved(harness: Harness) -> None:
    client = harness.shopper()
    answer = harness.post(client, "/payment-methods", **harness.target.method("refused"))
    assert ok(answer, 402)["code"] == "payment_method_declined"
    assert ok(client.get("/payment-methods"), 200) == []


@scenario
def a_token_that_the_gateway_does_not_know_is_400(harness: Harness) -> None:
    body = harness.target.method("good")
    if "token" not in body["details"]:
        raise NotApplicable("this gateway saves without tokens")
    client = harness.shopper()
    answer = harness.post(client, "/payment-methods", **body | {"details": {"token": "nonsense"}})
    problem = ok(answer, 400)
    assert problem["code"] == "invalid_request"
    assert problem["errors"][0]["field"] == "details.token"
    assert "nonsense" not in answer.text


@scenario
def a_card_number_goes_only_to_gateways_that_take_numbers(harness: Harness) -> None:
    gateway = harness.app.state.gateways.get(harness.gateway)
    if "card" not in gateway.capabilities.payment_types or gateway.capabilities.card_numbers:
        raise NotApplicable("this gateway takes numbers, or no cards at all")
    answer = harness.post(
        harness.shopper(),
        "/payment-methods",
        payment_type="card",
        details={"card_number": "4242424242424242", "exp_month": 12, "exp_year": 2040},
    )
    assert ok(answer, 400)["code"] == "card_number_not_accepted"
    assert "token" in answer.json()["detail"]
