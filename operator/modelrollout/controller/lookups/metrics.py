"""Read the present step's metrics from their providers and judge it. The I/O of analysis, between
observe and decide.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

from modelrollout.analysis.eta import counted_seconds
from modelrollout.analysis.measurement import (
    Counts,
    Measurement,
    counted_by_servers,
    counts_of,
    without_stale,
)
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.base import COUNTED_BY, CountedBy, Doubt, MetricsProvider
from modelrollout.analysis.providers.registry import NO_PROVIDER, connect, doubts_without_provider
from modelrollout.analysis.reading import Reading
from modelrollout.analysis.shadow import judge_agreement
from modelrollout.analysis.target import ERRORS, TRITON, Target, counted_by, sources_of
from modelrollout.analysis.verdict import FALSE_ALARM_BUDGET, parts_of
from modelrollout.api.times import since
from modelrollout.api.v1alpha1 import REQUEST_METRICS, Counter, Metric, RevisionRef
from modelrollout.config import OperatorConfig, ProviderConfig
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout.assessment import assess, is_decoupled, metrics_due
from modelrollout.rollout.desired.traffic import positions
from modelrollout.rollout.snapshot import Assessment, Observed, baseline
from modelrollout.rollout.strategy import with_traffic

T = TypeVar("T")

log = logging.getLogger(__name__)

MIN_WINDOW_SECONDS = 10.0  # of a custom query: at the first look nothing has been counted yet
# labels for an earlier trial of the same version may come as late as this
LABELLED_WITHIN_SECONDS = 86_400.0
ROWS_SECONDS = 7 * 86_400.0  # rows of pods that are gone for longer do not count
# beyond the provider's time-out, for a second query: the bounds of a histogram
MORE_SECONDS = 1.0

_UNPROTECTED = Problem(
    Reason.UNPROTECTED,
    "whoever reaches the comparer can add requests to what the shadow is judged by, and no NetworkPolicy of"
    " the operator's lets only the gateway's proxies in: set networkPolicy.models in the chart"
    " (docs/how-to/network.md), or see that another policy does",
)


class MetricsAssessor:
    """One client for each provider of the configuration. ``connect`` makes it."""

    def __init__(
        self,
        config: OperatorConfig,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        connect: Callable[[ProviderConfig, OperatorConfig], MetricsProvider] = connect,
    ) -> None:
        self._config, self._now, self._connect = config, now, connect
        self.doubts: dict[CountedBy, Doubt] = {}  # as of the last ``verify``
        self._clients: dict[str, MetricsProvider] = {}

    async def verify(self) -> None:
        """Check that only those count who should, and log what has changed. No verdict waits for
        this.
        """
        gateway = self._config.gateway_metrics
        by_provider: dict[str | None, list[CountedBy]] = {}
        for source in COUNTED_BY:
            if source != "gateway" or gateway.profile != "none":
                provider = self._config.provider_for(gateway.provider if source == "gateway" else None)
                by_provider.setdefault(provider.name if provider else None, []).append(source)
        doubts: dict[CountedBy, Doubt] = {}
        for name, sources in by_provider.items():
            provider = self._config.provider_for(name) if name is not None else None
            doubts |= (
                await self._client(provider).doubts(sources)
                if provider is not None
                else doubts_without_provider(sources, self._config)
            )
        for source, doubt in doubts.items():
            if self.doubts.get(source) != doubt:
                log.warning(
                    "evidence of %s: %s: %s%s",
                    source,
                    doubt.reason,
                    doubt.message,
                    f": {doubt.targets}" if doubt.targets else "",
                )
        for source in self.doubts.keys() - doubts.keys():
            log.info("evidence of %s: only those count who should", source)
        self.doubts = doubts

    def _doubt(self, sources: Iterable[CountedBy]) -> Problem | None:
        doubt = next((d for s in sources if (d := self.doubts.get(s))), None)
        return Problem(doubt.reason, doubt.message) if doubt else None

    def _open_to_all(self, namespace: str) -> Problem | None:
        """What there is to say against a comparer that no policy of ours keeps strangers from."""
        policies = self._config.network_policies
        return None if policies is not None and policies.written_in(namespace) else _UNPROTECTED

    async def assess(self, s: Observed) -> Assessment | None:
        """The verdict on the present step from its first reading until now. A provider's problem is
        a verdict too.
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
        now, profile = self._now(), s.counting.profile
        metrics = metrics_due(s, now, profile)
        if isinstance(metrics, Assessment):
            return metrics
        step = with_traffic(rollout.step)
        sources = sources_of(metrics, profile)
        if s.counting.unknown is not None and any(
            m.name in REQUEST_METRICS and m.of != "FirstResponse" for m in metrics
        ):
            why = s.counting.unknown
            return Assessment("Error", why.reason, why.message, tuple(step.metrics))
        stable = None if rollout.stage == "Bake" else baseline(s)
        target = Target(
            namespace=s.namespace,
            name=s.name,
            canary=RevisionRef(revision=rollout.revision, number=rollout.number),
            stable=stable,
            stable_since=_counts_since(s, stable),
            profile=profile,
            window_seconds=max(MIN_WINDOW_SECONDS, counted_seconds(step, s.spec.rollout, now)),
            weight=step.weight,
            rows_seconds=_rows_seconds(s, now),
            pods=s.server(rollout.revision).replicas,
            routes=s.counting.routes,
            positions=positions(s),
            promql=s.rules.promql,
            queries=s.rules.queries(self._config.queries),
            decoupled=is_decoupled(s),
            triton_versions=s.triton_versions,
        )
        began = datetime.fromisoformat(step.observed_since).timestamp() if step.observed_since else 0.0
        readings, beside = await asyncio.gather(
            self._readings(
                self._by_provider(metrics, s, target), target, counts_of(step.metrics, sources), now, began
            ),
            self._beside(metrics, s, target, now, began),
        )
        assessment = assess(s, metrics, readings, now, profile=profile, beside=beside)
        return replace(assessment, doubt=self._doubt(_counted_by(metrics, target)))

    async def _beside(
        self, metrics: Sequence[Metric], s: Observed, target: Target, now: datetime, began: float
    ) -> Reading | None:
        """What the servers counted of the errors that a gateway counts; None where none does."""
        errors = [m for m in metrics if m.name == ERRORS and counted_by(m, target.profile) != TRITON]
        if not errors or s.status.rollout is None or s.status.rollout.step is None:
            return None
        step = with_traffic(s.status.rollout.step)
        counts = {ERRORS: counted_by_servers(step.metrics, sources_of(metrics, target.profile))}
        by_servers = replace(target, profile="none")
        read = await self._readings(self._by_provider(errors, s, by_servers), by_servers, counts, now, began)
        return read[ERRORS]

    async def _agreement(self, s: Observed) -> Assessment | None:
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
        )
        before = rollout.shadow.metric.canary if rollout.shadow.metric else None
        pairs = await self._pairs(s.spec.rollout.analysis.provider, target, before)
        verdict = judge_agreement(s.spec.rollout.shadow, pairs.canary, pairs.problem, FALSE_ALARM_BUDGET)
        return Assessment(
            verdict.verdict,
            verdict.reason,
            verdict.message,
            (verdict,),
            self._doubt(("pods",)) or self._open_to_all(s.namespace),
        )

    async def _pairs(self, name: str | None, target: Target, before: Counter | None) -> Measurement:
        measurement = await self._within_limit(name, lambda p: p.read_agreement(target, before))
        if isinstance(measurement, MeasurementProblem):
            return Measurement(before, problem=measurement)
        return measurement

    async def _readings(
        self,
        by_provider: Mapping[str | None, list[Metric]],
        target: Target,
        counts: Mapping[str, Counts],
        now: datetime,
        began: float,
    ) -> dict[str, Reading]:
        """From all providers concurrently: together they take no longer than the slowest may.
        ``began``: since when the step counts, Unix seconds.
        """

        async def read(name: str | None, metrics: list[Metric]) -> dict[str, Reading]:
            readings = await self._within_limit(
                name, lambda p: p.read(target, metrics, counts, now.timestamp())
            )
            if isinstance(readings, MeasurementProblem):
                return {part.name: readings for part in parts_of(metrics)}
            provider = self._config.provider_for(name)
            who = f"{provider.kind} {provider.name}" if provider is not None else "the provider"
            at = now.timestamp()
            return {n: without_stale(n, r, counts.get(n), began, at, who) for n, r in readings.items()}

        parts = await asyncio.gather(*(read(name, metrics) for name, metrics in by_provider.items()))
        return {name: reading for readings in parts for name, reading in readings.items()}

    async def _within_limit(
        self, name: str | None, read: Callable[[MetricsProvider], Awaitable[T]]
    ) -> T | MeasurementProblem:
        """Read from the provider of that name (None: the default one), within its time-out."""
        provider = self._config.provider_for(name)
        if provider is None:
            return NO_PROVIDER
        limit = provider.timeout_seconds + MORE_SECONDS
        try:
            async with asyncio.timeout(limit):
                return await read(self._client(provider))
        except TimeoutError:
            return MeasurementProblem(
                Reason.PROVIDER_TIMEOUT, f"{provider.kind} {provider.name} did not answer within {limit:g} s"
            )

    def _by_provider(
        self, metrics: Sequence[Metric], s: Observed, target: Target
    ) -> dict[str | None, list[Metric]]:
        """The gateway's own counters come from the provider that scrapes the gateway, unless the
        analysis names another. For metrics that a policy demands only policies choose the provider,
        never the spec under judgement.
        """
        assert s.spec is not None
        gateway = self._config.gateway_metrics.provider
        mandatory = {m.name for m in s.mandatory}
        by_provider: dict[str | None, list[Metric]] = {}
        for metric in metrics:
            name = s.rules.provider if metric.name in mandatory else s.spec.rollout.analysis.provider
            by = counted_by(metric, target.profile)
            name = name or (gateway if metric.name in REQUEST_METRICS and by != TRITON else None)
            by_provider.setdefault(name, []).append(metric)
        return by_provider

    async def close(self) -> None:
        """Close all clients."""
        for client in self._clients.values():
            await client.close()

    def _client(self, provider: ProviderConfig) -> MetricsProvider:
        if provider.name not in self._clients:
            self._clients[provider.name] = self._connect(provider, self._config)
        return self._clients[provider.name]


def _counts_since(s: Observed, stable: RevisionRef | None) -> float:
    """Unix seconds since when the version has had servers; 0: unknown."""
    revision = s.revision(stable.revision) if stable else None
    started = revision.status.started if revision else None
    return datetime.fromisoformat(started).timestamp() if started else 0.0


def _rows_seconds(s: Observed, now: datetime) -> float:
    """How long ago the canary may have answered rows that are labelled now; 0 for a version that
    was stable before, which may be long ago.
    """
    rollout = s.status.rollout
    revision = s.revision(rollout.revision) if rollout else None
    if rollout is None or revision is None or revision.status.retired is not None:
        return 0.0
    return min(max(LABELLED_WITHIN_SECONDS, since(rollout.started, now)), ROWS_SECONDS)


def _counted_by(metrics: Sequence[Metric], target: Target) -> list[CountedBy]:
    """Who counts for these metrics."""
    counting = set(sources_of(metrics, target.profile).values()) - {None}
    sources: list[CountedBy] = []
    if counting - {TRITON, "feedback"}:
        sources.append("gateway")
    if TRITON in counting:
        sources.append("pods")
    if "feedback" in counting:
        sources.append("feedback")
    return sources
