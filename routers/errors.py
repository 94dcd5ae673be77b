"""`/errors`: every code the service answers with, explained, from the classes that are raised."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from errors import NotFound, catalog
from web.problems import problems
from web.route import ServiceRoute

router = APIRouter(prefix="/errors", tags=["Errors"], route_class=ServiceRoute)


class ErrorCode(BaseModel):
    code: str
    status: int
    title: str
    explanation: str
    what_to_do: str
    retryable: bool
    example: dict[str, Any]


@router.get(
    "",
    response_model=list[ErrorCode],
    operation_id="listErrors",
    summary="Every error code",
    responses=problems(public=True),
)
async def list_errors() -> Any:
    """What each code means, whether a retry can help, and an example."""
    return [error.documentation() for error in catalog().values()]


@router.get(
    "/{code}",
    response_model=ErrorCode,
    operation_id="getError",
    summary="One error code, explained",
    responses=problems(NotFound, public=True),
)
async def get_error(code: str) -> Any:
    """The `type` of every problem document leads here."""
    error = catalog().get(code)
    if error is None:
        raise NotFound("There is no such code; GET /errors lists them all")
    return error.documentation()
