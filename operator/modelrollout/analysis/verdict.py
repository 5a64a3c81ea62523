"""From the metrics of a step to one verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from modelrollout.api.v1alpha1 import Analysis, Metric, MetricStatus, VerdictName

FALSE_ALARM_BUDGET = 0.01  # of one step: the chance that something is proven which is not so, over all metrics and looks
_ORDER: tuple[VerdictName, ...] = ("Failed", "Error", "Inconclusive", "Successful")


class Verdict(NamedTuple):
    """The verdict on a step; ``reason`` is that of the first metric that decides, ``message`` names all that do."""

    name: VerdictName
    reason: str
    message: str


def combine(metrics: Sequence[MetricStatus]) -> Verdict:
    """Failed wins over Error over Inconclusive over Successful. Nothing measured is no evidence, so it is Inconclusive."""
    for name in _ORDER:
        deciding = [m for m in metrics if m.verdict == name]
        if deciding:
            return Verdict(name, deciding[0].reason, "; ".join(m.message for m in deciding))
    return Verdict("Inconclusive", "NoMetrics", "nothing is measured: leave spec.rollout.analysis.metrics out for the default, or name a metric")


def default_metrics(objective: str | None = None) -> list[Metric]:
    """Errors against stable, within half a point; latency likewise where an objective is known."""
    found = [Metric(name="errors", max_increase=0.005)]
    if objective is not None:
        found.append(Metric(name="latency", objective=objective, max_increase=0.005))
    return found


def metrics_of(analysis: Analysis) -> list[Metric]:
    """What is measured: the metrics of the spec, or the default when it says nothing."""
    return default_metrics() if analysis.metrics is None else list(analysis.metrics)


def alpha_of(metrics: Sequence[Metric]) -> float:
    """The share of the budget for each metric that is judged by counts; a query is a plain threshold and needs none."""
    return FALSE_ALARM_BUDGET / max(1, sum(1 for m in metrics if m.query is None))
