"""The floor plan of docs/architecture.md, read from the imports, and other rules of the house."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.paths import ROOT

# | floor | modules | what |
FLOOR = re.compile(r"^\| (\d+) \| ((?:`[\w./]+` ?)+)\|", re.MULTILINE)
FLOORS = {
    module.removesuffix(".py").removesuffix("/"): int(floor)
    for floor, modules in FLOOR.findall((ROOT / "docs/architecture.md").read_text())
    for module in re.findall(r"`([^`]+)`", modules)
}
# They may look at everything, and nothing in the house imports them.
OUTSIDE = {"tests", "migrations", "benchmarks", "deploy", "docs"}

# Equals do not import each other: the packages below hold many of a kind, and their modules build
# on these of their own only. Inside the other packages modules may build on each other, as parts
# of one thing do (services, settlement, workers), as long as no import leads back.
MANY_OF_A_KIND = {
    "routers": set[str](),
    "middleware": set[str](),
    "gateways": {"base", "replay", "transport"},  # the contract, and what adapters share
    "domain": {"states"},  # the words of them all
}
KNOWS_ITS_EQUALS = {"gateways.registry"}  # it puts together the gateways there are

# Where a floor alone does not say it. Each row: who may not know whom.
MUST_NOT_KNOW = [
    ("gateways", {"models", "schemas", "fields", "database"}),
    ("routers", {"middleware"}),
    ("auth", {"database", "models", "crud", "schemas", "fields"}),
    (
        "middleware",
        {"database", "models", "crud", "schemas", "fields", "settlement", "services", "gateways"},
    ),
]
DOMAIN_LIBRARIES = {"iso4217"}  # the table of currencies: data, not code

# Statements are written here and nowhere else; models and migrations define tables.
SQL_WRITERS = {
    "crud",
    "leases",
    "idempotency_keys",
    "invariants",
    "locks",
    "statements",
    "sessions",
    "database",
    "gateways.sandbox",
    "proof",
    "conformance.records",
}
TABLE_WRITERS = {"models"}
# What others may take from SQLAlchemy: types to name, and errors to catch.
SQL_TYPES = {"Engine", "Row", "Session"}
TABLE_WORDS = {"delete", "insert", "select", "update"}
EXECUTES = {"execute", "exec_driver_sql", "scalar", "scalars", "query"}

LOG_METHODS = {"debug", "info", "warning", "error", "critical", "exception", "log"}
EVENT_NAME = re.compile(r"[a-z][a-z_]*(\.[a-z][a-z_]*)+")
MAX_TEST_NAME = 90
MAX_LINES = 600
MAX_LINES_OF_CRUD = 900
POINTLESS_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "shared"}


class Module(NamedTuple):
    """A module of ours: `routers.orders` has the top `routers` and is of the kind `orders`."""

    name: str
    tree: ast.Module

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]

    @property
    def kind(self) -> str:
        return self.name.partition(".")[2].partition(".")[0]

    def is_in(self, places: set[str]) -> bool:
        return any(f"{self.name}.".startswith(f"{place}.") for place in places)


def parse(name: str, source: str) -> Module:
    return Module(name, ast.parse(source))


def python_files() -> list[Path]:
    return [
        path
        for path in sorted(ROOT.rglob("*.py"))
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
        and path.relative_to(ROOT).parts[0] not in ("build", "venv")
    ]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): path for path in python_files()}
MODULES = [
    parse(name, path.read_text())
    for name, path in SOURCES.items()
    if name.partition(".")[0] not in OUTSIDE
]
NAMES = {module.name for module in MODULES}


def imports(module: Module, names: frozenset[str] | set[str] = NAMES) -> Iterator[str]:
    """What a module imports: modules of ours by their full name, others as they are written."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.name} imports relatively; write the whole name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in names else str(node.module)


def floor_violations(module: Module, names: frozenset[str] | set[str] = NAMES) -> list[str]:
    found = []
    for target in imports(module, names):
        top, _, rest = target.partition(".")
        if top not in FLOORS:
            if top in OUTSIDE:
                found.append(f"{module.name} imports {target}, which stands outside the house")
        elif top != module.top:
            if FLOORS[top] >= FLOORS[module.top]:
                found.append(
                    f"{module.name} (floor {FLOORS[module.top]}) imports {target}"
                    f" (floor {FLOORS[top]})"
                )
            elif any(module.top == who and top in whom for who, whom in MUST_NOT_KNOW):
                found.append(f"{module.name} must not know {target}")
        elif top in MANY_OF_A_KIND and module.name not in KNOWS_ITS_EQUALS:
            kind = rest.partition(".")[0]  # a gateway may be a package, free inside
            if kind not in {"", module.kind} | MANY_OF_A_KIND[top]:
                found.append(f"{module.name} imports its equal {target}")
    return found


