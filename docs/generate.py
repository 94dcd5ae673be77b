"""Writes the parts of the docs that are made from the code, and from what was measured:
`python -m docs.generate`.

Each part stands between two comments in its page. A test checks that all of them are up to date.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, TypeVar

from benchmarks import cost, growth_by_size, report
from domain.states import (
    CHARGE_TRANSITIONS,
    ORDER_TRANSITIONS,
    REFUND_TRANSITIONS,
    REFUNDED_TRANSITIONS,
)
from errors import catalog
from settlement.idempotency import STORED_ERRORS

DOCS: Final = Path(__file__).parent

Status = TypeVar("Status", bound=str)


def diagram(first: Status, transitions: Mapping[tuple[Status, Status], str]) -> str:
    """A state diagram (Mermaid), each arrow with who or what causes it."""
    before = {status for status, _ in transitions}
    last = dict.fromkeys(status for _, status in transitions if status not in before)
    return "\n".join(
        [
            "```mermaid",
            "stateDiagram-v2",
            f"    [*] --> {first}",
            *(f"    {old} --> {new}: {cause}" for (old, new), cause in transitions.items()),
            *(f"    {status} --> [*]" for status in last),
            "```",
        ]
    )


def payment_diagram() -> str:
    return diagram("pending", CHARGE_TRANSITIONS | REFUNDED_TRANSITIONS)


def refund_diagram() -> str:
    return diagram("pending", REFUND_TRANSITIONS)


def order_diagram() -> str:
    return diagram(
        "pending", {move: ", ".join(sorted(roles)) for move, roles in ORDER_TRANSITIONS.items()}
    )


def stored_errors() -> str:
    rows = sorted((error.status, error.code, why) for error, why in STORED_ERRORS.items())
    return "\n".join(
        [
            "| status | code | why the key keeps it |",
            "|--:|---|---|",
            *(f"| {status} | `{code}` | {why} |" for status, code, why in rows),
        ]
    )


def released_errors() -> str:
    others = [error for error in catalog().values() if error not in STORED_ERRORS]
    return _wrapped(f"`{error.code}` ({error.status})" for error in others)


def _wrapped(words: Iterable[str]) -> str:
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) > 95:
            lines.append("")
        lines[-1] += f"{', ' if lines[-1] else ''}{word}"
    return ",\n".join(lines) + "."


# By page: its parts by their name.
PARTS: Final[Mapping[str, Mapping[str, Callable[[], str]]]] = {
    "idempotency.md": {"stored_errors": stored_errors, "released_errors": released_errors},
    "payment-states.md": {
        "payment": payment_diagram,
        "refund": refund_diagram,
        "order": order_diagram,
    },
    "performance.md": report.PARTS,
    "cost-per-order.md": cost.PARTS,
    "growth.md": growth_by_size.PARTS,
}


def render(page: str, text: str) -> str:
    """The text of a page with its parts as the code has them now."""
    for name, make in PARTS[page].items():
        begin, end = f"<!-- made by docs/generate.py: {name} -->\n", f"<!-- end of {name} -->"
        assert text.count(begin) == text.count(end) == 1, f"{page} has no place for {name}"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}{make()}\n{end}{rest.partition(end)[2]}"
    return text


def main() -> None:
    for page in PARTS:
        path = DOCS / page
        path.write_text(render(page, path.read_text()))


if __name__ == "__main__":
    main()
