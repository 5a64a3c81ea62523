"""Measure the present step with Prometheus and judge it. The I/O of analysis, called between observe and decide."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from modelrollout.analysis.agreement import judge_agreement
from modelrollout.analysis.look import Counts, Measurement, Reading, counts_of
from modelrollout.analysis.pace import counted_seconds
from modelrollout.analysis.problem import Problem
from modelrollout.analysis.providers.measure import Reader, look, measure_agreement
from modelrollout.analysis.providers.prometheus import PrometheusReader
from modelrollout.analysis.queries import Target
from modelrollout.analysis.verdict import FALSE_ALARM_BUDGET, parts_of
from modelrollout.api.config import OperatorConfig, PrometheusProvider
from modelrollout.api.v1alpha1 import Counter, Metric, RevisionRef
from modelrollout.rollout.facts import Assessment, Snapshot, baseline
from modelrollout.rollout.judgement import judged, to_measure
from modelrollout.rollout.steps import with_traffic

MIN_WINDOW_SECONDS = 10.0  # of a custom query: at the first look nothing has been counted yet
MORE_SECONDS = 1.0  # a look may take this much longer than the provider's time-out: reading the bounds is a second question

_NO_PROMETHEUS = Problem("NoSource", "the operator's configuration names no such Prometheus: add it under prometheus, or promote by hand")


class PrometheusAssessor:
    """One reader for each Prometheus of the configuration. ``connect`` makes it."""

    def __init__(
        self,
        config: OperatorConfig,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        connect: Callable[[PrometheusProvider], PrometheusReader] = PrometheusReader,
    ) -> None:
        self._config, self._now, self._connect = config, now, connect
        self._readers: dict[str, PrometheusReader] = {}

    async def assess(self, s: Snapshot) -> Assessment | None:
        """The verdict on the present step from its first measurement until now; problems of a provider are verdicts too."""
        rollout = s.status.rollout
        if rollout is not None and rollout.stage == "Shadow":
            return await self._agreement(s)
        if s.spec is None or rollout is None or rollout.step is None or rollout.revision is None or rollout.number is None:
            return None
        now = self._now()
        metrics = to_measure(s, now)
        if isinstance(metrics, Assessment):
            return metrics
        step, analysis = with_traffic(rollout.step), s.spec.rollout.analysis
        target = Target(
            namespace=s.namespace,
            name=s.name,
            canary=RevisionRef(revision=rollout.revision, number=rollout.number),
            stable=None if rollout.stage == "Bake" else baseline(s),
            profile=self._config.gateway_metrics.profile if s.gateway else "none",
            window_seconds=max(MIN_WINDOW_SECONDS, counted_seconds(step, analysis, now)),
            weight=step.weight,
            promql=s.rules.promql,
            queries=s.rules.queries(self._config.queries),
        )
        asked = self._by_provider(metrics, s, target)
        return judged(s, metrics, await self._readings(asked, target, counts_of(step.metrics), now), now)

    async def _agreement(self, s: Snapshot) -> Assessment | None:
        """The verdict on the shadow, from what the comparer counted."""
        rollout = s.status.rollout
        if s.spec is None or s.spec.rollout.shadow is None or rollout is None or rollout.shadow is None:
            return None
        assert rollout.revision is not None and rollout.number is not None
        canary = RevisionRef(revision=rollout.revision, number=rollout.number)
        target = Target(namespace=s.namespace, name=s.name, canary=canary, stable=s.status.stable, profile="none")
        before = rollout.shadow.metric.canary if rollout.shadow.metric else None
        found = await self._pairs(s.spec.rollout.analysis.prometheus, target, before)
        verdict = judge_agreement(s.spec.rollout.shadow, found.canary, found.problem, FALSE_ALARM_BUDGET)
        return Assessment(verdict.verdict, verdict.reason, verdict.message, (verdict,))

    async def _pairs(self, name: str | None, target: Target, before: Counter | None) -> Measurement:
        provider = self._config.prometheus_for(name)
        if provider is None:
            return Measurement(before, problem=_NO_PROMETHEUS)
        try:
            async with asyncio.timeout(provider.timeout_seconds + MORE_SECONDS):
                return await measure_agreement(self._reader(provider), target, before)
        except TimeoutError:
            return Measurement(before, problem=_late(provider))

    async def _readings(
        self, asked: Mapping[str | None, list[Metric]], target: Target, counters: Mapping[str, Counts], now: datetime
    ) -> dict[str, Reading]:
        """From all providers side by side: together they take no longer than the slowest may."""
        looks = await asyncio.gather(*(self._from(provider, of_provider, target, counters, now) for provider, of_provider in asked.items()))
        return {name: reading for found in looks for name, reading in found.items()}

    async def _from(
        self, name: str | None, metrics: list[Metric], target: Target, counters: Mapping[str, Counts], now: datetime
    ) -> dict[str, Reading]:
        provider = self._config.prometheus_for(name)
        if provider is None:
            return _all(metrics, _NO_PROMETHEUS)
        try:
            async with asyncio.timeout(provider.timeout_seconds + MORE_SECONDS):
                return await look(self._reader(provider), target, metrics, counters, now.timestamp())
        except TimeoutError:
            return _all(metrics, _late(provider))

    def _by_provider(self, metrics: Sequence[Metric], s: Snapshot, target: Target) -> dict[str | None, list[Metric]]:
        """The gateway's own counters come from the Prometheus that scrapes the gateway, unless the analysis names another. Who answers what a policy
        demands is for policies to say, never for the spec that is judged."""
        assert s.spec is not None
        gateway = self._config.gateway_metrics.provider if target.profile != "none" else None
        mandatory = {m.name for m in s.mandatory}
        found: dict[str | None, list[Metric]] = {}
        for metric in metrics:
            named = s.rules.prometheus if metric.name in mandatory else s.spec.rollout.analysis.prometheus
            found.setdefault(named or (gateway if metric.name in ("errors", "latency") else None), []).append(metric)
        return found

    async def close(self) -> None:
        """End the readers' threads."""
        for reader in self._readers.values():
            await reader.close()

    def _reader(self, provider: PrometheusProvider) -> Reader:
        if provider.name not in self._readers:
            self._readers[provider.name] = self._connect(provider)
        return self._readers[provider.name]


def _late(provider: PrometheusProvider) -> Problem:
    return Problem("ProviderTimeout", f"Prometheus {provider.name} did not answer within {provider.timeout_seconds + MORE_SECONDS:g} s")


def _all(metrics: Sequence[Metric], problem: Problem) -> dict[str, Reading]:
    return {part.name: problem for part in parts_of(metrics)}
