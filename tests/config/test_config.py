"""Settings: where they come from, what development completes, and what production refuses."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

import database
from config import EXAMPLE_SECRET_MARKER, ConfigurationError, Settings, load_settings
from tests.support.paths import ROOT
from tests.support.processes import copy_sources, environment, free_port, run

GOOD = "".join(f"good-secret-{number}" for number in range(4))
OTHER = "".join(f"another-fine-{number}" for number in range(4))
PRODUCTION = {"environment": "production", "secret_key": GOOD, "fingerprint_key": OTHER}


@pytest.fixture(autouse=True)
def only_these_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the environment nor a developer's `.env` takes part."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(Settings.model_config, "env_file", None)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("sources") / "service")


# What production refuses ------------------------------------------------------------------------

UNSAFE = [
    pytest.param("secret_key", None, "SECRET_KEY is not set", id="missing"),
    pytest.param("secret_key", "", "SECRET_KEY is not set", id="empty"),
    pytest.param("secret_key", GOOD[:31], "SECRET_KEY is shorter than 32 bytes", id="short"),
    pytest.param("secret_key", "ab" * 30, "SECRET_KEY has fewer than 8 different", id="weak"),
    pytest.param("secret_key", " " * 40, "SECRET_KEY has fewer than 8 different", id="blank"),
    pytest.param("secret_key", OTHER, "FINGERPRINT_KEY repeats SECRET_KEY", id="repeated"),
    pytest.param(
        "secret_key",
        "change-me-to-a-secret-of-at-least-32-bytes",
        "SECRET_KEY is the one of .env.example",
        id="example",
    ),
    pytest.param("fingerprint_key", None, "FINGERPRINT_KEY is not set", id="no fingerprint key"),
    pytest.param("fingerprint_key", " , ", "FINGERPRINT_KEY is not set", id="empty list"),
    pytest.param("fingerprint_key", OTHER[:31], "FINGERPRINT_KEY is shorter", id="short one"),
    pytest.param("fingerprint_key", "ab" * 30, "FINGERPRINT_KEY has fewer than 8", id="weak one"),
    pytest.param(
        "fingerprint_key", f"{OTHER},{'ab' * 30}", "FINGERPRINT_KEY has fewer", id="weak old key"
    ),
    pytest.param(
        "fingerprint_key", f"{OTHER},{GOOD}", "FINGERPRINT_KEY repeats SECRET_KEY", id="old repeats"
    ),
    pytest.param(
        "fingerprint_key",
        f"{OTHER},{OTHER}",
        "FINGERPRINT_KEY repeats FINGERPRINT_KEY",
        id="same twice",
    ),
    pytest.param(
        "fingerprint_key",
        "change-me-to-another-secret-of-at-least-32-bytes",
        "FINGERPRINT_KEY is the one of .env.example",
        id="example one",
    ),
]


@pytest.mark.parametrize(("name", "value", "message"), UNSAFE)
def test_production_refuses_an_unsafe_secret_by_name(
    name: str, value: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, given in (PRODUCTION | {name: value}).items():
        if given is not None:
            monkeypatch.setenv(variable.upper(), given)
    with pytest.raises(ConfigurationError) as refusal:
        load_settings()
    assert message in str(refusal.value)
    for secret in (GOOD, OTHER, *(value or "").split(",")):
        assert len(secret) < 8 or not secret.strip() or secret not in str(refusal.value)


def test_production_names_every_secret_that_is_unsafe_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"SECRET_KEY is not set.*FINGERPRINT_KEY is"):
        load_settings(environment="production")


def test_production_starts_with_good_secrets_and_makes_none(tmp_path: Path) -> None:
    settings = load_settings(**PRODUCTION, data_dir=tmp_path)
    assert settings.signing_key == GOOD
    assert settings.fingerprint_keys == [OTHER.encode()]
    assert list(tmp_path.iterdir()) == []


def test_production_has_no_gateway_that_is_not_named() -> None:
    assert load_settings(**PRODUCTION).gateway_names == []
    assert load_settings(**PRODUCTION, gateways="sandbox").gateway_names == ["sandbox"]


def test_a_fingerprint_key_may_be_rotated() -> None:
    old = secrets.token_urlsafe(48)
    settings = load_settings(**PRODUCTION | {"fingerprint_key": f"{OTHER}, {old}"})
    assert settings.fingerprint_keys == [OTHER.encode(), old.encode()]


def test_tokens_of_an_issuer_need_its_keys_and_not_ours(tmp_path: Path) -> None:
    for algorithm in ("RS256", "ES256"):
        with pytest.raises(ConfigurationError, match=f"JWKS_URL is not set; {algorithm} tokens"):
            load_settings(environment="development", algorithm=algorithm, data_dir=tmp_path)
        settings = load_settings(
            environment="production",
            algorithm=algorithm,
            jwks_url="https://issuer.example/keys",
            jwt_issuer="https://issuer.example/",
            jwt_audience="estore-payments",
            fingerprint_key=OTHER,
        )
        assert settings.secret_key is None


def test_development_refuses_a_key_that_is_too_short_for_hs256(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="SECRET_KEY is shorter than 32 bytes"):
        load_settings(secret_key="short", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "99999"),
        ("port", "eighty"),
        ("workers", "0"),
        ("algorithm", "none"),
        ("environment", "staging"),
        ("log_level", "LOUD"),
        ("default_currency", "usd"),
        ("default_currency", "XYZ"),
        ("gateway_timeout", "0"),
        ("run_workers", "perhaps"),
    ],
)
def test_a_wrong_value_is_refused_by_the_variable_s_name_and_not_shown(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name.upper(), value)
    with pytest.raises(ConfigurationError, match=f"^{name.upper()}: ") as refusal:
        load_settings()
    assert len(value) < 4 or value not in str(refusal.value)


# Where settings come from -----------------------------------------------------------------------


def test_the_environment_wins_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / ".env"
    file.write_text("PORT=9001\nWORKERS=3\n# a comment\nUNKNOWN=1\nLOG_LEVEL=\n")
    monkeypatch.setenv("PORT", "9002")
    monkeypatch.setenv("WORKERS", "")
    settings = load_settings(_env_file=file, data_dir=tmp_path)
    assert (settings.port, settings.workers, settings.log_level) == (9002, 3, "INFO")


def test_the_file_beside_the_sources_is_read_from_any_folder(sources: Path, tmp_path: Path) -> None:
    copy_sources(tmp_path / "other")
    (tmp_path / "other" / ".env").write_text("PORT=9003\nCORS_ORIGINS=https://a.example\n")
    script = "from config import get_settings as s; print(s().port, s().cors_origins, s().data_dir)"
    answer = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment(PYTHONPATH=tmp_path / "other"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == f"9003 ['https://a.example'] {tmp_path / 'other' / '.data'}\n"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("https://a.example", ["https://a.example"]),
        ("https://a.example,https://b.example", ["https://a.example", "https://b.example"]),
        (" https://a.example , , https://b.example,", ["https://a.example", "https://b.example"]),
        (",", []),
        ("", []),
    ],
)
def test_lists_are_separated_by_commas(
    written: str, read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORS_ORIGINS", written)
    assert load_settings(data_dir=tmp_path).cors_origins == read


def test_no_setting_shows_a_secret() -> None:
    settings = load_settings(**PRODUCTION)
    for text in (repr(settings), str(settings), settings.model_dump_json()):
        assert GOOD not in text
        assert OTHER not in text
    assert {
        name
        for name, field in Settings.model_fields.items()
        if re.search("key|secret|password", name) and field.annotation != SecretStr | None
    } == set(), "what is named like a secret is a SecretStr"


# .env.example -----------------------------------------------------------------------------------


def example_lines(*, unset: bool) -> Iterator[tuple[str, str]]:
    """The settings of `.env.example`: those that are set, or those in comments."""
    pattern = re.compile(r"(# )?([A-Z][A-Z0-9_]*)=(\S.*)")
    for line in (ROOT / ".env.example").read_text().splitlines():
        match = pattern.fullmatch(line)
        if match is not None and bool(match.group(1)) == unset:
            yield match.group(2), match.group(3)


def test_the_example_file_lists_every_setting_once_and_no_other() -> None:
    names = [name for unset in (False, True) for name, _ in example_lines(unset=unset)]
    assert sorted(names) == sorted(name.upper() for name in Settings.model_fields)


def test_the_example_file_shows_the_real_defaults() -> None:
    given = load_settings(_env_file=ROOT / ".env.example", environment="development")
    defaults = load_settings()
    for name, _ in example_lines(unset=False):
        assert getattr(given, name.lower()) == getattr(defaults, name.lower()), name
    for name, _ in example_lines(unset=True):
        assert Settings.model_fields[name.lower()].default in (None, []), name


def test_every_setting_of_the_example_file_is_explained_just_above_it() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    for number, line in enumerate(lines):
        if re.fullmatch(r"(# )?[A-Z][A-Z0-9_]*=.*", line):
            assert lines[number - 1].startswith(("# ", "HOST=")), line


def test_the_examples_of_unset_settings_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in example_lines(unset=True):
        monkeypatch.setenv(name, value)
    settings = load_settings(data_dir=tmp_path)
    assert settings.gateway_names == ["sandbox"]


def test_production_refuses_the_secrets_of_the_example_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Copied as it is, the file has no secrets; with its placeholders, it has known ones."""
    with pytest.raises(ConfigurationError, match=r"SECRET_KEY is not.*FINGERPRINT_KEY is not set"):
        load_settings(_env_file=ROOT / ".env.example", environment="production")
    secret = ("_KEY", "_SECRET")
    placeholders = [line for line in example_lines(unset=True) if line[0].endswith(secret)]
    assert placeholders
    for name, value in placeholders:
        assert EXAMPLE_SECRET_MARKER in value
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(environment="production")
    for name, _ in placeholders:
        assert f"{name} is the one of .env.example" in str(caught.value)


