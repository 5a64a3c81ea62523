"""The counters of the comparer of shadow traffic: pairs of answers that agree or not."""

from __future__ import annotations

from collections.abc import Sequence

from modelrollout.analysis.counters import Sample
from modelrollout.analysis.providers.prometheus.answers import Series
from modelrollout.analysis.providers.prometheus.promql import counters, pods_of
from modelrollout.analysis.providers.prometheus.sources.base import Query, Sides, sides_by, sum_sample
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget
from modelrollout.analysis.reading import CounterReading
from modelrollout.api import names
from modelrollout.api.v1alpha1 import Metric

_METRIC = "modelrollout_shadow_total"
_LABELS = ("name", "canary", "stable", "result")
_AGREEMENT = Metric(name="agreement")


class Comparer:
    """``EvidenceSource`` of the agreement of a shadow."""

    side_label = "canary"

    def query(self, metric: Metric, target: ScrapedTarget, *, baseline: bool) -> Query:
        """The pairs of the canary with stable."""
        stable = target.stable.number if target.stable else 0
        pair = f'name="{target.name}",canary="{target.canary.number}",stable="{stable}"'
        pods = pods_of(target, [names.shadow_name(target.canary.revision)])
        selector = f'{pair},result=~"agree|disagree|canary_error",{pods}'
        promql = counters(_METRIC, _LABELS, selector, self.side_label, ("result",), baseline)
        return Query(metric.name, promql, self)

    def sides(self, target: ScrapedTarget) -> Sides:
        """By the number of the revision."""
        return sides_by(lambda r: str(r.number), target)

    def sample(self, query: Query, counts: Sequence[Series], scraped: float) -> Sample:
        """What does not agree is bad."""
        return sum_sample(counts, scraped, lambda s: s.labels.get("result") != "agree")

    def is_unscraped(self, reading: CounterReading, target: ScrapedTarget) -> bool:
        """Never known: a counter begins with the first pair."""
        return False


COMPARER = Comparer()


def agreement_query(target: ScrapedTarget, *, baseline: bool) -> Query:
    """The query for a shadow, which has no metric in spec."""
    return COMPARER.query(_AGREEMENT, target, baseline=baseline)
