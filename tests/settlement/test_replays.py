"""A repeat gets the first answer to the byte; which answers a key does not keep."""

from __future__ import annotations

import json
import secrets
from typing import Any

import pytest

from config import Settings
from errors import IdempotencyKeyInvalid
from gateways.sandbox import SandboxGateway
from permissions import PAYMENTS_MANAGE
from settlement import idempotency
from tests.support.clients import Api
from tests.support.database import sql
from tests.support.factories import VISA, card, order
from tests.support.keyed_writes import (
    Prepare,
    Write,
    every_write,
    fault,
    kept,
    new_key,
    place,
    same_answer,
    void,
)
from tests.support.shop import (
    DECLINED,
    MANAGES,
    Shop,
    problem,
    settle,
    unreachable,
)

pytestmark = pytest.mark.usefixtures("invariants_hold")


def effects(shop: Shop) -> tuple[Any, ...]:
    """How much there is, of everything."""
    return tuple(
        sql(
            shop.engine,
            "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM payment_methods), "
            "(SELECT count(*) FROM payments), (SELECT count(*) FROM refunds), "
            "(SELECT count(*) FROM events), (SELECT count(*) FROM sandbox.charges), "
            "(SELECT count(*) FROM sandbox.requests WHERE NOT fenced)",
        )[0]
    )


# Finished ---------------------------------------------------------------------------------------


@every_write
def test_a_repeat_gets_the_first_answer_to_the_byte(shop: Shop, prepare: Prepare) -> None:
    write, key = prepare(shop), new_key()
    first = write.send(key)
    assert first.status_code == write.status, first.text
    assert ("Location" in first.headers) == (write.status == 201)
    settle(shop.engine)
    before = effects(shop)
    for _ in range(3):
        same_answer(first, write.send(key))
    assert effects(shop) == before


@every_write
def test_key_order_and_white_space_do_not_make_another_request(
    shop: Shop, prepare: Prepare
) -> None:
    write, key = prepare(shop), new_key()
    first = write.send(key)
    assert first.status_code == write.status, first.text
    backwards = dict(reversed(write.body.items()))
    text = json.dumps(backwards, indent=3, ensure_ascii=True) + "\r\n\t "
    headers = {"Content-Type": "application/json; charset=utf-8"}
    same_answer(first, write.send(key, json=None, content=text.encode(), headers=headers))


@every_write
def test_another_method_path_or_body_is_422(shop: Shop, prepare: Prepare, api: Api) -> None:
    write, key = prepare(shop), new_key()
    reused = (422, "idempotency_key_reused")
    first = write.send(key)
    assert first.status_code == write.status, first.text
    if write.other != write.body:
        assert problem(write.send(key, json=write.other)) == reused
    elsewhere = "/orders" if write.path != "/orders" else "/payment-methods"
    body = card() if elsewhere == "/payment-methods" else order()
    assert problem(write.send(key, method="POST", url=elsewhere, json=body)) == reused
    if write.method == "POST":
        other_method = f"/orders/{shop.place()}/status"
        moved = write.send(key, method="PUT", url=other_method, json={"status": "canceled"})
        assert problem(moved) == reused
    same_answer(first, write.send(key))


def test_no_body_and_an_empty_object_are_not_the_same_json(shop: Shop) -> None:
    write, key = void(shop), new_key()
    assert write.send(key, json=None).status_code == 200
    assert problem(write.send(key, json={})) == (422, "idempotency_key_reused")


def test_keys_belong_to_their_user(shop: Shop, api: Api) -> None:
    key = new_key()
    mine = place(shop).send(key)
    other = api(f"other-{secrets.token_hex(4)}")
    theirs = other.post("/orders", json=order(quantity=3), headers={"Idempotency-Key": key})
    assert theirs.status_code == 201
    assert "Idempotent-Replayed" not in theirs.headers
    assert theirs.json()["id"] != mine.json()["id"]


def test_keys_belong_to_the_subject_whatever_scopes_its_token_has(
    shop: Shop, user: str, api: Api
) -> None:
    write, key = place(shop), new_key()
    first = write.send(key)
    headers = {"Idempotency-Key": key}
    same_answer(first, api(user, MANAGES).post("/orders", json=write.body, headers=headers))


def test_a_decline_is_replayed_under_the_first_request_id(shop: Shop) -> None:
    path = f"/orders/{shop.place()}/payments"
    body = {"payment_method_id": shop.method(DECLINED)}
    key = new_key()
    write = Write(shop.shopper, "POST", path, body, body)
    first = write.send(key, headers={"X-Request-Id": "the-first"})
    assert problem(first) == (402, "payment_declined")
    again = write.send(key, headers={"X-Request-Id": "the-second"})
    same_answer(first, again)
    assert again.json()["request_id"] == "the-first"
    assert again.headers["X-Request-Id"] == "the-second"
    assert len(shop.books(int(path.split("/")[2]))) == 1


def test_conflicts_are_replayed_although_the_state_has_changed(shop: Shop) -> None:
    """An order paid already, a duplicate, an illegal move, an amount: the work ended in them."""
    payment = shop.authorized()
    over = Write(
        shop.manager, "POST", f"/payments/{payment['id']}/capture", {"amount": 5000}, {}, 409
    )
    refused = Write(shop.manager, "POST", f"/payments/{payment['id']}/refunds", {}, {}, 409)
    paid_path = f"/orders/{payment['order_id']}/payments"
    again = Write(shop.shopper, "POST", paid_path, {"payment_method_id": shop.method()}, {}, 409)
    duplicate = Write(shop.shopper, "POST", "/payment-methods", card(), {}, 409)
    status = f"/orders/{payment['order_id']}/status"
    illegal = Write(shop.manager, "PUT", status, {"status": "delivered"}, {}, 409)
    firsts = []
    for write in (over, refused, again, duplicate, illegal):
        key = new_key()
        first = write.send(key)
        assert first.status_code == 409, first.text
        firsts.append((write, key, first))
    shop.do(payment, "capture")
    shop.shopper.delete(f"/payment-methods/{shop.methods.pop(VISA)}")
    for write, key, first in firsts:
        same_answer(first, write.send(key))


