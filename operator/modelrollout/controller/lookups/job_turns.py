"""Whose turn it is to have a Job that resolves or prepares a model, where a RolloutPolicy
(``limits.jobs``) or the configuration (``maxJobs``) limits how many run at a time.

Jobs are counted in the cache: where one replica makes them all, it knows of those that it has just
made. Where several do (shards), a Job is listed in ``job_register`` first, and counts from then on.
Who waits is remembered in memory: a new leader looks at every ModelDeployment once, and the order
is that of the stages' beginnings, among those of one replica.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from modelrollout.api import names
from modelrollout.controller.lookups.job_register import Entry, JobRegister
from modelrollout.controller.lookups.policies import Policies
from modelrollout.controller.observe.observation import Observation
from modelrollout.kube.cache import UNFINISHED, Key, ObjectCache
from modelrollout.kube.kinds import MODEL_DEPLOYMENT
from modelrollout.kube.objects import Object, label
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout.desired.jobs import stage_job, work_since
from modelrollout.rollout.policy.rules import NO_RULES
from modelrollout.rollout.snapshot import JobState, SharedPreparation

COMPONENTS = (names.COMPONENT_RESOLVE, names.COMPONENT_PREPARE)
IDLE_SECONDS = 60.0  # whoever has had a turn for so long without a Job is passed over: it is refused
_TOLD = 10  # places in line that status shows
_WOKEN = 8  # of those that wait, when a Job has ended
_Limit = tuple[str, int]  # name of the policy, empty: the configuration's; the most Jobs


@dataclass
class _Waiting:
    since: str  # the stage's beginning
    limits: frozenset[str]  # names of the policies; empty: the configuration's alone
    turn: float | None = None  # since when it has been its turn
    passed: bool = False  # it had its turn, without a Job


class JobTurns:
    """``most``: of all Jobs together, None: no limit; ``clock`` is monotonic, in seconds."""

    def __init__(
        self,
        cache: ObjectCache,
        policies: Policies,
        most: int | None,
        wake: Callable[[Key, float], None],
        clock: Callable[[], float],
        register: JobRegister | None = None,
    ) -> None:
        self._register = register
        # the limits that list a Job of this ModelDeployment, as far as this process knows
        self._entered: dict[Key, tuple[Entry, set[str]]] = {}
        self._cache, self._policies, self._most = cache, policies, most
        self._wake, self._clock = wake, clock
        self._waiting: dict[Key, _Waiting] = {}
        self._working: set[Key] = set()

    async def lookup(self, observation: Observation, work: JobState, shared: SharedPreparation) -> JobState:
        """``work``, queued if it is not this one's turn. Raises KubeError."""
        s = observation.observed
        key, since, job = (s.namespace, s.name), work_since(s), stage_job(s)
        # in one order everywhere: who has a place of one limit may wait for another's
        limits = [*sorted(s.rules.job_limits), *([("", self._most)] if self._most is not None else [])]
        wants = job is not None and job[0] in COMPONENTS and work.state == "Absent"
        entry = Entry(*key, job[1]) if job is not None and job[0] in COMPONENTS else None
        if not limits or since is None or entry is None or not wants or shared.by or shared.artifact:
            works = entry is not None and work.state == "Running"
            if not works:
                await self._leave(key, limits, entry)
            self._note(key, works=works)
            return work
        mine = self._waiting.setdefault(key, _Waiting(since, frozenset()))
        mine.since, mine.limits = since, frozenset(name for name, _ in limits if name)
        if self._register is not None and self._is_idle(mine) and mine.turn is not None:
            mine.turn, mine.passed = None, True
            await self._leave(key, limits, entry)
            self._wake_next()
            return _queued(work, *limits[0], self._ahead(key, limits[0][0]))
        # All limits first have room for it: who kept the place of one while he waits for another's
        # would keep out those that come before him, for whom he waits there.
        full = await self._full(key, limits, entry) or await self._enter(limits, entry)
        if full is not None:
            mine.turn = None
            await self._leave(key, limits, entry)
            return _queued(work, *full, self._ahead(key, full[0]))
        mine.turn = self._clock() if mine.turn is None else mine.turn
        return work

    def forget(self, key: Key) -> None:
        """The ModelDeployment is gone."""
        self._entered.pop(key, None)  # the next one that wants the place removes it from the list
        self._note(key, works=False)

    def let_go(self, of: Callable[[Key], bool]) -> None:
        """Another replica works these keys now."""
        self._waiting = {key: waiting for key, waiting in self._waiting.items() if not of(key)}
        self._working = {key for key in self._working if not of(key)}
        self._entered = {key: entered for key, entered in self._entered.items() if not of(key)}

    async def _full(self, key: Key, limits: Iterable[_Limit], entry: Entry) -> _Limit | None:
        """The first limit that has no room for the Job, as far as this process knows."""
        for policy, most in limits:
            listed = await self._register.listed(policy) if self._register is not None else frozenset()
            counted = listed.union(self._running(policy))
            if entry not in listed and len(counted) + self._ahead(key, policy) >= most:
                return policy, most
        return None

    async def _enter(self, limits: Iterable[_Limit], entry: Entry) -> _Limit | None:
        """The Job counts from now on; else the first limit that has no room for it (any more)."""
        if self._register is None:
            return None
        for policy, most in limits:
            if not await self._register.add(policy, most, entry, self._running(policy)):
                return policy, most
            before = self._entered.get(entry[:2])
            others = before[1] if before is not None and before[0] == entry else set()
            self._entered[entry[:2]] = (entry, others | {policy})
        return None

    async def _leave(self, key: Key, limits: Iterable[_Limit], entry: Entry | None) -> None:
        """Its Job has ended, or is not made: the place is another's. Also one that an earlier
        replica took for it: as long as the stage lasts no other removes it.
        """
        if self._register is None:
            return
        known = self._entered.get(key)
        places = {(policy, known[0]) for policy in known[1]} if known is not None else set()
        for policy, _ in limits if entry is not None else ():
            if entry in await self._register.listed(policy):
                places.add((policy, entry))
        for policy, listed in sorted(places):
            await self._register.remove(policy, listed)
        self._entered.pop(key, None)

    def _is_idle(self, waiting: _Waiting) -> bool:
        """Whether it has had a turn for so long without a Job: it is passed over."""
        if waiting.turn is None:
            return waiting.passed
        return self._clock() - waiting.turn >= IDLE_SECONDS

    def _note(self, key: Key, *, works: bool) -> None:
        """It does not wait, and has a Job or none; when one has ended, the next ones are woken."""
        left = self._waiting.pop(key, None) is not None and not works
        if works:
            self._working.add(key)
        elif key in self._working or left:
            self._working.discard(key)
            self._wake_next()

    def _wake_next(self) -> None:
        for waiting in sorted(self._waiting, key=self._place)[:_WOKEN]:
            self._wake(waiting, 0.0)

    def _place(self, key: Key) -> tuple[str, Key]:
        return self._waiting[key].since, key

    def _ahead(self, key: Key, policy: str) -> int:
        """Those that wait for the same limit and came before."""
        mine = self._place(key)
        return sum(
            1
            for other, waiting in self._waiting.items()
            if self._place(other) < mine
            and (not policy or policy in waiting.limits)
            and not self._is_idle(waiting)
        )

    def _running(self, policy: str) -> list[Entry]:
        unfinished = self._cache.find_marked(UNFINISHED)
        return [_entry(job) for job in unfinished if _counts(job) and self._is_for(policy, job)]

    def _is_for(self, policy: str, job: Object) -> bool:
        if not policy:
            return True
        owner = label(job, names.LABEL_NAME)
        deployment = self._cache.get(MODEL_DEPLOYMENT, job["metadata"]["namespace"], owner) if owner else None
        rules = self._policies.rules(deployment) if deployment is not None else NO_RULES
        return policy in dict(rules.job_limits)


def _queued(work: JobState, policy: str, most: int, ahead: int) -> JobState:
    who = f"RolloutPolicy {policy} (limits.jobs)" if policy else "the operator (maxJobs)"
    # far from its turn the place is no news: each change of it would be a write
    place = f"number {ahead + 1} in line" if ahead < _TOLD else f"more than {_TOLD} come before it"
    text = f"{who} allows {most} Jobs that resolve or prepare models at a time; {place}"
    return replace(work, queued=Problem(Reason.WAITING_FOR_JOB, text))


def _counts(job: Object) -> bool:
    return label(job, names.LABEL_COMPONENT) in COMPONENTS


def _entry(job: Object) -> Entry:
    metadata = job["metadata"]
    return Entry(metadata["namespace"], label(job, names.LABEL_NAME) or "", metadata["name"])
