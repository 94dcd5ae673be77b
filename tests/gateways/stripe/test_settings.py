"""Settings and secrets."""

from __future__ import annotations

import logging

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from config import ConfigurationError, Settings
from conformance.doubles.stripe import (
    API_KEY,
    CARDS,
    StripeDouble,
)
from gateways.base import (
    Refused,
)
from gateways.stripe import StripeGateway
from tests.support.stripe import (
    charge_request,
    pay,
)
from tests.support.stripe_answers import by_number

# Secrets ----------------------------------------------------------------------------------------


def test_nothing_that_must_not_be_kept_is_logged(
    gateway: StripeGateway, double: StripeDouble, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        gateway.save_method(by_number(CARDS["good"].number))
        pay(gateway, double, "declined")
        with pytest.raises(Refused) as caught:
            gateway.charge(charge_request())
    assert "stripe" not in {record.name.partition(".")[0] for record in caplog.records}
    for hidden in ("4242424242424242", API_KEY, "pm_any", "secret"):
        assert hidden not in caplog.text + str(caught.value) + repr(gateway)


# Settings ---------------------------------------------------------------------------------------


def test_the_gateway_is_built_from_the_settings(double: StripeDouble) -> None:
    settings = Settings(_env_file=None, **double.settings())
    gateway = StripeGateway.build(settings, sa.create_engine("sqlite://"))
    assert not gateway.capabilities.card_numbers
    assert gateway.capabilities.payment_types == {"card"}
    _, charge = pay(gateway, double)
    assert charge.status == "captured"
    gateway.close()


@pytest.mark.parametrize("missing", ["stripe_api_key", "stripe_webhook_secret"])
@pytest.mark.parametrize("value", [None, SecretStr("")])
def test_a_setting_that_is_missing_is_named(missing: str, value: SecretStr | None) -> None:
    given = {"stripe_api_key": SecretStr("sk_1"), "stripe_webhook_secret": SecretStr("whsec_1")}
    settings = Settings(_env_file=None).model_copy(update={**given, missing: value})
    with pytest.raises(ConfigurationError) as caught:
        StripeGateway.check(settings)
    assert missing.upper() in str(caught.value)
    assert "_1" not in str(caught.value)


def test_a_loud_sdk_is_refused(double: StripeDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIPE_LOG", "debug")
    settings = Settings(_env_file=None, **double.settings())
    with pytest.raises(ConfigurationError, match="STRIPE_LOG"):
        StripeGateway.check(settings)
