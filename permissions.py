"""Who may do what to whose resources. Reading tokens is the work of `auth.py`.

An action has the name of the endpoint that offers it; an endpoint in no row cannot be served.
Services read the same rows, and refuse for themselves what their caller may not do.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from enum import Enum
from typing import Final

from errors import Forbidden

ORDERS_MANAGE: Final = "orders:manage"
PAYMENTS_MANAGE: Final = "payments:manage"


class Party(Enum):
    """Who is meant without a scope. No string, because tokens may name any string as a scope."""

    ANYONE = "anyone"  # without a token
    OWNER = "owner"  # the user whose resource it is


class Everyone(Enum):
    EVERYONE = "everyone"


ANYONE: Final = Party.ANYONE
OWNER: Final = Party.OWNER
EVERYONE: Final = Everyone.EVERYONE
VisibleTo = str | Everyone  # one user whose rows a caller sees, or everyone

# Who may do what: OWNER to their own resources, a token with one of these scopes to those of
# everyone. A caller who may not get an order, payment or method always gets 404 for it. One who may
# get it, but not do what they ask for, gets 403.
RULES: Final[Mapping[str, Set[Party | str]]] = {
    "create_payment_method": {OWNER, ORDERS_MANAGE},
    "list_payment_methods": {OWNER, ORDERS_MANAGE},
    "get_payment_method": {OWNER, ORDERS_MANAGE},
    "update_payment_method": {OWNER},
    "delete_payment_method": {OWNER},
    "create_order": {OWNER, ORDERS_MANAGE},
    "list_orders": {OWNER, ORDERS_MANAGE},
    "get_order": {OWNER, ORDERS_MANAGE},
    "set_order_status": {OWNER, ORDERS_MANAGE},  # to which: ORDER_TRANSITIONS in domain/states.py
    "list_order_events": {OWNER, ORDERS_MANAGE},
    "pay_order": {OWNER, ORDERS_MANAGE},
    "list_order_payments": {OWNER, ORDERS_MANAGE, PAYMENTS_MANAGE},
    "list_payments": {OWNER, ORDERS_MANAGE, PAYMENTS_MANAGE},
    "get_payment": {OWNER, ORDERS_MANAGE, PAYMENTS_MANAGE},
    "confirm_payment": {OWNER, ORDERS_MANAGE, PAYMENTS_MANAGE},
    "capture_payment": {PAYMENTS_MANAGE},
    "void_payment": {PAYMENTS_MANAGE},
    "refund_payment": {PAYMENTS_MANAGE},
    "review_payment": {PAYMENTS_MANAGE},
    "list_refunds": {OWNER, ORDERS_MANAGE, PAYMENTS_MANAGE},
    "get_refund": {OWNER, ORDERS_MANAGE, PAYMENTS_MANAGE},
    "list_disputes": {PAYMENTS_MANAGE},
    "get_dispute": {PAYMENTS_MANAGE},
    "list_charges": {PAYMENTS_MANAGE},  # of the sandbox gateway
    # Gateways, which sign what they send; probes; pages that hold no data of a user.
    "receive_webhook": {ANYONE},
    "healthz": {ANYONE},
    "readyz": {ANYONE},
    "get_metrics": {ANYONE},
    "get_index": {ANYONE},
    "list_errors": {ANYONE},
    "get_error": {ANYONE},
    "openapi": {ANYONE},
    "swagger_ui": {ANYONE},
    "redoc": {ANYONE},
    "assets": {ANYONE},
    "show_return": {ANYONE},
    # The sandbox's pages: the bank that asks its shopper, and a gateway's dashboard.
    "show_action": {ANYONE},
    "answer_action": {ANYONE},
    "show_dashboard": {ANYONE},
    "act_on_charge": {ANYONE},
    "turn_switch": {ANYONE},
}


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller, as a verified token names them."""

    user_id: str
    scopes: frozenset[str] = frozenset()

    def visible_to(self, action: str, user_id: str | None = None) -> VisibleTo:
        """Whose resources this caller may do this to; with a `user_id`, only that user's.

        Raises Forbidden when there are none.
        """
        if user_id is not None:
            self.require(action, user_id)
            return user_id
        if RULES[action] & self.scopes:
            return EVERYONE
        if OWNER in RULES[action]:
            return self.user_id
        raise _forbidden(action)

    def require(self, action: str, owner: str | None = None) -> None:
        """Raises Forbidden unless this caller may do this to a resource of this owner."""
        if self.visible_to(action) not in (EVERYONE, owner):
            raise _forbidden(action)


def _forbidden(action: str) -> Forbidden:
    scopes = " or ".join(sorted(f"`{who}`" for who in RULES[action] if isinstance(who, str)))
    return Forbidden(
        f"This needs a token with the scope {scopes}." if scopes else "Only its owner may do this."
    )
