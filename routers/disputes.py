"""`/disputes`: shoppers who asked their banks for the money back."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

import crud
import schemas
from auth import CurrentUser
from errors import Forbidden, InvalidRequest
from statements import SenderDep
from web.pagination import Id, next_page
from web.problems import problems, resource_problems
from web.route import ServiceRoute

router = APIRouter(prefix="/disputes", tags=["Disputes"], route_class=ServiceRoute)


@router.get(
    "",
    response_model=list[schemas.DisputeDetails],
    operation_id="listDisputes",
    summary="List disputes",
    responses=problems(InvalidRequest, Forbidden),
)
def list_disputes(
    request: Request,
    sender: SenderDep,
    user: CurrentUser,
    query: Annotated[schemas.DisputeQuery, Query()],
) -> Any:
    """Newest first. Needs the scope `payments:manage`."""
    user.require("list_disputes")
    return next_page(request, crud.list_disputes(sender, query), query)


@router.get(
    "/{dispute_id}",
    response_model=schemas.DisputeDetails,
    operation_id="getDispute",
    summary="Get a dispute",
    responses=resource_problems(),
)
def get_dispute(sender: SenderDep, user: CurrentUser, dispute_id: Id) -> Any:
    """Defend it at the gateway, before `evidence_due_at`. Needs the scope `payments:manage`."""
    user.require("get_dispute")
    return crud.show_dispute(sender, dispute_id)
