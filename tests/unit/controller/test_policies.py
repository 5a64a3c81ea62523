"""RolloutPolicies in the loop: they reach the decision, tell their own status, wake whom they
concern, and cost nothing where there is none.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import pytest

from modelrollout.api.v1alpha1.policy import RolloutPolicyStatus
from modelrollout.controller.lookups.namespaces import FRESH
from modelrollout.controller.lookups.policies import Policies
from modelrollout.kube import cache
from modelrollout.kube.errors import Forbidden, KubeError, Unavailable
from modelrollout.kube.kinds import (
    DEPLOYMENT,
    HTTP_ROUTE,
    LEASE,
    MODEL_DEPLOYMENT,
    NAMESPACE,
    ROLLOUT_POLICY,
    Resource,
)
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import KEY, Cluster, Operator


def told(cluster: Cluster, name: str = "p") -> RolloutPolicyStatus:
    return RolloutPolicyStatus.model_validate(cluster.objects[ROLLOUT_POLICY, "", name]["status"])


async def serving(spec: Any = None, **policy: Any) -> tuple[Cluster, Operator]:
    """Version 1 is stable, then the policy comes."""
    cluster = Cluster()
    cluster.user(b.spec(1))
    operator = Operator(cluster)
    await operator.live()
    assert cluster.status.phase == "Stable"
    if policy:
        cluster.policy("p", **policy)
        await operator.reconciler.reconcile(("", "p"))
    if spec is not None:
        cluster.user(spec)
    return cluster, operator


class TestOwnStatus:
    def test_it_says_that_it_holds_and_for_how_many(self) -> None:
        cluster, _ = asyncio.run(serving(selector={"namespaces": [b.NAMESPACE]}))
        assert (told(cluster).accepted, told(cluster).matches) == ("True", 1)
        assert told(cluster).conditions[0].reason == "Accepted"

    def test_one_that_cannot_be_read_says_why(self) -> None:
        cluster, _ = asyncio.run(serving(freezeWindows=[{"schedule": "0 0 * *", "duration": "1h"}]))
        assert told(cluster).accepted == "False"
        assert "spec.freezeWindows[0].schedule" in told(cluster).conditions[0].message

    def test_an_unchanged_one_is_not_written_again(self) -> None:
        async def main() -> None:
            cluster, operator = await serving(gates={"golden": True})
            cluster.requests.clear()
            assert await operator.reconciler.reconcile(("", "p")) is None
            assert cluster.requests == []

        asyncio.run(main())

    def test_a_freeze_that_begins_is_shown(self) -> None:
        async def main() -> None:
            window = {"start": "2026-11-22T12:30:00Z", "end": "2026-11-22T20:00:00Z"}
            cluster, operator = await serving(freezeWindows=[window])
            assert told(cluster).frozen_until is None
            cluster.now = b.at(3600)
            assert await operator.reconciler.reconcile(("", "p")) == 60.0
            assert told(cluster).frozen_until == "2026-11-22T20:00:00.000Z"

        asyncio.run(main())


class TestWaking:
    def test_a_change_wakes_those_whom_it_matched_or_matches(self) -> None:
        async def main() -> None:
            cluster, operator = await serving()
            cluster.policy("p", selector={"namespaces": [b.NAMESPACE]})
            await operator.reconciler.reconcile(("", "p"))
            assert operator.woken == [(b.NAMESPACE, b.NAME)]
            cluster.policy("p", selector={"namespaces": ["other"]})
            await operator.reconciler.reconcile(("", "p"))
            assert len(operator.woken) == 2
            await operator.reconciler.reconcile(("", "p"))
            cluster.policy("p", selector={"namespaces": ["elsewhere"]})
            await operator.reconciler.reconcile(("", "p"))
            assert len(operator.woken) == 2, "it concerns no model here"

        asyncio.run(main())

    def test_one_that_goes_wakes_them_too(self) -> None:
        async def main() -> None:
            cluster, operator = await serving(gates={"golden": True})
            operator.woken.clear()
            cluster.remove(ROLLOUT_POLICY, "p")
            await operator.reconciler.reconcile(("", "p"))
            assert operator.woken == [(b.NAMESPACE, b.NAME)]

        asyncio.run(main())

    def test_a_fleet_is_woken_over_time(self) -> None:
        store, waits = cache.ObjectCache(), list[float]()
        for i in range(1000):
            metadata = {"name": f"m{i}", "namespace": "ns", "uid": str(i), "resourceVersion": str(i + 1)}
            store.record_read(MODEL_DEPLOYMENT, {"metadata": metadata, "spec": {}})
        store.record_read(
            ROLLOUT_POLICY,
            {
                "metadata": {
                    "name": "p",
                    "uid": "p",
                    "resourceVersion": "5000",
                    "generation": 1,
                    "deletionTimestamp": "x",
                },
                "spec": {},
            },
        )
        policies = Policies(None, store, lambda key, wait: waits.append(wait), lambda: b.START)  # type: ignore[arg-type]
        asyncio.run(policies.reconcile("p"))
        assert len(waits) == 1000 and max(waits) <= 20
        assert max(sum(second <= w < second + 1 for w in waits) for second in range(20)) < 150


class TestInTheLoop:
    def test_a_demand_keeps_the_version_from_beginning_and_stable_serves_on(self) -> None:
        async def main() -> None:
            cluster, operator = await serving(b.spec(2), gates={"golden": True})
            await operator.live(4)
            ready = next(c for c in cluster.status.conditions if c.type == "Ready")
            assert ready.reason == "GateRequired" and cluster.status.policies == ["p"]
            assert cluster.status.rollout and cluster.status.rollout.stage == "Done"
            cluster.remove(ROLLOUT_POLICY, "p")
            await operator.settle()
            assert cluster.status.rollout and cluster.status.rollout.stage != "Done", "it begins by itself"

        asyncio.run(main())

    @pytest.mark.parametrize("policy", [{}, {"gates": {"golden": False}}])
    def test_code_waits_for_a_policy_that_names_its_place(self, policy: dict[str, Any]) -> None:
        async def main() -> None:
            python = {"resources": {}, "triton": {"backend": "Python", "code": "Allowed"}}
            cluster, operator = await serving(b.spec(2, serving=python), **policy)
            await operator.live(4)
            ready = next(c for c in cluster.status.conditions if c.type == "Ready")
            assert ready.reason == "CodeNotAllowed" and "allowedSources.code" in ready.message
            assert cluster.status.rollout and cluster.status.rollout.stage == "Done", (
                "not even a Job was made"
            )
            cluster.policy("q", allowedSources={"code": ["s3://models/"]})
            await operator.settle()
            assert cluster.status.rollout and cluster.status.rollout.stage != "Done", "it begins by itself"

        asyncio.run(main())

    def test_defaults_fill_in_what_is_left_out_and_are_shown(self) -> None:
        async def main() -> None:
            spec = b.spec(2).wire()
            spec["rollout"] = {"canary": {}}
            cluster, operator = await serving(
                spec, defaults={"canary": {"steps": [{"weight": 7}]}, "progressDeadline": "3h"}
            )
            operator.assessment = b.judged("Inconclusive")
            await operator.live(10)
            assert cluster.weights() == {b.revision_name(1): 93, b.revision_name(2): 7}
            assert cluster.status.defaults == {"canary": {"steps": [{"weight": 7}]}, "progressDeadline": "3h"}

        asyncio.run(main())

    def test_with_a_limit_the_rollout_takes_a_slot_and_gives_it_back(self) -> None:
        async def main() -> None:
            cluster, operator = await serving(b.spec(2), limits={"concurrentRollouts": 1})
            operator.assessment = b.judged("Inconclusive")
            await operator.live(8)
            assert cluster.status.phase == "Canary"
            lease = cluster.objects[LEASE, "operators", "modelrollout-slot-p-0"]
            assert lease["spec"]["holderIdentity"].startswith(f"{b.NAMESPACE}/{b.NAME}/")
            operator.assessment = b.judged("Failed")
            await operator.live(4)
            assert cluster.status.rollout and cluster.status.rollout.stage == "Failed"
            assert not cluster.objects[LEASE, "operators", "modelrollout-slot-p-0"]["spec"]

        asyncio.run(main())

    def test_while_the_slot_is_held_by_another_no_pod_is_made(self) -> None:
        async def main() -> None:
            cluster, operator = await serving(limits={"concurrentRollouts": 1})
            flying = b.status(1, rollout=b.rollout("Canary", 2, step=b.step())).wire()
            other = {"metadata": {"name": "other", "namespace": "ns"}, "spec": {}, "status": flying}
            pending = cluster.put(MODEL_DEPLOYMENT, other)
            cluster.put(
                LEASE,
                {
                    "metadata": {
                        "name": "modelrollout-slot-p-0",
                        "namespace": "operators",
                        "labels": {"modelrollout.dev/policy": "p"},
                        "annotations": {
                            "modelrollout.dev/rollout": flying["rollout"]["started"],
                            "modelrollout.dev/gpus": "2",
                        },
                    },
                    "spec": {"holderIdentity": f"ns/other/{pending['metadata']['uid']}"},
                },
            )
            cluster.user(b.spec(2))
            await operator.live(6)
            assert cluster.status.rollout and cluster.status.rollout.reason == "WaitingForSlot"
            assert "1st of 1; held by 1 of other namespaces" in (cluster.status.rollout.message or "")
            assert set(cluster.all(DEPLOYMENT)) == {b.revision_name(1)} and cluster.weights(HTTP_ROUTE) == {
                b.revision_name(1): 100
            }
            cluster.requests.clear()
            await operator.settle()
            assert [r for r in cluster.requests if not r.startswith("list")] == [], "waiting writes nothing"
            done = {**flying, "rollout": {**flying["rollout"], "stage": "Done", "step": None}}
            cluster.set_status(MODEL_DEPLOYMENT, "other", done, "ns")
            await operator.live(3)
            assert b.revision_name(2) in cluster.all(DEPLOYMENT)

        asyncio.run(main())

    def test_leases_that_may_not_be_read_are_told_and_no_model_slips_through(self) -> None:
        async def main() -> None:
            cluster, operator = await serving(b.spec(2), limits={"concurrentRollouts": 1})

            def refuse(verb: str, resource: Any, name: str) -> None:
                if resource == LEASE:
                    raise Forbidden(403, "Forbidden", "leases is forbidden")

            cluster.before = refuse
            await operator.live(6)
            assert cluster.status.rollout and cluster.status.rollout.reason == "ChildRefused"
            assert "leases is forbidden" in (cluster.status.rollout.message or "")
            assert set(cluster.all(DEPLOYMENT)) == {b.revision_name(1)}

        asyncio.run(main())

    @pytest.mark.parametrize(
        "policy", [None, {"selector": {"namespaces": ["other"]}, "limits": {"concurrentRollouts": 1}}]
    )
    def test_without_a_policy_that_matches_a_rollout_makes_the_same_requests(self, policy: Any) -> None:
        async def main(**spec: Any) -> list[str]:
            cluster, operator = await serving(**spec)
            cluster.requests.clear()
            cluster.user(b.spec(2))
            operator.assessment = b.judged("Successful")
            await operator.live(20)
            assert cluster.status.stable and cluster.status.stable.revision == b.revision_name(2)
            assert cluster.status.policies is None
            return cluster.requests

        requests = asyncio.run(main(**(policy or {})))
        assert requests == asyncio.run(main())
        assert not [r for r in requests if "Lease" in r or "RolloutPolicy" in r or r.startswith("list")]


def test_equal_objects_are_combined_once() -> None:
    store = cache.ObjectCache()
    store.record_read(
        ROLLOUT_POLICY,
        {
            "metadata": {"name": "p", "uid": "p", "resourceVersion": "1", "generation": 1},
            "spec": {"selector": {"matchLabels": {"t": "x"}}},
        },
    )
    policies = Policies(None, store, lambda key, wait: None, lambda: b.START)  # type: ignore[arg-type]

    def rules(name: str, **labels: str) -> Any:
        return policies.rules({"metadata": {"name": name, "namespace": "ns", "labels": labels}})

    assert rules("a", t="x", own="1") is rules("b", t="x", own="2")
    assert rules("a", t="x").names == ("p",) and rules("a", t="y").names == ()


class TestLabelsOfNamespaces:
    LABELLED: ClassVar[dict[str, Any]] = {
        "selector": {"namespaceLabels": {"tier": "production"}},
        "gates": {"golden": True},
    }

    @staticmethod
    def labelled(cluster: Cluster, **labels: str) -> None:
        cluster.objects[NAMESPACE, "", b.NAMESPACE] = {"metadata": {"name": b.NAMESPACE, "labels": labels}}

    @staticmethod
    def refused(cluster: Cluster, error: KubeError) -> None:
        def before(verb: str, resource: Resource, name: str) -> None:
            if resource == NAMESPACE:
                raise error

        cluster.before = before

    def test_they_choose_and_a_change_counts_before_long(self) -> None:
        async def main() -> None:
            cluster, operator = await serving()
            self.labelled(cluster, tier="test")
            cluster.policy("p", **self.LABELLED)
            await operator.reconciler.reconcile(("", "p"))
            assert told(cluster).matches == 0
            await operator.settle()
            assert cluster.status.policies is None
            self.labelled(cluster, tier="production")
            cluster.now += FRESH
            cluster.user(b.spec(2))
            await operator.live(20)
            assert cluster.status.policies == ["p"]
            assert {c.type: c.reason for c in cluster.status.conditions}["Stalled"] == "GateRequired"

        asyncio.run(main())

    def test_a_moments_look_serves_for_many_passes_and_without_such_a_policy_there_is_none(self) -> None:
        async def main() -> None:
            cluster, operator = await serving(gates={"golden": True})
            assert not [r for r in cluster.requests if "Namespace" in r]
            self.labelled(cluster, tier="production")
            cluster.policy("q", **self.LABELLED)
            cluster.requests.clear()
            for _ in range(5):
                await operator.settle()
            assert len([r for r in cluster.requests if "Namespace" in r]) == 1

        asyncio.run(main())

    def test_without_the_right_to_read_them_the_policy_holds_and_says_so(self) -> None:
        async def main() -> None:
            cluster, operator = await serving()
            self.labelled(cluster, tier="test")
            self.refused(cluster, Forbidden(403, "Forbidden", "no"))
            cluster.policy("p", **self.LABELLED)
            await operator.reconciler.reconcile(("", "p"))
            assert told(cluster).matches == 1
            assert "grant it get on namespaces" in told(cluster).conditions[0].message

        asyncio.run(main())

    def test_what_was_known_stands_while_the_api_server_is_away(self) -> None:
        async def main() -> None:
            cluster, operator = await serving()
            self.labelled(cluster, tier="test")
            cluster.policy("p", **self.LABELLED)
            await operator.settle()
            self.refused(cluster, Unavailable(503, "Away", "away"))
            cluster.now += FRESH
            await operator.settle()
            await operator.reconciler.reconcile(("", "p"))
            assert told(cluster).matches == 0

        asyncio.run(main())


async def test_every_replica_wakes_its_models_for_a_policy_and_one_writes_its_status() -> None:
    cluster = Cluster()
    cluster.user(b.spec(1, pinned=True, gateway=False))
    cluster.policy("calm", limits={"jobs": 2})
    operator = Operator(cluster)
    operator.leads = False  # the policy's shard is another replica's
    await operator.lookups.policies.reconcile("calm")
    assert KEY in operator.woken and "status RolloutPolicy calm" not in cluster.requests
    operator.leads = True
    await operator.lookups.policies.reconcile("calm")
    assert "status RolloutPolicy calm" in cluster.requests
