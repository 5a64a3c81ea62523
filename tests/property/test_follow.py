"""A source whose bytes change at any time, with people, verdicts, crashes and a store that is away.

``modelrollout.testing.model_cluster`` asserts the invariants of every rollout after each write.
Here are those of following: what a person or a verdict has ended is neither tried again nor
followed by anything until a person or spec says so, and once all is well what lies there serves.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modelrollout.problem import Problem
from modelrollout.rollout.decide import decide
from modelrollout.rollout.plan import Write
from modelrollout.rollout.snapshot import in_flight
from modelrollout.testing import builders as b
from modelrollout.testing.model_cluster import ModelCluster, Refused

pytestmark = pytest.mark.heavy

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
PROFILE = settings(
    max_examples=300 if DEEP else 60,
    stateful_step_count=60 if DEEP else 40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=not DEEP,
    database=None,
)
PAUSES = {"canary": {"steps": [{"weight": 10}, {"pause": {}}, {"weight": 50}]}}
STEPS = {"canary": {"steps": b.STEPS}}
POLICIES: list[dict[str, Any]] = [
    {},
    {"onFailure": "Pause"},
    {"onInconclusive": "Rollback", "bake": "20s"},
    {"rollbackWindow": "1m"},
]
EVERY = 600.0
VERBS = ["abort", "retry", "rollback", "follow", "follow", "promote", "pause", "resume"]


class FollowMachine(RuleBasedStateMachine):
    """A pipeline, people, stores and operators in any order."""

    @initialize(
        trial=st.sampled_from([STEPS, PAUSES]),
        policy=st.sampled_from(POLICIES),
        supersede=st.sampled_from(["Never", "Paused"]),
    )
    def begin(self, trial: dict[str, Any], policy: dict[str, Any], supersede: str) -> None:
        self.trial, self.policy, self.supersede, self.every = trial, policy, supersede, "10m"
        self.nonce = 0
        self.former: ModelCluster | None = None
        self.world = ModelCluster(self.spec(), source=b.sha(1))
        self.world.serve()

    def spec(self) -> Any:
        follow = {"every": self.every, "supersede": self.supersede}
        rollout = {"progressDeadline": "5m", **self.trial, **self.policy}
        return b.spec(1, model={"uri": b.uri(1), "follow": follow}, rollout=rollout)

    # --- the operator

    @rule()
    def reconcile(self) -> None:
        self.world.reconcile()

    @rule(after=st.integers(0, 3))
    def crash_between_two_writes(self, after: int) -> None:
        self.world.one_pass(crash_after=after)

    @rule()
    def a_leader_is_paused(self) -> None:
        self.former = copy.deepcopy(self.world)

    @precondition(lambda self: self.former is not None)
    @rule()
    def the_paused_leader_goes_on(self) -> None:
        """It decides on what it has read, and is refused if anything has changed since."""
        former, self.former = self.former, None
        assert former is not None
        s = former.snapshot()
        plan = decide(s, self.world.now)
        if isinstance(plan, Write):
            try:
                self.world.deciding = s
                self.world.write_status(plan.status, former.version)
            except Refused:
                assert former.version != self.world.version

    # --- the source and its store

    @rule(version=st.integers(1, 4))
    def the_source_changes(self, version: int) -> None:
        self.world.source = b.sha(version)

    @rule(away=st.booleans())
    def the_store_goes_and_comes(self, away: bool) -> None:
        self.world.store = Problem("StoreUnreachable", "the store does not answer") if away else None

    @rule(how=st.sampled_from(["ok", "ok", "ok", "lost", "oom"]))
    def a_job_ends(self, how: str) -> None:
        self.world.end_job(how)

    # --- the rest of the world

    @rule(seconds=st.sampled_from([1.0, 5.0, 70.0, 400.0, 1000.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.tick(seconds)

    @rule(verdict=st.sampled_from(["Successful", "Successful", "Inconclusive", "Failed", None]))
    def metrics_say(self, verdict: Any) -> None:
        self.world.verdict = verdict

    @rule(rounds=st.integers(1, 6))
    def it_goes_well_for_a_while(self, rounds: int) -> None:
        for _ in range(rounds):
            self.world.kindly()
            self.world.reconcile()

    @rule(verb=st.sampled_from(VERBS))
    def a_person_says(self, verb: str) -> None:
        self.nonce += 1
        rollout = self.world.status.rollout
        names = [rollout.revision] if rollout and rollout.revision else []
        if verb == "rollback":
            names = [r for r in self.world.revisions if r not in names]
        if names and names[0] in self.world.revisions:
            step = self.world.status.step if verb == "promote" else None
            self.world.say(verb, names[0], f"n{self.nonce:04x}", step)

    @rule(every=st.sampled_from(["10m", "15m"]))
    def a_person_edits(self, every: str) -> None:
        self.every = every
        self.world.edit(self.spec())

    @rule()
    def status_is_lost(self) -> None:
        self.world.lose_status()

    @rule()
    def what_is_known_of_the_source_is_lost(self) -> None:
        self.world.status = self.world.status.model_copy(update={"follow": None})
        self.world.version += 1

    # --- what holds

    @invariant()
    def a_stop_and_a_look_exclude_each_other(self) -> None:
        if not hasattr(self, "world"):
            return
        status = self.world.status
        truth = {c.type: c.status for c in status.conditions}
        if truth.get("Following") == "False":
            assert status.follow is None or status.follow.looking is None
        if status.follow is not None and status.follow.looking is not None and in_flight(status.rollout):
            assert self.supersede == "Paused", "a rollout in flight ends first"
        assert sum(truth.get(kind) == "True" for kind in ("Reconciling", "Stalled")) <= 1

    def teardown(self) -> None:
        """All is well, and a person lets everything go on: what lies there serves, or was
        refused.
        """
        if not hasattr(self, "world"):
            return
        world = self.world
        world.store = None
        for _ in range(4):
            world.serve()
            stable, rollout = world.status.stable, world.status.rollout
            assert stable is not None
            if in_flight(rollout) and rollout is not None and rollout.revision is not None:
                self.a_person_says("abort")  # it waits for a person
                world.serve()
            world.tick(2 * EVERY)
            self.a_person_says("follow")
            world.serve()
        stable = world.status.stable
        assert stable is not None and world.status.follow is not None
        served = world.revisions[stable.revision].sha256
        refused = {r.sha256 for r in world.revisions.values() if r.name in world.quarantined}
        pinned = world.status.pinned is not None
        assert world.source in {served, *refused} or pinned or in_flight(world.status.rollout), (
            f"{world.source} lies there and is not served: {world.status.follow}"
        )


TestFollow = FollowMachine.TestCase
TestFollow.settings = PROFILE
