"""Signs the sandbox's webhooks and verifies their signatures."""

import hashlib
import hmac
from datetime import timedelta

from gateways.base import SignatureInvalid

SIGNATURE_TOLERANCE = timedelta(minutes=5)


def sign(secret: str, body: bytes, timestamp: int) -> dict[str, str]:
    """The headers of a webhook: HMAC-SHA-256 over "<timestamp>.<body>"."""
    digest = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256)
    return {"sandbox-signature": f"t={timestamp},v1={digest.hexdigest()}"}


def verify(secret: str, signature: str, body: bytes, now: int) -> None:
    """Raises SignatureInvalid unless the signature is ours, fresh, and covers this body."""
    parts = dict(part.partition("=")[::2] for part in signature.split(","))
    timestamp = parts.get("t", "")
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        raise SignatureInvalid
    if abs(now - int(timestamp)) > SIGNATURE_TOLERANCE.total_seconds():
        raise SignatureInvalid
    expected = sign(secret, body, int(timestamp))["sandbox-signature"]
    if not hmac.compare_digest(signature.encode(), expected.encode()):
        raise SignatureInvalid
