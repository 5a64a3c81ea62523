"""PURE: a report for the terminal (rich), and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from modelrollout.cli.report.model import Judged, Report, SearchPoint, SearchReport, size
from modelrollout.cli.view import duration, styled

WIDTH = 33  # of an interval's picture, in characters; odd, so that 0 has a column
_HEADERS = (
    "METRIC",
    "CANDIDATE",
    "REFERENCE",
    "SAMPLES",
    "HARM",
    "95 % INTERVAL",
    "ALLOWED",
    "VERDICT",
    "REASON",
)


def text(report: Report) -> RenderableType:
    """The whole report."""
    parts: list[RenderableType] = [
        Text.assemble(
            (report.revision, "bold"),
            f"  #{report.number} of {report.deployment}, namespace {report.namespace}  ",
            styled(report.outcome),
        ),
        Text(_why(report)),
    ]
    facts = Table.grid(padding=(0, 2, 0, 0))
    for name, value in report.facts:
        facts.add_row(Text(name, "dim"), Text(value))
    parts += _section("Version", facts)
    if report.search:
        parts += _section(
            "Search: what auto found", Group(Text(report.search.remark, "dim"), _search_table(report.search))
        )
    if report.gate:
        parts += _section("Gate: against the original model, on held-out data", _judged(report.gate))
    if report.golden:
        parts += _section("Golden data: through the served model, against stable", _judged([report.golden]))
    for step in report.steps:
        took = f", {duration(step.seconds)}" if step.seconds is not None else ""
        title = Text.assemble(
            f"Canary step {step.number}, {step.weight} % of the requests{took}: ",
            styled(step.verdict),
            f" {step.reason}",
        )
        parts += _section(title, _judged(step.metrics) if step.metrics else Text("no metrics kept", "dim"))
    if report.stages:
        times = Table.grid(padding=(0, 2, 0, 0))
        longest = max(seconds for _, seconds in report.stages) or 1.0
        for stage, seconds in report.stages:
            times.add_row(stage, duration(seconds), Text("█" * max(1, round(40 * seconds / longest)), "cyan"))
        parts += _section("Time by stage", times)
    return Group(*parts, *(Text(f"\n{note}", "dim") for note in report.notes))


def _why(report: Report) -> str:
    words = [word for word in (report.reason, report.message) if word and word != "-"]
    return ": ".join(words) or "no reason to tell"


def _section(title: str | Text, body: RenderableType) -> list[RenderableType]:
    head = Text(title, "bold") if isinstance(title, str) else title
    return [Text(""), head, Padding(body, (0, 0, 0, 2))]


def _search_table(search: SearchReport) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for header in search_headers(search):
        # a name in two halves is none to copy
        table.add_column(header.upper(), overflow="fold", no_wrap=header == "model")
    for point in search.points:
        table.add_row(*search_row(point), style="bold" if point.chosen else "" if point.within else "dim")
    return table


def search_headers(search: SearchReport) -> tuple[str, ...]:
    """Of the table of a search, in all forms."""
    return ("model", "size", "smaller", "latency (CPU)", "faster", search.metric, "loss, up to", "budget", "")


def search_row(point: SearchPoint) -> tuple[str, ...]:
    """One model of a search under those headers."""
    return (
        point.name,
        size(point.size).split(" (")[0],
        f"{point.smaller:.2f} x",
        f"{point.milliseconds:.3g} ms",
        f"{point.faster:.2f} x",
        f"{point.value:.4f}",
        f"{point.loss:+.4f}, {point.highest_loss:+.4f}",
        "kept" if point.within else "not kept",
        "taken" if point.chosen else "",
    )


def _judged(rows: Sequence[Judged]) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for header in ("METRIC", "CANDIDATE", "REFERENCE", "HARM", "better 0 worse".center(WIDTH), "VERDICT"):
        table.add_column(header, overflow="fold")
    why = Table.grid(padding=(0, 2, 0, 0))
    for row in rows:
        samples = f" of {row.samples}" if row.samples and " of " not in row.candidate else ""
        table.add_row(
            row.name, row.candidate + samples, row.reference, _harm(row), Text(bar(row)), styled(row.verdict)
        )
        why.add_row(
            Text(row.name, "dim"), Text(f"{row.reason}: {row.message}" if row.message else row.reason, "dim")
        )
    return Group(table, why)


def _harm(row: Judged) -> str:
    if row.interval is None:
        return "-"
    allowed = f", allowed {row.margin:.4g}" if row.margin is not None else ""
    return f"{row.interval[0]:+.4f} to {row.interval[1]:+.4f}{allowed}"


def scale_of(row: Judged) -> float:
    """What one half of a picture stands for: twice what is allowed, or what the interval needs
    where nothing is named.
    """
    assert row.interval is not None
    return 2 * row.margin if row.margin else max(map(abs, row.interval)) or 1.0


def bar(row: Judged, width: int = WIDTH) -> str:
    """The interval against 0 (``|``) and what is allowed (``!``), worse to the right; ``<`` and
    ``>`` where it goes on.
    """
    if row.interval is None:
        return ""
    scale, middle = scale_of(row), width // 2

    def column(value: float) -> int:
        return max(0, min(width - 1, middle + round(middle * max(-2.0, min(2.0, value / scale)))))

    cells = [" "] * width
    low, high = row.interval
    for at in range(column(low), column(high) + 1):
        cells[at] = "─"
    cells[middle] = "┼" if cells[middle] == "─" else "|"
    if row.margin:
        cells[column(row.margin)] = "╫" if cells[column(row.margin)] == "─" else "!"
    if row.harm is not None:
        cells[column(row.harm)] = "●"
    if low < -scale:
        cells[0] = "<"
    if high > scale:
        cells[-1] = ">"
    return "".join(cells)


# --- Markdown


def markdown(report: Report) -> str:
    """The same as GitHub's Markdown."""
    lines = [f"# {_cell(report.revision)} (#{report.number} of {_cell(report.deployment)})", ""]
    lines += [f"**{_cell(report.outcome)}**: {_cell(_why(report))}", "", *_table(("", ""), report.facts)]
    if report.search:
        search = report.search
        lines += [
            "",
            "## Search",
            _cell(search.remark),
            "",
            *_table(search_headers(search), [search_row(point) for point in search.points]),
        ]
    if report.gate:
        lines += ["", "## Gate", "Against the original model, on held-out data.", "", *_rows(report.gate)]
    if report.golden:
        lines += [
            "",
            "## Golden data",
            "Through the served model at 0 % of the traffic, against stable.",
            "",
            *_rows([report.golden]),
        ]
    if report.steps:
        lines += ["", "## Canary"]
    for step in report.steps:
        took = f", {duration(step.seconds)}" if step.seconds is not None else ""
        lines += [
            "",
            f"### Step {step.number}: {step.weight} % of the requests{took}",
            f"**{_cell(step.verdict)}**: {_cell(step.reason)}",
        ]
        lines += ["", *_rows(step.metrics)] if step.metrics else []
    if report.stages:
        lines += [
            "",
            "## Time by stage",
            "",
            *_table(("stage", "time"), [(stage, duration(seconds)) for stage, seconds in report.stages]),
        ]
    lines += [line for note in report.notes for line in ("", f"*{_cell(note)}*")]
    return "\n".join(lines) + "\n"


def _rows(rows: Sequence[Judged]) -> list[str]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:+.4f}"

    return _table(
        [header.lower() for header in _HEADERS],
        [
            (
                row.name,
                row.candidate,
                row.reference,
                row.samples or "-",
                number(row.harm),
                f"{number(row.interval[0])} to {number(row.interval[1])}" if row.interval else "-",
                "-" if row.margin is None else f"{row.margin:.4g}",
                row.verdict,
                f"{row.reason}: {row.message}" if row.message else row.reason,
            )
            for row in rows
        ],
    )


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [headers, ["---"] * len(headers), *([_cell(value) for value in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(value: str) -> str:
    """Plain text in a table's cell: nothing that a message carries becomes a link, a tag or another
    cell.
    """
    for character in "\\`*_[]<>|":
        value = value.replace(
            character, "\\" + character if character not in "<>" else {"<": "&lt;", ">": "&gt;"}[character]
        )
    return " ".join(value.split())
