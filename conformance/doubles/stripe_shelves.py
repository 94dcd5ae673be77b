"""What Stripe's double holds, how it is read, and what its API takes and refuses."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

Object = dict[str, Any]

# The parameters that each request may have. Every POST needs a key.
PARAMETERS: Final = {
    "customers": {"metadata"},
    "payment_methods": {"type", "card", "billing_details"},
    "payment_methods/*/attach": {"customer"},
    "payment_intents": {
        *("amount", "currency", "customer", "payment_method", "capture_method", "confirm"),
        *("metadata", "off_session", "automatic_payment_methods", "return_url", "expand"),
        "description",
    },
    "payment_intents/*": {"metadata"},
    "payment_intents/*/capture": {"amount_to_capture", "expand"},
    "payment_intents/*/cancel": {"expand"},
    "refunds": {"payment_intent", "amount", "metadata", "reason"},
}
LIST_PARAMETERS: Final = {
    "payment_intents": {"created", "customer"},
    "refunds": {"created", "payment_intent"},
    "disputes": {"created", "payment_intent"},
    "events": {"created", "types"},
}
OF_ALL_LISTS: Final = {"limit", "starting_after", "expand"}
EVENTS_KEPT: Final = 30 * 24 * 3600  # seconds
DEEPEST: Final = 4  # levels of an `expand`, `data` included


class Refusal(Exception):
    """An error of Stripe's. A stored one is replayed under its key: its work had begun."""

    def __init__(
        self,
        status: int,
        code: str | None,
        *,
        kind: str = "invalid_request_error",
        stored: bool = False,
        **fields: Any,
    ) -> None:
        self.status, self.stored = status, stored
        # Real messages echo what was sent; so does this one.
        self.body = {"error": {"type": kind, "code": code, "message": f"No: {fields}", **fields}}


def moves_money(path: str, fields: Mapping[str, Any]) -> bool:
    """Whether a POST could; others may use up its key, so that it never does."""
    if path == "/v1/payment_intents":
        return fields.get("confirm") == "true"
    return path == "/v1/refunds" or path.endswith(("/capture", "/cancel"))


class Shelves:
    """Everything that was made, and reading it: one by its id, or in lists."""

    violations: list[str]

    def __init__(self) -> None:
        self.customers: dict[str, Object] = {}
        self.methods: dict[str, Object] = {}
        self.intents: dict[str, Object] = {}
        self.charges: dict[str, Object] = {}
        self.refunds: dict[str, Object] = {}
        self.disputes: dict[str, Object] = {}
        self.events: dict[str, Object] = {}
        self.page_limit = 100  # entries of a list's page, at most

    def grow_older(self, seconds: int) -> None:
        made = [*self.intents.values(), *self.refunds.values(), *self.disputes.values()]
        events = list(self.events.values())
        for one in (*made, *events, *(event["data"]["object"] for event in events)):
            if "created" in one:
                one["created"] -= seconds

    def read(self, parts: list[str], fields: Object) -> Object:
        shelf: Mapping[str, Object] = {
            "payment_intents": self.intents,
            "payment_methods": self.methods,
            "refunds": self.refunds,
            "disputes": self.disputes,
            "events": self.events,
        }[parts[0]]
        if len(parts) == 1:
            return self._list(parts[0], shelf.values(), fields)
        if parts[1] != "search":
            if parts[1] not in shelf:
                raise Refusal(404, "resource_missing", param="id")
            return self.shown(shelf[parts[1]], fields)
        wanted = re.fullmatch(r"metadata\['(\w+)'\]:'([^']*)'", fields["query"])
        assert wanted is not None
        name, value = wanted.groups()
        found = [one for one in shelf.values() if one["metadata"].get(name) == value]
        newest, more = list_page(found, {"limit": fields["limit"]}, self.page_limit)
        return {"object": "search_result", "data": newest, "has_more": more}

    def _list(self, name: str, objects: Iterable[Object], fields: Object) -> Object:
        unknown = fields.keys() - LIST_PARAMETERS[name] - OF_ALL_LISTS
        if unknown:
            self.violations.append(f"unknown parameters of the list {name}: {sorted(unknown)}")
            raise Refusal(400, "parameter_unknown", param=min(unknown))
        if name == "events":
            kept = time.time() - EVENTS_KEPT
            objects = [event for event in objects if event["created"] >= kept]
        page, more = list_page(objects, fields, self.page_limit)
        shown = {"data": [dict(one) for one in page]}
        for path in fields.get("expand", {}).values():
            for one in shown["data"]:
                self._expand(one, self._levels(path)[1:])
        return {"object": "list", **shown, "has_more": more}

    def shown(self, found: Object, fields: Object) -> Object:
        shown = dict(found)
        for path in fields.get("expand", {}).values():
            self._expand(shown, self._levels(path))
        return shown

    def _levels(self, path: str) -> list[str]:
        levels = path.split(".")
        if len(levels) > DEEPEST:
            self.violations.append(f"an expansion deeper than Stripe allows: {path}")
            raise Refusal(400, None, param="expand")
        return levels

    def _expand(self, shown: Object, levels: list[str]) -> None:
        """Show what an object names, and what that names in turn."""
        name, *deeper = levels
        if name == "refunds":  # of a charge; a list inside an object has ten entries
            of_it = [one for one in self.refunds.values() if one["charge"] == shown["id"]]
            page, more = list_page(of_it, {}, self.page_limit)
            shown["refunds"] = {"object": "list", "data": page, "has_more": more}
        elif isinstance(shown[name], str):
            shelf = {"latest_charge": self.charges, "payment_intent": self.intents}[name]
            shown[name] = dict(shelf[shown[name]])
        if deeper and shown[name] is not None:
            self._expand(shown[name], deeper)


def list_page(
    objects: Iterable[Object], fields: Mapping[str, Any], longest: int
) -> tuple[Sequence[Object], bool]:
    """A page, the newest first, and whether there are more. `longest` is 100 at Stripe."""
    newest = sorted(objects, key=lambda one: int(one["created"]))[::-1]
    if "starting_after" in fields:
        ids = [one["id"] for one in newest]
        newest = newest[ids.index(fields["starting_after"]) + 1 :]
    since = int(fields.get("created", {}).get("gte", 0))
    types = set(fields.get("types", {}).values())
    found = [
        one
        for one in newest
        if one["created"] >= since
        and (not types or one["type"] in types)
        and all(one[of] == fields[of] for of in ("customer", "payment_intent") if of in fields)
    ]
    limit = min(int(fields.get("limit", 10)), longest)
    return found[:limit], len(found) > limit


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"
