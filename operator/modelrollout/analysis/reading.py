"""What a metrics provider returns for one metric at one moment, whatever system it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modelrollout.analysis.counters import Raw
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.statistics.dispersion import Spread

Side = Literal["canary", "stable"]


@dataclass(frozen=True, slots=True)
class CounterReading:
    """The raw counters of both sides; a side without series has an empty one.

    ``usual``: how stable's bad share varied in the hour before, where known; only in a reading that
    sets a baseline.
    """

    canary: Raw
    stable: Raw
    usual: Spread[float] | None = None


Reading = CounterReading | float | MeasurementProblem