# What development completes ---------------------------------------------------------------------


def test_development_makes_its_secrets_once_and_for_its_owner_only(tmp_path: Path) -> None:
    data_dir = tmp_path / "made" / "data"
    first, second = load_settings(data_dir=data_dir), load_settings(data_dir=data_dir)
    assert first.signing_key == second.signing_key != first.fingerprint_keys[0].decode()
    assert len(first.signing_key) >= 48
    assert (data_dir / "secrets.json").stat().st_mode & 0o777 == 0o600


def test_development_keeps_a_secret_that_is_given_and_makes_the_other(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path, secret_key=GOOD)
    assert settings.signing_key == GOOD
    assert GOOD not in (tmp_path / "secrets.json").read_text()
    assert load_settings(data_dir=tmp_path).fingerprint_keys == settings.fingerprint_keys


def test_processes_that_start_together_have_the_same_secrets(sources: Path, tmp_path: Path) -> None:
    script = (
        "from config import get_settings as s\n"
        "print(s().signing_key, s().fingerprint_keys[0].decode())"
    )
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: run(sources, "-c", script, DATA_DIR=tmp_path), range(8)))
    assert [answer.returncode for answer in answers] == [0] * 8, answers
    kept = json.loads((tmp_path / "secrets.json").read_text())
    expected = f"{kept['SECRET_KEY']} {kept['FINGERPRINT_KEY']}\n"
    assert {answer.stdout for answer in answers} == {expected}
    assert (tmp_path / "secrets.json").stat().st_mode & 0o777 == 0o600


