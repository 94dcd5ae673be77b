"""Compares our books with a gateway's, page by page, and looks up every payment that differs.

A difference moves no money here: the payment is looked up, and the answer is applied like any
other. So what somebody does in the gateway's dashboard comes into our books, webhook or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from sqlalchemy import Engine

import crud
import invariants
import leases
from database import new_session, phase, read_clock
from domain.states import ChargeStatus, PaymentStatus
from gateways import base
from observability.logs import get_logger
from rows import PaymentRow, RefundRow
from services.lookups import RECONCILER, LookupRules, look_up_everything_open
from sessions import Session
from settlement import gateway_requests
from settlement.apply import settle_charge, settle_dispute
from settlement.gateway_calls import call_gateway, known_state
from settlement.gateway_requests import RowSnapshot
from settlement.transitions import ChangedBy, locked_payment

log = get_logger()

COMPARE_EVERY: Final = 120.0  # seconds; changes made outside are in our books within minutes
FIRST_WINDOW: Final = timedelta(days=7)  # of a gateway that was never compared
# For clock skew, and rows that are written but not committed.
OVERLAP: Final = timedelta(minutes=5)
LEASE: Final = 600.0  # seconds; then another process takes over
PAGE_SIZE: Final = 500  # of our own payments
# Where a gateway cannot list what changed, each payment is read again at these ages: most changes
# in a dashboard whose webhook was lost are found while the payment is young.
REREAD_AGES: Final = [timedelta(minutes=2 * 2**number) for number in range(18)]  # half a year

# How a payment's status reads in a gateway's books.
EXPECTED_CHARGE_STATUS: Final[dict[PaymentStatus, frozenset[ChargeStatus]]] = {
    "requires_action": frozenset({"requires_action"}),
    "authorized": frozenset({"authorized"}),
    "captured": frozenset({"captured"}),
    "partially_refunded": frozenset({"captured"}),
    "refunded": frozenset({"captured"}),
    "failed": frozenset({"declined"}),
    "voided": frozenset({"voided"}),
    "canceled": frozenset({"voided", "declined"}),
}
# The list must show these; a gateway may forget charges that never held money.
ALWAYS_LISTED: Final[frozenset[PaymentStatus]] = frozenset(
    {"authorized", "captured", "partially_refunded", "refunded"}
)

Mismatch = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ComparedCharge:
    """One charge in the gateway's list beside our payment, and how they differ."""

    payment: PaymentRow | None
    listed: base.ListedCharge
    difference: Mismatch | None


def run_once(session: Session, rules: LookupRules, name: str) -> int:
    """Compare what changed lately at a gateway with our books, if that is due.

    Returns how many pages there were.
    """
    gateway = rules.gateways.get(name)
    if gateway is None or not can_compare(gateway):
        return 0
    with phase(session):
        window = leases.claim_comparison(session, name, first_window=FIRST_WINDOW, lease=LEASE)
    if window is None:
        return 0
    lease = window.leased_until
    compared = 0
    for _ in _compare_window(session, gateway, window):
        compared += 1
        with phase(session):
            renewed = leases.renew_comparison(session, name, lease, lease=LEASE)
        if renewed is None:
            return compared  # another process has leased it
        lease = renewed
    with phase(session):
        leases.finish_comparison(session, name, lease, until=window.until, next_in=COMPARE_EVERY)
    return compared


def _compare_window(
    session: Session, gateway: base.Gateway, window: leases.Window
) -> Iterator[None]:
    """Compare a window page by page; if the gateway has no list, schedule our payments by age."""
    for page in list_pages(gateway, window.since - OVERLAP):
        for one in _compare_page(session, gateway, page.charges):
            if one.payment is not None and one.difference is not None:
                _look_up_difference(session, gateway, one.payment, one.listed.charge)
        yield
    if gateway.capabilities.lists_charges:
        return
    for age in REREAD_AGES:
        for _ in schedule_rereads(session, gateway.name, window.since - age, window.until - age):
            yield


