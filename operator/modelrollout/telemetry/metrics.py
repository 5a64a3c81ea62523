"""The operator's own metrics. Labels name namespaces at most; series of single objects are bounded
(``fleet``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from modelrollout.telemetry.fleet import NAMESPACE, FleetCollector

STAGE_BUCKETS = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)
PASS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class _Counts(Collector):
    """Counts at scrape time, so that no gauge of a phase that no object is in any more stays
    behind.
    """

    def __init__(
        self, name: str, meaning: str, labels: Sequence[str], count: Callable[[], Mapping[Any, int]]
    ) -> None:
        self._name, self._meaning, self._labels, self._count = name, meaning, labels, count

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(self._name, self._meaning, labels=self._labels)
        for labels, number in self._count().items():
            family.add_metric(labels, number)
        yield family


class Metrics:
    """One registry with everything; made once and handed to those who count."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._queue_depth = Gauge(
            "modelrollout_queue_depth", "Keys that wait for a worker.", registry=self.registry
        )
        self._queue_adds = Counter(
            "modelrollout_queue_adds", "Keys added to the queue.", registry=self.registry
        )
        self._queue_retries = Counter(
            "modelrollout_queue_retries", "Keys added again after a failure.", registry=self.registry
        )
        self._passes = Histogram(
            "modelrollout_reconcile_seconds",
            "Duration of a pass.",
            buckets=PASS_BUCKETS,
            registry=self.registry,
        )
        self._errors = Counter(
            "modelrollout_reconcile_errors",
            "Passes that failed, by kind of error.",
            ["kind"],
            registry=self.registry,
        )
        self._requests = Counter(
            "modelrollout_api_requests",
            "Requests to the API server; code is the HTTP status, timeout or error.",
            ["verb", "resource", "code"],
            registry=self.registry,
        )
        self._events = Counter(
            "modelrollout_events",
            "Events on ModelDeployments, such as ServerCrashed.",
            [NAMESPACE, "type", "reason"],
            registry=self.registry,
        )
        self._ended = Counter(
            "modelrollout_rollouts_ended",
            "Rollouts that ended, by outcome and reason.",
            [NAMESPACE, "outcome", "reason"],
            registry=self.registry,
        )
        self._verdicts = Counter(
            "modelrollout_step_verdicts",
            "Verdicts of steps.",
            [NAMESPACE, "verdict", "reason"],
            registry=self.registry,
        )
        self._verdict_seconds = Histogram(
            "modelrollout_step_verdict_seconds",
            "Time from the beginning of a step to its verdict.",
            ["verdict"],
            buckets=STAGE_BUCKETS,
            registry=self.registry,
        )
        self._stage_seconds = Histogram(
            "modelrollout_stage_seconds",
            "Time that a rollout spent in a stage.",
            ["stage"],
            buckets=STAGE_BUCKETS,
            registry=self.registry,
        )
        self._leader = Gauge(
            "modelrollout_leader",
            "1 while this process leads, or works one of several shards.",
            registry=self.registry,
        )

    def queue_added(self) -> None:
        """For ``WorkQueue(on_add=...)``."""
        self._queue_adds.inc()

    def queue_retried(self) -> None:
        """For ``WorkQueue(on_retry=...)``."""
        self._queue_retries.inc()

    def queue_depth(self, depth: Callable[[], int]) -> None:
        """Ask ``depth`` at each scrape."""
        self._queue_depth.set_function(depth)

    def reconciled(self, seconds: float) -> None:
        """A pass ended, well or not."""
        self._passes.observe(seconds)

    def reconcile_failed(self, error: BaseException) -> None:
        """A pass failed; the kind is the exception's class."""
        self._errors.labels(type(error).__name__).inc()

    def api_request(self, verb: str, resource: str, result: str) -> None:
        """For ``Kube.connect(on_request=...)``."""
        self._requests.labels(verb, resource, result).inc()

    def leading(self, is_leader: Callable[[], bool]) -> None:
        """Ask ``is_leader`` at each scrape."""
        self._leader.set_function(lambda: float(is_leader()))

    def shards(self, held: Callable[[], Mapping[Any, int]]) -> None:
        """Ask ``held`` at each scrape: (shard,) -> 1 where this process works it."""
        self.registry.register(
            _Counts("modelrollout_shard", "1 while this process works this shard.", ["shard"], held)
        )

    def rollouts(self, count: Callable[[], Mapping[Any, int]]) -> None:
        """Ask ``count`` at each scrape: (namespace, phase) -> ModelDeployments."""
        self.registry.register(
            _Counts(
                "modelrollout_rollouts",
                "ModelDeployments by namespace and phase.",
                [NAMESPACE, "phase"],
                count,
            )
        )

    def conditions(self, count: Callable[[], Mapping[tuple[str, str, str], int]]) -> None:
        """Ask ``count`` at each scrape: (namespace, type, status) -> ModelDeployments."""
        meaning = "ModelDeployments by namespace, type and status of their conditions."
        self.registry.register(
            _Counts("modelrollout_conditions", meaning, [NAMESPACE, "type", "status"], count)
        )

    def deployments(self, objects: Callable[[], Iterable[dict[str, Any]]], most: int) -> None:
        """Ask for the ModelDeployments at each scrape; ``most`` have series of their own."""
        self.registry.register(FleetCollector(objects, most))

    def rollout_ended(self, namespace: str, outcome: str, reason: str) -> None:
        """A rollout ended, well or not."""
        self._ended.labels(namespace, outcome, reason).inc()

    def step_judged(self, namespace: str, verdict: str, reason: str, seconds: float) -> None:
        """A step of a trial has its verdict, after so many seconds."""
        self._verdicts.labels(namespace, verdict, reason).inc()
        self._verdict_seconds.labels(verdict).observe(seconds)

    def stage_left(self, stage: str, seconds: float) -> None:
        """A rollout left a stage in which it spent so many seconds."""
        self._stage_seconds.labels(stage).observe(seconds)

    def event_posted(self, namespace: str, kind: str, reason: str) -> None:
        """The operator has posted an event; ``kind`` is Normal or Warning."""
        self._events.labels(namespace, kind, reason).inc()

    def unreadable(self, count: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        """Ask ``count`` at each scrape: (kind, namespace) -> objects that cannot be read."""
        words = "Objects that cannot be read and are left out; the log names them."
        self.registry.register(_Counts("modelrollout_objects_unreadable", words, ["kind", NAMESPACE], count))

    def pruned(self, count: Callable[[], Mapping[tuple[str], int]]) -> None:
        """Ask ``count`` at each scrape: (kind,) -> fields that the API server drops."""
        words = "Fields of our kinds that the API server drops, since its definition (CRD) is older."
        self.registry.register(_Counts("modelrollout_definition_pruned_fields", words, ["kind"], count))

    def doubted(self, count: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        """Ask ``count`` at each scrape: (source, reason) -> 1."""
        words = "Sources of evidence whose counters others can write; the log names them."
        self.registry.register(_Counts("modelrollout_evidence_doubted", words, ["source", "reason"], count))
