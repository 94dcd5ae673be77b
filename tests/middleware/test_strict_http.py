"""HTTP taken literally: hosts, paths, versions, encodings, HEAD, ranges, and where links lead."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Any

import httpx
import pytest

import main
from config import ConfigurationError, Settings, load_settings
from observability import rejections
from tests.support.clients import Api
from tests.support.factories import place_order, save_card
from tests.support.raw import read_all

NEEDS_ACTION = "4000002760003184"


@pytest.fixture
def anyone(api: Api) -> httpx.Client:
    return api()


def status_of(base_url: str, request: str) -> int:
    """The status that a request gets, sent as it is written here."""
    port = int(base_url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(f"{request}\r\nConnection: close\r\n\r\n".encode("latin-1"))
        answer = read_all(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert status < 400 or b"application/problem+json" in head, answer
    assert status < 400 or b'"code":"' in body, answer
    return status


# --- Hosts and versions -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["shop.example", "SHOP.example:8000", "127.0.0.1:1", "[::1]:80", "pay_1", "xn--bcher-kva"],
)
def test_any_one_host_is_answered_unless_the_settings_name_some(base_url: str, host: str) -> None:
    assert status_of(base_url, f"GET /healthz HTTP/1.1\r\nHost: {host}") == 200


@pytest.mark.parametrize(
    "headers",
    [
        "",
        "\r\nHost:",
        "\r\nHost: a\r\nHost: a",
        "\r\nHost: a\r\nHost: b",
        *(
            f"\r\nHost: {host}"
            for host in (
                "a b",
                "a/b",
                "a@b",
                "a,b",
                "[",
                "[::1",
                "a:b",
                "a:1:2",
                "a?b",
                "b\xfccher",
            )
        ),
    ],
)
def test_no_host_or_two_or_one_that_is_none_is_400(base_url: str, headers: str) -> None:
    for path in ("/healthz", "/orders"):
        assert status_of(base_url, f"GET {path} HTTP/1.1{headers}") == 400


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("shop.example", 200),
        ("Shop.Example:8443", 200),
        ("a.pay.example", 200),
        ("[::1]", 200),
        ("pay.example", 400),
        ("evil.example", 400),
        ("shop.example.evil.example", 400),
        ("notshop.example", 400),
        ("127.0.0.1", 400),
    ],
)
def test_only_allowed_hosts_are_answered(settings: Settings, host: str, status: int) -> None:
    names = ["shop.example", "*.pay.example", "[::1]"]
    app = main.create_app(settings.model_copy(update={"allowed_hosts": names}))

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://any") as client:
            return await client.get("/healthz", headers={"Host": host})

    before = counted("host")
    answer = asyncio.run(ask())
    assert answer.status_code == status
    if status == 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
        assert host not in answer.text
    assert counted("host") == before + (status == 400)


def counted(reason: str) -> float:
    return (
        rejections.registry.get_sample_value("estore_requests_rejected_total", {"reason": reason})
        or 0.0
    )


@pytest.mark.parametrize("value", ["https://shop.example", "shop.example:80", "*", "a b", "*.*.a"])
def test_allowed_hosts_are_names(value: str) -> None:
    with pytest.raises(ConfigurationError, match="ALLOWED_HOSTS") as error:
        load_settings(_env_file=None, database_url="unused", allowed_hosts=value)
    assert f"{value!r}" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /healthz HTTP/1.1", 200),
        ("GET /healthz HTTP/1.0", 200),
        ("GET /healthz HTTP/0.9", 400),
        ("GET /healthz HTTP/2.0", 400),
        ("GET /healthz HTTP/1.2", 400),
        ("GET /healthz HTTP/3.0", 400),
        ("GET /healthz http/1.1", 400),
        ("GET /healthz", 400),
    ],
)
def test_http_1_0_and_1_1_are_spoken(base_url: str, line: str, status: int) -> None:
    assert status_of(base_url, f"{line}\r\nHost: shop") == status


# --- Paths ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part", ["%2f", "%2F", "%00", "1%00", "%0a", "%0d%0a", "%1f", "%7f", "%c2%85", "a%2Fb"]
)
@pytest.mark.parametrize(
    "path",
    [
        *("/{}", "/orders/{}", "/errors/{}", "/sandbox/actions/{}", "/orders/1/{}", "/docs{}"),
        *("/docs/assets/{}", "/payments/{}/refunds", "/healthz{}"),
    ],
)
def test_a_path_with_a_hidden_slash_or_a_control_character_is_404(
    manager: httpx.Client, path: str, part: str
) -> None:
    for method in ("GET", "HEAD"):
        answer = manager.request(method, path.format(part))
        assert answer.status_code == 404, answer.text
        assert method == "HEAD" or answer.json()["code"] == "not_found"
    assert manager.post(path.format(part), json={}).status_code in (404, 405)


def test_a_hidden_slash_is_no_slash(alice: httpx.Client) -> None:
    action = redirect_of(alice)
    assert alice.post(f"{action}%2Fapprove").status_code == 404
    assert alice.get("/checkout%2Freturn").status_code == 404
    assert alice.post(f"{action}/approve").status_code == 200


def test_other_escapes_are_read(anyone: httpx.Client) -> None:
    assert anyone.get("/%68ealthz").status_code == 200
    assert anyone.get("/healthz?a=%2f%00").status_code == 200


# --- Encodings and ranges ---------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["gzip", "br", "x", "identity, gzip", "GZIP"])
def test_an_unknown_content_encoding_is_415(alice: httpx.Client, encoding: str) -> None:
    for path in ("/orders", "/webhooks/sandbox"):
        answer = alice.post(path, json={}, headers={"Content-Encoding": encoding})
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
        assert answer.headers["accept-encoding"] == "identity"


def test_identity_is_no_encoding(alice: httpx.Client) -> None:
    answer = alice.post("/orders", json={}, headers={"Content-Encoding": "Identity"})
    assert answer.status_code == 400  # what is wrong is the order


@pytest.mark.parametrize("range_", ["bytes=0-9", "bytes=99999999-", "bytes=-1", "lines=1", "x"])
def test_a_range_is_ignored(manager: httpx.Client, range_: str) -> None:
    for path in ("/errors", "/openapi.json", *_assets(manager)):
        whole = manager.get(path)
        part = manager.get(path, headers={"Range": range_})
        assert (part.status_code, part.content) == (200, whole.content)


def _assets(client: httpx.Client) -> list[str]:
    """A file of the documentation's page."""
    found = re.search(r"[/\w.-]+\.js", client.get("/docs").text)
    assert found
    return [str(httpx.URL("http://any/").join(found.group()).path)]


