"""`GET /`: the index for programs, the documentation for browsers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from main import VERSION

INDEX = {
    "name": "EStore Payment Service",
    "version": VERSION,
    "docs": "/docs",
    "redoc": "/redoc",
    "openapi": "/openapi.json",
    "errors": "/errors",
}
CHROMIUM = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@pytest.fixture
def anyone(base_url: str) -> Iterator[httpx.Client]:
    """A client that takes pages too, not only JSON."""
    with httpx.Client(base_url=base_url) as client:
        yield client


@pytest.mark.parametrize(
    "accept", ["*/*", "", "application/json", "text/plain", "text/*", "text/htmlx, */*", ";,;"]
)
def test_a_program_gets_the_index(anyone: httpx.Client, accept: str) -> None:
    answer = anyone.get("/", headers={"Accept": accept})
    assert (answer.status_code, answer.json()) == (200, INDEX)
    assert answer.headers["content-type"] == "application/json"


def test_without_accept_it_is_the_index(anyone: httpx.Client) -> None:
    del anyone.headers["accept"]
    assert anyone.get("/").json() == INDEX


@pytest.mark.parametrize("accept", [CHROMIUM, "text/html", "Text/HTML;q=0.9", "*/* , text/html"])
def test_a_browser_is_led_to_the_documentation(anyone: httpx.Client, accept: str) -> None:
    answer = anyone.get("/", headers={"Accept": accept})
    assert (answer.status_code, answer.headers["location"]) == (307, "/docs")
    page = anyone.get("/", headers={"Accept": accept}, follow_redirects=True)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")


def test_every_path_of_the_index_is_answered(anyone: httpx.Client) -> None:
    for path in (value for value in INDEX.values() if value.startswith("/")):
        assert anyone.get(path).status_code == 200


@pytest.mark.parametrize("accept", ["*/*", "text/html"])
def test_both_answers_carry_the_headers_of_all_answers(anyone: httpx.Client, accept: str) -> None:
    answer = anyone.get("/", headers={"Accept": accept})
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-request-id"]
    assert answer.headers["vary"] == "Accept"  # they differ by it, should anybody keep them


@pytest.mark.parametrize(("accept", "status"), [("*/*", 200), ("text/html", 307)])
def test_head_is_answered_as_get(anyone: httpx.Client, accept: str, status: int) -> None:
    answer = anyone.head("/", headers={"Accept": accept})
    assert (answer.status_code, answer.content) == (status, b"")


def test_it_is_in_the_openapi_document(anyone: httpx.Client) -> None:
    document: dict[str, Any] = anyone.get("/openapi.json").json()
    assert document["paths"]["/"].keys() == {"get"}
    responses = document["paths"]["/"]["get"]["responses"]
    assert responses.keys() >= {"200", "307"}
    assert "Location" in responses["307"]["headers"]
