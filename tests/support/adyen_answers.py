"""Answers that no double gives."""

from __future__ import annotations

from collections.abc import Callable

from conformance.doubles.server import Answer, Double, Request
from gateways.adyen import AdyenGateway

Answering = Callable[[Answer], AdyenGateway]


class Scripted(Double):
    """A gateway that gives every request the same answer."""

    def __init__(self, said: Answer) -> None:
        super().__init__()
        self.said = said

    def answer(self, request: Request) -> Answer:
        return self.said
