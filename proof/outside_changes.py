"""A stranger in the gateway's dashboard, who moves money past the service, and a bad network.

The service learns of it by webhooks, late, twice or not at all, and by comparing the books.
"""

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from gateways.base import NotExecuted
from gateways.sandbox.dashboard import Dashboard

PAUSE: Final = (0.05, 0.3)  # seconds between two acts
LAST_ACTS: Final = 30  # without a webhook
MOST_AGAIN: Final = 300  # webhooks that come a second time in the end

CHARGE: Final = """
    SELECT reference, amount, amount_captured FROM sandbox.charges WHERE status = :status
    ORDER BY random() LIMIT 1"""
DISPUTED: Final = """
    SELECT charge AS reference FROM sandbox.disputes WHERE status = 'open'
    ORDER BY random() LIMIT 1"""
LATE: Final = """
    UPDATE sandbox.webhooks SET due_at = now() + random() * interval '10 seconds'
    WHERE delivered_at IS NULL AND random() < 0.5"""
AGAIN: Final = """
    UPDATE sandbox.webhooks SET delivered_at = NULL, due_at = now() - random() * interval '1 hour'
    WHERE id IN (SELECT id FROM sandbox.webhooks ORDER BY random() LIMIT :most)"""


class _Charge(NamedTuple):
    reference: str
    amount: int = 0
    amount_captured: int = 0


class Stranger(threading.Thread):
    """Acts at random until it is stopped."""

    def __init__(self, engine: sa.Engine, seed: int, stop: threading.Event) -> None:
        super().__init__(name="stranger", daemon=True)
        self.done: Counter[str] = Counter()
        self._engine = engine
        self._dashboard = Dashboard(engine)
        self._random = random.Random(f"{seed}-stranger")  # noqa: S311 - repeatable
        self._stopping = stop

    def run(self) -> None:
        network = [self.hold_webhooks, self.deliver_webhooks, self.delay_webhooks]
        while not self._stopping.wait(self._random.uniform(*PAUSE)):
            self.act([*self._acts(), *network, lambda: self.repeat_webhooks(10)])

    def act_unheard(self) -> None:
        """The last acts, without a webhook."""
        self.hold_webhooks()
        for _ in range(LAST_ACTS):
            self.act(self._acts())

    def act(self, acts: Sequence[Callable[[], str]]) -> None:
        try:
            name = self._random.choice(acts)()
        except (NotExecuted, SQLAlchemyError):  # somebody else was first, or PostgreSQL is dead
            return
        self.done[name] += 1

    def _acts(self) -> list[Callable[[], str]]:
        return [
            self.refund_all,
            self.refund_part,
            self.refund_part,
            self.capture_all,
            self.capture_part,
            self.cancel,
            self.open_dispute,
            self.close_dispute,
        ]

    # Money --------------------------------------------------------------------------------------

    def refund_all(self) -> str:
        self._dashboard.refund(self._charge("captured").reference)
        return "refund"

    def refund_part(self) -> str:
        charge = self._charge("captured")
        part = self._random.randint(1, max(1, charge.amount_captured // 3))
        self._dashboard.refund(charge.reference, part)
        return "refund in part"

    def capture_all(self) -> str:
        self._dashboard.capture(self._charge("authorized").reference)
        return "capture"

    def capture_part(self) -> str:
        charge = self._charge("authorized")
        self._dashboard.capture(charge.reference, self._random.randint(1, charge.amount))
        return "capture in part"

    def cancel(self) -> str:
        status = self._random.choice(["authorized", "requires_action"])
        self._dashboard.cancel(self._charge(status).reference)
        return f"cancel what is {status}"

    def open_dispute(self) -> str:
        self._dashboard.open_dispute(self._charge("captured").reference)
        return "open a dispute"

    def close_dispute(self) -> str:
        won = self._random.random() < 0.5
        self._dashboard.close_dispute(self._one(DISPUTED).reference, won=won)
        return "close a dispute"

    # Webhooks -----------------------------------------------------------------------------------

    def hold_webhooks(self) -> str:
        self._dashboard.hold_webhooks()
        return "hold webhooks back"

    def deliver_webhooks(self) -> str:
        self._dashboard.hold_webhooks(False)
        return "deliver webhooks"

    def delay_webhooks(self) -> str:
        self._execute(LATE)
        return "delay webhooks"

    def repeat_webhooks(self, most: int = MOST_AGAIN) -> str:
        self._execute(AGAIN, most=most)
        return "send webhooks again"

    def _charge(self, status: str) -> _Charge:
        return self._one(CHARGE, status=status)

    def _one(self, query: str, **values: Any) -> _Charge:
        with self._engine.connect() as connection:
            row = connection.execute(sa.text(query), values).one_or_none()
        if row is None:
            raise NotExecuted("there is none")
        return _Charge(*row)

    def _execute(self, statement: str, **values: Any) -> None:
        with self._engine.begin() as connection:
            connection.execute(sa.text(statement), values)
