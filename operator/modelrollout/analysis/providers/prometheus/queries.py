"""The query for a metric: an evidence source's, or PromQL of a policy or a spec."""

from __future__ import annotations

from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.prometheus.custom_queries import custom_query
from modelrollout.analysis.providers.prometheus.sources import source_of
from modelrollout.analysis.providers.prometheus.sources.base import Query
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget
from modelrollout.api.v1alpha1 import BUILT_IN_METRICS, Metric
from modelrollout.reasons import Reason


def build(metric: Metric, target: ScrapedTarget, *, baseline: bool) -> Query | MeasurementProblem:
    """The query for this metric.

    ``baseline``: the first reading of a step, which has to know every process, also one whose last
    scrape failed.
    """
    if metric.query is not None:
        return custom_query(metric.name, metric.query, target)
    source = source_of(metric, target.profile)
    if source is None:
        return MeasurementProblem(
            Reason.NO_SOURCE,
            f"nothing measures {metric.name}: built in are {', '.join(BUILT_IN_METRICS)}; any other metric"
            " needs query: PROMQL",
        )
    return source.query(metric, target, baseline=baseline)
