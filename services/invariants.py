"""The money invariants: what must be true of both sets of books at any time."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

import crud
from database import phase
from gateways.registry import Gateways
from services.comparison import compare


def check(session: Session, gateways: Gateways) -> list[dict[str, Any]]:
    """Every violation, in our books or between ours and a gateway's. Empty is what we want."""
    with phase(session):
        violations = crud.find_violations(session)
    for gateway in gateways.by_name.values():
        violations += [
            {"invariant": "books_agree", "gateway": gateway.name, **mismatch}
            for mismatch in compare(session, gateway)
        ]
    return violations
