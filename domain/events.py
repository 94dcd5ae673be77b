"""The names of the events that the service writes with each change of state."""

from typing import Literal, TypedDict

EventType = Literal[
    "payment_method.created",
    "payment_method.updated",
    "payment_method.deleted",
    "order.created",
    "order.status_changed",
    "payment.requires_action",
    "payment.pending",
    "payment.authorized",
    "payment.captured",
    "payment.failed",
    "payment.voided",
    "payment.canceled",
    "payment.needs_review",
    "payment.reviewed",
    "refund.created",
    "refund.succeeded",
    "refund.failed",
    "dispute.opened",
    "dispute.closed",
]

ActorType = Literal["user", "service", "gateway"]


class Actor(TypedDict):
    """Who made a change: a user by id, a part of the service, or a gateway by name."""

    type: ActorType
    id: str
