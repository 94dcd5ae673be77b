"""Finds card numbers in text: they are refused where people type, and never logged."""

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

# The first digits of the brands, with the lengths that their numbers have.
_BRANDS: Final = [
    ("4", (16, 19)),  # Visa
    ("5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720", (16,)),  # Mastercard
    ("3[47]", (15,)),  # American Express
    ("36|30[0-5]|3095|3[89]", range(14, 20)),  # Diners Club
    ("6011|64[4-9]|65|62|81|35(?:2[89]|[3-8])|220[0-4]", range(16, 20)),  # Discover to Mir
    ("5018|5020|5038|5893|6304|6759|676[1-3]", range(14, 20)),  # Maestro
    ("5019|60|82|508|9792|8600|9860", (16,)),  # Dankort, RuPay, Troy, Uzcard, Humo
    ("5060|5061|5078", (16, 18, 19)),  # Verve
]
_BRAND: Final = re.compile("|".join(f"({prefix})" for prefix, _ in _BRANDS))

_DOUBLED: Final = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)  # the digits of twice the digit, added up

# Spaces and dashes of any kind, those too that nobody sees: what is copied from a page has some.
_SPACES: Final = r"\s\u00ad\u200b-\u200d\u2010-\u2015\u2043\u2060\u2212\ufe58\ufe63\ufeff\uff0d-"
# Where people type.
_TYPED: Final = re.compile(rf"[0-9](?:[{_SPACES}]*[0-9]){{13,}}")
# In text from elsewhere: encoded, escaped, or with other signs between.
_GAP: Final = (
    rf"(?:[._+/{_SPACES}]|%(?:C2%A[0D]|E2%80%(?:8[B-D]|9[0-5])|EF%BB%BF|20|2B|2D|2E|5F)"
    r"|\\(?:x[aA][0dD]|u00a[0d]|u200[b-d]|u201[0-5]|u2060|ufeff|t|n))"
)
_WRITTEN: Final = re.compile(rf"[0-9](?:{_GAP}{{0,3}}[0-9]){{13,}}", re.IGNORECASE)
_GAPS: Final = re.compile(_GAP, re.IGNORECASE)
# Random identifiers: one in some ten thousand has the digits of a card number by chance.
_RANDOM: Final = re.compile(
    r"(?<![0-9A-Za-z])(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|(?=[0-9]*[a-f])[0-9a-f]{32,128})(?![0-9A-Za-z])",
    re.IGNORECASE,
)


def holds_card_number(text: str) -> bool:
    """Whether the text holds a card number: 14 to 19 digits, with spaces and dashes between or not,
    of a known brand, and with the right check digit."""
    if not _TYPED.search(text):
        return False
    for run in _TYPED.findall(_RANDOM.sub("…", text)):
        groups = re.findall("[0-9]+", run)
        cuts = accumulate(map(len, groups), initial=0)
        if _holds("".join(groups), list(cuts)):
            return True
    return False


def hide_card_numbers(text: str, hidden: str) -> str:
    """The text without card numbers, whatever stands between or beside their digits."""

    def hide(match: re.Match[str]) -> str:
        digits = re.sub("[^0-9]", "", _GAPS.sub("", match.group()))
        return hidden if _holds(digits, range(len(digits) + 1)) else match.group()

    return _WRITTEN.sub(hide, text)


def has_check_digit(digits: str) -> bool:
    """Luhn's rule (ISO/IEC 7812-1)."""
    return _weighted(digits, len(digits) % 2)[-1] % 10 == 0


def _holds(digits: str, cuts: Sequence[int]) -> bool:
    """Whether the digits between two of the cuts are a card number. In time linear in them."""
    sums = _weighted(digits, 0), _weighted(digits, 1)
    ends = set(cuts)
    for start in cuts:
        brand = _BRAND.match(digits, start)
        if brand is None:
            continue
        for length in _BRANDS[(brand.lastindex or 0) - 1][1]:
            end = start + length
            weighted = sums[end % 2]
            if end in ends and (weighted[end] - weighted[start]) % 10 == 0:
                return True
    return False


def _weighted(digits: str, first: int) -> list[int]:
    """Luhn's sums of the digits up to each place, every second one doubled from `first` on."""
    values = list(map(int, digits))
    values[first::2] = [_DOUBLED[value] for value in values[first::2]]
    return list(accumulate(values, initial=0))
