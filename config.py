"""Every setting of the service, typed and checked once, from the environment and `.env`.

`.env.example` lists each one with its default; `docs/settings.md` explains them.
"""

import fcntl
import ipaddress
import json
import os
import re
import secrets
import socket
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Annotated, Any, Literal
from urllib.parse import urlsplit

from iso4217 import Currency
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    SettingsConfigDict,
)

ROOT = Path(__file__).resolve().parent
MIN_SECRET_BYTES = 32  # RFC 7518 §3.2: an HS256 key is at least as long as the hash
MIN_DIFFERENT_CHARACTERS = 8  # "aaaa…" is long, and no secret

# What `.env.example` shows where a secret belongs. Copied unchanged, it is public knowledge.
EXAMPLE_SECRET_MARKER = "change-me"  # noqa: S105 - it marks what is not a secret

SECRET_SETTINGS = ("SECRET_KEY", "FINGERPRINT_KEY")
# Made by the gateways, in their own lengths.
GATEWAY_SECRETS = (
    "STRIPE_API_KEY",
    "STRIPE_WEBHOOK_SECRET",
    "PAYPAL_CLIENT_SECRET",
    "ADYEN_API_KEY",
    "ADYEN_HMAC_KEY",
)
SECRET_LISTS = ("FINGERPRINT_KEY", "STRIPE_WEBHOOK_SECRET", "ADYEN_HMAC_KEY")
# Anybody who guesses one of these can sign. A gateway refuses an API key that is wrong.
HMAC_KEYS = (*SECRET_SETTINGS, "STRIPE_WEBHOOK_SECRET", "ADYEN_HMAC_KEY")
HOW_TO_MAKE_ONE = 'make one with: python -c "import secrets; print(secrets.token_urlsafe(48))"'

HTTPS_SETTINGS = ("STRIPE_API_BASE", "PAYPAL_API_BASE", "ADYEN_API_BASE", "JWKS_URL")
LOOPBACK_NAMES = (  # as /etc/hosts has them
    *("localhost", "localhost4", "localhost6", "ip6-localhost", "ip6-loopback"),
    *("localhost.localdomain", "localhost4.localdomain4", "localhost6.localdomain6"),
)

