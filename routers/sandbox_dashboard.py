"""`/sandbox`: the sandbox gateway's own dashboard, a page for people. Never in production.

What is done here bypasses the service, as in a real gateway's dashboard. It needs no login, like
the page where a shopper approves; so its buttons work from this page only, and no page of another
site can press them.
"""

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Annotated, Final
from urllib.parse import parse_qs, quote, urlencode

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from domain.money import format_money, from_major, to_major
from errors import Forbidden, InvalidRequest, NotFound
from gateways.base import NotExecuted
from gateways.sandbox.dashboard import MOST_COUNTED, Dashboard, Switches
from gateways.sandbox.listing import Entry
from web.route import SandboxDep, ServiceRoute

CHARGES: Final = 20  # of a page
PAGE: Final = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
# Loads nothing and runs no script. Browsers name the origin of a form only if they may tell the
# referrer.
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
}
REFUSED: Final = (
    '<p class="card notice" role="alert">Nothing was done: the charge may have changed meanwhile,'
    " or this is not an amount, or more than what is left.</p>"
)
BACK: Final = "../../../sandbox"  # from any of the forms, under whatever prefix a proxy serves

Act = Callable[[Dashboard, str, "int | None"], object]
# What the buttons of a charge do. The first two take an amount, or none for the whole.
ACTS: Final[Mapping[str, Act]] = {
    "refund": lambda dashboard, charge, amount: dashboard.refund(charge, amount),
    "capture": lambda dashboard, charge, amount: dashboard.capture(charge, amount),
    "cancel": lambda dashboard, charge, _: dashboard.cancel(charge),
    "dispute": lambda dashboard, charge, _: dashboard.open_dispute(charge),
    "win-dispute": lambda dashboard, charge, _: dashboard.close_dispute(charge, won=True),
    "lose-dispute": lambda dashboard, charge, _: dashboard.close_dispute(charge, won=False),
}
SWITCHES: Final[Mapping[tuple[str, str], Callable[[Dashboard], None]]] = {
    ("webhooks", "hold"): lambda dashboard: dashboard.hold_webhooks(True),
    ("webhooks", "deliver"): lambda dashboard: dashboard.hold_webhooks(False),
    ("next-charge", "decline"): lambda dashboard: dashboard.decline_next(True),
    ("next-charge", "accept"): lambda dashboard: dashboard.decline_next(False),
}

router = APIRouter(prefix="/sandbox", route_class=ServiceRoute, include_in_schema=False)


