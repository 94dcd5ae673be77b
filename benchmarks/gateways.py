"""What the guard before a gateway costs, and what a stalled gateway takes from a healthy one.

python -m benchmarks.gateways

Ratios of one run; the seconds are this machine's, and noise.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from gateways.guard import GatewayGuard
from greenlets import GATEWAY_THREADS

CALLS = 20_000
WORK_SECONDS = 0.02  # what a gateway nearby takes
REQUESTS = 400
STALL_SECONDS = 5.0
CONCURRENCY = 20


def cost() -> tuple[float, float]:
    """Microseconds of a call that does nothing: plain, and through the guard."""
    guard = GatewayGuard("bench", timeout=10, concurrency=CONCURRENCY)
    plain = _microseconds(lambda: None)
    guarded = _microseconds(lambda: guard.run(lambda: None))
    guard.close()
    return plain, guarded


def _microseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - began) / CALLS * 1e6


def isolation(*, stalled: bool, guarded: bool) -> float:
    """Requests per second through a healthy gateway while each second request asks another one,
    which stalls or does not. Both share the threads of the service."""
    release = threading.Event()
    guards = {
        name: GatewayGuard(name, timeout=10, concurrency=CONCURRENCY)
        for name in ("healthy", "other")
    }

    def healthy() -> None:
        time.sleep(WORK_SECONDS)

    def other() -> None:
        if stalled:
            release.wait(STALL_SECONDS)
        else:
            time.sleep(WORK_SECONDS)

    def ask(name: str, call: Callable[[], None]) -> None:
        try:
            if guarded:
                guards[name].run(call)
            else:
                call()
        except Exception:
            pass

    began = time.perf_counter()
    with ThreadPoolExecutor(GATEWAY_THREADS) as threads:
        asked = []
        for _ in range(REQUESTS):
            threads.submit(ask, "other", other)
            asked.append(threads.submit(ask, "healthy", healthy))
        for future in asked:
            future.result()
        took = time.perf_counter() - began
        release.set()
    for guard in guards.values():
        guard.close()
    return REQUESTS / took


def main() -> None:
    plain, guarded = cost()
    print(f"a call that does nothing: {plain:.1f} µs plain, {guarded:.1f} µs through the guard")
    print(
        f"the guard is {guarded / 1e6 / WORK_SECONDS:.2%} of a call of {WORK_SECONDS * 1e3:.0f} ms"
    )
    print()
    fine = isolation(stalled=False, guarded=True)
    with_guard = isolation(stalled=True, guarded=True)
    without = isolation(stalled=True, guarded=False)
    print("throughput of a healthy gateway, × what it is while the other is well too")
    print(f"  the other stalls, with guards     {with_guard / fine:.2f}")
    print(f"  the other stalls, without guards  {without / fine:.2f}")


if __name__ == "__main__":
    main()
