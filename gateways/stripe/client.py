"""Stripe's SDK on an HTTP client of ours, and what each of its errors says about the money.

`states.py` reads the answers, `gateway.py` decides on the requests.
"""

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import stripe

from domain.declines import STRIPE, normalize_decline_code
from gateways import transport
from gateways.base import Decline, GatewayError, NotExecuted, OutcomeUnknown, Refused, RetryLater
from gateways.transport import fetch, retry_after

Fields = Mapping[str, Any]

# Codes, types and ids look like this. Only they go to the log and the database, because the
# messages of errors repeat what was sent.
CODE: Final = re.compile(r"[A-Za-z0-9_]{1,64}")


class RequestRefused(Refused):
    """Stripe refuses the request (400, 404); `code` is its code for the reason."""

    def __init__(self, why: str, code: str | None) -> None:
        self.code = code
        super().__init__(why)


class KeyInUse(OutcomeUnknown):
    """Another request with this key is still under way (409)."""


class KeyReused(OutcomeUnknown):
    """Stripe refuses the request: its key belongs to another one (idempotency_error).

    https://docs.stripe.com/api/idempotent_requests
    """


class CardDeclined(OutcomeUnknown):
    """The card was declined (402).

    `charge` and `save_method` handle it. For any other request the outcome is unknown.
    """

    def __init__(self, why: str, decline: Decline, intent: Fields | None) -> None:
        self.decline = decline
        self.intent = intent  # the PaymentIntent that was declined, as the answer shows it
        super().__init__(why)


class HttpxClient(stripe.HTTPClient):
    """One connection pool for all threads, with the time limits of all our gateways.

    The SDK's own clients follow redirects or keep a session for each thread. And they do not
    distinguish a connection that was never made from one that broke, which decides whether a
    charge may have happened.
    """

    name = "httpx"

    def __init__(self, timeout: float) -> None:
        super().__init__()
        self._timeout = timeout
        self._client = transport.new_client(timeout)

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        post_data: Any = None,
        **_: Any,
    ) -> tuple[Any, int, Mapping[str, str]]:
        """Returns body, status and headers of a whole answer.

        Raises RetryLater when nothing was sent, OutcomeUnknown when something was.
        """
        status, answered, content = fetch(
            self._client, self._timeout, method, url, headers=headers, content=post_data
        )
        return content, status, answered

    def close(self) -> None:
        self._client.close()


def new_client(api_key: str, base_url: str, http: HttpxClient) -> stripe.StripeClient:
    """A client that never repeats a request by itself."""
    # At INFO the SDK logs the messages of errors, at DEBUG whole bodies.
    logging.getLogger("stripe").setLevel(logging.WARNING)
    # It would write a file to the home directory and report about this machine.
    stripe.enable_telemetry = False
    return stripe.StripeClient(
        api_key,
        base_addresses={"api": base_url.rstrip("/")},
        max_network_retries=0,
        http_client=http,
    )


def send(call: Callable[[], stripe.StripeObject]) -> Fields:
    """Make one request of the SDK and return the answer as plain data.

    Raises NotExecuted, OutcomeUnknown or one of their subclasses, never an error of the SDK.
    """
    try:
        return call().to_dict()
    except GatewayError:
        raise
    except stripe.StripeError as error:
        raise translate(error) from None
    except Exception as error:  # an answer that the SDK did not expect
        raise OutcomeUnknown(type(error).__name__) from None


def translate(error: stripe.StripeError) -> GatewayError:
    """Turn an error of the SDK into one of the contract.

    https://docs.stripe.com/api/errors
    """
    body = _body(error)
    code = plain_code(body.get("code"))
    parts = (type(error).__name__, error.http_status, code, plain_code(error.request_id))
    why = " ".join(str(part) for part in parts if part is not None)
    if isinstance(error, stripe.RateLimitError) or error.http_status == 429:
        return RetryLater(why, retry_after((error.headers or {}).get("retry-after")))
    if isinstance(error, stripe.CardError):
        raw = plain_code(body.get("decline_code")) or code
        intent = body.get("payment_intent")
        decline = Decline(normalize_decline_code(STRIPE, raw), raw)
        return CardDeclined(why, decline, intent if isinstance(intent, Mapping) else None)
    if isinstance(error, stripe.AuthenticationError | stripe.PermissionError):
        return NotExecuted(why)  # about our API key, not about the request
    if code == "idempotency_key_in_use":
        return KeyInUse(why)
    if body.get("type") == "idempotency_error":
        return KeyReused(why)
    if isinstance(error, stripe.InvalidRequestError) and error.http_status in (400, 404):
        return RequestRefused(why, code)
    return OutcomeUnknown(why)


def plain_code(value: object) -> str | None:
    """A code or id that may be logged and stored; None for anything else."""
    return value if isinstance(value, str) and CODE.fullmatch(value) else None


def _body(error: stripe.StripeError) -> Fields:
    body = error.json_body
    inner = body.get("error") if isinstance(body, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}
