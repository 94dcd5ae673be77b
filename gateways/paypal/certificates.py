"""Fetches the certificates that sign PayPal's webhooks, and verifies their chain to a root."""

import contextlib
import re
import ssl
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import certifi
import httpx
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.utils import CryptographyDeprecationWarning

from gateways.base import SignatureInvalid

DOMAIN: Final = "paypal.com"
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})  # doubles have no TLS
# The path of certificates on PayPal's hosts.
CERTIFICATE: Final = re.compile(r"/v1/notifications/certs/[A-Za-z0-9_-]{1,128}", re.ASCII)
MAX_FETCHES: Final = 2  # at a time
FAILURE_SECONDS: Final = 60.0  # until a fetch that failed is tried again
MAX_FAILURES: Final = 256  # that are remembered
UNCOMPRESSED: Final = {"Accept-Encoding": "identity"}  # a small answer must not unpack to a large
MAX_BYTES: Final = 64 * 1024  # a chain of three is about 6 KiB
MAX_CHAIN: Final = 6  # leaf, intermediates, root
MAX_URL: Final = 2048
MIN_KEY_BITS: Final = 2048
MAX_FETCH_SECONDS: Final = 1.5
# PayPal uses one certificate for months. We stop using a revoked one within this time.
CACHE_SECONDS: Final = 3600.0
CACHE_SIZE: Final = 16
PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class Certificates:
    """The public keys behind PAYPAL-CERT-URL. Safe to be used by many threads."""

    def __init__(self, hosts: Collection[str], ca_file: Path | None, timeout: float) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._ca_file = ca_file or Path(certifi.where())
        self._seconds = min(MAX_FETCH_SECONDS, timeout)
        self._roots: list[x509.Certificate] | None = None
        self._tls = ssl.create_default_context()  # made once: it is what makes a client slow
        self._lock = threading.Lock()
        self._fetching: dict[str, threading.Event] = {}
        self._failed: OrderedDict[str, float] = OrderedDict()
        self._cache: OrderedDict[str, tuple[float, x509.Certificate]] = OrderedDict()

    def key(self, url: str, now: datetime) -> RSAPublicKey:
        """The key of a certificate that may sign webhooks now.

        Raises SignatureInvalid, also if the certificate cannot be fetched: anybody can send us a
        URL, and PayPal repeats an event that we refuse.
        """
        self._check_url(url)
        leaf = self._cached(url) or self._fetch_once(url, now)
        if not _in_force(leaf, now):
            raise SignatureInvalid
        key = leaf.public_key()
        if not isinstance(key, RSAPublicKey) or key.key_size < MIN_KEY_BITS:
            raise SignatureInvalid
        return key

    def _cached(self, url: str) -> x509.Certificate | None:
        with self._lock:
            until, leaf = self._cache.get(url, (0.0, None))
            return leaf if time.monotonic() < until else None

    def _fetch_once(self, url: str, now: datetime) -> x509.Certificate:
        """Fetch once for all threads that wait, few at a time, and pause after a failure.

        Anybody can make us fetch, so it must cost little, and must not delay cached certificates.
        """
        with self._lock:
            if time.monotonic() < self._failed.get(url, 0.0):
                raise SignatureInvalid("certificate: failed a moment ago")
            fetched = self._fetching.get(url)
            if fetched is None and len(self._fetching) >= MAX_FETCHES:
                raise SignatureInvalid("certificate: too many are being fetched")
            own = self._fetching.setdefault(url, threading.Event())
        if fetched is not None:
            fetched.wait(self._seconds)
            leaf = self._cached(url)
            if leaf is None:
                raise SignatureInvalid("certificate: could not be fetched")
            return leaf
        try:
            leaf = self._trusted(self._fetch(url), now)
            self._keep(url, leaf)
            return leaf
        except SignatureInvalid:
            with self._lock:
                self._failed[url] = time.monotonic() + FAILURE_SECONDS
                while len(self._failed) > MAX_FAILURES:
                    self._failed.popitem(last=False)
            raise
        finally:
            with self._lock:
                del self._fetching[url]
            own.set()

    def _keep(self, url: str, leaf: x509.Certificate) -> None:
        with self._lock:
            self._cache[url] = (time.monotonic() + CACHE_SECONDS, leaf)
            self._cache.move_to_end(url)
            while len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)

    def _check_url(self, url: str) -> None:
        """Anybody can send us a URL. We fetch only from PayPal's hosts."""
        if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or "\\" in url:
            raise SignatureInvalid
        try:
            parts = urlsplit(url)
            host = parts.hostname or ""
            port = parts.port
        except ValueError:
            raise SignatureInvalid from None
        if host not in self._hosts or "@" in parts.netloc or " " in url:
            raise SignatureInvalid
        if host in LOOPBACK and parts.scheme in ("http", "https"):
            return  # a double, in development
        if parts.scheme != "https" or port not in (None, 443):
            raise SignatureInvalid
        if parts.query or parts.fragment or not CERTIFICATE.fullmatch(parts.path):
            raise SignatureInvalid

    def _fetch(self, url: str) -> bytes:
        """Raises SignatureInvalid for anything but 200 in time and size."""
        deadline = time.monotonic() + self._seconds
        found = b""
        try:
            with (
                httpx.Client(verify=self._tls, timeout=self._seconds) as client,
                client.stream("GET", url, headers=UNCOMPRESSED, follow_redirects=False) as answer,
            ):
                if answer.status_code >= 500 or answer.status_code == 429:
                    raise SignatureInvalid(f"certificate: HTTP {answer.status_code}")
                if answer.status_code != 200:
                    raise SignatureInvalid
                for part in answer.iter_raw():  # as sent, see UNCOMPRESSED
                    found += part
                    if len(found) > MAX_BYTES:
                        raise SignatureInvalid
                    if time.monotonic() > deadline:
                        raise SignatureInvalid("certificate: no answer in time")
        except httpx.InvalidURL:
            raise SignatureInvalid from None
        except httpx.HTTPError as error:
            raise SignatureInvalid(f"certificate: {type(error).__name__}") from None
        return found

    def _trusted(self, pem: bytes, now: datetime) -> x509.Certificate:
        """The leaf, if it is PayPal's and its chain leads to a root."""
        try:
            presented = x509.load_pem_x509_certificates(pem)
            leaf, *others = presented[:MAX_CHAIN]
            if not _in_force(leaf, now) or not _is_paypal(leaf):
                raise SignatureInvalid
            self._verify_chain(leaf, others, now)
        except (ValueError, TypeError, x509.DuplicateExtension):
            raise SignatureInvalid from None
        return leaf

    def _verify_chain(
        self, leaf: x509.Certificate, others: Sequence[x509.Certificate], now: datetime
    ) -> None:
        current = leaf
        for depth in range(MAX_CHAIN):
            if _issuer(current, self._known_roots(), depth, now) is not None:
                return
            issuer = _issuer(current, others, depth, now)
            if issuer is None:
                break
            current = issuer
        raise SignatureInvalid

    def _known_roots(self) -> list[x509.Certificate]:
        with self._lock:
            if self._roots is None:
                self._roots = _roots(self._ca_file.read_bytes())
            return self._roots


