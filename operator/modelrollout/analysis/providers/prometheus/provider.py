"""Prometheus as a ``MetricsProvider``: queries out, readings in."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from modelrollout.analysis.measurement import Counts, Measurement, fold_in
from modelrollout.analysis.plausibility import FEW, more_labels_than_rows
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.base import CountedBy, Doubt
from modelrollout.analysis.providers.prometheus.answers import Answer
from modelrollout.analysis.providers.prometheus.client import PrometheusReader
from modelrollout.analysis.providers.prometheus.history import baseline_spread, times_before
from modelrollout.analysis.providers.prometheus.namespace_queries import PATIENCE_SECONDS
from modelrollout.analysis.providers.prometheus.parse import read
from modelrollout.analysis.providers.prometheus.promql import READING
from modelrollout.analysis.providers.prometheus.queries import build
from modelrollout.analysis.providers.prometheus.scrape_rights import doubt
from modelrollout.analysis.providers.prometheus.sources.base import Query
from modelrollout.analysis.providers.prometheus.sources.comparer import agreement_query
from modelrollout.analysis.providers.prometheus.sources.gateway import name_bounds
from modelrollout.analysis.providers.prometheus.sources.triton import rows_query
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget, ScrapeMatchers
from modelrollout.analysis.reading import CounterReading, Reading
from modelrollout.analysis.target import Target
from modelrollout.api.v1alpha1 import Counter, Metric
from modelrollout.config import OperatorConfig, PrometheusConfig
from modelrollout.reasons import Reason
from modelrollout.statistics.dispersion import Spread


class Reader(Protocol):
    """Runs queries; see ``PrometheusReader``."""

    async def query(self, queries: Sequence[str]) -> list[Answer | MeasurementProblem]: ...

    async def query_own(
        self, namespace: str, queries: Mapping[str, str]
    ) -> dict[str, Answer | MeasurementProblem]: ...

    async def history(self, query: str, times: Sequence[int]) -> dict[int, Answer] | MeasurementProblem: ...


class PrometheusProvider:
    """``MetricsProvider`` over one Prometheus. ``config``: None trusts every counter."""

    def __init__(self, reader: PrometheusReader, config: OperatorConfig | None = None) -> None:
        self._reader, self._config = reader, config
        self._matchers = ScrapeMatchers() if config is None else ScrapeMatchers.of(config)

    @classmethod
    def connect(
        cls, provider: PrometheusConfig, config: OperatorConfig | None, patience: float | None
    ) -> PrometheusProvider:
        """As of ``registry.connect``."""
        reader = PrometheusReader(provider, patience=PATIENCE_SECONDS if patience is None else patience)
        return cls(reader, config)

    async def read(
        self, target: Target, metrics: Sequence[Metric], counts: Mapping[str, Counts], now: float
    ) -> dict[str, Reading]:
        """One reading of each metric."""
        return await read_metrics(self._reader, self._scraped(target), metrics, counts, now)

    async def read_past(
        self, target: Target, metrics: Sequence[Metric], times: Sequence[int]
    ) -> dict[int, dict[str, Reading]] | MeasurementProblem:
        """Range queries, as Prometheus still has the samples."""
        return await read_past(self._reader, self._scraped(target), metrics, times)

    async def read_agreement(self, target: Target, before: Counter | None) -> Measurement:
        """The comparer's counters."""
        return await measure_agreement(self._reader, self._scraped(target), before)

    async def doubts(self, counted_by: Sequence[CountedBy]) -> dict[CountedBy, Doubt]:
        """By the targets and the configuration that this Prometheus has loaded."""
        if self._config is None:
            return {}
        scrape = await self._reader.scrape()
        return {c: d for c in counted_by if (d := doubt(c, scrape, self._config))}

    async def close(self) -> None:
        """End the reader's threads."""
        await self._reader.close()

    def _scraped(self, target: Target) -> ScrapedTarget:
        return ScrapedTarget.of(target, self._matchers)


