"""A tenant against a policy that demands metrics: whatever he writes, a wrong model never has more
than the first weight.

Random walks over all that a tenant may do: specs, strategies, scale, the verbs of his own object,
deletion and creation anew, another ModelDeployment, host names that wander. Two worlds: the state
machine in plain Python (modelrollout.testing.model_cluster), and the whole controller against an
API server in plain Python. What is judged are the weights of the routes and of the data plane, and
the pods that a Service selects, with a list of the models that are wrong; nothing of what the
operator thinks of it. ``HYPOTHESIS_PROFILE=deep`` walks thousands of times.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import os
from datetime import timedelta
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modelrollout.api import names
from modelrollout.api.v1alpha1 import MetricStatus, ModelDeploymentSpec
from modelrollout.kube.errors import KubeError
from modelrollout.kube.kinds import HTTP_ROUTE, MODEL_DEPLOYMENT, MODEL_REVISION
from modelrollout.problem import Problem
from modelrollout.rollout.policy.requirements import first_violation
from modelrollout.rollout.policy.rules import combine, read
from modelrollout.rollout.snapshot import Assessment, Snapshot
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import Cluster, Operator
from modelrollout.testing.model_cluster import ModelCluster
from tests.property.test_decide import STRATEGIES, canary

pytestmark = pytest.mark.heavy

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
QUIET: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
OF_THE_WORLD = settings(
    max_examples=3000 if DEEP else 150, stateful_step_count=60 if DEEP else 40, derandomize=not DEEP, **QUIET
)
OF_THE_CLUSTER = settings(
    max_examples=1000 if DEEP else 25, stateful_step_count=40 if DEEP else 25, derandomize=not DEEP, **QUIET
)

DEMANDED = [{"name": "accuracy", "maxDrop": 0.02}, {"name": "errors", "maxIncrease": 0.01}]
WAYS: list[dict[str, Any]] = [
    *STRATEGIES,
    canary({"weight": 100}),
    canary({"weight": 95}, {"weight": 99}),
    canary({"pause": {"duration": "1s"}}),
    canary({"pause": {"duration": "1s"}}, {"pause": {"duration": "1s"}}, {"weight": 90}),
    canary({"weight": 1}, {"pause": {"duration": "1s"}}, {"weight": 100}),
    {"blueGreen": {"for": "1s"}},
    {"abTest": {"headers": [{"name": "accept", "value": ".*", "type": "RegularExpression"}], "for": "1s"}},
]
WORDS: list[dict[str, Any]] = [
    {},
    {"onInconclusive": "Promote", "progressDeadline": "10s"},
    {
        "onInconclusive": "Promote",
        "progressDeadline": "10s",
        "bake": "1s",
        "scaleDownDelay": "1s",
        "rollbackWindow": "1s",
    },
    {
        "onInconclusive": "Promote",
        "analysis": {"errorLimit": "1s", "metrics": [{"name": "errors", "max": 1, "dryRun": True}]},
    },
    {"onInconclusive": "Rollback", "progressDeadline": "10s"},
    {"onFailure": "Pause", "onInconclusive": "Promote", "progressDeadline": "10s"},
]
VERDICTS: list[Any] = ["Successful", "Successful", "Inconclusive", "Error", "Failed", None]
WRONG = (2, 4)


class TenantOfTheWorld(RuleBasedStateMachine):
    """One ModelDeployment; version 1 serves, and those of ``WRONG`` never should."""

    @initialize(
        gateway=st.sampled_from([True, True, False]),
        most=st.sampled_from([5, 5, 20]),
        version=st.integers(1, 4),
        way=st.sampled_from(WAYS),
    )
    def begin(self, gateway: bool, most: int, version: int, way: dict[str, Any]) -> None:
        self.spec_changes: dict[str, Any] = {
            "version": 1,
            "gateway": gateway,
            "replicas": 2 if gateway else 100 // most,
            "rollout": {},
            "surge": {},
        }
        self.nonce = 0
        self.world = ModelCluster(self.spec())
        self.world.serve()
        self.world.rules = combine(
            [
                read(
                    {
                        "metadata": {"name": "p"},
                        "spec": {"gates": {"metrics": DEMANDED, "maxFirstWeight": most}},
                    }
                )
            ]
        )
        self.world.most = most
        self.world.wrong = {
            names.revision_name(b.NAMESPACE, b.NAME, self.spec(v).user_input(), b.sha(v)) for v in WRONG
        }
        self.edit(version=version, rollout=way)

    def spec(self, version: int | None = None) -> ModelDeploymentSpec:
        made = {**self.spec_changes}
        serving = {
            "replicas": made.pop("replicas"),
            "resources": {"limits": {"nvidia.com/gpu": 1}},
            **made.pop("surge"),
        }
        rollout = copy.deepcopy(made.pop("rollout"))
        if not made["gateway"]:  # the API server refuses these
            rollout.pop("abTest", None)
            rollout.pop("shadow", None)
            (rollout.get("blueGreen") or {}).pop("preview", None)
        return b.spec(version or made["version"], rollout=rollout, serving=serving, gateway=made["gateway"])

    def edit(self, **changes: Any) -> None:
        self.spec_changes |= changes
        spec = self.spec()
        self.world.refusal = first_violation(self.world.rules, spec, (), 0)
        self.world.edit(spec)
        self.world.reconcile()

    @rule(version=st.integers(1, 4))
    def another_version(self, version: int) -> None:
        self.edit(version=version)

    @rule(way=st.sampled_from(WAYS), words=st.sampled_from(WORDS), shadow=st.booleans())
    def another_strategy(self, way: dict[str, Any], words: dict[str, Any], shadow: bool) -> None:
        self.edit(rollout={**way, **words, **({"shadow": {"minSamples": 10}} if shadow else {})})

    @rule(
        version=st.integers(1, 4),
        way=st.sampled_from(WAYS),
        words=st.sampled_from(WORDS),
        says=st.sampled_from(VERDICTS),
        rounds=st.integers(4, 12),
    )
    def he_tries_a_way_to_its_end(
        self, version: int, way: dict[str, Any], words: dict[str, Any], says: Any, rounds: int
    ) -> None:
        self.edit(version=version, rollout={**way, **words})
        self.time_passes_and_something_is_measured(says, rounds)

    @rule(
        replicas=st.integers(0, 24),
        surge=st.sampled_from([{}, {"surge": "InPlace"}, {"surge": "InPlace", "floor": 1}]),
    )
    def scale(self, replicas: int, surge: dict[str, Any]) -> None:
        self.edit(replicas=replicas, surge=surge)

    @rule(gateway=st.booleans())
    def with_and_without_a_gateway(self, gateway: bool) -> None:
        self.edit(gateway=gateway)

    @rule(verb=st.sampled_from(["abort", "retry"]))
    def a_verb_of_his_own_object(self, verb: str) -> None:
        self.nonce += 1
        self.world.say(verb, "", f"n{self.nonce}")
        self.world.reconcile()

    @rule(verdict=st.sampled_from(VERDICTS), rounds=st.integers(1, 5))
    def time_passes_and_something_is_measured(self, verdict: Any, rounds: int) -> None:
        for _ in range(rounds):
            self.world.verdict = verdict
            self.world.kindly()
            self.world.reconcile()

    @rule(seconds=st.sampled_from([1.0, 5.0, 11.0, 61.0, 4000.0]))
    def nothing_happens_for_long(self, seconds: float) -> None:
        self.world.tick(seconds)
        self.world.reconcile()

    @rule(which=st.integers(0, 2), ready=st.integers(0, 3))
    def he_deletes_pods(self, which: int, ready: int) -> None:
        servers = sorted(self.world.servers)
        if which < len(servers):
            self.world.pods(
                servers[which], ready, Problem("Unschedulable", "no GPU is free") if ready == 0 else None
            )
            self.world.reconcile()

    @rule(after=st.integers(0, 3))
    def the_operator_dies(self, after: int) -> None:
        self.world.one_pass(crash_after=after)

    @invariant()
    def a_wrong_model_has_no_more_than_the_first_weight(self) -> None:
        if hasattr(self, "world"):
            self.world.check_wrong()


class Judge(Operator):
    """The operator, whose metrics find out who is wrong: those that the policy demands are never
    proven of it, whatever the spec's own say.
    """

    says: Any = None

    async def assess(self, s: Snapshot) -> Assessment | None:
        rollout = s.status.rollout
        if self.says is None or rollout is None:
            return None
        revision = s.revision(rollout.revision)
        wrong = revision is not None and revision.input["model"]["uri"] in {b.uri(v) for v in WRONG}
        verdict = "Inconclusive" if wrong and self.says == "Successful" else self.says
        demanded = tuple(
            MetricStatus(name=m.name, verdict=verdict, reason="AsMeasured") for m in s.rules.mandatory
        )
        return Assessment(verdict, "AsMeasured", "", demanded)


HOSTS = ["digits.example.com", "other.example.com", "preview.example.com"]


def _paths(route: Any) -> set[str]:
    return {m["path"]["value"] for rule in route["spec"]["rules"] for m in rule["matches"]}


def _places(route: Any, owner: str, *, preview: bool) -> list[str]:
    """Where clients find a model: under its name at each host name, and as a Service."""
    models = {path.split("/")[3] for path in _paths(route) if path.startswith("/v2/models/")}
    assert models == {owner}, "a route has the paths of its own model"
    return [*(f"{host}/{owner}" for host in route["spec"]["hostnames"]), *([] if preview else [owner])]


def _is_accepted(route: dict[str, Any]) -> bool:
    return any(
        c["type"] == "Accepted"
        and c["status"] == "True"
        and c["observedGeneration"] == route["metadata"]["generation"]
        for parent in (route.get("status") or {}).get("parents") or []
        for c in parent["conditions"]
    )


class TenantOfTheCluster(RuleBasedStateMachine):
    """Two ModelDeployments of one namespace, which are edited, deleted and created anew, and hand
    host names to each other.
    """

    @initialize()
    def begin(self) -> None:
        self.cluster = Cluster()
        self.cluster.policy("p", gates={"metrics": DEMANDED})
        self.operator = Judge(self.cluster)
        # by place, as ``_places``: models that were right there, before any other
        self.known: dict[str, set[str]] = {}
        self.nonce = 0
        self.write("digits", 1, True, [HOSTS[0]], {})
        self.live("Successful", 8)
        assert self.known[f"{HOSTS[0]}/digits"] == self.known["digits"] == {b.uri(1)}, "a right model serves"

    def write(self, name: str, version: int, pinned: bool, hosts: list[str], rollout: dict[str, Any]) -> None:
        traffic = {"gateway": {"name": "public"}, "http": {"hostnames": hosts}}
        wire = b.spec(version, pinned=pinned, traffic=traffic, rollout=rollout).wire()
        self.cluster.set_spec(MODEL_DEPLOYMENT, name, wire)

    async def _passes(self, name: str) -> None:
        for _ in range(30):
            try:
                if await self.operator.reconciler.reconcile((b.NAMESPACE, name)) != 0:
                    return
            except KubeError:
                continue
            finally:
                self.judge()

    def live(self, says: Any, rounds: int) -> None:
        async def main() -> None:
            for _ in range(rounds):
                self.operator.says = says
                for name in ("digits", "other"):
                    await self._passes(name)
                self.cluster.end_jobs()
                self.cluster.start_pods()
                self.cluster.accept_routes()
                self.cluster.now += timedelta(seconds=4)
                for name in ("digits", "other"):
                    await self._passes(name)

        asyncio.run(main())

    def judge(self) -> None:
        """By the routes alone. The first model of a name under which nobody was served (no gateway
        had accepted a route to one) may be any, and may be gone back to; others must be right.
        """
        models = {
            name: o["spec"]["input"]["model"]["uri"] for name, o in self.cluster.all(MODEL_REVISION).items()
        }
        opened: dict[tuple[str, str], str] = {}
        for name, route in self.cluster.all(HTTP_ROUTE).items():
            owner = (route["metadata"].get("labels") or {}).get(names.LABEL_NAME, name)
            preview = name.endswith("-preview")
            for host, path in itertools.product(route["spec"]["hostnames"], _paths(route)):
                assert opened.setdefault((host, path), name) == name, "a path leads to one model"
            for rules in route["spec"]["rules"]:
                weights = {ref["name"]: ref["weight"] for ref in rules["backendRefs"]}
                for place in _places(route, owner, preview=preview):
                    if not preview and list(weights.values()) == [100] and _is_accepted(route):
                        self.known.setdefault(place, {models[next(iter(weights))]})
                    allowed = self.known.get(place, set())
                    for revision, weight in weights.items():
                        wrong = models.get(revision) in {b.uri(v) for v in WRONG} - allowed
                        assert place not in self.known or not wrong or weight <= 5, (
                            f"{place}: {weight} % for {revision}"
                        )

    @rule(
        name=st.sampled_from(["digits", "other"]), version=st.integers(1, 4), pinned=st.booleans(),
        way=st.sampled_from(WAYS),
        words=st.sampled_from(WORDS), hosts=st.lists(st.sampled_from(HOSTS), min_size=1, max_size=2,
            unique=True),
        preview=st.sampled_from([None, None, *HOSTS]),
    )  # fmt: skip
    def he_writes(
        self,
        name: str,
        version: int,
        pinned: bool,
        way: dict[str, Any],
        words: dict[str, Any],
        hosts: list[str],
        preview: str | None,
    ) -> None:
        rollout = copy.deepcopy({**way, **words})
        if preview and "blueGreen" in rollout and preview not in hosts:
            rollout["blueGreen"]["preview"] = {"http": {"hostnames": [preview]}}
        self.write(name, version, pinned, hosts, rollout)
        self.live(None, 1)

    @rule(name=st.sampled_from(["digits", "other"]), looked=st.booleans())
    def he_deletes(self, name: str, looked: bool) -> None:
        if self.cluster.find(MODEL_DEPLOYMENT, name) is not None:
            self.cluster.remove(MODEL_DEPLOYMENT, name)
            if looked:
                self.live(None, 1)

    @rule(says=st.sampled_from(VERDICTS), rounds=st.integers(1, 5))
    def time_passes(self, says: Any, rounds: int) -> None:
        self.live(says, rounds)

    @rule(minutes=st.sampled_from([1, 60, 24 * 60]))
    def nothing_happens_for_long(self, minutes: int) -> None:
        self.cluster.now += timedelta(minutes=minutes)
        self.live(None, 1)

    @rule()
    def another_operator_takes_over(self) -> None:
        self.operator = Judge(self.cluster)
        asyncio.run(self.operator.lookups.hostnames.refresh())

    @precondition(lambda self: self.cluster.find(MODEL_DEPLOYMENT, "digits") is not None)
    @rule(verb=st.sampled_from(["abort", "retry"]))
    def a_verb_of_his_own_object(self, verb: str) -> None:
        self.nonce += 1
        told = {names.verb_annotation(verb): f"n{self.nonce}"}
        self.cluster.change(
            MODEL_DEPLOYMENT, "digits", lambda o: o["metadata"].setdefault("annotations", {}).update(told)
        )
        self.live(None, 1)


TestTenantOfTheWorld = TenantOfTheWorld.TestCase
TestTenantOfTheWorld.settings = OF_THE_WORLD
TestTenantOfTheCluster = TenantOfTheCluster.TestCase
TestTenantOfTheCluster.settings = OF_THE_CLUSTER


def test_a_walk_that_once_found_a_way() -> None:
    """A wrong first version was about to serve under a name of its own; then its spec asked for the
    version that another name was kept for.
    """
    steps, state = canary({"weight": 5}, {"weight": 25}, {"weight": 50}), TenantOfTheCluster()
    state.begin()
    state.he_deletes(name="digits", looked=False)
    state.he_writes(name="other", version=2, pinned=True, way=steps, words={}, hosts=[HOSTS[1]], preview=None)
    state.nothing_happens_for_long(minutes=1)
    state.he_writes(name="other", version=1, pinned=True, way=steps, words={}, hosts=[HOSTS[0]], preview=None)
    state.time_passes(says="Successful", rounds=8)
