"""What the scenarios have to know of a gateway besides its adapter.

A target starts the gateway's double (or knows the address of a test account), says which requests
move money, acts as the shopper, and reads the gateway's books. `docs/add-a-gateway.md` shows how
to write one.
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
    """The gateway, or this target of it, has no such thing; the message says what."""


class Target(ABC):
    """One gateway to be checked. The harness enters it before the service starts.

    Every method that a subclass leaves out makes the scenarios that need it not applicable.
    """

    name: str  # for the report, such as "stripe" or "stripe, a test account"
    gateway: str  # as GATEWAYS names the adapter: "stripe", or "module:Class"
    upstream: str  # the base URL of the gateway, once the target is entered
    # For each step the path of the POST that asks for it: a regular expression of the whole path.
    steps: Mapping[Step, str]
    key_header: str | None  # the header that carries the idempotency key
    keyless: frozenset[Step] = frozenset()  # steps for which the gateway takes no key
    # In the body of a request on the path of a step that only uses up the key of a lost request.
    fence: bytes | None = None
    off_session: bool = True  # declines a charge that needs a shopper who is absent
    signs_all: bool = True  # the signature of a webhook covers its whole body
    can_retrieve: bool = True  # charges can be read; else only webhooks report changes
    # For a gateway inside the service, which no proxy can disturb: the faults that it simulates.
    fault_headers: Mapping[str, str] | None = None
    # Amounts to charge, in minor units of ISO 4217, each with its currency:
    zero_decimals: tuple[int, str] | None = None  # in a currency without decimals
    other_decimals: tuple[int, str] | None = None  # where the gateway departs from ISO 4217
    refused_amount: tuple[int, str] | None = None  # which the gateway cannot take

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:  # noqa: B027 - many have nothing to stop
        pass

    @abstractmethod
    def settings(self, address: str) -> dict[str, Any]:
        """The settings of the service under which the adapter calls this base URL."""

    @abstractmethod
    def method(self, kind: Method) -> dict[str, Any]:
        """The body for POST /payment-methods that saves such a method. Raises NotApplicable.

        good and good_too can be charged, declined and insufficient cannot, action needs the
        shopper's approval, and refused cannot even be saved.
        """

    @abstractmethod
    def approve(self, reference: str, *, yes: bool) -> None:
        """Approve or refuse a charge as the shopper does on the gateway's page.

        Raises NotApplicable.
        """

    @abstractmethod
    def charges(self, payment_id: int) -> Sequence[BookEntry]:
        """Every charge that the gateway's books show for this payment of the service."""

    def send_webhooks_to(self, url: str) -> None:
        """Have the gateway send its webhooks to this URL. Raises NotApplicable."""
        raise NotApplicable("this target sends no webhooks")

    def attach(  # noqa: B027 - few need it
        self, service: str, manager: httpx.Client, log: Sequence[Exchange]
    ) -> None:
        """Hear where the service listens. `log` grows with every request to the gateway."""

    def redirect_params(self, reference: str) -> dict[str, str]:
        """The query parameters that the gateway added to the return URL."""
        return {}

    def dispute(self, reference: str) -> str:
        """Open a dispute about a charge, return its reference. Raises NotApplicable."""
        raise NotApplicable("this target opens no disputes")

    def close_dispute(self, dispute: str, *, won: bool) -> None:
        raise NotApplicable("this target opens no disputes")

    def fail_refund(self, reference: str) -> None:
        """Make a refund fail that has succeeded. Raises NotApplicable."""
        raise NotApplicable("this target lets no refund fail")

    def refund_outside(self, reference: str, amount: int) -> None:
        """Refund a charge in the gateway's dashboard. Raises NotApplicable."""
        raise NotApplicable("this target has no dashboard")

    def capture_outside(self, reference: str, amount: int) -> None:
        raise NotApplicable("this target has no dashboard")

    def void_outside(self, reference: str) -> None:
        raise NotApplicable("this target has no dashboard")

    def short_pages(self) -> AbstractContextManager[object]:
        """A context in which the gateway's lists have small pages."""
        return nullcontext()

    def forge(
        self, headers: Mapping[str, str], body: bytes, *, age: float = 0, foreign: bool = False
    ) -> tuple[dict[str, str], bytes]:
        """The webhook with a new signature: `age` seconds old, or with a foreign secret.

        Raises NotApplicable.
        """
        raise NotApplicable("this target cannot sign")

    def violations(self) -> Sequence[str]:
        """What the adapter did that the gateway forbids."""
        return ()

    def secrets(self) -> Sequence[str]:
        """Texts that no log and no table may hold."""
        return ()


class DoubleTarget(Target):
    """A target whose gateway is a double. What the double cannot do is not applicable."""

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
        except UnicodeDecodeError:  # the signature is in the JSON, and this body is none
            return dict(headers), body
        if forged is None:
            raise NotApplicable("this gateway's signatures carry no time")
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
