"""Stripe's SDK on a wire of ours, and what each of its failures says about the money.

What the answers mean is in `states.py`, what is asked for is in `gateway.py`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import httpx
import stripe

from domain.declines import STRIPE, normalize_decline_code
from gateways.base import Decline, GatewayError, NotExecuted, OutcomeUnknown, Refused, RetryLater
from gateways.transport import CONNECT_SECONDS, KEEPALIVE_SECONDS, fetch, retry_after

Fields = Mapping[str, Any]

# Codes, types and ids of Stripe are such words. Nothing else of an error goes to the log or the
# database: its messages repeat what was sent.
WORD: Final = re.compile(r"[A-Za-z0-9_]{1,64}")


class RequestRefused(Refused):
    """Stripe refuses the request (400, 404); `code` is its word for the reason."""

    def __init__(self, why: str, code: str | None) -> None:
        self.code = code
        super().__init__(why)


class KeyInUse(OutcomeUnknown):
    """The first request with this key is still under way (409)."""


class KeySpent(OutcomeUnknown):
    """The key was used before, for another request (idempotency_error): this one was refused.

    https://docs.stripe.com/api/idempotent_requests
    """


class CardDeclined(OutcomeUnknown):
    """The card was declined (402).

    Who asked for a charge or a card knows what that means; whoever did not, knows nothing.
    """

    def __init__(self, why: str, decline: Decline, intent: Fields | None) -> None:
        self.decline = decline
        self.intent = intent  # the PaymentIntent that was declined, as the answer shows it
        super().__init__(why)


class Wire(stripe.HTTPClient):
    """One connection pool for all threads, with the time limits and rules of all our gateways.

    The SDK's own clients follow redirects or keep a session for each thread, and do not tell a
    connection that was never made from one that broke; here that is the whole difference.
    """

    name = "httpx"

    def __init__(self, timeout: float) -> None:
        super().__init__()
        self._timeout = timeout
        self._client = httpx.Client(
            timeout=httpx.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout)),
            limits=httpx.Limits(keepalive_expiry=KEEPALIVE_SECONDS),
            follow_redirects=False,
        )

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        post_data: Any = None,
        **_: Any,
    ) -> tuple[Any, int, Mapping[str, str]]:
        """The body in bytes, the status and the headers of a whole answer.

        Raises RetryLater when nothing was sent, OutcomeUnknown when something was.
        """
        status, answered, content = fetch(
            self._client, self._timeout, method, url, headers=headers, content=post_data
        )
        return content, status, answered

    def close(self) -> None:
        self._client.close()


def connect(api_key: str, base_url: str, wire: Wire) -> stripe.StripeClient:
    """A client that asks once: what may be repeated is decided by who called."""
    # At INFO the SDK logs the messages of errors, at DEBUG whole bodies.
    logging.getLogger("stripe").setLevel(logging.WARNING)
    # It would write a file to the home directory, and tell of this machine.
    stripe.enable_telemetry = False
    return stripe.StripeClient(
        api_key,
        base_addresses={"api": base_url.rstrip("/")},
        max_network_retries=0,
        http_client=wire,
    )


def ask(call: Callable[[], stripe.StripeObject]) -> Fields:
    """Make one request of the SDK; the object it answers with, as plain data.

    Raises NotExecuted, OutcomeUnknown, or one of their kinds above, and never an exception of the
    SDK.
    """
    try:
        return call().to_dict()
    except GatewayError:
        raise
    except stripe.StripeError as error:
        raise outcome(error) from None
    except Exception as error:  # an answer that the SDK did not expect
        raise OutcomeUnknown(type(error).__name__) from None


def outcome(error: stripe.StripeError) -> GatewayError:
    """What an exception of the SDK says: surely not done, declined, or unknown.

    https://docs.stripe.com/api/errors
    """
    body = _body(error)
    code = word(body.get("code"))
    parts = (type(error).__name__, error.http_status, code, word(error.request_id))
    why = " ".join(str(part) for part in parts if part is not None)
    if isinstance(error, stripe.RateLimitError) or error.http_status == 429:
        return RetryLater(why, retry_after((error.headers or {}).get("retry-after")))
    if isinstance(error, stripe.CardError):
        raw = word(body.get("decline_code")) or code
        intent = body.get("payment_intent")
        decline = Decline(normalize_decline_code(STRIPE, raw), raw)
        return CardDeclined(why, decline, intent if isinstance(intent, Mapping) else None)
    if isinstance(error, stripe.AuthenticationError | stripe.PermissionError):
        return NotExecuted(why)  # of our key, not of the request
    if code == "idempotency_key_in_use":
        return KeyInUse(why)
    if body.get("type") == "idempotency_error":
        return KeySpent(why)
    if isinstance(error, stripe.InvalidRequestError) and error.http_status in (400, 404):
        return RequestRefused(why, code)
    return OutcomeUnknown(why)


def word(value: object) -> str | None:
    """A code or an id of Stripe that may be logged and stored; None for anything else."""
    return value if isinstance(value, str) and WORD.fullmatch(value) else None


def _body(error: stripe.StripeError) -> Fields:
    body = error.json_body
    inner = body.get("error") if isinstance(body, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}