async def read_metrics(
    reader: Reader,
    target: ScrapedTarget,
    metrics: Sequence[Metric],
    counters: Mapping[str, Counts],
    now: float,
) -> dict[str, Reading]:
    """A reading of every metric, as ``MetricsProvider.read`` says."""
    fresh = [
        m for m in metrics if any(name not in counters or counters[name].canary is None for name in _names(m))
    ]
    plans = {m.name: build(m, target, baseline=m in fresh) for m in metrics}
    queries = [p for p in plans.values() if isinstance(p, Query)]
    answers, own, usual, implausible = await asyncio.gather(
        _query_by_metric(reader, [q for q in queries if not q.own]),
        _query_own(reader, target, [q for q in queries if q.own]),
        baseline_before(reader, target, fresh, now),
        asyncio.gather(*(_label_problem(reader, target, m, counters) for m in metrics)),
    )
    answers |= own
    readings: dict[str, Reading] = {}
    for metric, problem in zip(metrics, implausible, strict=True):
        plan = plans[metric.name]
        if problem is not None:
            readings |= dict.fromkeys(_names(metric), problem)
            continue
        if isinstance(plan, MeasurementProblem):
            readings |= dict.fromkeys(_names(metric), plan)
            continue
        of_metric = read(plan, answers[metric.name], target)
        whole = of_metric[metric.name]
        if isinstance(whole, MeasurementProblem):
            if whole.reason == Reason.NOT_A_BUCKET_BOUND:
                of_metric = {metric.name: await _with_bounds(reader, plan, whole)}
        elif metric in fresh and isinstance(whole, CounterReading) and _is_unscraped(plan, whole, target):
            of_metric = {metric.name: await _unscraped(reader, plan)}
        readings |= of_metric
    return {name: _with_usual(reading, usual.get(name)) for name, reading in readings.items()}


async def read_past(
    reader: Reader, target: ScrapedTarget, metrics: Sequence[Metric], times: Sequence[int]
) -> dict[int, dict[str, Reading]] | MeasurementProblem:
    """The readings at these times, as ``MetricsProvider.read_past`` says."""
    readings: dict[int, dict[str, Reading]] = {t: {} for t in times}
    # of the last query: metrics that share one are neighbours in the default metrics
    asked, answers = "", dict[int, Answer]()
    for metric in metrics:
        plan = build(metric, target, baseline=False)
        if isinstance(plan, MeasurementProblem):
            for t in times:
                readings[t][metric.name] = plan
        else:
            if plan.promql != asked:
                past = await reader.history(plan.promql, times)
                if isinstance(past, MeasurementProblem):
                    return MeasurementProblem(past.reason, f"{metric.name}: {past.message}")
                asked, answers = plan.promql, past
            explained: MeasurementProblem | None = None
            for t, answer in answers.items():
                of_metric = read(plan, answer, target)
                whole = of_metric[metric.name]
                if isinstance(whole, MeasurementProblem) and whole.reason == Reason.NOT_A_BUCKET_BOUND:
                    explained = explained or await _with_bounds(reader, plan, whole)
                    of_metric = {metric.name: explained}
                readings[t] |= of_metric
    usual = await baseline_before(reader, target, metrics, times[0])
    first = readings[times[0]]
    first |= {name: _with_usual(first[name], spread) for name, spread in usual.items() if name in first}
    return readings


async def _with_bounds(reader: Reader, query: Query, problem: MeasurementProblem) -> MeasurementProblem:
    """The problem with the bounds that the histogram has, where they can be asked for."""
    if query.bounds is None:  # a query of the platform's own
        return problem
    [bounds] = await reader.query([query.bounds])
    return bounds if isinstance(bounds, MeasurementProblem) else name_bounds(problem, bounds, query)


async def _unscraped(reader: Reader, query: Query) -> MeasurementProblem:
    """Why there is no baseline: those that count were not scraped yet, or do not count this."""
    if query.absent is not None and query.why_absent is not None:
        [answer] = await reader.query([query.absent])
        if isinstance(answer, MeasurementProblem):
            return answer
        assert query.source is not None
        sides = sorted({s.labels.get(query.source.side_label, "") for s in answer.series})
        if sides:
            return MeasurementProblem(Reason.NO_SOURCE, query.why_absent(sides))
    return MeasurementProblem(
        Reason.NO_DATA,
        f"{query.metric}: Prometheus has not scraped those that count requests yet; counting begins when it"
        " has",
    )


