"""Shows what was measured: tables for a page of the docs, and its picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final
from xml.sax.saxutils import escape

from benchmarks.operations import OPERATIONS
from benchmarks.results import PERFORMANCE, Figure, Results, read
from config import ROOT

PICTURE: Final = ROOT / "docs/performance.svg"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; the first column is text, the others are numbers."""
    lines = [list(head), ["---", *["--:"] * (len(head) - 1)], *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(value: float | None, digits: int = 0, unit: str = "") -> str:
    return "–" if value is None else f"{value:,.{digits}f}{unit}"


def machine(told: dict[str, Any]) -> str:
    return (
        f"{told['cpu']}, {told['cores']} cores, {told['memory_gib']:g} GiB, {told['system']},"
        f" Python {told['python']}, PostgreSQL {told['postgresql']}, {told['date']}"
    )


def measured_on(results: Results) -> str:
    return (
        f"Measured on {machine(results.machine)}:\n"
        f"medians of {results.rounds} rounds of {results.seconds:g} s."
    )


def ratios(results: Results) -> str:
    """The service as a ratio to the naive one, and to what PostgreSQL could do."""
    places = results.by_place
    rows = []
    for figure in results.figures:
        if figure.server != "service":
            continue
        where = (figure.operation, figure.connections, figure.workers)
        naive = places.get(("naive", *where))
        if naive is not None and naive.errors:
            naive = None
        limit = places.get(("limit", figure.operation, figure.connections, 1))
        rows.append(
            [
                OPERATIONS[figure.operation].label,
                str(figure.connections),
                str(figure.workers),
                shown(figure.cpu_to_naive, 2),
                shown(_rate(figure, naive), 1, " ×"),
                shown(_rate(figure, limit, 100), 0, " %"),
            ]
        )
    head = (
        "operation",
        "connections",
        "workers",
        "CPU to naive",
        "requests to naive",
        "of the limit",
    )
    return table(head, _sorted(rows))


def _rate(figure: Figure, other: Figure | None, factor: float = 1) -> float | None:
    return None if other is None else figure.per_second / other.per_second * factor


def absolute(results: Results) -> str:
    rows = [
        [
            OPERATIONS[figure.operation].label,
            str(figure.connections),
            str(figure.workers),
            figure.server,
            shown(figure.per_second),
            shown(figure.p50_ms, 1),
            shown(figure.p99_ms, 1),
            shown(figure.cpu_us),
            shown(figure.postgres_cpu_us),
            str(figure.errors),
        ]
        for figure in results.figures
    ]
    head = (
        *("operation", "connections", "workers", "server", "a second", "p50 ms", "p99 ms"),
        *("CPU µs", "PostgreSQL CPU µs", "errors"),
    )
    return table(head, _sorted(rows))


def _sorted(rows: list[list[str]]) -> list[list[str]]:
    order = {operation.label: place for place, operation in enumerate(OPERATIONS.values())}
    return sorted(rows, key=lambda row: (order[row[0]], int(row[2]), int(row[1])))


def counts(results: Results) -> str:
    of_naive = results.counts.get("naive", {})
    rows = []
    for name, told in results.counts.get("service", {}).items():
        naive = of_naive.get(name)
        rows.append(
            [
                OPERATIONS[name].label,
                shown(told.statements, 1),
                shown(told.gateway_statements, 1),
                shown(told.round_trips, 1),
                shown(naive.round_trips if naive else None, 1),
                shown(told.wal_bytes),
                shown(naive.wal_bytes if naive else None),
            ]
        )
    head = (
        *("operation", "statements", "of the sandbox", "round trips", "naive's", "WAL bytes"),
        "naive's",
    )
    return table(head, rows)


def memory(results: Results) -> str:
    rows = []
    for name, processes in results.memory_mib.items():
        server, workers = name.split()
        sizes = ", ".join(f"{mib:.0f}" for mib in processes)
        rows.append([server, workers, shown(max(processes), 0), sizes])
    return table(("server", "workers", "largest process, MiB", "each process, MiB"), rows)


def text(results: Results) -> str:
    """All of it, for a terminal."""
    parts = (measured_on, ratios, counts, memory, absolute)
    return "".join(f"{part(results)}\n\n" for part in parts)


# The picture ------------------------------------------------------------------------------------

WIDTH, LEFT, BAR, GAP, TOP = 760, 150, 15, 16, 58
COLORS: Final = {"service": "#2f6fb2", "naive": "#b9bec6"}


def picture(results: Results) -> str:
    """Bars: the CPU of a request at the service, as a share of the naive service's."""
    chosen = _for_picture(results)
    height = TOP + len(chosen) * (2 * BAR + GAP) + 12
    space = WIDTH - LEFT - 60
    most = max([1.0, *(ratio for _, ratio in chosen)])
    title = "CPU of a request: this service (blue), a naive FastAPI service = 1 (gray)"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        ' font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="24" font-size="16" font-weight="600" fill="#1c2430">'
        f"{escape(title)}</text>",
        f'<text x="16" y="42" font-size="11" fill="#5b6573">'
        f"{escape('16 connections, 1 worker; ' + machine(results.machine))}</text>",
    ]
    y = TOP
    for label, ratio in chosen:
        lines.append(
            f'<text x="{LEFT - 10}" y="{y + BAR + 4}" text-anchor="end" fill="#1c2430">'
            f"{escape(label)}</text>"
        )
        for server, value in (("service", ratio), ("naive", 1.0)):
            width = max(1, round(space * value / most))
            lines.append(
                f'<rect x="{LEFT}" y="{y}" width="{width}" height="{BAR - 1}"'
                f' fill="{COLORS[server]}"/>'
            )
            shown_value = f"{value:.2f}" if server == "service" else "1"
            lines.append(
                f'<text x="{LEFT + width + 6}" y="{y + BAR - 3}" font-size="11" fill="#1c2430">'
                f"{shown_value}</text>"
            )
            y += BAR
        y += GAP
    return "\n".join([*lines, "</svg>", ""])


def _for_picture(results: Results) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, operation in OPERATIONS.items():
        figure = results.by_place.get(("service", name, 16, 1))
        ratio = figure.cpu_to_naive if figure else None
        if ratio is not None:
            found.append((operation.label, ratio))
    return found


# The page ---------------------------------------------------------------------------------------


def _kept(part: Callable[[Results], str]) -> Callable[[], str]:
    """This part of what is kept."""
    return lambda: part(read(Results, PERFORMANCE))


PARTS: Final = {
    part.__name__: _kept(part) for part in (measured_on, ratios, counts, memory, absolute)
}


def write_docs() -> None:
    """Write the picture, and the parts of the pages that are made from what was measured."""
    from docs import generate  # which reads this module

    PICTURE.write_text(picture(read(Results, PERFORMANCE)))
    generate.main()
