"""Raw connections: what no HTTP client would send, and what comes back."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any


def send_until_cut_off(connection: socket.socket, at_most: int) -> int:
    """How many bytes could be sent until the other side reset the connection."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < at_most:
            sent += connection.send(b"x" * 65536)
    return sent


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side ends; how it ends does not matter."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            received += part
    return received


def problem_of(answer: bytes) -> dict[str, Any]:
    """The problem document of a raw answer, with its headers looked at."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    assert "content-type: application/problem+json" in lines, answer
    assert "connection: close" in lines
    problem: dict[str, Any] = json.loads(body)
    assert lines[0].split()[1] == str(problem["status"])
    assert f"x-request-id: {problem['request_id']}" in lines
    assert problem["type"] == f"/errors/{problem['code']}"
    return problem
