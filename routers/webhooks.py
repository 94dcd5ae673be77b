"""`/webhooks/{gateway}`: events from gateways, verified by each gateway's own rules."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from database import new_session, retry_transaction
from errors import BodyTooLarge, GatewayUnavailable, InvalidSignature, NotFound, PaymentInProgress
from services import webhooks
from web.problems import problems
from web.route import ServiceRoute, run_in_thread

WEBHOOK_THREADS = 16  # of each gateway

router = APIRouter(prefix="/webhooks", tags=["Webhooks"], route_class=ServiceRoute)


class Received(BaseModel):
    received: bool


@router.post(
    "/{gateway}",
    response_model=Received,
    operation_id="receiveWebhook",
    summary="For gateways: an event",
    responses=problems(
        InvalidSignature, NotFound, PaymentInProgress, BodyTooLarge, GatewayUnavailable, public=True
    ),
)
async def receive_webhook(request: Request, gateway: str) -> Any:
    """A duplicate is 200 and changes nothing."""
    body = await request.body()
    if request.app.state.gateways.get(gateway) is None:
        raise NotFound
    # Threads for each gateway: reading an event may mean to ask the gateway, which may be slow.
    await run_in_thread(
        partial(_receive, request, gateway, body), f"webhooks {gateway}", WEBHOOK_THREADS
    )
    return Received(received=True)


def _receive(request: Request, gateway: str, body: bytes) -> None:
    state = request.app.state
    with new_session(state.engine) as session:
        take = partial(webhooks.receive, session, state.gateways, gateway, request.headers, body)
        retry_transaction(session, take)
