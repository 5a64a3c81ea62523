"""What is printed at the end, and the file for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from chaos.runner import Trial


def table(trials: Sequence[Trial]) -> Table:
    """A row for each fault."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column("fault")
    for title in ("times tried", "outcome", "sent", "failed", "counted apart", "seconds", "operator ended"):
        made.add_column(title, justify="left" if title == "outcome" else "right")
    for trial in trials:
        outcome = "right" if not trial.wrong else f"WRONG: {trial.wrong[0]}"
        ends = f"{trial.kills} killed, {trial.own_ends} by itself" if trial.kills or trial.own_ends else "-"
        made.add_row(
            trial.fault,
            str(trial.tried),
            outcome,
            str(trial.sent),
            str(len(trial.failures)),
            str(len(trial.apart) + len(trial.excused)),
            f"{trial.ended - trial.began:.0f}",
            ends,
        )
    return made


def apart(trials: Sequence[Trial]) -> list[str]:
    """What was counted apart, by name."""
    remarks = []
    for trial in trials:
        errors = Counter(f"{f.protocol} {f.error}" for f in trial.apart)
        remarks += [
            f"counted apart in {trial.fault}: {count} requests with {error}"
            for error, count in errors.most_common()
        ]
        remarks += [f"in {trial.fault}: {remark}" for remark in trial.remarks]
    return remarks


def is_right(trials: Sequence[Trial]) -> bool:
    return not any(trial.wrong or trial.failures for trial in trials)


def summary(trials: Sequence[Trial]) -> str:
    """The last line."""
    wrong, failed, sent = (
        sum(bool(t.wrong) for t in trials),
        sum(len(t.failures) for t in trials),
        sum(t.sent for t in trials),
    )
    return f"chaos: {len(trials)} faults, {wrong} wrong outcomes, {failed} failed requests of {sent}"


def as_json(trials: Sequence[Trial], seconds: float, versions: dict[str, str]) -> dict[str, Any]:
    return {
        "summary": summary(trials),
        "seconds": round(seconds, 1),
        "versions": versions,
        "trials": [asdict(trial) for trial in trials],
    }