# --- HEAD -------------------------------------------------------------------------------------


def test_head_is_answered_wherever_get_is(manager: httpx.Client) -> None:
    document = manager.get("/openapi.json").json()
    paths = [path for path, operations in document["paths"].items() if "get" in operations]
    assert len(paths) > 15
    pages = ["/docs", "/redoc", "/openapi.json", "/checkout/return", "/sandbox", *_assets(manager)]
    for path in (*paths, *pages):
        url = path.replace("{code}", "not_found")
        for name in ("{id}", "{order_id}", "{payment_id}", "{reference}"):
            url = url.replace(name, "1")
        got, head = manager.get(url), manager.head(url)
        assert (head.status_code, head.content) == (got.status_code, b""), url
        assert head.headers["content-type"] == got.headers["content-type"]
        if path != "/metrics":  # which counts
            assert head.headers["content-length"] == got.headers["content-length"]


def test_head_is_405_where_there_is_no_get(alice: httpx.Client) -> None:
    answer = alice.head("/payments/1/capture")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_allow_names_head_beside_get(alice: httpx.Client) -> None:
    answer = alice.delete("/orders")
    assert sorted(answer.headers["allow"].split(", ")) == ["GET", "HEAD", "POST"]


def test_allow_names_what_files_take(manager: httpx.Client) -> None:
    (file,) = _assets(manager)
    for method, status in (("POST", 405), ("OPTIONS", 204)):
        answer = manager.request(method, file)
        assert answer.status_code == status
        assert sorted(answer.headers["allow"].split(", ")) == ["GET", "HEAD"]


