"""What the contract suite has to know of a gateway beside its adapter: its bench.

A bench starts the gateway's double (or knows where the real thing is), says which of its requests
are about money, plays the shopper, and reads the gateway's books. `docs/add-a-gateway.md` shows
how to write one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import httpx

from conformance.doubles.server import BookEntry, Double
from conformance.fault_proxy import Exchange

Step = Literal["charge", "complete", "capture", "void", "refund"]
Method = Literal["good", "good_too", "declined", "insufficient", "action", "refused"]


class NotApplicable(Exception):
    """This gateway, or this bench of it, has no such thing; the text says why."""


class Target(ABC):
    """One gateway on the test bench. A context manager: it is started and stopped."""

    name: str  # of the bench; "stripe", "stripe, by an independent double"
    gateway: str  # as GATEWAYS names it
    upstream: str  # where the gateway listens, once it is started
    # The path of the POST that asks for each step, as a regular expression of the whole path.
    steps: Mapping[Step, str]
    key_header: str | None  # which carries our key
    keyless: frozenset[Step] = frozenset()  # steps for which the gateway has no keys
    # What stands in the body of a request that only uses up a key, on the path of a step.
    fence: bytes | None = None
    off_session: bool = True  # declines what would need a shopper who is not there
    signs_all: bool = True  # its signature covers the whole body, and stands in a header
    can_retrieve: bool = True  # its books can be read; else only webhooks tell of changes
    # A gateway inside the service has no network to break: faults as its header takes them.
    fault_headers: Mapping[str, str] | None = None
    zero_decimals: tuple[int, str] | None = None  # an amount that is charged as it is
    other_decimals: tuple[int, str] | None = None  # one that the gateway counts in its own way
    refused_amount: tuple[int, str] | None = None  # one that it cannot take

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:  # noqa: B027 - many have nothing to stop
        pass

    @abstractmethod
    def settings(self, address: str) -> dict[str, Any]:
        """The service's settings that lead the adapter to this address."""

    @abstractmethod
    def method(self, kind: Method) -> dict[str, Any]:
        """A body for POST /payment-methods. Raises NotApplicable."""

    @abstractmethod
    def approve(self, reference: str, *, yes: bool) -> None:
        """What the shopper says on the gateway's page. Raises NotApplicable."""

    @abstractmethod
    def charges(self, payment_id: int) -> Sequence[BookEntry]:
        """Every charge that the gateway made for this payment, in minor units of ISO 4217."""

    def send_webhooks_to(self, url: str) -> None:
        """Called before the service starts. Raises NotApplicable."""
        raise NotApplicable("this bench sends no webhooks")

    def attach(  # noqa: B027 - few need it
        self, service: str, manager: httpx.Client, log: Sequence[Exchange]
    ) -> None:
        """The service has started here; `log` grows with what it asks the gateway."""

    def returned(self, reference: str) -> dict[str, str]:
        """What the gateway added to the return URL after the shopper's approval."""
        return {}

    def dispute(self, reference: str) -> str:
        """Open a dispute. Raises NotApplicable."""
        raise NotApplicable("this bench opens no disputes")

    def close_dispute(self, dispute: str, *, won: bool) -> None:
        raise NotApplicable("this bench opens no disputes")

    def fail_refund(self, reference: str) -> None:
        """Let a refund fail that has succeeded. Raises NotApplicable."""
        raise NotApplicable("this bench lets no refund fail")

    def refund_outside(self, reference: str, amount: int) -> None:
        """Refund in the gateway's dashboard, minor units of ISO 4217. Raises NotApplicable."""
        raise NotApplicable("this bench has no dashboard")

    def capture_outside(self, reference: str, amount: int) -> None:
        raise NotApplicable("this bench has no dashboard")

    def void_outside(self, reference: str) -> None:
        raise NotApplicable("this bench has no dashboard")

    def short_pages(self) -> AbstractContextManager[object]:
        """While it is entered, pages of the gateway's lists have few entries, where they can."""
        return nullcontext()

    def forge(
        self, headers: Mapping[str, str], body: bytes, *, age: float = 0, foreign: bool = False
    ) -> tuple[dict[str, str], bytes]:
        """A webhook signed anew, with another time or somebody else's secret.

        Raises NotApplicable.
        """
        raise NotApplicable("this bench cannot sign")

    def violations(self) -> Sequence[str]:
        """What the adapter must not have done, and did."""
        return ()

    def secrets(self) -> Sequence[str]:
        """What must be in no log and in no table."""
        return ()


class DoubleTarget(Target):
    """A bench with one of the doubles beside this file."""

    def __init__(self, double: Double) -> None:
        self.double = double

    def __enter__(self) -> Target:
        self.double.__enter__()
        self.upstream = self.double.base_url
        return self

    def __exit__(self, *exception: object) -> None:
        self.double.__exit__(*exception)

    def settings(self, address: str) -> dict[str, Any]:
        return {
            name: value.replace(self.upstream, address) if isinstance(value, str) else value
            for name, value in self._control("settings")().items()
        }

    def method(self, kind: Method) -> dict[str, Any]:
        body: dict[str, Any] | None = self._control("method")(kind)
        if body is None:
            raise NotApplicable(f"this gateway has no method that is {kind}")
        return body

    def approve(self, reference: str, *, yes: bool) -> None:
        self.double.approve(reference, yes=yes)

    def charges(self, payment_id: int) -> Sequence[BookEntry]:
        with self.double.lock:
            return [entry for entry in self.double.books() if entry.payment_id == payment_id]

    def send_webhooks_to(self, url: str) -> None:
        self.double.webhook_url = url

    def dispute(self, reference: str) -> str:
        return str(self._control("dispute")(reference))

    def close_dispute(self, dispute: str, *, won: bool) -> None:
        self._control("close_dispute")(dispute, won=won)

    def fail_refund(self, reference: str) -> None:
        self._control("fail_refund")(reference)

    def refund_outside(self, reference: str, amount: int) -> None:
        self._control("refund_outside")(reference, amount)

    def capture_outside(self, reference: str, amount: int) -> None:
        self._control("capture_outside")(reference, amount)

    def void_outside(self, reference: str) -> None:
        self._control("void_outside")(reference)

    def short_pages(self) -> AbstractContextManager[object]:
        control = getattr(self.double, "short_pages", nullcontext)
        pages: AbstractContextManager[object] = control()
        return pages

    def forge(
        self, headers: Mapping[str, str], body: bytes, *, age: float = 0, foreign: bool = False
    ) -> tuple[dict[str, str], bytes]:
        try:
            forged: tuple[dict[str, str], bytes] | None = self._control("forge")(
                headers, body, age=age, foreign=foreign
            )
        except UnicodeDecodeError:  # a signature inside the JSON cannot stand in what is none
            return dict(headers), body
        if forged is None:
            raise NotApplicable("this gateway's signatures know no time")
        return forged

    def violations(self) -> Sequence[str]:
        return self.double.violations

    def secrets(self) -> Sequence[str]:
        return [
            value
            for name, value in self._control("settings")().items()
            if any(word in name for word in ("key", "secret")) and isinstance(value, str)
        ]

    def _control(self, name: str) -> Any:
        control = getattr(self.double, name, None)
        if control is None:
            raise NotApplicable(f"this double has no control for: {name}")
        return control
