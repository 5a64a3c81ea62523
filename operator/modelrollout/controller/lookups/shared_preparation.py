"""Which ModelDeployment of a namespace prepares a version for all that need the same one.

Decided from the cache; nothing is stored, because the next leader finds the same Jobs and statuses.
What this process remembers avoids a second Job until the first one shows up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from modelrollout.api import names
from modelrollout.api.v1alpha1 import ArtifactEvidence
from modelrollout.controller.observe.observation import Observation
from modelrollout.kube.cache import Key, ObjectCache, rollouts_of
from modelrollout.kube.kinds import JOB, MODEL_REVISION
from modelrollout.kube.objects import Object, controller_of, is_deleting, is_over
from modelrollout.problem import Problem
from modelrollout.resources.server import takes_warmup
from modelrollout.rollout.shared_preparation import Member, outcome, preparer, work_key
from modelrollout.rollout.snapshot import SharedPreparation

IDLE_SECONDS = 20.0  # how long the chosen one may be without a Job before the next is chosen


@dataclass(frozen=True)
class _Chosen:
    name: str
    at: float
    works: bool  # its Job was under way at the last look


class SharedPreparations:
    """``clock`` is monotonic, in seconds."""

    def __init__(
        self, cache: ObjectCache, wake: Callable[[Key, float], None], clock: Callable[[], float]
    ) -> None:
        self._cache, self._wake, self._clock = cache, wake, clock
        self._chosen: dict[tuple[str, str], _Chosen] = {}  # by namespace and work
        # namespace and work of those who were in Prepare at their last pass
        self._works: dict[Key, tuple[str, str]] = {}
        self._waiting: dict[tuple[str, str], set[str]] = {}

    def lookup(self, observation: Observation) -> SharedPreparation:
        """The same work of another ModelDeployment, as long as there is no Job of its own."""
        s = observation.observed
        key, rollout = (s.namespace, s.name), s.status.rollout
        work = _work(self._cache, observation.deployment) if rollout and rollout.stage == "Prepare" else None
        revision = s.revision(rollout.revision) if rollout else None
        if (
            work is None
            or rollout is None
            or rollout.sha256 is None
            or revision is None
            or revision.prepared is not None
        ):
            self.forget(key)
            return SharedPreparation()
        place = (s.namespace, work)
        if self._works.get(key, place) != place:
            self.forget(key)
        self._works[key] = place
        if observation.work.state != "Absent":
            self._waiting.get(place, set()).discard(s.name)
            return SharedPreparation()
        asking = (
            o
            for o in self._cache.find_marked(rollouts_of(s.namespace, rollout.sha256))
            if _counts(o, rollout.started)
        )
        members = [m for o in asking if _work(self._cache, o) == work and (m := _member(self._cache, o))]
        mine = next((m for m in members if m.name == s.name), None)
        # a Job that does not count exists: it is replaced first
        if mine is None or mine.works:
            return SharedPreparation()
        shared = outcome(mine, members)
        if shared.by is None and (chosen := self._choose(place, members)) != s.name:
            shared = SharedPreparation(by=chosen)
        if shared.by is not None:
            self._waiting.setdefault(place, set()).add(s.name)
        return shared

    def forget(self, key: Key) -> None:
        """A ModelDeployment is no longer in Prepare: wake those that wait for it."""
        place = self._works.pop(key, None)
        if place is None:
            return
        waiting = self._waiting.get(place, set())
        waited = key[1] in waiting
        waiting.discard(key[1])
        if (chosen := self._chosen.get(place)) and chosen.name == key[1]:
            del self._chosen[place]
        if not waiting:
            self._waiting.pop(place, None)
        for name in () if waited else sorted(waiting):
            self._wake((key[0], name), 0.0)

    def let_go(self, of: Callable[[Key], bool]) -> None:
        """Another replica works these keys now."""
        for key in [k for k in self._works if of(k)]:
            self.forget(key)

    def _choose(self, place: tuple[str, str], members: list[Member]) -> str | None:
        before, now = self._chosen.get(place), self._clock()
        idle = before is not None and not before.works and now - before.at >= IDLE_SECONDS
        name = preparer(members, before.name if before else None, idle=idle)
        works = any(m.works for m in members if m.name == name)
        if name is not None and (before is None or before.name != name or works or before.works):
            self._chosen[place] = _Chosen(name, now, works)
        return name


def _rollout(deployment: Object) -> Mapping[str, Any]:
    status = deployment.get("status")
    rollout = status.get("rollout") if isinstance(status, Mapping) else None
    return rollout if isinstance(rollout, Mapping) else {}


def _counts(deployment: Object, began: str) -> bool:
    """Whether it can help a rollout that began then; a cheap check, because one source may have
    thousands.
    """
    rollout = _rollout(deployment)
    artifact = rollout.get("artifact")
    prepared = artifact.get("prepared") if isinstance(artifact, Mapping) else None
    return rollout.get("stage") == "Prepare" or (isinstance(prepared, str) and prepared >= began)


def _work(cache: ObjectCache, deployment: Object) -> str | None:
    """The work that its last rollout asks for; None where its revision is not there."""
    metadata, rollout = deployment["metadata"], _rollout(deployment)
    revision = cache.get(MODEL_REVISION, metadata["namespace"], str(rollout.get("revision")))
    if revision is None or is_deleting(deployment):
        return None
    spec, optimization = revision["spec"], (deployment.get("spec") or {}).get("optimization") or {}
    return work_key(
        spec["sha256"], spec["input"], optimization, warmup=takes_warmup(str(spec.get("builder")))
    )


def _member(cache: ObjectCache, deployment: Object) -> Member | None:
    """A ModelDeployment as a member that needs some work; None if this version of the operator
    cannot read its status.
    """
    metadata, rollout = deployment["metadata"], _rollout(deployment)
    try:
        artifact = ArtifactEvidence.model_validate(rollout["artifact"]) if rollout.get("artifact") else None
        run = names.short_hash([rollout["started"], rollout.get("attempt", 0)], 4)
        job = cache.get(
            JOB, metadata["namespace"], names.stage_job_name(str(rollout["revision"]), "prepare", run)
        )
        revision = cache.get(MODEL_REVISION, metadata["namespace"], str(rollout["revision"]))
        refused = (
            Problem(str(rollout.get("reason")), str(rollout.get("message")))
            if rollout.get("outcome") == "Rejected"
            else None
        )
        began = str(rollout["started"])
        for stamp in (began, artifact.prepared if artifact else None):
            datetime.fromisoformat(stamp or began)
        return Member(
            name=metadata["name"],
            began=began,
            waits=rollout["stage"] == "Prepare",
            works=job is not None
            and revision is not None
            and controller_of(job) == revision["metadata"]["uid"]
            and not is_over(job),
            artifact=artifact,
            refused=refused if artifact and not artifact.digest else None,
        )
    except (KeyError, ValueError):  # a ValidationError is one
        return None
