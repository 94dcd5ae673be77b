"""HTTP clients that check every answer, and what tests read from answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cache
from itertools import chain
from typing import Any

import httpx

import auth
from config import Settings

Api = Callable[..., httpx.Client]
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

PROBLEM = {"type", "title", "status", "code", "detail", "request_id", "retryable"}
JSON = {"Content-Type": "application/json"}
ABSENT = 2**63 - 1  # the largest id that a row can have; none of ours ever gets there


@cache
def documented_codes(origin: str) -> dict[str, int]:
    catalog = httpx.get(f"{origin}/errors", verify=False, timeout=60).json()
    return {entry["code"]: entry["status"] for entry in catalog}


def check_answer(answer: httpx.Response) -> None:
    """The rules for all answers. A hook of every client, so that each test checks them too."""
    answer.read()
    asked, headers = answer.request.headers, answer.headers
    assert answer.status_code < 500, answer.text
    given = asked.get("x-request-id", "")
    assert REQUEST_ID.fullmatch(headers["x-request-id"])
    assert headers["x-request-id"] == given or not REQUEST_ID.fullmatch(given)
    assert headers["x-content-type-options"] == "nosniff"
    if not answer.request.url.path.startswith(("/errors", "/healthz")):
        assert headers["cache-control"] == "no-store"
    if answer.status_code == 401:
        assert headers["www-authenticate"].split()[0] == "Bearer"
    if answer.status_code == 405:
        assert headers["allow"]
    if answer.status_code == 201:
        assert headers["location"] == f"{_collection(answer)}/{answer.json()['id']}"
    if answer.status_code == 204 or answer.request.method == "HEAD":
        assert answer.content == b""
    elif answer.status_code >= 400:
        check_problem(answer)
    elif not answer.is_redirect and not headers["content-type"].startswith("text/html"):
        assert headers["content-type"].split(";")[0] == "application/json"
        answer.json()


def check_problem(answer: httpx.Response) -> None:
    assert answer.headers["content-type"].split(";")[0] == "application/problem+json", answer.text
    problem = answer.json()
    assert problem.keys() >= PROBLEM
    assert problem["status"] == answer.status_code
    assert problem["type"] == f"/errors/{problem['code']}"
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert isinstance(problem["retryable"], bool)
    assert all(isinstance(problem[name], str) and problem[name] for name in ("title", "detail"))
    origin = f"{answer.request.url.scheme}://{answer.request.url.netloc.decode()}"
    assert documented_codes(origin).get(problem["code"]) == answer.status_code
    if problem["code"] == "invalid_request":
        assert problem["errors"]
        for error in problem["errors"]:
            assert error.keys() == {"field", "code", "message"}
            assert all(isinstance(value, str) and value for value in error.values())


def _collection(answer: httpx.Response) -> str:
    path = answer.request.url.path
    return "/payments" if path.endswith("/payments") else path


def watched(base_url: str, settings: Settings) -> Iterator[Api]:
    """The `api` of conftest, but each answer is checked, and clients cost no time to make."""
    documented_codes(base_url)  # now, and not by a hundred threads at once
    clients: list[httpx.Client] = []

    def make(user: str | None = None, scope: str = "") -> httpx.Client:
        client = httpx.Client(
            base_url=base_url,
            headers={"Authorization": f"Bearer {auth.mint(settings, user, scope)}"} if user else {},
            timeout=60,
            # Shorter than the server's five seconds: never on a connection it has just closed.
            limits=httpx.Limits(keepalive_expiry=2),
            event_hooks={"response": [check_answer]},
            verify=False,  # plain HTTP: reading the certificate authorities takes 30 ms each time
            trust_env=False,
        )
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


def code(answer: httpx.Response) -> Any:
    """Status and code of a problem, in one look."""
    return answer.status_code, answer.json().get("code")


def fields(answer: httpx.Response) -> set[str]:
    """The places that a validation failure names."""
    assert code(answer) == (400, "invalid_request"), answer.text
    return {error["field"] for error in answer.json()["errors"]}


def but_request_id(answer: httpx.Response) -> tuple[int, dict[str, str], str]:
    """Everything of an answer that does not change from request to request."""
    headers = {name: value for name, value in answer.headers.items() if name != "date"}
    own = headers.pop("x-request-id")
    return answer.status_code, headers, answer.text.replace(own, "…")


def pages(client: httpx.Client, path: str, **query: Any) -> Iterator[list[dict[str, Any]]]:
    """Every page of a list, found by its Link header only."""
    answer = client.get(path, params=query)
    visited: set[str] = set()
    while True:
        assert answer.status_code == 200, answer.text
        page: list[dict[str, Any]] = answer.json()
        assert len(page) <= query.get("limit", 50)
        yield page
        if "next" not in answer.links:
            return
        assert page, "an empty page leads nowhere"
        url = answer.links["next"]["url"]
        assert url not in visited, "the pages go round in a circle"
        visited.add(url)
        answer = client.get(url)


def every(client: httpx.Client, path: str, **query: Any) -> list[dict[str, Any]]:
    """The rows of all pages."""
    return list(chain.from_iterable(pages(client, path, **query)))


def ids(rows: list[dict[str, Any]]) -> list[int]:
    return [row["id"] for row in rows]


def moment(value: str) -> datetime:
    return datetime.fromisoformat(value.replace("Z", "+00:00"))
