"""The adapter with its double."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conformance.doubles.adyen import AdyenDouble
from conformance.doubles.server import Answer
from gateways.adyen import AdyenGateway
from tests.support.adyen import (
    build,
    connected,
    running_double,
)
from tests.support.adyen_answers import Answering, Scripted


@pytest.fixture(scope="module")
def answering() -> Iterator[Answering]:
    """Makes a gateway whose every request is answered like that, until the next is made."""
    with Scripted(Answer(200)) as scripted:
        built = build(adyen_api_base=scripted.base_url)

        def answer(said: Answer) -> AdyenGateway:
            assert isinstance(scripted, Scripted)
            scripted.said = said
            return built

        yield answer
        built._transport._client.close()


@pytest.fixture
def double() -> Iterator[AdyenDouble]:
    with running_double() as started:
        yield started


@pytest.fixture
def gateway(double: AdyenDouble) -> Iterator[AdyenGateway]:
    with connected(double) as built:
        yield built


@pytest.fixture
def token(double: AdyenDouble) -> str:
    return double.store_card("good")
