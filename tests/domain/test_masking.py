"""What is shown of an email."""

from __future__ import annotations

import pytest

from domain.masking import mask_email


@pytest.mark.parametrize(
    ("email", "shown"),
    [
        ("alice@example.com", "a***@example.com"),
        ("a@example.com", "a***@example.com"),
        ("élodie@example.com", "é***@example.com"),
        ('"a@b"@example.com', '"***@example.com'),
    ],
)
def test_an_email_shows_its_first_letter_and_its_domain(email: str, shown: str) -> None:
    assert mask_email(email) == shown


def test_what_is_no_email_hides_nothing_that_was_not_a_domain() -> None:
    assert mask_email("@example.com") == "***@example.com"
