"""One pass: observe, look up, measure if the state needs it, decide, and either write a transition
or make the children match.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from modelrollout.api.v1alpha1 import ModelDeploymentStatus
from modelrollout.config import OperatorConfig
from modelrollout.controller.apply.actor import Actor, ChildRefused, LookRefused
from modelrollout.controller.lookups.lookups import LookedUp, Lookups
from modelrollout.controller.lookups.reread_stable import reread_dead_stable
from modelrollout.controller.observe.observation import Observation, observe
from modelrollout.controller.snapshot import build_snapshot
from modelrollout.kube.cache import Key, ObjectCache
from modelrollout.kube.client import Kube
from modelrollout.kube.errors import Conflict, Forbidden, NotFound
from modelrollout.kube.kinds import MODEL_DEPLOYMENT, MODEL_REVISION
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout.decide import decide
from modelrollout.rollout.desired.traffic import needs_measurement
from modelrollout.rollout.milestones import Milestones, milestones
from modelrollout.rollout.plan import Converge, Event, Wait, Write
from modelrollout.rollout.policy.rules import NO_RULES
from modelrollout.rollout.snapshot import Assessment, Observed, Snapshot, Traffic
from modelrollout.rollout.status import recorded_network_policy_problem
from modelrollout.traffic.registry import ROUTES

log = logging.getLogger(__name__)
LOST_SECONDS = 30.0  # until a status that the API server dropped is written again
# until a refused write that blocks nothing (NetworkPolicies, names that are taken) is retried
REFUSED_SECONDS = 60.0
REFUSED_RETRY_SECONDS = 5.0  # the least time until another refused write is retried
ROUTES_NARROWED = (
    "the routes now let through only the requests that docs/reference/endpoints.md lists; paths that name"
    " a version, and those that manage a server, answer 404"
)


class Assessor(Protocol):
    """Measures and judges the current step; None when there is nothing to measure. Never raises
    because of a provider.
    """

    async def assess(self, s: Observed) -> Assessment | None: ...


class Reporter(Protocol):
    """Posts Kubernetes events and counts; never raises."""

    async def post(self, observation: Observation, event: Event) -> None: ...
    def count(self, namespace: str, happened: Milestones) -> None: ...


class Reconciler:
    """Reconciles one key at a time; workers call ``reconcile``."""

    def __init__(
        self,
        *,
        kube: Kube,
        cache: ObjectCache,
        config: OperatorConfig,
        assessor: Assessor,
        reporter: Reporter,
        lookups: Lookups,
        now: Callable[[], datetime],
        may_write: Callable[[], bool],
        wake: Callable[[Key, float], None],
        leading_since: Callable[[], datetime | None] = lambda: None,
    ) -> None:
        self._kube, self._cache, self._config = kube, cache, config
        self._assessor, self._reporter, self._lookups = assessor, reporter, lookups
        self._now, self._may_write, self._wake = now, may_write, wake
        self._leading_since = leading_since
        self._actor = Actor(kube, cache, config, may_write, reporter.post)
        # Why the last pass could not write a child, or a NetworkPolicy, for status. In memory only:
        # the next attempt finds it again.
        self._refused: dict[Key, Problem] = {}
        self._look_refused: dict[Key, Problem] = {}
        self._network_policy_problems: dict[Key, Problem | None] = {}
        # since when the data plane has not answered for the present routes; in memory only, too
        self._silent_since: dict[Key, datetime] = {}

    async def reconcile(self, key: Key) -> float | None:
        """One pass over a ModelDeployment, or over a RolloutPolicy (its key has no namespace).

        Returns the seconds until the next pass (0: at once), None to wait for an event.
        """
        if not key[0]:
            return await self._lookups.policies.reconcile(key[1])
        served_routes = frozenset([r.kind for r in ROUTES if await self._kube.has_kind(r)])
        deployment = self._cache.get(MODEL_DEPLOYMENT, *key)
        await self._lookups.policies.read_namespace_labels(key[0])
        rules = self._lookups.policies.rules(deployment) if deployment else NO_RULES
        gateway = await self._lookups.gateways.of(deployment)
        observation = observe(
            self._cache,
            key,
            self._config,
            served_routes,
            self._lookups.hostnames.known(),
            gateway,
            rules,
            self._now(),
        )
        if observation is None:
            self._refused.pop(key, None)
            self._look_refused.pop(key, None)
            self._network_policy_problems.pop(key, None)
            self._silent_since.pop(key, None)
            self._lookups.slots.forget(key)
            self._lookups.shared_preparations.forget(key)
            self._lookups.job_turns.forget(key)
            if deployment is None:
                await self._lookups.hostnames.gone(key)
            return None
        refused = self._refused.get(key)
        try:
            if self._may_write() and await self._actor.adopt(observation):
                return 0.0
        except ChildRefused as e:  # the children count as our own nevertheless
            refused = refused or Problem(e.reason, e.message)
        try:
            if await self._lookups.hostnames.settle(observation):
                return 0.0
            if await reread_dead_stable(self._kube, self._cache, observation, self._now()):
                return 0.0
            looked_up = await self._lookups.look_up(observation)
        except Forbidden as e:
            looked_up = LookedUp(observation.work)
            refused = Problem(Reason.CHILD_REFUSED, f"Leases of slots and host names: {e.message}")
        observed, definitions = observation.observed, self._lookups.definitions
        measures = needs_measurement(observed, observation.traffic)
        s = build_snapshot(
            observation,
            looked_up,
            (
                await self._assessor.assess(replace(observed, triton_versions=looked_up.triton_versions))
                if measures
                else None
            ),
            write_problem=refused,
            look_problem=self._look_refused.pop(key, None),
            network_policy_problem=self._network_policy_problems.get(
                key, recorded_network_policy_problem(observed.status)
            ),
            definition_problem=definitions.problem(MODEL_DEPLOYMENT.kind)
            or definitions.problem(MODEL_REVISION.kind),
            silent_since=self._silence(key, observation.traffic),
            leading_since=self._leading_since(),
        )
        plan = decide(s, self._now())
        if not self._may_write():
            return None  # another replica took the lease during this pass
        match plan:
            case Write():
                if not await self._transition(observation, plan.status):
                    return LOST_SECONDS
                self._reporter.count(key[0], milestones(observed.status, plan.status))
                for event in plan.events:
                    await self._reporter.post(observation, event)
                return 0.0
            case Converge():
                return await self._converge(key, observation, s, plan)
            case Wait():
                return plan.requeue_after

    def let_go(self, of: Callable[[Key], bool]) -> None:
        """Another replica works these keys now: what this one remembers of them grows old."""
        for remembered in (
            self._refused,
            self._look_refused,
            self._network_policy_problems,
            self._silent_since,
        ):
            for key in [k for k in remembered if of(k)]:
                del remembered[key]
        self._lookups.let_go(of)

    def _silence(self, key: Key, traffic: Traffic) -> datetime | None:
        """Since when the data plane has neither confirmed the present routes nor refused them."""
        if traffic.programmed or traffic.problem is not None:
            self._silent_since.pop(key, None)
            return None
        return self._silent_since.setdefault(key, self._now())

    async def _converge(
        self, key: Key, observation: Observation, s: Snapshot, plan: Converge
    ) -> float | None:
        """Makes the children match; returns the seconds until the next pass."""
        try:
            narrowed, first_refusal = (
                await self._actor.narrow(observation) if plan.desired.narrow else (False, None)
            )
            if narrowed:
                await self._reporter.post(
                    observation,
                    Event(
                        Reason.ROUTES_NARROWED,
                        f"{', '.join(s.overly_open)}: {ROUTES_NARROWED}",
                    ),
                )
                return 0.0
            wrote = await self._isolate(key, observation, s.network_policy_problem)
            acted, refusal = await self._actor.converge(observation, plan.desired)
            wrote, refusal = wrote | acted, first_refusal or refusal
            wrote |= await self._lookups.slots.acquire_or_release(observation, s.slots)
        except LookRefused as e:
            # it came last: all other children are as desired. The next pass ends the look
            self._refused.pop(key, None)
            self._look_refused[key] = Problem(e.reason, e.message)
            return 0.0
        except ChildRefused as e:
            self._refused[key] = Problem(e.reason, e.message)
            if plan.requeue_after is not None:
                # the growing delays of a failed pass would miss the stage's deadline
                self._wake(key, max(plan.requeue_after, REFUSED_RETRY_SECONDS))
            raise
        except Conflict:
            # A child differs from what was observed, so the state may too: no write with a fresh
            # resourceVersion may follow from the old state.
            await self._refresh(key)
            raise
        news = self._refused.pop(key, None) != refusal
        if refusal is not None:
            self._refused[key] = refusal
        if wrote or news:
            return 0.0
        waits = [
            w
            for w in (
                plan.requeue_after,
                REFUSED_SECONDS if refusal or self._network_policy_problems.get(key) else None,
            )
            if w is not None
        ]
        return min(waits, default=None)

    async def _isolate(self, key: Key, observation: Observation, before: Problem | None) -> bool:
        """Write NetworkPolicies. Also True when the status has to change: the next pass writes
        it.
        """
        if observation.observed.spec is None:  # whom to let in is unknown: the policies stay
            return False
        wrote, self._network_policy_problems[key] = await self._actor.isolate(observation)
        return wrote or self._network_policy_problems[key] != before

    async def _transition(self, observation: Observation, status: ModelDeploymentStatus) -> bool:
        """Write the new state, if the object is still as observed. False when the API server
        dropped everything new in it.
        """
        key = (observation.observed.namespace, observation.observed.name)
        try:
            answer = await self._kube.replace_status(
                MODEL_DEPLOYMENT, {**observation.deployment, "status": status.wire()}
            )
        except Conflict:
            await self._refresh(key)
            raise
        except NotFound:
            self._cache.record_deletion(MODEL_DEPLOYMENT, *key, observation.deployment["metadata"]["uid"])
            return True
        if answer["metadata"]["resourceVersion"] == observation.deployment["metadata"]["resourceVersion"]:
            log.error(
                "the ModelDeployment CRD is older than this operator and drops status fields; apply crds/ of"
                " this release"
            )
            return False
        self._cache.record_write(MODEL_DEPLOYMENT, answer, guarded=True)
        log.info("state: %s", _describe(status))
        return True

    async def _refresh(self, key: Key) -> None:
        with contextlib.suppress(NotFound):  # the watch reports its deletion
            self._cache.record_read(MODEL_DEPLOYMENT, await self._kube.get(MODEL_DEPLOYMENT, *key))


def _describe(status: ModelDeploymentStatus) -> str:
    rollout = status.rollout
    if rollout is None:
        return status.phase
    phase = (
        rollout.step.phase
        if rollout.step
        else rollout.shadow.phase
        if rollout.stage == "Shadow" and rollout.shadow
        else ""
    )
    words = [rollout.stage, f"step {status.step}" if status.step else "", phase, rollout.reason or ""]
    return f"{status.phase}: {' '.join(w for w in words if w)}"
