"""Runs every endpoint: authenticate, read the body, then call it where it may wait.

Endpoints are plain functions. Those for callers with a token run on the event loop, in a greenlet:
it stands still while PostgreSQL or a gateway works. Those for anyone have a few threads.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.exceptions import ResponseValidationError
from fastapi.routing import APIRoute
from starlette.convertors import PathConvertor, StringConvertor
from starlette.types import Receive, Scope, Send

from auth import CurrentUser, authenticate
from config import Settings
from database import SessionDep, retry_transaction
from errors import InvalidRequest, NotFound
from gateways.registry import Gateways
from gateways.sandbox import SandboxGateway, parse_fault
from idempotency_keys import JSON, StoredResponse
from loop_connections import LoopConnections
from middleware.request_layer import send_answer
from permissions import ANYONE, RULES, VisibleTo
from sessions import Session
from settlement import idempotency
from settlement.context import CallContext
from settlement.gateway_calls import GatewayAccess
from statements import PooledSender
from web.arguments import Arguments
from web.json_body import StrictRequest
from web.pagination import ListPage

# Threads for requests without a token: they may wait for each other, and no user waits for them.
PUBLIC_THREADS = 2

_executors: dict[str, ThreadPoolExecutor] = {}
T = TypeVar("T")
_Run = Callable[[Request, dict[str, Any]], Coroutine[Any, Any, Any]]


class ServiceRoute(APIRoute):
    """A route for callers with a token, or for anyone: `permissions.RULES` says which.

    FastAPI matches the path and writes the document. What it would find out about the endpoint's
    parameters with each request is found out once, here.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self.public = ANYONE in RULES[endpoint.__name__]
        super().__init__(path, endpoint, **options)
        self._arguments = Arguments(self.dependant)
        self._run = self._way_to_run(endpoint)
        self.app = self._answer

    def _way_to_run(self, endpoint: Callable[..., Any]) -> _Run:
        if inspect.iscoroutinefunction(endpoint):
            return _as_it_is(endpoint)
        return _in_thread(endpoint) if self.public else _in_loop(endpoint)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = StrictRequest(scope, receive)
        if not self.public:
            await authenticate(request)
        if self.body_field is not None:
            await request.read_json()
        result = await self._run(request, await self._arguments.of(request))
        await _send(self, request, result, send)


class Routes:
    """Finds the endpoint of a request among ours, by its method first; the router does the rest.

    The router asks every route about every request. What no route of ours answers is left to it:
    404, 405, FastAPI's own pages, and everything below a root path.
    """

    def __init__(self, router: APIRouter) -> None:
        self._router = router
        self._by_method: dict[str, list[tuple[Callable[[str], Any], ServiceRoute]]] = {}
        for route in router.routes:
            if isinstance(route, ServiceRoute):
                assert all(isinstance(each, _AS_IT_IS) for each in route.param_convertors.values())
                for method in route.methods or ():
                    found = self._by_method.setdefault(method, [])
                    found.append((route.path_regex.match, route))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["root_path"]:
            for match, route in self._by_method.get(scope["method"], ()):
                found = match(scope["path"])
                if found is not None:
                    scope["route"], scope["path_params"] = route, found.groupdict()
                    await route.app(scope, receive, send)
                    return
        await self._router(scope, receive, send)


_AS_IT_IS = (StringConvertor, PathConvertor)  # what stands in the path is the parameter
PUBLIC = ("public", PUBLIC_THREADS)


def _as_it_is(endpoint: Callable[..., Any]) -> _Run:
    async def run(_: Request, arguments: dict[str, Any]) -> Any:
        return await endpoint(**arguments)

    return run


def _in_loop(endpoint: Callable[..., Any]) -> _Run:
    """Run it in a greenlet, which stands in line with the others that only read, or that write."""
    parameters = inspect.signature(endpoint, eval_str=True).parameters.values()
    writes = any(parameter.annotation == SessionDep for parameter in parameters)

    async def run(request: Request, arguments: dict[str, Any]) -> Any:
        state = request.app.state
        line: LoopConnections = state.writes if writes else state.reads
        return await line.run(_call, {"endpoint": endpoint, "arguments": arguments})

    return run


def _in_thread(endpoint: Callable[..., Any]) -> _Run:
    async def run(_: Request, arguments: dict[str, Any]) -> Any:
        return await run_in_thread(functools.partial(_call, endpoint, arguments), *PUBLIC)

    return run


async def run_in_thread(work: Callable[[], T], kind: str, threads: int) -> T:
    """Run it in one of the threads that requests of this kind share; others wait in line."""
    if kind not in _executors:
        _executors[kind] = ThreadPoolExecutor(threads, thread_name_prefix=kind)
    in_context = functools.partial(contextvars.copy_context().run, work)
    return await asyncio.get_running_loop().run_in_executor(_executors[kind], in_context)


