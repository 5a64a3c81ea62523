from __future__ import annotations

import io

from rich.console import Console

from demo.chapters import CHAPTERS
from demo.view import View

CLIENT = {"sent": 7, "failed": 0, "in_flight": 1, "versions": {"1": {"answers": 6, "right": 3}}}


def test_off_a_terminal_each_change_is_one_line() -> None:
    out = io.StringIO()
    view = View(CHAPTERS, Console(file=out, width=200))
    view.console = Console(file=out, width=200, highlight=False)
    with view:
        view.begin(CHAPTERS[0])
        for progress in ("Prepare", "Prepare", "Provision"):
            view.at(CHAPTERS[0], progress, CLIENT)
    lines = [line.split("] ", 1)[1] for line in out.getvalue().splitlines()]
    assert lines[1:] == ["v1: Prepare  [sent 7, failed 0]", "v1: Provision  [sent 7, failed 0]"]


def test_on_a_terminal_there_is_a_table_without_marks_of_the_markup() -> None:
    out = io.StringIO()
    view = View(CHAPTERS, Console(file=out, force_terminal=True, width=120, color_system=None))
    with view:
        view.begin(CHAPTERS[0])
        view.at(CHAPTERS[0], "Canary 5 % [brackets]", CLIENT)
        view.say("a line [with brackets]")
    assert (
        "50.0 % right" in out.getvalue()
        and "[dim]" not in out.getvalue()
        and "a line [with brackets]" in out.getvalue()
    )
