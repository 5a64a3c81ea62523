"""A recording says what was read, and what is none says on which line."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from modelrollout.analysis.counters import NO_SPREAD, Raw, Sample
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.reading import CounterReading, Reading
from modelrollout.analysis.recording import (
    Header,
    RecordingError,
    encode,
    encode_header,
    read_header,
    read_looks,
)

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
GOOD = '{"at": "2026-11-22T12:00:00Z", "readings": {}}'


def test_what_is_written_is_read() -> None:
    processes = {"g/http": Sample(12, 3, 1700000000.5), "pod": Sample(65, 0, 1700000000.0, primed=True)}
    look = CounterReading(Raw(processes), Raw())
    first = replace(look, usual=NO_SPREAD)
    problem = MeasurementProblem("ProviderTimeout", "slow")
    readings: dict[str, Reading] = {
        "errors": look,
        "accuracy/night": first,
        "memory": 6.5,
        "accuracy": problem,
    }
    header = Header("a", "digits", "digits-new", None)
    assert read_header(encode_header(header)) == header
    assert list(read_looks([encode(NOW, readings), "", encode(NOW.replace(minute=1), {})])) == [
        (NOW, readings),
        (NOW.replace(minute=1), {}),
    ]


@pytest.mark.parametrize(
    "line", ["", "{", "[]", '{"recording": 2}', '{"recording": 1, "name": "x"}', '{"at": "now"}']
)
def test_another_file_is_refused(line: str) -> None:
    with pytest.raises(RecordingError, match="line 1"):
        read_header(line)


@pytest.mark.parametrize(
    "line",
    [
        "oops",
        '{"at": "yesterday", "readings": {}}',
        '{"at": "2026-11-22T12:01:00", "readings": {}}',
        '{"at": "2026-11-22T12:00:00Z", "readings": {}}',
        '{"at": "2026-11-22T12:01:00Z", "readings": {"errors": {"canary": {"g": [1, 2, 3]}, "stable": {}}}}',
        '{"at": "2026-11-22T12:01:00Z", "readings": {"errors": {"canary": {"g": [1]}, "stable": {}}}}',
        '{"at": "2026-11-22T12:01:00Z", "readings": {"errors": {"canary": {}}}}',
        '{"at": "2026-11-22T12:01:00Z", "readings": {"errors": {"problem": "Oops"}}}',
        '{"at": "2026-11-22T12:01:00Z", "readings": {"errors": "7"}}',
    ],
)
def test_a_line_that_is_no_look_is_named(line: str) -> None:
    with pytest.raises(RecordingError, match="line 3"):
        list(read_looks([GOOD, line]))
