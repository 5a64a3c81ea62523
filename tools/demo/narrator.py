"""What the runs of minutes (chaos, soak, GitOps) say on the terminal."""

from __future__ import annotations

import signal
import time

from rich.console import Console
from rich.text import Text

PLAIN_WIDTH = 180  # of a table where there is no terminal


class Narrator:
    """A console, and lines with the seconds since the run began."""

    def __init__(self) -> None:
        plain = Console(highlight=False)
        self.console = plain if plain.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def say(self, line: str) -> None:
        """One line, with the time."""
        self.console.print(Text(f"[{self.seconds:7.1f}] {line}"), soft_wrap=True)


def heed_signals() -> None:
    """SIGTERM and SIGINT are a KeyboardInterrupt, also where SIGINT was ignored, as in the
    background: what the run has started must end with it.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupted)


def _interrupted(number: int, _: object) -> None:
    raise KeyboardInterrupt
