"""Operator commands as their users run them: as programs."""

from __future__ import annotations

import json
import subprocess
from base64 import urlsafe_b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import cli
from config import Settings
from tests.support.factories import place_order
from tests.support.processes import copy_sources, run

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def command(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Runs cli.py with the settings of the service that the tests talk to."""
    sources = copy_sources(tmp_path_factory.mktemp("sources") / "service")

    def run_cli(*arguments: str, **changes: Any) -> subprocess.CompletedProcess[str]:
        same = {"DATA_DIR": settings.data_dir, "DATABASE_URL": settings.database_url}
        return run(sources, "cli.py", *arguments, **same | changes)

    return run_cli


def claims_of(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    claims: dict[str, Any] = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return claims


def test_token_prints_a_token_that_the_service_accepts_and_nothing_else(
    command: Command, base_url: str, user: str
) -> None:
    answer = command("token", "--user", user)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == f"{answer.stdout.strip()}\n"
    assert len(answer.stdout.split()) == 1
    headers = {"Authorization": f"Bearer {answer.stdout.strip()}"}
    with httpx.Client(base_url=base_url, headers=headers) as client:
        assert place_order(client)["user_id"] == user
        assert client.get("/orders", params={"user_id": "somebody"}).status_code == 403


def test_token_grants_the_scopes_that_are_asked_for(command: Command, base_url: str) -> None:
    answer = command("token", "--user", "ops", "--scope", "orders:manage payments:manage")
    headers = {"Authorization": f"Bearer {answer.stdout.strip()}"}
    listed = httpx.get(f"{base_url}/orders", params={"user_id": "somebody"}, headers=headers)
    assert listed.status_code == 200


def test_token_is_valid_for_as_long_as_is_asked_for(command: Command) -> None:
    claims = claims_of(command("token", "--user", "alice", "--hours", "0.5").stdout)
    assert claims["exp"] - claims["iat"] == 1800
    assert claims["sub"] == "alice"


def test_token_names_the_issuer_and_the_audience_that_the_service_checks(command: Command) -> None:
    answer = command("token", "--user", "alice", JWT_ISSUER="https://i.example", JWT_AUDIENCE="us")
    claims = claims_of(answer.stdout)
    assert (claims["iss"], claims["aud"]) == ("https://i.example", "us")


@pytest.mark.parametrize("name", ["migrate", "reconcile"])
def test_a_database_that_is_not_there_is_one_line(command: Command, name: str) -> None:
    answer = command(name, DATABASE_URL="postgresql://nobody@127.0.0.1:1/nowhere")
    assert answer.returncode == 1
    assert answer.stderr.startswith("cli.py: the database: ")
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["token"],
        ["token", "--user"],
        ["token", "--user", ""],
        ["token", "--user", "x" * 256],
        ["token", "--user", "alice", "--hours", "soon"],
        ["token", "--user", "alice", "--hours", "0"],
        ["token", "--user", "alice", "--hours", "-1"],
        ["token", "--user", "alice", "--hours", "inf"],
        ["token", "--user", "alice", "--hours", "nan"],
        ["token", "--user", "alice", "--hours", "1e9"],
        ["token", "--user", "alice", "--hours", "1e300"],
        ["token", "--user", "alice", "--scope", "orders:manage\npayments:manage"],
        ["token", "--user", "alice", "--scope", "bücher"],
        ["token", "--user", "alice", "more"],
    ],
)
def test_a_wrong_argument_exits_with_2_and_prints_no_token(
    arguments: list[str],
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli, "get_settings", lambda: settings)
    try:
        status: object = cli.main(arguments)
    except SystemExit as end:  # argparse's own way
        status = end.code
    printed = capsys.readouterr()
    assert (status, printed.out) == (2, "")
    assert printed.err
    assert "Traceback" not in printed.err


def test_a_wrong_argument_exits_with_2_as_a_program_too(command: Command) -> None:
    answer = command("token", "--user", "", "--hours", "1")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert len(answer.stderr.splitlines()) == 1


def test_token_says_who_issues_tokens_when_it_cannot(command: Command) -> None:
    issuer = {"ALGORITHM": "RS256", "JWKS_URL": "https://issuer.example/keys"}
    answer = command("token", "--user", "alice", **issuer)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "RS256 tokens come from the issuer behind JWKS_URL" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_a_command_refuses_settings_that_are_not_safe(command: Command, tmp_path: Path) -> None:
    answer = command("token", "--user", "alice", ENVIRONMENT="production", DATA_DIR=tmp_path)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "SECRET_KEY is not set" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1
