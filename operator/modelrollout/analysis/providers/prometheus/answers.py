"""What Prometheus answers to an instant query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Series:
    """One element of an instant vector; ``timestamp`` is the evaluation's, in Unix seconds."""

    labels: Mapping[str, str]
    value: float
    timestamp: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The series of one answer; an answer may have none."""

    series: tuple[Series, ...] = ()
