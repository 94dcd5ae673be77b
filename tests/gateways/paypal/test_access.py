"""Access tokens and settings."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from config import ConfigurationError
from conformance.doubles.paypal import PaypalDouble
from conformance.doubles.server import Answer
from gateways.base import (
    NotExecuted,
    RetryLater,
)
from gateways.paypal import PayPalGateway
from tests.support.paypal import HTML, Canned, a_charge, built, error, order

# The access token -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(401, {"error": "invalid_client"}), NotExecuted),
        (Answer(400, {"error": "unsupported_grant_type"}), NotExecuted),
        (Answer(429, {}), RetryLater),
        (Answer(500, {}), RetryLater),
        (HTML, RetryLater),
        (Answer(200, {}), RetryLater),
        (Answer(200, {"access_token": "a\nb", "expires_in": 9000}), RetryLater),
        (Answer(200, {"access_token": 5, "expires_in": 9000}), RetryLater),
    ],
)
def test_without_an_access_token_surely_nothing_was_done(
    newcomer: PayPalGateway, canned: Canned, answer: Answer, expected: type[Exception]
) -> None:
    canned.token = answer
    canned.answers = [Answer(500)]
    with pytest.raises(expected):
        newcomer.charge(a_charge())
    assert canned.asked("/v2/checkout/orders") == 0


def test_an_access_token_is_fetched_once_for_all_threads(
    newcomer: PayPalGateway, canned: Canned
) -> None:
    canned.answers = [Answer(201, order("PAYER_ACTION_REQUIRED"))]
    threads = [threading.Thread(target=newcomer.charge, args=(a_charge(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert canned.asked("/v2/checkout/orders") == 8
    assert canned.asked("/v1/oauth2/token") == 1


def test_an_access_token_that_soon_expires_is_not_used_twice(
    newcomer: PayPalGateway, canned: Canned
) -> None:
    canned.token = Answer(200, {"access_token": "t", "expires_in": 30})
    canned.answers = [Answer(201, order("PAYER_ACTION_REQUIRED"))]
    newcomer.charge(a_charge())
    newcomer.charge(a_charge())
    assert canned.asked("/v1/oauth2/token") == 2


def test_an_access_token_that_ended_early_is_replaced_once(
    paypal: PayPalGateway, double: PaypalDouble
) -> None:
    paypal.charge(a_charge())
    double.access_tokens.clear()
    assert paypal.charge(a_charge()).status == "requires_action"


def test_a_request_refused_at_the_door_twice_is_not_tried_again(
    newcomer: PayPalGateway, canned: Canned
) -> None:
    canned.answers = [error(401)]
    with pytest.raises(NotExecuted):
        newcomer.charge(a_charge())
    assert canned.asked("/v2/checkout/orders") == 2
    assert canned.asked("/v1/oauth2/token") == 2


# Settings ---------------------------------------------------------------------------------------


def test_missing_settings_are_named() -> None:
    with pytest.raises(ConfigurationError, match="PAYPAL_CLIENT_ID and PAYPAL_CLIENT_SECRET"):
        built({})
    with pytest.raises(ConfigurationError, match="needs PAYPAL_CLIENT_SECRET;"):
        built({"paypal_client_id": "id"})
    with pytest.raises(ConfigurationError, match="PAYPAL_CA_FILE"):
        built(
            {
                "paypal_client_id": "id",
                "paypal_client_secret": "secret",
                "paypal_ca_file": Path("/no/such/file"),
            }
        )


@pytest.mark.parametrize(
    ("environment", "base"),
    [
        ("production", "https://api-m.paypal.com"),
        ("development", "https://api-m.sandbox.paypal.com"),
    ],
)
def test_production_talks_to_the_live_api(environment: str, base: str) -> None:
    keys = {"paypal_client_id": "id", "paypal_client_secret": "secret", "paypal_webhook_id": "W"}
    gateway = built({**keys, "environment": environment})
    assert str(gateway.client.transport._client.base_url).rstrip("/") == base
    gateway.close()
