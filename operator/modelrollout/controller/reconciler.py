"""One pass: observe, measure if the state asks for it, decide, and either write a transition or make the children match."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from modelrollout.api.config import OperatorConfig
from modelrollout.api.v1alpha1 import ModelDeploymentStatus
from modelrollout.controller.act import Actor, ChildRefused
from modelrollout.controller.gateways import Gateways
from modelrollout.controller.observe import Seen, gateway_to_ask, observe
from modelrollout.kube.cache import Key, Store
from modelrollout.kube.client import GRPC_ROUTE, HTTP_ROUTE, MODEL_DEPLOYMENT, Conflict, Kube, NotFound
from modelrollout.rollout.decide import decide
from modelrollout.rollout.facts import Assessment, Event, Problem, Snapshot
from modelrollout.traffic.features import GatewayFacts

log = logging.getLogger(__name__)


class Assessor(Protocol):
    """Measures and judges the present canary step; None when there is nothing to measure. Never raises for a provider's fault."""

    async def assess(self, s: Snapshot) -> Assessment | None: ...


class Reporter(Protocol):
    """Posts Kubernetes events; never raises."""

    async def post(self, seen: Seen, event: Event) -> None: ...


class Reconciler:
    """``reconcile(key)`` is what a worker does with a key."""

    def __init__(
        self,
        kube: Kube,
        store: Store,
        config: OperatorConfig,
        assessor: Assessor,
        reporter: Reporter,
        now: Callable[[], datetime],
        may_write: Callable[[], bool],
    ) -> None:
        self._kube, self._store, self._config = kube, store, config
        self._assessor, self._reporter = assessor, reporter
        self._now, self._may_write = now, may_write
        self._actor = Actor(kube, store, config)
        self._gateways = Gateways(kube)
        # What the last pass could not write, to be told in status. Memory only: the next try finds it out again.
        self._refused: dict[Key, Problem] = {}

    async def reconcile(self, key: Key) -> float | None:
        """One pass over a ModelDeployment; answers in how many seconds to look again (0 at once), None to wait for an event."""
        kinds = frozenset([r.kind for r in (HTTP_ROUTE, GRPC_ROUTE) if await self._kube.has_kind(r)])
        seen = observe(self._store, key, self._config, kinds, await self._gateway(key))
        if seen is None:
            self._refused.pop(key, None)
            return None
        s = await self._measured(replace(seen.snapshot, refused=self._refused.get(key)))
        seen = Seen(seen.deployment, seen.children, s, seen.router)
        plan = decide(s, self._now())
        if not self._may_write():
            return None  # the lease went to another replica while this pass was under way
        if plan.status != s.status:
            await self._transition(seen, plan.status)
            for event in plan.events:
                await self._reporter.post(seen, event)
            return 0.0
        if plan.desired is None:
            return plan.requeue_after
        try:
            wrote = await self._actor.act(seen, plan.desired)
        except ChildRefused as e:
            self._refused[key] = Problem(e.reason, e.message)
            raise
        except Conflict:
            # A child is not as it was seen, so the state may not be either: nothing may follow with a fresh resourceVersion in an old state.
            await self._look_again(key)
            raise
        told = self._refused.pop(key, None) is not None
        return 0.0 if wrote or told else plan.requeue_after

    async def _gateway(self, key: Key) -> GatewayFacts | Problem | None:
        """What the Gateway can do, if this spec needs to know."""
        deployment = self._store.get(MODEL_DEPLOYMENT, *key)
        asked = gateway_to_ask(deployment) if deployment else None
        return await self._gateways.facts(*asked) if asked else None

    async def _measured(self, s: Snapshot) -> Snapshot:
        rollout = s.status.rollout
        if rollout is not None and rollout.stage == "Shadow" and rollout.shadow is not None:
            mirrored = rollout.shadow.phase == "Observing" or (rollout.shadow.phase == "Mirroring" and s.traffic.taken_up)
            return replace(s, assessment=await self._assessor.assess(s)) if mirrored else s
        if rollout is None or rollout.stage != "Canary" or rollout.step is None or s.spec is None:
            return s
        if rollout.step.phase == "Shifting" and not s.traffic.taken_up:
            return s
        return replace(s, assessment=await self._assessor.assess(s))

    async def _transition(self, seen: Seen, status: ModelDeploymentStatus) -> None:
        """Write the new state, if the object is still what the pass has seen."""
        key = (seen.snapshot.namespace, seen.snapshot.name)
        try:
            answer = await self._kube.replace_status(MODEL_DEPLOYMENT, {**seen.deployment, "status": status.wire()})
        except Conflict:
            await self._look_again(key)
            raise
        except NotFound:
            self._store.gone(MODEL_DEPLOYMENT, *key, seen.deployment["metadata"]["uid"])
            return
        self._store.written(MODEL_DEPLOYMENT, answer, guarded=True)
        log.info("state: %s", _describe(status))

    async def _look_again(self, key: Key) -> None:
        with contextlib.suppress(NotFound):  # the watch tells of its end
            self._store.read(MODEL_DEPLOYMENT, await self._kube.get(MODEL_DEPLOYMENT, *key))


def _describe(status: ModelDeploymentStatus) -> str:
    rollout = status.rollout
    if rollout is None:
        return status.phase
    phase = rollout.step.phase if rollout.step else rollout.shadow.phase if rollout.stage == "Shadow" and rollout.shadow else ""
    words = [rollout.stage, f"step {status.step}" if status.step else "", phase, rollout.reason or ""]
    return f"{status.phase}: {' '.join(w for w in words if w)}"
