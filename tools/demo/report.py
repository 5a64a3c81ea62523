"""The end of the story: a table, and report.json with the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from demo.chapters import Ending

_COLOURS = {"Stable": "green", "Promoted": "green", "RolledBack": "yellow", "Rejected": "yellow"}


def report(endings: Sequence[Ending], client: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in report.json."""
    return {
        "requests": client["sent"],
        "failed": client["failed"],
        "versions": [
            {
                "name": e.name,
                "outcome": e.outcome,
                "reason": e.reason,
                "stages": e.stages,
                "size_bytes": dict(zip(("before", "after"), e.size, strict=True)),
                "accuracy": dict(zip(("before", "after"), e.accuracy, strict=True)),
            }
            for e in endings
        ],
    }


def seconds_to_rollback(ending: Ending, client: Mapping[str, Any]) -> float | None:
    """From the version's first answer to a client until stable had all traffic again."""
    answers = client["versions"].get(str(ending.number))
    if ending.outcome != "RolledBack" or answers is None:
        return None
    return round(ending.finished.timestamp() - float(answers["first"]), 1)


def table(endings: Sequence[Ending], client: Mapping[str, Any]) -> Table:
    """The same for people."""
    out = Table(
        title="what became of the versions",
        header_style="dim",
        caption=_totals(client),
        caption_justify="left",
    )
    for name, justify in (
        ("version", "left"),
        ("verdict", "left"),
        ("evidence", "left"),
        ("KiB", "right"),
        ("accuracy", "right"),
        ("golden", "right"),
        ("live", "right"),
        ("p99 ms", "right"),
        ("answers", "right"),
        ("seconds by stage", "left"),
    ):
        out.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    seen: set[str] = set()
    for e in endings:
        number = str(e.number)
        # A version that came back has answered under the same number as before: counted once.
        answers = client["versions"].get(number) if number not in seen else None
        seen.add(number)
        out.add_row(
            e.name,
            f"[{_COLOURS.get(e.outcome, 'red')}]{e.outcome}[/]",
            e.message if e.reason == "-" else f"{e.reason}: {e.message}",
            _arrow(e.size, lambda b: f"{b / 1024:.0f}"),
            _arrow(e.accuracy, lambda a: f"{a:.4f}"),
            "-" if e.golden is None else f"{e.golden:.4f}",
            f"{answers['right'] / answers['answers']:.4f}" if answers else "-",
            (
                f"{answers['p99_ms']:.1f}"
                if answers
                else "-"
                if e.golden_p99_ms is None
                else f"({e.golden_p99_ms:.1f})"
            ),
            str(answers["answers"]) if answers else "-",
            ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in e.stages.items()),
        )
    return out


def _arrow(pair: tuple[Any, Any], show: Any) -> str:
    before, after = pair
    if before is None and after is None:
        return "-"
    return f"{'?' if before is None else show(before)} > {'?' if after is None else show(after)}"


def _totals(client: Mapping[str, Any]) -> str:
    lasted = client["now"] - client["started"]
    return (
        f"requests sent {client['sent']}, failed {client['failed']}, in {lasted:.0f} s; labels handed in"
        f" {client['feedback']['sent']}; the client took {100 * client['cpu_seconds'] / max(lasted, 1):.0f} %"
        " of a core. p99 in brackets: of golden data."
    )