def schedule_rereads(
    session: Session, gateway: str, since: datetime, until: datetime
) -> Iterator[None]:
    """Have payments that were made between the two times looked up now, page by page."""
    last: leases.Aged | None = None
    while True:
        with phase(session):
            page = leases.list_aged_payments(session, gateway, since, until, last, limit=PAGE_SIZE)
        for aged in page:
            if aged.is_settled:
                with phase(session):
                    leases.schedule_reread(session, aged.user_id, aged.id)
        yield
        if len(page) < PAGE_SIZE:
            return
        last = page[-1]


def _look_up_difference(
    session: Session, gateway: base.Gateway, payment: PaymentRow, charge: base.Charge
) -> None:
    """Schedule a look-up of a payment that differs from the list.

    No look-up shows another charge for the same payment, so that one is settled at once.
    """
    if _is_other_charge(payment, charge):
        by = ChangedBy.gateway(gateway.name)
        with locked_payment(session, by, payment) as locked:
            settle_charge(locked, charge, "hint")
    else:
        schedule_lookup_now(session, payment)


def _is_other_charge(payment: PaymentRow, charge: base.Charge) -> bool:
    return payment.gateway_reference not in (None, charge.reference, charge.replaces)


def can_compare(gateway: base.Gateway) -> bool:
    """Whether the gateway lists its charges, or shows each of ours when it is asked."""
    return gateway.capabilities.lists_charges or gateway.capabilities.can_retrieve


def schedule_lookup_now(session: Session, payment: PaymentRow) -> None:
    """Schedule a look-up for now; the payment may have changed since it was read."""
    with locked_payment(session, RECONCILER, payment) as locked:
        if locked.payment.status != "pending" and locked.payment.operation is None:
            leases.schedule_lookup(session, locked.payment, locked.now, "now")


