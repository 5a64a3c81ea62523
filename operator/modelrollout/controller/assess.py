"""Measure the present canary step with Prometheus and judge it. The I/O of analysis, called between observe and decide."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from modelrollout.analysis.agreement import judge_agreement
from modelrollout.analysis.judge import judge
from modelrollout.analysis.problem import Problem
from modelrollout.analysis.providers.measure import Measurement, counts_of, measure, measure_agreement
from modelrollout.analysis.providers.prometheus import PrometheusReader
from modelrollout.analysis.queries import Target
from modelrollout.analysis.verdict import FALSE_ALARM_BUDGET, alpha_of, combine, metrics_of
from modelrollout.api.config import OperatorConfig
from modelrollout.api.v1alpha1 import Metric, MetricStatus, RevisionRef
from modelrollout.rollout import steps as stepping
from modelrollout.rollout.facts import Assessment, Snapshot, since

_NO_PROMETHEUS = Problem("NoSource", "the operator's configuration names no such Prometheus: add it under prometheus, or promote by hand")


class PrometheusAssessor:
    """One reader for each Prometheus of the configuration."""

    def __init__(self, config: OperatorConfig, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._config, self._now = config, now
        self._readers: dict[str, PrometheusReader] = {}

    async def assess(self, s: Snapshot) -> Assessment | None:
        """The verdict on the present step from its first measurement until now; problems of a provider are verdicts too."""
        rollout = s.status.rollout
        if rollout is not None and rollout.stage == "Shadow":
            return await self._agreement(s)
        if s.spec is None or rollout is None or rollout.step is None or rollout.revision is None or rollout.number is None:
            return None
        step, analysis = rollout.step, s.spec.rollout.analysis
        metrics = metrics_of(analysis)
        target = Target(
            namespace=s.namespace,
            name=s.name,
            canary=RevisionRef(revision=rollout.revision, number=rollout.number),
            stable=s.status.stable,
            profile=self._config.gateway_metrics.profile if s.gateway else "none",
            window_seconds=max(10.0, since(step.observed_since or step.since, self._now())),
        )
        found: dict[str, Measurement] = {}
        for provider, asked in self._by_provider(metrics, analysis.prometheus, target).items():
            reader = self._reader(provider)
            if reader is None:
                found |= {m.name: Measurement(problem=_NO_PROMETHEUS) for m in asked}
            else:
                found |= await measure(reader, target, asked, counts_of(step.metrics))
        steps = s.spec.rollout.canary.steps
        onward = stepping.next_weight(steps, stepping.locate(steps, step))
        alpha = alpha_of(metrics)
        judged = [self._judge(m, found[m.name], step.weight, onward, alpha) for m in metrics]
        verdict = combine(judged)
        return Assessment(verdict.name, verdict.reason, verdict.message, tuple(judged))

    async def _agreement(self, s: Snapshot) -> Assessment | None:
        """The verdict on the shadow, from what the comparer counted."""
        rollout = s.status.rollout
        if s.spec is None or s.spec.rollout.shadow is None or rollout is None or rollout.shadow is None:
            return None
        assert rollout.revision is not None and rollout.number is not None
        canary = RevisionRef(revision=rollout.revision, number=rollout.number)
        target = Target(namespace=s.namespace, name=s.name, canary=canary, stable=s.status.stable, profile="none")
        before = rollout.shadow.metric.canary if rollout.shadow.metric else None
        reader = self._reader(s.spec.rollout.analysis.prometheus)
        if reader is None:
            found = Measurement(before, problem=_NO_PROMETHEUS)
        else:
            found = await measure_agreement(reader, target, before)
        judged = judge_agreement(s.spec.rollout.shadow, found.canary, found.problem, FALSE_ALARM_BUDGET)
        return Assessment(judged.verdict, judged.reason, judged.message, (judged,))

    @staticmethod
    def _judge(metric: Metric, found: Measurement, weight: int, onward: int, alpha: float) -> MetricStatus:
        return judge(metric, found.canary, found.stable, found.problem, found.value, weight, onward, alpha)

    def _by_provider(self, metrics: list[Metric], analysis: str | None, target: Target) -> dict[str | None, list[Metric]]:
        """The gateway's own counters come from the Prometheus that scrapes the gateway, unless the analysis names another."""
        gateway = self._config.gateway_metrics.provider if target.profile != "none" else None
        found: dict[str | None, list[Metric]] = {}
        for metric in metrics:
            found.setdefault(analysis or (gateway if metric.name in ("errors", "latency") else None), []).append(metric)
        return found

    async def close(self) -> None:
        """End the readers' threads."""
        for reader in self._readers.values():
            await reader.close()

    def _reader(self, name: str | None) -> PrometheusReader | None:
        provider = self._config.prometheus_for(name)
        if provider is None:
            return None
        if provider.name not in self._readers:
            self._readers[provider.name] = PrometheusReader(provider)
        return self._readers[provider.name]
