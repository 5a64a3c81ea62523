"""One look at all metrics of a step: queries out, readings in."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from modelrollout.analysis.measurement import Counts, Measurement, Reading, fold_in
from modelrollout.analysis.plausibility import FEW, more_labels_than_rows
from modelrollout.analysis.problem import Answer, MeasurementProblem
from modelrollout.analysis.providers.prometheus.history import baseline_spread, times_before
from modelrollout.analysis.providers.prometheus.parse import CounterReading, name_bounds, read
from modelrollout.analysis.providers.prometheus.promql import (
    READING,
    Query,
    Target,
    agreement_query,
    bounds_query,
    build,
    rows_query,
)
from modelrollout.api.v1alpha1 import Counter, Metric
from modelrollout.statistics.dispersion import Spread


class Reader(Protocol):
    """A provider that takes instant queries; see ``PrometheusReader``."""

    async def ask(self, queries: Sequence[str]) -> list[Answer | MeasurementProblem]: ...

    async def ask_own(
        self, namespace: str, queries: Mapping[str, str]
    ) -> dict[str, Answer | MeasurementProblem]: ...

    async def history(self, query: str, times: Sequence[int]) -> dict[int, Answer] | MeasurementProblem: ...


async def read_metrics(
    reader: Reader, target: Target, metrics: Sequence[Metric], counters: Mapping[str, Counts], now: float
) -> dict[str, Reading]:
    """A reading of every metric, and of each slice as ``METRIC/SLICE``. What has no counts yet is
    read for its baseline, with what stable has shown in the hour before ``now`` (Unix seconds).
    """
    fresh = [
        m for m in metrics if any(name not in counters or counters[name].canary is None for name in _names(m))
    ]
    plans = {m.name: build(m, target, baseline=m in fresh) for m in metrics}
    queries = [p for p in plans.values() if isinstance(p, Query)]
    answers, own, before, implausible = await asyncio.gather(
        _ask(reader, [q for q in queries if not q.own]),
        _ask_own(reader, target, [q for q in queries if q.own]),
        asyncio.gather(*(baseline_before(reader, target, m, now) for m in fresh)),
        asyncio.gather(*(_labels(reader, target, m, counters) for m in metrics)),
    )
    answers |= own
    known = {name: spread for found in before for name, spread in found.items()}
    found: dict[str, Reading] = {}
    for metric, wrong in zip(metrics, implausible, strict=True):
        plan = plans[metric.name]
        readings = (
            dict.fromkeys(_names(metric), plan)
            if isinstance(plan, MeasurementProblem)
            else read(plan, answers[metric.name], target)
        )
        if wrong is not None:
            readings = dict.fromkeys(_names(metric), wrong)
        of_metric = readings[metric.name]
        if isinstance(of_metric, MeasurementProblem) and of_metric.reason == "NotABucketBound":
            [bounds] = await reader.ask([bounds_query(target)])
            readings = {
                metric.name: bounds
                if isinstance(bounds, MeasurementProblem)
                else name_bounds(of_metric, bounds)
            }
        elif (
            metric in fresh
            and isinstance(plan, Query)
            and isinstance(of_metric, CounterReading)
            and _is_no_baseline(plan, of_metric, target)
        ):
            text = (
                f"{metric.name}: Prometheus has not scraped those that count requests yet; counting begins"
                " when it has"
            )
            readings = {metric.name: MeasurementProblem("NoData", text)}
        found |= readings
    return {
        name: replace(r, usual=known[name]) if isinstance(r, CounterReading) and name in known else r
        for name, r in found.items()
    }


async def _labels(
    reader: Reader, target: Target, metric: Metric, counters: Mapping[str, Counts]
) -> MeasurementProblem | None:
    """What is wrong with the labels that were counted before; nothing where servers are not
    scraped, or nobody knows all that they have answered.
    """
    labels, per_row = (counters.get(metric.name) or Counts()).canary, target.sources.labels_per_row
    if (
        metric.name != "accuracy"
        or metric.query is not None
        or labels is None
        or not per_row
        or not target.rows_seconds
        or labels.total <= FEW
    ):
        return None
    [answer] = await reader.ask([rows_query(target)])
    if isinstance(answer, MeasurementProblem):
        return None
    found = {s.labels.get(READING): s.value for s in answer.series}
    # one that is not scraped yet may have answered most
    if len(found) < 3 or found["servers"] < target.pods:
        return None
    return more_labels_than_rows(labels, found["count"], found["scraped"], per_row)


def _is_no_baseline(query: Query, look: CounterReading, target: Target) -> bool:
    """Whether those that count requests have not been scraped yet, by a Prometheus that has lost
    its data, or that has not come to new pods.

    What it scrapes next has counted before: weeks of stable, or the golden inputs that went to the
    pods of the canary, and none of that belongs to the step. A gateway has no counter of a canary
    before its first request. Labels of answers: their counter begins with the first.
    """
    canary, stable = bool(look.canary.processes), bool(look.stable.processes)
    if query.shape == "outcomes":  # Triton's own: pods of both sides run
        return not canary or (target.stable is not None and not stable)
    return query.shape in ("codes", "buckets") and not canary and not stable


async def _ask(reader: Reader, queries: Sequence[Query]) -> dict[str, Answer | MeasurementProblem]:
    asked = await reader.ask([q.promql for q in queries]) if queries else []
    return dict(zip((q.metric for q in queries), asked, strict=True))


async def _ask_own(
    reader: Reader, target: Target, queries: Sequence[Query]
) -> dict[str, Answer | MeasurementProblem]:
    """An answer that comes late is for the next look at the same weight, and at no other."""
    if not queries:
        return {}
    keys = {q.metric: f"{target.name}/{target.canary.revision}/{target.weight}/{q.metric}" for q in queries}
    answers = await reader.ask_own(target.namespace, {keys[q.metric]: q.promql for q in queries})
    return {metric: answers[key] for metric, key in keys.items()}


async def baseline_before(
    reader: Reader, target: Target, metric: Metric, now: float
) -> dict[str, Spread[float]]:
    """How stable's bad share has varied in the hour before ``now``, by reading; nothing where
    nobody can tell: a provider that is slow, no stable.
    """
    if target.stable is None:
        return {}
    stable = replace(target, canary=target.stable, stable=None)
    query = build(metric, stable, baseline=False)
    if isinstance(query, MeasurementProblem) or query.shape == "value":
        return {}
    past = await reader.history(query.promql, times_before(now))
    return {} if isinstance(past, MeasurementProblem) else baseline_spread(query, past, stable)


async def measure_agreement(reader: Reader, target: Target, before: Counter | None) -> Measurement:
    """The pairs that the comparer has counted since the first look, which sets the baseline."""
    query = agreement_query(target, baseline=before is None)
    [answer] = await reader.ask([query.promql])
    return fold_in(read(query, answer, target), {query.metric: Counts(before)}, stable=False)[query.metric]


def _names(metric: Metric) -> list[str]:
    return [metric.name, *(f"{metric.name}/{part.name}" for part in metric.slices or ())]
