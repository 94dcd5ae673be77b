"""What is refused stands in the OpenAPI document."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import SecretStr

import main
from config import Settings
from gateways.sandbox import FAULTS
from web.problems import VALIDATION_RULES


@pytest.fixture(scope="module")
def document(settings: Settings) -> dict[str, Any]:
    return main.create_app(settings).openapi()


def parameters(document: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """All parameters by name, with their schemas."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", []):
                found.setdefault(parameter["name"], []).append(parameter["schema"])
    return found


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("cursor", ["1", "9223372036854775807", "ch_0a"], ["", "0", "01", "-1", "1.5", "ch_", "x"]),
        ("Idempotency-Key", ["a", "a b", "~" * 255], ["", " ", "a" * 256, "é", "a\n"]),
    ],
)
def test_the_alphabet_of_a_parameter_is_documented(
    document: dict[str, Any], name: str, taken: list[str], refused: list[str]
) -> None:
    patterns = {schema["pattern"] for schema in parameters(document)[name]}
    for text in taken:
        assert any(re.fullmatch(pattern, text) for pattern in patterns), text
    for text in refused:
        assert not any(re.fullmatch(pattern, text) for pattern in patterns), text


def test_the_faults_are_documented_where_they_are_taken(
    document: dict[str, Any], settings: Settings
) -> None:
    for schema in parameters(document)["Sandbox-Fault"]:
        known, slow = schema["oneOf"]
        assert set(known["enum"]) == FAULTS
        for text in ("slow=0", "slow=4", "slow=0.3", "slow=120"):
            assert re.fullmatch(slow["pattern"], text)
        for text in ("slow=", "slow=-1", "slow=121", "slow=.5", "slow=1e1"):
            assert not re.fullmatch(slow["pattern"], text)
    secret = SecretStr("only to have one")
    changes = {"gateways": ["stripe"], "stripe_api_key": secret, "stripe_webhook_secret": secret}
    without = main.create_app(settings.model_copy(update=changes))
    assert "Sandbox-Fault" not in parameters(without.openapi())


def test_rules_that_no_schema_can_tell_are_named(document: dict[str, Any]) -> None:
    described = {
        operation["operationId"]: operation["responses"].get("400", {}).get("description", "")
        for path in document["paths"].values()
        for operation in path.values()
    }
    assert VALIDATION_RULES.keys() <= described.keys()
    for operation, rules in VALIDATION_RULES.items():
        assert all(f"`{rule}`" in described[operation] for rule in rules)


def test_names_of_metadata_hold_no_nul(document: dict[str, Any]) -> None:
    metadata = document["components"]["schemas"]["OrderCreate"]["properties"]["metadata"]
    assert metadata["propertyNames"]["pattern"] == metadata["additionalProperties"]["pattern"]
    assert "patternProperties" not in metadata
