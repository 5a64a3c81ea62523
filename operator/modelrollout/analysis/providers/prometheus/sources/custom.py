"""A gateway whose counters the platform describes in PromQL of its own (gatewayMetrics.custom)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from modelrollout.analysis.counters import Sample
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.prometheus.answers import Series
from modelrollout.analysis.providers.prometheus.confinement import vector_fault
from modelrollout.analysis.providers.prometheus.promql import BASELINE_WINDOW, READING
from modelrollout.analysis.providers.prometheus.sources.base import NoBoundError, Query, Sides
from modelrollout.analysis.providers.prometheus.sources.gateway import SIDE
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget
from modelrollout.analysis.reading import CounterReading, Side
from modelrollout.api.v1alpha1 import Metric, RevisionRef, seconds
from modelrollout.config import ConfigError, GatewayQueries
from modelrollout.reasons import Reason

_PLACEHOLDER = re.compile(r"\{\{\s*(.*?)\s*\}\}")
_KNOWN = ("revision", "version", "namespace", "name")
_SIDE = ("revision", "version")  # one of them has to tell the revisions apart
_OBJECTIVE = "objective"
_FIELDS = {
    "errors": "errors",
    "clientErrors": "client_errors",
    "refusedRequests": "refused_requests",
    "latency": "slow",
}
_WINDOW = f"[{BASELINE_WINDOW}:]"


class Custom:
    """``EvidenceSource`` of requests by the platform's own queries. The time of an answer stands
    for that of the scrape.
    """

    side_label = SIDE

    def query(self, metric: Metric, target: ScrapedTarget, *, baseline: bool) -> Query | MeasurementProblem:
        """All requests and the bad ones of each side."""
        queries, field = target.matchers.queries, _FIELDS[metric.name]
        bad: str | None = getattr(queries, field) if queries is not None else None
        if queries is None or bad is None:
            return MeasurementProblem(
                Reason.NO_SOURCE,
                f"{metric.name} has no query in gatewayMetrics.custom of the operator's configuration: give"
                f" custom.{_written(field)}, or leave the metric out",
            )
        objective = None if metric.objective is None else round(seconds(metric.objective), 9)
        sides: list[tuple[Side, RevisionRef]] = [("canary", target.canary)]
        if target.stable:
            sides.append(("stable", target.stable))
        parts = [
            f'label_replace(label_replace({part}, "{READING}", "{reading}", "", ""),'
            f' "{SIDE}", "{side}", "", "")'
            for side, revision in sides
            for reading, part in _parts(
                _filled(queries.requests, target, revision, objective),
                _filled(bad, target, revision, objective),
                baseline=baseline,
            )
        ]
        return Query(metric.name, " or ".join(parts), self, objective)

    def sides(self, target: ScrapedTarget) -> Sides:
        """One of each."""
        return {"canary": ("canary", ""), "stable": ("stable", "")}

    def sample(self, query: Query, counts: Sequence[Series], scraped: float) -> Sample:
        """The two queries count the same requests: more bad ones than all are impossible. Errors
        may have no series before the first one; a histogram has one for each of its bounds.
        """
        bad = [s.value for s in counts if s.labels.get(READING) == "bad"]
        total = sum(s.value for s in counts if s.labels.get(READING) == "all")
        if query.objective is not None and total and not bad:
            raise NoBoundError
        return Sample(total, sum(bad), scraped)

    def is_unscraped(self, reading: CounterReading, target: ScrapedTarget) -> bool:
        """Neither side has a counter."""
        return not reading.canary.processes and not reading.stable.processes


CUSTOM = Custom()


def _parts(requests: str, bad: str, *, baseline: bool) -> Iterator[tuple[str, str]]:
    """Reading and PromQL of each part on one side. ``baseline``: processes count as they were last,
    if they are missing now.
    """
    for reading, promql in (("all", requests), ("bad", bad)):
        counts = f"sum by (instance) ({promql})"
        yield reading, f"({counts} or last_over_time(({counts}){_WINDOW}))" if baseline else counts
    # Of a vector that is no selector, timestamp() is the time of the evaluation in Prometheus, and
    # another one in VictoriaMetrics.
    yield "scraped", f"0 * sum by (instance) ({requests}) + time()"


def _filled(query: str, target: ScrapedTarget, revision: RevisionRef, objective: float | None) -> str:
    """Names of Kubernetes objects and numbers: none of them can end a PromQL string."""
    values = {
        "revision": revision.revision,
        "version": str(revision.number),
        "namespace": target.namespace,
        "name": target.name,
        _OBJECTIVE: repr(objective),
    }
    return _PLACEHOLDER.sub(lambda found: values[found[1]], query)


def check(queries: GatewayQueries) -> None:
    """Raises ConfigError that names the field, the fact and the remedy of the first fault."""
    sample = RevisionRef(revision="digits-0123456789", number=7)
    target = ScrapedTarget("ml", "digits", sample, None, "custom")
    for field in ("requests", *_FIELDS.values()):
        query, name = getattr(queries, field), f"gatewayMetrics.custom.{_written(field)}"
        if query is None:
            continue
        known = (*_KNOWN, _OBJECTIVE) if field == "slow" else _KNOWN
        found = _PLACEHOLDER.findall(query)
        unknown = next((p for p in found if p not in known), None)
        if unknown is not None:
            listed = ", ".join(f"{{{{{p}}}}}" for p in known)
            raise ConfigError(f"{name}: {{{{{unknown}}}}} means nothing here; known are {listed}")
        if not set(_SIDE) & set(found):
            raise ConfigError(
                f"{name}: without {{{{revision}}}} or {{{{version}}}} both revisions have the same counts;"
                " put one of them into a matcher"
            )
        if field == "slow" and _OBJECTIVE not in found:
            raise ConfigError(
                f"{name}: without {{{{objective}}}} every latency metric has the same limit; put it where the"
                " query chooses the bucket"
            )
        fault = vector_fault(_filled(query, target, sample, 0.05))
        if fault is not None:
            raise ConfigError(f"{name}: {fault}; write for example sum by (instance) (requests_total{{...}})")


def _written(field: str) -> str:
    """The field as the configuration has it."""
    first, *rest = field.split("_")
    return first + "".join(part.capitalize() for part in rest)
