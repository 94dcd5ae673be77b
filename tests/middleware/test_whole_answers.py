"""An answer is one write: its head and its body in one packet."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from middleware.connection_limits import answer_whole

HEADERS = [(b"content-type", b"text/plain"), (b"content-length", b"2")]


def cycle(**changes: Any) -> Any:
    writes: list[bytes] = []
    return SimpleNamespace(
        **{
            "disconnected": False,
            "response_started": False,
            "response_complete": False,
            "keep_alive": True,
            "scope": {"method": "GET"},
            "flow": SimpleNamespace(write_paused=False),
            "default_headers": [(b"date", b"today")],
            "message_event": SimpleNamespace(set=lambda: None),
            "transport": SimpleNamespace(write=writes.append),
            "on_response": lambda: None,
            "writes": writes,
        }
        | changes
    )


def test_head_and_body_are_one_write() -> None:
    to = cycle()
    assert answer_whole(to, 200, HEADERS, b"ok")
    assert to.writes == [
        b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok"
    ]
    assert to.response_started
    assert to.response_complete


@pytest.mark.parametrize("sign", [b"\r\n", b"\n", b"\r"])
def test_a_header_with_a_line_break_is_not_sent(sign: bytes) -> None:
    to = cycle()
    with pytest.raises(RuntimeError):
        answer_whole(to, 200, [*HEADERS, (b"location", b"/a" + sign + b"evil: 1")], b"ok")
    assert to.writes == []


@pytest.mark.parametrize(
    "changes",
    [
        {"disconnected": True},
        {"response_started": True},
        {"keep_alive": False},
        {"scope": {"method": "HEAD"}},
        {"flow": SimpleNamespace(write_paused=True)},
    ],
)
def test_what_is_special_is_left_to_uvicorn(changes: dict[str, Any]) -> None:
    to = cycle(**changes)
    assert not answer_whole(to, 200, HEADERS, b"ok")
    assert to.writes == []


@pytest.mark.parametrize("headers", [HEADERS[:1], [*HEADERS, (b"connection", b"close")]])
def test_an_answer_without_a_length_or_the_last_one_is_left_to_uvicorn(
    headers: list[tuple[bytes, bytes]],
) -> None:
    assert not answer_whole(cycle(), 200, headers, b"ok")


def test_the_service_sends_whole_answers(
    alice: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[str] = []
    send = RequestResponseCycle.send

    async def watched(self: RequestResponseCycle, message: Any) -> None:
        parts.append(message["type"])
        await send(self, message)

    monkeypatch.setattr(RequestResponseCycle, "send", watched)
    assert alice.get("/orders").status_code == 200
    assert alice.get("/orders/0").status_code == 404
    assert parts == []
    assert alice.head("/orders").content == b""
    assert parts == ["http.response.start", "http.response.body"]
