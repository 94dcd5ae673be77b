"""`/healthz`, `/readyz`, `/metrics`: whether the process lives, can serve, and how money fares."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import anyio
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

import crud
from database import SessionDep, is_migrated
from errors import DatabaseUnavailable
from observability import metrics
from web.problems import problems
from web.route import ServiceRoute, run_in_thread

router = APIRouter(tags=["Operations"], route_class=ServiceRoute)

# A probe waits so long; the statement has its own limit.
PROBE_WAIT_SECONDS = 2.0


class Health(BaseModel):
    status: str


@router.get(
    "/healthz",
    response_model=Health,
    operation_id="getHealth",
    summary="The process lives",
    responses=problems(public=True),
)
async def healthz() -> Any:
    """Never waits for the database."""
    return Health(status="ok")


@router.get(
    "/readyz",
    response_model=Health,
    operation_id="getReadiness",
    summary="The service can serve",
    responses=problems(public=True),
)
async def readyz(request: Request) -> Any:
    """Whether the database answers, its schema is current or newer, and nothing is shutting down.

    It has a thread and a connection of its own: load and stalls elsewhere do not delay it.
    """
    state = request.app.state
    if state.stopping:
        raise DatabaseUnavailable("The service is shutting down")
    # Requests share the check that is under way, so that strangers delay no probe.
    if state.look is None or state.look.done():
        state.look = asyncio.create_task(_look(state.probe))
    migrated = None
    with anyio.move_on_after(PROBE_WAIT_SECONDS):
        migrated = await asyncio.shield(state.look)
    if migrated is None:
        raise DatabaseUnavailable("The database does not answer")
    if not migrated:
        raise DatabaseUnavailable(
            "The schema is older than this release: run `python cli.py migrate`"
        )
    return Health(status="ready")


async def _look(probe: Engine) -> bool | None:
    """Whether the schema is current or newer; None when the database does not answer."""
    try:
        return await run_in_thread(partial(is_migrated, probe), "probe", 1)
    except SQLAlchemyError:
        return None


@router.get(
    "/metrics",
    response_class=Response,
    operation_id="getMetrics",
    summary="Metrics for Prometheus",
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **problems(public=True),
    },
)
def get_metrics(request: Request, session: SessionDep) -> Response:
    """How many payments are open, and how many wait for a person, at most five seconds ago."""
    recent: metrics.CachedPage = request.app.state.metrics
    page = recent.get(
        lambda: metrics.render(
            payments_open=crud.count_open(session, metrics.MAX_COUNTED),
            payments_need_review=crud.count_needs_review(session, metrics.MAX_COUNTED),
        )
    )
    return Response(page, media_type=metrics.CONTENT_TYPE)