def test_connections_go_on_after_a_head(base_url: str) -> None:
    with httpx.Client(base_url=base_url) as client:
        for _ in range(3):
            assert client.head("/errors").status_code == 200
            assert client.get("/healthz").json() == {"status": "ok"}


# --- Links ------------------------------------------------------------------------------------

LIES = {
    "Host": "evil.example",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Port": "1",
    "X-Forwarded-For": "203.0.113.7",
    "Forwarded": "host=evil.example;proto=https",
}


def redirect_of(client: httpx.Client) -> str:
    """Where a payment that needs its shopper sends them."""
    save_card(client, NEEDS_ACTION)
    order = place_order(client)
    answer = client.post(f"/orders/{order['id']}/payments", json={}, headers=LIES)
    assert answer.status_code == 201, answer.text
    url: str = answer.json()["next_action"]["url"]
    return url


def test_links_lead_to_the_address_served_on_whatever_a_caller_says(
    alice: httpx.Client, base_url: str
) -> None:
    url = redirect_of(alice)
    assert url.startswith(f"{base_url}/sandbox/actions/")
    # The shopper stays on the page of the sandbox: the service knows its own return page again.
    answer = alice.post(f"{url}/approve", headers=LIES)
    assert answer.status_code == 200, answer.headers


@pytest.mark.parametrize(
    ("value", "start"),
    [
        ("https://pay.shop.example", "https://pay.shop.example/sandbox/actions/"),
        ("https://shop.example:8443/pay/", "https://shop.example:8443/pay/sandbox/actions/"),
    ],
)
def test_links_lead_to_public_url(
    alice: httpx.Client,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    value: str,
    start: str,
) -> None:
    monkeypatch.setattr(settings, "public_url", value)  # which the service reads each time
    url = redirect_of(alice)
    assert url.startswith(start)
    reference = url.rpartition("/")[2]
    page = alice.get(f"/sandbox/actions/{reference}")
    found = re.search(r'action="([^"]+)"', page.text)
    assert found
    assert httpx.URL(url).join(found[1]) == f"{url}/approve"
    answer = alice.post(f"/sandbox/actions/{reference}/approve", headers=LIES)
    assert answer.status_code == 200, answer.headers


@pytest.mark.parametrize(
    "value",
    [
        *("a.example", "ftp://a.example", "https:///x", "https://user@a.example"),
        *("https://a.example?x", "https://a.example#x", "https://a.example/a b"),
        *("https://a.example:x", "javascript:alert(1)", "//a.example"),
    ],
)
def test_public_url_is_an_address(value: str) -> None:
    with pytest.raises(ConfigurationError, match="PUBLIC_URL") as error:
        load_settings(_env_file=None, database_url="unused", public_url=value)
    assert value not in str(error.value)


def test_no_header_says_where_an_answer_leads(alice: httpx.Client) -> None:
    save_card(alice)
    created: dict[str, Any] = place_order(alice)
    place_order(alice)
    answers = [
        alice.get("/orders?limit=1", headers=LIES),
        alice.get("/", headers=LIES | {"Accept": "text/html"}),
        alice.get("/sandbox", headers=LIES),
        alice.get(f"/orders/{created['id']}", headers=LIES),
    ]
    for answer in answers:
        assert answer.status_code < 400
        assert "evil.example" not in answer.text + str(answer.headers)


def test_an_id_that_no_row_can_have_filters_to_nothing(alice: httpx.Client) -> None:
    for digits in (19, 31, 34, 4300):
        answer = alice.get("/orders", params={"payment_method_id": "9" * digits})
        assert (answer.status_code, answer.json()) == (200, []), digits
