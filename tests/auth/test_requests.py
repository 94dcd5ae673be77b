"""What an endpoint learns of its caller."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response

import auth
from errors import ServiceError, Unauthenticated
from permissions import Principal
from tests.support.tokens import (
    settings,
    token,
    verifier,
)

pytestmark = pytest.mark.usefixtures("clock")  # as `auth.py` reads it


# --- The request ---


class Recorder:
    """A verifier that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []

    async def verify(self, authorization: str | None) -> Principal:
        self.asked.append(authorization)
        return Principal("alice")


def request(app: FastAPI, *headers: tuple[str, str]) -> Request:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    return Request({"type": "http", "app": app, "headers": raw, "state": {}})


def shop(subject: Any) -> FastAPI:
    app = FastAPI()
    app.state.verifier = subject

    @app.exception_handler(ServiceError)
    async def answer(_: Request, error: ServiceError) -> Response:
        return Response(error.body("id"), error.status, error.headers)

    @app.get("/me")
    async def me(user: auth.CurrentUser) -> dict[str, Any]:
        return {"user_id": user.user_id, "scopes": sorted(user.scopes)}

    return app


def client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop")


@pytest.mark.anyio
async def test_an_endpoint_gets_its_caller() -> None:
    made = auth.mint(settings(), "alice", "b a")
    async with client(shop(verifier())) as http:
        answer = await http.get("/me", headers={"Authorization": f"bearer {made}"})
    assert answer.json() == {"user_id": "alice", "scopes": ["a", "b"]}


@pytest.mark.anyio
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "Bearer x")],
        [("Authorization", "Basic eA==")],
        [("Authorization", f"Bearer {token()}"), ("Authorization", f"Bearer {token()}")],
        [("Authorization", f"Bearer {token()}"), ("authorization", "Basic eA==")],
        [("Authorization", ""), ("Authorization", f"Bearer {token()}")],
    ],
)
async def test_an_endpoint_answers_401_unless_there_is_one_good_header(
    headers: list[tuple[str, str]],
) -> None:
    async with client(shop(verifier())) as http:
        answer = await http.get("/me", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json()["code"] == "unauthenticated"


@pytest.mark.anyio
async def test_a_request_is_verified_once() -> None:
    recorder = Recorder()
    incoming = request(shop(recorder), ("Authorization", "Bearer x"))
    assert await auth.authenticate(incoming) == await auth.authenticate(incoming)
    assert incoming.state.principal == Principal("alice")
    assert recorder.asked == ["Bearer x"]


@pytest.mark.anyio
async def test_a_caller_established_before_is_not_verified_again() -> None:
    recorder = Recorder()
    incoming = request(shop(recorder))
    incoming.state.principal = Principal("bob")
    assert await auth.authenticate(incoming) == Principal("bob")
    assert recorder.asked == []


@pytest.mark.anyio
async def test_one_request_is_not_anothers() -> None:
    app = shop(verifier())
    mine = request(app, ("Authorization", f"Bearer {token()}"))
    assert await auth.authenticate(mine) == Principal("alice")
    with pytest.raises(Unauthenticated):
        await auth.authenticate(request(app))


def test_the_openapi_document_shows_the_scheme() -> None:
    document = shop(verifier()).openapi()
    scheme = document["components"]["securitySchemes"]["bearer"]
    assert (scheme["type"], scheme["scheme"], scheme["bearerFormat"]) == ("http", "bearer", "JWT")
    assert "`sub`" in scheme["description"]
    operation = document["paths"]["/me"]["get"]
    assert operation["security"] == [{"bearer": []}]
    assert "parameters" not in operation
