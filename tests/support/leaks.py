"""Sends card numbers to a service, one for each way to send one, and searches all that it wrote."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import sqlalchemy as sa

import auth
import postgres_server
from config import Settings, load_settings
from tests.support.factories import card, order
from tests.support.processes import Service

CVC = "0917"  # with a zero in front: no process, millisecond or amount is written like this
BAD_CVC = "0917-ZQ"
IBAN = "GB82WEST12345698765432"
HOLDS_NUMBER = 12  # this many digits in a row are the number, or too much of it

Fields = dict[str, Any]


class Way(NamedTuple):
    """One way to send a card number, and the statuses that it may be answered with."""

    name: str
    statuses: set[int]
    request: Callable[[str], Fields]


def new_number(random_: random.Random) -> str:
    """A card number that is valid, and in no book."""
    digits = [4, *(random_.randrange(10) for _ in range(14))]
    doubled = sum(sum(divmod(2 * digit, 10)) for digit in digits[::2]) + sum(digits[1::2])
    return "".join(map(str, [*digits, -doubled % 10]))


def spaced(number: str, by: str = " ") -> str:
    return by.join(re.findall(r".{1,4}", number))


def save(number: object, **details: Any) -> Fields:
    body = card("")
    body["details"] |= {"card_number": number, "cvc": CVC} | details
    return {"method": "POST", "url": "/payment-methods", "json": body}


def changed(number: object, **fields: Any) -> Fields:
    request = save(number)
    return request | {"json": request["json"] | fields}


def get(url: str, **more: Any) -> Fields:
    return {"method": "GET", "url": url} | more


def post(url: str, body: Any, **more: Any) -> Fields:
    return {"method": "POST", "url": url, "json": body} | more


class Witness:
    """Sends numbers to a service, and remembers each with the way it went, and every answer."""

    def __init__(self, service: Service, settings: Settings | None = None) -> None:
        self.service = service
        self.random = random.Random(service.port)
        self.sent: dict[str, str] = {}
        self.answers: list[str] = []
        self.settings = settings or load_settings(
            _env_file=None, database_url="unused", data_dir=service.data_dir
        )
        self.token = f"Bearer {auth.mint(self.settings, 'alice')}"
        self.client = httpx.Client(base_url=service.url, timeout=60)

    def __enter__(self) -> Witness:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def number(self, way: str) -> str:
        number = new_number(self.random)
        self.sent[number] = way
        return number

    def ask(self, request: Fields) -> httpx.Response:
        fields = dict(request)
        token = fields.pop("auth", self.token)
        headers = httpx.Headers(fields.pop("headers", None))
        if token is not None:
            headers["Authorization"] = token
        answer = self.client.request(headers=headers, **fields)
        self.answers.append(f"{answer.status_code} {answer.headers} {answer.text}")
        return answer

    def go(self, way: Way) -> None:
        request = way.request(self.number(way.name))
        answer = self.ask(request)
        assert answer.status_code in way.statuses, (way.name, answer.status_code, answer.text)
        if way.statuses == {201}:
            assert self.ask(request).status_code in (201, 409), way.name

    def pay_with(self, number: str) -> httpx.Response:
        self.sent[number] = "paid with"
        method = self.ask(save(number))
        assert method.status_code == 201, method.text
        placed = self.ask(post("/orders", order(payment_method_id=method.json()["id"])))
        return self.ask(post(f"/orders/{placed.json()['id']}/payments", {}))


# Where to look ----------------------------------------------------------------------------------


def forms_of(number: str) -> set[str]:
    """The number, large parts of it, and what anybody could turn back into it."""
    plain = number.encode()
    parts = {
        number[begin : begin + HOLDS_NUMBER] for begin in range(len(number) - HOLDS_NUMBER + 1)
    }
    hashes = {hashlib.new(name, plain).hexdigest() for name in ("md5", "sha1", "sha256", "sha512")}
    return parts | hashes | {plain.hex(), base64.b64encode(plain).decode().rstrip("=")}


def leaks_in(text: str, sent: dict[str, str]) -> set[str]:
    """The ways whose number, or security code, stands in the text in whatever form."""
    joined = re.sub(r"[\s./_-]|%20|\\n", "", text)
    found = {
        way
        for number, way in sent.items()
        if any(form in text or form in joined for form in forms_of(number))
    }
    if re.search(rf"(?<![\w:.+-]){CVC}(?![\w:.+-])", text) or BAD_CVC in text:
        found.add("the security code")
    if IBAN in joined:
        found.add("the IBAN")
    return found


@contextlib.contextmanager
def database_of(data_dir: Path) -> Iterator[sa.Engine]:
    """The embedded server behind a service, joined for a moment."""
    engine = sa.create_engine(postgres_server.ensure_running(data_dir), poolclass=sa.NullPool)
    try:
        yield engine
    finally:
        engine.dispose()
        postgres_server.stop(data_dir)


def tables_of(data_dir: Path) -> str:
    """Every row of every table, as text."""
    with database_of(data_dir) as engine, engine.connect() as connection:
        columns = connection.exec_driver_sql(
            "SELECT table_schema, table_name, column_name, data_type FROM"
            " information_schema.columns JOIN information_schema.tables"
            " USING (table_schema, table_name) WHERE table_type = 'BASE TABLE'"
            " AND table_schema NOT IN ('pg_catalog', 'information_schema')"
        ).all()
        text = []
        for schema, table, column, kind in columns:
            as_text = "encode(\"{}\", 'escape')" if kind == "bytea" else '"{}"::text'
            query = f'SELECT {as_text.format(column)} FROM "{schema}"."{table}"'
            found = connection.exec_driver_sql(query).scalars()
            text += [value for value in found if value is not None]
        return "\n".join(text)


def files_with(data_dir: Path, sent: dict[str, str]) -> set[str]:
    """The ways whose number stands in a file: of a table, of the write-ahead log, of anything."""
    numbers = re.compile(b"|".join(number.encode() for number in sent))
    found = set()
    for path in data_dir.rglob("*"):
        with contextlib.suppress(OSError):  # a socket, or gone
            if path.is_file():
                found |= {sent[match.decode()] for match in numbers.findall(path.read_bytes())}
    return found


def server_logs(data_dir: Path) -> str:
    logs = sorted((data_dir / "postgres").glob("server.log*"))
    assert logs
    return "\n".join(path.read_text(errors="replace") for path in logs)


def leaks_of(witness: Witness) -> dict[str, set[str]]:
    """Everything that the service has written, by place; its data folder is searched last."""
    service, sent = witness.service, witness.sent
    found = {
        "tables": leaks_in(tables_of(service.data_dir), sent),
        "answers": leaks_in("\n".join(witness.answers), sent),
        "log": leaks_in(service.text, sent),
        "PostgreSQL's log": leaks_in(server_logs(service.data_dir), sent),
        "files": files_with(service.data_dir, sent),
    }
    return {place: ways for place, ways in found.items() if ways}
