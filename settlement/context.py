"""The caller of a change, its request and its Idempotency-Key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import crud
import idempotency_keys
from domain.events import Actor
from errors import IdempotencyInProgress
from idempotency_keys import StoredResponse
from permissions import Principal
from rows import OrderRow, PaymentMethodRow, PaymentRow
from sessions import Session
from statements import Changes, Sender


@dataclass(slots=True)
class ClaimedKey:
    """The Idempotency-Key of a request; `owner` is set once it is claimed."""

    value: str
    fingerprints: list[str] = field(repr=False)  # one for each FINGERPRINT_KEY, newest first
    owner: str = ""
    is_answered: bool = False  # its response was stored by this very request


@dataclass(slots=True)
class CallContext:
    """The caller of a change, and how far the request has come."""

    principal: Principal
    request_id: str
    key: ClaimedKey | None = None
    key_lease: float = 15.0  # seconds during which a repeat does not take the key over
    gateway_key: str | None = None  # of the request to a gateway that this one waits for
    response: StoredResponse | None = None  # once the outcome of that is known

    @property
    def actor(self) -> Actor:
        return Actor(type="user", id=self.principal.user_id)

    @property
    def owned_key(self) -> dict[str, Any] | None:
        """The key's row while this request works on it, as parameters of a statement."""
        if self.key is None:
            return None
        return {
            "key_user_id": self.principal.user_id,
            "key": self.key.value,
            "key_owner": self.key.owner,
        }

    def require_owner(self, action: str, user_id: str | None) -> str:
        """The owner of the resource that is created: the caller, or the user that the body names.

        Raises Forbidden for another user without `orders:manage`.
        """
        owner = self.principal.user_id if user_id is None else user_id
        self.principal.require(action, owner)
        return owner

    def require_payment_method(
        self, session: Session, action: str, method_id: int
    ) -> PaymentMethodRow:
        """The method to do this to. Raises NotFound if the caller may not see it, and Forbidden."""
        visible_to = self.principal.visible_to("get_payment_method")
        method = crud.require_payment_method(session, method_id, visible_to)
        self.principal.require(action, method.user_id)
        return method

    def require_order(self, sender: Sender, action: str, order_id: int) -> OrderRow:
        """The same of an order."""
        order = crud.require_order(sender, order_id, self.principal.visible_to("get_order"))
        self.principal.require(action, order.user_id)
        return order

    def require_payment(self, sender: Sender, action: str, payment_id: int) -> PaymentRow:
        """The same of a payment."""
        visible_to = self.principal.visible_to("get_payment")
        payment = crud.require_payment(sender, payment_id, visible_to)
        self.principal.require(action, payment.user_id)
        return payment

    def store_response(self, session: Session, response: StoredResponse) -> StoredResponse:
        """End the request with this response, in the transaction whose outcome it reports.

        Repeats with the same Idempotency-Key get the very same response. Raises
        IdempotencyInProgress, which rolls the transaction back, when a repeat has taken the key
        over.
        """
        key = self.key
        if key is not None:
            changes = Changes()
            idempotency_keys.store_response(
                changes,
                self.principal.user_id,
                key.value,
                response,
                owner=key.owner,
                required=IdempotencyInProgress(),
            )
            changes.send(session)
            key.is_answered = True
        return response

    def link_gateway_request(self, changes: Changes, gateway_key: str) -> None:
        """Wait for the outcome of the gateway request that is claimed with these changes.

        Sending them raises IdempotencyInProgress when a repeat has taken the key over.
        """
        self.gateway_key = gateway_key
        if self.key is not None:
            idempotency_keys.link_key(
                changes,
                self.principal.user_id,
                self.key.value,
                self.key.owner,
                gateway_key=gateway_key,
                required=IdempotencyInProgress(),
            )
