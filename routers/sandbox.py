"""`/sandbox`: the sandbox gateway's books, and its page where a shopper approves or declines."""

from __future__ import annotations

from html import escape
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import TypeAdapter

import crud
import schemas
from auth import CurrentUser
from database import SessionDep, phase
from domain.money import format_money
from errors import Forbidden, InvalidRequest, NotFound
from gateways.sandbox.records import ChargeRow
from permissions import EVERYONE
from services import lookups
from services.payments import RETURN_PAGE
from web.pagination import ListPage, link_to_next
from web.problems import problems
from web.route import GatewaysDep, SandboxDep, ServiceRoute, service_url

CHARGES = TypeAdapter(list[schemas.SandboxCharge])

router = APIRouter(prefix="/sandbox", tags=["Sandbox"], route_class=ServiceRoute)

# Works without JavaScript, loads nothing, posts only to this service, under whatever prefix a proxy
# serves it.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0; min-height: 100vh; display: grid;
         place-items: center; background: #eef1f6; color: #1a2233; }}
  main {{ background: #fff; border-radius: 14px; padding: 2rem 2.25rem; width: 22rem;
         max-width: calc(100vw - 6rem); box-shadow: 0 8px 30px #1a223320; }}
  small {{ color: #5b6577; }}
  h1 {{ font-size: 1.05rem; margin: 0 0 1rem; font-weight: 600; }}
  .amount {{ font-size: 2.1rem; font-weight: 700; margin: 0; letter-spacing: -0.02em; }}
  form {{ margin: 0; }}
  button {{ font: inherit; font-weight: 600; width: 100%; padding: 0.7rem; margin-top: 0.7rem;
           border-radius: 9px; border: 1px solid #c6cddb; background: #fff; cursor: pointer; }}
  button.approve {{ background: #1d5fe0; border-color: #1d5fe0; color: #fff; margin-top: 1.5rem; }}
  button:focus-visible {{ outline: 3px solid #8db4ff; }}
</style>
<main>
<h1>{title}</h1>
{content}
</main>
</html>
"""
QUESTION = """<p class="amount">{amount}</p>
<small>EStore &middot; order {order_id} &middot; sandbox, no real money</small>
<form method="post" action="{reference}/approve"><button class="approve">Approve</button></form>
<form method="post" action="{reference}/decline"><button>Decline</button></form>"""
RESULT = """<p class="amount">{amount}</p>
<small>EStore &middot; order {order_id}. You can close this page.</small>"""
TITLES = {
    "captured": "Payment approved",
    "authorized": "Payment approved",
    "declined": "Payment declined",
    "voided": "This payment was canceled",
}


@router.get(
    "/charges",
    response_model=list[schemas.SandboxCharge],
    operation_id="listSandboxCharges",
    summary="The sandbox gateway's books",
    responses=problems(InvalidRequest, Forbidden, NotFound),
)
def list_charges(
    request: Request,
    user: CurrentUser,
    sandbox: SandboxDep,
    query: Annotated[schemas.SandboxQuery, Query()],
) -> Any:
    """One entry for each charge that the gateway made or declined, whatever we heard of it.

    Newest first; with `order_id` the charges of this order, oldest first.
    """
    user.require("list_charges")
    if query.order_id is not None and not 0 < query.order_id <= schemas.MAX_ID:
        return []
    try:
        entries = sandbox.page(limit=query.limit + 1, order_id=query.order_id, cursor=query.cursor)
    except LookupError:
        raise InvalidRequest.of(
            "cursor", "cursor", "Use the cursor of a `Link` header, unchanged"
        ) from None
    shown = entries[: query.limit]
    is_last = len(entries) <= query.limit
    charges = CHARGES.validate_python([entry.as_dict() for entry in shown])
    return ListPage(
        CHARGES.dump_json(charges).decode(),
        {} if is_last else link_to_next(request, shown[-1].reference),
    )


@router.get("/actions/{reference}", include_in_schema=False)
def show_action(sandbox: SandboxDep, reference: str) -> Response:
    """The page that a payment in `requires_action` sends its shopper to."""
    row = sandbox.action(reference)
    if row is None:
        raise NotFound
    return _page(row)


@router.post("/actions/{reference}/{decision}", include_in_schema=False)
def answer_action(
    request: Request,
    session: SessionDep,
    gateways: GatewaysDep,
    sandbox: SandboxDep,
    reference: str,
    decision: str,
) -> Response:
    """The shopper's answer; then back to the shop, which finds the payment settled."""
    if decision not in ("approve", "decline"):
        raise NotFound
    row = sandbox.answer_action(reference, approve=decision == "approve")
    if row is None:
        raise NotFound
    with phase(session):
        payment = crud.get_payment(session, row.payment_id, EVERYONE)
    if payment is not None:
        lookups.look_up_payment(session, request.app.state.lookup_rules, payment)
    if row.return_url and row.return_url != f"{service_url(request)}{RETURN_PAGE}":
        return RedirectResponse(row.return_url, status_code=303)
    return _page(row)  # which says more than the one for all gateways


def _page(row: ChargeRow) -> Response:
    waiting = row.status == "requires_action"
    content = (QUESTION if waiting else RESULT).format(
        amount=escape(format_money(row.amount, row.currency)),
        order_id=row.order_id,
        reference=escape(row.reference),
    )
    title = "Approve this payment?" if waiting else TITLES[row.status]
    return HTMLResponse(PAGE.format(title=title, content=content), headers=PAGE_HEADERS)