def _roots(bundle: bytes) -> list[x509.Certificate]:
    """The authorities of a bundle, without those that cannot be parsed.

    Bundles hold old roots that violate RFC 5280; one of them must not cost us the others.
    """
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        for pem in PEM.findall(bundle):
            with contextlib.suppress(ValueError):
                found.append(x509.load_pem_x509_certificate(pem))
    return found


def _issuer(
    certificate: x509.Certificate, candidates: Sequence[x509.Certificate], depth: int, now: datetime
) -> x509.Certificate | None:
    """The candidate that issued a certificate. `depth`: how many authorities are below it."""
    for candidate in candidates:
        if candidate.subject != certificate.issuer or not _in_force(candidate, now):
            continue
        if not _is_authority(candidate, depth):
            continue
        try:
            certificate.verify_directly_issued_by(candidate)
        except (InvalidSignature, ValueError, TypeError):
            continue
        return candidate
    return None


def _in_force(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _is_authority(certificate: x509.Certificate, depth: int) -> bool:
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return False
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        may_sign = True
    else:
        may_sign = usage.key_cert_sign
    return basic.ca and may_sign and (basic.path_length is None or basic.path_length >= depth)


def _is_paypal(certificate: x509.Certificate) -> bool:
    """By its alternative names, or if it has none by its common name (RFC 6125)."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        found = names.value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        found = [str(name.value) for name in common]
    return any(f".{name.lower()}".endswith(f".{DOMAIN}") for name in found)
