"""What a pass looks up beyond its own objects: shared preparations, host names, slots of
RolloutPolicies, free GPUs, why a Job is queued or has no pod.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from modelrollout.api import names
from modelrollout.config import OperatorConfig
from modelrollout.controller.lookups.capacity import Capacity
from modelrollout.controller.lookups.definitions import Definitions
from modelrollout.controller.lookups.finished_pods import reread_finished_job
from modelrollout.controller.lookups.gateways import Gateways
from modelrollout.controller.lookups.host_names import HostClaims
from modelrollout.controller.lookups.job_register import JobRegister
from modelrollout.controller.lookups.job_turns import JobTurns
from modelrollout.controller.lookups.kueue import with_queue_reason
from modelrollout.controller.lookups.missing_pod import explain_missing_pod
from modelrollout.controller.lookups.policies import Policies
from modelrollout.controller.lookups.shared_preparation import SharedPreparations
from modelrollout.controller.lookups.slots import SlotLeases
from modelrollout.controller.lookups.triton_versions import ServerVersions
from modelrollout.controller.observe.observation import Observation
from modelrollout.controller.observe.pods import pods_of_server
from modelrollout.kube.cache import Key, ObjectCache
from modelrollout.kube.client import Kube
from modelrollout.kube.kinds import DEPLOYMENT, MODEL_REVISION, POD, ROLLOUT_POLICY
from modelrollout.kube.objects import Object, label
from modelrollout.reasons import Reason
from modelrollout.rollout.pod_restarts import restart_without_gpu
from modelrollout.rollout.policy.rules import active_freeze
from modelrollout.rollout.policy.slot_limits import waiting_replicas
from modelrollout.rollout.snapshot import Gpus, JobState, SharedPreparation, Slot


@dataclass(frozen=True)
class LookedUp:
    """The answers of one pass."""

    work: JobState  # as observed, or with what a look at its pods, events or queue has added
    shared: SharedPreparation = field(default_factory=SharedPreparation)
    triton_versions: Mapping[str, str] = field(default_factory=dict)
    slots: tuple[Slot, ...] = ()
    gpus: Gpus | None = None


class Lookups:
    """The look-ups of one process. Slots and capacity cost nothing for a ModelDeployment without a
    rollout in Tune or Provision.
    """

    def __init__(
        self,
        kube: Kube,
        cache: ObjectCache,
        config: OperatorConfig,
        namespace: str,
        wake: Callable[[Key, float], None],
        now: Callable[[], datetime],
        may_write: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube, self._cache, self._now = kube, cache, now
        self.definitions = Definitions(kube)
        self.policies = Policies(
            kube,
            cache,
            wake,
            now,
            outdated=lambda: self.definitions.problem(ROLLOUT_POLICY.kind),
            may_write=may_write,
        )
        self.slots = SlotLeases(kube, cache, self.policies, namespace, wake, clock)
        self.gateways = Gateways(kube, cache, wake)
        self.hostnames = HostClaims(kube, cache, config, namespace, wake, may_write, now)
        self.shared_preparations = SharedPreparations(cache, wake, clock)
        register = JobRegister(kube, cache, namespace, clock, may_write) if config.shards > 1 else None
        self.job_turns = JobTurns(cache, self.policies, config.max_jobs, wake, clock, register)
        self._versions = ServerVersions(wake, clock)
        self._capacity = Capacity(kube, config, clock)

    def let_go(self, of: Callable[[Key], bool]) -> None:
        """Another replica works these keys now."""
        self.slots.let_go(of)
        self.shared_preparations.let_go(of)
        self.job_turns.let_go(of)

    async def look_up(self, observation: Observation) -> LookedUp:
        """What the present state needs to know. Raises KubeError."""
        s = observation.observed
        versions = self._versions.look_up((s.namespace, s.name), s.servers, _server_pods(observation))
        shared = self.shared_preparations.lookup(observation)
        work = await reread_finished_job(self._kube, self._cache, observation)
        work = await self.job_turns.lookup(observation, work, shared)
        slots = await self.slots.larger(observation) if waiting_replicas(s) else ()
        gpus = None
        if work.queued and work.state != "Absent":
            work = await with_queue_reason(self._kube, observation, work, self._now())
        elif work.no_pod_created:
            work = await explain_missing_pod(self._kube, observation, work, self._now())
        elif s.spec is not None:
            slots, gpus = await self._slots_and_gpus(observation, slots)
        return LookedUp(work, shared, versions, slots, gpus)

    async def _slots_and_gpus(
        self, observation: Observation, slots: tuple[Slot, ...]
    ) -> tuple[tuple[Slot, ...], Gpus | None]:
        """The slots of a queued rollout (of others the given ``slots``), and the free GPUs if
        anything waits for some.
        """
        s = observation.observed
        assert s.spec is not None
        rollout = s.status.rollout
        if rollout is None or rollout.revision is None or rollout.stage not in ("Tune", "Provision"):
            late = restart_without_gpu(s)
            return slots, await self._gpus(observation, late, 1) if late else None
        if rollout.queue is None:
            problem = s.server(rollout.revision).problem
            unschedulable = problem is not None and problem.reason == Reason.UNSCHEDULABLE
            return slots, await self._for_all(observation, rollout.revision) if unschedulable else None
        if active_freeze(s.rules, self._now()):
            return slots, None
        slots = await self.slots.view(observation)
        if not all(slot.held for slot in slots) or s.spec.serving.surge != "Wait":
            return slots, None
        return slots, await self._for_all(observation, rollout.revision)

    async def _for_all(self, observation: Observation, revision: str) -> Gpus | None:
        """For the pods of a revision that have no node yet."""
        assert observation.observed.spec is not None
        placed = sum(
            bool((o.get("spec") or {}).get("nodeName"))
            for (kind, _), o in observation.children.items()
            if kind == POD.kind and label(o, names.LABEL_REVISION) == revision
        )
        return await self._gpus(
            observation, revision, max(1, observation.observed.spec.serving.replicas) - placed
        )

    async def _gpus(self, observation: Observation, revision: str, count: int) -> Gpus | None:
        live = observation.children.get((MODEL_REVISION.kind, revision))
        pod = ((live or {}).get("spec") or {}).get("template", {}).get("spec") or {}
        return await self._capacity.gpus_for(pod, count)


def _server_pods(observation: Observation) -> list[Object]:
    children = observation.children.items()
    pods = [o for (kind, _), o in children if kind == POD.kind]
    return [p for (kind, _), o in children if kind == DEPLOYMENT.kind for p in pods_of_server(pods, o)]
