"""The state machine against every order of events that hypothesis generates.

``modelrollout.testing.model_cluster`` drives ``decide`` as the reconciler does, and asserts the
invariants of docs/explanation/invariants.md after every write (weights, stable, numbers, kstatus,
size and round trip of status) and after every pass (waits, livelock, leftovers). At the end all
failures cease, and every rollout has to finish with stable at 100 %.
``HYPOTHESIS_PROFILE=deep`` runs many times as long.
"""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from modelrollout.api import names
from modelrollout.api.times import since
from modelrollout.problem import Problem
from modelrollout.rollout.decide import decide
from modelrollout.rollout.plan import Converge, Write
from modelrollout.rollout.policy.rules import NO_RULES, Rules, combine, read
from modelrollout.rollout.snapshot import in_flight
from modelrollout.testing import builders as b
from modelrollout.testing.model_cluster import GATEWAY, ModelCluster, Refused

pytestmark = pytest.mark.heavy

settings.register_profile(
    "deep-stateful",
    max_examples=600,
    stateful_step_count=80,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    "quick",
    max_examples=120,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)
PROFILE = settings.get_profile("deep-stateful" if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else "quick")


def canary(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"canary": {"steps": list(steps), **more}}


STRATEGIES: list[dict[str, Any]] = [
    canary({"weight": 5}, {"weight": 25}, {"weight": 50}),
    canary({"weight": 25}),
    canary({"weight": 10}, {"weight": 20}, {"weight": 40}, {"weight": 80}, scale="Weight"),
    canary(
        {"pause": {}},
        {"weight": 10, "replicas": 1},
        {"pause": {"duration": "30s"}},
        {"weight": 60, "for": "20s"},
        scale="Weight",
    ),
    canary({"weight": 5}, {"pause": {}}, {"weight": 50, "replicas": 2}),
    canary({"weight": 5}, {"weight": 25}, {"pause": {"duration": "1m"}}, {"weight": 100}),
    canary({"weight": 100}),
    {"blueGreen": {}},
    {"blueGreen": {"preview": {"http": {"hostnames": ["preview.example.com"]}}, "for": "20s"}},
    {"blueGreen": {"preview": {"http": {"hostnames": ["preview.example.com"]}}, "autoPromote": False}},
    {"abTest": {"headers": [{"name": "x-group", "value": "b"}]}},
    {
        "abTest": {
            "headers": [{"name": "x-group", "value": "b.*", "type": "RegularExpression"}],
            "for": "20s",
            "autoPromote": False,
        }
    },
]
POLICIES: list[dict[str, Any]] = [
    {"progressDeadline": "5m"},
    {"progressDeadline": "5m", "bake": "20s"},
    {"progressDeadline": "5m", "bake": "2m", "scaleDownDelay": "20s"},
    {"progressDeadline": "5m", "onInconclusive": "Rollback", "scaleDownDelay": "30s", "rollbackWindow": "1m"},
    {"progressDeadline": "5m", "onInconclusive": "Rollback", "bake": "10s"},
    {"progressDeadline": "5m", "onInconclusive": "Promote"},
    {"progressDeadline": "5m", "onInconclusive": "Promote", "bake": "10s"},
    {"progressDeadline": "5m", "onFailure": "Pause", "rollbackWindow": "1m"},
    {"progressDeadline": "5m", "onFailure": "Pause", "bake": "20s"},
]
RULES = [
    NO_RULES,
    NO_RULES,
    *(
        combine([read({"metadata": {"name": "p"}, "spec": spec})])
        for spec in (
            {"freezeWindows": [{"start": "2026-11-22T12:01:00Z", "end": "2026-11-22T12:20:00Z"}]},
            {"limits": {"concurrentRollouts": 1}},
            {"gates": {"unknown": True}},
            {"gates": {"deadStable": "Forbid"}},
        )
    ),
]
SHADOWS: list[dict[str, Any]] = [
    {},
    {"shadow": {"minSamples": 10}},
    {"shadow": {"minSamples": 10, "for": "20s", "outputs": [{"name": "logits", "argmax": True}]}},
]
TUNES: list[dict[str, Any] | None] = [None, None, {"objective": "50ms"}]
SURGES: list[dict[str, Any]] = [{}, {"surge": "InPlace"}, {"surge": "InPlace", "floor": 1}]
PROBLEMS = [None, Problem("Unschedulable", "no GPU is free"), Problem("ImagePullFailed", "no such image")]


