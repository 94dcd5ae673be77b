"""The routing table, and the gateways that GATEWAYS switches on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from config import ConfigurationError, Settings, load_settings
from gateways.base import Gateway
from gateways.registry import Gateways
from gateways.routing import read_routes
from gateways.sandbox import SandboxGateway
from services.lookups import LookupRules
from workers.roles import Resources, roles

TABLE = """
[[route]]
payment_type = "card"
currency = ["EUR", "SEK"]
country = "NL"
gateway = "adyen"

[[route]]
payment_type = ["card", "bank_account"]
currency = "JPY"
gateway = "stripe"

[[route]]
payment_type = "paypal"
gateway = "paypal"
"""
NAMES = ["sandbox", "stripe", "paypal", "adyen"]
STRIPE = {"stripe_api_key": "sk_test_1", "stripe_webhook_secret": "whsec_1"}
PAYPAL = {
    "paypal_client_id": "id",
    "paypal_client_secret": "secret",
    "paypal_webhook_id": "WH-1",
}
ADYEN = {
    "adyen_api_key": "key",
    "adyen_merchant_account": "Acme",
    "adyen_hmac_key": "00" * 32,
}


def settings(tmp_path: Path, **changes: Any) -> Settings:
    values = {"_env_file": None, "data_dir": tmp_path, **STRIPE, **PAYPAL, **ADYEN}
    return load_settings(**values | changes)


def gateways(tmp_path: Path, table: str | None = TABLE, **changes: Any) -> Gateways:
    if table is not None:
        (tmp_path / "routes.toml").write_text(table)
        changes.setdefault("routes", tmp_path / "routes.toml")
    changes.setdefault("gateways", ",".join(NAMES))
    engine = sa.create_engine("postgresql+psycopg2://nowhere/")  # nothing connects
    return Gateways.from_settings(settings(tmp_path, **changes), engine)


@pytest.mark.parametrize(
    ("payment_type", "currency", "country", "expected"),
    [
        ("card", "EUR", "NL", "adyen"),
        ("card", "SEK", "NL", "adyen"),
        ("card", "EUR", "DE", "sandbox"),  # no route fits: the first that takes cards
        ("card", "EUR", None, "sandbox"),  # a country that nobody told is none of a route's
        ("card", "JPY", "NL", "stripe"),
        ("paypal", "USD", None, "paypal"),
        # A route to a gateway that does not take the type is passed over.
        ("bank_account", "JPY", None, "sandbox"),
    ],
)
def test_the_first_route_that_fits_is_taken(
    tmp_path: Path, payment_type: Any, currency: str, country: str | None, expected: str
) -> None:
    table = gateways(tmp_path)
    try:
        chosen = table.choose(payment_type, currency, country)
        assert chosen is not None
        assert chosen.name == expected
    finally:
        table.close()


def test_without_a_table_the_first_gateway_that_takes_the_type_is_taken(tmp_path: Path) -> None:
    table = gateways(tmp_path, None, gateways="paypal,stripe")
    try:
        chosen = table.choose("card", "USD", None)
        assert chosen is not None
        assert chosen.name == "stripe"
        assert table.choose("bank_account", "USD", None) is None
    finally:
        table.close()


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("[[route]]\ngateway = ", "is not TOML"),
        ("[[route]]\ngateway = 'acme'", "route 1 leads to acme"),
        ("[[route]]\ncurrency = 'EUR'", "route 1 gateway"),
        ("[[route]]\ngateway = 'stripe'\ncurrency = 'euro'", "route 1 currency"),
        ("[[route]]\ngateway = 'stripe'\ncountry = 'Germany'", "route 1 country"),
        ("[[route]]\ngateway = 'stripe'\npayment_type = 'cash'", "route 1 payment_type"),
        ("[[route]]\ngateway = 'stripe'\ncurency = 'EUR'", "route 1 curency"),
        ("[[routes]]\ngateway = 'stripe'", "routes"),
    ],
)
def test_a_table_with_a_mistake_says_where_it_is(tmp_path: Path, table: str, told: str) -> None:
    path = tmp_path / "routes.toml"
    path.write_text(table)
    with pytest.raises(ConfigurationError, match=told):
        read_routes(path, NAMES)


def test_a_table_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        read_routes(tmp_path / "routes.toml", NAMES)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("stripe", "stripe_api_key"),
        ("paypal", "paypal_client_id"),
        ("paypal", "paypal_client_secret"),
        ("adyen", "adyen_api_key"),
        ("adyen", "adyen_merchant_account"),
        ("adyen", "adyen_hmac_key"),
    ],
)
def test_a_gateway_without_its_settings_names_them(tmp_path: Path, name: str, missing: str) -> None:
    with pytest.raises(ConfigurationError, match=missing.upper()):
        Gateways.check(settings(tmp_path, gateways=name, **{missing: None}))


class AcmeGateway(SandboxGateway):
    """A gateway of somebody outside, as far as the registry can see."""

    name = "acme"
    remote = True


def test_a_gateway_from_outside_is_named_by_its_module_and_class(tmp_path: Path) -> None:
    table = gateways(tmp_path, None, gateways=f"{__name__}:AcmeGateway,sandbox")
    try:
        acme = table.get("acme")
        assert isinstance(acme, AcmeGateway)
        assert type(acme.guard).__name__ == "GatewayGuard"
        assert list(table.by_name) == ["acme", "sandbox"]
    finally:
        table.close()


@pytest.mark.parametrize("name", ["acme", "no.such.module:Acme", f"{__name__}:NoSuchClass"])
def test_a_gateway_that_cannot_be_loaded_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="GATEWAYS names"):
        Gateways.check(settings(tmp_path, gateways=name))


def test_every_gateway_over_the_network_has_a_guard_of_its_own(tmp_path: Path) -> None:
    table = gateways(tmp_path)
    try:
        guards = {name: gateway.guard for name, gateway in table.by_name.items()}
        assert type(guards["sandbox"]).__name__ == "NoGuard"
        remote = [guards[name] for name in NAMES if name != "sandbox"]
        assert all(type(guard).__name__ == "GatewayGuard" for guard in remote)
        assert len({id(guard) for guard in remote}) == len(remote)
    finally:
        table.close()


def test_every_gateway_is_one_of_the_contract(tmp_path: Path) -> None:
    table = gateways(tmp_path)
    try:
        assert all(isinstance(gateway, Gateway) for gateway in table.by_name.values())
        assert [gateway.name for gateway in table.by_name.values()] == NAMES
    finally:
        table.close()


def test_each_gateway_has_a_loop_for_its_look_ups_and_so_have_those_that_are_off(
    tmp_path: Path,
) -> None:
    table = gateways(tmp_path)
    try:
        engine = sa.create_engine("postgresql+psycopg2://nowhere/")
        defaults = load_settings(_env_file=None)
        rules = LookupRules.from_settings(defaults, table)
        names = set(roles(Resources(engine, table, rules, defaults)))
        for lane in ("open", "waiting"):
            assert {f"lookup-{lane}-{name}" for name in (*NAMES, "off")} <= names
        assert {f"compare-{name}" for name in NAMES} <= names
    finally:
        table.close()
