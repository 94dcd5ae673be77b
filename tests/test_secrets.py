"""No card number and no security code is ever written down, whatever goes wrong.

A real service on its own embedded server is sent numbers that nobody else has, one for each way
to send one. Then everything it wrote is searched: tables, logs, answers, files. A second service,
made to leak on purpose, proves that each of the searches finds what is there.

Two headers carry what the caller chose for us to keep and give back (X-Request-Id and
Idempotency-Key), and some fields are free text (product_id, metadata, names): what a shop writes
there is its own data.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
import re
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import sqlalchemy as sa

import auth
import postgres_server
from config import load_settings
from tests.conftest import card, order
from tests.processes import Service, copy_sources, wait_for, wait_until_gone

CVC = "0917"  # with a zero in front: no process, millisecond or amount is written like this
BAD_CVC = "0917-ZQ"
IBAN = "GB82WEST12345698765432"
HOLDS_NUMBER = 12  # this many digits in a row are the number, or too much of it

# The sandbox's own: they are declined, or ask the shopper.
DECLINED = ["4000000000000002", "4000000000009995", "4100000000000019", "4000000000000127"]

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


def raw(content: str | bytes, content_type: str = "application/json", **more: Any) -> Fields:
    headers = {"Content-Type": content_type}
    return {"method": "POST", "url": "/payment-methods", "content": content, "headers": headers} | (
        more
    )


def text_of(number: object) -> str:
    return json.dumps(save(number)["json"])


def get(url: str, **more: Any) -> Fields:
    return {"method": "GET", "url": url} | more


def post(url: str, body: Any, **more: Any) -> Fields:
    return {"method": "POST", "url": url, "json": body} | more


WAYS = [
    # Where it belongs
    Way("saved", {201}, lambda n: save(spaced(n))),
    Way("saved with dashes", {201}, lambda n: save(spaced(n, "-"))),
    Way("by somebody else without a token", {401}, lambda n: save(n) | {"auth": None}),
    Way("with a bad check digit", {400}, lambda n: save(f"{n[:-1]}{(int(n[-1]) + 1) % 10}")),
    Way("with digits too many", {400}, lambda n: save(f"{n}0000")),
    Way("with letters around", {400}, lambda n: save(f"card {n}!")),
    Way("in a very long text", {400}, lambda n: save(n * 20)),
    Way("as an integer", {400}, lambda n: save(int(n))),
    Way("as a fraction", {400}, lambda n: save(float(n))),
    Way("in a list", {400}, lambda n: save([n])),
    Way("in an object", {400}, lambda n: save({"number": n})),
    Way("of an expired card", {400}, lambda n: save(n, exp_year=2020)),
    Way("with a code of letters", {400}, lambda n: save(n, cvc=BAD_CVC)),
    Way("with a code that is a number", {400}, lambda n: save(n, cvc=917)),
    Way("with an unknown gateway", {400}, lambda n: changed(n, gateway="nowhere")),
    # In a field for something else
    Way("as the code", {400}, lambda n: save(n, cvc=n)),
    Way("as the year", {400}, lambda n: save(n, exp_year=int(n))),
    Way("as the month", {400}, lambda n: save(n, exp_month=n)),
    Way("as the holder, in a list", {400}, lambda n: save(n, cardholder_name=[n])),
    Way("as the details", {400}, lambda n: changed(n, details=n)),
    Way("as the type", {400}, lambda n: changed(n, payment_type=n)),
    Way("as the gateway", {400}, lambda n: changed(n, gateway=n)),
    Way("as a flag", {400}, lambda n: changed(n, is_default=n)),
    Way("as another user", {403}, lambda n: changed(n, user_id=n)),
    Way(
        "as a token",
        {400},
        lambda n: changed(n, gateway="sandbox", details={"token": n}),
    ),
    Way(
        "as an email address",
        {201},
        lambda n: changed(n, payment_type="paypal", details={"email": f"{n}@example.com"}),
    ),
    Way(
        "as an IBAN",
        {400},
        lambda n: changed(
            n, payment_type="bank_account", details={"iban": n, "account_holder": "A"}
        ),
    ),
    Way("as a field", {400}, lambda n: changed(n, **{n: 1})),
    Way("as a field of the details", {400}, lambda n: save(n, **{f"card_{n}": 1})),
    Way("as an amount", {400}, lambda n: post("/orders", order(total_amount=int(n)))),
    Way("as a currency", {400}, lambda n: post("/orders", order(currency=n))),
    Way("as a quantity of text", {400}, lambda n: post("/orders", order(quantity=n))),
    Way("as somebody's method", {400}, lambda n: post("/orders", order(payment_method_id=int(n)))),
    Way("as a field of an order", {400}, lambda n: post("/orders", order(card_number=n))),
    Way(
        "as a field of a change",
        {400},
        lambda n: post("/payment-methods/1", {"details": {"card_number": n}}, method="PATCH"),
    ),
    Way(
        "as a status",
        {400},
        lambda n: post("/orders/1/status", {"status": n}, method="PUT"),
    ),
    Way("to a gateway's webhook", {400}, lambda n: post("/webhooks/sandbox", {"card": n})),
    # Not JSON, or not of one meaning
    Way("alone", {400}, lambda n: raw(n)),
    Way("alone in quotes", {400}, lambda n: raw(f'"{n}"')),
    Way("in a list of its own", {400}, lambda n: raw(f"[{n}]")),
    Way("cut off", {400}, lambda n: raw(text_of(n)[:-20])),
    Way("cut off in the number", {400}, lambda n: raw('{"card_number": "' + n)),
    Way("in single quotes", {400}, lambda n: raw(text_of(n).replace('"', "'"))),
    Way("with a comma too many", {400}, lambda n: raw(text_of(n).replace("}", ",}"))),
    Way("beside NaN", {400}, lambda n: raw(f'{{"card_number": "{n}", "cvc": NaN}}')),
    Way("twice", {400}, lambda n: raw(f'{{"card_number": "{n}", "card_number": "{n}"}}')),
    Way("as a name twice", {400}, lambda n: raw(f'{{"{n}": 1, "{n}": 2}}')),
    Way("beside a byte that is not UTF-8", {400}, lambda n: raw(text_of(n).encode() + b"\xff")),
    Way("in UTF-16", {400}, lambda n: raw(text_of(n).encode("utf-16"))),
    Way("beside NUL", {400}, lambda n: raw(text_of(n + "\0"))),
    Way("beside half a character", {400}, lambda n: raw(text_of(n + "\ud800"))),
    Way("nested too deeply", {400}, lambda n: raw("[" * 9000 + n + "]" * 9000)),
    Way("in a body too large", {413}, lambda n: raw(text_of(n) + " " * 70_000)),
    Way(
        "in a form",
        {415},
        lambda n: raw(f"card_number={n}", "application/x-www-form-urlencoded"),
    ),
    Way("as plain text", {415}, lambda n: raw(text_of(n), "text/plain")),
    Way("as a media type", {415}, lambda n: raw("{}", f"text/{n}")),
    # In an address
    Way("as an id", {404}, lambda n: get(f"/payment-methods/{n}")),
    Way("as an id with spaces", {404}, lambda n: get(f"/payment-methods/{spaced(n, '%20')}")),
    Way("as an id with dashes", {404}, lambda n: get(f"/payment-methods/{spaced(n, '-')}")),
    Way("as an id with dots", {404}, lambda n: get(f"/payment-methods/{spaced(n, '.')}")),
    Way("as an id with letters", {404}, lambda n: get(f"/payment-methods/card{n}")),
    Way("as an id to delete", {404}, lambda n: get(f"/payment-methods/{n}", method="DELETE")),
    Way("as an order to pay", {404}, lambda n: post(f"/orders/{n}/payments", {})),
    Way("as a payment", {404}, lambda n: get(f"/payments/{n}")),
    Way("as an error code", {404}, lambda n: get(f"/errors/{n}")),
    Way("as a webhook's gateway", {404}, lambda n: post(f"/webhooks/{n}", {})),
    Way("as a page of the sandbox", {404}, lambda n: get(f"/sandbox/actions/{n}")),
    Way("as no address at all", {404}, lambda n: get(f"/{n}")),
    Way("as folders", {404}, lambda n: get(f"/cards/{spaced(n, '/')}")),
    Way("with a method it does not have", {405}, lambda n: get(f"/orders/{n}", method="DELETE")),
    Way("as a limit", {400}, lambda n: get(f"/orders?limit={n}")),
    Way("as a cursor", {200}, lambda n: get(f"/orders?cursor={n}")),
    Way("as a cursor with spaces", {400}, lambda n: get(f"/orders?cursor={spaced(n, '+')}")),
    Way("as a status to look for", {400}, lambda n: get(f"/orders?status={n}")),
    Way("as a moment", {400}, lambda n: get(f"/orders?created_after={n}")),
    Way("as a user to look for", {403}, lambda n: get(f"/orders?user_id={n}")),
    Way("as a method to look for", {200}, lambda n: get(f"/orders?payment_method_id={n}")),
    Way("as an unknown question", {400}, lambda n: get(f"/orders?card_number={n}")),
    Way("as the question itself", {400}, lambda n: get(f"/orders?{n}")),
    Way("beside a health check", {200}, lambda n: get(f"/healthz?card={n}")),
    # In a header
    Way("as a token of the caller", {401}, lambda n: get("/orders", auth=f"Bearer {n}")),
    Way("as a password", {401}, lambda n: get("/orders", auth=f"Basic {n}")),
    Way(
        "as a request id with a sign",
        {200},
        lambda n: get("/orders", headers={"X-Request-Id": f"{n}!"}),
    ),
    Way(
        "as headers of many kinds",
        {200},
        lambda n: get(
            "/orders",
            headers=dict.fromkeys(["Accept", "Cookie", "Origin", "Referer", "User-Agent"], n),
        ),
    ),
    Way(
        "as a key that is none",
        {400},
        lambda n: post("/orders", order(), headers=[("Idempotency-Key", n)] * 2),
    ),
    Way(
        "as a fault of the sandbox",
        {400},
        lambda n: post("/orders/1/payments", {}, headers={"Sandbox-Fault": n}),
    ),
]


class Witness:
    """Sends numbers to a service, and remembers each with the way it went, and every answer."""

    def __init__(self, service: Service, user: str = "alice") -> None:
        self.service = service
        self.random = random.Random(service.port)
        self.sent: dict[str, str] = {}
        self.answers: list[str] = []
        settings = load_settings(_env_file=None, database_url="unused", data_dir=service.data_dir)
        self.token = f"Bearer {auth.mint(settings, user)}"
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


# The services -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("sources") / "service")


@pytest.fixture
def witness(sources: Path, tmp_path: Path) -> Iterator[Witness]:
    settings: Fields = {"LOG_LEVEL": "DEBUG", "GATEWAY_TIMEOUT": 2, "RECONCILE_AFTER": 1}
    with Service(sources, tmp_path / "data", **settings) as service:
        service.wait_until_ready()
        with Witness(service) as witness:
            yield witness
    wait_until_gone(tmp_path / "data")


WAITING_INSERT = sa.text(
    "SELECT pid FROM pg_stat_activity WHERE query LIKE 'INSERT INTO payment_methods%'"
    " AND wait_event_type = 'Lock'"
)


def kill_the_backend_that_saves(witness: Witness) -> None:
    """PostgreSQL loses a process in the middle of an INSERT, and with it all connections."""
    with (
        database_of(witness.service.data_dir) as engine,
        engine.connect() as holder,
        engine.connect() as looker,
        ThreadPoolExecutor(1) as pool,
    ):
        holder.exec_driver_sql("LOCK TABLE payment_methods IN SHARE MODE")
        answer = pool.submit(witness.ask, save(witness.number("while its INSERT is killed")))
        found: list[int] = []

        def is_waiting() -> bool:
            found[:] = looker.scalars(WAITING_INSERT)
            looker.rollback()
            return bool(found)

        wait_for(is_waiting, "the INSERT", 5)
        os.kill(found[0], signal.SIGKILL)
        assert answer.result(60).status_code == 503
        for connection in (holder, looker):
            connection.invalidate()


def kill_the_server(witness: Witness) -> None:
    place = witness.service.data_dir / "postgres" / "cluster" / "postmaster.pid"
    os.kill(int(place.read_text().split()[0]), signal.SIGKILL)


def save_until_it_works(witness: Witness, way: str) -> None:
    """While the database is away every attempt fails, and then one succeeds."""

    def is_saved() -> bool:
        answer = witness.ask(save(witness.number(way)))
        assert answer.status_code in (201, 500, 503), answer.text
        return answer.status_code == 201

    wait_for(is_saved, "the database")


def test_no_number_and_no_code_is_written_down_on_any_path(witness: Witness) -> None:
    for way in WAYS:
        witness.go(way)
    for number in DECLINED:
        assert witness.pay_with(number).status_code == 402
    assert witness.pay_with("4000002760003184").status_code in (201, 202)
    assert witness.pay_with(witness.number("paid with")).status_code == 201

    with socket.create_connection(("127.0.0.1", witness.service.port)) as connection:
        number = witness.number("in something that is not HTTP")
        connection.sendall(f"GET /{number} NONSENSE\r\nX: {number}\r\n\r\n".encode())
        witness.answers.append(connection.recv(10_000).decode(errors="replace"))
    bank = {"iban": spaced(IBAN), "account_holder": "Alice"}
    assert witness.ask(changed("", payment_type="bank_account", details=bank)).status_code == 201

    kill_the_backend_that_saves(witness)
    save_until_it_works(witness, "after a lost connection")
    kill_the_server(witness)
    save_until_it_works(witness, "while the server is away")

    assert witness.service.text.count("http.request") >= len(WAYS), "else nothing is logged"
    assert leaks_of(witness) == {}


LEAKY = """
import sys
import main
from gateways.base import MethodInvalid
from gateways.sandbox import SandboxGateway
from observability import logs

