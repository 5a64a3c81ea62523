"""The operator as a process: watch, queue, leader election, workers, resync, health. ``modelrollout
run`` calls ``run``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from modelrollout.analysis.providers.registry import check_config
from modelrollout.api import names
from modelrollout.config import OperatorConfig, load_config
from modelrollout.controller import watch
from modelrollout.controller.intake import OURS, Intake
from modelrollout.controller.lookups.definitions import OUTDATED_SECONDS
from modelrollout.controller.lookups.gateways import POLL_SECONDS
from modelrollout.controller.lookups.lookups import Lookups
from modelrollout.controller.lookups.metrics import MetricsAssessor
from modelrollout.controller.observe.observation import Observation
from modelrollout.controller.reconciler import Reconciler
from modelrollout.controller.shards import Shards
from modelrollout.controller.unreadable import UnreadableObjects
from modelrollout.controller.workqueue import WorkQueue, run_workers
from modelrollout.kube.cache import Key, ObjectCache
from modelrollout.kube.client import Kube
from modelrollout.kube.errors import Conflict, Forbidden, KubeError
from modelrollout.kube.events import Events
from modelrollout.kube.kinds import (
    GATEWAY,
    GATEWAY_CLASS,
    MODEL_DEPLOYMENT,
    NETWORK_POLICY,
    ROLLOUT_POLICY,
    WATCHED,
    Resource,
    namespaces_to_list,
)
from modelrollout.kube.leader_election import identity as new_identity
from modelrollout.kube.objects import Object
from modelrollout.reasons import Reason
from modelrollout.rollout.milestones import Milestones
from modelrollout.rollout.plan import Event
from modelrollout.telemetry import logs
from modelrollout.telemetry.health import HealthServer, check_age, check_flag
from modelrollout.telemetry.metrics import Metrics
from modelrollout.traffic.registry import ROUTES

log = logging.getLogger(__name__)

COUNTED_CONDITIONS = (
    "Ready",
    "Available",
    "Reconciling",
    "Stalled",
    "ServersHealthy",
    "Hardened",
    "Isolated",
    "Restarted",
    "Patched",
    "EvidenceVerified",
    "CountedByGateway",
    "DrainCurrent",
    "DefinitionCurrent",
    "Drained",
)
TRUTHS = ("True", "False", "Unknown")
MOST_CONDITIONS = 32  # of an object that are counted: it has some fifteen
UNWATCHED = (
    "NetworkPolicies are not watched; grant get, list and watch and restart the operator, or set"
    " networkPolicy.models.mode to Ignore"
)
# what the operator may do without; each is watched where it may be
DISPENSABLE = {
    NETWORK_POLICY: UNWATCHED,
    GATEWAY: f"Gateways are not watched, but read by name every {POLL_SECONDS:.0f} s; grant list and watch",
    GATEWAY_CLASS: (
        f"GatewayClasses are not watched, but read by name every {POLL_SECONDS:.0f} s; grant list and watch"
    ),
}
# a worker without progress for this long fails the liveness probe
STUCK_SECONDS = 120.0
SILENT_SECONDS = 60.0
# a leader that has just started has just listed everything, for its watches
JUST_SECONDS = 60.0
# between checks of who may count: often after the start, then seldom
SOURCES_SECONDS = (15.0, 300.0)


class Operator:
    """The parts of one operator process, wired together."""

    def __init__(
        self, config: OperatorConfig, kube: Kube, metrics: Metrics, lease_namespace: str, identity: str
    ) -> None:
        self._config, self._kube, self._metrics, self._identity = config, kube, metrics, identity
        self._queue: WorkQueue[Key] = WorkQueue(
            on_add=metrics.queue_added, on_retry=metrics.queue_retried, lane=lambda key: key[0]
        )
        self._queue.pause()  # only who leads works it
        self._synced = False
        self._shards = Shards(
            kube,
            lease_namespace,
            identity,
            config.shards,
            started=self._lead,
            working=self._work_shard,
            stopped=self._follow,
            prepared=self._read_everything,
        )
        self._reading = asyncio.Lock()
        self._read_since = float("-inf")  # when the last complete look at everything began
        self._events = Events(kube, instance=identity)
        self._unread = UnreadableObjects(self._events, self._shards.may_write)
        kube.on_unread = self._unread.note
        self._cache = ObjectCache(self._unread.note)
        self._assessor = MetricsAssessor(config)
        self._lookups = Lookups(
            kube,
            self._cache,
            config,
            lease_namespace,
            self._wake_after,
            lambda: datetime.now(UTC),
            self._shards.may_write,
        )
        self._reconciler = Reconciler(
            kube=kube,
            cache=self._cache,
            config=config,
            assessor=self._assessor,
            reporter=self,
            lookups=self._lookups,
            now=lambda: datetime.now(UTC),
            may_write=self._shards.may_write,
            wake=self._wake_after,
            leading_since=self._shards.since,
        )
        self._resources: tuple[Resource, ...] = ()
        metrics.queue_depth(lambda: len(self._queue))
        metrics.leading(self._shards.works_any)
        metrics.shards(self._shards.held)
        metrics.rollouts(self._phases)
        metrics.conditions(self._conditions)
        metrics.deployments(lambda: self._cache.all(MODEL_DEPLOYMENT), config.metrics_objects)
        metrics.unreadable(self._unread.count)
        metrics.pruned(self._lookups.definitions.count)
        metrics.doubted(lambda: {(source, d.reason): 1 for source, d in self._assessor.doubts.items()})

    async def run(self, kubeconfig: str | None, context: str | None, health_port: int) -> None:
        """Until a signal comes; raises when the watch fails for good."""
        watched = await self._choose_kinds()
        kinds = self._resources
        if ROLLOUT_POLICY not in kinds:
            log.warning(
                "no RolloutPolicy on this cluster: nothing is limited; install its definition (crds/) and"
                " restart the operator"
            )
        if missing := [r.kind for r in ROUTES if r not in kinds]:
            log.warning(
                "no %s on this cluster: where routes are missing, canaries are weighted by replicas; install"
                " their definitions and restart the operator",
                ", ".join(missing),
            )
        health = HealthServer(
            self._metrics.registry,
            alive={"workers": check_age(self._queue.stalled_for, STUCK_SECONDS, "no worker moved")},
            ready={
                "watch": check_flag(lambda: self._synced, "the watch has not started"),
                "api": check_age(self._kube.silent_for, SILENT_SECONDS, "the API server is silent"),
            },
        )
        port = await health.start("0.0.0.0", health_port)
        log.info("health and metrics on port %d", port)
        self._intake = Intake(self._kube, self._cache, self._unread, watched, self._wake)
        registry = watch.registry(self._intake, watched, kubeconfig, context)
        ready = asyncio.Event()
        watching = asyncio.create_task(watch.run(registry, self._config.namespaces, ready, self._identity))
        gateways = self._lookups.gateways
        loops: tuple[tuple[str, Callable[[], float], Callable[[], Awaitable[None]]], ...] = (
            ("resync", lambda: self._config.resync_seconds, self._keep_in_sync),
            ("comparing definitions", lambda: OUTDATED_SECONDS, self._keep_compared),
            ("reading Gateways", lambda: POLL_SECONDS, gateways.refresh),
        )
        others = [
            asyncio.create_task(run_workers(self._queue, self._config.workers, self._work)),
            asyncio.create_task(self._contend(ready)),
            asyncio.create_task(self._keep_verified()),
            *(asyncio.create_task(self._repeat(*loop)) for loop in loops),
        ]
        try:
            done, _ = await asyncio.wait([watching, *others], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task.exception():
                    log.error("ending: %s", task.exception())
        finally:
            self._shards.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(others[1]), 8)
            self._queue.close()
            for task in (watching, *others):
                task.cancel()
            await asyncio.gather(watching, *others, return_exceptions=True)
            await health.stop()
            await self._assessor.close()
        await watching

    async def _choose_kinds(self) -> list[Resource]:
        """Choose the kinds to list; returns those to watch, for kopf ends the process when a watch
        is forbidden. NetworkPolicies that cannot be watched are listed with each resync.
        """
        kinds = [r for r in WATCHED if await self._is_in_use(r)]
        watched = [r for r in kinds if r not in DISPENSABLE or await self._may_list(r)]
        self._resources = tuple(r for r in kinds if r in watched or r == NETWORK_POLICY)
        return watched

    async def _is_in_use(self, resource: Resource) -> bool:
        """Whether the kind is configured, and the cluster serves it."""
        return resource.configured(self._config) and (
            not resource.optional or await self._kube.has_kind(resource)
        )

    async def post(self, observation: Observation, event: Event) -> None:
        """An event on the ModelDeployment."""
        self._metrics.event_posted(observation.observed.namespace, event.type, event.reason)
        await self._events.post(observation.deployment, event.type, event.reason, event.message)

    def count(self, namespace: str, happened: Milestones) -> None:
        """Count what a written status says of rollouts."""
        if happened.ended is not None:
            self._metrics.rollout_ended(namespace, *happened.ended)
        for verdict in happened.verdicts:
            self._metrics.step_judged(namespace, *verdict)
        for stage in happened.stages:
            self._metrics.stage_left(*stage)

    async def _contend(self, ready: asyncio.Event) -> None:
        await ready.wait()
        self._synced = True
        await self._shards.run()

    async def _lead(self, shard: int) -> None:
        """The shard was won: what its former holder did is read before any pass."""
        await self._read_everything()

    async def _read_everything(self) -> None:
        """Look at everything; of shards that were won together the first does it for all."""
        asked = time.monotonic()
        async with self._reading:
            if self._read_since >= asked:
                return
            began = time.monotonic()
            await self._lookups.definitions.compare()
            await self._resync(unless_within=JUST_SECONDS)
            self._read_since = began

    def _work_shard(self, shard: int) -> None:
        self._wake_all(partial(self._shards.is_of, shard))
        if self._queue.paused:  # it worked none: no ModelDeployment is left to wake
            self._lookups.policies.mark_as_known()
        self._queue.resume()

    def _wake(self, key: Key) -> None:
        if self._shards.concerns(key):
            self._queue.add(key)

    def _wake_after(self, key: Key, seconds: float) -> None:
        if self._shards.concerns(key):
            self._queue.add_after(key, seconds)

    def _wake_all(self, of: Callable[[Key], bool] = lambda key: True) -> None:
        for o in self._cache.all(MODEL_DEPLOYMENT):
            key = o["metadata"]["namespace"], o["metadata"]["name"]
            if of(key):
                self._wake(key)

    async def _follow(self, shard: int) -> None:
        if self._shards.works_none():
            self._queue.pause()
        of = partial(self._shards.is_of, shard)
        await self._queue.drain(4, of)
        self._reconciler.let_go(of)

    async def _resync(self, unless_within: float = 0.0) -> None:
        """Read everything: kopf never reports deletions that its watch missed, and no event may be
        lost forever. ``unless_within``: what was listed within so many seconds has been watched
        since. Not the states, where another replica wrote them until a moment ago: its last ones
        may still be under way, and to go by older ones would undo what the later ones say.
        """
        for resource in self._resources:
            within = 0.0 if resource is MODEL_DEPLOYMENT and self._shards.count > 1 else unless_within
            for namespace in namespaces_to_list(resource, self._config.namespaces):
                try:
                    await self._intake.list_unless(resource, namespace, within)
                except Forbidden as e:
                    # Each ModelDeployment shows the missing right; nothing else depends on it.
                    if resource not in DISPENSABLE:
                        raise
                    log.warning("%s: %s", DISPENSABLE[resource], e.message)
        if self._shards.may_write():
            await self._lookups.slots.release_finished()
        await self._lookups.hostnames.refresh()
        for policy in self._lookups.policies.all():
            self._wake(("", policy.name))  # recounts its matches

    async def _may_list(self, resource: Resource) -> bool:
        try:
            for namespace in namespaces_to_list(resource, self._config.namespaces):
                await self._kube.list(resource, namespace, label_selector=OURS)
        except Forbidden as e:
            log.error("%s: %s", DISPENSABLE[resource], e.message)
            return False
        return True

    @staticmethod
    async def _repeat(what: str, seconds: Callable[[], float], action: Callable[[], Awaitable[None]]) -> None:
        """Run ``action`` again and again, about every ``seconds``; no failure ends the process."""
        while True:
            await asyncio.sleep(seconds() * random.uniform(0.8, 1.2))
            try:
                await action()
            except KubeError as e:
                log.warning("%s failed, the next time will do: %s", what, e)
            except Exception:
                log.exception("%s failed unexpectedly, the next time will do", what)

    async def _keep_in_sync(self) -> None:
        if self._shards.works_any():
            await self._resync()

    async def _keep_verified(self) -> None:
        delay, most = SOURCES_SECONDS
        while True:
            try:
                await self._assessor.verify()
            except Exception:
                log.exception("verifying the sources of metrics failed unexpectedly; the next check will do")
            await asyncio.sleep(delay * random.uniform(0.8, 1.2))
            delay = min(2 * delay, most)

    async def _keep_compared(self) -> None:
        definitions = self._lookups.definitions
        if definitions.is_due() and await definitions.compare():
            for policy in self._lookups.policies.all():
                self._wake(("", policy.name))
            self._wake_all()

    async def _work(self, key: Key) -> None:
        if not self._shards.concerns(key):  # it was queued before its shard was given up
            self._queue.forget(key)
            return
        started = time.monotonic()
        with logs.log_context(namespace=key[0], name=key[1]), self._shards.passing(key):
            try:
                again = await self._reconciler.reconcile(key)
            except Conflict as e:
                log.debug("stale read, again: %s", e)
                self._queue.add_rate_limited(key)
            except KubeError as e:
                self._metrics.reconcile_failed(e)
                delay = self._queue.add_rate_limited(key, e.retry_after or 0)
                log.warning("pass failed, again in %.1f s: %s", delay, e)
            except Exception as e:
                self._metrics.reconcile_failed(e)
                await self._report_failure(key, e)
                raise
            else:
                self._queue.forget(key)
                if again == 0:
                    self._queue.add(key)
                elif again is not None:
                    self._queue.add_after(key, again)
            finally:
                self._metrics.reconciled(time.monotonic() - started)

    async def _report_failure(self, key: Key, error: Exception) -> None:
        """Post an Event about a pass that failed unexpectedly."""
        obj = (
            self._cache.get(MODEL_DEPLOYMENT, *key)
            if key[0]
            else self._cache.get(ROLLOUT_POLICY, None, key[1])
        )
        if obj is not None:
            text = (
                f"the operator failed to reconcile this object ({type(error).__name__}) and tries again; its"
                " log has the details: please report it"
            )
            await self._events.post(obj, "Warning", Reason.PASS_FAILED, text)

    def _phases(self) -> dict[tuple[str, str], int]:
        return dict(
            Counter(
                (o["metadata"]["namespace"], (o.get("status") or {}).get("phase", "Pending"))
                for o in self._cache.all(MODEL_DEPLOYMENT)
            )
        )

    def _conditions(self) -> dict[tuple[str, str, str], int]:
        return dict(
            Counter(counted for o in self._cache.all(MODEL_DEPLOYMENT) for counted in counted_conditions(o))
        )


def counted_conditions(deployment: Object) -> list[tuple[str, str, str]]:
    """(namespace, type, status) of the conditions that the metric counts. A forged status may have
    any kind and number of them.
    """
    listed = ((deployment.get("status") or {}).get("conditions") or [])[:MOST_CONDITIONS]
    pairs = [(c.get("type"), c.get("status")) for c in listed if isinstance(c, dict)]
    return [
        (deployment["metadata"]["namespace"], kind, truth)
        for kind, truth in pairs
        if kind in COUNTED_CONDITIONS and truth in TRUTHS
    ]


def own_namespace() -> str:
    """Namespace of this pod, else ``default``."""
    if namespace := os.environ.get("POD_NAMESPACE"):
        return namespace
    try:
        return Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace").read_text().strip()
    except OSError:
        return "default"


def run(
    *,
    config: Path,
    kubeconfig: str | None,
    context: str | None,
    health_port: int,
    identity: str | None,
    lease_namespace: str | None,
    verbose: bool,
) -> None:
    """Run until SIGTERM. Raises ConfigError or KubeError with what to do when it cannot start."""
    logs.setup("DEBUG" if verbose else "INFO")
    logging.getLogger("kopf").setLevel(logging.WARNING)
    loaded = load_config(config)
    check_config(loaded)
    if loaded.artifacts.servers_can_write:
        log.warning(
            "artifacts.readSecretName is not set: the pods of model servers hold the Secret that Jobs write"
            " with"
        )

    async def main() -> None:
        metrics = Metrics()
        async with await Kube.connect(
            kubeconfig, context, component="operator", on_request=metrics.api_request
        ) as kube:
            # Not just the pod's name: a restarted container in the same pod is another candidate.
            holder = identity or new_identity()
            log.info("%s starts as %s", names.FIELD_MANAGER, holder)
            await Operator(loaded, kube, metrics, lease_namespace or own_namespace(), holder).run(
                kubeconfig, context, health_port
            )

    asyncio.run(main())
