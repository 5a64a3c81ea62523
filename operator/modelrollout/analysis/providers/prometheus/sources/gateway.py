"""What the sources of all gateways share: answers by metric, histograms of durations, and a source
for gateways that count each backend in series of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from modelrollout.analysis.counters import Sample
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.prometheus.answers import Answer, Series
from modelrollout.analysis.providers.prometheus.promql import (
    BASELINE_WINDOW,
    READING,
    join_matchers,
)
from modelrollout.analysis.providers.prometheus.sources.base import NoBoundError, Query, Sides, sum_sample
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget
from modelrollout.analysis.reading import CounterReading, Side
from modelrollout.api.v1alpha1 import Metric, seconds

SIDE = "backend"  # the label that a query gives to the series of one side and protocol
# By gRPC status the metric that calls it bad.
GRPC_STATUS: Mapping[str, str] = {
    "1": "refusedRequests",  # CANCELLED
    "2": "errors",  # UNKNOWN
    "3": "clientErrors",  # INVALID_ARGUMENT
    "4": "errors",  # DEADLINE_EXCEEDED
    # NOT_FOUND: a client that names another version than the one that answers
    "5": "refusedRequests",
    "6": "clientErrors",  # ALREADY_EXISTS
    "7": "refusedRequests",  # PERMISSION_DENIED
    "8": "errors",  # RESOURCE_EXHAUSTED
    "9": "clientErrors",  # FAILED_PRECONDITION
    "10": "clientErrors",  # ABORTED
    "11": "clientErrors",  # OUT_OF_RANGE
    "12": "clientErrors",  # UNIMPLEMENTED
    "13": "errors",  # INTERNAL
    "14": "errors",  # UNAVAILABLE
    "15": "errors",  # DATA_LOSS
    "16": "refusedRequests",  # UNAUTHENTICATED
}
# What a gateway decides (credentials, payment, quotas, connections, laws) or the caller (who gives
# up: 499, and 0 where a gateway counts that no answer was sent), whatever model answers. Every
# other 4xx is the model server's word on the request.
_HTTP_REFUSED = frozenset({"0", "401", "402", "403", "407", "408", "421", "425", "429", "451", "499"})


def metric_of_http(code: str) -> str | None:
    """The one metric in which answers of this HTTP status are bad; None for good ones."""
    if code in _HTTP_REFUSED:
        return "refusedRequests"
    return {"4": "clientErrors", "5": "errors"}.get(code[:1])


@dataclass(frozen=True, slots=True)
class Histogram:
    """A histogram of the durations of requests. ``labels``: those that the process itself writes on
    each series; ``unit``: seconds of one unit of ``le``; ``cut``: the process counts whole units
    and cuts off the rest, so that the bound for an objective is one below it.
    """

    metric: str
    labels: tuple[str, ...]
    unit: float
    cut: bool = False

    def bounds(self, selector: str) -> str:
        """The query for the bounds that exist."""
        return f"count by (le) ({self.metric}{{{selector}}})"

    def matcher(self, objective: float) -> str:
        """Of the bucket at ``objective`` seconds and of the last one. Prometheus 3 writes whole
        numbers as 1.0, those before as 1.
        """
        text = repr(float(self._bound(objective)))
        forms = [text, text.removesuffix(".0")] if text.endswith(".0") else [text]
        return f'le=~"{"|".join(f.replace(".", BACKSLASHES + ".") for f in forms)}|{BACKSLASHES}+Inf"'

    def sample(self, objective: float, counts: Sequence[Series], scraped: float) -> Sample:
        """Requests slower than ``objective`` seconds are bad. Raises NoBoundError."""
        total = sum(s.value for s in counts if s.labels.get("le") == "+Inf")
        at = self._bound(objective)
        fast = [s.value for s in counts if _number(s.labels.get("le", "")) == at]
        if total and not fast:
            raise NoBoundError
        return Sample(total, total - sum(fast), scraped)

    def _bound(self, objective: float) -> float:
        return round(objective / self.unit, 9) - self.cut


BACKSLASHES = "\\\\"  # an escape of a regular expression in a PromQL string


def name_bounds(problem: MeasurementProblem, bounds: Answer, query: Query) -> MeasurementProblem:
    """``problem`` with the bounds that exist, as the latencies that they tell."""
    known = sorted({b for s in bounds.series if math.isfinite(b := _number(s.labels.get("le", "")))})
    latencies = [round(b * query.unit + query.cut, 9) for b in known]
    listed = ", ".join(f"{b * 1000:g}ms" if b < 1 else f"{b:g}s" for b in latencies if b > 0)
    return MeasurementProblem(
        problem.reason,
        f"{problem.message}; its bounds are {listed or 'none'}: choose one of them, or {query.rebound}",
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


@dataclass(frozen=True, slots=True)
class Answers:
    """The counters of answers by status: of all requests to a backend, or of those of one protocol.

    ``protocol`` distinguishes them. ``select``: matchers of the series of a revision. ``kinds``:
    labels that tell how a request was answered, from which ``metric_of`` says in which metric it is
    bad; ``labels``: the others that the process itself writes. ``status_in_name``: ``metric`` is a
    regular expression for names that end in the status, which becomes the label of ``kinds``.
    ``scraped``: a metric with the same labels of the backend, by which scrapes are dated.
    """

    protocol: str
    select: Callable[[ScrapedTarget, str], str]
    metric: str
    kinds: tuple[str, ...]
    labels: tuple[str, ...]
    metric_of: Callable[[Mapping[str, str]], str | None]
    scraped: str
    status_in_name: bool = False

    def counts(self, selector: str, apart: Sequence[str], over: str = "") -> str:
        """The selected counters by process, the labels ``apart`` and kind; ``over``: as they were
        last in that time.
        """
        name, selected = (
            ("", f'__name__=~"{self.metric}",{selector}') if self.status_in_name else (self.metric, selector)
        )
        vector = f"{name}{{{selected}}}"
        if over:
            vector = f"last_over_time({vector}[{over}])"
        inner = (*(("__name__",) if self.status_in_name else ()), "instance", *self.labels, *self.kinds)
        if self.status_in_name:
            vector = f'label_replace({vector}, "{self.kinds[0]}", "$1", "__name__", ".*_([0-9]+)")'
        return _by_process(vector, inner, (*apart, *self.kinds))


def _by_process(vector: str, labels: Sequence[str], by: Sequence[str]) -> str:
    """``labels``: all of a series of a process. The maximum leaves one series where two jobs scrape
    the same instance, or its requests would count twice.
    """
    return f"sum by ({', '.join(('instance', *by))}) (max by ({', '.join(labels)}) ({vector}))"


class BackendSeries:
    """``EvidenceSource`` of a gateway that counts each backend in series of its own: answers by
    status, and durations in a histogram.

    ``by_route``: a label by which a gateway counts each rule of each route apart, under names that
    another revision had before, so that a revision's past is unknown. A rule that goes takes its
    counter along, so each counts as a process of its own.
    """

    side_label = SIDE

    def __init__(
        self, answers: Sequence[Answers], durations: Histogram, *, by_route: str | None = None
    ) -> None:
        self._answers = {a.protocol: a for a in answers}
        self._durations, self._apart = durations, (by_route,) if by_route else ()

    def query(self, metric: Metric, target: ScrapedTarget, *, baseline: bool) -> Query | MeasurementProblem:
        """Status codes for answers, buckets for latency."""
        if metric.name != "latency":
            parts = [
                part
                for key, answers, selector in self._selected(target)
                for part in _parts(
                    key,
                    answers.counts(selector, self._apart),
                    answers.counts(selector, self._apart, BASELINE_WINDOW) if baseline else None,
                    f"{answers.scraped}{{{selector}}}",
                    self._apart,
                )
            ]
            return Query(metric.name, " or ".join(parts), self, has_past=not self._apart)
        durations, objective = self._durations, round(seconds(metric.objective or "0s"), 9)
        parts, selectors = [], []
        for key, _, selector in self._selected(target):
            series = f"{durations.metric}{{{selector},{durations.matcher(objective)}}}"
            labels = ("instance", *durations.labels, "le")
            by = (*self._apart, "le")
            past = _by_process(f"last_over_time({series}[{BASELINE_WINDOW}])", labels, by)
            counts = _by_process(series, labels, by)
            parts += _parts(key, counts, past if baseline else None, series, self._apart)
            selectors.append(selector)
        bounds = " or ".join(durations.bounds(selector) for selector in selectors)
        return Query(
            metric.name,
            " or ".join(parts),
            self,
            objective,
            bounds=bounds,
            unit=durations.unit,
            has_past=not self._apart,
        )

    def _selected(self, target: ScrapedTarget) -> Iterator[tuple[str, Answers, str]]:
        """Value of ``SIDE``, counters, and their selector."""
        for side, revision in _revisions(target):
            for protocol, answers in self._answers.items():
                selector = join_matchers(answers.select(target, revision), target.matchers.gateway)
                yield f"{side}/{protocol}", answers, selector

    def sides(self, target: ScrapedTarget) -> Sides:
        """Each protocol is a counter of its own: a gateway may drop and create one while the other
        goes on.
        """
        return {
            f"{side}/{protocol}": (side, protocol)
            for side, _ in _revisions(target)
            for protocol in self._answers
        }

    def sample(self, query: Query, counts: Sequence[Series], scraped: float) -> Sample:
        """Slow requests for latency, else those whose answer is bad in this metric."""
        if query.objective is not None:
            return self._durations.sample(query.objective, counts, scraped)
        return sum_sample(counts, scraped, lambda s: self._metric_of(s) == query.metric)

    def _metric_of(self, series: Series) -> str | None:
        protocol = series.labels.get(SIDE, "").partition("/")[2]
        return self._answers[protocol].metric_of(series.labels)

    def is_unscraped(self, reading: CounterReading, target: ScrapedTarget) -> bool:
        """Neither side has a counter. A gateway may have none of a canary before a request."""
        return not reading.canary.processes and not reading.stable.processes


def _revisions(target: ScrapedTarget) -> list[tuple[Side, str]]:
    stable: list[tuple[Side, str]] = [("stable", target.stable.revision)] if target.stable else []
    return [("canary", target.canary.revision), *stable]


def _parts(key: str, counts: str, past: str | None, dated: str, apart: Sequence[str]) -> list[str]:
    """The parts of an answer on one side and protocol. ``past``: the counts of processes that are
    missing now; ``dated``: a bare selector; of no other vector timestamp() gives the time of the
    scrape. ``apart``: labels that are a part of the process.
    """
    process = ", ".join(("instance", *apart))
    if past is not None:
        counts = f"{counts} or ({past} unless on ({process}) {dated})"
    parts = []
    for reading, vector in (
        ("count", counts),
        ("scraped", f"max by ({process}) (timestamp({dated}))"),
    ):
        if apart:
            joined = ", ".join(f'"{label}"' for label in ("instance", *apart))
            vector = f'label_join({vector}, "instance", "/", {joined})'
        labelled = f'label_replace({vector}, "{READING}", "{reading}", "", "")'
        parts.append(f'label_replace({labelled}, "{SIDE}", "{key}", "", "")')
    return parts
