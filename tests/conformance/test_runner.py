"""The conformance kit passes an adapter that keeps the contract, and fails one that does not."""

from __future__ import annotations

import io
import uuid
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from config import ConfigurationError
from conformance import NotApplicable, check
from conformance.targets import StripeTarget
from gateways.base import Charge, ChargeLookup, ChargeRequest, NotExecuted, Refund, RefundRequest
from gateways.stripe import StripeGateway
from tests.support.paths import ROOT


class CarelessGateway(StripeGateway):
    """Asks again under another key: what a lost answer then costs."""

    def charge(self, request: ChargeRequest) -> Charge:
        return super().charge(replace(request, key=str(uuid.uuid4())))


class HastyGateway(StripeGateway):
    """Takes silence for a no."""

    def look_up(self, query: ChargeLookup) -> Charge | None:
        return None if query.reference is None else super().look_up(query)


class GenerousGateway(StripeGateway):
    """Takes every refund for made."""

    def refund(self, request: RefundRequest) -> Refund:
        try:
            return super().refund(request)
        except NotExecuted:
            raise
        except Exception:
            return Refund(f"re_{request.key}", "succeeded", request.amount, request.currency)


class CarelessTarget(StripeTarget):
    gateway = f"{__name__}:CarelessGateway"


class HastyTarget(StripeTarget):
    gateway = f"{__name__}:HastyGateway"


class GenerousTarget(StripeTarget):
    gateway = f"{__name__}:GenerousGateway"


def run(module: str, words: str) -> tuple[bool, str]:
    out = io.StringIO()
    report = check(module, words, out)
    return report.holds, out.getvalue()


def test_an_adapter_that_keeps_the_contract_holds() -> None:
    holds, told = run("stripe", "charge with drop after")
    assert holds, told
    assert "1 holds" in told


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("CarelessTarget", "charge with drop after"),
        ("HastyTarget", "charge with drop after"),
        ("GenerousTarget", "refund with drop before"),
    ],
)
def test_an_adapter_that_breaks_it_fails(target: str, words: str) -> None:
    holds, told = run(f"{__name__}:{target}", words)
    assert not holds, told
    assert "FAILED" in told


def test_nothing_that_applies_is_no_success() -> None:
    holds, told = run("sandbox", "html")
    assert not holds
    assert "1 not applicable" in told


@pytest.mark.parametrize(
    ("module", "words", "told"),
    [
        ("no.such.module", "", "cannot be loaded"),
        ("conformance.scenarios", "", "0 targets"),
        (__name__, "", "3 targets"),
        ("stripe", "no such words", "no scenario"),
    ],
)
def test_a_mistake_says_what_to_do(module: str, words: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        check(module, words, io.StringIO())


def test_the_target_of_the_guide_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = (ROOT / "docs" / "add-a-gateway.md").read_text()
    code = guide.partition("```python\n# acme_pay/target.py\n")[2].partition("```")[0]
    (tmp_path / "acme_target.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    target = import_module("acme_target").AcmeTarget()
    assert target.method("good")["details"] == {"token": "tok_visa"}
    with pytest.raises(NotApplicable, match="redirects"):
        target.approve("ch_1", yes=True)