def domain_violations(module: Module) -> list[str]:
    allowed = sys.stdlib_module_names | DOMAIN_LIBRARIES | {"domain"}
    return [
        f"{module.name} imports {target}"
        for target in imports(module)
        if target.partition(".")[0] not in allowed
    ]


def sql_violations(module: Module) -> list[str]:
    """SQL outside the modules that write it: words of SQLAlchemy, or anything that executes."""
    found = []
    aliases = set()
    forbidden = TABLE_WORDS if module.top in TABLE_WRITERS else None

    def check(word: str) -> None:
        if (word not in SQL_TYPES) if forbidden is None else (word in forbidden):
            found.append(f"{module.name} takes {word} from SQLAlchemy")

    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "sqlalchemy":
                    aliases.add(alias.asname or "sqlalchemy")
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("sqlalchemy"):
            if node.module != "sqlalchemy.exc":
                for alias in node.names:
                    check(alias.name)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in aliases
            and node.attr != "exc"
        ):
            check(node.attr)
    for call in calls(module):
        if isinstance(call.func, ast.Attribute) and call.func.attr in EXECUTES:
            found.append(f"{module.name}:{call.lineno} calls {call.func.attr}()")
    return found


def spine_violations(module: Module) -> list[str]:
    """Names taken out of `crud`: one reads `crud.create_order(…)` everywhere."""
    return [
        f"{module.name}:{node.lineno} takes names out of {node.module}"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom)
        and str(node.module).partition(".")[0] == "crud"
        and module.top != "crud"
    ]


def commit_violations(module: Module) -> list[str]:
    return [
        f"{module.name}:{call.lineno} calls {called(call)}()"
        for call in calls(module)
        if called(call) in {"commit", "rollback", "begin", "begin_nested", "phase"}
    ]


def calls(module: Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(module.tree) if isinstance(node, ast.Call))


