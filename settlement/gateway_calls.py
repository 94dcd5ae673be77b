"""Calls a gateway between two transactions. What is not a proven outcome is UNKNOWN."""

import enum
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from errors import GatewayUnavailable, InvalidRequest
from gateways.base import Gateway, NotExecuted, OutcomeUnknown
from gateways.registry import Gateways
from idempotency_keys import StoredResponse
from observability.logs import get_logger
from sessions import Session

log = get_logger()

T = TypeVar("T")


class _Unknown(enum.Enum):
    UNKNOWN = enum.auto()


UNKNOWN: Final = _Unknown.UNKNOWN


@dataclass(frozen=True, slots=True)
class GatewayAccess:
    """The gateways, as one request may call them."""

    gateways: Gateways
    lookup_after: float  # seconds until the first look-up (RECONCILE_AFTER)
    service_url: str | None = None  # where shoppers' browsers reach this service
    fault: str | None = None  # Sandbox-Fault
    deadline: float | None = None  # of all calls together, by time.monotonic()

    @property
    def seconds(self) -> float | None:
        """The seconds that are left for gateways in this request."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    def gateway(self, name: str) -> Gateway:
        """The gateway of that name. Raises GatewayUnavailable when it is switched off,
        InvalidRequest for a Sandbox-Fault at another gateway."""
        gateway = self.gateways.get(name)
        if gateway is None:
            raise GatewayUnavailable(f"The gateway {name} is switched off")
        if self.fault is not None and name != "sandbox":
            raise InvalidRequest.of(
                "Sandbox-Fault", "not_the_sandbox", "Only the sandbox gateway takes faults"
            )
        return gateway


def call_gateway(
    gateway: Gateway, what: str, call: Callable[[], T], seconds: float | None = None
) -> T | NotExecuted | Literal[_Unknown.UNKNOWN]:
    """The gateway's state, NotExecuted, or UNKNOWN, within so many seconds.

    An unexpected exception is UNKNOWN too: a byte may have been sent by then.
    """
    try:
        return gateway.guard.run(call, seconds)
    except NotExecuted as error:
        log.warning("gateway.not_executed", gateway=gateway.name, call=what, reason=str(error))
        return error
    except OutcomeUnknown as error:
        log.warning("gateway.outcome_unknown", gateway=gateway.name, call=what, reason=str(error))
    except Exception as error:
        log.error(
            "gateway.unexpected_error", gateway=gateway.name, call=what, error=type(error).__name__
        )
    return UNKNOWN


def known_state(answer: T | NotExecuted | Literal[_Unknown.UNKNOWN] | None) -> T | None:
    """The gateway's state, or None when it gave none."""
    return None if answer is UNKNOWN or isinstance(answer, NotExecuted) else answer


@dataclass(slots=True)
class Outcome:
    """The response of a request, once it is settled."""

    response: StoredResponse | None = None


@contextmanager
def settling(session: Session) -> Iterator[Outcome]:
    """Around the transaction that settles a request.

    When the database fails there, there is no response, as if the gateway had not answered: a
    look-up settles the payment later.
    """
    outcome = Outcome()
    try:
        yield outcome
    except SQLAlchemyError as error:
        log.error("payment.settlement_failed", error=type(error).__name__)
        session.rollback()
        outcome.response = None