def _is_unscraped(query: Query, reading: CounterReading, target: ScrapedTarget) -> bool:
    return query.source is not None and query.source.is_unscraped(reading, target)


def _with_usual(reading: Reading, usual: Spread[float] | None) -> Reading:
    return (
        replace(reading, usual=usual)
        if usual is not None and isinstance(reading, CounterReading)
        else reading
    )


async def _label_problem(
    reader: Reader, target: ScrapedTarget, metric: Metric, counters: Mapping[str, Counts]
) -> MeasurementProblem | None:
    """Whether more labels were counted than the servers answered rows. None where the servers are
    not scraped, or the number of their rows is unknown.
    """
    labels, per_row = (counters.get(metric.name) or Counts()).canary, target.matchers.labels_per_row
    if (
        metric.name != "accuracy"
        or metric.query is not None
        or labels is None
        or not per_row
        or not target.rows_seconds
        or labels.total <= FEW
    ):
        return None
    [answer] = await reader.query([rows_query(target)])
    if isinstance(answer, MeasurementProblem):
        return None
    rows = {s.labels.get(READING): s.value for s in answer.series}
    # a server that is not scraped yet may have answered most
    if len(rows) < 3 or rows["servers"] < target.pods:
        return None
    return more_labels_than_rows(labels, rows["count"], rows["scraped"], per_row)


async def _query_by_metric(
    reader: Reader, queries: Sequence[Query]
) -> dict[str, Answer | MeasurementProblem]:
    """Metrics that differ only in which answers are bad share a query."""
    promql = list(dict.fromkeys(q.promql for q in queries))
    answers = dict(zip(promql, await reader.query(promql) if promql else [], strict=True))
    return {q.metric: answers[q.promql] for q in queries}


async def _query_own(
    reader: Reader, target: ScrapedTarget, queries: Sequence[Query]
) -> dict[str, Answer | MeasurementProblem]:
    """An answer that comes late serves the next reading at the same weight, and at no other."""
    if not queries:
        return {}
    keys = {q.metric: f"{target.name}/{target.canary.revision}/{target.weight}/{q.metric}" for q in queries}
    answers = await reader.query_own(target.namespace, {keys[q.metric]: q.promql for q in queries})
    return {metric: answers[key] for metric, key in keys.items()}


async def baseline_before(
    reader: Reader, target: ScrapedTarget, metrics: Sequence[Metric], now: float
) -> dict[str, Spread[float]]:
    """How stable's bad share varied in the hour before ``now``, by reading; without those of which
    that is unknown: no stable, a slow provider.
    """
    if target.stable is None:
        return {}
    stable = replace(target, canary=target.stable, stable=None)
    plans = [build(m, stable, baseline=False) for m in metrics]
    queries = [p for p in plans if isinstance(p, Query) and p.source is not None and p.has_past]
    promql = list(dict.fromkeys(q.promql for q in queries))
    times = times_before(now, target.stable_since)
    if len(times) < 2:
        return {}
    past = await asyncio.gather(*(reader.history(text, times) for text in promql))
    answers = dict(zip(promql, past, strict=True))
    usual: dict[str, Spread[float]] = {}
    for query in queries:
        answer = answers[query.promql]
        if not isinstance(answer, MeasurementProblem):
            usual |= baseline_spread(query, answer, stable)
    return usual


async def measure_agreement(reader: Reader, target: ScrapedTarget, before: Counter | None) -> Measurement:
    """The pairs that the comparer has counted since the first reading, which sets the baseline."""
    query = agreement_query(target, baseline=before is None)
    [answer] = await reader.query([query.promql])
    return fold_in(read(query, answer, target), {query.metric: Counts(before)}, stable=False)[query.metric]


def _names(metric: Metric) -> list[str]:
    return [metric.name, *(f"{metric.name}/{part.name}" for part in metric.slices or ())]
