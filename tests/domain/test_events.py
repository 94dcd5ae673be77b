"""The names of events."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from domain.events import Actor, ActorType, EventType


@pytest.mark.parametrize("name", get_args(EventType))
def test_the_name_of_an_event_says_what_happened_to_what(name: str) -> None:
    assert re.fullmatch(r"(payment_method|order|payment|refund|dispute)\.[a-z_]+", name)


def test_an_actor_is_a_user_a_part_of_the_service_or_a_gateway() -> None:
    actors = [Actor(type=kind, id="alice") for kind in get_args(ActorType)]
    assert [actor["type"] for actor in actors] == ["user", "service", "gateway"]
