"""What the requests of a running service touch in PostgreSQL: the pages of each statement's plan.

PostgreSQL's auto_explain sends the plan of each statement to the client that sent it, and a proxy
before the service takes note of it.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

import sqlalchemy as sa

from benchmarks import servers
from benchmarks.load import Load, send
from benchmarks.operations import OPERATIONS, Shop, refuse_errors
from benchmarks.servers import Secrets
from tests.support.postgres_proxy import PostgresProxy

USERS: Final = 20
ORDERS_EACH: Final = 25
WARM_UP: Final = 10
REQUESTS: Final = 20
EXPLAIN: Final = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_buffers": "on",
    "auto_explain.log_format": "json",
    "auto_explain.log_level": "notice",
}


@dataclass(frozen=True, slots=True)
class Touched:
    """What a request touched on average."""

    operation: str
    statements: float
    pages: float
    milliseconds: float  # that PostgreSQL executed; not the parsing and planning


class PlanProxy(PostgresProxy):
    """Takes note of the plans that PostgreSQL sends."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.plans: list[tuple[dict[str, Any], float]] = []  # with the milliseconds that it took

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        listening = _Listening(reader, self._note)
        await super()._answer(cast(asyncio.StreamReader, listening), writer)

    def _note(self, message: str) -> None:
        head, found, plan = message.partition("plan:")
        if found:
            milliseconds = float(head.removeprefix("duration:").strip().removesuffix(" ms"))
            self.plans.append((json.loads(plan)["Plan"], milliseconds))


class _Listening:
    """Reads for somebody else, and passes on the notices in it."""

    def __init__(self, reader: asyncio.StreamReader, note: Callable[[str], None]) -> None:
        self._reader, self._note, self._buffer = reader, note, b""

    async def read(self, size: int) -> bytes:
        data = await self._reader.read(size)
        self._buffer += data
        notices, self._buffer = take_notices(self._buffer)
        for notice in notices:
            self._note(notice)
        return data


def take_notices(buffer: bytes) -> tuple[list[str], bytes]:
    """The texts of the notices in what a server has sent, and what is not whole yet.

    A message is a type, a length that counts itself, and so many bytes; N is a notice, of fields
    that begin with a letter and end with a zero.
    """
    found = []
    while len(buffer) >= 5:
        end = 1 + struct.unpack("!I", buffer[1:5])[0]
        if len(buffer) < end:
            break
        if buffer[:1] == b"N":
            fields = buffer[5:end].split(b"\0")
            found += [text[1:].decode() for text in fields if text[:1] == b"M"]
        buffer = buffer[end:]
    return found, buffer


def measure(url: str, secret: Secrets, tell: Callable[[str], None]) -> Iterator[Touched]:
    """Make some requests of each operation, one after the other. Needs a superuser."""
    shop = Shop(url, secret, USERS)
    shop.seed(ORDERS_EACH)
    name = sa.make_url(url).database
    with servers.connect(url) as connection, connection.cursor() as cursor:
        for setting, value in EXPLAIN.items():
            cursor.execute(f"ALTER DATABASE {name} SET {setting} = '{value}'")
    # Without the background roles: what is open in a database that is filled waits for them.
    proxy = PlanProxy(url)
    with proxy, servers.service(proxy.url, secret, 1, RUN_WORKERS="false") as server:
        shop.prime(server.port, WARM_UP + REQUESTS)
        for operation_name, operation in OPERATIONS.items():
            tell(operation.label)
            requests = operation.requests(shop, WARM_UP + REQUESTS)
            parts = (requests[:WARM_UP], requests[WARM_UP:])
            for part in parts:
                proxy.plans.clear()
                load = Load(server.port, part, False, 1, 60.0, operation.status)
                refuse_errors(operation.label, send(load))
            yield Touched(
                operation_name,
                len(proxy.plans) / REQUESTS,
                sum(pages(plan) for plan, _ in proxy.plans) / REQUESTS,
                sum(milliseconds for _, milliseconds in proxy.plans) / REQUESTS,
            )


def pages(plan: dict[str, Any]) -> int:
    """Pages of 8 KiB that a plan looked at, as often as it did."""
    kinds = ("Shared Hit", "Shared Read", "Temp Read", "Temp Written")
    return sum(int(plan[f"{kind} Blocks"]) for kind in kinds)
