"""Who may do what to whose resources. Reading tokens is the work of `auth.py`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

ORDERS_MANAGE = "orders:manage"
PAYMENTS_MANAGE = "payments:manage"
WEBHOOKS_MANAGE = "webhooks:manage"


class Everyone(Enum):
    EVERYONE = "everyone"


EVERYONE: Final = Everyone.EVERYONE
VisibleTo = str | Everyone  # the user who sees their own rows, or somebody who sees everyone's


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller, as a verified token names them."""

    user_id: str
    scopes: frozenset[str] = frozenset()

    @property
    def manages_orders(self) -> bool:
        return ORDERS_MANAGE in self.scopes

    @property
    def manages_payments(self) -> bool:
        return PAYMENTS_MANAGE in self.scopes

    @property
    def manages_webhooks(self) -> bool:
        return WEBHOOKS_MANAGE in self.scopes

    @property
    def orders_visible_to(self) -> VisibleTo:
        """Whose orders and payment methods this caller sees: their own, or everyone's."""
        return EVERYONE if self.manages_orders else self.user_id

    @property
    def payments_visible_to(self) -> VisibleTo:
        """Whose payments this caller sees: their own, or everyone's."""
        return EVERYONE if self.manages_orders or self.manages_payments else self.user_id
