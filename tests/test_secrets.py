"""No card number and no security code is ever written down, whatever goes wrong.

A real service on its own embedded server is sent numbers that nobody else has, one for each way
to send one. Then everything it wrote is searched: tables, logs, answers, files. A second service,
made to leak on purpose, proves that each of the searches finds what is there.

What people type, and what the contract leaves to the store, is the matter of test_card_scan.py.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.support.factories import order
from tests.support.leaks import (
    BAD_CVC,
    CVC,
    IBAN,
    Fields,
    Way,
    Witness,
    changed,
    database_of,
    get,
    leaks_in,
    leaks_of,
    post,
    save,
    spaced,
)
from tests.support.processes import Service, copy_sources, wait_for, wait_until_gone

# The sandbox's own: they are declined, or ask the shopper.
DECLINED = ["4000000000000002", "4000000000009995", "4100000000000019", "4000000000000127"]


def raw(content: str | bytes, content_type: str = "application/json", **more: Any) -> Fields:
    headers = {"Content-Type": content_type}
    return {"method": "POST", "url": "/payment-methods", "content": content, "headers": headers} | (
        more
    )


def text_of(number: object) -> str:
    return json.dumps(save(number)["json"])


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
        {400},
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
    "SELECT pid FROM pg_stat_activity WHERE query LIKE '%payment_methods%'"
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
        logs.get_logger().info("leak.planted", note=f"n{number[:12]} cvc={cvc}")
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