def test_a_key_on_a_read_or_a_patch_is_ignored(shop: Shop) -> None:
    headers = {"Idempotency-Key": new_key()}
    method = shop.method()
    for _ in range(2):
        assert shop.shopper.get("/orders", headers=headers).status_code == 200
        body = {"is_default": True}
        answer = shop.shopper.patch(f"/payment-methods/{method}", json=body, headers=headers)
        assert answer.status_code == 200
        assert "Idempotent-Replayed" not in answer.headers
    created = shop.shopper.post("/orders", json=order(), headers=headers)
    assert created.status_code == 201


# Malformed keys ---------------------------------------------------------------------------------


def test_a_malformed_key_is_400(shop: Shop) -> None:
    before = effects(shop)
    keys: list[Any] = ["", "x" * 256, "é".encode(), "ключ".encode(), b"a\tb", b"\xff"]
    for key in keys:
        answer = shop.shopper.post("/orders", json=order(), headers={"Idempotency-Key": key})
        assert problem(answer) == (400, "idempotency_key_invalid"), key
    assert effects(shop) == before


def test_a_blank_key_is_refused_by_the_service_itself(settings: Settings) -> None:
    """A client would not even send it."""
    for values in ([" "], [""], ["a", "a"], ["\t"]):
        with pytest.raises(IdempotencyKeyInvalid):
            idempotency.read_key(values, "POST", "/orders", {}, settings.fingerprint_keys)


def test_a_repeated_key_is_400(shop: Shop) -> None:
    for names in (["Idempotency-Key"] * 2, ["Idempotency-Key", "idempotency-key"]):
        headers = [(name, "same") for name in names]
        answer = shop.shopper.post("/orders", json=order(), headers=headers)
        assert problem(answer) == (400, "idempotency_key_invalid")


@pytest.mark.parametrize("filler", ["x", " ! \"#$%&'()*+,-./:;<=>?@[]^_`{|}~\\"])
def test_a_key_may_hold_any_printable_ascii(shop: Shop, filler: str) -> None:
    for length in (1, 255):
        key = (
            (secrets.token_hex(8) + filler * 300)[: length - 1] + "."
            if length > 1
            else filler.strip()[0]
        )
        write = place(shop)
        first = write.send(key)
        assert first.status_code == 201
        same_answer(first, write.send(key))
        sql(shop.engine, "DELETE FROM idempotency_keys WHERE key = :key", key=key)


@every_write
def test_a_malformed_key_stops_every_write(shop: Shop, prepare: Prepare) -> None:
    write = prepare(shop)
    settle(shop.engine)
    before = effects(shop)
    assert problem(write.send("x" * 256)) == (400, "idempotency_key_invalid")
    assert effects(shop) == before


def test_what_was_refused_before_it_began_is_not_stored(
    shop: Shop, user: str, base_url: str, api: Api
) -> None:
    key = new_key()
    write = place(shop)
    refused = [
        (400, write.send(key, json=order(quantity=0))),
        (400, write.send(key, json=order(payment_method_id=2**40))),
        (
            400,
            write.send(key, json=None, content=b"{", headers={"Content-Type": "application/json"}),
        ),
        (401, write.send(key, headers={"Authorization": "Bearer nonsense"})),
        (403, write.send(key, json=order(user_id="somebody else"))),
        (404, write.send(key, method="POST", url="/orders/0/payments", json={})),
        (404, write.send(key, method="POST", url="/payments/0/capture", json={})),
        (404, write.send(key, method="PUT", url="/orders/0/status", json={"status": "paid"})),
        (413, write.send(key, json=order(product_id="x" * 70_000))),
        (415, write.send(key, json=None, content=b"{}", headers={"Content-Type": "text/plain"})),
    ]
    for status, answer in refused:
        assert answer.status_code == status, answer.text
        assert kept(shop, key) == 0
    first = write.send(key)
    assert first.status_code == 201
    assert "Idempotent-Replayed" not in first.headers
    same_answer(first, write.send(key))


@pytest.mark.parametrize("what", ["capture", "void", "refunds"])
def test_a_refusal_for_want_of_a_scope_is_not_stored(
    shop: Shop, user: str, api: Api, what: str
) -> None:
    key = {"Idempotency-Key": new_key()}
    payment = shop.paid() if what == "refunds" else shop.authorized()
    path = f"/payments/{payment['id']}/{what}"
    assert shop.shopper.post(path, json={}, headers=key).status_code == 403
    allowed = api(user, PAYMENTS_MANAGE).post(path, json={}, headers=key)
    assert allowed.status_code in (200, 201), allowed.text
    assert "Idempotent-Replayed" not in allowed.headers


def test_payment_in_progress_is_not_stored(shop: Shop, sandbox: SandboxGateway) -> None:
    order_id = shop.place()
    path, body = f"/orders/{order_id}/payments", {"payment_method_id": shop.method()}
    write, key = Write(shop.shopper, "POST", path, body, body), new_key()
    with unreachable(sandbox):
        assert shop.try_pay(order_id, **fault("timeout_before_charge")).status_code == 202
        assert problem(write.send(key)) == (409, "payment_in_progress")
        assert kept(shop, key) == 0
    settle(shop.engine)
    assert write.send(key).status_code == 201