def _call(endpoint: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    session: Session | None = arguments.get("session")
    context: CallContext | None = arguments.get("context")
    work = functools.partial(endpoint, **arguments)
    if session is None:
        return work()
    try:
        if context is None:
            result = retry_transaction(session, work)
        else:
            check = functools.partial(
                _check_permission, session, endpoint.__name__, context, arguments
            )
            result = idempotency.run(session, context, work, check)
    finally:
        session.close()
    return result


def _check_permission(
    session: Session, action: str, context: CallContext, arguments: dict[str, Any]
) -> None:
    """Raises NotFound or Forbidden for what the caller may not do. Services do so too, but a
    stored answer is repeated without them, to a token that may have fewer scopes than the first.
    """
    sender = PooledSender.beside(session)
    if "payment_id" in arguments:
        context.require_payment(sender, action, arguments["payment_id"])
    elif "order_id" in arguments:
        context.require_order(sender, action, arguments["order_id"])
    elif "method_id" not in arguments:  # PATCH and DELETE, of which no answer is stored
        context.require_owner(action, arguments["data"].user_id)


async def _send(route: APIRoute, request: Request, result: Any, send: Send) -> None:
    """Answer with what an endpoint returned: a stored response, JSON, or what becomes JSON."""
    if isinstance(result, StoredResponse):
        await send_answer(result.status, result.headers, result.body, send)
        return
    if isinstance(result, Response):
        await result(request.scope, request.receive, send)
        return
    if isinstance(result, str):
        await send_answer(200, _JSON, result.encode(), send)
        return
    if isinstance(result, ListPage):
        await send_answer(200, {**_JSON, **result.headers}, result.json.encode(), send)
        return
    field = route.response_field
    assert field is not None
    value, errors = field.validate(result, {}, loc=("response",))
    if errors:
        raise ResponseValidationError(errors)
    await send_answer(route.status_code or 200, _JSON, field.serialize_json(value), send)


_JSON = {"Content-Type": JSON}


def service_url(request: Request) -> str:
    """The address at which browsers reach this service, with a slash at its end.

    PUBLIC_URL, or else the address that this connection came in at: never what the caller says.
    """
    settings: Settings = request.app.state.settings
    if settings.public_url is not None:
        return settings.public_url.rstrip("/") + "/"
    host, port = request.scope.get("server") or (settings.host, settings.port)
    if port is None:  # a Unix socket has a path only
        host, port = settings.host, settings.port
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _gateways(request: Request) -> Gateways:
    gateways: Gateways = request.app.state.gateways
    return gateways


def _sandbox(request: Request) -> SandboxGateway:
    sandbox = request.app.state.gateways.get("sandbox")
    if not isinstance(sandbox, SandboxGateway):
        raise NotFound("The sandbox gateway is switched off")
    return sandbox


def _visible_to(request: Request, user: CurrentUser) -> VisibleTo:
    return user.visible_to(request.scope["route"].name)


def _context(
    request: Request,
    user: CurrentUser,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="Makes POST and PUT safe to repeat: the same key is the same request.",
        ),
    ] = None,
) -> CallContext:
    settings: Settings = request.app.state.settings
    request_id = request.scope["state"]["request_id"]
    if idempotency_key is None or request.method not in ("POST", "PUT"):
        return CallContext(user, request_id)
    assert isinstance(request, StrictRequest)
    key = idempotency.read_key(
        request.headers.getlist("idempotency-key"),
        request.method,
        request.scope["path"],
        request.value,
        settings.fingerprint_keys,
    )
    # Longer than any request takes; after that a repeat takes the key over.
    return CallContext(user, request_id, key, settings.gateway_timeout + 5)


def _access(
    request: Request,
    sandbox_fault: Annotated[
        str | None,
        Header(
            description="Development only: what the sandbox gateway does wrong this time, such as "
            "`timeout_after_charge`.",
        ),
    ] = None,
) -> GatewayAccess:
    settings: Settings = request.app.state.settings
    fault = parse_fault(sandbox_fault) if sandbox_fault is not None else None
    if sandbox_fault is not None and (settings.production or fault is None):
        raise InvalidRequest.of(
            "Sandbox-Fault",
            "fault",
            "Not in production" if settings.production else "The sandbox knows no such fault",
        )
    return GatewayAccess(
        gateways=request.app.state.gateways,
        lookup_after=settings.reconcile_after,
        service_url=service_url(request),
        fault=fault,
        deadline=time.monotonic() + settings.gateway_timeout,
    )


SettingsDep = Annotated[Settings, Depends(_settings)]
GatewaysDep = Annotated[Gateways, Depends(_gateways)]
SandboxDep = Annotated[SandboxGateway, Depends(_sandbox)]
VisibleToDep = Annotated[VisibleTo, Depends(_visible_to)]
CallContextDep = Annotated[CallContext, Depends(_context)]
GatewayAccessDep = Annotated[GatewayAccess, Depends(_access)]
