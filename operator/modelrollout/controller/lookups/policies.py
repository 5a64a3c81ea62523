"""RolloutPolicies as last seen: which of them match, what they say together, and their own
status.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from modelrollout.api.times import stamp
from modelrollout.api.v1alpha1 import Condition
from modelrollout.api.v1alpha1.policy import RolloutPolicyStatus
from modelrollout.controller.lookups.namespaces import Namespaces
from modelrollout.kube.cache import Key, ObjectCache
from modelrollout.kube.client import Kube
from modelrollout.kube.errors import NotFound
from modelrollout.kube.kinds import MODEL_DEPLOYMENT, ROLLOUT_POLICY
from modelrollout.kube.objects import Object, labels_of
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout.policy.rules import NO_RULES, Policy, Rules, active_freeze, combine, read

# A changed policy wakes those that it matches, this many a second: each pass reads memory and
# usually does nothing.
WAKE_PER_SECOND = 50
# remembered combinations of namespaces and labels; users choose their labels
MOST_RULES = 10_000
LOOK_SECONDS = 60.0  # how often a policy with freeze windows checks whether one has begun


class Policies:
    """Reads the cache, and of the API server the labels of namespaces; writes only the policies'
    own status.
    """

    def __init__(
        self,
        kube: Kube,
        cache: ObjectCache,
        wake: Callable[[Key, float], None],
        now: Callable[[], datetime],
        uniform: Callable[[], float] = random.random,
        outdated: Callable[[], Problem | None] = lambda: None,
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        """``outdated``: why the API server may have dropped fields of the policies. ``may_write``:
        whether the policy of this pass is this replica's.
        """
        self._kube, self._cache, self._wake, self._now, self._uniform = kube, cache, wake, now, uniform
        self._outdated, self._may_write = outdated, may_write
        self._namespaces = Namespaces(kube, now)
        self._read: dict[str, tuple[tuple[Any, ...], Policy]] = {}
        self._rules: dict[tuple[Any, ...], Rules] = {}
        self._state: tuple[Any, ...] = ()
        # as of the last pass over it: ModelDeployments that it matched then wake as well
        self._known: dict[str, Policy] = {}

    def rules(self, deployment: Object) -> Rules:
        """What holds for a ModelDeployment. Without policies this costs nothing; equal namespaces
        and labels are combined once.
        """
        policies = self.all()
        if not policies:
            return NO_RULES
        about = namespace, labels, of_namespace = self._about(deployment)
        own = sorted({key for p in policies if p.selector for key in p.selector.match_labels or {}})
        by = sorted({key for p in policies if p.selector for key in p.selector.namespace_labels or {}})
        key = (
            namespace,
            *(labels.get(name) for name in own),
            of_namespace is None,
            *((of_namespace or {}).get(name) for name in by),
        )
        if key not in self._rules:
            if len(self._rules) >= MOST_RULES:
                self._rules.clear()
            self._rules[key] = combine(p for p in policies if p.matches(*about))
        return self._rules[key]

    async def read_namespace_labels(self, namespace: str) -> None:
        """Call before ``rules``: reads the labels of the namespace, if a policy selects by them."""
        if any(p.selector and p.selector.namespace_labels for p in self.all()):
            await self._namespaces.refresh(namespace)

    def all(self) -> list[Policy]:
        """Every policy, read once for each generation; one that is being deleted counts until it is
        gone.
        """
        objects = self._cache.all(ROLLOUT_POLICY)
        outdated = self._outdated()
        state = tuple(
            (o["metadata"]["name"], o["metadata"].get("uid"), o["metadata"].get("generation"), outdated)
            for o in objects
        )
        if state != self._state:
            self._state, self._rules = state, {}
            self._read = {
                o["metadata"]["name"]: self._once(mark, o, outdated)
                for mark, o in zip(state, objects, strict=True)
            }
        return [policy for _, policy in self._read.values()]

    def _once(
        self, mark: tuple[Any, ...], obj: Object, outdated: Problem | None
    ) -> tuple[tuple[Any, ...], Policy]:
        before = self._read.get(obj["metadata"]["name"])
        if before and before[0] == mark:
            return before
        policy = read(obj)
        if outdated is not None and policy.error is None:
            # the API server may have dropped a gate; what is left of the policy holds as well
            policy = replace(policy, error=outdated.message)
        return mark, policy

    def mark_as_known(self) -> None:
        """All ModelDeployments have been woken already: the current policies count as known."""
        self._known = {p.name: p for p in self.all()}

    async def reconcile(self, name: str) -> float | None:
        """One pass over a policy: wake what its change affects, and write its status if that
        differs.
        """
        policy = next((p for p in self.all() if p.name == name), None)
        before = self._known.get(name)
        if policy is not None and policy.selector and policy.selector.namespace_labels:
            for namespace in {self._about(o)[0] for o in self._cache.all(MODEL_DEPLOYMENT)}:
                await self.read_namespace_labels(namespace)
        if policy != before:
            self._wake_all(p for p in (before, policy) if p is not None)
            if policy is None:
                del self._known[name]
            else:
                self._known[name] = policy
        obj = self._cache.get(ROLLOUT_POLICY, None, name)
        if policy is None or obj is None or obj["metadata"].get("deletionTimestamp"):
            return None
        status = self._status(policy, obj)
        if status.wire() != (obj.get("status") or {}) and self._may_write():
            try:
                answer = await self._kube.replace_status(ROLLOUT_POLICY, {**obj, "status": status.wire()})
            except NotFound:
                self._cache.record_deletion(ROLLOUT_POLICY, None, name, obj["metadata"]["uid"])
                return None
            self._cache.record_write(ROLLOUT_POLICY, answer, guarded=True)
        return LOOK_SECONDS if policy.spec.freeze_windows else None

    def _wake_all(self, policies: Iterable[Policy]) -> None:
        changed = list(policies)
        matched = [
            o for o in self._cache.all(MODEL_DEPLOYMENT) if any(p.matches(*self._about(o)) for p in changed)
        ]
        for o in matched:
            self._wake(
                (o["metadata"]["namespace"], o["metadata"]["name"]),
                self._uniform() * len(matched) / WAKE_PER_SECOND,
            )

    def _about(self, deployment: Object) -> tuple[str, Mapping[str, str], Mapping[str, str] | None]:
        namespace = deployment["metadata"].get("namespace") or ""
        return namespace, labels_of(deployment), self._namespaces.labels(namespace)

    def _why_not(self, policy: Policy) -> str:
        outdated = self._outdated()
        return outdated.reason if outdated and policy.error == outdated.message else Reason.INVALID

    def _status(self, policy: Policy, obj: Object) -> RolloutPolicyStatus:
        try:
            old = RolloutPolicyStatus.model_validate(obj.get("status") or {})
        except ValidationError:
            old = RolloutPolicyStatus()
        generation = obj["metadata"].get("generation")
        accepted = policy.error is None
        blind = bool(policy.selector and policy.selector.namespace_labels) and any(
            self._about(o)[2] is None for o in self._cache.all(MODEL_DEPLOYMENT)
        )
        unseen = (
            "; the operator may not read all namespaces, and selector.namespaceLabels counts as met there:"
            " grant it get on namespaces"
        )
        words = (
            f"it holds{unseen if blind else ''}"
            if accepted
            else f"{policy.error}; until it is corrected, what it matches starts no rollout"
        )
        before = next((c for c in old.conditions if c.type == "Accepted"), None)
        same = before is not None and before.status == str(accepted)
        condition = Condition(
            type="Accepted",
            status="True" if accepted else "False",
            reason=Reason.ACCEPTED if accepted else self._why_not(policy),
            message=words[:1024],
            last_transition_time=before.last_transition_time if same and before else stamp(self._now()),
            observed_generation=generation,
        )
        freeze = active_freeze(combine([policy]), self._now()) if accepted else None
        return RolloutPolicyStatus(
            observed_generation=generation,
            conditions=[condition],
            accepted=str(accepted),
            matches=sum(policy.matches(*self._about(o)) for o in self._cache.all(MODEL_DEPLOYMENT)),
            frozen_until=stamp(freeze.until) if freeze and freeze.until else None,
        )
