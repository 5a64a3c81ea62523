"""What is seen while the story goes on: a live table on a terminal, a line for each change
elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from demo.chapters import Chapter, Ending

_MARKS = {"waiting": "[dim]·[/]", "running": "[yellow]…[/]", "done": "[green]✓[/]", "failed": "[red]✗[/]"}


class View:
    """Chapters with their state, the present stage, and what the client counts."""

    def __init__(self, chapters: Sequence[Chapter], console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        if not self.console.is_terminal:
            self.console = Console(highlight=False, width=200)
        self._chapters = chapters
        self._states = {c.name: "waiting" for c in chapters}
        self._notes: dict[str, str] = {}
        self._seconds: dict[str, float] = {}
        self._began: dict[str, float] = {}
        self._client: Mapping[str, Any] | None = None
        self._now = ""
        self._started = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> View:
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self._render, console=self.console, refresh_per_second=2, transient=True
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def say(self, line: str) -> None:
        """A line that stays."""
        # A Text, because markup=False would reach the live table as well.
        self.console.print(
            Text(f"[{time.monotonic() - self._started:6.1f}] {line}"), soft_wrap=not self.console.is_terminal
        )

    def begin(self, chapter: Chapter) -> None:
        self._states[chapter.name] = "running"
        self._began[chapter.name] = time.monotonic()
        self.say(
            f"{chapter.name}: {'back to ' + chapter.back_to if chapter.back_to else 'spec.model.uri is set'};"
            f" expected: {chapter.outcome}"
        )

    def at(self, chapter: Chapter, progress: str, client: Mapping[str, Any] | None) -> None:
        """Where the present chapter is; off a terminal, only changes are printed."""
        changed = progress != self._notes.get(chapter.name)
        self._notes[chapter.name] = progress
        self._client = client or self._client
        if changed and not self._live:
            self.say(f"{chapter.name}: {progress}{self._counts()}")

    def end(self, chapter: Chapter, ending: Ending, wrong: Sequence[str]) -> None:
        self._states[chapter.name] = "failed" if wrong else "done"
        self._seconds[chapter.name] = time.monotonic() - self._began[chapter.name]
        reason = "" if ending.reason == "-" else f" ({ending.reason})"
        self._notes[chapter.name] = f"{ending.outcome}{reason}"
        self.say(
            f"{chapter.name}: {ending.outcome}{reason} after {self._seconds[chapter.name]:.0f} s."
            f" {ending.message}"
        )

    def _counts(self) -> str:
        return f"  [sent {self._client['sent']}, failed {self._client['failed']}]" if self._client else ""

    def _render(self) -> Group:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("", "version", "seconds", "", "expected"):
            table.add_column(name)
        for c in self._chapters:
            seconds = self._seconds.get(c.name) or (
                time.monotonic() - self._began[c.name] if c.name in self._began else None
            )
            expected = f"{c.outcome} {c.reason or ''}"
            note = escape(self._notes.get(c.name, ""))
            table.add_row(
                _MARKS[self._states[c.name]],
                c.name,
                "" if seconds is None else f"{seconds:.0f}",
                note,
                f"[dim]{expected}[/]",
            )
        return Group(table, self._traffic())

    def _traffic(self) -> Text:
        client = self._client
        if not client:
            return Text("no client yet", "dim")
        shares = ", ".join(
            f"version {v}: {c['answers']} ({100 * c['right'] / c['answers']:.1f} % right)"
            for v, c in client["versions"].items()
        )
        style = "red" if client["failed"] else "dim"
        return Text(
            f"client: sent {client['sent']}, failed {client['failed']}, in flight {client['in_flight']};"
            f" {shares}",
            style,
        )
