"""What the operator needs of a system that keeps metrics. Everything below is in terms of readings,
which are the same for all systems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from modelrollout.analysis.measurement import Counts, Measurement
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.reading import Reading
from modelrollout.analysis.target import Target
from modelrollout.api.v1alpha1 import Counter, Metric
from modelrollout.reasons import Reason

# who counts; pods: the comparer and the servers, in the model's namespace
CountedBy = Literal["gateway", "feedback", "pods"]
COUNTED_BY: tuple[CountedBy, ...] = ("gateway", "feedback", "pods")


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why counters may not be those of the program that should count.

    ``ForeignTargets``: others can write them now; ``Unverified``: that cannot be ruled out.
    ``message`` is for every team to read; ``targets``, who runs where, for the platform only.
    """

    reason: Literal[Reason.UNVERIFIED, Reason.FOREIGN_TARGETS]
    message: str
    targets: str = ""


class MetricsProvider(Protocol):
    """A client of one metrics system. One instance serves all ModelDeployments, and several reads
    at a time.

    No method raises for what the system does: a failure is a ``MeasurementProblem``.
    """

    async def read(
        self, target: Target, metrics: Sequence[Metric], counts: Mapping[str, Counts], now: float
    ) -> dict[str, Reading]:
        """A reading of every metric, and of each of its slices as ``METRIC/SLICE``.

        A metric without ``counts`` is read for its baseline: every process that counted lately, and
        how stable's bad share varied in the hour before ``now`` (Unix seconds).
        """

    async def read_past(
        self, target: Target, metrics: Sequence[Metric], times: Sequence[int]
    ) -> dict[int, dict[str, Reading]] | MeasurementProblem:
        """The readings at each time: evenly spaced Unix seconds, growing."""

    async def read_agreement(self, target: Target, before: Counter | None) -> Measurement:
        """The pairs of answers that the comparer has counted since ``before``; None: the
        baseline.
        """

    async def doubts(self, counted_by: Sequence[CountedBy]) -> dict[CountedBy, Doubt]:
        """Whose counters others may be able to write; one without doubt is left out."""

    async def close(self) -> None:
        """Release threads and connections."""
