"""`/`: which service this is, and where its documentation is."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, Field

from web.problems import problems
from web.route import ServiceRoute

router = APIRouter(tags=["Operations"], route_class=ServiceRoute)

DOCS = "/docs"
BY_ACCEPT = {"Vary": "Accept"}


class Index(BaseModel):
    name: str
    version: str
    docs: str = Field(description="Swagger UI.")
    redoc: str
    openapi: str
    errors: str = Field(description="Every error code, explained.")


@router.get(
    "/",
    response_model=Index,
    operation_id="getIndex",
    summary="Where the documentation is",
    responses={
        307: {"description": f"A browser (`Accept: text/html`) is led to `{DOCS}`"},
        **problems(public=True),
    },
)
async def get_index(request: Request, response: Response) -> Any:
    """The name and the version of the service, and the paths of its documentation."""
    if _takes_html(request):
        return RedirectResponse(DOCS, headers=BY_ACCEPT)
    response.headers.update(BY_ACCEPT)
    return Index(
        name=request.app.title,
        version=request.app.version,
        docs=DOCS,
        redoc="/redoc",
        openapi="/openapi.json",
        errors="/errors",
    )


def _takes_html(request: Request) -> bool:
    """Whether `Accept` names HTML, as browsers do; `*/*` alone does not."""
    accepted = ",".join(request.headers.getlist("accept")).split(",")
    return any(each.partition(";")[0].strip().lower() == "text/html" for each in accepted)
