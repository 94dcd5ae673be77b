"""The service: settings, lifespan, middleware, routers and error handlers, put together.

uvicorn main:app --reload --port 8000
"""

from __future__ import annotations

import gc

# What is loaded stays: looking for garbage in it, again and again, takes a fifth of the start.
gc.disable()

import asyncio
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio.to_thread
import uvicorn
import uvicorn._subprocess
from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

import database
from auth import TokenVerifier
from config import ConfigurationError, Settings, configuration_warnings, get_settings
from gateways.registry import Gateways
from loop_connections import LoopConnections
from middleware import connection_limits
from middleware.cors import Cors
from middleware.request_layer import RequestLayer
from observability import logs, metrics
from routers import (
    checkout,
    disputes,
    errors,
    health,
    orders,
    payment_methods,
    payments,
    root,
    sandbox,
    sandbox_dashboard,
    webhooks,
)
from services.lookups import LookupRules
from services.webhooks import connect_gateways
from statements import PooledSender
from web import docs_page, exception_handlers
from web.route import Routes
from workers.loop import Workers
from workers.roles import Resources

gc.freeze()
gc.enable()

VERSION = "0.1.0"

log = logs.get_logger()
connection_limits.install()


class Service(FastAPI):
    """FastAPI is the router and the document. What surrounds them is one layer of ours."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        # Without FastAPI's telemetry, which looks for OpenTelemetry with each request.
        if self.middleware_stack is None:
            self.middleware_stack = self.build_middleware_stack()
        scope["app"] = self
        await self.middleware_stack(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        settings: Settings = self.state.settings
        return RequestLayer(
            Routes(self.router),
            problem_of=exception_handlers.problem_of,
            allowed_hosts=settings.allowed_hosts,
            cors=_cors(settings),
        )


def create_app(
    settings: Settings | None = None, time_limits: database.TimeLimits = database.SERVING
) -> FastAPI:
    """The application. Raises ConfigurationError when the settings are not safe to run with."""
    settings = settings or get_settings()
    Gateways.check(settings)
    database.check_connections(settings)
    logs.configure(settings.log_level, json=settings.production)
    app = Service(
        title="EStore Payment Service",
        version=VERSION,
        description=docs_page.DESCRIPTION,
        openapi_tags=docs_page.TAGS,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.time_limits = time_limits
    app.state.verifier = TokenVerifier(settings)
    app.state.stopping = False
    app.state.look = None
    app.state.metrics = metrics.CachedPage()
    for module in (
        orders,  # the ones asked for most come first
        payments,
        payment_methods,
        disputes,
        webhooks,
        checkout,
        errors,
        root,
        health,
    ):
        _include(app, module.router)
    if "sandbox" in settings.gateway_names:
        _include(app, sandbox.router)
        if not settings.production:
            _include(app, sandbox_dashboard.router)
    docs_page.install(app, settings)
    return app


def _include(app: FastAPI, router: APIRouter) -> None:
    """Add the routes themselves. `include_router` adds a router that is asked first, each time."""
    app.router.routes.extend(router.routes)


def _cors(settings: Settings) -> Callable[[ASGIApp], ASGIApp] | None:
    if not settings.cors_origins:
        return None
    return partial(
        Cors,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=[
            "Authorization",
            "Content-Type",
            "Idempotency-Key",
            "Sandbox-Fault",
            "X-Request-Id",
            "traceparent",
        ],
        expose_headers=[
            "Idempotent-Replayed",
            "Link",
            "Location",
            "Retry-After",
            "X-Request-Id",
        ],
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    settings: Settings = app.state.settings
    for warning in configuration_warnings(settings, docs_page.listens_on(settings)[0]):
        log.warning("settings.warning", warning=warning)
    # The embedded server and the migrations block for a moment; nothing else runs yet.
    app.state.engine = await anyio.to_thread.run_sync(
        database.open_database, settings, app.state.time_limits
    )
    app.state.reads = LoopConnections(app.state.engine, database.READ_CONNECTIONS)
    app.state.writes = LoopConnections(app.state.engine, database.WRITE_CONNECTIONS)
    app.state.sender = PooledSender(app.state.engine)
    app.state.probe = database.open_probe(settings)
    app.state.gateways = Gateways.from_settings(settings, app.state.engine)
    # What is loaded now stays, so garbage collection need not visit it again. A last visit would
    # take a tenth of a second and find next to nothing.
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    connect_gateways(app.state.engine, app.state.gateways)
    app.state.lookup_rules = LookupRules.from_settings(settings, app.state.gateways)
    workers = Workers(
        Resources(app.state.engine, app.state.gateways, app.state.lookup_rules, settings)
    )
    if settings.run_workers:
        workers.start()
    docs_page.print_greeting(settings)
    connections = connection_limits.Connections(
        settings.connections_per_address, settings.trusted_proxies
    )
    watch = asyncio.create_task(connections.watch())
    yield {"connections": connections}  # which uvicorn hands to its protocol
    watch.cancel()
    app.state.stopping = True
    if settings.run_workers:
        await anyio.to_thread.run_sync(workers.stop)
    await app.state.verifier.aclose()
    app.state.gateways.close()
    app.state.probe.dispose()
    app.state.reads.close()
    app.state.writes.close()
    app.state.engine.dispose()


def serve() -> None:
    """Run the service as the settings say: `python main.py`, or `make run`."""
    settings = get_settings()
    Gateways.check(settings)
    database.check_connections(settings)
    if settings.workers > 1 and sys.platform == "linux":  # macOS's own libraries cannot be forked
        _fork_workers()
    uvicorn.run(
        "main:app",
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        # A worker that says nothing for so long is killed. It cannot while it imports what it
        # needs, which takes more than the default of 5 s on a busy machine, again and again.
        timeout_worker_healthcheck=60,
        loop="uvloop",
        http="httptools",
        access_log=False,  # we write our own, with the request id
        log_config=None,
        server_header=False,
        proxy_headers=True,
        forwarded_allow_ips=settings.trusted_proxies,
        # A gateway call may take its whole timeout; let it end and be settled.
        timeout_graceful_shutdown=int(settings.gateway_timeout) + 5,
    )


def _fork_workers() -> None:
    """Make uvicorn fork its workers off this process, which has loaded the service by then.

    They share the memory of what is loaded, and are ready at once. uvicorn itself would start
    processes that load the service again, each for itself, and has no setting for this.
    Nothing that cannot be forked exists yet: connections and threads are made in `_lifespan`.
    """
    _ = importlib.import_module("main").app  # by the name that the workers will ask for
    # Visited by garbage collection, memory would be written to and no longer be shared.
    gc.freeze()
    uvicorn_processes: Any = uvicorn._subprocess
    uvicorn_processes.spawn = multiprocessing.get_context("fork")
    # A worker that is told to end before it serves must end. It would inherit a handler that only
    # tells its copy of the parent's loop. Blocked meanwhile, no signal is lost in between.
    ends = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def end_by_signals() -> None:
        for number in ends:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ends)

    os.register_at_fork(
        before=partial(signal.pthread_sigmask, signal.SIG_BLOCK, ends),
        after_in_child=end_by_signals,
        after_in_parent=partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, ends),
    )


def __getattr__(name: str) -> Any:
    """`main:app` is made when a server asks for it, so that importing this module does nothing."""
    if name == "app":
        try:
            globals()["app"] = app = create_app()
        except ConfigurationError as error:  # one line for whoever called `uvicorn main:app`
            sys.exit(f"The service does not start: {error}")
        return app
    raise AttributeError(name)


if __name__ == "__main__":
    try:
        serve()
    except ConfigurationError as error:
        sys.exit(f"The service does not start: {error}")
