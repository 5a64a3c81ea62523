"""Triton's own counters: the outcome of requests where no gateway counts them, and the rows that
the servers answered.
"""

from __future__ import annotations

from collections.abc import Sequence

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
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget
from modelrollout.analysis.reading import CounterReading
from modelrollout.api.v1alpha1 import Metric
from modelrollout.reasons import Reason

_SUCCESS, _FAILURE = "nv_inference_request_success", "nv_inference_request_failure"
_LABELS = ("revision", "model", "version")


class Triton:
    """``EvidenceSource`` of errors without a gateway."""

    side_label = "revision"

    def query(self, metric: Metric, target: ScrapedTarget, *, baseline: bool) -> Query | MeasurementProblem:
        """Successes and failures for errors, which are all that Triton counts."""
        if metric.name != "errors":
            missing = (
                "has no histogram of its requests"
                if metric.name == "latency"
                else "does not count the requests that it refuses while it parses them"
            )
            return MeasurementProblem(
                Reason.NO_SOURCE,
                f"{metric.name} needs a gateway that counts it, since Triton {missing}: set"
                " spec.traffic.gateway (and gatewayMetrics.profile in the operator's configuration), or leave"
                " the metric out",
            )
        revisions = [r.revision for r in (target.canary, target.stable) if r]
        selector = f'revision=~"{any_of(revisions)}",{pods_of(target, revisions)}'
        failed, by = f'{selector},reason!="CANCELED"', (self.side_label, "instance")
        parts = (
            counter_part("good", _SUCCESS, _LABELS, selector, by, baseline),
            counter_part("bad", _FAILURE, (*_LABELS, "reason"), failed, by, baseline),
            scrape_times(_SUCCESS, selector, self.side_label),
        )
        return Query(metric.name, " or ".join(parts), self)

    def sides(self, target: ScrapedTarget) -> Sides:
        """By the name of the revision."""
        return sides_by(lambda r: r.revision, target)

    def sample(self, query: Query, counts: Sequence[Series], scraped: float) -> Sample:
        """Good and bad are readings of their own."""
        return sum_sample(counts, scraped, lambda s: s.labels.get(READING) == "bad")

    def is_unscraped(self, reading: CounterReading, target: ScrapedTarget) -> bool:
        """Either side has no counters: pods of both sides run."""
        return not reading.canary.processes or (target.stable is not None and not reading.stable.processes)


TRITON = Triton()


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
