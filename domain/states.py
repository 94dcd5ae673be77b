"""The statuses of orders, payments and refunds, and the only transitions between them.

The database enforces the same tables by trigger (see `migrations/`); a test compares the two.
"""

from typing import Final, Literal, get_args

OrderStatus = Literal[
    "pending", "authorized", "paid", "shipped", "delivered", "canceled", "refunded"
]
PaymentStatus = Literal[
    "pending",  # the outcome is not known yet
    "requires_action",  # waits for the shopper
    "authorized",
    "captured",
    "partially_refunded",
    "refunded",
    "failed",
    "voided",  # released after an authorization
    "canceled",  # ended before an authorization
]
RefundStatus = Literal["pending", "succeeded", "failed"]
RefundOrigin = Literal["service", "gateway"]  # gateway: made outside, in its own dashboard
DisputeStatus = Literal["open", "won", "lost"]
# Why a payment waits for a person; docs/runbook.md says what to do for each.
ReviewReason = Literal[
    "outcome_unknown",  # open for a day, and the gateway cannot tell
    "amount_differs",  # the gateway shows another amount or currency
    "second_charge",  # the gateway shows another charge for the same payment, which holds money
    "state_contradicts",  # the gateway shows what cannot follow from our state
    "refund_failed_late",  # the money came back after the order had ended as refunded
    "refund_made_twice",  # the gateway made a refund that failed here, or made it twice
]
# A charge in a gateway's books.
ChargeStatus = Literal[
    "processing",  # not decided yet
    "requires_action",
    "approved",  # the shopper has approved; the gateway waits for `complete`
    "authorized",
    "captured",
    "declined",
    "voided",  # canceled or expired, before or after an authorization
]
PaymentOperation = Literal["capture", "void", "cancel"]  # cancel: void, and cancel the order
CaptureMethod = Literal["automatic", "manual"]
TransitionRole = Literal["owner", "manager", "payments"]

# What a person may state to end a review: what the gateway's books show, or `accepted`, which
# changes nothing. The last two are about a refund.
ReviewResolution = Literal[
    "captured", "authorized", "not_charged", "voided", "accepted", "refunded", "not_refunded"
]

ORDER_STATUSES: Final = get_args(OrderStatus)
PAYMENT_STATUSES: Final = get_args(PaymentStatus)
PAYMENT_OPERATIONS: Final = get_args(PaymentOperation)
REFUND_STATUSES: Final = get_args(RefundStatus)
REFUND_ORIGINS: Final = get_args(RefundOrigin)
DISPUTE_STATUSES: Final = get_args(DisputeStatus)
REVIEW_REASONS: Final = get_args(ReviewReason)

# Who may make which transition. "payments" is the service itself, when a payment changes.
ORDER_TRANSITIONS: Final[dict[tuple[OrderStatus, OrderStatus], frozenset[TransitionRole]]] = {
    ("pending", "canceled"): frozenset({"owner", "manager"}),
    ("pending", "paid"): frozenset({"manager", "payments"}),  # manager: settled outside
    ("pending", "authorized"): frozenset({"payments"}),
    ("authorized", "canceled"): frozenset({"manager", "payments"}),
    ("authorized", "paid"): frozenset({"payments"}),
    ("paid", "shipped"): frozenset({"manager"}),
    ("paid", "refunded"): frozenset({"payments"}),
    ("shipped", "delivered"): frozenset({"manager"}),
    ("shipped", "refunded"): frozenset({"payments"}),
    ("delivered", "refunded"): frozenset({"payments"}),
}

# The tables below say who or what causes each transition. docs/payment-states.md is made from them.

# What the status of a charge at the gateway can do to a payment.
CHARGE_TRANSITIONS: Final[dict[tuple[PaymentStatus, PaymentStatus], str]] = {
    ("pending", "requires_action"): "gateway (the shopper has to approve)",
    ("pending", "authorized"): "gateway (the money is held)",
    ("pending", "captured"): "gateway (the money is taken)",
    ("pending", "failed"): "gateway (declined, or surely not executed)",
    ("pending", "canceled"): "gateway (the charge was canceled)",
    ("requires_action", "pending"): "shopper (has acted, the outcome is open)",
    ("requires_action", "authorized"): "shopper (has approved, the money is held)",
    ("requires_action", "captured"): "shopper (has approved, the money is taken)",
    ("requires_action", "failed"): "shopper (has declined, or the gateway did)",
    ("requires_action", "canceled"): "staff, a canceled order, another payment, or time",
    ("authorized", "captured"): "staff (capture)",
    ("authorized", "voided"): "staff (void, a canceled order, or expiry)",
}
# What refunds do to it.
REFUNDED_TRANSITIONS: Final[dict[tuple[PaymentStatus, PaymentStatus], str]] = {
    ("captured", "partially_refunded"): "refund of a part",
    ("captured", "refunded"): "refund of all",
    ("partially_refunded", "refunded"): "refund of the rest",
    # A refund can fail after it succeeded (a closed account): the money is back with us.
    ("refunded", "partially_refunded"): "a refund failed late",
    ("refunded", "captured"): "the only refund failed late",
    ("partially_refunded", "captured"): "the only refund failed late",
}

REFUND_TRANSITIONS: Final[dict[tuple[RefundStatus, RefundStatus], str]] = {
    ("pending", "succeeded"): "gateway (the money went back)",
    ("pending", "failed"): "gateway (refused, or surely not executed)",
    ("succeeded", "failed"): "gateway (failed late, the money came back)",
}

# The money was taken; these have amount_captured > 0, and no other status has.
CAPTURED_PAYMENT_STATUSES: Final[tuple[PaymentStatus, ...]] = (
    "captured",
    "partially_refunded",
    "refunded",
)
# No money is held or taken, nor can be any more. All other payments are live; an order has one live
# payment at most.
DEAD_PAYMENT_STATUSES: Final[tuple[PaymentStatus, ...]] = ("failed", "voided", "canceled")


def allowed_transitions(status: OrderStatus, roles: frozenset[TransitionRole]) -> list[OrderStatus]:
    """The statuses that a caller in these roles may set next, in the order of an order's life."""
    return [
        to
        for to in ORDER_STATUSES
        if (who := ORDER_TRANSITIONS.get((status, to))) is not None and who & roles
    ]
