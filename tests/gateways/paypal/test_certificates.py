"""Which certificates may sign webhooks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from conformance.doubles.paypal import PaypalDouble, Signer
from conformance.doubles.server import Answer, Double, Request
from gateways.base import (
    SignatureInvalid,
)
from gateways.paypal.certificates import CACHE_SIZE, MAX_BYTES, Certificates
from tests.support.paypal import utc_now


class CertificateHost(Double):
    """Serves whatever it is told as a certificate."""

    def __init__(self) -> None:
        super().__init__()
        self.served = Answer(200, b"")

    def answer(self, request: Request) -> Answer:
        return self.served


@pytest.fixture
def host() -> Iterator[CertificateHost]:
    with CertificateHost() as running:
        assert isinstance(running, CertificateHost)
        yield running


def certificates_of(signer: Signer, folder: Path, **more: Any) -> Certificates:
    path = folder / "ca.pem"
    path.write_bytes(signer.ca)
    return Certificates(["127.0.0.1"], path, more.get("timeout", 2.0))


@pytest.mark.parametrize(
    "url",
    [
        "https://paypal.example/cert",
        "https://127.0.0.1@paypal.example/cert",
        "https://paypal.example#@127.0.0.1/cert",
        "https://paypal.example\\@127.0.0.1/cert",
        "http://user@127.0.0.1/cert",
        "http://127.0.0.1.paypal.example/cert",
        "http://127.0.0.1:99999/cert",
        "http://127.0.0.1:port/cert",
        "http://127.0.0.1/ce rt",
        "http://127.0.0.1/ce\nrt",
        "http://127.0.0.1/" + "x" * 5000,
        "ftp://127.0.0.1/cert",
        "file:///etc/ssl/cert.pem",
        "//127.0.0.1/cert",
        "http://[127.0.0.1/cert",
        "https://１２７.0.0.1/cert",
        "",
    ],
)
def test_certificates_come_from_allowed_hosts_only(url: str, tmp_path: Path) -> None:
    with pytest.raises(SignatureInvalid):
        Certificates(["127.0.0.1"], None, 1.0).key(url, utc_now())


def test_plain_http_is_for_loopback_only() -> None:
    with pytest.raises(SignatureInvalid):
        Certificates(["api.paypal.com"], None, 1.0).key("http://api.paypal.com/c", utc_now())


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b""),
        Answer(200, b"no certificate"),
        Answer(200, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        Answer(200, b"x" * (MAX_BYTES + 1)),
        Answer(404, {}),
        Answer(302, None, {"Location": "https://api.paypal.com/cert"}),
    ],
)
def test_what_is_no_certificate_makes_a_webhook_invalid(
    host: CertificateHost, tmp_path: Path, double: PaypalDouble, answer: Answer
) -> None:
    host.served = answer
    with pytest.raises(SignatureInvalid):
        certificates_of(double.signer, tmp_path).key(f"{host.base_url}/cert", utc_now())


def test_a_certificate_that_could_not_be_had_is_asked_for_again_later(
    host: CertificateHost,
    tmp_path: Path,
    double: PaypalDouble,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    certificates = certificates_of(double.signer, tmp_path)
    for status in (500, 503, 429):
        host.served = Answer(status, {})
        with pytest.raises(SignatureInvalid):
            certificates.key(f"{host.base_url}/cert/{status}", utc_now())
    with pytest.raises(SignatureInvalid):
        certificates.key("http://127.0.0.1:9/cert", utc_now())
    host.served = Answer(200, double.signer.chain)
    asked = len(host.requests)
    with pytest.raises(SignatureInvalid, match="a moment ago"):
        certificates.key(f"{host.base_url}/cert/500", utc_now())
    assert len(host.requests) == asked
    monkeypatch.setattr(certificates, "_failed", OrderedDict())  # a minute later
    assert certificates.key(f"{host.base_url}/cert/500", utc_now()).key_size == 2048


def test_a_certificate_that_many_want_is_fetched_by_one(
    host: CertificateHost, tmp_path: Path, double: PaypalDouble
) -> None:
    host.served = Answer(200, double.signer.chain)
    certificates = certificates_of(double.signer, tmp_path)
    asked = len(host.requests)
    start = threading.Barrier(12)

    def fetch(_: int) -> int:
        start.wait(10)
        return certificates.key(f"{host.base_url}/cert/wanted", utc_now()).key_size

    with ThreadPoolExecutor(12) as pool:
        assert set(pool.map(fetch, range(12))) == {2048}
    assert len(host.requests) == asked + 1


@pytest.mark.parametrize(
    "path",
    [
        "/v1/notifications/certs/CERT-1?x=1",
        "/v1/notifications/certs/CERT-1#1",
        "/v1/notifications/certs/../../oauth2/token",
        "/v1/notifications/certs/%2e%2e/x",
        "/v1/notifications/certs/",
        ":81/v1/notifications/certs/CERT-1",
        "/v1/oauth2/token",
    ],
)
def test_only_paypals_certificates_are_fetched_from_its_hosts(path: str) -> None:
    certificates = Certificates(["api.paypal.com"], None, 1.0)
    with pytest.raises(SignatureInvalid) as caught:
        certificates.key(f"https://api.paypal.com{path}", utc_now())
    assert str(caught.value) == ""  # refused before anything was fetched


@pytest.mark.parametrize(
    ("name", "days", "authority_is_one", "valid"),
    [
        ("messageverificationcerts.paypal.com", (-1, 1), True, True),
        ("paypal.com", (-1, 1), True, True),
        ("messageverificationcerts.paypal.com", (-2, -1), True, False),
        ("messageverificationcerts.paypal.com", (1, 2), True, False),
        ("messageverificationcerts.paypal.com", (-1, 1), False, False),
        ("messageverificationcerts.notpaypal.com", (-1, 1), True, False),
        ("paypal.com.shop.example", (-1, 1), True, False),
    ],
)
def test_a_certificate_is_paypals_in_force_and_issued_by_an_authority(
    host: CertificateHost,
    tmp_path: Path,
    name: str,
    days: tuple[float, float],
    authority_is_one: bool,
    valid: bool,
) -> None:
    signer = Signer(name, days=days, authority_is_one=authority_is_one)
    host.served = Answer(200, signer.chain)
    certificates = certificates_of(signer, tmp_path)
    if valid:
        key = certificates.key(f"{host.base_url}/cert", utc_now())
        leaf = x509.load_pem_x509_certificates(signer.chain)[0]
        assert key == leaf.public_key()
    else:
        with pytest.raises(SignatureInvalid):
            certificates.key(f"{host.base_url}/cert", utc_now())


def test_a_chain_without_its_leaf_proves_nothing(
    host: CertificateHost, tmp_path: Path, double: PaypalDouble
) -> None:
    host.served = Answer(200, double.signer.ca)
    with pytest.raises(SignatureInvalid):
        certificates_of(double.signer, tmp_path).key(f"{host.base_url}/cert", utc_now())


def test_the_cache_of_certificates_is_bounded(
    host: CertificateHost, tmp_path: Path, double: PaypalDouble
) -> None:
    host.served = Answer(200, double.signer.chain)
    certificates = certificates_of(double.signer, tmp_path)
    for number in range(CACHE_SIZE + 5):
        certificates.key(f"{host.base_url}/cert/{number}", utc_now())
    assert len(certificates._cache) == CACHE_SIZE
    count = len(host.requests)
    certificates.key(f"{host.base_url}/cert/{CACHE_SIZE + 4}", utc_now())
    assert len(host.requests) == count
