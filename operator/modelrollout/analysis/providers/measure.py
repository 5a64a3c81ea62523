"""One look at all metrics of a step: queries out, counts in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from modelrollout.analysis.counters import fold
from modelrollout.analysis.problem import Answer, Problem
from modelrollout.analysis.queries import Query, Target, agreement_query, bounds_query, build
from modelrollout.analysis.readings import name_bounds, read_counters, read_value
from modelrollout.api.v1alpha1 import Counter, Metric, MetricStatus


class Reader(Protocol):
    """A provider that takes instant queries; see ``PrometheusReader``."""

    async def ask(self, queries: Sequence[str]) -> list[Answer | Problem]: ...


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts of a metric so far in a step; None on both sides before its baseline."""

    canary: Counter | None = None
    stable: Counter | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """What ``judge`` takes: counts of both sides, or a value, or a problem together with the counts from before it."""

    canary: Counter | None = None
    stable: Counter | None = None
    value: float | None = None
    problem: Problem | None = None


def counts_of(metrics: Iterable[MetricStatus]) -> dict[str, Counts]:
    """The counts that a step's status holds, by metric."""
    return {m.name: Counts(m.canary, m.stable) for m in metrics}


async def measure(reader: Reader, target: Target, metrics: Sequence[Metric], counters: Mapping[str, Counts]) -> dict[str, Measurement]:
    """Measure every metric. Its first look sets the baseline and counts nothing; a step of another weight begins with no ``counters``."""
    plans = {m.name: build(m, target, baseline=_before(counters, m).canary is None) for m in metrics}
    queries = [p for p in plans.values() if isinstance(p, Query)]
    answers = dict(zip((q.metric for q in queries), await reader.ask([q.promql for q in queries]) if queries else [], strict=True))
    found: dict[str, Measurement] = {}
    for metric in metrics:
        plan, before = plans[metric.name], _before(counters, metric)
        if isinstance(plan, Problem):
            found[metric.name] = Measurement(before.canary, before.stable, problem=plan)
        else:
            found[metric.name] = await _one(reader, target, plan, answers[metric.name], before)
    return found


async def measure_agreement(reader: Reader, target: Target, before: Counter | None) -> Measurement:
    """The pairs that the comparer has counted since the first look, which sets the baseline."""
    query = agreement_query(target, baseline=before is None)
    [answer] = await reader.ask([query.promql])
    return await _one(reader, target, query, answer, Counts(before))


async def _one(reader: Reader, target: Target, query: Query, answer: Answer | Problem, before: Counts) -> Measurement:
    if isinstance(answer, Problem):
        return Measurement(before.canary, before.stable, problem=answer)
    if query.shape == "value":
        value = read_value(query, answer)
        return Measurement(problem=value) if isinstance(value, Problem) else Measurement(value=value)
    look = read_counters(query, answer, target)
    if isinstance(look, Problem):
        if look.kind == "NotABucketBound":
            [bounds] = await reader.ask([bounds_query(target)])
            look = bounds if isinstance(bounds, Problem) else name_bounds(look, bounds)
        return Measurement(before.canary, before.stable, problem=look)
    return Measurement(fold(before.canary, look.canary), fold(before.stable, look.stable) if target.stable else None)


def _before(counters: Mapping[str, Counts], metric: Metric) -> Counts:
    return counters.get(metric.name) or Counts()
