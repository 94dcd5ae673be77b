"""`/docs`, `/redoc`, the OpenAPI document and the greeting: complete, offline, ready to try."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import TypeAdapter

import auth
import main
from config import Settings, load_settings
from errors import catalog
from permissions import Principal
from web import docs_page

PAGES = ["/docs", "/redoc"]
MANAGER = frozenset({"orders:manage", "payments:manage", "webhooks:manage"})
# Somewhere else: a scheme, or two slashes that begin an address. example.com is nowhere (RFC 2606).
ELSEWHERE = re.compile(r"https?://(?!(?:[a-z-]+\.)*example(?:\.com)?\b)|[\"'(]//\w")
JWT = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+")


def settings_of(data_dir: Path, environment: str = "development", **more: Any) -> Settings:
    return load_settings(
        _env_file=None,
        environment=environment,
        data_dir=data_dir,
        secret_key="a-secret-of-this-test-and-of-nothing-else",
        fingerprint_key="another-secret-of-this-test-for-fingerprints",
        **{"algorithm": "HS256", "gateways": "sandbox", "host": "127.0.0.1", "port": 8000} | more,
    )


@pytest.fixture
def development(tmp_path: Path) -> Settings:
    return settings_of(tmp_path)


@pytest.fixture(params=["production", "RS256"])
def without_tokens(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings with which nobody is given a token."""
    if request.param == "production":
        return settings_of(tmp_path, "production")
    return settings_of(tmp_path, algorithm="RS256", jwks_url="https://issuer.example/keys")


def ask(app: FastAPI, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost:8000"
        ) as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(run())


def verify(settings: Settings, token: str) -> Principal:
    return asyncio.run(auth.TokenVerifier(settings).verify(f"Bearer {token}"))


# --- The pages --------------------------------------------------------------------------------


@pytest.mark.parametrize("environment", ["development", "production"])
@pytest.mark.parametrize("path", PAGES)
def test_a_page_names_no_address_outside_the_service(
    tmp_path: Path, path: str, environment: str
) -> None:
    page = ask(main.create_app(settings_of(tmp_path, environment)), path)
    assert page.status_code == 200
    assert not ELSEWHERE.search(page.text)


@pytest.mark.parametrize("path", PAGES)
def test_everything_that_a_page_loads_is_served(development: Settings, path: str) -> None:
    app = main.create_app(development)
    page = ask(app, path).text
    loaded = re.findall(r"(?:src|href|spec-url)=\"([^\"]+)\"|\burl: \"([^\"]+)\"", page)
    addresses = {urljoin(path, first or second) for first, second in loaded}
    assert "/openapi.json" in addresses
    assert len(addresses) >= 3
    for address in addresses:
        answer = ask(app, address)
        assert answer.status_code == 200, address
        if address.startswith("/docs/assets/"):
            assert re.fullmatch(r"public, max-age=\d+", answer.headers["cache-control"])
            again = ask(app, address, **{"If-None-Match": answer.headers["etag"]})
            assert again.status_code == 304
            assert again.headers["cache-control"] == answer.headers["cache-control"]