class RolloutMachine(RuleBasedStateMachine):
    """Users, Jobs, pods, gateways, crashes and other leaders in any order."""

    @initialize(
        gateway=st.sampled_from([True, True, False]),
        golden=st.booleans(),
        backend=st.sampled_from([None, None, "TorchScript"]),
        serves=st.sampled_from([0, 1, 1, 2, 2]),
        strategy=st.sampled_from(STRATEGIES),
        policy=st.sampled_from(POLICIES),
        shadow=st.sampled_from(SHADOWS),
        tune=st.sampled_from(TUNES),
        way=st.sampled_from(["TraefikService", "TraefikService", "RequestMirror"]),
        rounds=st.integers(0, 8),
        verdict=st.sampled_from(["Successful", "Inconclusive", None]),
        gpus=st.sampled_from([None, None, 2, 3, 4]),
        surge=st.sampled_from(SURGES),
        outage=st.sampled_from([None, None, 5.0, 61.0]),
    )
    def begin(
        self,
        gateway: bool,
        golden: bool,
        backend: str | None,
        serves: int,
        strategy: dict[str, Any],
        policy: dict[str, Any],
        shadow: dict[str, Any],
        tune: dict[str, Any] | None,
        way: Any,
        rounds: int,
        verdict: Any,
        gpus: int | None,
        surge: dict[str, Any],
        outage: float | None,
    ) -> None:
        """Most runs begin with a version that serves, and with the next one under way; in some the
        first one has just died.
        """
        self.spec_changes: dict[str, Any] = {
            "version": 1,
            "gateway": gateway,
            "golden": golden,
            "triton": {"triton": {"backend": backend}} if backend else {},
            "strategy": STRATEGIES[0],
            "replicas": 2,
            "tune": tune,
            "surge": {},
            "rollout": POLICIES[0],
            "shadow": shadow if gateway else {},
            "revisionHistoryLimit": 2,
        }
        self.nonce = 0
        self.world = ModelCluster(self.spec(), way=way)
        self.former: ModelCluster | None = None
        for version in range(1, serves + 1):
            self.world.serve()
            self.edit(version=version + 1, strategy=strategy, rollout=policy, surge=surge)
        self.world.gpus = gpus
        self.world.verdict = verdict
        if serves:
            self.all_goes_well_for_a_while(rounds)
            if outage is not None:
                self.stable_dies(outage, verdict, 1)

    def spec(self) -> Any:
        made = {**self.spec_changes}
        rollout = {**made.pop("rollout"), **made.pop("shadow"), **made.pop("strategy")}
        serving = {
            "replicas": made.pop("replicas"),
            "resources": {"limits": {"nvidia.com/gpu": 1}},
            **made.pop("surge"),
            **made.pop("triton"),
        }
        if not made["gateway"] and "abTest" in rollout:
            rollout |= STRATEGIES[0]  # the API server would refuse it
            del rollout["abTest"]
        if not made["gateway"] and "blueGreen" in rollout:
            rollout["blueGreen"] = {k: v for k, v in rollout["blueGreen"].items() if k != "preview"}
        return b.spec(made.pop("version"), rollout=rollout, serving=serving, **made)

    def edit(self, **changes: Any) -> None:
        self.spec_changes |= changes
        self.world.edit(self.spec())

    # --- the operator

    @rule()
    def reconcile(self) -> None:
        self.world.reconcile()

    @rule(passes=st.integers(1, 3))
    def a_few_passes(self, passes: int) -> None:
        for _ in range(passes):
            self.world.one_pass()

    @rule(after=st.integers(0, 3))
    def crash_between_two_writes(self, after: int) -> None:
        self.world.one_pass(crash_after=after)

    @rule()
    def a_leader_is_paused(self) -> None:
        """It has read everything, and goes on some time later (``goes_on``)."""
        self.former = copy.deepcopy(self.world)

    @precondition(lambda self: self.former is not None)
    @rule()
    def the_paused_leader_goes_on(self) -> None:
        """Whatever it decides on what it has read: its transition is refused if anything has
        changed since, and its route if somebody has written that. A route that nobody has written
        meanwhile it may set once more; the leader puts that right with its next pass.
        """
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
        elif (
            isinstance(plan, Converge)
            and s.exact_weights
            and plan.desired.split
            and former.route_version == self.world.route_version
        ):
            mirror = former.wanted_mirror(s)
            routed = mirror.canary.revision if mirror and mirror.routed else None
            self.world.change_route(plan.desired.split, former.aside(s, plan.desired), routed)

    # --- the world

    @rule(seconds=st.sampled_from([0.5, 3.0, 5.0, 20.0, 61.0, 301.0, 4000.0, -5.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.tick(seconds)

    @rule(how=st.sampled_from(["ok", "ok", "ok", "lost", "bad", "gate", "oom"]))
    def a_job_ends(self, how: str) -> None:
        self.world.end_job(how)
        self.world.reconcile()

    @rule(which=st.integers(0, 2), ready=st.sampled_from([0, 1, 2, 3, 3]), problem=st.sampled_from(PROBLEMS))
    def pods_change(self, which: int, ready: int, problem: Problem | None) -> None:
        servers = sorted(self.world.servers)
        if which < len(servers):
            self.world.pods(servers[which], ready, problem if ready == 0 else None)

    @precondition(lambda self: self.world.status.stable is not None and in_flight(self.world.status.rollout))
    @rule(
        seconds=st.sampled_from([5.0, 61.0, 61.0, 4000.0]),
        verdict=st.sampled_from(["Successful", "Failed", "Inconclusive", None]),
        rounds=st.integers(0, 4),
    )
    def stable_dies(self, seconds: float, verdict: Any, rounds: int) -> None:
        assert self.world.status.stable is not None
        self.world.kill(self.world.status.stable.revision)
        self.world.reconcile()
        self.world.tick(seconds)
        self.traffic_flows(verdict, rounds)

    @rule(rounds=st.integers(0, 2))
    def the_dead_come_back(self, rounds: int) -> None:
        self.world.dead.clear()
        self.all_goes_well_for_a_while(rounds)

    @rule(rounds=st.integers(0, 3), replicas=st.integers(1, 3))
    def to_zero_and_back(self, rounds: int, replicas: int) -> None:
        self.edit(replicas=0)
        self.world.reconcile()
        self.all_goes_well_for_a_while(rounds)
        self.edit(replicas=replicas)
        self.world.reconcile()

    @rule(which=st.integers(0, 2), times=st.sampled_from([1, 1, 2, 3]))
    def a_server_crashes_and_is_back(self, which: int, times: int) -> None:
        servers = sorted(self.world.servers)
        for _ in range(times if which < len(servers) else 0):
            self.world.end_server(servers[which])

    @rule()
    def pods_start(self) -> None:
        self.world.schedule()

    @rule(gpus=st.sampled_from([None, 2, 3, 4, 6]), surge=st.sampled_from(SURGES))
    def gpus_come_and_go(self, gpus: int | None, surge: dict[str, Any]) -> None:
        """An autoscaler or another team; who has one keeps it."""
        self.world.gpus = gpus
        self.edit(surge=surge)

    @rule()
    def the_gateway_accepts(self) -> None:
        self.world.accept()

    @rule(gone=st.booleans(), refuses=st.booleans())
    def the_gateway_goes_refuses_and_is_back(self, gone: bool, refuses: bool) -> None:
        self.gateway_is(gone=gone, refuses=refuses)

    @rule(gone=st.booleans())
    def the_gateway_is_away_for_long(self, gone: bool) -> None:
        """Every wait for it ends, whatever is under way."""
        self.gateway_is(gone=gone, refuses=not gone)
        self.all_goes_well_for_a_while(2)
        self.world.tick(601)
        self.world.reconcile()
        rollout = self.world.status.rollout
        if rollout is not None and rollout.stage == "Revert":
            assert since(rollout.since, self.world.now) < 600, "a rollback for ever"

    def gateway_is(self, *, gone: bool, refuses: bool) -> None:
        missing = Problem("GatewayMissing", "spec.traffic.gateway: Gateway ml/public does not exist")
        self.world.gateway = replace(GATEWAY, problem=missing if gone else None)
        self.world.gateway_refuses = refuses

    @rule(verdict=st.sampled_from(["Successful", "Successful", "Failed", "Inconclusive", "Error", None]))
    def analysis_says(self, verdict: Any) -> None:
        self.world.verdict = verdict
        self.world.reconcile()

    @rule(verdict=st.sampled_from(["Successful", "Successful", "Failed", "Inconclusive", "Error"]))
    def golden_data_says(self, verdict: Any) -> None:
        self.world.golden_verdict = verdict

    @rule(rounds=st.integers(1, 6))
    def all_goes_well_for_a_while(self, rounds: int) -> None:
        for _ in range(rounds):
            self.world.kindly()
            self.world.reconcile()

    @rule(
        verdict=st.sampled_from(["Successful", "Successful", "Failed", "Inconclusive", "Error"]),
        rounds=st.integers(1, 3),
    )
    def traffic_flows(self, verdict: Any, rounds: int) -> None:
        """Pods start, the gateway accepts, and the analysis gets that far."""
        self.world.verdict = verdict
        self.all_goes_well_for_a_while(rounds)

    @precondition(lambda self: self.world.status.step is not None)
    @rule(times=st.sampled_from([1, 1, 2, 3]), rounds=st.integers(0, 4))
    def the_candidates_server_crashes_and_all_else_goes_well(self, times: int, rounds: int) -> None:
        rollout = self.world.status.rollout
        assert rollout is not None
        for _ in range(times):
            self.world.end_server(rollout.revision or "")
        self.traffic_flows("Successful", rounds)

    # --- users

    @rule(version=st.integers(1, 4), pinned=st.booleans())
    def another_version(self, version: int, pinned: bool) -> None:
        self.edit(version=version, pinned=pinned)

    @rule(strategy=st.sampled_from(STRATEGIES), policy=st.sampled_from(POLICIES))
    def another_strategy(self, strategy: dict[str, Any], policy: dict[str, Any]) -> None:
        self.edit(strategy=strategy, rollout=policy)

    @precondition(lambda self: self.spec_changes["gateway"])
    @rule(shadow=st.sampled_from(SHADOWS))
    def shadow_on_or_off(self, shadow: dict[str, Any]) -> None:
        self.edit(shadow=shadow)

    @rule(replicas=st.integers(0, 4))
    def scale(self, replicas: int) -> None:
        self.edit(replicas=replicas)

    @rule(tune=st.sampled_from(TUNES))
    def tuning_on_or_off(self, tune: dict[str, Any] | None) -> None:
        self.edit(tune=tune)

    @rule(golden=st.booleans(), limit=st.integers(1, 3))
    def golden_on_or_off(self, golden: bool, limit: int) -> None:
        self.edit(golden=golden, revisionHistoryLimit=limit)

    @rule(abort=st.booleans())
    def a_spec_that_cannot_be_read(self, abort: bool) -> None:
        """Everything stays as it is, until somebody says abort: then stable gets everything
        back.
        """
        self.gateway_is(gone=False, refuses=False)
        self.world.edit(None)
        self.world.reconcile()
        rollout = self.world.status.rollout
        if (
            abort
            and rollout is not None
            and in_flight(rollout)
            and rollout.stage in ("Shadow", "Canary", "Bake")
        ):
            self.nonce += 1
            self.world.say("abort", rollout.revision or "", f"n{self.nonce}")
            for _ in range(3):
                self.world.reconcile()
                self.world.kindly()
            ended, stable = self.world.status.rollout, self.world.status.stable
            assert ended is not None and ended.stage == "Failed" and stable is not None
            assert (
                self.world.route in (None, ((stable.revision, 100),))
                and self.world.matched is None
                and self.world.route_mirror is None
            )

    @rule(
        refusal=st.sampled_from(
            [
                None,
                None,
                Problem("StoreNotAllowed", "use another store"),
                Problem("FilterNotAllowed", "leave it out"),
            ]
        )
    )
    def what_is_allowed(self, refusal: Problem | None) -> None:
        self.world.refusal = refusal

    @rule(rules=st.sampled_from(RULES), slot=st.booleans())
    def policies_change(self, rules: Rules, slot: bool) -> None:
        self.world.rules, self.world.slot = rules, slot
        self.world.reconcile()

    @rule(verb=st.sampled_from(names.VERBS), which=st.integers(0, 3), stale=st.booleans())
    def a_verb(self, verb: str, which: int, stale: bool) -> None:
        revisions = sorted(self.world.revisions)
        name = revisions[which] if which < len(revisions) else ""
        if not name and verb not in ("abort", "retry"):
            return
        self.nonce += 1
        self.world.say(verb, name, f"n{self.nonce}", "9/9" if stale else self.world.status.step)

    @precondition(lambda self: in_flight(self.world.status.rollout))
    @rule(verb=st.sampled_from(["promote", "promote", "promote-full", "pause", "resume", "abort"]))
    def a_verb_that_fits(self, verb: str) -> None:
        rollout = self.world.status.rollout
        assert rollout is not None
        self.nonce += 1
        self.world.say(verb, rollout.revision or "", f"n{self.nonce}", self.world.status.step)
        self.world.reconcile()

    @precondition(lambda self: in_flight(self.world.status.rollout) and self.world.status.step is not None)
    @rule(
        verdict=st.sampled_from(["Successful", "Successful", "Inconclusive", "Failed"]),
        rounds=st.integers(0, 3),
        resume=st.booleans(),
    )
    def somebody_pauses_a_trial(self, verdict: Any, rounds: int, resume: bool) -> None:
        """Whatever the verdict, nothing climbs meanwhile; what is proven worse goes back (or holds)
        all the same.
        """
        rollout = self.world.status.rollout
        assert rollout is not None
        self.nonce += 1
        self.world.say("pause", rollout.revision or "", f"n{self.nonce}")
        self.traffic_flows(verdict, rounds)
        if resume:
            self.world.say("resume", rollout.revision or "", f"n{self.nonce}")
            self.world.reconcile()

    @precondition(lambda self: self.world.status.stable is not None)
    @rule()
    def somebody_restarts_stable(self) -> None:
        assert self.world.status.stable is not None
        self.nonce += 1
        self.world.say("restart", self.world.status.stable.revision, f"n{self.nonce}")
        self.world.reconcile()

    @rule(which=st.integers(0, 2))
    def somebody_rolls_back(self, which: int) -> None:
        served = sorted(name for name, r in self.world.revisions.items() if r.status.outcome == "Retired")
        if which < len(served):
            self.nonce += 1
            self.world.say("rollback", served[which], f"n{self.nonce}")
            self.world.reconcile()

    @rule(verdict=st.sampled_from(["Inconclusive", "Error", None]))
    def there_is_no_verdict_for_long(self, verdict: Any) -> None:
        self.world.verdict = verdict
        self.world.reconcile()
        self.world.tick(301)
        self.world.reconcile()

    # --- accidents

    @rule(seconds=st.sampled_from([30.0, 301.0, 4000.0]))
    def nobody_looks_for_a_while(self, seconds: float) -> None:
        self.world.away(seconds)

    @rule()
    def the_comparer_dies(self) -> None:
        self.world.comparer = False

    @rule()
    def somebody_takes_the_mirror_out_of_the_route(self) -> None:
        if self.world.route and self.world.route_mirror:
            self.world.change_route(self.world.route, self.world.matched)

    @rule(which=st.integers(0, 2))
    def somebody_deletes_a_deployment(self, which: int) -> None:
        servers = sorted(self.world.servers)
        if which < len(servers):
            self.world.damaged = True
            del self.world.servers[servers[which]]
            self.world.reconcile()

    @rule()
    def somebody_changes_the_route(self) -> None:
        if self.world.route:
            self.world.change_route(
                tuple((name, 100 // len(self.world.route)) for name, _ in self.world.route)
            )

    @rule()
    def somebody_deletes_a_job(self) -> None:
        if self.world.jobs:
            self.world.jobs.popitem()

    @rule(all_of_it=st.booleans())
    def status_is_lost(self, all_of_it: bool) -> None:
        self.world.lose_status(all_of_it=all_of_it)
        self.world.reconcile()

    def teardown(self) -> None:
        """The world turns kind: every rollout ends, and stable (if there is one) has everything."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.refusal, world.rules, world.gpus = None, NO_RULES, None
        world.dead.clear()
        self.gateway_is(gone=False, refuses=False)
        # a new version waits for replicas
        if world.spec is None or world.spec.serving.replicas == 0:
            self.edit(replicas=max(1, self.spec_changes["replicas"]))
        for _ in range(3):
            world.serve()
            if not in_flight(world.status.rollout):
                break
            rollout = world.status.rollout
            assert rollout is not None
            if rollout.stage == "Shadow":
                assert rollout.shadow is not None and rollout.shadow.phase == "Paused", (
                    f"{rollout} does not end"
                )
            else:
                assert rollout.stage in ("Canary", "Bake") and rollout.step, f"{rollout} does not end"
                assert rollout.step.phase == "Paused" or rollout.paused_by_user, f"{rollout} does not end"
            self.nonce += 1
            world.say("abort", rollout.revision or "", f"n{self.nonce}")
        assert not in_flight(world.status.rollout), f"{world.status.rollout} does not end"
        plan = world.reconcile()
        assert plan.requeue_after is None, "at rest nothing is waited for"
        stable = world.status.stable
        if stable is not None and world.route is not None:
            assert world.route == ((stable.revision, 100),) == world.plane
            assert set(world.servers) == {stable.revision}
            assert (world.mirror, world.route_mirror, world.plane_mirror) == (None, None, None)


TestRollouts = RolloutMachine.TestCase
TestRollouts.settings = PROFILE
