"""The operator's wall clock jumps, as when a machine's time is set; other clocks run on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from chaos.arena import Arena, Subject
from sandbox import packages

# Seconds from the true time. What status was stamped with in the future counts as now until then,
# so a jump back lengthens each wait by as much; a jump beyond a deadline is that deadline.
FORWARD, BACK = 60, -60


def begin(arena: Arena) -> None:
    """The operator begins anew with libfaketime, and the true time."""
    library = packages.faketime(arena.folder / "faketime.log")
    _set(arena, 0)
    arena.operator.environment |= {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(_file(arena)),
        "FAKETIME_CACHE_DURATION": "1",  # it looks into the file once a second
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DISABLE_SHM": "1",
    }
    arena.operator.restart()


def jump(seconds: int) -> Callable[[Arena, Subject], None]:
    """To so much after the true time."""
    return lambda arena, subject: _set(arena, seconds)


def undo(arena: Arena) -> None:
    for name in [n for n in arena.operator.environment if n == "LD_PRELOAD" or n.startswith("FAKETIME")]:
        del arena.operator.environment[name]
    arena.operator.restart()


def _file(arena: Arena) -> Path:
    return arena.folder / "faketime"


def _set(arena: Arena, seconds: int) -> None:
    """In one step: a reader never sees half a file."""
    new = _file(arena).with_suffix(".new")
    new.write_text(f"{seconds:+d}\n")
    new.rename(_file(arena))