@pytest.mark.parametrize("name", ["", "none.js", "../core.py", "%2e%2e/core.py", "%00", "a" * 300])
def test_a_missing_asset_is_a_problem_document(development: Settings, name: str) -> None:
    answer = ask(main.create_app(development), f"/docs/assets/{name}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "not_found"


@pytest.mark.parametrize("path", PAGES)
def test_a_page_runs_no_script_but_its_own_and_is_not_stored(
    development: Settings, path: str
) -> None:
    app = main.create_app(development)
    page, again = ask(app, path), ask(app, path)
    policy = page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in policy
    assert not re.search(r"script-src[^;]*unsafe", policy)
    assert "http" not in policy
    nonce = re.search(r"'nonce-([\w-]{20,})'", policy)
    assert nonce is not None
    assert nonce.group(1) not in again.headers["content-security-policy"]
    for attributes in re.findall(r"<script([^>]*)>", page.text):
        assert "src=" in attributes or f'nonce="{nonce.group(1)}"' in attributes


def test_in_development_the_page_holds_tokens_that_are_valid(development: Settings) -> None:
    page = ask(main.create_app(development), "/docs").text
    found = re.search(r"const tokens = (\{.*\});", page)
    assert found is not None
    tokens = json.loads(found.group(1))
    assert {user: verify(development, entry["token"]) for user, entry in tokens.items()} == {
        "alice": Principal("alice", frozenset()),
        "manager": Principal("manager", MANAGER),
    }


def test_the_page_holds_no_token_elsewhere(without_tokens: Settings) -> None:
    page = ask(main.create_app(without_tokens), "/docs").text
    assert "SwaggerUIBundle(" in page
    assert not JWT.search(page)
    assert not re.search(r"token|alice|development|\$\w", page)


def test_a_script_of_another_site_is_given_no_token(development: Settings) -> None:
    page = ask(main.create_app(development), "/docs", Origin="https://shop.example")
    assert page.status_code == 200
    assert not JWT.search(page.text)


# --- The OpenAPI document ---------------------------------------------------------------------

Operation = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return main.create_app(settings_of(tmp_path_factory.mktemp("docs")))


@pytest.fixture(scope="module")
def document(service: FastAPI) -> dict[str, Any]:
    answer = ask(service, "/openapi.json")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture(scope="module")
def operations(document: dict[str, Any]) -> list[Operation]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_the_document_is_made_once(service: FastAPI) -> None:
    assert service.openapi() is service.openapi()


def test_the_document_names_no_address_outside_the_service(document: dict[str, Any]) -> None:
    assert not ELSEWHERE.search(json.dumps(document))
    assert all(server["url"].startswith("/") for server in document["servers"])


def test_every_operation_is_named_and_described(
    document: dict[str, Any], operations: list[Operation]
) -> None:
    names = [operation["operationId"] for _, operation in operations]
    assert len(set(names)) == len(names) > 0
    tags = [tag["name"] for tag in document["tags"]]
    assert all(tag["description"] for tag in document["tags"])
    assert set(tags) == {tag for _, operation in operations for tag in operation["tags"]}
    for name, operation in operations:
        assert operation["summary"], name
        assert len(operation["tags"]) == 1, name
        assert operation["tags"][0] in tags, name


def test_every_operation_names_its_problems(operations: list[Operation]) -> None:
    for name, operation in operations:
        responses = operation["responses"]
        expected = {"500", "503"}
        expected |= {"401"} if operation.get("security") else set()
        expected |= {"400", "413", "415"} if "requestBody" in operation else set()
        assert responses.keys() >= expected, name
        for status, response in responses.items():
            assert response["description"], (name, status)
            if status >= "400":
                (content,) = response["content"].items()
                assert content[0] == "application/problem+json", (name, status)
                assert content[1]["schema"] == {"$ref": "#/components/schemas/Problem"}


def test_every_problem_shown_is_one_that_is_answered(
    document: dict[str, Any], operations: list[Operation]
) -> None:
    required = document["components"]["schemas"]["Problem"]["required"]
    for name, operation in operations:
        for status, response in operation["responses"].items():
            for media_type in response.get("content", {}).values():
                for code, example in media_type.get("examples", {}).items():
                    assert example["value"].keys() >= set(required), (name, code)
                    assert example["value"]["status"] == int(status) == catalog()[code].status


def test_the_problem_schema_is_what_the_errors_write(document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["Problem"]
    types = {"string": str, "integer": int, "boolean": bool, "array": list}
    for error in catalog().values():
        problem = error.example_problem()
        assert problem.keys() >= set(schema["required"])
        for member, value in problem.items():
            if member in schema["properties"]:
                assert type(value) is types[schema["properties"][member]["type"]]
            else:
                assert f"`{member}`" in schema["description"]


def test_nothing_is_left_of_the_default_validation_answer(document: dict[str, Any]) -> None:
    assert "ValidationError" not in json.dumps(document)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    references = set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document)))
    assert references
    for reference in references:
        place: Any = document
        for part in reference.split("/"):
            assert part in place, reference
            place = place[part]


def test_headers_are_documented(operations: list[Operation]) -> None:
    for name, operation in operations:
        parameters = {each["name"] for each in operation.get("parameters", [])}
        listed, repeatable = "cursor" in parameters, "Idempotency-Key" in parameters
        for status, response in operation["responses"].items():
            assert "X-Request-Id" in response["headers"], (name, status)
            located = status in ("201", "202", "307")
            assert ("Location" in response["headers"]) == located, name
            assert ("Link" in response["headers"]) == (listed and status == "200"), name
            if repeatable and status in ("201", "402"):
                assert "Idempotent-Replayed" in response["headers"], (name, status)
            if not repeatable or status in ("400", "401", "503"):
                assert "Idempotent-Replayed" not in response["headers"], (name, status)


def test_an_idempotency_key_is_documented_where_it_counts(operations: list[Operation]) -> None:
    for name, operation in operations:
        parameters = {each["name"] for each in operation.get("parameters", [])}
        counts = name.startswith(("POST", "PUT")) and bool(operation.get("security"))
        assert ("Idempotency-Key" in parameters) == counts, name


def test_parameters_can_be_sent_as_they_are_shown(operations: list[Operation]) -> None:
    for name, operation in operations:
        for parameter in operation.get("parameters", []):
            assert "anyOf" not in parameter["schema"], name  # nobody can send null in a query
            if parameter["in"] == "path":
                example = parameter["example"]
                assert example == (1 if parameter["schema"]["type"] == "integer" else example), name


def test_fields_are_shown_under_their_own_names(document: dict[str, Any]) -> None:
    for schema in document["components"]["schemas"].values():
        for field in schema.get("properties", {}).values():
            assert not isinstance(field.get("title"), str)