async def _read_form(request: Request) -> dict[str, str]:
    """The fields of a form of ours. Raises Forbidden for one that a page of another site sent.

    As Go's CrossOriginProtection does it: browsers say where a form comes from, and who says
    nothing is no browser.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        is_ours = site in ("same-origin", "none")
    else:
        is_ours = origin is None or origin.partition("://")[2] == request.headers.get("host")
    if not is_ours:
        raise Forbidden("The sandbox's dashboard takes forms from its own page only")
    fields = parse_qs((await request.body()).decode("utf-8", "replace"))
    return {name: values[-1] for name, values in fields.items()}


FormDep = Annotated[dict[str, str], Depends(_read_form)]


@router.get("")
def show_dashboard(request: Request, sandbox: SandboxDep) -> Response:
    cursor = request.query_params.get("cursor")
    try:
        entries = sandbox.page(limit=CHARGES + 1, cursor=cursor)
    except LookupError:
        raise InvalidRequest.of("cursor", "cursor", "Begin with the newest charges again") from None
    shown = entries[:CHARGES]
    charges = "".join(_charge(entry, cursor) for entry in shown)
    pages = [] if cursor is None else ['<a href="sandbox">Newest</a>']
    if len(entries) > CHARGES:
        older = urlencode({"cursor": shown[-1].reference})
        pages.append(f'<a href="sandbox?{escape(older)}" rel="next">Older</a>')
    html = PAGE.substitute(
        notice=REFUSED if "refused" in request.query_params else "",
        switches=_switches(sandbox.dashboard.switches(), cursor),
        charges=f"<ol>{charges}</ol>" if charges else "<p>No charges yet: pay an order.</p>",
        pages="".join(pages),
    )
    return HTMLResponse(html, headers=HEADERS)


@router.post("/charges/{reference}/{act}")
def act_on_charge(reference: str, act: str, sandbox: SandboxDep, form: FormDep) -> Response:
    """What a button of a charge does; then back to this charge, or to why nothing was done."""
    charge = sandbox.action(reference)
    if act not in ACTS or charge is None:
        raise NotFound
    written = form.get("amount")  # an empty field is none
    amount = None if written is None else from_major(written, charge.currency)
    try:
        if written is not None and amount is None:
            raise NotExecuted("not an amount of this currency")
        ACTS[act](sandbox.dashboard, reference, amount)
    except NotExecuted:
        return _back(form, refused="yes")
    return _back(form, anchor=f"#{quote(reference)}")


@router.post("/switches/{name}/{position}")
def turn_switch(name: str, position: str, sandbox: SandboxDep, form: FormDep) -> Response:
    if (name, position) not in SWITCHES:
        raise NotFound
    SWITCHES[name, position](sandbox.dashboard)
    return _back(form)


def _back(form: Mapping[str, str], anchor: str = "", **query: str) -> Response:
    """To the page that the form was on."""
    if "cursor" in form:
        query["cursor"] = form["cursor"]
    text = f"?{urlencode(query)}" if query else ""
    return RedirectResponse(f"{BACK}{text}{anchor}", status_code=303)


# HTML -------------------------------------------------------------------------------------------


def _switches(switches: Switches, cursor: str | None) -> str:
    if switches.webhooks_held:
        more = " or more" if switches.waiting >= MOST_COUNTED else ""
        how = f'<strong class="on">Webhooks are held back: {switches.waiting}{more}</strong>'
        webhooks = _form("switches/webhooks/deliver", "Deliver them", cursor, how)
    else:
        how = "<span>Webhooks are delivered</span>"
        webhooks = _form("switches/webhooks/hold", "Hold them back", cursor, how)
    if switches.decline_next:
        how = '<strong class="on">The next charge is declined</strong>'
        next_charge = _form("switches/next-charge/accept", "Do not decline it", cursor, how)
    else:
        how = "<span>Charges follow their card</span>"
        next_charge = _form("switches/next-charge/decline", "Decline the next", cursor, how)
    return webhooks + next_charge


def _charge(entry: Entry, cursor: str | None) -> str:
    row, dispute = entry.charge, entry.dispute
    name = escape(entry.reference)
    reason = f": {row.outcome}" if row.status == "declined" else ""
    states: list[tuple[str, str]] = [(row.status, (row.status + reason).replace("_", " "))]
    if dispute is not None:
        states.append((dispute.status, f"dispute {dispute.status}"))
    badges = "".join(f'<span class="state {kind}">{escape(text)}</span>' for kind, text in states)
    lines = [
        f"{row.created_at:%Y-%m-%d %H:%M:%S} UTC · order {row.order_id} · payment {row.payment_id}"
        f" · {entry.reference}"
    ]
    if row.status == "captured" and row.amount_captured < row.amount:
        lines.append(f"{format_money(row.amount_captured, row.currency)} captured")
    for refund in entry.refunds:
        who = "here" if refund.refund_id is None else f"by the service (refund {refund.refund_id})"
        amount = format_money(refund.amount, row.currency)
        lines.append(f"{amount} refunded {who} · {refund.status} · {refund.reference}")
    if dispute is not None:
        lines.append(f"disputed · {dispute.status} · {dispute.reference}")
    facts = "".join(f'<p class="facts">{escape(line)}</p>' for line in lines)
    return (
        f'<li class="card" id="{name}"><div class="head">'
        f'<h2 id="amount-{name}">{format_money(row.amount, row.currency)}</h2>{badges}</div>'
        f'{facts}<div class="acts">{_acts(entry, cursor)}</div></li>'
    )


def _acts(entry: Entry, cursor: str | None) -> str:
    """The forms of what can be done with a charge now."""
    row, dispute = entry.charge, entry.dispute
    forms: list[tuple[str, str, int | None]] = []  # act, button, amount to begin with
    if row.status == "captured" and entry.left:
        forms.append(("refund", "Refund", entry.left))
    if row.status == "authorized":
        forms.append(("capture", "Capture", row.amount))
    if row.status in ("authorized", "requires_action"):
        forms.append(("cancel", "Cancel", None))
    if row.status == "captured" and dispute is None:
        forms.append(("dispute", "Open a dispute", None))
    if dispute is not None and dispute.status == "open":
        forms += [("win-dispute", "Dispute won", None), ("lose-dispute", "Dispute lost", None)]
    return "".join(
        _form(
            f"charges/{quote(entry.reference, safe='')}/{act}",
            button,
            cursor,
            "" if amount is None else _amount_field(amount, row.currency),
            about=f"amount-{escape(entry.reference)}",
        )
        for act, button, amount in forms
    )


def _amount_field(amount: int, currency: str) -> str:
    return (
        f'<label>{currency} <input name="amount" value="{to_major(amount, currency):f}"'
        f' aria-label="Amount in {currency}" inputmode="decimal" autocomplete="off"></label>'
    )


def _form(
    path: str, button: str, cursor: str | None, before: str = "", about: str | None = None
) -> str:
    """A button, what stands before it, and the id of what it is about. The page is kept."""
    kept = f'<input type="hidden" name="cursor" value="{escape(cursor)}">' if cursor else ""
    described = f' aria-describedby="{about}"' if about else ""
    return (
        f'<form method="post" action="sandbox/{path}">{kept}{before}'
        f"<button{described}>{button}</button></form>"
    )