def compare(
    session: Session,
    gateway: base.Gateway,
    since: datetime | None = None,
    *,
    settles: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[Mismatch]:
    """The differences between our books and a gateway's, in what was made or changed since then.

    With `settles`, a payment that differs is looked up at once, and reported only if it still
    differs. `progress` is called with the number of charges compared. Empty for a gateway that
    cannot be compared. Raises NotExecuted and OutcomeUnknown when the gateway cannot be asked.
    """
    if not gateway.capabilities.lists_charges:
        if settles and gateway.capabilities.can_retrieve:
            yield from _read_ours(session, gateway, since, progress)
        return
    with phase(session):
        began = read_clock(session)
    seen: set[int] = set()  # our ids, some 60 bytes each
    charges = (
        one
        for page in list_pages(gateway, since)
        for one in _compare_page(session, gateway, page.charges)
    )
    for count, one in enumerate(charges, 1):
        if one.payment is not None:
            seen.add(one.payment.id)
        difference = one.difference
        if difference is not None and one.payment is not None:
            if settles:
                difference = _settle(session, gateway, one.payment, one.listed.charge)
            elif _is_accepted(one.payment):
                difference = None
        if difference is not None:
            yield difference
        if count % PAGE_SIZE == 0:
            progress(count)
    for payment in _recent_payments(session, gateway, since):
        # A payment that is newer than the list may not be in it.
        if payment.id in seen or payment.created_at >= began or not _must_be_listed(payment):
            continue
        difference = _mismatch(payment, "number_of_charges", payment.status, 0)
        if settles and payment.gateway_reference is not None:
            difference = _settle(session, gateway, payment, None) or difference
        if not _is_accepted(payment):
            yield difference


def _must_be_listed(payment: PaymentRow) -> bool:
    return payment.status in ALWAYS_LISTED and payment.operation is None


def _read_ours(
    session: Session, gateway: base.Gateway, since: datetime | None, progress: Callable[[int], None]
) -> Iterator[Mismatch]:
    """Look up each of our payments, for a gateway that cannot list its charges."""
    with phase(session):
        since = since or read_clock(session) - FIRST_WINDOW
    count = 0
    for payment in _recent_payments(session, gateway, since):
        if payment.status not in ALWAYS_LISTED or payment.gateway_reference is None:
            continue
        difference = _settle(session, gateway, payment, None)
        if difference is not None:
            yield difference
        count += 1
        if count % 10 == 0:
            progress(count)


def _settle(
    session: Session, gateway: base.Gateway, payment: PaymentRow, listed: base.Charge | None
) -> Mismatch | None:
    """Look a payment up, and compare it with what the gateway shows now, or else with `listed`."""
    with phase(session):
        payment = crud.require_payment(session, payment.id, payment.user_id)
        method = crud.get_charged_payment_method(session, payment)
    snapshot = RowSnapshot.of_payment(payment)
    query = gateway_requests.charge_lookup(payment, method)
    charge = known_state(call_gateway(gateway, "look_up", lambda: gateway.look_up(query)))
    if charge is not None:
        by = ChangedBy.gateway(gateway.name)
        with locked_payment(session, by, payment) as locked:
            settle_charge(locked, charge, snapshot.source(locked.payment))
    with phase(session):
        payment = crud.require_payment(session, payment.id, payment.user_id)
        refunds = invariants.list_refunds_of_payments(session, [payment.id])
    if listed is not None and _is_other_charge(payment, listed):
        _look_up_difference(session, gateway, payment, listed)
        charge = listed  # no look-up of ours shows it
    with phase(session):
        payment = crud.require_payment(session, payment.id, payment.user_id)
    if _is_accepted(payment):
        return None
    shown = charge or listed
    if shown is None:
        return _mismatch(payment, "not_read", payment.status, None)
    return find_difference(payment, refunds, shown)


def list_pages(gateway: base.Gateway, since: datetime | None) -> Iterator[base.ChargePage]:
    """The pages of a gateway's list of what was made or changed since then."""
    if not (gateway.capabilities.lists_charges or gateway.capabilities.lists_disputes):
        return
    cursor: str | None = None
    while True:
        try:
            page = gateway.guard.run(partial(gateway.list_charges, since, cursor))
        except base.NotExecuted as error:
            if gateway.capabilities.lists_charges:
                raise
            # The account may lack the right to list disputes; webhooks still report them.
            log.warning(
                "reconciliation.disputes_not_listed", gateway=gateway.name, reason=str(error)
            )
            return
        yield page
        cursor = page.cursor
        if cursor is None:
            return


def _compare_page(
    session: Session, gateway: base.Gateway, charges: Sequence[base.ListedCharge]
) -> Iterator[ComparedCharge]:
    """Each charge of a page beside our payment. Disputes are recorded here."""
    keys = [listed.key for listed in charges if listed.key is not None]
    references = [listed.charge.reference for listed in charges]
    with phase(session):
        found = invariants.list_payments_of_charges(session, gateway.name, keys, references)
        by_key = {payment.gateway_key: payment for payment in found}
        by_reference = {payment.gateway_reference: payment for payment in found}
        refunds: dict[int, list[RefundRow]] = {payment.id: [] for payment in found}
        for refund in invariants.list_refunds_of_payments(session, list(refunds)):
            refunds[refund.payment_id].append(refund)
    for listed in charges:
        payment = by_key.get(listed.key or "") or by_reference.get(listed.charge.reference)
        if payment is None:
            yield ComparedCharge(None, listed, _without_payment(session, gateway, listed))
            continue
        if listed.disputes:
            _save_disputes(session, gateway, payment, listed.disputes)
        yield ComparedCharge(
            payment, listed, find_difference(payment, refunds[payment.id], listed.charge)
        )


def _without_payment(
    session: Session, gateway: base.Gateway, listed: base.ListedCharge
) -> Mismatch | None:
    """A charge without a payment of ours. Other systems may share an account over the network."""
    if gateway.remote:
        return None
    with phase(session):
        named = crud.find_payment(session, gateway.name, listed.payment_id, None)
    what = "charge_without_payment" if named is None else "number_of_charges"
    return {"payment_id": listed.payment_id, "what": what, "theirs": listed.charge.status}


def _save_disputes(
    session: Session, gateway: base.Gateway, payment: PaymentRow, disputes: Sequence[base.Dispute]
) -> None:
    """Record disputes that are new or have changed."""
    with phase(session):
        references = [dispute.reference for dispute in disputes]
        known = invariants.list_dispute_statuses(session, gateway.name, references)
    news = [dispute for dispute in disputes if known.get(dispute.reference) != dispute.status]
    if not news:
        return
    with locked_payment(session, ChangedBy.gateway(gateway.name), payment) as locked:
        for dispute in news:
            settle_dispute(locked, dispute)


def find_difference(
    payment: PaymentRow, refunds: Sequence[RefundRow], charge: base.Charge
) -> Mismatch | None:
    """How a payment and a charge differ; None if they agree or an outcome is open."""
    if payment.status == "pending" or payment.operation is not None:
        return None  # counted as still open
    failure = payment.failure
    not_charged = payment.status == "failed" and (failure or {}).get("code") == "not_charged"
    other = _is_other_charge(payment, charge)
    pairs: list[tuple[str, Any, Any]] = [
        ("amount", payment.amount, charge.amount),
        ("currency", payment.currency, charge.currency),
        ("amount_captured", payment.amount_captured, charge.amount_captured),
    ]
    what = None
    if not_charged or other:
        what = ("number_of_charges", payment.status, charge.status)
    elif charge.status not in EXPECTED_CHARGE_STATUS[payment.status]:
        what = ("status", payment.status, charge.status)
    else:
        what = next((pair for pair in pairs if pair[2] is not None and pair[1] != pair[2]), None)
    what = what or _find_refund_difference(refunds, charge.refunds)
    return None if what is None else _mismatch(payment, *what)


def _mismatch(payment: PaymentRow, what: str, ours: Any, theirs: Any) -> Mismatch:
    return {"payment_id": payment.id, "what": what, "ours": ours, "theirs": theirs}


def _find_refund_difference(
    ours: Sequence[RefundRow], theirs: Sequence[base.Refund] | None
) -> tuple[str, Any, Any] | None:
    """The first difference among settled refunds. An open one is looked up by itself."""
    if theirs is None:
        return None
    left = {refund.gateway_reference: refund for refund in ours if refund.status != "pending"}
    pending = [refund for refund in ours if refund.status == "pending"]
    for state in theirs:
        if any(state.reference == one.gateway_reference for one in pending):
            continue
        if any(state.refund_id == one.id for one in pending):
            continue
        refund = left.pop(state.reference, None)
        if refund is None and state.status != "failed":
            return ("refund", None, state.status)
        if refund is not None and (refund.status, refund.amount) != (state.status, state.amount):
            return ("refund", refund.status, state.status)
    missing = next((refund for refund in left.values() if refund.status != "failed"), None)
    return None if missing is None else ("refund", missing.status, None)


def _recent_payments(
    session: Session, gateway: base.Gateway, since: datetime | None
) -> Iterator[PaymentRow]:
    """Our payments at a gateway since then, newest first."""
    after: PaymentRow | None = None
    while True:
        with phase(session):
            page = invariants.list_recent_payments(session, gateway.name, since, after, PAGE_SIZE)
        yield from page
        if len(page) < PAGE_SIZE:
            return
        after = page[-1]


def _is_accepted(payment: PaymentRow) -> bool:
    """Whether a person has accepted the difference."""
    return payment.review_state is not None and not payment.needs_review


# The report of `cli.py reconcile` ----------------------------------------------------------------


def reconcile(
    engine: Engine,
    rules: LookupRules,
    since: datetime | None = None,
    progress: Callable[[str, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Look up once everything that is open, due or not, then compare both sets of books.

    `progress` is called with what is being done and how many so far.
    """
    with new_session(engine) as session, phase(session):
        open_before = crud.count_open(session)
    checked = look_up_everything_open(engine, rules, partial(progress, "looked up"))
    mismatches: list[Mismatch] = []
    not_compared: list[str] = []
    with new_session(engine) as session:
        for name, gateway in rules.gateways.by_name.items():
            report = partial(progress, f"compared with {name}")
            try:
                mismatches += compare(session, gateway, since, settles=True, progress=report)
            except base.GatewayError as error:
                session.rollback()
                log.warning("reconciliation.not_compared", gateway=name, reason=str(error))
                mismatches.append({"gateway": name, "what": "not_reached"})
            if not can_compare(gateway):
                not_compared.append(name)
        with phase(session):
            still_open = crud.count_open(session)
            needs_review = crud.count_needs_review(session)
    return {
        "checked": checked,
        "settled": max(0, open_before - still_open),
        "still_open": still_open,
        "needs_review": needs_review,
        "mismatches": mismatches,
        "not_compared": not_compared,  # gateways whose books cannot be read
    }