def body_examples(app: FastAPI) -> Iterator[tuple[str, Any, Any]]:
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if isinstance(route, APIRoute) and route.body_field is not None:
            shown = route.body_field.field_info
            for example in getattr(shown, "openapi_examples", {}).values():
                yield route.operation_id or "", shown.annotation, example["value"]


def test_every_body_shown_is_valid(service: FastAPI, operations: list[Operation]) -> None:
    examples = list(body_examples(service))
    with_body = {each["operationId"] for _, each in operations if "requestBody" in each}
    assert {name for name, _, _ in examples} == with_body
    for _, model, value in examples:
        TypeAdapter(model).validate_python(value)


def test_the_examples_as_they_are_pay_an_order(
    alice: httpx.Client, document: dict[str, Any]
) -> None:
    def first_example(path: str) -> Any:
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        return next(iter(content["examples"].values()))["value"]

    saved = alice.post("/payment-methods", json=first_example("/payment-methods"))
    assert saved.status_code == 201
    placed = alice.post("/orders", json=first_example("/orders")).json()
    body = first_example("/orders/{order_id}/payments")
    paid = alice.post(f"/orders/{placed['id']}/payments", json=body)
    assert paid.status_code == 201
    assert alice.get(paid.headers["location"]).json()["status"] == "captured"


# --- The greeting -----------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _started_by_main(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["main.py"])


def test_the_greeting_comes_once_with_a_token_that_is_valid(
    development: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    docs_page.print_greeting(development)
    docs_page.print_greeting(development)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("http://127.0.0.1:8000/docs") == 1
    (token,) = re.findall(r"^TOKEN=(\S+)$", printed.err, re.MULTILINE)
    assert verify(development, token) == Principal("alice", frozenset())


def test_another_run_greets_again(
    development: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    docs_page.print_greeting(development)
    (development.data_dir / "announced").write_text("an earlier run")
    docs_page.print_greeting(development)
    assert capsys.readouterr().err.count("/docs") == 2


def test_a_data_folder_that_cannot_be_written_stops_nobody(
    development: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    (development.data_dir / "file").touch()
    docs_page.print_greeting(
        development.model_copy(update={"data_dir": development.data_dir / "file"})
    )
    assert "/docs" in capsys.readouterr().err


def test_production_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docs_page.print_greeting(settings_of(tmp_path, "production"))
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_without_a_key_to_sign_with_there_is_only_the_address(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    docs_page.print_greeting(
        settings_of(tmp_path, algorithm="ES256", jwks_url="https://issuer.example/keys")
    )
    printed = capsys.readouterr().err
    assert "http://127.0.0.1:8000/docs" in printed
    assert "TOKEN" not in printed


def test_without_the_sandbox_no_test_card_is_offered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    docs_page.print_greeting(settings_of(tmp_path, gateways="stripe"))
    printed = capsys.readouterr().err
    assert "TOKEN=" in printed
    assert "4242" not in printed


@pytest.mark.parametrize(
    ("arguments", "environment", "address"),
    [
        (["main.py", "--port", "9000"], {}, "127.0.0.1:8123"),
        (["main.py"], {"UVICORN_PORT": "9100"}, "127.0.0.1:8123"),
        (["/usr/bin/uvicorn", "main:app"], {}, "127.0.0.1:8000"),
        (["/usr/bin/uvicorn", "main:app", "--port", "9000", "--reload"], {}, "127.0.0.1:9000"),
        (["/usr/bin/uvicorn", "--port=9000", "main:app"], {}, "127.0.0.1:9000"),
        (["/usr/bin/uvicorn", "main:app"], {"UVICORN_PORT": "9100"}, "127.0.0.1:9100"),
        (["uvicorn/__main__.py", "main:app", "--host", "0.0.0.0"], {}, "localhost:8000"),
        (["uvicorn/__main__.py", "main:app", "--host", "::"], {}, "localhost:8000"),
        (["/usr/bin/uvicorn", "main:app", "--host", "::1"], {}, "[::1]:8000"),
    ],
)
def test_the_address_is_the_one_that_is_listened_on(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
    address: str,
) -> None:
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.delenv("UVICORN_PORT", raising=False)
    monkeypatch.delenv("UVICORN_HOST", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    docs_page.print_greeting(settings_of(tmp_path, port=8123))
    assert f"http://{address}/docs\n" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_what_is_greeted_with_can_be_pasted_twice(
    base_url: str, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = int(base_url.rsplit(":", 1)[1])
    capsys.readouterr()
    docs_page.print_greeting(settings.model_copy(update={"port": port, "data_dir": tmp_path}))
    printed = capsys.readouterr().err
    script = printed[printed.index("TOKEN=") :]
    paid = []
    for _ in range(2):
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        paid.append(json.loads(done.stdout.splitlines()[-1]))
    assert [payment["status"] for payment in paid] == ["captured", "captured"]
    assert paid[0]["order_id"] != paid[1]["order_id"]
