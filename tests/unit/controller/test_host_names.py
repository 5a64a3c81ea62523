"""Claims of host names, from the first pass to the last: who is given a name, who loses one, and
what a crash leaves.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Coroutine
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest

from modelrollout.api import names
from modelrollout.api.times import stamp
from modelrollout.controller.lookups.host_names import claims_of
from modelrollout.kube.errors import Forbidden, Unavailable
from modelrollout.kube.kinds import GRPC_ROUTE, HTTP_ROUTE, LEASE, MODEL_DEPLOYMENT, Resource
from modelrollout.kube.objects import Object
from modelrollout.rollout.policy.rules import NO_RULES, combine, read
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import Cluster, Operator
from modelrollout.traffic.hostnames import Claims, ForeignRoutes, Known, holder_of, standing, version_of

HOST, GRPC_HOST, OTHER = "digits.example.com", "digits-grpc.example.com", "other.example.com"
V1 = b.revision_name(1)


def traffic(*http: str) -> dict[str, Any]:
    return {
        "http": {"hostnames": list(http or (HOST,))},
        "grpc": {"hostnames": [GRPC_HOST]},
        "gateway": {"name": "public"},
    }


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def holders(cluster: Cluster) -> dict[str, str]:
    """Namespace/name by host name."""
    leases = [o for i, o in cluster.objects.items() if i[0] == LEASE]
    return {
        o["metadata"]["annotations"][names.ANNOTATION_HOSTNAME]: (
            o["spec"]["holderIdentity"].rpartition("/")[0]
        )
        for o in leases
    }


def ready(cluster: Cluster) -> tuple[str, str, str]:
    actual = next(c for c in cluster.status.conditions if c.type == "Ready")
    return actual.status, actual.reason, actual.message


def stranger(cluster: Cluster, *hosts: str) -> Object:
    spec = {"traffic": {"gateway": {"name": "public"}, "http": {"hostnames": list(hosts)}}}
    return cluster.put(
        MODEL_DEPLOYMENT, {"metadata": {"name": "vhost", "namespace": "attacker"}, "spec": spec}
    )


def lease(cluster: Cluster, host: str, holder: str) -> None:
    metadata = {
        "name": names.host_lease(host), "namespace": "operators", "labels": {names.LABEL_CLAIM: "hostname"},
        "annotations": {names.ANNOTATION_HOSTNAME: host},
    }  # fmt: skip
    cluster.put(LEASE, {"metadata": metadata, "spec": {"holderIdentity": holder}})


def served(cluster: Cluster) -> set[str]:
    return {
        h
        for i, o in cluster.objects.items()
        if i[0] in (HTTP_ROUTE, GRPC_ROUTE)
        for h in o["spec"]["hostnames"]
    }


async def serving(*http: str) -> tuple[Cluster, Operator]:
    cluster = Cluster()
    cluster.user(b.spec(1, traffic=traffic(*http)))
    operator = Operator(cluster)
    await operator.live()
    assert cluster.status.phase == "Stable" and ready(cluster)[0] == "True"
    operator.events.clear()
    return cluster, operator


def test_names_are_claimed_before_a_route_carries_them_and_given_back_after_none_does() -> None:
    async def main() -> None:
        cluster, operator = await serving(HOST, OTHER)
        made = [r for r in cluster.requests if r.startswith("create") and ("Lease" in r or "Route" in r)]
        assert (
            made[:3] == [f"create Lease {names.host_lease(h)}" for h in (HOST, OTHER, GRPC_HOST)]
            and len(made) == 6
        )
        assert holders(cluster) == dict.fromkeys((HOST, OTHER, GRPC_HOST), "ml/digits") and served(
            cluster
        ) == {HOST, OTHER, GRPC_HOST}
        cluster.user(b.spec(1, traffic=traffic(OTHER)))
        cluster.requests.clear()
        await operator.settle()
        await operator.live(rounds=2)
        assert served(cluster) == set(holders(cluster)) == {OTHER, GRPC_HOST}
        deleted = [r for r in cluster.requests if r.startswith("delete")]
        assert deleted[-1] == f"delete Lease {names.host_lease(HOST)}", "after the route"

    run(main())


def test_what_is_settled_costs_nothing() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.requests.clear()
        await operator.settle()
        assert cluster.requests == []

    run(main())


@pytest.mark.parametrize("theirs", [HOST, GRPC_HOST, "*.example.com"])
def test_a_name_of_another_begins_no_rollout_and_opens_no_route(theirs: str) -> None:
    async def main() -> None:
        cluster = Cluster()
        lease(cluster, theirs, holder_of(stranger(cluster, theirs)))
        cluster.user(b.spec(1, traffic=traffic()))
        operator = Operator(cluster)
        await operator.lookups.hostnames.refresh()
        await operator.live()
        status, reason, message = ready(cluster)
        assert (
            (status, reason) == ("False", "HostnameTaken")
            and "attacker" not in message
            and not served(cluster)
        )
        assert holders(cluster)[theirs] == "attacker/vhost"
        assert [e.reason for e in operator.events] == ["HostnameTaken"]

    run(main())


def test_who_asks_for_a_served_name_gets_nothing_and_takes_nothing() -> None:
    """The routes stay where they were, and follow their own weights."""

    async def main() -> None:
        cluster, operator = await serving()
        lease(cluster, "taken.example.com", holder_of(stranger(cluster, "taken.example.com")))
        cluster.user(b.spec(2, traffic=traffic("taken.example.com")))
        await operator.live(rounds=2)
        assert ready(cluster)[1] == "HostnameTaken" and served(cluster) == {HOST, GRPC_HOST}
        assert holders(cluster)[HOST] == "ml/digits", "what it serves it keeps"
        cluster.change(
            HTTP_ROUTE, "digits", lambda o: o["spec"]["rules"][0]["backendRefs"][0].update(weight=1)
        )
        await operator.settle()
        assert cluster.weights() == {V1: 100} and served(cluster) == {HOST, GRPC_HOST}

    run(main())


def test_a_name_that_was_given_to_another_is_served_no_more_and_that_is_told() -> None:
    """A platform team handed it over."""

    async def main() -> None:
        cluster, operator = await serving(HOST, OTHER)
        i = (LEASE, "operators", names.host_lease(HOST))
        theirs = holder_of(stranger(cluster, HOST))
        cluster.objects[i] = cluster.objects[i] | {"spec": {"holderIdentity": theirs}}
        await operator.lookups.hostnames.refresh()
        await operator.live(rounds=2)
        assert served(cluster) == {OTHER, GRPC_HOST} and ready(cluster)[:2] == ("False", "HostnameTaken")
        assert [(e.type, e.reason) for e in operator.events] == [("Warning", "HostnameTaken")]
        assert cluster.status.stable and cluster.status.stable.revision == V1

    run(main())


@pytest.mark.parametrize("end", ["deleted", "another object of its name", "asks no more"])
def test_a_claim_whose_holder_needs_it_no_more_is_given_to_who_asks(end: str) -> None:
    async def main() -> None:
        cluster = Cluster()
        holder = holder_of(stranger(cluster, OTHER if end == "asks no more" else HOST))
        if end == "deleted":
            del cluster.objects[MODEL_DEPLOYMENT, "attacker", "vhost"]
        lease(cluster, HOST, holder if end != "another object of its name" else "attacker/vhost/u-former")
        cluster.user(b.spec(1, traffic=traffic()))
        await Operator(cluster).live()
        assert ready(cluster)[0] == "True" and holders(cluster)[HOST] == "ml/digits"

    run(main())


def test_a_holder_that_cannot_be_read_keeps_his_name() -> None:
    async def main() -> None:
        cluster = Cluster()
        lease(cluster, HOST, holder_of(stranger(cluster, HOST)))
        cluster.user(b.spec(1, traffic=traffic()))

        def before(verb: str, resource: Resource, name: str) -> None:
            if (verb, name) == ("get", "vhost"):
                raise Unavailable(503, "Unavailable", "later")

        cluster.before = before  # type: ignore[method-assign]
        await Operator(cluster).live()
        assert holders(cluster)[HOST] == "attacker/vhost" and not served(cluster)

    run(main())


def test_leases_that_were_deleted_are_claimed_again_by_who_serves() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        for i in [i for i in cluster.objects if i[0] == LEASE]:
            del cluster.objects[i]
        thief = stranger(cluster, HOST)
        await operator.lookups.hostnames.refresh()
        known = operator.lookups.hostnames.known()
        asks = standing(holder_of(thief), b.spec(1, traffic=traffic()), frozenset(), known, NO_RULES)
        assert asks.problem and asks.problem.reason == "HostnameTaken", (
            "its route is there, whoever passes first"
        )
        await operator.settle()
        assert (
            holders(cluster)[HOST] == "ml/digits"
            and served(cluster) == {HOST, GRPC_HOST}
            and ready(cluster)[0] == "True"
        )

    run(main())


def test_a_strangers_route_with_our_label_holds_no_name() -> None:
    async def main() -> None:
        cluster = Cluster()
        labels = {names.LABEL_NAME: "vhost", names.LABEL_MANAGED_BY: names.FIELD_MANAGER}
        metadata = {"name": "vhost", "namespace": "attacker", "labels": labels}
        cluster.put(HTTP_ROUTE, {"metadata": metadata, "spec": {"hostnames": [HOST], "rules": []}})
        stranger(cluster, OTHER)  # there is such a ModelDeployment, and the route is not its own
        cluster.user(b.spec(1, traffic=traffic()))
        await Operator(cluster).live()
        assert holders(cluster)[HOST] == "ml/digits" and ready(cluster)[0] == "True"

    run(main())


def test_an_emptied_lease_is_taken() -> None:
    async def main() -> None:
        cluster = Cluster()
        lease(cluster, HOST, "")
        cluster.user(b.spec(1, traffic=traffic()))
        await Operator(cluster).live()
        assert holders(cluster)[HOST] == "ml/digits" and ready(cluster)[0] == "True"

    run(main())


def test_a_spec_that_is_refused_claims_nothing() -> None:
    async def main() -> None:
        cluster = Cluster()
        cluster.user(b.spec(1, model={"uri": "s3://elsewhere/model.onnx"}, traffic=traffic()))
        await Operator(cluster).live(rounds=2)
        assert ready(cluster)[1] == "StoreNotAllowed" and not holders(cluster)

    run(main())


def test_two_leaders_who_claim_overlapping_names_at_once_are_not_both_given_theirs() -> None:
    async def main() -> None:
        cluster = Cluster()
        cluster.user(b.spec(1, traffic=traffic()))
        operator = Operator(cluster)
        theirs = holder_of(stranger(cluster, "*.example.com"))

        def before(verb: str, resource: Resource, name: str) -> None:
            if (verb, name) == ("create", names.host_lease(HOST)) and "*.example.com" not in holders(cluster):
                # unseen by this process until it has written its own
                lease(cluster, "*.example.com", theirs)

        cluster.before = before  # type: ignore[method-assign]
        await operator.live()
        assert (
            holders(cluster) == {"*.example.com": "attacker/vhost"}
            and not served(cluster)
            and ready(cluster)[1] == "HostnameTaken"
        )

    run(main())


def test_a_process_that_leads_no_more_claims_nothing() -> None:
    async def main() -> None:
        cluster = Cluster()
        cluster.user(b.spec(1, traffic=traffic()))
        operator = Operator(cluster)
        operator.leads = False
        await operator.settle(limit=3)
        assert not holders(cluster)

    run(main())


def test_what_is_gone_after_a_crash_is_swept() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        lease(cluster, "former.example.com", "ml/former/u-1")
        await operator.lookups.hostnames.refresh()
        assert set(holders(cluster)) == {HOST, GRPC_HOST}

    run(main())


def test_leases_that_may_not_be_written_are_told() -> None:
    async def main() -> None:
        cluster = Cluster()
        cluster.user(b.spec(1, traffic=traffic()))

        def before(verb: str, resource: Resource, name: str) -> None:
            if resource == LEASE and verb == "create":
                raise Forbidden(403, "Forbidden", "leases is forbidden")

        cluster.before = before  # type: ignore[method-assign]
        operator = Operator(cluster)
        await operator.live()
        assert not served(cluster)
        assert "Leases of slots and host names" in "".join(c.message for c in cluster.status.conditions)

    run(main())


BESIDE = "embeddings"


async def with_another(*http: str, name: str = BESIDE) -> tuple[Cluster, Operator]:
    """``digits`` is stable at its host names, and then another model of the namespace at these."""
    cluster, operator = await serving()
    add(cluster, *(http or (HOST,)), name=name)
    await both(operator, cluster, name)
    return cluster, operator


def add(cluster: Cluster, *http: str, name: str = BESIDE) -> None:
    spec = b.spec(1, traffic={"http": {"hostnames": list(http)}, "gateway": {"name": "public"}})
    cluster.set_spec(MODEL_DEPLOYMENT, name, spec.wire())


async def both(operator: Operator, cluster: Cluster, other: str = BESIDE, rounds: int = 8) -> None:
    for _ in range(rounds):
        for name in ("digits", other):
            for _ in range(30):
                if await operator.reconciler.reconcile((b.NAMESPACE, name)) != 0:
                    break
        cluster.end_jobs()
        cluster.start_pods()
        cluster.accept_routes()
        cluster.now += timedelta(seconds=4)


def condition_of(cluster: Cluster, name: str) -> tuple[str, str, str]:
    live = cluster.find(MODEL_DEPLOYMENT, name)
    assert live is not None
    ready = next(c for c in live["status"]["conditions"] if c["type"] == "Ready")
    return ready["status"], ready["reason"], ready["message"]


def paths(cluster: Cluster, name: str, kind: Resource = HTTP_ROUTE) -> set[str]:
    route = cluster.find(kind, name)
    rules = route["spec"]["rules"] if route else []
    return {m["path"]["value"] for rule in rules for m in rule["matches"]}


def claimants(cluster: Cluster, host: str = HOST) -> list[str]:
    """Namespace/name of those that share a name, the first one first."""
    live = cluster.objects[LEASE, "operators", names.host_lease(host)]
    return ["/".join(c.key) for c in claims_of(live)]


class TestModelsShareAHostName:
    """Over HTTP exact paths name the model."""

    def test_each_has_its_own_paths_and_the_first_those_of_the_server(self) -> None:
        async def main() -> None:
            cluster, operator = await with_another()
            assert condition_of(cluster, "digits")[0] == condition_of(cluster, BESIDE)[0] == "True"
            assert claimants(cluster) == ["ml/digits", f"ml/{BESIDE}"]
            first, second = paths(cluster, "digits"), paths(cluster, BESIDE)
            assert "/v2/health/ready" in first and "/v2/models/digits/infer" in first
            assert f"/v2/models/{BESIDE}/infer" in second and not first & second
            cluster.requests.clear()
            await both(operator, cluster, rounds=1)
            assert [r for r in cluster.requests if "Lease" in r or "Route" in r] == [], (
                "what is settled costs nothing"
            )

        run(main())

    def test_the_paths_of_the_server_go_to_the_next_when_the_first_leaves(self) -> None:
        async def main() -> None:
            cluster, operator = await with_another()
            cluster.user(b.spec(1, traffic=traffic(OTHER)))
            operator.woken.clear()
            await operator.live(rounds=3)
            assert (b.NAMESPACE, BESIDE) in operator.woken, "it would wait for a resync"
            await both(operator, cluster)
            assert claimants(cluster) == [f"ml/{BESIDE}"]
            assert "/v2/health/ready" in paths(cluster, BESIDE) and served(cluster) == {
                HOST,
                OTHER,
                GRPC_HOST,
            }
            cluster.user(b.spec(1, traffic=traffic(HOST)))
            await both(operator, cluster)
            assert claimants(cluster) == [f"ml/{BESIDE}", "ml/digits"], "who comes back is the last"
            assert "/v2/health/ready" not in paths(cluster, "digits")

        run(main())

    def test_who_leaves_leaves_the_others_theirs(self) -> None:
        async def main() -> None:
            cluster, operator = await with_another()
            cluster.remove(MODEL_DEPLOYMENT, BESIDE)
            await both(operator, cluster)
            assert claimants(cluster) == ["ml/digits"] and "/v2/health/ready" in paths(cluster, "digits")

        run(main())

    @pytest.mark.parametrize("gone", ["deleted", "emptied", "damaged"])
    def test_a_lease_that_is_lost_is_claimed_again_by_all_who_serve(self, gone: str) -> None:
        async def main() -> None:
            cluster, operator = await with_another()
            i = (LEASE, "operators", names.host_lease(HOST))
            if gone == "deleted":
                del cluster.objects[i]
            elif gone == "emptied":
                cluster.objects[i]["spec"]["holderIdentity"] = ""
            else:
                cluster.objects[i]["metadata"]["annotations"][names.ANNOTATION_SHARED_WITH] = "[{"
            await operator.lookups.hostnames.refresh()
            await both(operator, cluster)
            assert sorted(claimants(cluster)) == ["ml/digits", f"ml/{BESIDE}"]
            assert condition_of(cluster, "digits")[0] == condition_of(cluster, BESIDE)[0] == "True"
            of_server = [n for n in ("digits", BESIDE) if "/v2/health/ready" in paths(cluster, n)]
            assert of_server == [claimants(cluster)[0].removeprefix("ml/")]

        run(main())

    def test_two_operators_at_the_same_time_do_not_give_the_same_paths_to_two(self) -> None:
        """The Lease is written as it was read: whoever is late reads it again."""

        async def main() -> None:
            cluster, operator = await serving()
            add(cluster, HOST)
            asks = b.spec(1, traffic={"http": {"hostnames": [HOST]}, "gateway": {"name": "public"}}).wire()
            metadata = {"name": BESIDE, "namespace": "audit"}
            theirs = holder_of(cluster.put(MODEL_DEPLOYMENT, {"metadata": metadata, "spec": asks}))
            late: list[str] = []

            def before(verb: str, resource: Resource, name: str) -> None:
                if (verb, resource, name) == ("replace", LEASE, names.host_lease(HOST)) and not late:
                    late.append(name)
                    listed = {names.ANNOTATION_SHARED_WITH: json.dumps([{"holder": theirs}])}
                    cluster.change(
                        LEASE, name, lambda o: o["metadata"]["annotations"].update(listed), "operators"
                    )

            cluster.before = before  # type: ignore[method-assign]
            await both(operator, cluster)
            assert late and claimants(cluster) == ["ml/digits", f"audit/{BESIDE}"]
            assert condition_of(cluster, BESIDE)[1] == "HostnameTaken" and not paths(cluster, BESIDE)

        run(main())

    def test_a_guest_of_another_namespace_is_first_only_after_the_last_of_the_hosts(self) -> None:
        async def main() -> None:
            cluster, operator = await with_another()
            lease = cluster.objects[LEASE, "operators", names.host_lease(HOST)]
            shared = json.loads(lease["metadata"]["annotations"][names.ANNOTATION_SHARED_WITH])
            shared.insert(0, {"holder": "audit/guest/u-7"})
            lease["metadata"]["annotations"][names.ANNOTATION_SHARED_WITH] = json.dumps(shared)
            cluster.user(b.spec(1, traffic=traffic(OTHER)))
            await both(operator, cluster)
            assert claimants(cluster) == [f"ml/{BESIDE}", "audit/guest"]
            cluster.user(b.spec(1, traffic=traffic(HOST)))
            await both(operator, cluster)
            assert condition_of(cluster, "digits")[0] == "True", "it needs no policy for its own name"
            assert claimants(cluster)[0] == f"ml/{BESIDE}"

        run(main())

    def test_of_a_name_for_grpc_that_others_share_over_http_nothing_is_given(self) -> None:
        async def main() -> None:
            cluster, operator = await with_another()
            cluster.user(b.spec(1, traffic=traffic(OTHER) | {"grpc": {"hostnames": [HOST]}}))
            await both(operator, cluster)
            status, reason, message = condition_of(cluster, "digits")
            assert (status, reason) == ("False", "HostnameTaken")
            assert f"{HOST} belongs to ModelDeployment ml/{BESIDE}; over gRPC only the message" in message
            assert served(cluster) == {HOST, GRPC_HOST}, "what it serves stays"
            add(cluster, GRPC_HOST)
            await both(operator, cluster)
            assert condition_of(cluster, BESIDE)[1] == "HostnameTaken", "nor the other way round"

        run(main())

    def test_an_older_operators_lease_is_shared_once_its_holder_has_said_so(self) -> None:
        async def main() -> None:
            cluster, operator = await serving()
            i = (LEASE, "operators", names.host_lease(HOST))
            del cluster.objects[i]["metadata"]["annotations"][names.ANNOTATION_PROTOCOL]
            await operator.lookups.hostnames.refresh()
            known = operator.lookups.hostnames.known()
            asks = b.spec(1, traffic={"http": {"hostnames": [HOST]}, "gateway": {"name": "public"}})
            assert standing("ml/x/u-9", asks, frozenset(), known, NO_RULES).problem is not None
            add(cluster, HOST)
            await both(operator, cluster)
            assert claimants(cluster) == ["ml/digits", f"ml/{BESIDE}"]

        run(main())


def test_a_foreign_route_is_told_and_gone_with_the_next_pass() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        parent = {"name": "public", "namespace": "ml"}
        spec = {
            "parentRefs": [parent],
            "hostnames": [HOST],
            "rules": [{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}]}],
        }
        cluster.put(HTTP_ROUTE, {"metadata": {"name": "theirs", "namespace": "attacker"}, "spec": spec})
        await operator.lookups.hostnames.refresh()
        await operator.settle()
        assert ready(cluster)[:2] == ("False", "HostnameTaken") and [e.reason for e in operator.events] == [
            "HostnameTaken"
        ]
        assert cluster.find(HTTP_ROUTE) is not None, "it is not for us to give way"
        cluster.user(b.spec(2, traffic=traffic()))
        await operator.live()
        assert cluster.status.phase == "Canary", "a stranger's route stops no rollout"
        cluster.user(b.spec(1, traffic=traffic()))
        await operator.live()
        assert cluster.status.phase == "Stable", "and no way back by Git"
        assert ready(cluster)[:2] == ("False", "HostnameTaken")
        del cluster.objects[HTTP_ROUTE, "attacker", "theirs"]
        await operator.settle()
        assert ready(cluster)[0] == "True", "a route that takes a name is read again at each pass"

    run(main())


def test_a_model_that_is_made_again_is_not_in_its_own_way() -> None:
    """Its former route is an orphan while the namespace goes, and is remembered as foreign."""

    async def main() -> None:
        cluster, operator = await serving()
        route = next(o for (r, _, _), o in cluster.objects.items() if r == HTTP_ROUTE)
        leftover = copy.deepcopy(route)
        leftover["metadata"] |= {"name": "digits-of-before", "ownerReferences": []}
        cluster.put(HTTP_ROUTE, leftover)
        await operator.lookups.hostnames.refresh()
        del cluster.objects[HTTP_ROUTE, leftover["metadata"]["namespace"], "digits-of-before"]
        await operator.settle()
        assert ready(cluster)[0] == "True"

    run(main())


class TestNamesOutliveTheirHolder:
    """Under a policy that demands metrics a wrong model comes to no client as the first version of
    something new.
    """

    GATES: ClassVar[dict[str, Any]] = {
        "metrics": [{"name": "errors", "maxIncrease": 0.01}],
        "reserveNames": "240h",
    }

    async def _serving(self, **more: Any) -> tuple[Cluster, Operator]:
        cluster = Cluster()
        cluster.policy("production", gates=self.GATES)
        cluster.user(b.spec(1, pinned=True, traffic=traffic(), **more))
        operator = Operator(cluster)
        await operator.live()
        assert ready(cluster)[0] == "True" and set(holders(cluster)) == {
            HOST,
            GRPC_HOST,
            "modeldeployment/ml/digits",
        }
        return cluster, operator

    def test_what_is_settled_costs_nothing(self) -> None:
        async def main() -> None:
            cluster, operator = await self._serving()
            cluster.requests.clear()
            await operator.settle()
            assert cluster.requests == []

        run(main())

    @pytest.mark.parametrize("crash", [False, True])
    def test_deletion_and_creation_anew_is_no_way_round(self, crash: bool) -> None:
        async def main() -> None:
            cluster, operator = await self._serving()
            cluster.remove(MODEL_DEPLOYMENT, "digits")
            if crash:
                operator = Operator(cluster)
                await operator.lookups.hostnames.refresh()
            else:
                await operator.settle()
            cluster.user(b.spec(2, pinned=True, traffic=traffic()))
            await operator.live()
            status, reason, message = ready(cluster)
            assert (
                (status, reason) == ("False", "NameReserved")
                and cluster.status.stable is None
                and not served(cluster)
            )
            assert message.startswith(
                "metadata.name: modeldeployment/ml/digits stays with the version that served last under it"
                " until 2026-12-02"
            )
            assert "serve that version, with its spec.model.sha256" in message
            cluster.user(b.spec(1, pinned=True, traffic=traffic()))
            await operator.live()
            assert ready(cluster)[0] == "True" and served(cluster) == {HOST, GRPC_HOST}, (
                "the very version is no news to anybody"
            )
            cluster.user(b.spec(2, pinned=True, traffic=traffic()))
            await operator.live()
            assert cluster.status.phase == "Canary", (
                "and from there on there is something to be compared with"
            )

        run(main())

    def test_what_is_made_from_data_is_the_very_version_by_what_came_of_it(self) -> None:
        """No digest pins the data of a step: exchanged in its place, the very same spec made
        another model, and all clients had it.
        """
        by_data = {
            "optimization": {
                "steps": [{"int8": {"method": "Static", "calibration": {"uri": "s3://models/inputs.npz"}}}]
            }
        }

        async def main() -> None:
            cluster, operator = await self._serving(**by_data)
            pending = next(c for c in operator.lookups.hostnames.known().claims.all() if c.host == HOST)
            cluster.remove(MODEL_DEPLOYMENT, "digits")
            await operator.settle()
            cluster.user(b.spec(1, pinned=True, traffic=traffic(), **by_data))
            await operator.live()
            assert (
                ready(cluster)[1] == "NameReserved" and cluster.status.stable is None and not served(cluster)
            )
            asks, known = (
                b.spec(1, pinned=True, traffic={**traffic(), "gateway": {"name": "public"}}, **by_data),
                operator.lookups.hostnames.known(),
            )
            made = {
                digest: version_of(asks.user_input(), b.sha(1), digest) for digest in ("sha256:1", "sha256:2")
            }
            assert pending.version not in made.values() and len(set(made.values())) == 2
            moves = replace(
                pending, holder="ml/digits/u-0", version=made["sha256:1"], released=stamp(cluster.now)
            )
            known = replace(known, claims=Claims([moves]))
            for digest, problem in (("sha256:1", None), ("sha256:2", "NameReserved")):
                actual = standing(
                    "audit/digits/u-9", asks, frozenset(), known, NO_RULES, serves=made[digest]
                ).problem
                assert (actual and actual.reason) == problem, (
                    "another that serves just this may take the name over"
                )

        run(main())

    def test_while_the_version_that_it_is_reserved_for_has_yet_to_serve_no_other_may(self) -> None:
        async def main() -> None:
            cluster, operator = await self._serving()
            cluster.remove(MODEL_DEPLOYMENT, "digits")
            await operator.settle()
            cluster.user(b.spec(1, pinned=True, traffic=traffic()))
            for _ in range(3):
                await operator.settle()
            assert cluster.status.rollout is not None and cluster.status.stable is None
            cluster.user(b.spec(2, pinned=True, traffic=traffic()))
            await operator.live()
            assert ready(cluster)[1] == "NameReserved" and cluster.status.stable is None

        run(main())

    def test_a_wrong_version_on_its_way_does_not_get_the_name_because_spec_asks_for_another_by_now(
        self,
    ) -> None:
        """Random walks found it: a first version about to serve is not superseded any more."""

        async def main() -> None:
            _, operator = await self._serving()
            known = operator.lookups.hostnames.known()
            (lease,) = known.claims.at(HOST)
            gone = replace(known, claims=Claims([replace(lease, released=b.ago(0))]), served=lambda _: ())
            asks = b.spec(
                1, pinned=True, traffic={"http": {"hostnames": [HOST]}, "gateway": {"name": "public"}}
            )
            assert standing("audit/digits/u-9", asks, frozenset(), gone, NO_RULES).free == (HOST,)
            assert standing(
                "audit/digits/u-9", asks, frozenset(), gone, NO_RULES, None, lease.version
            ).free == (HOST,)
            actual = standing("audit/digits/u-9", asks, frozenset(), gone, NO_RULES, None, "another")
            assert actual.problem is not None and actual.problem.reason == "NameReserved" and not actual.free

        run(main())

    def test_after_that_time_and_when_the_lease_is_deleted_the_name_is_free(self) -> None:
        async def main(by_hand: bool) -> None:
            cluster, operator = await self._serving()
            cluster.remove(MODEL_DEPLOYMENT, "digits")
            await operator.settle()
            if by_hand:
                for i in [i for i in cluster.objects if i[0] == LEASE]:
                    del cluster.objects[i]
            else:
                cluster.now += timedelta(days=11)
            await operator.lookups.hostnames.refresh()
            assert not holders(cluster)
            cluster.user(b.spec(2, traffic=traffic()))
            await operator.live()
            assert ready(cluster)[0] == "True"

        run(main(False))
        run(main(True))

    def test_another_does_not_take_the_host_name_over_with_what_it_serves(self) -> None:
        async def main() -> None:
            cluster, operator = await self._serving()
            cluster.user(b.spec(1, pinned=True, traffic=traffic(OTHER)))
            await operator.live(rounds=3)
            assert served(cluster) == {OTHER, GRPC_HOST}
            known, rules = operator.lookups.hostnames.known(), NO_RULES
            asks = b.spec(
                1, pinned=True, traffic={"http": {"hostnames": [HOST]}, "gateway": {"name": "public"}}
            )
            theirs = standing("audit/digits/u-9", asks, frozenset(), known, rules, serves="another")
            assert theirs.problem is not None and theirs.problem.reason == "NameReserved" and not theirs.free
            first = standing("audit/digits/u-9", asks, frozenset(), known, rules)
            assert first.free == (HOST,) and first.former[0].holder.startswith("ml/digits/"), (
                "the version that served there may"
            )
            beside = standing("ml/another/u-9", asks, frozenset(), known, rules, serves="another")
            assert beside.free == (HOST,) and not beside.former, "its own paths under that name are no news"
            wildcard = b.spec(
                1, traffic={"http": {"hostnames": ["*.example.com"]}, "gateway": {"name": "public"}}
            )
            allowed = combine([read({"metadata": {"name": "p"}, "spec": {"allowedHostnames": ["*"]}})])
            over = standing("audit/digits/u-9", wildcard, frozenset(), known, allowed).problem
            assert over is not None and over.reason == "HostnameTaken", "nor as part of a wildcard"
            cluster.user(b.spec(1, pinned=True, traffic=traffic(HOST)))
            await operator.live(rounds=3)
            assert served(cluster) == {HOST, GRPC_HOST}, "its former holder has it back"

        run(main())

    @pytest.mark.parametrize(
        ("made", "taken_over"),
        [("2026-11-22T11:00:00Z", True), ("2026-11-22T12:00:00Z", False), ("soon", False), (None, False)],
    )
    def test_it_is_known_when_a_name_was_taken_over(self, made: str | None, taken_over: bool) -> None:
        about = {names.ANNOTATION_HOSTNAME: HOST, names.ANNOTATION_RESERVED: "720h"}
        metadata = {"name": names.host_lease(HOST), "annotations": about, "creationTimestamp": made}
        (claim,) = claims_of(
            {
                "metadata": metadata,
                "spec": {"holderIdentity": "ml/digits/u-1", "acquireTime": "2026-11-22T12:00:01.500000Z"},
            }
        )
        known = Known(Claims([claim]), ForeignRoutes(), lambda _: (), only_by_policy=False)
        since = standing("ml/digits/u-1", b.spec(1, traffic=traffic()), frozenset(), known, NO_RULES).since
        assert since == (datetime(2026, 11, 22, 12, 0, 1, 500000, tzinfo=UTC) if taken_over else None)

    def test_a_name_that_has_served_is_none_for_a_preview(self) -> None:
        async def main() -> None:
            cluster, operator = await self._serving()
            preview = {"blueGreen": {"preview": {"http": {"hostnames": [HOST]}}}}
            cluster.user(b.spec(2, pinned=True, traffic=traffic(OTHER), rollout=preview))
            await operator.live(rounds=3)
            assert (
                ready(cluster)[1] == "HostnameNotAllowed"
                and "choose another name for the preview" in ready(cluster)[2]
            )
            assert cluster.weights() == {V1: 100} and served(cluster) == {HOST, GRPC_HOST}
            fresh = {"blueGreen": {"preview": {"http": {"hostnames": ["preview.example.com"]}}}}
            cluster.user(b.spec(2, pinned=True, traffic=traffic(HOST), rollout=fresh))
            await operator.live()
            assert ready(cluster)[1] != "HostnameNotAllowed" and cluster.status.phase == "Previewing"

        run(main())

    def test_a_spec_that_is_refused_keeps_the_own_name_all_the_same(self) -> None:
        async def main() -> None:
            cluster, operator = await serving()
            cluster.user(b.spec(1, model={"uri": "s3://elsewhere/model.onnx"}, traffic=traffic()))
            cluster.policy("production", gates=self.GATES)
            await operator.settle()
            assert "modeldeployment/ml/digits" in holders(cluster)

        run(main())

    @pytest.mark.parametrize(
        "odd",
        [
            {"released": "soon"},
            {"reserved": "ever"},
            {"released": "9999-01-01T00:00:00Z", "reserved": "999999h"},
        ],
    )
    def test_a_damaged_lease_stops_no_model(self, odd: dict[str, str]) -> None:
        async def main() -> None:
            cluster, operator = await self._serving()
            for i, o in list(cluster.objects.items()):
                if i[0] == LEASE:
                    o["metadata"]["annotations"] |= {
                        f"{names.GROUP}/{key}": value for key, value in odd.items()
                    }
            await operator.lookups.hostnames.refresh()
            await operator.settle()
            assert ready(cluster)[0] == "True"

        run(main())
