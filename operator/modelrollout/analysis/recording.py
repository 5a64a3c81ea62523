"""Readings as JSON lines, so that a rollout can be judged again offline. No I/O: text in, text out.

The first line is the header, each further line one look:

    {"recording": 1, "namespace": "default", "name": "digits", "canary": "digits-8d1b", "stable":
    "digits-6c9f"} {"at": "2026-11-22T12:00:00.000Z", "readings": { "errors": {"canary":
    {"10.0.0.1:9100/http": [1204, 3, 1763812799.5]}, "stable": {"10.0.0.1:9100/http": [40250, 90,
    1763812799.5]}}, "gpu-memory": 61000000000.0, "accuracy": {"problem": "ProviderTimeout",
    "message": "..."}}}

A process has its raw counters: total, bad, Unix time of the scrape, and true where it counts
requests of its own when it starts (Sample). ``usual``, in the first look,
is how stable's bad share varied in the hour before (dispersion.Spread). A slice has a reading of
its own, METRIC/SLICE. ``stable`` is null for a first revision.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, get_args

from modelrollout import nesting
from modelrollout.analysis.counters import Raw, Sample
from modelrollout.analysis.problem import MeasurementProblem, MeasurementReason
from modelrollout.analysis.reading import CounterReading, Reading
from modelrollout.api.times import stamp
from modelrollout.statistics.dispersion import Spread

FORMAT = 1


class RecordingError(ValueError):
    """The text is no recording; it names the line."""


@dataclass(frozen=True)
class Header:
    """The revisions that were read; ``stable`` is None for a first revision."""

    namespace: str
    name: str
    canary: str
    stable: str | None


def encode_header(header: Header) -> str:
    """The first line."""
    fields = {
        "recording": FORMAT,
        "namespace": header.namespace,
        "name": header.name,
        "canary": header.canary,
        "stable": header.stable,
    }
    return json.dumps(fields)


def encode(at: datetime, readings: Mapping[str, Reading]) -> str:
    """The readings of one moment as a line."""
    return json.dumps(
        {"at": stamp(at), "readings": {name: _wire(reading) for name, reading in readings.items()}}
    )


def read_header(line: str) -> Header:
    """Raises RecordingError."""
    header = _object(line, 1)
    if header.get("recording") != FORMAT:
        raise RecordingError(
            f'line 1: a recording begins with {{"recording": {FORMAT}, ...}}; make one with: modelrollout'
            " analyze --record FILE"
        )
    try:
        stable = header["stable"]
        return Header(
            str(header["namespace"]),
            str(header["name"]),
            str(header["canary"]),
            None if stable is None else str(stable),
        )
    except KeyError as e:
        raise RecordingError(f"line 1: {e.args[0]} is missing") from None


def read_looks(lines: Iterable[str]) -> Iterator[tuple[datetime, dict[str, Reading]]]:
    """The lines after the header; their times must grow. Raises RecordingError."""
    last: datetime | None = None
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        entry = _object(line, number)
        try:
            at = datetime.fromisoformat(entry["at"])
            readings = {str(name): _reading(value) for name, value in entry["readings"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise RecordingError(
                f'line {number}: not {{"at": TIME, "readings": {{METRIC: ...}}}}: {e}'
            ) from None
        if at.tzinfo is None or (last is not None and at <= last):
            raise RecordingError(
                f"line {number}: at {entry['at']} needs a time zone and must be later than the line before"
            )
        last = at
        yield at, readings


def _object(line: str, number: int) -> dict[str, Any]:
    try:
        entry = nesting.parse(line)
    except ValueError as e:
        raise RecordingError(f"line {number}: not JSON: {e}") from None
    if not isinstance(entry, dict):
        raise RecordingError(f"line {number}: not a JSON object")
    return entry


def _wire(reading: Reading) -> object:
    if isinstance(reading, MeasurementProblem):
        return {"problem": reading.reason, "message": reading.message}
    if isinstance(reading, CounterReading):
        sides = (("canary", reading.canary), ("stable", reading.stable))
        counters = {
            side: {p: [s.total, s.bad, s.scraped, *[True] * s.primed] for p, s in raw.processes.items()}
            for side, raw in sides
        }
        return counters if reading.usual is None else {**counters, "usual": list(reading.usual)}
    return reading


def _sample(values: Sequence[Any]) -> Sample:
    total, bad, scraped = map(float, values[:3])
    return Sample(total, bad, scraped, primed=values[3:] == [True])


def _reading(value: object) -> Reading:
    if isinstance(value, dict) and "problem" in value:
        if value["problem"] not in get_args(MeasurementReason):
            raise ValueError(f"unknown problem {value['problem']!r}")
        return MeasurementProblem(value["problem"], str(value.get("message", "")))
    if isinstance(value, dict):
        canary, stable = (
            Raw({str(p): _sample(s) for p, s in value[side].items()}) for side in ("canary", "stable")
        )
        return CounterReading(
            canary, stable, Spread(*map(float, value["usual"])) if "usual" in value else None
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ValueError(f"{value!r} is no reading")
