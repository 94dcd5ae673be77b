"""The caller of a change, its request and its Idempotency-Key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

import crud
import idempotency_keys
from domain.events import Actor
from errors import IdempotencyInProgress
from idempotency_keys import StoredResponse
from permissions import Principal
from rows import OrderRow, PaymentMethodRow, PaymentRow


@dataclass(slots=True)
class ClaimedKey:
    """The Idempotency-Key of a request; `id` and `owner` are set once it is claimed."""

    value: str
    fingerprints: list[str] = field(repr=False)  # one for each FINGERPRINT_KEY, newest first
    id: int = 0
    owner: str = ""


@dataclass(frozen=True, slots=True)
class CallContext:
    """The caller of a change."""

    principal: Principal
    request_id: str
    key: ClaimedKey | None = None
    key_lease: float = 15.0  # seconds during which a repeat does not take the key over

    @property
    def actor(self) -> Actor:
        return Actor(type="user", id=self.principal.user_id)

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

    def require_order(self, session: Session, action: str, order_id: int) -> OrderRow:
        """The same of an order."""
        order = crud.require_order(session, order_id, self.principal.visible_to("get_order"))
        self.principal.require(action, order.user_id)
        return order

    def require_payment(self, session: Session, action: str, payment_id: int) -> PaymentRow:
        """The same of a payment."""
        visible_to = self.principal.visible_to("get_payment")
        payment = crud.require_payment(session, payment_id, visible_to)
        self.principal.require(action, payment.user_id)
        return payment

    def store_response(self, session: Session, response: StoredResponse) -> StoredResponse:
        """End the request with this response, in the transaction whose outcome it reports.

        Repeats with the same Idempotency-Key get the very same response. Raises
        IdempotencyInProgress, which rolls the transaction back, when a repeat has taken the key
        over.
        """
        if self.key is not None and not idempotency_keys.store_response(
            session, self.principal.user_id, self.key.id, response, self.key.owner
        ):
            raise IdempotencyInProgress
        return response

    def link_gateway_request(self, session: Session, gateway_key: str) -> None:
        """Link the key to the gateway request that this transaction claims.

        Raises IdempotencyInProgress when a repeat has taken the key over.
        """
        if self.key is not None and not idempotency_keys.link_key(
            session, self.principal.user_id, self.key.id, self.key.owner, gateway_key=gateway_key
        ):
            raise IdempotencyInProgress


def answer_waiting_requests(
    session: Session, gateway_key: str, render: Callable[[str], StoredResponse]
) -> None:
    """Store the response for every key that waits for the outcome of this gateway request.

    `render` takes the id of the request to answer.
    """
    for key in idempotency_keys.list_waiting_keys(session, gateway_key):
        response = render(key.request_id)
        idempotency_keys.store_response(session, key.user_id, key.id, response)
