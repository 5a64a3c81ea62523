"""What a pass looks up beside its own objects: who prepares the same, host names, slots of
RolloutPolicies, free GPUs, why a Job is queued or has no pod.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from modelrollout.api import names
from modelrollout.config import OperatorConfig
from modelrollout.controller.lookups import finished_pods, kueue, missing_pod
from modelrollout.controller.lookups.capacity import Capacity
from modelrollout.controller.lookups.host_names import HostClaims
from modelrollout.controller.lookups.policies import Policies
from modelrollout.controller.lookups.shared_preparation import SharedPreparations
from modelrollout.controller.lookups.slots import SlotLeases
from modelrollout.controller.lookups.triton_versions import ServerVersions
from modelrollout.controller.observe.observation import Observation, evaluation_of
from modelrollout.controller.observe.pods import pods_of_server
from modelrollout.kube.cache import Key, ObjectCache
from modelrollout.kube.client import Kube
from modelrollout.kube.kinds import DEPLOYMENT, MODEL_REVISION, POD
from modelrollout.kube.objects import label
from modelrollout.rollout.pod_restarts import restart_without_gpu
from modelrollout.rollout.policy.rules import active_freeze
from modelrollout.rollout.policy.slot_limits import waiting_replicas
from modelrollout.rollout.snapshot import Gpus, Snapshot


class Lookups:
    """Policies, slots and capacity of one process. A ModelDeployment without a rollout in Tune or
    Provision costs nothing here.
    """

    def __init__(
        self,
        kube: Kube,
        store: ObjectCache,
        config: OperatorConfig,
        namespace: str,
        wake: Callable[[Key, float], None],
        now: Callable[[], datetime],
        may_write: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube, self._store, self._now = kube, store, now
        self.policies = Policies(kube, store, wake, now)
        self.slots = SlotLeases(kube, store, self.policies, namespace, wake, clock)
        self.hostnames = HostClaims(kube, store, config, namespace, may_write, now)
        self.fleets = SharedPreparations(store, wake, clock)
        self._versions = ServerVersions(wake, clock)
        self._capacity = Capacity(kube, config, clock)

    async def looked(self, seen: Observation) -> Snapshot:
        """The snapshot with what the present state asks for."""
        children = seen.children.items()
        pods = [o for (kind, _), o in children if kind == POD.kind]
        pods = [
            pod for (kind, _), o in children if kind == DEPLOYMENT.kind for pod in pods_of_server(pods, o)
        ]
        s = replace(
            seen.snapshot,
            servers=self._versions.noted(
                (seen.snapshot.namespace, seen.snapshot.name), dict(seen.snapshot.servers), pods
            ),
        )
        s = self.fleets.looked(seen, s)
        if waiting_replicas(s):
            s = replace(s, slots=await self.slots.larger(seen))
        rollout = s.status.rollout
        heard = await finished_pods.reread_finished_job(self._kube, self._store, seen)
        if heard is not s.work:
            s = replace(s, work=heard)
            s = replace(s, evaluation=evaluation_of(s))
        if s.work.queued:
            return replace(s, work=await kueue.with_queue_reason(self._kube, seen, self._now()))
        if s.work.no_pod_created:
            return replace(s, work=await missing_pod.explain_missing_pod(self._kube, seen, self._now()))
        if s.spec is None:
            return s
        if rollout is None or rollout.revision is None or rollout.stage not in ("Tune", "Provision"):
            late = restart_without_gpu(s)
            return replace(s, gpus=await self._gpus(seen, late, 1)) if late else s
        if rollout.queue is None:
            problem = s.server(rollout.revision).problem
            return (
                replace(s, gpus=await self._for_all(seen, rollout.revision))
                if problem and problem.reason == "Unschedulable"
                else s
            )
        if active_freeze(s.rules, self._now()):
            return s
        slots = await self.slots.view(seen)
        if not all(slot.held for slot in slots) or s.spec.serving.surge != "Wait":
            return replace(s, slots=slots)
        return replace(s, slots=slots, gpus=await self._for_all(seen, rollout.revision))

    async def _for_all(self, seen: Observation, revision: str) -> Gpus | None:
        """For the pods of a revision that have no node yet."""
        assert seen.snapshot.spec is not None
        pods = [
            o
            for (kind, _), o in seen.children.items()
            if kind == POD.kind and label(o, names.LABEL_REVISION) == revision
        ]
        placed = sum(bool((o.get("spec") or {}).get("nodeName")) for o in pods)
        return await self._gpus(seen, revision, max(1, seen.snapshot.spec.serving.replicas) - placed)

    async def _gpus(self, seen: Observation, revision: str, count: int) -> Gpus | None:
        live = seen.children.get((MODEL_REVISION.kind, revision))
        pod = ((live or {}).get("spec") or {}).get("template", {}).get("spec") or {}
        return await self._capacity.look(pod, count)
