"""What development is for its developer only, and what it says when others can reach it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from structlog.testing import CapturingLogger

import main
from config import ConfigurationError, Settings, configuration_warnings, load_settings
from web import docs_page

JWT = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+")
HERE = ("127.0.0.1", "localhost:8000")


def settings_of(data_dir: Path, environment: str = "development", **more: Any) -> Settings:
    return load_settings(
        _env_file=None,
        environment=environment,
        data_dir=data_dir,
        secret_key="a-secret-of-this-test-and-of-nothing-else",
        fingerprint_key="another-secret-of-this-test-for-fingerprints",
        **{"gateways": "sandbox", "host": "127.0.0.1"} | more,
    )


@pytest.fixture(scope="module")
def reachable(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    # Whatever HOST says, who is asked and by whom is what counts.
    return main.create_app(settings_of(tmp_path_factory.mktemp("data"), host="0.0.0.0"))


def open_docs(
    service: FastAPI, peer: str | None, *headers: tuple[str, str], version: str = "1.1"
) -> str:
    """The page that this visitor gets."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": version,
        "method": "GET",
        "scheme": "http",
        "path": "/docs",
        "raw_path": b"/docs",
        "root_path": "",
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
        "client": None if peer is None else (peer, 50000),
        "server": ("127.0.0.1", 8000),
    }
    asyncio.run(service(scope, receive, send))
    assert sent[0]["status"] in (200, 400)  # a Host that is none is refused
    return b"".join(message.get("body", b"") for message in sent[1:]).decode()


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.0.0.53", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8000", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:65535", "[::1]:8000"],
)
def test_docs_hold_tokens_for_who_sits_at_this_machine(
    reachable: FastAPI, peer: str, host: str
) -> None:
    assert len(JWT.findall(open_docs(reachable, peer, ("Host", host)))) == 2


@pytest.mark.parametrize(
    "host",
    [
        "attacker.example",  # rebound to 127.0.0.1
        "attacker.example:8000",
        "127.0.0.1.nip.io:8000",
        "localhost.attacker.example",
        "localhost@attacker.example",
        "attacker.example:localhost",
        "shop.localhost:8000",
        "localhost:8000.attacker.example",
        "localhost:8000, attacker.example",
        "192.168.1.20:8000",
        "0.0.0.0:8000",
        "[::]:8000",
        "[::1].attacker.example",
        "127.0.0.1:",
        "",
    ],
)
def test_docs_hold_no_token_for_a_page_that_names_another_host(
    reachable: FastAPI, host: str
) -> None:
    assert not JWT.search(open_docs(reachable, "127.0.0.1", ("Host", host)))


def test_a_rebound_page_gets_no_token_over_the_wire(base_url: str) -> None:
    assert len(JWT.findall(httpx.get(f"{base_url}/docs").text)) == 2
    rebound = httpx.get(f"{base_url}/docs", headers={"Host": "attacker.example"})
    assert not JWT.search(rebound.text)


@pytest.mark.parametrize(
    "peer", ["192.168.1.20", "172.17.0.1", "203.0.113.9", "::", "fe80::1", "testclient", "", None]
)
def test_docs_hold_no_token_for_other_machines(reachable: FastAPI, peer: str | None) -> None:
    page = open_docs(reachable, peer, ("Host", "localhost:8000"))
    assert "SwaggerUIBundle(" in page
    assert not JWT.search(page)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Host", "localhost"), ("Host", "localhost")],
        [("Host", "localhost"), ("Host", "attacker.example")],
        [("Host", "localhost"), ("Origin", "https://shop.example")],
        [("Host", "localhost"), ("X-Forwarded-For", "127.0.0.1")],
        [("Host", "localhost"), ("X-Forwarded-Host", "attacker.example")],
        [("Host", "localhost"), ("X-Real-IP", "127.0.0.1")],
        [("Host", "localhost"), ("Forwarded", "for=127.0.0.1")],
        [("Host", "localhost"), ("Via", "1.1 proxy")],
        [("Host", "localhost"), ("X-Forwarded-Proto", "https")],
        [("Host", "localhost"), ("X-Client-IP", "203.0.113.9")],
        [("Host", "localhost"), ("CF-Connecting-IP", "203.0.113.9")],
        [("Host", "localhost"), ("CDN-Loop", "cdn")],
    ],
)
def test_docs_hold_no_token_when_somebody_stands_between(
    reachable: FastAPI, headers: list[tuple[str, str]]
) -> None:
    assert not JWT.search(open_docs(reachable, "127.0.0.1", *headers))


