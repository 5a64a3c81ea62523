"""JSON log lines on stderr, with the stage that runs, and without secrets."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from modelrollout.telemetry.logs import JsonLines
from modelrollout.telemetry.redaction import redact_known

LOGGER = logging.getLogger("modelrollout.job")


def setup() -> None:
    """All logging of this process goes to stderr as JSON; libraries from warnings up. Jobs know
    their secrets, and their messages name fields such as ``signature``: nothing else is removed.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(redact_known))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    LOGGER.setLevel(logging.INFO)


def say(message: str, **fields: Any) -> None:
    """One line at level info."""
    LOGGER.info(message, extra=fields)


class Progress:
    """Which stage runs, since when, and how far it is. Written by the task's thread, read by the
    main thread's heartbeat.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stage = "start"
        self._since = time.monotonic()
        self._done = 0
        self._total: int | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; its seconds add up under its name. Stages do not nest."""
        self._stage, self._since, self._done, self._total = name, time.monotonic(), 0, None
        say("begin", stage=name)
        try:
            yield
        finally:
            took = time.monotonic() - self._since
            self.seconds[name] = round(self.seconds.get(name, 0.0) + took, 3)
            say("end", stage=name, seconds=round(took, 3))
            self._stage = "between"

    def describe(self) -> str:
        """Which stage runs and for how long, and how long those before it took; for messages."""
        before = "".join(
            f", {name} took {seconds:.0f} s" for name, seconds in list(self.seconds.items()) if seconds >= 1
        )
        return f"stage {self._stage} has run for {time.monotonic() - self._since:.0f} s{before}"

    def update(self, done: int, total: int | None) -> None:
        """How far the stage is, in bytes, rows or requests; ``total`` None: unknown."""
        self._done, self._total = done, total

    def heartbeat(self) -> None:
        """Log how far the task is."""
        fields: dict[str, Any] = {"stage": self._stage, "seconds": round(time.monotonic() - self._since, 1)}
        if self._done:
            fields |= {"done": self._done, "total": self._total}
        say("running", **fields)
