"""Measure the present step with Prometheus and judge it. The I/O of analysis, called between
observe and decide.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from modelrollout.analysis.eta import counted_seconds
from modelrollout.analysis.measurement import Counts, Measurement, Reading, counts_of
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.prometheus.client import PrometheusReader
from modelrollout.analysis.providers.prometheus.promql import Sources, Target
from modelrollout.analysis.providers.prometheus.provider import measure_agreement, read_metrics
from modelrollout.analysis.providers.prometheus.scrape_rights import SOURCES, Doubt, Source, doubt
from modelrollout.analysis.shadow import judge_agreement
from modelrollout.analysis.verdict import FALSE_ALARM_BUDGET, parts_of
from modelrollout.api.selectors import promql
from modelrollout.api.v1alpha1 import Counter, Metric, RevisionRef
from modelrollout.config import OperatorConfig, PrometheusConfig
from modelrollout.rollout import snapshot
from modelrollout.rollout.assessment import assess as judged
from modelrollout.rollout.assessment import metrics_due
from modelrollout.rollout.snapshot import Assessment, Snapshot, baseline
from modelrollout.rollout.strategy import with_traffic

log = logging.getLogger(__name__)

MIN_WINDOW_SECONDS = 10.0  # of a custom query: at the first look nothing has been counted yet
# of a version that is tried again, labels for its former try come as late as this
LABELLED_WITHIN_SECONDS = 86_400.0
ROWS_SECONDS = 7 * 86_400.0  # pods that are gone for longer are forgotten
# a look may take this much longer than the provider's time-out: reading the bounds is a second
# question
MORE_SECONDS = 1.0

_NO_PROMETHEUS = MeasurementProblem(
    "NoSource",
    "the operator's configuration names no such Prometheus: add it under prometheus, or promote by hand",
)
_UNPROTECTED = snapshot.Problem(
    "Unprotected",
    "whoever reaches the comparer can add requests to what the shadow is judged by, and no NetworkPolicy of"
    " the operator's lets only the gateway's proxies in: set networkPolicy.models in the chart"
    " (docs/how-to/network.md), or see that another policy does",
)


class MetricsAssessor:
    """One reader for each Prometheus of the configuration. ``connect`` makes it."""

    def __init__(
        self,
        config: OperatorConfig,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        connect: Callable[[PrometheusConfig], PrometheusReader] = PrometheusReader,
    ) -> None:
        self._config, self._now, self._connect = config, now, connect
        self._sources = Sources(
            promql(config.gateway_metrics.selector),
            promql(config.feedback_metrics.selector),
            config.scrape.namespace_label,
            config.scrape.pod_label,
            config.feedback_metrics.labels_per_row,
        )
        self.doubts: dict[Source, Doubt] = {}  # what the last look at who counts has found
        self._readers: dict[str, PrometheusReader] = {}

    async def verify(self) -> None:
        """See whether those count who should; what has changed goes to the log. Nobody's verdict
        waits for it.
        """
        gateway = self._config.gateway_metrics
        wanted = [s for s in SOURCES if s != "gateway" or gateway.profile != "none"]
        providers = {
            s: self._config.prometheus_for(gateway.provider if s == "gateway" else None) for s in wanted
        }
        scrapes = {p.name: await self._reader(p).scrape() for p in providers.values() if p is not None}
        doubts = {
            s: d
            for s, p in providers.items()
            if (d := doubt(s, scrapes[p.name] if p else None, self._config))
        }
        for source, d in doubts.items():
            if self.doubts.get(source) != d:
                log.warning(
                    "evidence of %s: %s: %s%s",
                    source,
                    d.reason,
                    d.message,
                    f": {d.targets}" if d.targets else "",
                )
        for source in self.doubts.keys() - doubts.keys():
            log.info("evidence of %s: only those count who should", source)
        self.doubts = doubts

    def _doubt(self, sources: Iterable[Source]) -> snapshot.Problem | None:
        told = next((d for s in sources if (d := self.doubts.get(s))), None)
        return snapshot.Problem(told.reason, told.message) if told else None

    def _open_to_all(self, namespace: str) -> snapshot.Problem | None:
        """What there is to say against a comparer that no policy of ours keeps strangers from."""
        policies = self._config.network_policies
        return None if policies is not None and policies.written_in(namespace) else _UNPROTECTED

    async def assess(self, s: Snapshot) -> Assessment | None:
        """The verdict on the present step from its first measurement until now; problems of a
        provider are verdicts too.
        """
        rollout = s.status.rollout
        if rollout is not None and rollout.stage == "Shadow":
            return await self._agreement(s)
        if (
            s.spec is None
            or rollout is None
            or rollout.step is None
            or rollout.revision is None
            or rollout.number is None
        ):
            return None
        now = self._now()
        metrics = metrics_due(s, now)
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
            sources=self._sources,
            rows_seconds=_rows_seconds(s, now),
            pods=s.server(rollout.revision).replicas,
            promql=s.rules.promql,
            queries=s.rules.queries(self._config.queries),
        )
        readings = await self._readings(
            self._by_provider(metrics, s, target), target, counts_of(step.metrics), now
        )
        assessment = judged(s, metrics, readings, now, split=target.profile == "traefik")
        return replace(assessment, doubt=self._doubt(_sources(metrics, target)))

    async def _agreement(self, s: Snapshot) -> Assessment | None:
        """The verdict on the shadow, from what the comparer counted."""
        rollout = s.status.rollout
        if s.spec is None or s.spec.rollout.shadow is None or rollout is None or rollout.shadow is None:
            return None
        assert rollout.revision is not None and rollout.number is not None
        canary = RevisionRef(revision=rollout.revision, number=rollout.number)
        target = Target(
            namespace=s.namespace,
            name=s.name,
            canary=canary,
            stable=s.status.stable,
            profile="none",
            sources=self._sources,
        )
        before = rollout.shadow.metric.canary if rollout.shadow.metric else None
        pairs = await self._pairs(s.spec.rollout.analysis.prometheus, target, before)
        verdict = judge_agreement(s.spec.rollout.shadow, pairs.canary, pairs.problem, FALSE_ALARM_BUDGET)
        return Assessment(
            verdict.verdict,
            verdict.reason,
            verdict.message,
            (verdict,),
            self._doubt(("pods",)) or self._open_to_all(s.namespace),
        )

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
        self,
        asked: Mapping[str | None, list[Metric]],
        target: Target,
        counters: Mapping[str, Counts],
        now: datetime,
    ) -> dict[str, Reading]:
        """From all providers side by side: together they take no longer than the slowest may."""
        looks = await asyncio.gather(
            *(
                self._from(provider, of_provider, target, counters, now)
                for provider, of_provider in asked.items()
            )
        )
        return {name: reading for found in looks for name, reading in found.items()}

    async def _from(
        self,
        name: str | None,
        metrics: list[Metric],
        target: Target,
        counters: Mapping[str, Counts],
        now: datetime,
    ) -> dict[str, Reading]:
        provider = self._config.prometheus_for(name)
        if provider is None:
            return _all(metrics, _NO_PROMETHEUS)
        try:
            async with asyncio.timeout(provider.timeout_seconds + MORE_SECONDS):
                return await read_metrics(self._reader(provider), target, metrics, counters, now.timestamp())
        except TimeoutError:
            return _all(metrics, _late(provider))

    def _by_provider(
        self, metrics: Sequence[Metric], s: Snapshot, target: Target
    ) -> dict[str | None, list[Metric]]:
        """The gateway's own counters come from the Prometheus that scrapes the gateway, unless the
        analysis names another. Who answers what a policy demands is for policies to say, never for
        the spec that is judged.
        """
        assert s.spec is not None
        gateway = self._config.gateway_metrics.provider if target.profile != "none" else None
        mandatory = {m.name for m in s.mandatory}
        by_provider: dict[str | None, list[Metric]] = {}
        for metric in metrics:
            named = s.rules.prometheus if metric.name in mandatory else s.spec.rollout.analysis.prometheus
            by_provider.setdefault(
                named or (gateway if metric.name in ("errors", "latency") else None), []
            ).append(metric)
        return by_provider

    async def close(self) -> None:
        """End the readers' threads."""
        for reader in self._readers.values():
            await reader.close()

    def _reader(self, provider: PrometheusConfig) -> PrometheusReader:
        if provider.name not in self._readers:
            self._readers[provider.name] = self._connect(provider)
        return self._readers[provider.name]


def _rows_seconds(s: Snapshot, now: datetime) -> float:
    """How far back the version on trial has answered what may be labelled now; 0 for one that has
    been stable before, which may be long ago.
    """
    rollout = s.status.rollout
    revision = s.revision(rollout.revision) if rollout else None
    if rollout is None or revision is None or revision.status.retired is not None:
        return 0.0
    return min(max(LABELLED_WITHIN_SECONDS, snapshot.since(rollout.started, now)), ROWS_SECONDS)


def _sources(metrics: Sequence[Metric], target: Target) -> list[Source]:
    """Who counts for these metrics."""
    names = {m.name for m in metrics if m.query is None}
    by_gateway: list[Source] = (
        ["gateway" if target.profile != "none" else "pods"] if names & {"errors", "latency"} else []
    )
    return by_gateway + (["feedback"] if "accuracy" in names else [])


def _late(provider: PrometheusConfig) -> MeasurementProblem:
    return MeasurementProblem(
        "ProviderTimeout",
        f"Prometheus {provider.name} did not answer within {provider.timeout_seconds + MORE_SECONDS:g} s",
    )


def _all(metrics: Sequence[Metric], problem: MeasurementProblem) -> dict[str, Reading]:
    return {part.name: problem for part in parts_of(metrics)}
