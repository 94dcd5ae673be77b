"""What production does not start with, and that it starts with everything that is like it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from config import ConfigurationError, Settings, configuration_warnings, load_settings
from database import check_connections, open_database
from tests.support.processes import copy_sources, free_port, run

KEY = "Vx3q-9LmT_c7RzKp2WdY8sBfHn4JgEa6uQtX"
OTHER = "m5Ws_Zt8Rb-Kj2Xc9Qv4Ld7Np3Gy6Hf1TaEu"
WEBHOOK = "whsec_8Kd3Lw9Zx2Qm7Vb5Nc4Tr6Yp1Hs0Jf"
HMAC = "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056"
OTHER_HMAC = "9F3C5A1E7B2D806F4E1A9C8B7D6E5F40312243546576879A0B1C2D3E4F5A6B7C"
PRODUCTION = {
    "ENVIRONMENT": "production",
    "SECRET_KEY": KEY,
    "FINGERPRINT_KEY": OTHER,
    "DATABASE_URL": "postgresql://nobody:pass-of-nobody@127.0.0.1:9/none",
    "PUBLIC_URL": "https://pay.shop.example",
}
JWKS = {
    "ALGORITHM": "ES256",
    "JWKS_URL": "https://issuer.example/keys",
    "JWT_ISSUER": "https://issuer.example/",
    "JWT_AUDIENCE": "estore-payments",
}
SECRETS = ("SECRET_KEY", "FINGERPRINT_KEY", "STRIPE_WEBHOOK_SECRET", "ADYEN_HMAC_KEY")

# One change each; its variable is named in the refusal.
REFUSED = [
    # Secrets
    *((name, "x", "is shorter than 32 bytes") for name in SECRETS),
    *((name, "AB", "is shorter than 32 bytes") for name in SECRETS),
    *((name, "ABCDEF0123456789" * 6, "is a repeated pattern") for name in SECRETS),
    *((name, "AB" * 32, "has fewer than 8 different") for name in SECRETS),
    ("SECRET_KEY", KEY[:31], "is shorter than 32 bytes"),
    ("SECRET_KEY", "12345678" * 4, "is a repeated pattern"),
    ("SECRET_KEY", "12345678" * 4 + "1234", "is a repeated pattern"),
    ("SECRET_KEY", KEY + KEY, "is a repeated pattern"),
    ("SECRET_KEY", "change-me-to-a-secret-of-at-least-32-bytes", "is the one of .env.example"),
    ("FINGERPRINT_KEY", f"{OTHER},{'12345678' * 5}", "is a repeated pattern"),
    ("FINGERPRINT_KEY", KEY, "repeats SECRET_KEY"),
    ("STRIPE_WEBHOOK_SECRET", "whsec_" + "ab" * 20, "has fewer than 8 different"),
    ("STRIPE_WEBHOOK_SECRET", "whsec_" + "abcdefgh" * 4, "is a repeated pattern"),
    ("STRIPE_WEBHOOK_SECRET", f"{WEBHOOK},whsec_old", "is shorter than 32 bytes"),
    ("STRIPE_WEBHOOK_SECRET", KEY, "repeats SECRET_KEY"),
    *((name, ", ,", "is not set") for name in ("STRIPE_WEBHOOK_SECRET", "ADYEN_HMAC_KEY")),
    ("ADYEN_HMAC_KEY", HMAC[:62], "is shorter than 32 bytes"),
    ("ADYEN_HMAC_KEY", f"{HMAC},{HMAC}", "repeats ADYEN_HMAC_KEY"),
    ("STRIPE_API_KEY", KEY, "repeats SECRET_KEY"),
    ("PAYPAL_CLIENT_SECRET", OTHER, "repeats FINGERPRINT_KEY"),
    # API bases
    *(
        (name, url, "must be an https URL")
        for name in ("STRIPE_API_BASE", "PAYPAL_API_BASE", "ADYEN_API_BASE")
        for url in (
            "http://api.gateway.example",
            "http://127.0.0.1:12111",
            "HTTP://localhost",
            "ftp://api.gateway.example",
            "api.gateway.example",
            "https://",
            "https://[api.gateway.example",
        )
    ),
    # Hosts that certificates come from
    *(
        ("PAYPAL_CERT_HOSTS", host, "must not name loopback")
        for host in (
            "localhost",
            "LOCALHOST.",
            "certs.localhost",
            "localhost.localdomain",
            "localhost6",
            "127.0.0.1",
            "127.8.9.10",
            "127.1",
            "0x7f000001",
            "2130706433",
            "0.0.0.0",
            "::1",
            "[::1]",
            "::ffff:127.0.0.1",
            "169.254.169.254",
            "fe80::1",
            "fe80::1%eth0",
            "api.paypal.com,127.0.0.1",
        )
    ),
    # Proxies
    *(
        ("TRUSTED_PROXIES", proxy, "must be addresses or networks")
        for proxy in (
            "*",
            "proxy.internal",
            "127.0.0.1,proxy.internal",
            "0.0.0.0/0",
            "::/0",
            "10.0.0.1/8",
            "10.0.0.0/40",
        )
    ),
    # Origins
    *(
        ("CORS_ORIGINS", origin, "must name origins")
        for origin in ("*", "null", "NULL", "https://shop.example,*", "https://shop.example, null")
    ),
    # Issuers
    ("JWKS_URL", "http://issuer.example/keys", "must be an https URL"),
    ("JWKS_URL", "http://127.0.0.1:8080/keys", "must be an https URL"),
    ("JWT_ISSUER", None, "is not set"),
    ("JWT_AUDIENCE", None, "is not set"),
    # ENVIRONMENT itself
    ("ENVIRONMENT", "", "is empty"),
]
ACCEPTED = [
    {},
    {"SECRET_KEY": "0123456789abcdef" * 2 + "x"},  # all but a pattern: nobody can tell
    {"SECRET_KEY": "ключ-из-букв-не-латиницы"},  # bytes count, not characters
    {"FINGERPRINT_KEY": f"{OTHER}, {OTHER[::-1]}"},
    {"STRIPE_WEBHOOK_SECRET": WEBHOOK, "STRIPE_API_KEY": "sk_live_short"},
    {"STRIPE_WEBHOOK_SECRET": f"{WEBHOOK},whsec_{WEBHOOK[:5:-1]}"},
    {"ADYEN_HMAC_KEY": HMAC, "ADYEN_API_KEY": "AQE-short"},
    {"ADYEN_HMAC_KEY": f"{HMAC},{OTHER_HMAC.lower()}"},
    {"PAYPAL_CLIENT_SECRET": "EGnHDxD_short"},
    {"STRIPE_API_BASE": "https://api.stripe.com"},
    {"PAYPAL_API_BASE": "https://api-m.paypal.com"},
    {"ADYEN_API_BASE": "https://1797a841fbb37ca7-Shop-checkout-live.adyenpayments.com/v72"},
    {"PAYPAL_CERT_HOSTS": "api.paypal.com,api.sandbox.paypal.com"},
    {"PAYPAL_CERT_HOSTS": "localhost.example.com"},
    {"PAYPAL_CERT_HOSTS": "10.1.2.3"},
    {"TRUSTED_PROXIES": "10.0.0.0/8,192.168.1.7,::1,2001:db8::/32"},
    {"CORS_ORIGINS": "https://shop.example,https://admin.shop.example"},
    JWKS,
]


@pytest.fixture(autouse=True)
def only_these_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the environment nor a developer's `.env` takes part."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(Settings.model_config, "env_file", None)


def production(changes: dict[str, str | None]) -> dict[str, str]:
    base = PRODUCTION | (JWKS if changes.keys() & JWKS.keys() else {})
    return {name: value for name, value in (base | changes).items() if value is not None}


@pytest.mark.parametrize(("name", "value", "message"), REFUSED)
def test_production_refuses(
    name: str, value: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = production({name: value})
    for variable, text in given.items():
        monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigurationError) as refusal:
        load_settings()
    said = str(refusal.value)
    assert said.startswith(f"{name} {message}")
    assert said.count(";") <= 3, "only what was changed is wrong"
    assert not [text for text in given.values() if len(text) > 10 and text in said]


@pytest.mark.parametrize("changes", ACCEPTED)
def test_production_accepts(
    changes: dict[str, str | None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable, text in production(changes).items():
        monkeypatch.setenv(variable, text)
    settings = load_settings(data_dir=tmp_path)
    assert settings.production
    assert configuration_warnings(settings, "0.0.0.0") == []
    assert list(tmp_path.iterdir()) == []


def test_development_takes_doubles_and_containers(tmp_path: Path) -> None:
    settings = load_settings(
        data_dir=tmp_path,
        stripe_api_base="http://127.0.0.1:12111",
        stripe_webhook_secret="whsec_x",
        paypal_cert_hosts="127.0.0.1",
        trusted_proxies="*",
        cors_origins="*",
    )
    assert not settings.production


def test_an_embedded_database_in_production_is_worth_a_warning() -> None:
    settings = settings_without("DATABASE_URL")
    [risk] = configuration_warnings(settings, "127.0.0.1")
    assert risk.startswith("DATABASE_URL is not set")


def test_links_that_lead_to_the_address_served_on_in_production_are_worth_a_warning() -> None:
    settings = settings_without("PUBLIC_URL")
    [risk] = configuration_warnings(settings, "127.0.0.1")
    assert risk.startswith("PUBLIC_URL is not set")


def settings_without(name: str) -> Settings:
    given = {key.lower(): value for key, value in PRODUCTION.items() if key != name}
    return load_settings(**given)


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://nobody:part@rest-of-it@127.0.0.1:9/none",  # taken for the host
        "postgresql://nobody:part@rest-of-it:9/x@127.0.0.1/none",
        "postgresql://nobody:part@host:rest-of-it/x@127.0.0.1/none",  # taken for the port
        "host=127.0.0.1 password=rest-of-it",
        "mysql://nobody:rest-of-it@127.0.0.1/none",
    ],
)
def test_no_part_of_a_databases_password_is_said(address: str) -> None:
    settings = Settings(_env_file=None, database_url=address)
    for refuse in (check_connections, open_database):
        with pytest.raises(
            ConfigurationError, match=r"^DATABASE_URL is not of the form"
        ) as refusal:
            refuse(settings)
        assert "rest-of-it" not in str(refusal.value)


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://nobody:a/b#c?d:e%40f@127.0.0.1:9/none?sslmode=require",
        "postgres://nobody@/none?host=/tmp",
        "postgresql+psycopg2://nobody:pass@[::1]:9/none",
        "postgresql://nobody@server:pass@first,second/none",
    ],
)
def test_other_addresses_of_a_database_are_taken(address: str) -> None:
    check_connections(Settings(_env_file=None, database_url=address))


@pytest.mark.parametrize(
    "command", [("main.py",), ("-m", "uvicorn", "main:app"), ("-m", "workers")]
)
def test_a_start_that_is_refused_prints_names_and_no_values(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    sources = copy_sources(tmp_path / "service")
    given: dict[str, Any] = {
        "ENVIRONMENT": "production",
        "SECRET_KEY": "12345678" * 5,
        "FINGERPRINT_KEY": "12345678" * 5,
        "STRIPE_WEBHOOK_SECRET": "whsec_abcdefghij",
        "ADYEN_HMAC_KEY": "ABABABABABAB",
        "STRIPE_API_BASE": "http://user:password@stripe.example",
        "PAYPAL_API_BASE": "http://user:password@paypal.example",
        "ADYEN_API_BASE": "http://user:password@adyen.example",
        "PAYPAL_CERT_HOSTS": "169.254.169.254",
        "TRUSTED_PROXIES": "proxy.internal",
        "CORS_ORIGINS": "https://shop.example,*",
        "JWKS_URL": "http://user:password@issuer.example/keys",
    }
    answer = run(sources, *command, PORT=free_port(), DATA_DIR=tmp_path / "data", **given)
    assert answer.returncode != 0
    assert answer.stdout == ""
    [said] = answer.stderr.splitlines()
    for name, value in given.items():
        if name != "ENVIRONMENT":
            assert name in said
            assert value not in said
    assert "user:password" not in said
    assert not (tmp_path / "data").exists(), "nothing was started"