honest = SandboxGateway.save_method

def leak(self, request):
    number, cvc = request.card_number, request.cvc
    if request.details["cardholder_name"] == "answers":
        raise MethodInvalid("details.card_number", "leak", f"{number} {cvc}")
    if request.details["cardholder_name"] == "log":
        logs.get_logger().info("leak.planted", note=f"n{number} {cvc}")
    if request.details["cardholder_name"] == "PostgreSQL's log":
        with self.engine.begin() as connection:
            connection.exec_driver_sql(f"DO $$ BEGIN RAISE LOG '{number} {cvc}'; END $$")
    saved = honest(self, request)
    if request.details["cardholder_name"] == "tables":
        return type(saved)(f"{number} {cvc}", saved.details)
    return saved

SandboxGateway.save_method = leak
main.serve()
"""


def test_each_search_finds_a_leak_that_is_planted_there(sources: Path, tmp_path: Path) -> None:
    places = ["tables", "answers", "log", "PostgreSQL's log"]
    data_dir = tmp_path / "data"
    with Service(sources, data_dir, ("-c", LEAKY), LOG_LEVEL="DEBUG") as service:
        service.wait_until_ready()
        with Witness(service) as witness:
            for place in places:
                answer = witness.ask(save(witness.number(place), cardholder_name=place))
                assert answer.status_code == (400 if place == "answers" else 201), answer.text
            found = leaks_of(witness)
    for place in places:
        assert found[place] == {place, "the security code"}
    assert found["files"] == {"tables", "PostgreSQL's log"}
    wait_until_gone(data_dir)


@pytest.mark.parametrize(
    "leak",
    [
        "card=4929123412341231",
        "4929 1234 1234 1231",
        "4929-1234-1234-1231",
        "/cards/4929.1234.1234.1231",
        '{"card": ["4929", "1234"], "n": "492912341234"}',
        "'492912341234****'",
        hashlib.sha256(b"4929123412341231").hexdigest(),
        base64.b64encode(b"4929123412341231").decode(),
        b"4929123412341231".hex(),
    ],
)
def test_the_search_knows_a_number_in_disguise(leak: str) -> None:
    assert leaks_in(f"before {leak} after", {"4929123412341231": "way"}) == {"way"}


@pytest.mark.parametrize("leak", [f"cvc={CVC} ", f'{{"cvc": "{CVC}"}}', f"({CVC},)", BAD_CVC])
def test_the_search_knows_a_security_code(leak: str) -> None:
    assert leaks_in(f"before {leak} after", {}) == {"the security code"}
