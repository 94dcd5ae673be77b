"""Decides what a gateway's books mean for a payment or a refund of ours, as pure functions.

Facts about our row and the gateway's state go in, a decision comes out; no session, no clock, no
gateway. `settlement/apply.py` writes the decision, whether the request, a webhook, a look-up or a
person learned of the state.

| relation of the gateway's state to ours | from an answer | from a hint |
|---|---|---|
| ahead: it can follow from ours | transition | transition; "processing": look up |
| level: it is what we have, or older | nothing | nothing; "approved": look up |
| other amount, contradiction | review, with its reason | look up |
| other charge | review, if it holds money | the same |
"""

from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

from domain.states import (
    CHARGE_TRANSITIONS,
    DEAD_PAYMENT_STATUSES,
    REFUND_TRANSITIONS,
    CaptureMethod,
    ChargeStatus,
    OrderStatus,
    PaymentOperation,
    PaymentStatus,
    RefundStatus,
    ReviewReason,
)

# An answer shows the books as they are now: our row has not changed since the gateway was asked.
# A hint may be old news: a webhook, or an answer about a row that has changed since.
Source = Literal["answer", "hint"]
Relation = Literal["ahead", "level", "other_amount", "contradiction", "other_charge"]
# When the next look-up is due. leases.py turns it into a time, by the database's clock.
NextLookup = Literal["keep", "now", "soon", "later", "at_expiry", "never"]

CHARGE_STATUSES_WITH_MONEY: Final[frozenset[ChargeStatus]] = frozenset({"authorized", "captured"})
CHARGE_STATUSES_WITHOUT_MONEY: Final[frozenset[ChargeStatus]] = frozenset({"declined", "voided"})
OPERABLE_STATUSES: Final[frozenset[PaymentStatus]] = frozenset({"authorized", "requires_action"})

# What each status of a charge makes of our payment; see `target_status` for the exceptions.
PAYMENT_STATUS_OF_CHARGE: Final[dict[ChargeStatus, PaymentStatus]] = {
    "processing": "pending",
    "approved": "pending",
    "requires_action": "requires_action",
    "authorized": "authorized",
    "captured": "captured",
    "declined": "failed",
    "voided": "voided",
}


class ChargeState(Protocol):
    """A charge as a gateway shows it; `gateways.base.Charge` is one."""

    @property
    def reference(self) -> str: ...
    @property
    def status(self) -> ChargeStatus: ...
    @property
    def amount(self) -> int | None: ...  # None: as it was authorized
    @property
    def currency(self) -> str: ...
    @property
    def amount_captured(self) -> int: ...
    @property
    def replaces(self) -> str | None: ...


class RefundState(Protocol):
    """A refund as a gateway shows it; `gateways.base.Refund` is one."""

    @property
    def reference(self) -> str: ...
    @property
    def status(self) -> RefundStatus: ...
    @property
    def amount(self) -> int: ...
    @property
    def currency(self) -> str: ...


@dataclass(frozen=True, slots=True)
class PaymentFacts:
    """The facts about a payment that a decision needs. Amounts are in minor units."""

    status: PaymentStatus
    amount: int
    currency: str
    amount_captured: int
    capture_method: CaptureMethod
    reference: str | None  # the gateway's id of the charge, once we know it
    operation: PaymentOperation | None  # asked for, and not decided yet
    operation_amount: int | None
    order_status: OrderStatus
    review_reason: ReviewReason | None = None
    can_retrieve: bool = True  # whether the gateway's books can be read
    not_executed: bool = False  # the operation surely had no effect; others caused what is shown

    @property
    def is_open(self) -> bool:
        """Whether the outcome of a request is unknown."""
        return self.status == "pending" or self.operation is not None


@dataclass(frozen=True, slots=True)
class Decision:
    """What to write down."""

    payment_status: PaymentStatus | None = None  # the new one; None: it stays as it is
    order_status: OrderStatus | None = None
    operation_result: Literal["executed", "not_executed"] | None = None  # None: not known yet
    review_reason: ReviewReason | None = None
    ends_review: bool = False  # the outcome that the review was about is known
    lookup: NextLookup = "keep"


# Payments ---------------------------------------------------------------------------------------


def decide(facts: PaymentFacts, charge: ChargeState, source: Source) -> Decision:
    """Decide what the state of a charge means for our payment."""
    relation = relation_of(facts, charge, source)
    if relation == "other_charge":
        # No look-up of the first charge shows it. If it holds money, the shopper is charged twice.
        return Decision(
            review_reason="second_charge" if charge.status in CHARGE_STATUSES_WITH_MONEY else None
        )
    if relation in ("other_amount", "contradiction"):
        if source == "hint" and facts.can_retrieve:
            return Decision(lookup="now")
        if _is_declined_capture(facts, charge):
            return decide_not_executed(facts, "answer")
        reason: ReviewReason = (
            "amount_differs" if relation == "other_amount" else "state_contradicts"
        )
        return Decision(review_reason=reason, lookup=_lookup_when(facts))
    if relation == "level":
        return _stay(facts, charge, source)
    if source == "hint" and charge.status == "processing":
        return Decision(lookup="now")  # the charge may have ended since
    return _move(facts, charge, source)


