"""A payment of which a part was captured: the gateway has released the rest."""

from __future__ import annotations

import pytest

from domain.settlement import Decision, PaymentFacts, Source, decide, relation_of
from gateways.base import Charge

FACTS = PaymentFacts(
    status="captured",
    amount=1000,
    currency="USD",
    amount_captured=600,
    capture_method="manual",
    reference="ch_1",
    operation=None,
    operation_amount=None,
    order_status="paid",
)
RELEASED = Charge(reference="ch_1", status="voided", amount=1000, currency="USD", amount_captured=0)


@pytest.mark.parametrize(
    ("source", "decision"), [("answer", Decision(lookup="never")), ("hint", Decision())]
)
def test_that_the_rest_was_released_is_no_news(source: Source, decision: Decision) -> None:
    assert relation_of(FACTS, RELEASED, source) == "level"
    assert decide(FACTS, RELEASED, source) == decision
