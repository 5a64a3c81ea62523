"""Claims of host names, from the first pass to the last: who is given a name, who loses one, and what a crash leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from modelrollout.api import names
from modelrollout.kube.client import GRPC_ROUTE, HTTP_ROUTE, LEASE, MODEL_DEPLOYMENT, Forbidden, Object, Resource, Unavailable
from modelrollout.rollout.policy import NO_RULES
from modelrollout.traffic.hostnames import holder_of, stand
from tests.unit.controller.fakecluster import Cluster, Operator
from tests.unit.rollout import builders as b

HOST, GRPC_HOST, OTHER = "digits.example.com", "digits-grpc.example.com", "other.example.com"
V1 = b.revision_name(1)


def traffic(*http: str) -> dict[str, Any]:
    return {"http": {"hostnames": list(http or (HOST,))}, "grpc": {"hostnames": [GRPC_HOST]}, "gateway": {"name": "public"}}


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def holders(cluster: Cluster) -> dict[str, str]:
    """Namespace/name by host name."""
    leases = [o for i, o in cluster.objects.items() if i[0] == LEASE]
    return {o["metadata"]["annotations"][names.ANNOTATION_HOSTNAME]: o["spec"]["holderIdentity"].rpartition("/")[0] for o in leases}


def ready(cluster: Cluster) -> tuple[str, str, str]:
    found = next(c for c in cluster.status.conditions if c.type == "Ready")
    return found.status, found.reason, found.message


def stranger(cluster: Cluster, *hosts: str) -> Object:
    spec = {"traffic": {"gateway": {"name": "public"}, "http": {"hostnames": list(hosts)}}}
    return cluster.put(MODEL_DEPLOYMENT, {"metadata": {"name": "vhost", "namespace": "attacker"}, "spec": spec})


def lease(cluster: Cluster, host: str, holder: str) -> None:
    metadata = {
        "name": names.host_lease(host), "namespace": "operators", "labels": {names.LABEL_CLAIM: "hostname"},
        "annotations": {names.ANNOTATION_HOSTNAME: host},
    }  # fmt: skip
    cluster.put(LEASE, {"metadata": metadata, "spec": {"holderIdentity": holder}})


def served(cluster: Cluster) -> set[str]:
    return {h for i, o in cluster.objects.items() if i[0] in (HTTP_ROUTE, GRPC_ROUTE) for h in o["spec"]["hostnames"]}


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
        assert made[:3] == [f"create Lease {names.host_lease(h)}" for h in (HOST, OTHER, GRPC_HOST)] and len(made) == 6
        assert holders(cluster) == dict.fromkeys((HOST, OTHER, GRPC_HOST), "ml/digits") and served(cluster) == {HOST, OTHER, GRPC_HOST}
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
        await operator.admission.hostnames.refresh()
        await operator.live()
        status, reason, message = ready(cluster)
        assert (status, reason) == ("False", "HostnameTaken") and "attacker" not in message and not served(cluster)
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
        cluster.change(HTTP_ROUTE, "digits", lambda o: o["spec"]["rules"][0]["backendRefs"][0].update(weight=1))
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
        await operator.admission.hostnames.refresh()
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


def test_leases_that_somebody_deleted_are_claimed_anew_by_who_serves() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        for i in [i for i in cluster.objects if i[0] == LEASE]:
            del cluster.objects[i]
        thief = stranger(cluster, HOST)
        await operator.admission.hostnames.refresh()
        known = operator.admission.hostnames.known()
        asks = stand(holder_of(thief), b.spec(1, traffic=traffic()), frozenset(), known, NO_RULES)
        assert asks.problem and asks.problem.reason == "HostnameTaken", "its route is there, whoever passes first"
        await operator.settle()
        assert holders(cluster)[HOST] == "ml/digits" and served(cluster) == {HOST, GRPC_HOST} and ready(cluster)[0] == "True"

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
                lease(cluster, "*.example.com", theirs)  # unseen by this process until it has written its own

        cluster.before = before  # type: ignore[method-assign]
        await operator.live()
        assert holders(cluster) == {"*.example.com": "attacker/vhost"} and not served(cluster) and ready(cluster)[1] == "HostnameTaken"

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
        await operator.admission.hostnames.refresh()
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


def test_a_foreign_route_is_told_and_gone_with_the_next_look() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        parent = {"name": "public", "namespace": "ml"}
        spec = {"parentRefs": [parent], "hostnames": [HOST], "rules": [{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}]}]}
        cluster.put(HTTP_ROUTE, {"metadata": {"name": "theirs", "namespace": "attacker"}, "spec": spec})
        await operator.admission.hostnames.refresh()
        await operator.settle()
        assert ready(cluster)[:2] == ("False", "HostnameTaken") and [e.reason for e in operator.events] == ["HostnameTaken"]
        assert cluster.find(HTTP_ROUTE) is not None, "it is not for us to give way"
        cluster.user(b.spec(2, traffic=traffic()))
        await operator.live()
        assert cluster.status.phase == "Canary", "a stranger's route stops no rollout"
        cluster.user(b.spec(1, traffic=traffic()))
        await operator.live()
        assert cluster.status.phase == "Stable", "and no way back by Git"
        assert ready(cluster)[:2] == ("False", "HostnameTaken")
        del cluster.objects[HTTP_ROUTE, "attacker", "theirs"]
        await operator.admission.hostnames.refresh()
        await operator.settle()
        assert ready(cluster)[0] == "True"

    run(main())