def test_docs_hold_no_token_for_a_proxy_that_says_nothing(reachable: FastAPI) -> None:
    """nginx, told only where to pass requests to, asks localhost as HTTP/1.0."""
    peer, host = HERE
    assert JWT.search(open_docs(reachable, peer, ("Host", host)))
    assert not JWT.search(open_docs(reachable, peer, ("Host", host), version="1.0"))


def test_production_keeps_no_token_in_the_browser(tmp_path: Path) -> None:
    peer, host = HERE
    page = open_docs(main.create_app(settings_of(tmp_path, "production")), peer, ("Host", host))
    assert "persistAuthorization: false," in page
    assert 'if (!false) localStorage.removeItem("authorized");' in page
    assert not JWT.search(page)


def test_development_keeps_a_token_that_was_pasted(reachable: FastAPI) -> None:
    for peer in ("127.0.0.1", "192.168.1.20"):
        page = open_docs(reachable, peer, ("Host", "localhost:8000"))
        assert "persistAuthorization: true," in page
        assert 'if (!true) localStorage.removeItem("authorized");' in page


# ENVIRONMENT ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "line"),
    [("", None), (None, "ENVIRONMENT="), ("", "ENVIRONMENT=production"), (None, "ENVIRONMENT")],
)
def test_an_empty_environment_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, line: str | None
) -> None:
    file = tmp_path / ".env"
    file.write_text(line or "")
    monkeypatch.delenv("ENVIRONMENT", raising=False)
    if variable is not None:
        monkeypatch.setenv("ENVIRONMENT", variable)
    with pytest.raises(ConfigurationError, match=r"^ENVIRONMENT is empty"):
        load_settings(_env_file=file, data_dir=tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_no_environment_is_development_and_the_variable_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ENVIRONMENT", raising=False)
    assert load_settings(_env_file=None, data_dir=tmp_path).environment == "development"
    file = tmp_path / ".env"
    file.write_text("ENVIRONMENT=\n")
    monkeypatch.setenv("ENVIRONMENT", "development")
    assert load_settings(_env_file=file, data_dir=tmp_path).environment == "development"


# HOST -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.1.1", "::1", "localhost", "ip6-localhost"])
def test_development_on_loopback_is_no_risk(tmp_path: Path, host: str) -> None:
    assert configuration_warnings(settings_of(tmp_path), host) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "0", "192.168.1.20", "developer.example"])
def test_development_that_others_can_reach_is_worth_a_warning(tmp_path: Path, host: str) -> None:
    [risk] = configuration_warnings(settings_of(tmp_path), host)
    assert risk.startswith("HOST is not loopback")


@pytest.mark.parametrize(
    "command",
    [["main.py"], ["/usr/bin/uvicorn", "main:app", "--host", "0.0.0.0"]],
)
def test_the_warning_is_logged_at_the_start(
    command: list[str],
    make_database: Callable[[], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", command)
    log = CapturingLogger()
    monkeypatch.setattr(main, "log", log)
    host = "0.0.0.0" if command == ["main.py"] else "127.0.0.1"
    settings = settings_of(
        tmp_path, host=host, database_url=make_database(), run_workers=False, log_level="ERROR"
    )
    app = main.create_app(settings)

    async def start() -> None:
        async with app.router.lifespan_context(app):
            pass

    asyncio.run(start())
    [call] = log.calls
    assert (call.method_name, call.args) == ("warning", ("settings.warning",))
    assert call.kwargs["warning"].startswith("HOST is not loopback")
    assert docs_page.listens_on(settings)[0] == "0.0.0.0"
