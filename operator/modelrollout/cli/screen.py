"""What the commands print on: a terminal, or plain text where there is none."""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.table import Table

from modelrollout.telemetry.redaction import mask_uris

PLAIN_WIDTH = 220  # where there is no terminal, lines are not folded to 80 columns


class Output(StrEnum):
    """Forms of output."""

    text = "text"
    json = "json"


def console() -> Console:
    """The terminal. No markup and no emoji: most of the text is other people's, and [n, 64] is a
    shape.
    """
    terminal = sys.stdout.isatty()
    return Console(
        highlight=False,
        markup=False,
        emoji=False,
        width=None if terminal else int(os.environ.get("COLUMNS", PLAIN_WIDTH)),
    )


def show(body: RenderableType) -> None:
    """Print what rich can render."""
    screen = console()
    if screen.is_terminal:
        screen.print(body)
        return
    with screen.capture() as captured:
        screen.print(body)
    for line in captured.get().splitlines():  # columns are padded to their width
        typer.echo(line.rstrip())


def print_line(text: str, *, err: bool = False) -> None:
    """Print a line, or what another's text makes of one."""
    typer.echo(printable(text), err=err)


def printable(text: str) -> str:
    """The text without what a terminal would obey or hide (escape sequences, changes of direction),
    because messages quote untrusted files. And with its URIs masked, because objects and statuses
    of earlier versions may have URIs with passwords.
    """
    return mask_uris("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text))


def print_json(value: Any) -> None:
    """Print indented JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def columns(*headers: str) -> Table:
    """An empty table of this program's looks."""
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for header in headers:
        made.add_column(header, overflow="fold", no_wrap=header == headers[0])
    return made
