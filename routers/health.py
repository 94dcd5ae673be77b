"""`/healthz` and `/readyz`: whether the process lives, and whether it can serve."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from database import is_migrated
from errors import DatabaseUnavailable
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
