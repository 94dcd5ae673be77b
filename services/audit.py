"""The money invariants: what must be true of both sets of books at any time."""

from collections.abc import Callable
from typing import Any

from database import phase
from gateways.registry import Gateways
from invariants import MOST_SHOWN, find_violations
from services.reconciliation import compare
from sessions import Session


def check(
    session: Session, gateways: Gateways, progress: Callable[[str, int], None] = lambda *_: None
) -> list[dict[str, Any]]:
    """Every violation, in our books or between ours and a gateway's; an empty list is good.

    `progress` is called with what is checked and how many rows so far.
    """
    violations = _in_our_books(session, progress)
    for gateway in gateways.by_name.values():
        violations += [
            {"invariant": "books_agree", "gateway": gateway.name, **mismatch}
            for mismatch in compare(session, gateway)
        ]
    return violations


def _in_our_books(session: Session, progress: Callable[[str, int], None]) -> list[dict[str, Any]]:
    """Each window is a transaction of its own, so none stays open for long."""
    found: dict[str, list[int]] = {}
    windows = find_violations(session)
    while True:
        with phase(session):
            checked = next(windows, None)
        if checked is None:
            break
        progress(f"{checked.table} checked", checked.rows)
        for name, ids in checked.violations.items():
            found[name] = [*found.get(name, []), *ids][:MOST_SHOWN]
    return [{"invariant": name, "ids": ids} for name, ids in found.items()]