_HOST_NAME = re.compile(r"(\*\.)?[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
_BASE_URL = re.compile(
    r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?"
)


class ConfigurationError(Exception):
    """The settings are incomplete or unsafe, so the service does not start."""


Names = Annotated[list[str], NoDecode]
_ORIGIN = re.compile(
    r"(?!http:.*:80$)(?!https:.*:443$)https?://(?:[a-z0-9_.-]+|\[[0-9a-f:]+\])(?::[1-9][0-9]{0,4})?",
    re.ASCII,
)


class Settings(BaseSettings):
    """The settings in force. Field names are the variables' names in lower case."""

    model_config = SettingsConfigDict(
        env_file=ROOT / ".env",
        env_ignore_empty=True,  # `SECRET_KEY=` is the same as none
        extra="ignore",
        hide_input_in_errors=True,
    )

    environment: Literal["development", "production"] = "development"

    database_url: str | None = None
    data_dir: Path = Path(".data")
    migrate_on_start: bool = True

    secret_key: SecretStr | None = None
    algorithm: Literal["HS256", "RS256", "ES256"] = "HS256"
    jwks_url: str | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_max_lifetime: int = Field(default=86_400, ge=1, le=31_536_000)
    fingerprint_key: SecretStr | None = None

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    workers: int = Field(default=1, ge=1, le=64)
    run_workers: bool = True
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    cors_origins: Names = []
    return_url_origins: Names = []
    trusted_proxies: Names = ["127.0.0.1"]
    allowed_hosts: Names = []
    public_url: str | None = None
    connections_per_address: int = Field(default=256, ge=1)

    default_currency: str = "USD"
    gateways: Names = []
    gateway_timeout: float = Field(default=10.0, gt=0, le=120)
    reconcile_after: float = Field(default=5.0, gt=0, le=3600)
    # Seconds that a payment may wait for its shopper, and that a lost request is sent again.
    action_expires_after: float = Field(default=86_400.0, gt=0, le=2_592_000)
    resend_within: float = Field(default=600.0, ge=0, le=21_600)
    gateway_concurrency: int = Field(default=20, ge=1, le=1000)
    # Adyen sends an event again for a month; an authorization at the sandbox lives for a week.
    retention_gateway_events_days: int = Field(default=90, ge=35, le=36_500)
    retention_sandbox_days: int = Field(default=30, ge=8, le=36_500)
    routes: Path | None = None

    stripe_api_key: SecretStr | None = None
    stripe_api_base: str = "https://api.stripe.com"
    stripe_webhook_secret: SecretStr | None = None
    stripe_raw_cards: bool = False

    paypal_client_id: str | None = None
    paypal_client_secret: SecretStr | None = None
    paypal_api_base: str | None = None
    paypal_webhook_id: str | None = None
    paypal_cert_hosts: Names = []
    paypal_ca_file: Path | None = None

    adyen_api_key: SecretStr | None = None
    adyen_merchant_account: str | None = None
    adyen_hmac_key: SecretStr | None = None
    adyen_api_base: str | None = None

    @field_validator(
        "cors_origins",
        "return_url_origins",
        "trusted_proxies",
        "allowed_hosts",
        "gateways",
        "paypal_cert_hosts",
        mode="before",
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    @field_validator("return_url_origins")
    @classmethod
    def _origins(cls, value: list[str]) -> list[str]:
        # Compared to the letter with the origins of addresses, as browsers write those.
        if not all(_ORIGIN.fullmatch(origin) for origin in value):
            raise ValueError(
                "each is an origin such as https://shop.example: lower case, no path, and a port"
                " only where it is not the scheme's own"
            )
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _host_names(cls, value: list[str]) -> list[str]:
        if not all(_HOST_NAME.fullmatch(name) for name in value):
            raise ValueError("host names without a port, such as shop.example or *.example")
        return [name.lower() for name in value]

    @field_validator("public_url")
    @classmethod
    def _base_url(cls, value: str | None) -> str | None:
        if value is not None and not _BASE_URL.fullmatch(value):
            raise ValueError("an address such as https://pay.shop.example, with a path at most")
        return value

    @field_validator("data_dir", "routes", "paypal_ca_file")
    @classmethod
    def _under_root(cls, value: Path | None) -> Path | None:
        # Relative to the project, not to the shell's folder: every command finds the same files.
        return None if value is None else (ROOT / value).resolve()

    @field_validator("default_currency")
    @classmethod
    def _iso_4217(cls, value: str) -> str:
        if value not in {currency.code for currency in Currency}:
            raise ValueError("not an ISO 4217 code in upper case, such as USD")
        return value

    @property
    def production(self) -> bool:
        return self.environment == "production"

    @property
    def gateway_names(self) -> list[str]:
        """The gateways that are on. The sandbox is one in production only when it is named."""
        return self.gateways or ([] if self.production else ["sandbox"])

    @property
    def signing_key(self) -> str:
        """The HMAC key of HS256 tokens."""
        assert self.secret_key is not None
        return self.secret_key.get_secret_value()

    @property
    def fingerprint_keys(self) -> list[bytes]:
        """The keys of card fingerprints, newest first; more than one while they are rotated."""
        assert self.fingerprint_key is not None
        return [key.encode() for key in split_keys(self.fingerprint_key.get_secret_value())]


def split_keys(value: str) -> list[str]:
    return [key.strip() for key in value.split(",") if key.strip()]


def load_settings(**overrides: Any) -> Settings:
    """Read, complete and check the settings.

    Development makes the secrets it lacks once and keeps them under DATA_DIR; production refuses.
    Raises ConfigurationError, which names the variables and never their values.
    """
    _refuse_empty_environment(overrides.get("_env_file", Settings.model_config["env_file"]))
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        lines = [
            f"{str(item['loc'][0]).upper() if item['loc'] else 'settings'}: {item['msg']}"
            for item in error.errors(include_url=False, include_input=False)
        ]
        raise ConfigurationError("; ".join(lines)) from None
    if settings.production:
        _refuse_unsafe(settings)
    else:
        _complete(settings)
    _check_keys(settings)
    return settings


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process."""
    return load_settings()


def _needed_secrets(settings: Settings) -> list[str]:
    return [
        name for name in SECRET_SETTINGS if name != "SECRET_KEY" or settings.algorithm == "HS256"
    ]


def _values(settings: Settings, name: str) -> list[str]:
    secret: SecretStr | None = getattr(settings, name.lower())
    if secret is None:
        return []
    value = secret.get_secret_value()
    return split_keys(value) if name in SECRET_LISTS else [value]


def _refuse_empty_environment(env_file: Any) -> None:
    """Refuse `ENVIRONMENT=$UNKNOWN` in a deployment: it must not end in development."""
    file = DotEnvSettingsSource(Settings, env_file=env_file, env_ignore_empty=False)
    variables = EnvSettingsSource(Settings, env_ignore_empty=False)
    if not {**file.env_vars, **variables.env_vars}.get("environment", "unset"):
        raise ConfigurationError("ENVIRONMENT is empty: say development or production")


def _refuse_unsafe(settings: Settings) -> None:
    """Raises ConfigurationError with everything that production must not run with."""
    problems = [*_unsafe_secrets(settings), *_unsafe_addresses(settings)]
    if problems:
        raise ConfigurationError("; ".join(dict.fromkeys(problems)))


def _unsafe_secrets(settings: Settings) -> Iterator[str]:
    seen: dict[str, str] = {}
    for name in (*_needed_secrets(settings), *GATEWAY_SECRETS):
        is_ours = name in SECRET_SETTINGS
        remedy = HOW_TO_MAKE_ONE if is_ours else "use the one of your account"
        values = _values(settings, name)
        if not values and (is_ours or getattr(settings, name.lower()) is not None):  # "," is none
            yield f"{name} is not set; {remedy}"
        for value in values:
            weakness = _weakness(name, value)
            if weakness is not None:
                yield f"{name} {weakness}; {remedy}"
            if value in seen:
                yield f"{name} repeats {seen[value]}; every secret is its own; {remedy}"
            seen[value] = name


def _weakness(name: str, value: str) -> str | None:
    """Why this is no secret, or None if it may be one."""
    if EXAMPLE_SECRET_MARKER in value:
        return "is the one of .env.example"
    if name not in HMAC_KEYS:
        return None
    size = len(value) // 2 if name == "ADYEN_HMAC_KEY" else len(value.encode())  # hexadecimal
    if size < MIN_SECRET_BYTES:
        return f"is shorter than {MIN_SECRET_BYTES} bytes"
    made = value.removeprefix("whsec_")  # all secrets of Stripe's webhooks begin like this
    if len(set(made)) < MIN_DIFFERENT_CHARACTERS:
        return f"has fewer than {MIN_DIFFERENT_CHARACTERS} different characters"
    # Shifted by the length of its pattern, a repeated pattern is itself again.
    if any(made.startswith(made[length:]) for length in range(1, len(made) // 2 + 1)):
        return "is a repeated pattern"
    return None


def _unsafe_addresses(settings: Settings) -> Iterator[str]:
    for name in HTTPS_SETTINGS:
        url = getattr(settings, name.lower())
        if url is not None and not _is_https(url):
            yield f"{name} must be an https URL"
    if settings.jwks_url is not None:
        named = {"JWT_ISSUER": settings.jwt_issuer, "JWT_AUDIENCE": settings.jwt_audience}
        for name, value in named.items():
            if not value:
                yield f"{name} is not set; without it JWKS_URL lets in tokens made for others"
    if any(_leads_back(host) for host in settings.paypal_cert_hosts):
        yield "PAYPAL_CERT_HOSTS must not name loopback or link-local hosts"
    if not all(_is_proxy(proxy) for proxy in settings.trusted_proxies):
        yield "TRUSTED_PROXIES must be addresses or networks, not all of them and no names"
    if any(origin.lower() in ("*", "null") for origin in settings.cors_origins):
        yield "CORS_ORIGINS must name origins; * and null are anybody's"


def _is_https(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme == "https" and bool(parts.hostname)


def _is_proxy(text: str) -> bool:
    try:
        return ipaddress.ip_network(text).prefixlen > 0  # of 0 bits: every address there is
    except ValueError:
        return False


def _leads_back(host: str) -> bool:
    address = _address(host)
    return is_loopback(host) or (
        address is not None and (address.is_link_local or address.is_unspecified)
    )


def is_loopback(host: str) -> bool:
    """Whether a host name or address is loopback."""
    address = _address(host)
    if address is None:
        name = host.rstrip(".").lower()
        return name in LOOPBACK_NAMES or name.endswith(".localhost")
    return address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that a host is written as; None for a name."""
    text = host.strip("[]").partition("%")[0]
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        try:  # what resolvers take for one too, such as 127.1 and 0x7f000001
            address = ipaddress.ip_address(socket.inet_aton(text))
        except (OSError, ValueError):
            return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def configuration_warnings(settings: Settings, host: str) -> list[str]:
    """Settings that are allowed and yet worth a warning. `host` is where the service listens."""
    warnings = []
    if settings.production and settings.database_url is None:
        warnings.append(
            "DATABASE_URL is not set: the embedded database has no replica and no backups"
        )
    if settings.production and settings.public_url is None:
        warnings.append(
            "PUBLIC_URL is not set: shoppers who have to approve a payment are sent back to the"
            " address that this process listens on, which they may not reach"
        )
    if not settings.production and not is_loopback(host):
        warnings.append(
            "HOST is not loopback, and ENVIRONMENT is development:"
            " whoever can reach this machine can use what is meant for its developer"
        )
    return warnings


def _check_keys(settings: Settings) -> None:
    if settings.algorithm != "HS256":
        if settings.jwks_url is None:
            raise ConfigurationError(f"JWKS_URL is not set; {settings.algorithm} tokens need it")
        return
    for value in _values(settings, "SECRET_KEY"):
        if len(value.encode()) < MIN_SECRET_BYTES:
            raise ConfigurationError(f"SECRET_KEY is shorter than {MIN_SECRET_BYTES} bytes")


def _complete(settings: Settings) -> None:
    """Development: make the secrets that are missing, once for all processes."""
    missing = [name for name in _needed_secrets(settings) if not _values(settings, name)]
    if not missing:
        return
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        opened = open(  # noqa: SIM115 - closed below
            settings.data_dir / "secrets.json", "a+", encoding="utf-8", opener=_owner_only
        )
    except OSError as error:
        raise ConfigurationError(
            f"DATA_DIR has no secrets.json that can be opened: {error.strerror}"
        ) from None
    with opened as file:
        _require_private(file, settings.data_dir)
        fcntl.flock(file, fcntl.LOCK_EX)  # several processes may start at once
        file.seek(0)
        kept = _read_secrets(file)
        if not all(name in kept for name in missing):
            kept = {**{name: secrets.token_urlsafe(48) for name in missing}, **kept}
            file.seek(0)
            file.truncate()
            json.dump(kept, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
    for name in missing:
        setattr(settings, name.lower(), SecretStr(kept[name]))


def _require_private(file: IO[str], folder: Path) -> None:
    """Raises ConfigurationError if others than we, and who owns the folder, can read the file."""
    found = os.fstat(file.fileno())
    if found.st_mode & 0o077 or found.st_uid not in (os.geteuid(), folder.stat().st_uid):
        raise ConfigurationError(
            "DATA_DIR has a secrets.json that is open to other users:"
            " make it private (chmod 600) and your own (chown);"
            " if somebody may have read it remove it, and new secrets are made"
        )


def _read_secrets(file: IO[str]) -> dict[str, str]:
    """What was kept. Raises ConfigurationError for a damaged file: the keys in it may be in use."""
    try:
        kept = json.loads(file.read() or "{}")  # empty: the first start
    except ValueError:
        kept = None
    if not (isinstance(kept, dict) and all(isinstance(value, str) for value in kept.values())):
        raise ConfigurationError(
            "DATA_DIR has a secrets.json that is damaged: restore it,"
            " or remove it, and new secrets are made"
        )
    return kept


def _owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