def decide_not_executed(facts: PaymentFacts, source: Source) -> Decision:
    """Decide what follows when the open request surely had no effect, and never will have.

    A hint decides nothing: another process may have sent the request since.
    """
    if source == "hint":
        return Decision()
    if facts.operation is not None:
        after = replace(facts, operation=None)
        lookup: NextLookup = "later" if facts.status == "requires_action" else _lookup_when(after)
        return _ends_review(facts, after, Decision(operation_result="not_executed", lookup=lookup))
    if facts.status == "pending":
        after = replace(facts, status="failed")
        return _ends_review(facts, after, Decision(payment_status="failed", lookup="never"))
    return Decision(lookup=_lookup_when(facts))


def decide_unknown(facts: PaymentFacts, *, overdue: bool) -> Decision:
    """Decide what follows when the gateway cannot tell.

    `overdue`: the outcome has been open, or a void has failed, for too long. A known outcome needs
    no review: its gateway may only be away for a moment.
    """
    may_move = facts.is_open or facts.status == "requires_action"
    if overdue and may_move and facts.review_reason is None:
        return Decision(review_reason="outcome_unknown")
    return Decision()


def relation_of(facts: PaymentFacts, charge: ChargeState, source: Source = "answer") -> Relation:
    """How the state of a charge in the gateway's books relates to ours."""
    if facts.reference not in (None, charge.reference, charge.replaces):
        return "other_charge"
    if _is_declined_capture(facts, charge):
        return "contradiction"
    if not is_our_amount(facts, charge):
        return "other_amount"
    target = target_status(facts, charge, source)
    if target is not None and (facts.status, target) in CHARGE_TRANSITIONS:
        return "ahead"
    if source == "hint" and facts.status == "voided" and charge.status == "authorized":
        return "level"  # an older event: it was authorized before it was voided
    if charge.status == "voided" and 0 < facts.amount_captured < facts.amount:
        return "level"  # the rest of a partial capture was released
    is_dead = facts.status in DEAD_PAYMENT_STATUSES
    if charge.status in (CHARGE_STATUSES_WITH_MONEY if is_dead else CHARGE_STATUSES_WITHOUT_MONEY):
        return "contradiction"
    return "level"


def target_status(facts: PaymentFacts, charge: ChargeState, source: Source) -> PaymentStatus | None:
    """The status that a charge gives our payment; None when it says nothing new."""
    if charge.status in ("processing", "approved"):
        # Once the shopper has acted the outcome is open, unless a void is under way.
        waits = facts.status == "requires_action" and facts.operation is None
        return "pending" if waits else None
    if charge.status == "requires_action" and facts.reference is not None:
        # Either the shopper has acted since, or the approval is gone again: only an answer says
        # which. A gateway that cannot be read answers so each time.
        return "requires_action" if source == "answer" and facts.can_retrieve else None
    if charge.status == "voided" and facts.status != "authorized":
        return "canceled"
    return PAYMENT_STATUS_OF_CHARGE[charge.status]


def is_our_amount(facts: PaymentFacts, charge: ChargeState) -> bool:
    """Whether the charge is of the amount that we asked for.

    An authorization may be captured in part, by us or in the gateway's dashboard. But while a
    capture of ours may have been executed, a different amount is not its outcome.
    """
    if charge.currency != facts.currency or charge.amount not in (None, facts.amount):
        return False
    if charge.status != "captured":
        return True
    if facts.amount_captured:
        return charge.amount_captured == facts.amount_captured
    if facts.operation == "capture" and not facts.not_executed:
        return charge.amount_captured == facts.operation_amount
    if facts.capture_method == "manual":
        return 0 < charge.amount_captured <= facts.amount
    return charge.amount_captured == facts.amount


def _is_declined_capture(facts: PaymentFacts, charge: ChargeState) -> bool:
    """Whether a capture was declined; the money is still held."""
    return (
        charge.status == "declined"
        and facts.status == "authorized"
        and facts.operation == "capture"
    )


def _stay(facts: PaymentFacts, charge: ChargeState, source: Source) -> Decision:
    if source == "hint":  # a hint cancels no look-up
        return Decision(lookup="now" if charge.status == "approved" else "keep")
    return Decision(lookup=_lookup_when(facts))


def _move(facts: PaymentFacts, charge: ChargeState, source: Source) -> Decision:
    target = target_status(facts, charge, source)
    assert target is not None
    operation = None if target in OPERABLE_STATUSES else _how_it_ended(facts, charge, target)
    after = replace(
        facts, status=target, operation=None if operation is not None else facts.operation
    )
    lookup: NextLookup
    if source == "hint" and charge.status == "approved":
        lookup = "now"
    elif target in ("pending", "requires_action"):
        lookup = "soon"
    else:
        lookup = _lookup_when(after)
    decision = Decision(
        payment_status=target,
        order_status=_order_follows(facts, target),
        operation_result=operation,
        lookup=lookup,
    )
    return _ends_review(facts, after, decision)


