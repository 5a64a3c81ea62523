"""``get`` and ``top``: many ModelDeployments at a glance, what needs a person first."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from modelrollout.cli import screen
from modelrollout.cli.cluster import Cluster
from modelrollout.cli.command import Work, cluster_command, until_interrupted
from modelrollout.cli.errors import Unanswered
from modelrollout.kube.client import Row

REFRESH_SECONDS = 2.0
_ARRANGED = ("PauseStep", "in progress", None, "")  # verdicts of pauses that spec or a person arranged
# in the order of reading
NEEDS_A_PERSON, UNDER_WAY, ARRANGED, AT_REST = "needs a person", "under way", "paused", "at rest"
_ORDER = (NEEDS_A_PERSON, UNDER_WAY, ARRANGED, AT_REST)
_COLUMNS = ("Ready", "Phase", "Stable", "Canary", "Weight", "Step", "Verdict", "Age", "Message")

Form = Annotated[screen.Output, typer.Option("--output", "-o", help="text or json.")]
Everywhere = Annotated[
    bool, typer.Option("--all-namespaces", "-A", help="Of all namespaces, not only of the chosen one.")
]


def standing(row: Row) -> str:
    """Whether a person has to act, the operator does, or nothing is to do."""
    phase, ready, verdict = (row.cells.get(column) for column in ("Phase", "Ready", "Verdict"))
    if phase == "Failed" or (phase == "Paused" and verdict not in _ARRANGED):
        return NEEDS_A_PERSON
    if phase == "Stable":
        return AT_REST if ready == "True" else NEEDS_A_PERSON
    return ARRANGED if phase == "Paused" else UNDER_WAY


def ordered(rows: Sequence[Row]) -> list[Row]:
    """What needs a person first, then by namespace and name."""
    return sorted(rows, key=lambda r: (_ORDER.index(standing(r)), r.namespace, r.name))


def summary(rows: Sequence[Row]) -> str:
    """``3 models: 1 needs a person, 2 at rest``."""
    counts = Counter(map(standing, rows))
    parts = [f"{counts[kind]} {kind}" for kind in _ORDER if counts[kind]]
    return f"{len(rows)} models{': ' if parts else ''}{', '.join(parts)}"


def table(rows: Sequence[Row], *, everywhere: bool) -> Table:
    """One line for each."""
    made = screen.columns(*(("NAMESPACE",) if everywhere else ()), "NAME", *map(str.upper, _COLUMNS))
    style = {NEEDS_A_PERSON: "red", UNDER_WAY: "cyan", ARRANGED: "yellow", AT_REST: ""}
    for row in rows:
        cells = [_text(row.cells.get(column)) for column in _COLUMNS]
        name = Text(row.name, style[standing(row)])
        made.add_row(*((row.namespace,) if everywhere else ()), name, *cells)
    return made


def _text(value: object) -> str:
    text = "" if value is None or value == "<unknown>" else " ".join(str(value).split())
    return text if len(text) <= 80 else f"{text[:79]}…"


@cluster_command
def get(
    all_namespaces: Everywhere = False,
    output: Form = screen.Output.text,
) -> Work:
    """List ModelDeployments: what needs a person first, then what is under way."""

    async def show(cluster: Cluster) -> None:
        rows = ordered(await cluster.overview(everywhere=all_namespaces))
        if output is screen.Output.json:
            screen.print_json([_as_json(row) for row in rows])
            return
        if rows:
            screen.show(table(rows, everywhere=all_namespaces))
        screen.print_line(summary(rows))

    return show


@cluster_command
def top(
    all_namespaces: Everywhere = False,
) -> Work:
    """Keep showing what needs a person and what is under way, until Ctrl-C. Without a terminal:
    once.
    """

    async def show(cluster: Cluster) -> None:
        rows = await cluster.overview(everywhere=all_namespaces)
        if not screen.console().is_terminal:
            screen.show(_busy(rows, all_namespaces))
            return
        terminal, first = screen.console(), _busy(rows, all_namespaces)
        with until_interrupted(), Live(first, console=terminal, screen=True, auto_refresh=False) as live:
            while True:
                await asyncio.sleep(REFRESH_SECONDS)
                trouble: list[Text] = []
                try:
                    rows = await cluster.overview(everywhere=all_namespaces)
                except Unanswered as e:
                    trouble = [Text(f"{e}; showing the last known state\n", "red")]
                live.update(Group(*trouble, _busy(rows, all_namespaces)), refresh=True)

    return show


def _busy(rows: Sequence[Row], everywhere: bool) -> RenderableType:
    busy = [row for row in ordered(rows) if standing(row) != AT_REST]
    return Group(Text(f"{summary(rows)}\n", "bold"), *([table(busy, everywhere=everywhere)] if busy else []))


def _as_json(row: Row) -> dict[str, Any]:
    cells = {column.lower(): row.cells.get(column) for column in _COLUMNS}
    return {"namespace": row.namespace, "name": row.name, "standing": standing(row), **cells}
