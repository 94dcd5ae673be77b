"""What Schemathesis checks beside its own rules: a refusal stands in the OpenAPI document."""

from __future__ import annotations

import re

import schemathesis

EVERYWHERE = {"int_type"}  # to a schema 1.0 is an integer; the API wants it written as one: 1


@schemathesis.check
def a_valid_request_is_refused_as_documented(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """By a code of the operation; by `invalid_request` only for a rule that no schema can tell."""
    if response.status_code < 400 or case.meta is None:
        return
    if not case.meta.generation.mode.is_positive:
        return
    problem = response.json()
    documented = case.operation.definition.raw["responses"][str(response.status_code)]
    examples = documented["content"]["application/problem+json"]["examples"]
    assert problem["code"] in examples, f"{problem['code']} is not documented"
    if problem["code"] == "invalid_request":
        rules = set(re.findall("`([a-z_]+)`", documented["description"]))
        broken = {f"{error['field']}: {error['code']}" for error in problem["errors"]}
        unknown = {rule for rule in broken if rule.rpartition(": ")[2] not in rules | EVERYWHERE}
        assert not unknown, f"refused by a rule that is not documented: {unknown}"
