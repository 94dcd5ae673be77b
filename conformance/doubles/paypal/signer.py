"""Who signs the double's webhooks: a key, its certificate, and the authority that issued it."""

from __future__ import annotations

import base64
import functools
import threading
from datetime import datetime, timedelta, timezone

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa


class Signer:
    """A key with a certificate, and the authority that issued it."""

    def __init__(
        self,
        name: str = "messageverificationcerts.paypal.com",
        *,
        days: tuple[float, float] = (-1, 365),
        authority_is_one: bool = True,
    ) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        authority = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.ca = _certificate("Double CA", "Double CA", authority, authority, ca=authority_is_one)
        leaf = _certificate(name, "Double CA", self.key, authority, ca=False, days=days)
        self.chain = leaf + self.ca

    def sign(self, data: bytes) -> str:
        return base64.b64encode(self.key.sign(data, padding.PKCS1v15(), hashes.SHA256())).decode()


@functools.lru_cache(maxsize=4)
def signer_named(name: str) -> Signer:
    """Keys are slow to make, so all doubles of a process share theirs."""
    with _SIGNER_LOCK:
        return Signer()


_SIGNER_LOCK = threading.Lock()


def _certificate(
    name: str,
    issuer: str,
    key: rsa.RSAPrivateKey,
    issuer_key: rsa.RSAPrivateKey,
    *,
    ca: bool,
    days: tuple[float, float] = (-1, 365),
) -> bytes:
    now = datetime.now(timezone.utc)
    subject, by = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, one)]) for one in (name, issuer)
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
    )
    if not ca:
        names = x509.SubjectAlternativeName([x509.DNSName(name)])
        builder = builder.add_extension(names, critical=False)
    signed = builder.sign(issuer_key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)
