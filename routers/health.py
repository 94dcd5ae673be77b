"""`/healthz`, `/readyz`, `/metrics`: whether the process lives, can serve, and how money fares."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

import crud
from database import SessionDep, is_migrated
from errors import DatabaseUnavailable
from observability import metrics
from routers.problems import problems
from routers.route import PublicRoute

router = APIRouter(tags=["Operations"], route_class=PublicRoute)


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
def readyz(request: Request) -> Any:
    """Whether the database answers, its schema is current, and nothing is shutting down."""
    if request.app.state.stopping:
        raise DatabaseUnavailable("The service is shutting down")
    try:
        migrated = is_migrated(request.app.state.engine)
    except SQLAlchemyError:
        raise DatabaseUnavailable("The database does not answer") from None
    if not migrated:
        raise DatabaseUnavailable("Migrations are not applied: run `alembic upgrade head`")
    return Health(status="ready")


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
def get_metrics(session: SessionDep) -> Response:
    """How many payments are open, and how many wait for a person."""
    page = metrics.render(
        payments_open=crud.count_open(session),
        payments_need_review=crud.count_needs_review(session),
    )
    return Response(page, media_type=metrics.CONTENT_TYPE)
