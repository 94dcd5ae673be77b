"""Requests to PayPal: access tokens, request ids, and what each refusal says about the money.

`states.py` reads the answers.
"""

import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateways.base import NotExecuted, OutcomeUnknown, Refused, RetryLater
from gateways.transport import Body, Reply, Transport

# A token is renewed this long before it expires, so that it is valid when a request arrives.
TOKEN_MARGIN_SECONDS: Final = 60.0

# Codes of PayPal look like this. Only they go to the log: other texts may repeat what was sent.
CODE: Final = re.compile(r"[A-Z][A-Z0-9_]{0,79}")
DEBUG_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")

# Another request with this id or key is under way or was executed.
IN_PROGRESS: Final = frozenset(
    {
        "DUPLICATE_INVOICE_ID",
        "DUPLICATE_REQUEST_ID",
        "ORDER_COMPLETION_IN_PROGRESS",
        "PREVIOUS_REQUEST_IN_PROGRESS",
    }
)


class Rejected(Refused):
    """PayPal refuses the request (400 or 422). `issue` is its code for the reason."""

    def __init__(self, issue: str, why: str) -> None:
        self.issue = issue
        super().__init__(why)


class NotFound(NotExecuted):
    """PayPal knows no such object (404), or another account owns it."""


class Client:
    """One account at PayPal. Safe to be used by many threads."""

    def __init__(self, base_url: str, client_id: str, client_secret: str, timeout: float) -> None:
        self.transport = Transport(base_url, timeout=timeout)
        self._credentials = (client_id, client_secret)
        self._lock = threading.Lock()  # one fetch of a token at a time; the others wait for it
        self._token: str | None = None
        self._token_until = 0.0  # by time.monotonic()
        self._tries = 0  # to fetch a token

    def get(self, path: str) -> Mapping[str, Any]:
        """Raises NotFound, NotExecuted or OutcomeUnknown."""
        return self._call("GET", path, {}, None)

    def find(self, path: str) -> Mapping[str, Any] | None:
        """None instead of NotFound. Raises NotExecuted or OutcomeUnknown."""
        try:
            return self.get(path)
        except NotFound:
            return None

    def patch(self, path: str, changes: Sequence[Mapping[str, Any]]) -> None:
        """Change an object, by JSON Patch. Raises Rejected, NotFound, NotExecuted or
        OutcomeUnknown."""
        self._call("PATCH", path, {}, changes)

    def post(
        self, path: str, body: Mapping[str, Any], *, key: str | None = None
    ) -> Mapping[str, Any]:
        """Raises Rejected, NotFound, NotExecuted or OutcomeUnknown.

        `key` becomes PayPal-Request-Id, under which a repeat has no second effect.
        """
        # Without this header PayPal answers with an id and a status only.
        headers = {"Prefer": "return=representation"}
        if key is not None:
            headers["PayPal-Request-Id"] = key
        return self._call("POST", path, headers, body)

    def _call(
        self, method: str, path: str, headers: Mapping[str, str], body: Body | None
    ) -> Mapping[str, Any]:
        token = self._access_token()
        authorized = {**headers, "Authorization": f"Bearer {token}"}
        reply = self.transport.send(method, path, headers=authorized, body=body)
        if reply.status == 401:
            # Nothing was executed. Tokens can end before their time.
            authorized["Authorization"] = f"Bearer {self._access_token(instead_of=token)}"
            reply = self.transport.send(method, path, headers=authorized, body=body)
        if reply.status >= 400:
            raise _failure(reply)
        return reply.body

    def _access_token(self, *, instead_of: str | None = None) -> str:
        """A token that is valid for a while. Raises NotExecuted."""
        tried = self._tries
        with self._lock:
            fresh = time.monotonic() < self._token_until
            if self._token is None or not fresh or self._token == instead_of:
                if self._tries != tried:  # another thread tried and failed meanwhile
                    raise RetryLater("access token: there is none at the moment")
                self._tries += 1
                self._token, seconds = self._fetch_token()
                self._token_until = time.monotonic() + seconds - TOKEN_MARGIN_SECONDS
            return self._token

    def _fetch_token(self) -> tuple[str, float]:
        try:
            reply = self.transport.send(
                "POST",
                "/v1/oauth2/token",
                form={"grant_type": "client_credentials"},
                auth=self._credentials,
            )
        except OutcomeUnknown as error:
            # The request that needs the token was not sent.
            raise RetryLater(f"access token: {error}") from None
        if reply.status >= 400:
            raise NotExecuted(f"access token: {_describe(reply)}")
        token, seconds = reply.body.get("access_token"), reply.body.get("expires_in")
        # A header carries ASCII only, and no line breaks.
        if not (isinstance(token, str) and token.isascii() and token.isprintable() and token):
            raise RetryLater("access token: none in the answer")
        return token, float(seconds) if isinstance(seconds, int) else 0.0


def issue_of(body: Mapping[str, Any]) -> str:
    """`details[0].issue` of an error, else its `name`; empty if there is neither.

    https://developer.paypal.com/api/rest/responses/
    """
    details = body.get("details")
    first = details[0] if isinstance(details, list) and details else None
    code = first.get("issue") if isinstance(first, dict) else None
    if code is None:
        code = body.get("name")
    return code if isinstance(code, str) and CODE.fullmatch(code) else ""


def _failure(reply: Reply) -> NotExecuted | OutcomeUnknown:
    """What an answer from 400 to 499 says about the request."""
    why, issue = _describe(reply), issue_of(reply.body)
    if reply.status == 401:
        return NotExecuted(why)
    if not issue or reply.status in (408, 409) or issue in IN_PROGRESS:
        return OutcomeUnknown(why)  # not PayPal's error, or the first request is under way
    if reply.status in (400, 422):
        return Rejected(issue, why)
    if reply.status == 404:
        return NotFound(why)
    return NotExecuted(why)


def _describe(reply: Reply) -> str:
    """Status, issue and debug id, but no message: it may repeat what was sent."""
    debug_id = reply.body.get("debug_id") or reply.headers.get("paypal-debug-id")
    known = isinstance(debug_id, str) and DEBUG_ID.fullmatch(debug_id)
    parts = [f"HTTP {reply.status}", issue_of(reply.body), f"debug_id {debug_id}" if known else ""]
    return " ".join(part for part in parts if part)
