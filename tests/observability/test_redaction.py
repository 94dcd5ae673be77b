"""The second net under the logs: what must never be written down is taken out of any text."""

from __future__ import annotations

import pytest

from observability.redaction import HIDDEN, redact, redact_value


@pytest.mark.parametrize(
    "secret",
    [
        "4242 4242 4242 4242",
        "sk_test_" + "51HxqYzExample",
        "rk_live_" + "51HxqYzExample",
        "whsec_" + "9f2kExampleExample",
        "pi_3MtwBwLkdIwHu7ix_secret_YrKJUKribcBjcG8HVhfZluoGH",
        "A21AA" + "Fq5ExampleTokenOfPayPal-_x",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl",
    ],
)
def test_a_secret_is_taken_out_of_a_text(secret: str) -> None:
    text = redact(f"the gateway said {secret}, twice: ({secret})")
    assert secret not in text
    assert text.count(HIDDEN) == 2
    assert text.startswith("the gateway said ")


@pytest.mark.parametrize(
    "harmless",
    ["pi_3MtwBwLkdIwHu7ix28a3tqPa", "payment 1234567890123", "order-42", "A21 AA battery"],
)
def test_what_is_no_secret_stays(harmless: str) -> None:
    assert redact(harmless) == harmless


@pytest.mark.parametrize("name", ["client_secret", "access_token", "token", "Authorization"])
def test_a_field_with_a_secrets_name_is_hidden_whatever_is_in_it(name: str) -> None:
    assert redact_value(name, "anything") == HIDDEN
    assert redact_value("details_of", {name: "anything"}) == {name: HIDDEN}