def called(call: ast.Call) -> str:
    """The last word of what is called: `phase` of `phase(…)`, `commit` of `session.commit(…)`."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def log_violations(module: Module) -> list[str]:
    """Log events are dotted names with fields: constant text, so nothing is formatted into it."""
    found = []
    for call in calls(module):
        func = call.func
        if not (isinstance(func, ast.Attribute) and func.attr in LOG_METHODS):
            continue
        if not (isinstance(func.value, ast.Name) and func.value.id in ("log", "logger", "logging")):
            continue
        event = call.args[0] if call.args else None
        text = event.value if isinstance(event, ast.Constant) else None
        if not (isinstance(text, str) and EVENT_NAME.fullmatch(text)):
            found.append(f"{module.name}:{call.lineno} logs something else than a dotted name")
        values = [*call.args[1:], *(keyword.value for keyword in call.keywords)]
        if any(isinstance(node, ast.JoinedStr) for value in values for node in ast.walk(value)):
            found.append(f"{module.name}:{call.lineno} logs an f-string; give the parts as fields")
    return found


def print_violations(module: Module) -> list[str]:
    return [
        f"{module.name}:{call.lineno} prints"
        for call in calls(module)
        if isinstance(call.func, ast.Name) and call.func.id == "print" and module.top != "cli"
    ]


def sharing_violations(module: Module) -> list[str]:
    """A test module or a conftest that is imported: what others need stands in tests/support."""
    return [
        f"{module.name} imports {target}"
        for target in imports(module, set(SOURCES))
        if target.startswith("tests.")
        and any(part.startswith("test_") or part == "conftest" for part in target.split("."))
    ]


def cycles(graph: Mapping[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_module_has_its_floor() -> None:
    tops = {name.partition(".")[0] for name in SOURCES}
    assert tops == FLOORS.keys() | (OUTSIDE & tops)


def test_a_module_imports_only_lower_floors() -> None:
    assert [line for module in MODULES for line in floor_violations(module)] == []


def test_no_import_leads_back_to_where_it_came_from() -> None:
    graph = {
        module.name: {target for target in imports(module) if target in NAMES} - {module.name}
        for module in MODULES
    }
    assert cycles(graph) == []


def test_only_what_tries_the_whole_service_imports_main() -> None:
    importers = {module.top for module in MODULES if "main" in imports(module)}
    assert importers <= {"conformance", "proof"}


def test_the_domain_needs_the_standard_library_and_the_currencies_only() -> None:
    domain = [module for module in MODULES if module.top == "domain"]
    assert domain
    assert [line for module in domain for line in domain_violations(module)] == []


def test_statements_are_written_in_crud_only() -> None:
    others = [module for module in MODULES if not module.is_in(SQL_WRITERS)]
    assert [line for module in others for line in sql_violations(module)] == []


def test_crud_is_imported_as_a_module() -> None:
    assert [line for module in MODULES for line in spine_violations(module)] == []


def test_crud_never_commits() -> None:
    crud = [module for module in MODULES if module.top == "crud"]
    assert crud
    assert [line for module in crud for line in commit_violations(module)] == []


def test_log_events_are_dotted_names_with_fields() -> None:
    assert [line for module in MODULES for line in log_violations(module)] == []


def test_only_commands_print() -> None:
    assert [line for module in MODULES for line in print_violations(module)] == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [name for name in SOURCES if not POINTLESS_NAMES.isdisjoint(name.split("."))] == []


def test_no_name_at_the_root_hides_another_library() -> None:
    installed = sys.stdlib_module_names | packages_distributions().keys()
    ours = {name.partition(".")[0] for name in SOURCES} - {"tests"}  # nobody imports theirs
    assert ours & installed == set()


def test_no_file_is_too_long_to_be_read_in_one_go() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in SOURCES.items()}
    crud = lengths.pop("crud")  # a flat list of small functions
    assert crud <= MAX_LINES_OF_CRUD
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


TESTS = [
    parse(name, path.read_text())
    for name, path in SOURCES.items()
    if name.partition(".")[0] == "tests"
]


def test_tests_share_what_stands_in_support_only() -> None:
    assert [line for module in TESTS for line in sharing_violations(module)] == []


def test_the_longest_tests_that_begin_first_are_there() -> None:
    (conftest,) = (module for module in TESTS if module.name == "tests.conftest")
    names = next(
        ast.literal_eval(node.value)
        for node in conftest.tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LONGEST"
    )
    assert [name for name in names if not (ROOT / "tests" / name).exists()] == []


def test_the_name_of_a_test_fits_a_line() -> None:
    names = [
        f"{module.name}: {node.name}"
        for module in TESTS
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and len(node.name) > MAX_TEST_NAME
    ]
    assert names == []


@pytest.mark.parametrize(
    "source",
    [
        "from tests.web.test_errors import ADDRESSES",
        "from tests.web import test_errors",
        "import tests.web.test_errors",
        "from tests.conftest import user",
        "from tests.services.conftest import stripe",
    ],
)
def test_the_sharing_test_sees(source: str) -> None:
    assert len(sharing_violations(parse("tests.web.test_bodies", source))) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("crud", "from services import orders"),
        ("crud", "import gateways.base"),
        ("models", "import schemas"),
        ("config", "import errors"),
        ("domain.money", "import config"),
        ("database", "def f():\n    from models import Order"),
        ("services.orders", "import auth"),
        ("routers.orders", "from routers import payments"),
        ("routers.orders", "from routers.payments import router"),
        ("routers.orders", "import middleware.body_limit"),
        ("gateways.base", "from models import Order"),
        ("gateways.sandbox", "import schemas"),
        ("fields", "import schemas"),
        ("auth", "import database"),
        ("workers.loop", "import main"),
        ("services.orders", "from tests.conftest import card"),
    ],
)
def test_the_floor_test_sees(name: str, source: str) -> None:
    names = NAMES | {"services.payments", "routers.payments"}
    assert len(floor_violations(parse(name, source), names)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "session.execute(statement)",
        "from sqlalchemy import select",
        "from sqlalchemy import text as sql",
        "from sqlalchemy.dialects.postgresql import insert",
        "import sqlalchemy as sa\nsa.select(1)",
        "import sqlalchemy\nsqlalchemy.func.now()",
        "session.scalars(query).all()",
    ],
)
def test_the_statement_test_sees(source: str) -> None:
    assert sql_violations(parse("services.orders", source))
    if "text" not in source and "func" not in source:
        assert sql_violations(parse("models", source))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("routers.orders", "from sqlalchemy import Row\nfrom sqlalchemy.orm import Session"),
        ("routers.orders", "from sqlalchemy.exc import DBAPIError"),
        ("gateways.registry", "import sqlalchemy\nBuild = list[sqlalchemy.Engine]"),
        ("models", "from sqlalchemy import Index, func, text"),
    ],
)
def test_the_statement_test_lets_types_pass(name: str, source: str) -> None:
    assert sql_violations(parse(name, source)) == []


@pytest.mark.parametrize(
    "source",
    [
        'log.info(f"payment.{kind}")',
        'log.info("payment." + kind)',
        'log.info("payment %s", kind)',
        'log.warning("Something went wrong")',
        'logger.error("payment.failed", why=f"{a} and {b}")',
        'logging.info("payment.failed", f"{a}")',
        "log.error(message)",
    ],
)
def test_the_log_test_sees(source: str) -> None:
    assert log_violations(parse("services.orders", source))


def test_the_other_tests_see() -> None:
    assert spine_violations(parse("services.orders", "from crud.orders import get_order"))
    assert commit_violations(parse("crud", "session.commit()"))
    assert commit_violations(parse("crud", "with phase(session):\n    pass"))
    assert print_violations(parse("services.orders", "print(1)"))
    assert domain_violations(parse("domain.money", "import pydantic"))
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}})
