"""Where shoppers are sent back to: an address that everybody reads alike, and an allowed one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi import FastAPI

from config import ConfigurationError, Settings, load_settings
from fields import web_origin
from tests.support.shop import ACTION, Shop, problem


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        ("https://shop.example", "https://shop.example"),
        ("https://shop.example/", "https://shop.example"),
        ("HTTPS://Shop.Example:443/a?b#c", "https://shop.example"),
        ("http://shop.example:80/", "http://shop.example"),
        ("https://shop.example:8443?x=1", "https://shop.example:8443"),
        ("https://shop.example#a@b", "https://shop.example"),
        ("https://shop.example/@evil.example/", "https://shop.example"),
        ("https://shop.example/?next=https://evil.example:99/", "https://shop.example"),
        ("http://localhost:3000/x", "http://localhost:3000"),
        ("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example"),
        ("https://shop.example/bücher", "https://shop.example"),
        ("http://[::1]:3000/", "http://[::1]:3000"),
        ("https://192.0.2.1/", "https://192.0.2.1"),
        ("https://shop.example:65535/", "https://shop.example:65535"),
    ],
)
def test_an_address_leads_to_one_origin(address: str, origin: str) -> None:
    assert web_origin(address) == origin


NO_ADDRESSES = [
    "https://alice@shop.example/",
    "https://alice:secret@shop.example/",
    "https://shop.example@evil.example/",
    "https://shop.example:443@evil.example/",
    "https://@shop.example/",
    "https://evil.example\\@shop.example/",
    "https://evil.example\\.shop.example/",
    "https:\\\\shop.example/",
    "https:/shop.example/",
    "https:shop.example/",
    "https:///shop.example/",
    "https://shop.example/a b",
    " https://shop.example/",
    "https://shop.example/ ",
    "https://shop .example/",
    "https://shop.example/\t",
    "https://shop.example/\n",
    "https://shop.example/\u00a0",
    "https://shop.example:/",
    "https://shop.example:0/",
    "https://shop.example:65536/",
    "https://shop.example:99999/",
    "https://shop.example:080/",
    "https://shop.example:https/",
    "https://shop.example:-1/",
    "https://shop.example:\u0663/",
    "https://shop..example/",
    "https://.shop.example/",
    "https://-shop.example/",
    "https://shop%2eexample/",
    "https://shop.example%00.evil.example/",
    "https://b\u00fccher.example/",
    "https://shop\u3002example/",
    "https://shop.example\uff0fevil.example/",
    "https://[::1/",
    "https://[::1]evil.example/",
    "https://[1.2.3.4]/",
    "https://[fe80::1%25eth0]/",
    'https://shop.example/"onload=',
    "https://shop.example/<script>",
    "ws://shop.example/",
    "httpss://shop.example/",
    "\uff48ttps://shop.example/",
    "",
]


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_what_readers_understand_differently_is_no_address(address: str) -> None:
    assert web_origin(address) is None


def test_a_bad_address_is_400_and_repeated_nowhere(shop: Shop) -> None:
    order_id = shop.place()
    for address in NO_ADDRESSES:
        answer = shop.try_pay(order_id, ACTION, return_url=address)
        assert problem(answer) == (400, "invalid_request"), address
        (error,) = answer.json()["errors"]
        assert error["field"] == "return_url"
        assert "example/" not in answer.text
        assert "evil" not in answer.text
        assert "secret" not in answer.text


@pytest.fixture
def only_our_shop(app: FastAPI, base_url: str, settings: Settings) -> Iterator[None]:
    allowed = ["https://shop.example", "http://localhost:3000"]
    app.state.settings = settings.model_copy(update={"return_url_origins": allowed})
    yield
    app.state.settings = settings


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("https://shop.example/thanks?a=b", True),
        ("https://SHOP.example:443/thanks", True),
        ("http://localhost:3000/", True),
        ("http://shop.example/thanks", False),
        ("https://shop.example:8443/", False),
        ("https://www.shop.example/", False),
        ("https://shop.example.evil.example/", False),
        ("https://evil.example/?https://shop.example/", False),
        ("http://localhost/", False),
        (None, True),
    ],
)
def test_shoppers_are_sent_back_to_listed_origins_only(
    shop: Shop, only_our_shop: None, address: str | None, allowed: bool
) -> None:
    order_id = shop.place()
    body = {} if address is None else {"return_url": address}
    answer = shop.try_pay(order_id, headers=None, **body)
    if allowed:
        assert answer.status_code == 201, answer.text
        return
    assert problem(answer) == (400, "invalid_request")
    (error,) = answer.json()["errors"]
    assert (error["field"], error["code"]) == ("return_url", "return_url_origin")
    assert "example" not in answer.text
    assert shop.try_pay(order_id).status_code == 201  # nothing was begun


@pytest.mark.parametrize(
    "value",
    ["https://shop.example", "https://shop.example, http://localhost:3000", "http://[::1]:3000"],
)
def test_a_list_of_origins_is_a_setting(value: str, tmp_path: object) -> None:
    loaded = load_settings(_env_file=None, data_dir=tmp_path, return_url_origins=value)
    assert ", ".join(loaded.return_url_origins) == value


@pytest.mark.parametrize(
    "value",
    [
        "https://shop.example/",
        "https://shop.example/thanks",
        "https://Shop.example",
        "https://shop.example:443",
        "http://shop.example:80",
        "shop.example",
        "*",
        "https://*.shop.example",
        "ftp://shop.example",
        "https://alice@shop.example",
    ],
)
def test_what_is_no_origin_is_refused_at_the_start(value: str, tmp_path: object) -> None:
    with pytest.raises(ConfigurationError, match="RETURN_URL_ORIGINS") as caught:
        load_settings(_env_file=None, data_dir=tmp_path, return_url_origins=value)
    assert value not in str(caught.value).replace("https://shop.example:", "")