# Real starts ------------------------------------------------------------------------------------


STARTS = [
    pytest.param(("main.py",), id="main.py"),
    pytest.param(("-m", "uvicorn", "main:app", "--port", "{port}"), id="uvicorn"),
    pytest.param(("cli.py", "token", "--user", "alice"), id="cli.py"),
    pytest.param(("-m", "workers"), id="workers"),
]


def start(sources: Path, command: tuple[str, ...], **settings: Any) -> str:
    """What a start that is refused says on standard error."""
    port = free_port()
    arguments = [part.replace("{port}", str(port)) for part in command]
    answer = run(sources, *arguments, PORT=port, **settings)
    assert answer.returncode not in (0, None)
    assert answer.stdout == ""
    return answer.stderr


@pytest.mark.parametrize("command", STARTS)
def test_production_does_not_start_without_secrets_and_says_so_in_one_line(
    command: tuple[str, ...], sources: Path, tmp_path: Path
) -> None:
    said = start(sources, command, ENVIRONMENT="production", DATA_DIR=tmp_path)
    assert len(said.splitlines()) == 1, said
    assert "SECRET_KEY is not set" in said
    assert "FINGERPRINT_KEY is not set" in said
    assert list(tmp_path.iterdir()) == [], "nothing was started"


def test_production_does_not_start_with_a_weak_secret_and_does_not_show_it(
    sources: Path, tmp_path: Path
) -> None:
    weak = "abcabcab" * 8
    said = start(
        sources,
        ("main.py",),
        ENVIRONMENT="production",
        SECRET_KEY=weak,
        FINGERPRINT_KEY=OTHER,
        DATA_DIR=tmp_path,
    )
    assert "SECRET_KEY has fewer than 8 different characters" in said
    assert weak not in said
    assert OTHER not in said


@pytest.mark.parametrize("workers", [1, 2])
def test_a_gateway_that_does_not_exist_is_refused_in_one_line(
    workers: int, sources: Path, tmp_path: Path
) -> None:
    said = start(sources, ("main.py",), GATEWAYS="nowhere", WORKERS=workers, DATA_DIR=tmp_path)
    assert "GATEWAYS names nowhere; there is sandbox" in said
    assert len(said.splitlines()) == 1, said
    assert not (tmp_path / "postgres").exists(), "nothing was started"


def test_more_workers_than_the_embedded_server_has_connections_for_do_not_start() -> None:
    fits = load_settings(_env_file=None, workers=12)
    database.check_connections(fits)
    database.check_connections(
        load_settings(_env_file=None, workers=13, database_url="postgresql://elsewhere/")
    )
    with pytest.raises(ConfigurationError, match="at most 12"):
        database.check_connections(load_settings(_env_file=None, workers=13))
