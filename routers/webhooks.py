"""`/webhooks/{gateway}`: what gateways tell us. Verified by their own rules before it is read."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from database import new_session
from errors import BodyTooLarge, GatewayUnavailable, InvalidSignature, NotFound
from routers.problems import problems
from routers.route import PublicRoute
from services import inbox

router = APIRouter(prefix="/webhooks", tags=["Webhooks"], route_class=PublicRoute)


class Received(BaseModel):
    received: bool


@router.post(
    "/{gateway}",
    response_model=Received,
    operation_id="receiveWebhook",
    summary="For gateways: an event",
    responses=problems(InvalidSignature, NotFound, BodyTooLarge, GatewayUnavailable, public=True),
)
async def receive_webhook(request: Request, gateway: str) -> Any:
    """A duplicate is 200 and changes nothing."""
    body = await request.body()
    await run_in_threadpool(_receive, request, gateway, body)
    return Received(received=True)


def _receive(request: Request, gateway: str, body: bytes) -> None:
    state = request.app.state
    with new_session(state.engine) as session:
        inbox.receive(session, state.gateways, gateway, request.headers, body)
