"""What a run of the proof did and found, and whether it holds."""

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

MOST_SHOWN = 10  # of one kind


@dataclass(slots=True)
class Report:
    """What was done, and what both sets of books say."""

    seed: int
    broken: str | None
    seconds: float = 0.0
    operations: int = 0
    retries: int = 0
    dropped_connections: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    not_reached: Counter[str] = field(default_factory=Counter)
    passed: timedelta = timedelta()  # that was let pass between the kills
    passes: int = 0  # of all background roles
    outside: Counter[str] = field(default_factory=Counter)  # acts in the gateway's dashboard
    charges: int = 0
    double_charges: set[str] = field(default_factory=set)
    lost: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    server_errors: list[str] = field(default_factory=list)
    violations: list[dict[str, Any]] = field(default_factory=list)
    looked_up: int = 0
    settle_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        wrong = (self.double_charges, self.lost, self.stuck, self.contradictions, self.violations)
        return not any(wrong) and self.charges > 0

    def text(self) -> str:
        settle = ", ".join(f"{name} {value:.2f}" for name, value in self.settle_seconds.items())
        lines = [
            "",
            f"  seed {self.seed}" + (f", without the guard {self.broken}" if self.broken else ""),
            f"  {self.operations} operations, {self.retries} retries, "
            f"{self.dropped_connections} dropped connections in {self.seconds:.0f} s",
            f"  {self.passed.days} days passed, and {self.passes} passes of all background roles",
            *_counts(f"{self.outside.total()} acts in the gateway's dashboard:", self.outside),
            *_counts(f"{self.kills.total()} kills:", self.kills),
            *_counts("not reached in time, so killed there at random:", self.not_reached),
            f"  charges in the gateway's books   {self.charges}",
            f"  double charges                   {len(self.double_charges)}",
            f"  lost                             {len(self.lost)}",
            f"  stuck                            {len(self.stuck)}",
            f"  contradicting answers            {len(self.contradictions)}",
            f"  violated invariants              {len(self.violations)}",
            f"  settled by looking it up         {self.looked_up}"
            + (f" (seconds: {settle})" if settle else ""),
            *_items("charged twice", sorted(self.double_charges)),
            *_items("lost", self.lost),
            *_items("stuck", self.stuck),
            *_items("contradicting", self.contradictions),
            *_items("answered with 500", sorted(set(self.server_errors))),
            *_items("violated", [json.dumps(item, default=str) for item in self.violations]),
            "",
            "  It holds." if self.holds else "  IT DOES NOT HOLD.",
        ]
        return "\n".join(lines)


def _counts(title: str, counts: Counter[str]) -> list[str]:
    if not counts:
        return []
    return [f"  {title}", *(f"    {count:4d}  {what}" for what, count in sorted(counts.items()))]


def _items(name: str, items: list[str]) -> list[str]:
    return [f"  {name}: {item}" for item in items[:MOST_SHOWN]]
