"""Counts what an operation sends to PostgreSQL: each request alone, through a listening proxy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from benchmarks.load import Load, send
from benchmarks.operations import Operation, Shop, refuse_errors
from benchmarks.results import Counts
from benchmarks.servers import Server
from tests.support.postgres_proxy import PostgresProxy

WARM_UP: Final = 10
CONTROL: Final = re.compile(
    r"(BEGIN|START TRANSACTION|COMMIT|ROLLBACK|SAVEPOINT|RELEASE)\b", re.IGNORECASE
)
QUOTED: Final = re.compile(
    r"""E'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|"[^"]*"|\$(\w*)\$.*?\$\1\$""", re.DOTALL
)
GATEWAY: Final = re.compile(r"\bsandbox\.")


def split(message: str) -> list[str]:
    """The statements in one message, without what is quoted in them."""
    bare = QUOTED.sub("''", message)
    return [part.strip() for part in bare.split(";") if part.strip()]


@dataclass(frozen=True, slots=True)
class Traffic:
    """What some requests sent: the messages of each, until the next one."""

    requests: list[list[str]]
    wal_bytes: int
    in_background: bool  # whether a part of it comes after the answer

    def counts(self) -> Counts:
        requests = self.requests if self.in_background else self._undisturbed()
        messages = [message for request in requests for message in request]
        statements = [
            part for message in messages for part in split(message) if not CONTROL.match(part)
        ]
        of_gateway = sum(1 for statement in statements if GATEWAY.search(statement))
        number = len(requests)
        return Counts(
            statements=round((len(statements) - of_gateway) / number, 1),
            gateway_statements=round(of_gateway / number, 1),
            round_trips=round(len(messages) / number, 1),
            wal_bytes=round(self.wal_bytes / len(self.requests)),
        )

    def scripts(self) -> list[str]:
        """Requests as SQL to be sent again."""
        return [
            "".join(f"{message.rstrip().rstrip(';')};\n" for message in request)
            for request in self._undisturbed()
        ]

    def _undisturbed(self) -> list[list[str]]:
        """The requests between which the background roles did not look whether something is due."""
        fewest = min(len(request) for request in self.requests)
        return [request for request in self.requests if len(request) == fewest]


def listen(
    proxy: PostgresProxy,
    server: Server,
    shop: Shop,
    operation: Operation,
    number: int,
    *,
    in_background: bool,
) -> Traffic:
    """Make some requests, one after the other, and wait for what they lead to."""
    requests = operation.requests(shop, WARM_UP + number)
    for request in requests[:WARM_UP]:
        _send(server, operation, request)
    shop.drain()
    position, sent = shop.wal_position(), []
    for request in requests[WARM_UP:]:
        begin = len(proxy.statements)
        _send(server, operation, request)
        sent.append((begin, len(proxy.statements)))
    shop.drain()
    wal_bytes = shop.wal_position() - position
    ends = [begin for begin, _ in sent[1:]] + [len(proxy.statements)]
    messages = [proxy.statements[begin:end] for (begin, _), end in zip(sent, ends, strict=True)]
    return Traffic(messages, wal_bytes, in_background)


def _send(server: Server, operation: Operation, request: bytes) -> None:
    outcome = send(Load(server.port, [request], False, 1, 30.0, operation.status))
    refuse_errors(operation.label, outcome)
