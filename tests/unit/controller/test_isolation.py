"""NetworkPolicies as the operator keeps them: before the pods, without a restart, word by word, and
never in the way of anything else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from modelrollout.config import NetworkPoliciesConfig, OperatorConfig
from modelrollout.controller import process
from modelrollout.kube.errors import Forbidden, Invalid, KubeError, TooManyRequests, Unavailable
from modelrollout.kube.kinds import (
    DEPLOYMENT,
    MODEL_DEPLOYMENT,
    NETWORK_POLICY,
    POD_DISRUPTION_BUDGET,
    Resource,
)
from modelrollout.kube.objects import Object, controller_of
from modelrollout.telemetry.metrics import Metrics
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import CONFIG, Cluster, Operator

NAMES = {f"{b.NAME}-{part}" for part in ("servers", "comparer", "jobs", "evaluate")}
WRITE: dict[str, Any] = {
    "mode": "Write",
    "proxies": {"namespaces": ["gateways"]},
    "prometheus": {"namespaces": ["monitoring"]},
    "stores": [{"addresses": ["10.20.0.0/24"]}],
}


def config(**changes: Any) -> OperatorConfig:
    return CONFIG.model_copy(
        update={"network_policies": NetworkPoliciesConfig.model_validate(WRITE | changes)}
    )


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


async def serving(
    of: OperatorConfig | None = None, cluster: Cluster | None = None
) -> tuple[Cluster, Operator]:
    """Version 1 is stable, and nothing is left to do."""
    cluster = cluster or Cluster()
    cluster.user(b.spec(1))
    operator = Operator(cluster, of or config())
    await operator.live()
    assert cluster.status.phase == "Stable"
    cluster.requests.clear()
    operator.events.clear()
    return cluster, operator


def policies(cluster: Cluster) -> dict[str, Object]:
    return cluster.all(NETWORK_POLICY)


def isolated(cluster: Cluster) -> tuple[str, str, str] | None:
    return next(
        ((c.status, c.reason, c.message) for c in cluster.status.conditions if c.type == "Isolated"), None
    )


def ready(cluster: Cluster) -> str:
    return next(c.status for c in cluster.status.conditions if c.type == "Ready")


def refusing(*verbs: str, error: KubeError | None = None) -> Any:
    """The API server takes no NetworkPolicy: the right is wanting, or what is given."""

    def before(verb: str, resource: Resource, name: str) -> None:
        if resource == NETWORK_POLICY and verb in verbs:
            raise error or Forbidden(403, "Forbidden", f"networkpolicies is forbidden: cannot {verb}")

    return before


def test_they_are_there_before_the_first_pod_and_cost_nothing_at_rest() -> None:
    async def main() -> None:
        cluster = Cluster()
        cluster.user(b.spec(1))
        operator = Operator(cluster, config())
        await operator.live()
        made = [
            r
            for r in cluster.requests
            if r.startswith("create ") and r.split()[1] in ("NetworkPolicy", "Job", "Deployment")
        ]
        assert {r.split()[1] for r in made[:3]} == {"NetworkPolicy"} and set(policies(cluster)) == NAMES
        assert isolated(cluster) is None and ready(cluster) == "True"
        owner = cluster.find(MODEL_DEPLOYMENT)
        assert owner and {p["metadata"]["ownerReferences"][0]["uid"] for p in policies(cluster).values()} == {
            owner["metadata"]["uid"]
        }
        cluster.requests.clear()
        assert await operator.once() is None and cluster.requests == []
        cluster.user(b.spec(2))
        await operator.live()
        assert not [r for r in cluster.requests if "NetworkPolicy" in r], "they are not of a version"

    run(main())


def test_an_upgrade_adds_them_to_what_runs_and_restarts_nothing() -> None:
    async def main() -> None:
        cluster, _ = await serving(CONFIG)
        assert not policies(cluster)
        before = cluster.all(DEPLOYMENT)
        await Operator(cluster, config()).settle()
        assert set(policies(cluster)) == NAMES and cluster.all(DEPLOYMENT) == before
        assert {r.split()[1] for r in cluster.requests} - {"Gateway", "Lease"} == {
            "NetworkPolicy",
            "ModelRevision",
        }, "whose uids it records"

    run(main())


def test_what_spec_and_configuration_say_reaches_them() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.user(b.spec(1, traffic={"clients": {"namespaces": ["shop"]}}))
        await operator.settle()
        assert "'shop'" in str(
            policies(cluster)[f"{b.NAME}-servers"]["spec"]["ingress"]
        ) and "shop" not in str(policies(cluster)[f"{b.NAME}-comparer"])
        assert cluster.status.rollout is None or cluster.status.rollout.stage == "Done", (
            "it is no new version"
        )
        await Operator(cluster, config(stores=[{"addresses": ["10.30.0.0/16"], "ports": [9000]}])).settle()
        assert "10.30.0.0/16" in str(
            policies(cluster)[f"{b.NAME}-jobs"]["spec"]
        ) and "10.20.0.0/24" not in str(policies(cluster))

    run(main())


@pytest.mark.parametrize(
    "edit",
    [
        lambda o: o["spec"].update(ingress=[{}]),
        lambda o: o["spec"].update(policyTypes=["Ingress"]),
        lambda o: o["spec"]["egress"].append({}),
        lambda o: o["spec"]["egress"][0]["ports"][0].update(endPort=65535),
        lambda o: o["spec"]["podSelector"]["matchLabels"].update(more="than that"),
        lambda o: o["metadata"]["labels"].pop("modelrollout.dev/name"),
    ],
    ids=["rule where none is", "type", "rule", "ports", "selector", "our label"],
)
def test_what_a_user_changes_in_them_is_put_back(edit: Any) -> None:
    async def main() -> None:
        cluster, operator = await serving()
        name = f"{b.NAME}-jobs"
        before = policies(cluster)[name]
        cluster.change(NETWORK_POLICY, name, edit)
        await operator.settle()
        after = policies(cluster)[name]
        assert after["spec"] == before["spec"] and after["metadata"]["labels"] == before["metadata"]["labels"]
        cluster.remove(NETWORK_POLICY, name)
        await operator.settle()
        assert policies(cluster)[name]["spec"] == before["spec"]

    run(main())


@pytest.mark.parametrize(
    "gone", [{"mode": "Remove"}, {"namespaces": ["elsewhere"]}], ids=["Remove", "other namespaces"]
)
def test_switched_off_they_go_and_strangers_policies_stay(gone: dict[str, Any]) -> None:
    async def main() -> None:
        cluster, _ = await serving()
        labels = policies(cluster)[f"{b.NAME}-jobs"]["metadata"]["labels"]
        cluster.put(
            NETWORK_POLICY,
            {
                "metadata": {"name": "theirs", "labels": labels},
                "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
            },
        )
        operator = Operator(cluster, config(**gone))
        await operator.settle()
        assert set(policies(cluster)) == {"theirs"}, "whatever its labels say"
        cluster.requests.clear()
        assert await operator.once() is None and cluster.requests == []

    run(main())


def test_ignored_they_are_neither_written_nor_removed() -> None:
    async def main() -> None:
        cluster, _ = await serving()
        cluster.remove(NETWORK_POLICY, f"{b.NAME}-jobs")
        operator = Operator(cluster, CONFIG)
        await operator.settle()
        assert set(policies(cluster)) == NAMES - {f"{b.NAME}-jobs"} and not [
            r for r in cluster.requests if "NetworkPolicy" in r
        ]

    run(main())


def test_a_spec_that_cannot_be_read_changes_none_of_them() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        before = policies(cluster)
        cluster.user({"serving": 3})
        await operator.settle()
        await Operator(cluster, config(mode="Remove")).settle()
        assert policies(cluster) == before

    run(main())


# --- the API server does not let us


def test_without_the_right_rollouts_and_rollbacks_go_on_and_it_is_told_until_it_is_given() -> None:
    async def main() -> None:
        cluster = Cluster()
        cluster.before = refusing("create")
        cluster.user(b.spec(1))
        operator = Operator(cluster, config())
        await operator.live()
        assert cluster.status.phase == "Stable" and ready(cluster) == "True" and not policies(cluster)
        told = isolated(cluster)
        assert (
            told
            and told[:2] == ("False", "ChildRefused")
            and "networkpolicies is forbidden" in told[2]
            and "are unprotected" in told[2]
        )
        assert [(e.type, e.reason) for e in operator.events if "NetworkPolicy" in e.message] == [
            ("Warning", "ChildRefused")
        ], "once"
        assert await operator.once() == 60.0, "it is tried again"

        operator.assessment = b.judged("Failed")
        cluster.user(b.spec(2))
        await operator.live(20)
        assert cluster.status.rollout and cluster.status.rollout.outcome == "RolledBack"
        assert cluster.status.stable and cluster.status.stable.revision == b.revision_name(1)

        another = Operator(cluster, config())  # a new leader that has tried nothing yet
        await another.settle()
        assert isolated(cluster) == told and not [e for e in another.events if "NetworkPolic" in e.message]

        cluster.before = lambda *_: None
        await another.settle()
        assert set(policies(cluster)) == NAMES and isolated(cluster) is None
        assert [e.reason for e in another.events if "NetworkPolic" in e.message] == ["Isolated"]

    run(main())


@pytest.mark.parametrize(
    "error",
    [
        Unavailable(500, "InternalError", "failed calling webhook: no answer"),
        Invalid(422, "Invalid", "spec"),
        TooManyRequests(429, "TooMany", "x", 7.0),
    ],
    ids=lambda e: type(e).__name__,
)
def test_whatever_keeps_them_from_being_written_holds_up_nothing(error: KubeError) -> None:
    async def main() -> None:
        cluster = Cluster()
        cluster.before = refusing("create", error=error)
        await serving(cluster=cluster)
        told = isolated(cluster)
        assert told and error.message in told[2] and ready(cluster) == "True"

    run(main())


def test_one_that_a_finalizer_keeps_comes_back_once_it_is_gone() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        name = f"{b.NAME}-servers"
        cluster.change(
            NETWORK_POLICY, name, lambda o: o["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z")
        )
        cluster.user(b.spec(2))
        operator.assessment = b.judged("Successful")
        await operator.live(20)
        assert (
            cluster.status.stable
            and cluster.status.stable.revision == b.revision_name(2)
            and isolated(cluster)
        )
        cluster.remove(NETWORK_POLICY, name)
        await operator.settle()
        assert "deletionTimestamp" not in policies(cluster)[name]["metadata"] and isolated(cluster) is None

    run(main())


def test_what_may_not_be_removed_stays_and_is_told() -> None:
    async def main() -> None:
        cluster, _ = await serving()
        cluster.before = refusing("delete")
        operator = Operator(cluster, config(mode="Remove"))
        cluster.remove(POD_DISRUPTION_BUDGET, b.NAME)
        await operator.settle()
        told = isolated(cluster)
        assert told and "stays in force" in told[2] and set(policies(cluster)) == NAMES
        assert cluster.find(POD_DISRUPTION_BUDGET, b.NAME), "all else goes on"

    run(main())


def test_a_name_that_is_taken_is_told() -> None:
    async def main() -> None:
        cluster = Cluster()
        cluster.put(NETWORK_POLICY, {"metadata": {"name": f"{b.NAME}-servers"}, "spec": {"podSelector": {}}})
        await serving(cluster=cluster)
        told = isolated(cluster)
        assert (
            told
            and told[1] == "NameTaken"
            and set(policies(cluster)) == NAMES
            and policies(cluster)[f"{b.NAME}-servers"]["spec"] == {"podSelector": {}}
        )

    run(main())


def test_a_webhook_that_changes_them_is_told_and_not_fought_without_end() -> None:
    async def main() -> None:
        cluster, operator = await serving(CONFIG)
        create, apply = cluster.create, cluster.apply

        def changed(obj: Object) -> Object:
            return (
                obj | {"spec": obj["spec"] | {"policyTypes": ["Ingress"]}}
                if obj["kind"] == "NetworkPolicy"
                else obj
            )

        cluster.create = lambda resource, obj: create(resource, changed(obj))  # type: ignore[method-assign]
        cluster.apply = lambda resource, obj, **guards: apply(resource, changed(obj), **guards)  # type: ignore[method-assign]
        operator = Operator(cluster, config())
        assert await operator.settle() == 60.0
        told = isolated(cluster)
        assert told and "something alters it" in told[2] and ready(cluster) == "True"

    run(main())


@pytest.mark.parametrize("resource", [NETWORK_POLICY, DEPLOYMENT])
def test_a_list_that_is_forbidden_keeps_no_process_from_leading_if_it_is_only_of_policies(
    resource: Resource,
) -> None:
    class Listless:
        async def list_unless(self, of: Resource, namespace: str | None, within: float) -> None:
            if of == resource:
                raise Forbidden(403, "Forbidden", "cannot list")

    async def main() -> None:
        operator = process.Operator(config(), Cluster(), Metrics(), "operators", "me")  # type: ignore[arg-type]
        operator._resources, operator._intake = (NETWORK_POLICY, DEPLOYMENT), Listless()  # type: ignore[assignment]
        if resource == NETWORK_POLICY:
            await operator._resync()
        else:
            with pytest.raises(Forbidden):
                await operator._resync()

    run(main())


def test_policies_of_a_first_version_that_still_waits_for_pods_are_adopted_after_its_deletion() -> None:
    async def main() -> None:
        cluster = Cluster()
        cluster.user(b.spec(1))
        operator = Operator(cluster, config())
        cluster.start_pods = lambda: None  # type: ignore[method-assign]
        await operator.live(rounds=6)
        assert cluster.status.rollout and cluster.status.rollout.stage == "Provision"
        before = {name: o["metadata"]["uid"] for name, o in policies(cluster).items()}
        assert before.keys() == NAMES
        cluster.orphan(MODEL_DEPLOYMENT, b.NAME)
        await operator.settle()
        cluster.user(b.spec(1))
        fresh = Operator(cluster, config())
        await fresh.live(rounds=6)
        assert "NameTaken" not in {e.reason for e in fresh.events}
        owner = cluster.all(MODEL_DEPLOYMENT)[b.NAME]["metadata"]["uid"]
        assert {controller_of(o) for o in policies(cluster).values()} == {owner}
        assert {name: o["metadata"]["uid"] for name, o in policies(cluster).items()} == before

    run(main())
