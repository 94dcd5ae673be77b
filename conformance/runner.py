"""Runs the scenarios against one target and reports on each as it ends.

A target is named as a module that defines one `Target`, as `module:Class`, or as one of the
gateways that come with the service.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, TextIO

import postgres_server
from config import ConfigurationError
from conformance import targets
from conformance.harness import Harness
from conformance.registry import Scenario
from conformance.scenarios import SCENARIOS
from conformance.target import NotApplicable, Target

BUILT_IN: dict[str, Callable[[Path], Target]] = {
    "sandbox": lambda _: targets.SandboxTarget(),
    "stripe": lambda _: targets.StripeTarget(),
    "paypal": targets.PaypalTarget,
    "adyen": lambda _: targets.AdyenTarget(),
}
LABELS = {"holds": "ok", "fails": "FAILED", "not applicable": "--"}


@dataclass(frozen=True)
class Result:
    """The outcome of one scenario."""

    scenario: str
    outcome: Literal["holds", "fails", "not applicable"]
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """The outcomes of all scenarios that ran."""

    results: list[Result]

    @property
    def holds(self) -> bool:
        """Something was checked, and nothing failed."""
        outcomes = [result.outcome for result in self.results]
        return "fails" not in outcomes and "holds" in outcomes

    def summary(self) -> str:
        counts = {
            outcome: sum(result.outcome == outcome for result in self.results)
            for outcome in ("holds", "fails", "not applicable")
        }
        return ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)


def check(target_name: str, words: str = "", out: TextIO = sys.stdout) -> Report:
    """Run every scenario, or those with `words` in their names, and write each outcome to `out`.

    Raises ConfigurationError for a module without a target.
    """
    chosen = [run for run in SCENARIOS if words.replace(" ", "_") in run.__name__]
    if not chosen:
        raise ConfigurationError(f"no scenario has {words!r} in its name")
    with tempfile.TemporaryDirectory(prefix="gateway-check-") as place:
        folder = Path(place)
        target = _find_target(target_name, folder)
        out.write(f"The contract of gateways, {len(chosen)} scenarios, on {target.name}\n\n")
        log = folder / "service.log"  # what the service logs would drown the report
        with (
            log.open("w") as file,
            contextlib.redirect_stderr(file),
            Harness(target, postgres_server.ensure_running(folder / "data"), folder) as harness,
        ):
            results = [_run(harness, run, out) for run in chosen]
        report = Report(results)
        for result in results:
            if result.outcome == "fails":
                out.write(f"\n{result.scenario}\n{result.detail}\n")
        out.write(f"\n{report.summary()}\n")
        return report


def _find_target(name: str, folder: Path) -> Target:
    if name in BUILT_IN:
        return BUILT_IN[name](folder)
    path, _, class_name = name.partition(":")
    try:
        found = vars(import_module(path))
    except ImportError as error:
        raise ConfigurationError(f"{path} cannot be loaded: {error}") from None
    classes = [
        value
        for key, value in found.items()
        if issubclass(type(value), type)  # Python 3.10 takes list[int] for a class
        and issubclass(value, Target)
        and not inspect.isabstract(value)
        and (key == class_name if class_name else value.__module__ == path)
    ]
    if len(classes) != 1:
        raise ConfigurationError(
            f"{name} has {len(classes)} targets, not one; name it as module:Class"
            " (docs/add-a-gateway.md shows how to write one)"
        )
    target: Target = classes[0]()
    return target


def _run(harness: Harness, run: Scenario, out: TextIO) -> Result:
    began = time.monotonic()
    try:
        run(harness)
        harness.check()
        result = Result(run.__name__, "holds")
    except NotApplicable as reason:
        result = Result(run.__name__, "not applicable", str(reason))
    except Exception:
        result = Result(run.__name__, "fails", traceback.format_exc(limit=-4))
        harness.proxy.disarm()
        harness.relay.holds = False
    took = time.monotonic() - began
    why = f"  ({result.detail})" if result.outcome == "not applicable" else ""
    name = result.scenario.replace("_", " ")
    out.write(f"{LABELS[result.outcome]:>6} {took:5.1f} s  {name}{why}\n")
    out.flush()
    return result
