"""Every route, and every service that changes something, against the table of `permissions.py`."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

import auth
import database
import schemas
from config import Settings
from errors import Forbidden, NotFound, ServiceError
from permissions import (
    ANYONE,
    EVERYONE,
    OWNER,
    RULES,
    Principal,
)
from services import orders, payment_methods, payments, refunds, reviews
from sessions import Session
from settlement.context import CallContext
from settlement.gateway_calls import GatewayAccess
from tests.support.factories import card, order, pay, place_order, save_card
from tests.support.shop import ACTION, DISPUTED, until

ALL = "orders:manage payments:manage webhooks:manage"
CALLERS: dict[str, tuple[str, str] | None] = {  # user and scope
    "nobody": None,
    "the owner": ("olivia", ""),
    "the owner with all scopes": ("olivia", ALL),
    "another user": ("steve", ""),
    "orders:manage": ("clerk", "orders:manage"),
    "payments:manage": ("clerk", "payments:manage"),
    "webhooks:manage": ("clerk", "webhooks:manage"),
    "all scopes": ("clerk", ALL),
    "scopes that are no scopes": ("steve", "owner anyone everyone OWNER orders payments:manage:x"),
}
# Without it one is not told that the resource exists.
SEES = {"method_id": "get_payment_method", "order_id": "get_order", "payment_id": "get_payment"}
# Anything but these answers is an open door: what is behind it is for other tests.
REFUSALS = {401: "who is it?", 403: "forbidden", 404: "not found"}


def expected(action: str, caller: tuple[str, str] | None, parameters: set[str]) -> str:
    """What the table says, and that a stranger is not told what there is."""
    if ANYONE in RULES[action]:
        return "open"
    if caller is None:
        return "who is it?"
    user, scopes = caller[0], [word for word in caller[1].split() if word.endswith(":manage")]

    def may(action: str) -> bool:
        who = RULES[action]
        return (OWNER in who and user == "olivia") or any(scope in who for scope in scopes)

    if may(action):
        return "open"
    sees = [SEES[name] for name in parameters & SEES.keys()]
    return "forbidden" if all(may(one) for one in sees) else "not found"


@dataclass
class Olivia:
    """What one user has, for others to want."""

    client: httpx.Client
    order_id: int
    payment_id: int
    refund_id: int
    dispute_id: int
    reference: str  # of a charge that waits for her

    @property
    def method_id(self) -> int:
        """A new one each time: it may be deleted."""
        answer = self.client.post("/payment-methods", json=paypal())
        assert answer.status_code == 201, answer.text
        created: int = answer.json()["id"]
        return created


def paypal() -> dict[str, Any]:
    details = {"email": f"{secrets.token_hex(6)}@example.com"}
    return {"payment_type": "paypal", "details": details}


@pytest.fixture(scope="module")
def clients(base_url: str, settings: Settings) -> Iterator[dict[str, httpx.Client]]:
    # Shorter than the server's five seconds: never a request on a connection it just closed.
    limits = httpx.Limits(keepalive_expiry=2)
    made = {}
    for name, caller in CALLERS.items():
        token = auth.mint(settings, *caller) if caller is not None else None
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        made[name] = httpx.Client(base_url=base_url, headers=headers, timeout=60, limits=limits)
    yield made
    for client in made.values():
        client.close()


@pytest.fixture(scope="module")
def olivia(clients: dict[str, httpx.Client]) -> Olivia:
    client = clients["the owner with all scopes"]
    disputed = save_card(client, DISPUTED)["id"]
    waits = save_card(client, ACTION)["id"]
    paid = pay(client, place_order(client)["id"], payment_method_id=disputed)["id"]
    refunded = client.post(f"/payments/{paid}/refunds", json={"amount": 1, "allow_disputed": True})
    assert refunded.status_code == 201, refunded.text
    waiting = pay(client, place_order(client)["id"], payment_method_id=waits)
    query = {"payment_id": paid}
    (dispute,) = until(lambda: client.get("/disputes", params=query).json(), "the dispute is heard")
    return Olivia(
        client=client,
        order_id=place_order(client)["id"],
        payment_id=paid,
        refund_id=refunded.json()["id"],
        dispute_id=dispute["id"],
        reference=waiting["next_action"]["url"].rpartition("/")[2],
    )


# Routes -----------------------------------------------------------------------------------------

# What goes into a path besides what is Olivia's, and into bodies and queries.
WORDS = {
    "gateway": "sandbox",
    "code": "not_found",
    "decision": "decline",
    "act": "refund",
    "name": "webhooks",
    "position": "deliver",
}
BODIES: dict[str, Callable[[], dict[str, Any]]] = {
    "create_payment_method": lambda: paypal() | {"user_id": "olivia"},
    "create_order": lambda: order(user_id="olivia"),
    "set_order_status": lambda: {"status": "canceled"},
    "review_payment": lambda: {"resolution": "accepted", "note": "seen"},
}
OF_OLIVIA = {"list_payment_methods", "list_orders", "list_payments"}
NOT_JSON = {"receive_webhook", "answer_action", "act_on_charge", "turn_switch"}


@dataclass(frozen=True)
class Route:
    method: str
    path: str

    @property
    def parameters(self) -> set[str]:
        return set(re.findall(r"{(\w+)}", self.path))


def routes_of(app: FastAPI) -> list[tuple[str, Route]]:
    found = []
    for context in iter_route_contexts(app.routes):
        route: Any = context.original_route
        methods = getattr(route, "methods", None) or {"GET"}  # a mount of files has none
        path = route.path if route.name != "assets" else f"{route.path}/favicon.png"
        found += [(route.name, Route(method, path)) for method in methods - {"HEAD"}]
    return found


@pytest.fixture(scope="module")
def routes(app: FastAPI) -> dict[str, Route]:
    return dict(routes_of(app))


def test_every_route_has_a_row_of_its_own(app: FastAPI) -> None:
    assert sorted(name for name, _ in routes_of(app)) == sorted(RULES)


@pytest.mark.parametrize("action", RULES)
def test_a_route_does_for_each_caller_what_its_row_says(
    action: str, routes: dict[str, Route], clients: dict[str, httpx.Client], olivia: Olivia
) -> None:
    route = routes[action]
    query = {"user_id": "olivia"} if action in OF_OLIVIA else {}
    found = {}
    for name, client in clients.items():
        values = {key: WORDS.get(key) or getattr(olivia, key) for key in route.parameters}
        has_body = route.method in ("POST", "PUT", "PATCH") and action not in NOT_JSON
        answer = client.request(
            route.method,
            route.path.format(**values),
            params=query,
            json=BODIES.get(action, dict)() if has_body else None,
        )
        assert answer.status_code < 500, answer.text
        found[name] = REFUSALS.get(answer.status_code, "open")
    assert found == {
        name: expected(action, caller, route.parameters) for name, caller in CALLERS.items()
    }


@pytest.mark.parametrize("action", ["list_orders", "list_payments"])
def test_a_list_shows_what_its_row_lets_a_caller_see(
    action: str, routes: dict[str, Route], clients: dict[str, httpx.Client], olivia: Olivia
) -> None:
    for name, caller in CALLERS.items():
        if caller is not None:
            answer = clients[name].get(routes[action].path)
            assert answer.status_code == 200, answer.text
            sees = any(row["user_id"] == "olivia" for row in answer.json())
            assert sees == (expected(action, caller, set()) == "open"), name


# Services ---------------------------------------------------------------------------------------


@dataclass
class Call:
    """What a service is called with."""

    session: Session
    context: CallContext
    access: GatewayAccess


Service = Callable[[Call, int], object]

CARD = schemas.CardCreate.model_validate(card(user_id="olivia"))
ORDER = schemas.OrderCreate.model_validate(order(user_id="olivia"))
SEEN = schemas.ReviewCreate(resolution="accepted", note="seen")
# By action: what it is done to, and the service that does it.
SERVICES: dict[str, tuple[str | None, Service]] = {
    "create_payment_method": (
        None,
        lambda c, _: payment_methods.create(
            c.session, c.context, c.access.gateways, [b"key"], "USD", CARD
        ),
    ),
    "update_payment_method": (
        "method_id",
        lambda c, method_id: payment_methods.update(
            c.session, c.context, method_id, schemas.PaymentMethodUpdate()
        ),
    ),
    "delete_payment_method": (
        "method_id",
        lambda c, method_id: payment_methods.delete(c.session, c.context, method_id),
    ),
    "create_order": (
        None,
        lambda c, _: orders.create(c.session, c.context, ORDER, "USD"),
    ),
    "set_order_status": (
        "order_id",
        lambda c, order_id: orders.set_status(c.session, c.context, c.access, order_id, "canceled"),
    ),
    "pay_order": (
        "order_id",
        lambda c, order_id: payments.pay(
            c.session, c.context, c.access, order_id, schemas.PaymentCreate()
        ),
    ),
    "confirm_payment": (
        "payment_id",
        lambda c, payment_id: payments.confirm(c.session, c.context, c.access, payment_id, {}),
    ),
    "capture_payment": (
        "payment_id",
        lambda c, payment_id: payments.capture(c.session, c.context, c.access, payment_id, None),
    ),
    "void_payment": (
        "payment_id",
        lambda c, payment_id: payments.void(c.session, c.context, c.access, payment_id),
    ),
    "refund_payment": (
        "payment_id",
        lambda c, payment_id: refunds.refund(
            c.session, c.context, c.access, payment_id, schemas.RefundCreate()
        ),
    ),
    "review_payment": (
        "payment_id",
        lambda c, payment_id: reviews.end_review(c.session, c.context, payment_id, SEEN),
    ),
}


def outcome(serve: Service, call: Call, target: int) -> str:
    try:
        serve(call, target)
    except (Forbidden, NotFound) as error:
        return REFUSALS[error.status]
    except ServiceError:
        pass
    return "open"


@pytest.mark.parametrize("action", SERVICES)
def test_a_service_refuses_what_its_caller_may_not_do(
    action: str, app: FastAPI, engine: sa.Engine, olivia: Olivia
) -> None:
    parameter, serve = SERVICES[action]
    access = GatewayAccess(gateways=app.state.gateways, lookup_after=1)
    found, rules = {}, {}
    for name, caller in CALLERS.items():
        if caller is None:
            continue
        context = CallContext(Principal(caller[0], frozenset(caller[1].split())), "a-request")
        target = getattr(olivia, parameter) if parameter is not None else 0
        with database.new_session(engine) as session:
            found[name] = outcome(serve, Call(session, context, access), target)
        rules[name] = expected(action, caller, {parameter} if parameter is not None else set())
    assert found == rules


def test_every_service_that_changes_something_for_a_caller_is_called_here() -> None:
    reads = ("get_", "list_")
    changes = {
        action
        for action, who in RULES.items()
        if ANYONE not in who and not action.startswith(reads)
    }
    assert SERVICES.keys() == changes


@pytest.mark.parametrize("caller", ["another user", "payments:manage", "webhooks:manage"])
def test_a_payment_is_not_canceled_with_an_order_by_who_may_not_move_it(
    caller: str, app: FastAPI, engine: sa.Engine, olivia: Olivia
) -> None:
    who = CALLERS[caller]
    assert who is not None
    context = CallContext(Principal(who[0], frozenset(who[1].split())), "a-request")
    access = GatewayAccess(gateways=app.state.gateways, lookup_after=1)
    with database.new_session(engine) as session, pytest.raises((Forbidden, NotFound)):
        payments.cancel_with_order(session, context, access, olivia.payment_id)


# The table's own words --------------------------------------------------------------------------


def test_a_scope_is_required_by_its_whole_name() -> None:
    Principal("alice", frozenset({"payments:manage"})).require("list_disputes")
    for scope in ("orders:manage", "payments", "payments:manage:all", "", "owner", "anyone"):
        with pytest.raises(Forbidden, match="`payments:manage`"):
            Principal("alice", frozenset({scope})).require("list_disputes")


def test_a_caller_sees_their_own_or_with_the_scope_everyones() -> None:
    assert Principal("alice").visible_to("list_orders") == "alice"
    assert Principal("alice", frozenset({"orders:manage"})).visible_to("list_orders") is EVERYONE


def test_a_refusal_says_what_would_be_needed() -> None:
    with pytest.raises(Forbidden, match="with the scope `orders:manage` or `payments:manage`"):
        Principal("alice").require("get_payment", "bob")
    with pytest.raises(Forbidden, match="Only its owner"):
        Principal("alice", frozenset({"orders:manage"})).require("delete_payment_method", "bob")
