"""Decline codes: every word of a gateway becomes one of ours, and each of ours has a sentence."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from domain.declines import (
    ADYEN,
    DECLINE_MESSAGES,
    PAYPAL,
    RETRYABLE_DECLINES,
    STRIPE,
    decline_message,
    normalize_decline_code,
)

every_table = pytest.mark.parametrize("table", [STRIPE, PAYPAL, ADYEN], ids=["st", "pp", "ad"])


@every_table
def test_a_gateways_word_becomes_one_that_has_a_message(table: Mapping[str, str]) -> None:
    assert {normalize_decline_code(table, raw) for raw in table} <= DECLINE_MESSAGES.keys()


@every_table
@pytest.mark.parametrize("raw", [None, "", "a word of next year"])
def test_a_word_that_nobody_knows_is_a_generic_decline(
    table: Mapping[str, str], raw: str | None
) -> None:
    assert normalize_decline_code(table, raw) == "generic_decline"


@pytest.mark.parametrize("raw", ["lost_card", "stolen_card", "pickup_card"])
def test_whoever_holds_a_card_does_not_learn_that_it_was_reported(raw: str) -> None:
    assert normalize_decline_code(STRIPE, raw) == "generic_decline"


@pytest.mark.parametrize(
    ("table", "raw", "ours"),
    [
        (STRIPE, "insufficient_funds", "insufficient_funds"),
        (PAYPAL, "5120", "insufficient_funds"),
        (ADYEN, "12", "insufficient_funds"),
    ],
)
def test_the_same_reason_has_the_same_word_at_every_gateway(
    table: Mapping[str, str], raw: str, ours: str
) -> None:
    assert normalize_decline_code(table, raw) == ours


def test_only_a_word_of_ours_is_worth_another_try() -> None:
    assert DECLINE_MESSAGES.keys() > RETRYABLE_DECLINES
    assert not RETRYABLE_DECLINES & {"generic_decline", "fraudulent", "expired_card"}


@pytest.mark.parametrize("code", DECLINE_MESSAGES)
def test_every_decline_code_has_a_sentence_of_its_own(code: str) -> None:
    sentence = decline_message(code)
    assert sentence.endswith(".")
    assert [known for known, text in DECLINE_MESSAGES.items() if text == sentence] == [code]


def test_a_code_that_nobody_knows_has_the_generic_sentence() -> None:
    assert decline_message("from_another_release") == DECLINE_MESSAGES["generic_decline"]
