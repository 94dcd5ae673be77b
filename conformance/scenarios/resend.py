"""Lost requests that must not be sent again, because the time for that is over.

The scenarios call the adapter themselves, because the service would send the request again.
"""

from __future__ import annotations

import secrets
import uuid
from datetime import datetime, timedelta, timezone
from typing import Final

from conformance import records
from conformance.harness import Harness
from conformance.registry import Scenario, scenario
from conformance.target import NotApplicable, Step
from gateways.base import (
    ChangeRequest,
    Charge,
    ChargeLookup,
    ChargeOperation,
    ChargeRequest,
    Gateway,
    GatewayError,
    OutcomeUnknown,
    Refund,
    RefundLookup,
    RefundRequest,
)

STEPS: Final[tuple[Step, ...]] = ("charge", "capture", "void", "refund")
AMOUNT: Final = 900
PART: Final = 300
LONG_AGO: Final = timedelta(minutes=15)  # the time to send it again is over


class LostRequest:
    """A request for one step, which may be sent and asked about as often as one likes."""

    def __init__(self, harness: Harness, step: Step) -> None:
        if harness.target.fault_headers is not None:
            raise NotApplicable("nothing is lost on the way to a gateway inside the service")
        self._harness, self._step = harness, step
        self._gateway: Gateway = harness.app.state.gateways.get(harness.gateway)
        self._charge_request = self._new_charge(capture=step not in ("capture", "void"))
        self._request: ChargeRequest | ChangeRequest | RefundRequest = self._charge_request
        if step != "charge":
            self._request = self._about(self._gateway.charge(self._charge_request).reference)

    def _new_charge(self, *, capture: bool) -> ChargeRequest:
        method = self._harness.save(self._harness.shopper())
        token, customer = records.saved_token(self._harness.engine, method["id"])
        return ChargeRequest(
            key=self._key(),
            payment_id=secrets.randbelow(2**40) + 2**40,  # no payment of the service has it
            order_id=1,
            amount=AMOUNT,
            currency="USD",
            token=token,
            capture=capture,
            return_url="https://shop.example/back",
            customer=customer,
        )

    def _about(self, reference: str) -> ChangeRequest | RefundRequest:
        key, payment_id = self._key(), self._charge_request.payment_id
        if self._step == "refund":
            return RefundRequest(key, reference, payment_id, 1, PART, "USD")
        operation: ChargeOperation = "capture" if self._step == "capture" else "void"
        return ChangeRequest(
            operation,
            key,
            reference,
            payment_id,
            PART if operation == "capture" else AMOUNT,
            "USD",
            charge_amount=AMOUNT,
            capture=False,
        )

    def _key(self) -> str:
        key = str(uuid.uuid4())
        self._harness.keys_of_scenarios.add(key)
        return key

    def send(self) -> Charge | Refund:
        """Raises NotExecuted or OutcomeUnknown."""
        request = self._request
        if isinstance(request, RefundRequest):
            return self._gateway.refund(request)
        if isinstance(request, ChargeRequest):
            return self._gateway.charge(request)
        call = self._gateway.capture if request.operation == "capture" else self._gateway.void
        return call(request)

    def look_up(self) -> Charge | Refund | None:
        """Raises OutcomeUnknown."""
        request, requested_at = self._request, datetime.now(timezone.utc) - LONG_AGO
        if isinstance(request, RefundRequest):
            query = RefundLookup(request, None, requested_at, resend=False)
            return self._gateway.look_up_refund(query)
        reference = request.reference if isinstance(request, ChangeRequest) else None
        return self._gateway.look_up(ChargeLookup(request, reference, requested_at, resend=False))

    def books(self) -> list[tuple[str, int, int]]:
        """The charges that the gateway holds or took, and what came of them."""
        return sorted(
            (entry.status, entry.amount_captured, entry.amount_refunded)
            for entry in self._harness.charges(self._charge_request.payment_id)
        )


def never_arrived(step: Step) -> Scenario:
    def run(harness: Harness) -> None:
        lost = LostRequest(harness, step)
        before = lost.books()
        harness.arm("drop_before", step)
        _fails(lost)
        promised = _look_up(lost) == "never"
        assert lost.books() == before, "it was sent again"
        try:
            lost.send()  # the original, late
        except GatewayError:
            assert lost.books() == before
        if promised:
            assert lost.books() == before, "it happened after all"
        elif lost.books() != before:
            assert _look_up(lost) != "never", "it has happened"

    run.__name__ = f"a_{step}_that_never_arrived_is_not_sent_again_after_its_time"
    return run


def lost_answer(step: Step) -> Scenario:
    def run(harness: Harness) -> None:
        lost = LostRequest(harness, step)
        before = lost.books()
        harness.arm("drop_after", step)
        _fails(lost)
        done = harness.until(lambda: lost.books() if lost.books() != before else None, "it is done")
        assert _look_up(lost) != "never", "it has happened"
        assert lost.books() == done

    run.__name__ = f"a_{step}_whose_answer_was_lost_is_not_denied_after_its_time"
    return run


def _fails(lost: LostRequest) -> None:
    try:
        lost.send()
    except OutcomeUnknown:
        return
    raise AssertionError("a request that was lost has an unknown outcome")


def _look_up(lost: LostRequest) -> str:
    """What the look-up tells: that it never happens, what came of it, or that it cannot tell."""
    try:
        return "never" if lost.look_up() is None else "known"
    except OutcomeUnknown:
        return "cannot tell"


for _step in STEPS:
    scenario(never_arrived(_step))
    scenario(lost_answer(_step))
