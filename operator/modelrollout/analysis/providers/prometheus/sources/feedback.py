"""The counters of the feedback service: labels of answers, right and wrong, by slice."""

from __future__ import annotations

from collections.abc import Sequence

from modelrollout.analysis.counters import Sample
from modelrollout.analysis.providers.prometheus.answers import Series
from modelrollout.analysis.providers.prometheus.promql import any_of, counters, join_matchers
from modelrollout.analysis.providers.prometheus.sources.base import Query, Sides, sides_by, sum_sample
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget
from modelrollout.analysis.reading import CounterReading
from modelrollout.api.v1alpha1 import Metric

_METRIC = "modelrollout_feedback_total"
_LABELS = ("model_namespace", "name", "version", "slice", "result")


class Feedback:
    """``EvidenceSource`` of accuracy."""

    side_label = "version"

    def query(self, metric: Metric, target: ScrapedTarget, *, baseline: bool) -> Query:
        """Labels by result, and by slice where the metric has slices."""
        versions = any_of([str(r.number) for r in (target.canary, target.stable) if r])
        selector = join_matchers(
            f'model_namespace="{target.namespace}",name="{target.name}",version=~"{versions}"',
            target.matchers.feedback,
        )
        slices = tuple(part.name for part in metric.slices or ())
        kinds = ("result", "slice") if slices else ("result",)
        promql = counters(_METRIC, _LABELS, selector, self.side_label, kinds, baseline)
        return Query(metric.name, promql, self, slices=slices)

    def sides(self, target: ScrapedTarget) -> Sides:
        """By the number of the revision."""
        return sides_by(lambda r: str(r.number), target)

    def sample(self, query: Query, counts: Sequence[Series], scraped: float) -> Sample:
        """Wrong answers are bad."""
        return sum_sample(counts, scraped, lambda s: s.labels.get("result") == "wrong")

    def is_unscraped(self, reading: CounterReading, target: ScrapedTarget) -> bool:
        """Never known: a counter begins with the first label."""
        return False


FEEDBACK = Feedback()
