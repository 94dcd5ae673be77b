"""A shopper approves the payment that waited, in the moment in which others give it up."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import httpx

from gateways.registry import Gateways
from gateways.sandbox import SandboxGateway
from tests.support.quiet import make_due, run_once
from tests.support.shop import ACTION, Shop, problem, together

ROUNDS: Final = 50
PAYMENTS: Final = 10


def test_new_payments_that_race_the_approval_of_a_waiting_one_charge_once_a_round(
    quiet: Shop, gateways: Gateways, gateway: SandboxGateway
) -> None:
    quiet.method()
    winners: Counter[str] = Counter()
    for number in range(ROUNDS):
        waiting = quiet.pay(quiet.place(), ACTION)

        def act(index: int, waiting: dict[str, Any] = waiting, number: int = number) -> Any:
            if index == number % (PAYMENTS + 1):
                return gateway.answer_action(waiting["gateway_reference"], approve=True)
            return quiet.try_pay(waiting["order_id"])

        answers = [one for one in together(PAYMENTS + 1, act) if isinstance(one, httpx.Response)]
        refusals = {problem(answer) for answer in answers if answer.status_code != 201}
        assert refusals <= {(409, "payment_in_progress"), (409, "order_already_paid")}
        make_due(quiet)
        run_once(quiet, gateways)
        (charge,) = [one for one in quiet.books(waiting["order_id"]) if one["amount_captured"]]
        ours = quiet.shopper.get(f"/orders/{waiting['order_id']}/payments").json()
        (payment,) = [one for one in ours if one["amount_captured"]]
        assert payment["gateway_reference"] == charge["reference"]
        assert quiet.status(payment) == ("captured", "paid")
        made = [answer for answer in answers if answer.status_code == 201]
        assert [answer.json()["id"] for answer in made] == [payment["id"]] * len(made)
        winners["the old one" if payment["id"] == waiting["id"] else "a new one"] += 1
    assert winners.total() == ROUNDS
