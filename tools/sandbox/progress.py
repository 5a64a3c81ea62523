"""What `up` is doing: a live table on a terminal, plain lines elsewhere, and a table of times at
the end.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sandbox.shell import CommandError, tail


@dataclass
class Step:
    name: str
    log: Path | None
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    note: str = ""
    state: str = "running"

    @property
    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.started


class StepError(RuntimeError):
    """A step failed; carries the words that a person needs."""

    def __init__(self, step: Step, cause: BaseException) -> None:
        super().__init__(f"{step.name}: {cause}")
        self.step = step
        self.cause = cause

    @property
    def log(self) -> Path | None:
        return getattr(self.cause, "log", None) or self.step.log

    @property
    def excerpt(self) -> str:
        if isinstance(self.cause, CommandError) and self.cause.output:
            return "\n".join(self.cause.output.splitlines()[-15:])
        return tail(self.log) if self.log else ""


_MARK = {"running": "[yellow]…[/]", "done": "[green]✓[/]", "failed": "[red]✗[/]", "cached": "[dim]✓[/]"}


class Progress:
    """Steps may run in parallel threads."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.steps: list[Step] = []
        self.started = time.monotonic()
        self._lock = threading.Lock()
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self._render, console=self.console, refresh_per_second=4, transient=True
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    @contextlib.contextmanager
    def step(self, name: str, log: Path | None = None, note: str = "") -> Iterator[Step]:
        step = Step(name, log, note=note)
        with self._lock:
            self.steps.append(step)
        self._say(f"{name} ... {note}{f' (log: {log})' if log else ''}")
        try:
            yield step
        except BaseException as error:
            step.ended, step.state = time.monotonic(), "failed"
            self._say(f"{name}: FAILED after {step.seconds:.1f} s")
            if isinstance(error, StepError) or not isinstance(error, Exception):
                raise
            raise StepError(step, error) from error
        step.ended = time.monotonic()
        step.state = "cached" if step.note == "cached" else "done"
        self._say(f"{name}: {step.note or 'done'} in {step.seconds:.1f} s")

    def say(self, line: str) -> None:
        self.console.print(escape(line))

    def _say(self, line: str) -> None:
        if not self.console.is_terminal:
            self.console.print(
                f"[{time.monotonic() - self.started:6.1f}] {line}", markup=False, soft_wrap=True
            )

    def _render(self) -> Table:
        return self.table(logs=True)

    def table(self, *, logs: bool = False) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("")
        table.add_column("step")
        table.add_column("seconds", justify="right")
        table.add_column("")
        if logs:
            table.add_column("log", style="dim", overflow="fold")
        with self._lock:
            steps = list(self.steps)
        for s in steps:
            row: list[str | Text] = [
                _MARK[s.state],
                escape(s.name),
                f"{s.seconds:.1f}",
                Text(s.note, style="dim"),
            ]
            table.add_row(*row, *([str(s.log) if s.log and s.state == "running" else ""] if logs else []))
        return table
