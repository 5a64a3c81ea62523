"""An evidence source: a program whose counters say how a revision performs.

A source writes one instant query per metric, which answers for canary and stable and for the times
of the scrapes: counts from two queries may lie on two sides of a scrape and do not belong together.
The series carry a label ``reading``: ``count`` (or ``good`` and ``bad``), and ``scraped`` for the
time of the newest scrape of a process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from modelrollout.analysis.counters import Sample
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.prometheus.answers import Series
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget
from modelrollout.analysis.reading import CounterReading, Side
from modelrollout.api.v1alpha1 import Metric, RevisionRef

Sides = Mapping[str, tuple[Side, str]]


class EvidenceSource(Protocol):
    """One kind of counters: the queries for them, and what their series mean."""

    @property
    def side_label(self) -> str:
        """The label that says which revision a series belongs to."""

    def query(self, metric: Metric, target: ScrapedTarget, *, baseline: bool) -> Query | MeasurementProblem:
        """The query for a built-in metric, or ``NoSource``. ``baseline``: see ``queries.build``."""

    def sides(self, target: ScrapedTarget) -> Sides:
        """By value of ``side_label``: the side, and a key that distinguishes its counters in a
        process.
        """

    def sample(self, query: Query, counts: Sequence[Series], scraped: float) -> Sample:
        """The counters of one process. Raises ``NoBoundError``, and ValueError for values that no
        counter can have.
        """

    def is_unscraped(self, reading: CounterReading, target: ScrapedTarget) -> bool:
        """Whether the programs that count exist but have not been scraped, so that this reading is
        no baseline.

        They may have counted weeks of stable, or the golden inputs that went to the canary's pods;
        none of that belongs to the step.
        """


@dataclass(frozen=True, slots=True)
class Query:
    """A query for a metric and how to read its answer."""

    metric: str
    promql: str
    source: EvidenceSource | None = None  # None: a custom query, which answers one number
    objective: float | None = None  # of latency, in seconds
    bounds: str | None = None  # the query for the existing bounds, if ``objective`` is not one of them
    slices: tuple[str, ...] = ()  # also read apart
    own: bool = False  # written by the namespace, and run apart from all others
    unit: float = 1.0  # seconds of one unit of ``bounds``
    cut: float = 0.0  # seconds by which a bound is below the latency that it tells
    histogram: str = "the gateway's histogram"
    rebound: str = "configure the gateway's buckets"  # the way out where no bound will do
    # Where nothing was scraped that counts: the query for the revisions whose servers were scraped
    # and do not count this, and why, for them.
    absent: str | None = None
    why_absent: Callable[[Sequence[str]], str] | None = None
    # whether its series were of the same revision an hour ago, if they were there
    has_past: bool = True


class NoBoundError(Exception):
    """A process counts requests, but has no bucket at the objective."""


def sum_sample(counts: Sequence[Series], scraped: float, is_bad: Callable[[Series], bool]) -> Sample:
    """The sum of all series, and of the bad ones."""
    return Sample(sum(s.value for s in counts), sum(s.value for s in counts if is_bad(s)), scraped)


def sides_by(value: Callable[[RevisionRef], str], target: ScrapedTarget) -> Sides:
    """Sides where one value of the label stands for one revision."""
    sides: dict[str, tuple[Side, str]] = {value(target.canary): ("canary", "")}
    if target.stable:
        sides[value(target.stable)] = ("stable", "")
    return sides
