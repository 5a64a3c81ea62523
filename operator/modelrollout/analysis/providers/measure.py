"""One look at all metrics of a step: queries out, readings in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from modelrollout.analysis.look import Counts, Measurement, Reading, fold_in
from modelrollout.analysis.problem import Answer, Problem
from modelrollout.analysis.queries import Query, Target, agreement_query, bounds_query, build
from modelrollout.analysis.readings import name_bounds, read
from modelrollout.api.v1alpha1 import Counter, Metric


class Reader(Protocol):
    """A provider that takes instant queries; see ``PrometheusReader``."""

    async def ask(self, queries: Sequence[str]) -> list[Answer | Problem]: ...


async def look(reader: Reader, target: Target, metrics: Sequence[Metric], counters: Mapping[str, Counts]) -> dict[str, Reading]:
    """A reading of every metric, and of each slice as ``METRIC/SLICE``. What has no counts yet is read for its baseline."""
    plans = {m.name: build(m, target, baseline=any(name not in counters or counters[name].canary is None for name in _names(m))) for m in metrics}
    queries = [p for p in plans.values() if isinstance(p, Query)]
    answers = dict(zip((q.metric for q in queries), await reader.ask([q.promql for q in queries]) if queries else [], strict=True))
    found: dict[str, Reading] = {}
    for metric in metrics:
        plan = plans[metric.name]
        readings = dict.fromkeys(_names(metric), plan) if isinstance(plan, Problem) else read(plan, answers[metric.name], target)
        problem = readings[metric.name]
        if isinstance(problem, Problem) and problem.kind == "NotABucketBound":
            [bounds] = await reader.ask([bounds_query(target)])
            readings = {metric.name: bounds if isinstance(bounds, Problem) else name_bounds(problem, bounds)}
        found |= readings
    return found


async def measure(reader: Reader, target: Target, metrics: Sequence[Metric], counters: Mapping[str, Counts]) -> dict[str, Measurement]:
    """Measure every metric. Its first look sets the baseline and counts nothing; a step of another weight begins with no ``counters``."""
    return fold_in(await look(reader, target, metrics, counters), counters, stable=target.stable is not None)


async def measure_agreement(reader: Reader, target: Target, before: Counter | None) -> Measurement:
    """The pairs that the comparer has counted since the first look, which sets the baseline."""
    query = agreement_query(target, baseline=before is None)
    [answer] = await reader.ask([query.promql])
    return fold_in(read(query, answer, target), {query.metric: Counts(before)}, stable=False)[query.metric]


def _names(metric: Metric) -> list[str]:
    return [metric.name, *(f"{metric.name}/{part.name}" for part in metric.slices or ())]
