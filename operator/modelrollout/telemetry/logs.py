"""Logs without secrets: JSON lines for machines, a short form on a terminal. Jobs write the same
lines (``modelrollout.jobs.log``).
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Literal, TextIO

from pythonjsonlogger.json import JsonFormatter

from modelrollout.telemetry.redaction import redact, redact_known

_context: ContextVar[Mapping[str, str]] = ContextVar("log_context", default=MappingProxyType({}))


@contextlib.contextmanager
def log_context(*, namespace: str, name: str, revision: str | None = None) -> Iterator[None]:
    """Everything logged inside, also by tasks started there, carries these fields.
    (``extra={"name": ...}`` is refused by logging.)
    """
    fields = {"namespace": namespace, "name": name} | ({"revision": revision} if revision else {})
    token = _context.set({**_context.get(), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


class JsonLines(JsonFormatter):
    """One JSON object a line: ts, level, logger, message, then the fields of ``extra``, the object,
    and the traceback as exc_info. ``redact`` removes secrets from a line.
    """

    def __init__(self, redact: Callable[[str], str] = redact) -> None:
        super().__init__(["message"])
        self._redact = redact

    def add_fields(
        self, log_data: dict[str, object], record: logging.LogRecord, message_dict: dict[str, object]
    ) -> None:
        log_data["ts"] = _time(record).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        log_data["level"] = record.levelname.lower()
        log_data["logger"] = record.name
        super().add_fields(log_data, record, message_dict)
        log_data.update(_context.get())

    def process_log_record(self, log_data: dict[str, object]) -> dict[str, object]:
        # before quotes and the like in a secret are escaped
        return {k: redact_known(v) if isinstance(v, str) else v for k, v in log_data.items()}

    def format(self, record: logging.LogRecord) -> str:
        return self._redact(super().format(record))


class _Text(logging.Formatter):
    """For people: time, level, object, message."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _context.get()
        about_ = f"{fields['namespace']}/{fields.get('revision') or fields['name']}: " if fields else ""
        text = f"{_time(record):%H:%M:%S} {record.levelname:7} {about_}{record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return redact(text)


def setup(
    level: str = "INFO", form: Literal["auto", "json", "text"] = "auto", stream: TextIO = sys.stderr
) -> None:
    """Send all logs to ``stream``; ``auto`` is text on a terminal and JSON elsewhere. Replaces the
    root logger's handlers.
    """
    text = form == "text" or (form == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Text() if text else JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
