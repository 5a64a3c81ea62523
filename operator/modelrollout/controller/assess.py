"""Measure the present canary step with Prometheus and judge it. The I/O of analysis, called between observe and decide."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from modelrollout.analysis.judge import judge
from modelrollout.analysis.problem import Problem
from modelrollout.analysis.providers.measure import Measurement, counts_of, measure
from modelrollout.analysis.providers.prometheus import PrometheusReader
from modelrollout.analysis.queries import Target
from modelrollout.analysis.verdict import alpha_of, combine, metrics_of
from modelrollout.api.config import OperatorConfig
from modelrollout.api.v1alpha1 import Metric, MetricStatus, RevisionRef
from modelrollout.rollout import steps as stepping
from modelrollout.rollout.facts import Assessment, Snapshot, since


class PrometheusAssessor:
    """One reader for each Prometheus of the configuration."""

    def __init__(self, config: OperatorConfig, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._config, self._now = config, now
        self._readers: dict[str, PrometheusReader] = {}

    async def assess(self, s: Snapshot) -> Assessment | None:
        """The verdict on the present step from its first measurement until now; problems of a provider are verdicts too."""
        rollout = s.status.rollout
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
        reader = self._reader(analysis.prometheus)
        if reader is None:
            missing = Problem("NoSource", "the operator's configuration names no Prometheus: add one under prometheus, or promote by hand")
            found = {m.name: Measurement(problem=missing) for m in metrics}
        else:
            found = await measure(reader, target, metrics, counts_of(step.metrics))
        steps = s.spec.rollout.canary.steps
        onward = stepping.next_weight(steps, stepping.locate(steps, step))
        alpha = alpha_of(metrics)
        judged = [self._judge(m, found[m.name], step.weight, onward, alpha) for m in metrics]
        verdict = combine(judged)
        return Assessment(verdict.name, verdict.reason, verdict.message, tuple(judged))

    @staticmethod
    def _judge(metric: Metric, found: Measurement, weight: int, onward: int, alpha: float) -> MetricStatus:
        return judge(metric, found.canary, found.stable, found.problem, found.value, weight, onward, alpha)

    def _reader(self, name: str | None) -> PrometheusReader | None:
        provider = self._config.prometheus_for(name)
        if provider is None:
            return None
        if provider.name not in self._readers:
            self._readers[provider.name] = PrometheusReader(provider)
        return self._readers[provider.name]
