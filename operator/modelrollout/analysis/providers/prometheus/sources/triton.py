"""Triton's own counters: the outcome of requests where no gateway counts them, how long they took
until the first response, and the rows that the servers answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from modelrollout.analysis.counters import Sample
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.prometheus.answers import Series
from modelrollout.analysis.providers.prometheus.promql import (
    READING,
    any_of,
    counter_part,
    pods_of,
    scrape_times,
)
from modelrollout.analysis.providers.prometheus.sources.base import Query, Sides, sides_by, sum_sample
from modelrollout.analysis.providers.prometheus.sources.gateway import Histogram
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget
from modelrollout.analysis.reading import CounterReading
from modelrollout.api.v1alpha1 import Metric, seconds
from modelrollout.reasons import Reason
from modelrollout.triton import histogram

_SUCCESS, _FAILURE = "nv_inference_request_success", "nv_inference_request_failure"
# Triton counts what each GPU has answered apart
_LABELS = ("revision", "model", "version", "gpu_uuid")
_MILLISECOND = 0.001
_LATENCIES = Histogram(f"{histogram.FAMILY}_bucket", (*_LABELS, "le"), _MILLISECOND, cut=True)


class Triton:
    """``EvidenceSource`` of errors without a gateway, and of latencies until the first response."""

    side_label = "revision"

    def query(self, metric: Metric, target: ScrapedTarget, *, baseline: bool) -> Query | MeasurementProblem:
        """Successes and failures for errors, buckets for latency: Triton counts no others."""
        if metric.name == "latency":
            return self._latency(metric, target, baseline=baseline)
        if metric.name != "errors":
            return MeasurementProblem(
                Reason.NO_SOURCE,
                f"{metric.name} needs a gateway that counts it, since Triton does not count the requests that"
                " it refuses while it parses them: set spec.traffic.gateway to one whose counters are known"
                " (docs/reference/gateways.md), or leave the metric out",
            )
        selector = _selector(target)
        failed, by = f'{selector},reason!="CANCELED"', (self.side_label, "instance")
        parts = (
            counter_part("good", _SUCCESS, _LABELS, selector, by, baseline),
            counter_part("bad", _FAILURE, (*_LABELS, "reason"), failed, by, baseline),
            scrape_times(_SUCCESS, selector, self.side_label),
        )
        return Query(metric.name, " or ".join(parts), self)

    def _latency(
        self, metric: Metric, target: ScrapedTarget, *, baseline: bool
    ) -> Query | MeasurementProblem:
        if metric.of == "WholeAnswer" and target.decoupled:
            return MeasurementProblem(
                Reason.NO_SOURCE,
                "latency.of: WholeAnswer of a model that streams its answers is counted by a gateway only"
                " (docs/reference/gateways.md), and says nothing about speed: set FirstResponse, or"
                " spec.traffic.gateway",
            )
        objective = round(seconds(metric.objective or "0s"), 9)
        if not histogram.is_countable(objective):
            return MeasurementProblem(
                Reason.NOT_A_BUCKET_BOUND,
                f"latency.objective: Triton counts latencies in whole milliseconds, and {metric.objective} is"
                " none: choose 1ms, 2ms or more, or set spec.traffic.gateway to a gateway that counts it",
            )
        selector, sides = _selector(target), 1 + (target.stable is not None)
        chosen = f"{selector},{_LATENCIES.matcher(objective)}"
        by, name = (self.side_label, "instance", "le"), _LATENCIES.metric
        parts = (
            counter_part("count", name, _LATENCIES.labels, chosen, by, baseline),
            scrape_times(name, chosen, self.side_label),
        )
        of_all = f"count by (le) (count by (le, {self.side_label}) ({name}{{{selector}}})) == {sides}"
        without = f"{_SUCCESS}{{{selector}}} unless on ({self.side_label}, instance) {name}{{{selector}}}"
        return Query(
            metric.name,
            " or ".join(parts),
            self,
            objective,
            bounds=of_all,
            unit=_LATENCIES.unit,
            cut=_MILLISECOND,
            histogram="Triton's histogram on each server",
            rebound=(
                "see that the operator knows that Triton takes it as a bound when it makes a revision"
                " (docs/reference/gateways.md, Triton's histogram of latencies)"
            ),
            absent=f"count by ({self.side_label}) ({without})",
            why_absent=lambda revisions: _without_histogram(revisions, target),
        )

    def sides(self, target: ScrapedTarget) -> Sides:
        """By the name of the revision."""
        return sides_by(lambda r: r.revision, target)

    def sample(self, query: Query, counts: Sequence[Series], scraped: float) -> Sample:
        """Good and bad are readings of their own. A server counts its warm-up requests, too."""
        if query.objective is not None:
            return replace(_LATENCIES.sample(query.objective, counts, scraped), primed=True)
        return replace(sum_sample(counts, scraped, lambda s: s.labels.get(READING) == "bad"), primed=True)

    def is_unscraped(self, reading: CounterReading, target: ScrapedTarget) -> bool:
        """Either side has no counters: pods of both sides run."""
        return not reading.canary.processes or (target.stable is not None and not reading.stable.processes)


TRITON = Triton()


def _selector(target: ScrapedTarget) -> str:
    """Matchers of the servers of both sides."""
    revisions = [r.revision for r in (target.canary, target.stable) if r]
    return f'revision=~"{any_of(revisions)}",{pods_of(target, revisions)}'


def _without_histogram(revisions: Sequence[str], target: ScrapedTarget) -> str:
    """Why the servers of these revisions count no latencies, and the ways out."""
    reported = {r: target.triton_versions.get(r) for r in revisions}
    least = histogram.OF_STREAMS if target.decoupled else histogram.OF_ALL
    has_it = {r for r, v in reported.items() if v and (histogram.version_of(v) or (0, 0)) >= least}
    late = next((r for r in revisions if r not in has_it), revisions[0])
    version = f"Triton {reported[late]}" if reported[late] else "a Triton whose version is unknown"
    text = f"latency: the servers of {late} ({version}) show no histogram of latencies"
    if late in has_it:
        return (
            f"{text}, because an earlier operator rendered them: modelrollout restart {target.name}"
            f" --revision {late} brings the flag, or set spec.traffic.gateway to a gateway that counts it"
        )
    release = histogram.RELEASE_OF_STREAMS if target.decoupled else histogram.RELEASE_OF_ALL
    models = "models that stream" if target.decoupled else "models that do not stream"
    return (
        f"{text}, which Triton has since {release} ({'.'.join(map(str, least))}) for {models}: set"
        " spec.serving.triton.image to a later one, or spec.traffic.gateway to a gateway that counts latency"
        " (docs/reference/gateways.md)"
    )


def rows_query(target: ScrapedTarget) -> str:
    """The most rows that the canary's servers can have answered, including those that are gone; how
    many servers are scraped, and the oldest of their scrapes.

    A counter that was reset had at most its largest value each time. Answers from Triton's cache
    count as requests, and not as inferences.
    """
    pods = pods_of(target, [target.canary.revision]).removesuffix('|"') + '"'
    window = f"{max(1, round(target.rows_seconds))}s"
    series = [f"{metric}{{{pods}}}" for metric in ("nv_inference_count", _SUCCESS)]
    rows = " + ".join(f"sum(max_over_time({s}[{window}]) * (1 + resets({s}[{window}])))" for s in series)
    parts = {
        "count": rows,
        "scraped": f"min(timestamp({series[0]}))",
        "servers": f"count(count by (instance) ({series[0]}))",
    }
    return " or ".join(
        f'label_replace({promql}, "{READING}", "{reading}", "", "")' for reading, promql in parts.items()
    )
