"""The pages in docs/ say what the code does: what can be compared is compared here."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs import generate
from tests.support.paths import ROOT

OUTSIDE = {"tests", "migrations", "benchmarks", "deploy", "docs", "proof"}
LOG_METHODS = {"debug", "info", "warning", "error", "critical", "exception"}
METRICS = {"Gauge": "", "Counter": "_total", "Histogram": "", "Summary": ""}


def product_files() -> list[Path]:
    return [
        path
        for path in sorted(ROOT.rglob("*.py"))
        if not path.relative_to(ROOT).parts[0].startswith(".")
        and path.relative_to(ROOT).parts[0] not in OUTSIDE
    ]


TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in product_files()}


def section(page: str, heading: str) -> str:
    """What stands under a heading of a page in docs/."""
    parts = re.split(r"^## (.+)$", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[heading]


def rows(text: str) -> list[list[str]]:
    """The cells of a table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def defined(tree: ast.AST) -> Iterator[str]:
    """The names that a module defines: functions, classes, methods, fields and constants."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def words(tree: ast.AST) -> Iterator[str]:
    """The strings of a module that are one word: statuses, kinds and codes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


# Made from the code -----------------------------------------------------------------------------


@pytest.mark.parametrize("page", generate.PARTS)
def test_what_is_made_from_the_code_is_up_to_date(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    assert generate.render(page, text) == text, "run: python -m docs.generate"


def test_a_page_without_its_place_is_told() -> None:
    with pytest.raises(AssertionError, match="has no place for stored_errors"):
        generate.render("idempotency.md", "")


# The glossary -----------------------------------------------------------------------------------

ENTRY = re.compile(r"^- \*\*([^*]+)\*\*(?: \((`.+?`)\))?: (.+)$")


def entries() -> list[re.Match[str]]:
    lines = (ROOT / "docs/glossary.md").read_text().splitlines()
    found = [ENTRY.match(line) for line in lines if line.startswith("-")]
    assert all(found), [line for line in lines if line.startswith("-") and not ENTRY.match(line)]
    return [match for match in found if match is not None]


def test_the_glossary_is_one_line_a_word_in_alphabetical_order() -> None:
    names = [entry[1] for entry in entries()]
    assert names == sorted(set(names), key=str.casefold)
    assert len(names) > 40


def test_a_code_name_of_the_glossary_exists() -> None:
    known = {name for tree in TREES.values() for name in (*defined(tree), *words(tree))}
    named = [
        (entry[1], name) for entry in entries() for name in re.findall(r"`([^`]+)`", entry[2] or "")
    ]
    assert len(named) > 20
    assert [pair for pair in named if pair[1].rpartition(".")[2] not in known] == []


# Where each rule stands -------------------------------------------------------------------------

PLACE = re.compile(r"`([\w./]+\.py)`: ((?:`[\w.]+`(?:, )?)+)")


def test_every_place_of_a_rule_exists() -> None:
    table = rows(section("architecture.md", "Where each rule stands"))
    assert len(table) >= 10
    for question, where in table:
        places = PLACE.findall(where)
        assert places, question
        for path, names in places:
            known = set(defined(TREES[path]))
            for name in re.findall(r"`([\w.]+)`", names):
                assert set(name.split(".")) <= known, (question, path, name)


# What operators read ----------------------------------------------------------------------------


def log_events() -> set[str]:
    found = {"http.request"}  # `logs.access` writes that line by itself
    for tree in TREES.values():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LOG_METHODS
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "log"
            ):
                assert isinstance(node.args[0], ast.Constant)
                found.add(str(node.args[0].value))
    return found


def metric_names() -> set[str]:
    found = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in METRICS
                and isinstance(node.args[0], ast.Constant)
            ):
                found.add(str(node.args[0].value) + METRICS[node.func.id])
    return found


def listed(heading: str) -> list[str]:
    """The names in the first column of a table."""
    return re.findall(
        r"`([^`]+)`", " ".join(row[0] for row in rows(section("runbook.md", heading)))
    )


def test_the_runbook_lists_every_log_event_once() -> None:
    events = listed("Log events")
    assert sorted(events) == sorted(log_events())


def test_the_runbook_lists_every_metric_once() -> None:
    assert sorted(listed("Metrics")) == sorted(metric_names())


# Short enough to be read ------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "most"), [("README.md", 125), ("docs/architecture.md", 125)])
def test_the_first_pages_stay_short(page: str, most: int) -> None:
    assert len((ROOT / page).read_text().splitlines()) <= most


def test_every_link_between_pages_leads_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
            path, _, anchor = target.partition("#")
            to = (page.parent / path).resolve() if path else page
            assert to.exists(), (page.name, target)
            if anchor and to.suffix == ".md":
                headings = re.findall(r"^#+ (.+)$", to.read_text(), re.MULTILINE)
                slugs = {
                    re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
                    for heading in headings
                }
                assert anchor in slugs, (page.name, target)
