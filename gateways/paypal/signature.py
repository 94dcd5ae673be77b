"""Verifies that a webhook is from PayPal, without asking PayPal. `events.py` reads it.

https://developer.paypal.com/api/rest/webhooks/rest/#self-verification-method
"""

import base64
import binascii
import re
import zlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256

from gateways.base import SignatureInvalid
from gateways.paypal.certificates import Certificates
from gateways.paypal.states import moment

ALGORITHM: Final = "SHA256withRSA"
# PayPal repeats a webhook for three days; the fourth is for clocks and queues.
MAX_AGE: Final = timedelta(days=4)
MAX_AHEAD: Final = timedelta(minutes=5)  # clocks differ

TRANSMISSION_ID: Final = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)
MAX_SIGNATURE: Final = 2048  # characters; an RSA key of 4096 bits makes 684


def verify(
    webhook_id: str,
    certificates: Certificates,
    headers: Mapping[str, str],
    body: bytes,
    now: datetime,
) -> str:
    """Returns the id of the transmission, which is signed; of the body only a CRC-32 is.

    Raises SignatureInvalid, also if the certificate cannot be fetched. Cheap checks come first,
    so that a malformed header costs no fetch.
    """
    if headers.get("paypal-auth-algo") != ALGORITHM:
        raise SignatureInvalid
    transmission_id = headers.get("paypal-transmission-id", "")
    if not TRANSMISSION_ID.fullmatch(transmission_id):
        raise SignatureInvalid
    sent_at = headers.get("paypal-transmission-time", "")
    time = moment(sent_at)
    if time is None or not now - MAX_AGE <= time <= now + MAX_AHEAD:
        raise SignatureInvalid
    signature = _decode(headers.get("paypal-transmission-sig", ""))
    key = certificates.key(headers.get("paypal-cert-url", ""), now)
    signed = f"{transmission_id}|{sent_at}|{webhook_id}|{zlib.crc32(body)}"
    try:
        key.verify(signature, signed.encode(), PKCS1v15(), SHA256())
    except InvalidSignature:
        raise SignatureInvalid from None
    return transmission_id


def _decode(value: str) -> bytes:
    if len(value) > MAX_SIGNATURE:
        raise SignatureInvalid
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise SignatureInvalid from None
