"""Whether something became slower than what is kept: `make bench-check`.

    python -m benchmarks.check

Measures the quick set, compares it with benchmarks/results/performance.json, and measures again
what seems to take over 15 % more. Exits 1 when it still does, and names it. Other machines than the
one that the kept results are of are compared by ratios to the naive service, and by what is sent to
PostgreSQL.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace

from benchmarks import report, servers
from benchmarks.bench import QUICK, Plan, Tell, measure, teller
from benchmarks.results import (
    PERFORMANCE,
    SLOWER,
    Change,
    Results,
    find_slower,
    is_same_machine,
    read,
)


def check(
    before: Results, plan: Plan, measure_plan: Callable[[Plan], Results], tell: Tell
) -> list[Change]:
    """What became slower, in two measurements out of two."""
    now = measure_plan(plan)
    if not is_same_machine(before, now):
        tell(
            "another machine than that of the kept results: only ratios to the naive service"
            " count, and what is sent to PostgreSQL\n"
            f"    kept: {report.machine(before.machine)}\n    here: {report.machine(now.machine)}"
        )
    suspects = find_slower(before, now)
    if not suspects:
        return []
    names = {change.operation for change in suspects}
    tell(f"measured again: {', '.join(sorted(names))}")
    names.add("get")  # which the naive service can do: it tells the pace
    again = tuple(name for name in plan.operations if name in names)
    confirmed = find_slower(before, measure_plan(replace(plan, operations=again)))
    seen = {(change.operation, change.what) for change in suspects}
    return [change for change in confirmed if (change.operation, change.what) in seen]


def main() -> int:
    description = (__doc__ or "").splitlines()[0]
    argparse.ArgumentParser(prog="python -m benchmarks.check", description=description).parse_args()
    tell = teller()
    before = read(Results, PERFORMANCE)
    with servers.throwaway_postgres() as postgres:
        slower = check(before, QUICK, lambda plan: measure(plan, postgres, tell), tell)
    for change in slower:
        print(change)
    if not slower:
        print(f"Nothing takes over {(SLOWER - 1) * 100:.0f} % more than in the kept results.")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