def _how_it_ended(
    facts: PaymentFacts, charge: ChargeState, target: PaymentStatus
) -> Literal["executed", "not_executed"] | None:
    """Whether the open operation has taken effect, by our request or another's."""
    if facts.operation is None:
        return None
    if facts.operation == "capture":
        executed = target == "captured" and charge.amount_captured == facts.operation_amount
    else:
        executed = target in ("voided", "canceled")
    return "executed" if executed else "not_executed"


def _order_follows(facts: PaymentFacts, target: PaymentStatus) -> OrderStatus | None:
    if target == "captured" and facts.order_status in ("pending", "authorized"):
        return "paid"
    if target == "authorized" and facts.order_status == "pending":
        return "authorized"
    if target == "voided" and facts.order_status == "authorized":
        return "canceled"
    if target == "canceled" and facts.operation == "cancel" and facts.order_status == "pending":
        return "canceled"
    return None


def _lookup_when(facts: PaymentFacts) -> NextLookup:
    """When the next look-up of a payment is due that stays as it is."""
    if facts.is_open or facts.status == "requires_action":
        return "keep"  # as the claim or the last look-up has scheduled it
    return "at_expiry" if facts.status == "authorized" else "never"


def _ends_review(facts: PaymentFacts, after: PaymentFacts, decision: Decision) -> Decision:
    """End a review of an unknown outcome once the outcome is known."""
    over = facts.review_reason == "outcome_unknown" and not after.is_open
    return replace(decision, ends_review=over)


# Refunds ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RefundFacts:
    """The facts about a refund, and its payment, that a decision needs."""

    status: RefundStatus
    amount: int
    currency: str
    reference: str | None
    amount_captured: int  # of the payment
    amount_refunded: int  # of the payment, by all its refunds that succeeded
    order_status: OrderStatus
    can_retrieve: bool = True


@dataclass(frozen=True, slots=True)
class RefundDecision:
    """What to write down."""

    refund_status: RefundStatus | None = None  # the new one; None: it stays as it is
    payment_status: PaymentStatus | None = None
    refunded_change: int = 0  # is added to `amount_refunded`; negative if money came back
    order_status: OrderStatus | None = None
    review_reason: ReviewReason | None = None
    lookup: NextLookup = "keep"


def decide_refund(facts: RefundFacts, state: RefundState, source: Source) -> RefundDecision:
    """Decide what the gateway's state of a refund means for ours."""
    if facts.reference not in (None, state.reference):
        # Another refund with our id. Unless it failed, the money went back twice.
        return RefundDecision(
            review_reason=None if state.status == "failed" else "refund_made_twice"
        )
    asks = source == "hint" and facts.can_retrieve
    if (state.amount, state.currency) != (facts.amount, facts.currency):
        return (
            RefundDecision(lookup="now") if asks else RefundDecision(review_reason="amount_differs")
        )
    if (facts.status, state.status) in REFUND_TRANSITIONS:
        return _move_refund(facts, state.status)
    if facts.status == "failed" and (
        state.status == "succeeded" or (state.status == "pending" and source == "answer")
    ):  # the money may have gone back nevertheless
        if asks:
            return RefundDecision(lookup="now")
        return RefundDecision(review_reason="refund_made_twice", lookup="never")
    if source == "hint" or facts.status == "pending":
        return RefundDecision()  # a hint cancels no look-up
    return RefundDecision(lookup="never")


def decide_refund_not_executed(facts: RefundFacts, source: Source) -> RefundDecision:
    """Decide what follows when the refund was surely never made, and never will be."""
    if source == "hint":
        return RefundDecision()
    if facts.status == "pending":
        return RefundDecision(refund_status="failed", lookup="never")
    return RefundDecision(lookup="never")


def _move_refund(facts: RefundFacts, status: RefundStatus) -> RefundDecision:
    refunded = facts.amount if status == "succeeded" else 0
    refunded -= facts.amount if facts.status == "succeeded" else 0
    if refunded == 0:
        return RefundDecision(refund_status=status, lookup="never")
    payment = status_of_refunded(facts.amount_captured, facts.amount_refunded + refunded)
    order: OrderStatus | None = None
    if payment == "refunded" and facts.order_status in ("paid", "shipped", "delivered"):
        order = "refunded"
    # The money came back to us after the order had ended: a person decides what to do.
    late = payment != "refunded" and facts.order_status == "refunded"
    return RefundDecision(
        refund_status=status,
        payment_status=payment,
        refunded_change=refunded,
        order_status=order,
        review_reason="refund_failed_late" if late else None,
        lookup="never",
    )


def status_of_refunded(captured: int, refunded: int) -> PaymentStatus:
    """The status of a captured payment, by how much of it was given back."""
    if refunded == 0:
        return "captured"
    return "refunded" if refunded == captured else "partially_refunded"
