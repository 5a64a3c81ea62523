"""Only what a ModelDeployment's own uid controls is its own: labels, which everybody can write,
make nothing its own.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelrollout.api import names
from modelrollout.controller.observe.revisions import own_children
from modelrollout.kube.errors import Forbidden
from modelrollout.kube.kinds import (
    DEPLOYMENT,
    GRPC_ROUTE,
    HTTP_ROUTE,
    JOB,
    MODEL_DEPLOYMENT,
    MODEL_REVISION,
    POD_DISRUPTION_BUDGET,
    SERVICE,
    Resource,
)
from modelrollout.kube.objects import Object, controller_of
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import KEY, Cluster, Operator

BOTH = {
    "http": {"hostnames": ["digits.example.com"]},
    "grpc": {"hostnames": ["digits-grpc.example.com"]},
    "gateway": {"name": "public"},
}
V1, V2 = b.revision_name(1), b.revision_name(2)
OURS = {
    names.LABEL_NAME: b.NAME,
    names.LABEL_MANAGED_BY: names.FIELD_MANAGER,
    names.LABEL_COMPONENT: names.COMPONENT_SERVER,
}
OF_THE_DEPLOYMENT = [
    (SERVICE, b.NAME),
    (POD_DISRUPTION_BUDGET, b.NAME),
    (HTTP_ROUTE, b.NAME),
    (GRPC_ROUTE, b.NAME),
]


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


async def serving(cluster: Cluster | None = None) -> tuple[Cluster, Operator]:
    """Version 1 is stable, and nothing is left to do."""
    cluster = cluster or Cluster()
    cluster.user(b.spec(1, traffic=BOTH))
    operator = Operator(cluster)
    await operator.live()
    assert cluster.status.stable is not None
    cluster.requests.clear()
    operator.events.clear()
    return cluster, operator


def ready(cluster: Cluster) -> tuple[str, str, str]:
    return next((c.status, c.reason, c.message) for c in cluster.status.conditions if c.type == "Ready")


def body(resource: Resource) -> Object:
    if resource in (DEPLOYMENT, JOB):
        return {
            "replicas": 1,
            "template": {"metadata": {}, "spec": {"containers": [{"name": "x", "image": "x"}]}},
        }
    return (
        {"selector": {"app": "other"}}
        if resource == SERVICE
        else {"rules": []}
        if resource in (HTTP_ROUTE, GRPC_ROUTE)
        else {}
    )


def stranger(resource: Resource, name: str, labels: dict[str, str] | None = None) -> Object:
    return {"metadata": {"name": name, "labels": OURS if labels is None else labels}, "spec": body(resource)}


@pytest.mark.parametrize(
    "resource", [SERVICE, DEPLOYMENT, JOB, POD_DISRUPTION_BUDGET, HTTP_ROUTE, GRPC_ROUTE]
)
@pytest.mark.parametrize("revision", [{}, {names.LABEL_REVISION: V1}], ids=["model", "revision"])
def test_a_strangers_object_with_our_labels_is_left_alone(
    resource: Resource, revision: dict[str, str]
) -> None:
    async def main() -> None:
        cluster, operator = await serving()
        before = cluster.put(resource, stranger(resource, "theirs", OURS | revision))
        if resource == JOB:
            cluster.change(
                JOB,
                "theirs",
                lambda o: o.update(status={"conditions": [{"type": "Suspended", "status": "True"}]}),
            )
        cluster.user(b.spec(2, traffic=BOTH))
        operator.assessment = b.judged("Successful")
        await operator.live(rounds=20)
        live = cluster.find(resource, "theirs")
        assert (
            live is not None
            and live["metadata"]["uid"] == before["metadata"]["uid"]
            and live["spec"] == before["spec"]
        )
        assert cluster.status.stable and cluster.status.stable.revision == V2, "and disturbs nothing"

    run(main())


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(("resource", "name"), [*OF_THE_DEPLOYMENT, (DEPLOYMENT, V2), (SERVICE, V2)])
def test_a_name_that_is_taken_is_told_and_holds_up_nothing_else(
    resource: Resource, name: str, labelled: bool
) -> None:
    """A stranger's object has the very name of a child: it stays as it is, and the model goes on as
    far as it can without.
    """

    async def main() -> None:
        cluster, operator = await serving()
        if cluster.find(resource, name):
            cluster.remove(resource, name)
        theirs = cluster.put(resource, stranger(resource, name, OURS if labelled else {}))
        cluster.user(b.spec(2, traffic=BOTH))
        operator.assessment = b.judged("Successful")
        for _ in range(20):
            await operator.settle()
            cluster.now += timedelta(seconds=4)
            cluster.end_jobs()
            for i, o in list(cluster.objects.items()):  # as ``start_pods``, without the stranger's
                if i[0] == DEPLOYMENT and controller_of(o):
                    count = o["spec"]["replicas"]
                    ends = {
                        "replicas": count,
                        "availableReplicas": count,
                        "observedGeneration": o["metadata"]["generation"],
                    }
                    cluster.set_status(DEPLOYMENT, i[2], ends)
            for route in (HTTP_ROUTE, GRPC_ROUTE):
                if (resource, name) != (route, b.NAME):
                    accept(cluster, route)
        live = cluster.find(resource, name)
        assert live is not None and (live["metadata"]["uid"], live["spec"]) == (
            theirs["metadata"]["uid"],
            theirs["spec"],
        )
        assert controller_of(live) is None and live["metadata"]["labels"] == theirs["metadata"]["labels"]
        told = [e for e in operator.events if e.reason == "NameTaken"]
        assert (
            told
            and f"{resource.kind} {name} exists and is not this model's: no controller owns it"
            in told[0].message
        )
        assert (
            "delete it, and the operator makes its own, or choose another name" in told[0].message
            and told[0].type == "Warning"
        )
        if resource == POD_DISRUPTION_BUDGET:
            assert (
                cluster.status.stable
                and cluster.status.stable.revision == V2
                and ready(cluster)[:2] == ("False", "NameTaken")
            )
            assert set(cluster.all(DEPLOYMENT)) == {V2}, "what is not needed any more is removed all the same"
        for route in (HTTP_ROUTE, GRPC_ROUTE):
            backends = cluster.weights(route) if (resource, name) != (route, b.NAME) else {}
            assert (SERVICE, name) not in {(resource, x) for x in backends}, (
                "no requests are newly sent to a stranger"
            )

    run(main())


def accept(cluster: Cluster, route: Resource) -> None:
    for name, o in cluster.all(route).items():
        cluster.set_status(route, name, b.answered(o))


def test_a_name_that_is_taken_at_rest_is_told_once_and_is_free_again() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.remove(POD_DISRUPTION_BUDGET, b.NAME)
        cluster.put(POD_DISRUPTION_BUDGET, stranger(POD_DISRUPTION_BUDGET, b.NAME))
        assert await operator.settle() == 60.0
        assert ready(cluster)[:2] == ("False", "NameTaken") and [e.reason for e in operator.events] == [
            "NameTaken"
        ]
        cluster.requests.clear()
        assert await operator.once() == 60.0 and not [
            r for r in cluster.requests if r.startswith(("apply", "delete", "patch", "status"))
        ]
        cluster.remove(POD_DISRUPTION_BUDGET, b.NAME)
        await operator.settle()
        assert ready(cluster)[:2] == ("True", "Stable") and controller_of(
            cluster.all(POD_DISRUPTION_BUDGET)[b.NAME]
        )

    run(main())


@pytest.mark.parametrize("deaf", [False, True], ids=["seen", "not seen yet"])
@pytest.mark.parametrize(("resource", "name"), [*OF_THE_DEPLOYMENT, (DEPLOYMENT, V1), (SERVICE, V1)])
def test_what_a_stranger_puts_in_the_place_of_a_child_between_two_passes_is_not_written(
    resource: Resource, name: str, deaf: bool
) -> None:
    async def main() -> None:
        cluster, operator = await serving()
        operator.deaf = deaf
        cluster.remove(resource, name)
        theirs = cluster.put(resource, stranger(resource, name))
        cluster.user(b.spec(1, traffic=BOTH, replicas=3))
        for _ in range(2):
            await operator.settle()
            operator.hear()
        live = cluster.find(resource, name)
        assert live is not None and (live["metadata"], live["spec"]) == (
            theirs["metadata"],
            theirs["spec"],
        )

    run(main())


# --- orphans


def test_the_orphans_of_a_deletion_are_adopted_and_nothing_is_made_anew() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        before = {
            i: o
            for i, o in cluster.objects.items()
            if i[0] in (DEPLOYMENT, SERVICE, HTTP_ROUTE, GRPC_ROUTE, POD_DISRUPTION_BUDGET)
        }
        cluster.orphan(MODEL_DEPLOYMENT, b.NAME)
        await operator.settle()  # its end is seen: the claims on its names are given up
        assert all(i in cluster.objects for i in before)
        cluster.requests.clear()
        cluster.user(b.spec(1, traffic=BOTH))
        fresh = Operator(cluster)
        await fresh.live()
        assert (
            cluster.status.stable
            and cluster.status.stable.revision == V1
            and ready(cluster)[:2] == ("True", "Stable")
        )
        uid = cluster.all(MODEL_DEPLOYMENT)[b.NAME]["metadata"]["uid"]
        for (resource, _, name), old in before.items():
            now = cluster.find(resource, name)
            assert now and (now["metadata"]["uid"], now["spec"]) == (old["metadata"]["uid"], old["spec"])
        for resource, name in [*OF_THE_DEPLOYMENT, (MODEL_REVISION, V1)]:
            assert controller_of(cluster.all(resource)[name]) == uid
        assert not [
            r for r in cluster.requests if r.startswith(("create Job", "delete", "create Deployment"))
        ]
        cluster.remove(MODEL_DEPLOYMENT, b.NAME)
        assert not cluster.all(SERVICE) and not cluster.all(MODEL_REVISION), (
            "and they go with their new owner"
        )

    run(main())


def test_an_operator_that_dies_at_any_point_of_an_adoption_leaves_one_that_goes_on() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.orphan(MODEL_DEPLOYMENT, b.NAME)
        await operator.settle()
        children = [*OF_THE_DEPLOYMENT, (MODEL_REVISION, V1), (DEPLOYMENT, V1), (SERVICE, V1)]
        before = {child: cluster.all(child[0])[child[1]]["metadata"]["uid"] for child in children}
        cluster.user(b.spec(1, traffic=BOTH))
        moments: list[tuple[str, Cluster]] = []
        cluster.before = lambda *_: moments.append((cluster.requests[-1], cluster.copy()))
        await Operator(cluster).live(rounds=3)
        assert len(moments) > len(OF_THE_DEPLOYMENT)
        for request, moment in moments:
            await Operator(moment).live(rounds=3)
            after = {child: moment.all(child[0])[child[1]]["metadata"]["uid"] for child in children}
            assert after == before and ready(moment)[0] == "True", f"died before {request}"
            assert all(controller_of(moment.all(r)[n]) for r, n in children)

    run(main())


@pytest.mark.parametrize("late", [SERVICE, HTTP_ROUTE, POD_DISRUPTION_BUDGET])
def test_an_orphan_that_the_watch_still_shows_as_owned_is_looked_at_and_no_stranger(late: Resource) -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.deaf_to(late)
        cluster.orphan(MODEL_DEPLOYMENT, b.NAME)
        cluster.user(b.spec(1, traffic=BOTH))
        await operator.live()
        assert (
            controller_of(cluster.all(late)[b.NAME])
            == cluster.all(MODEL_DEPLOYMENT)[b.NAME]["metadata"]["uid"]
        )
        assert ready(cluster)[0] == "True" and "NameTaken" not in {e.reason for e in operator.events}

    run(main())


def test_an_adoption_that_is_refused_is_told_and_holds_up_nothing() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.orphan(MODEL_DEPLOYMENT, b.NAME)
        await operator.settle()

        def refused(verb: str, resource: Resource, name: str) -> None:
            if verb == "patch":
                raise Forbidden(403, "Forbidden", "a webhook keeps ownerReferences as they are")

        cluster.before = refused
        cluster.user(b.spec(1, traffic=BOTH))
        fresh = Operator(cluster)
        await fresh.live()
        assert (
            cluster.status.stable
            and cluster.status.stable.revision == V1
            and set(cluster.all(DEPLOYMENT)) == {V1}
        )
        assert ready(cluster)[1] == "ChildRefused" and "a webhook keeps" in ready(cluster)[2]

    run(main())


@pytest.mark.parametrize("resource", [SERVICE, HTTP_ROUTE, GRPC_ROUTE, POD_DISRUPTION_BUDGET, MODEL_REVISION])
def test_what_cannot_be_adopted_keeps_the_others_from_nothing(resource: Resource) -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.orphan(MODEL_DEPLOYMENT, b.NAME)
        await operator.settle()

        def refused(verb: str, kind: Resource, name: str) -> None:
            if verb in ("patch", "apply") and kind == resource:
                raise Forbidden(403, "Forbidden", "a user has written into it what may not be")

        cluster.before = refused
        cluster.user(b.spec(1, traffic=BOTH))
        fresh = Operator(cluster)
        for _ in range(6):  # passes alone: nothing else would be written
            await fresh.settle(limit=4)
        for kind, name in [*OF_THE_DEPLOYMENT, (MODEL_REVISION, V1)]:
            assert (controller_of(cluster.all(kind)[name]) is None) == (kind == resource), kind

    run(main())


def test_an_orphan_that_is_not_recorded_is_a_strangers() -> None:
    """An operator of before wrote no record; or a stranger took the reference off an object of his
    own.
    """

    async def main() -> None:
        cluster, operator = await serving()
        cluster.change(MODEL_REVISION, V1, lambda o: o["status"].pop("children"))
        cluster.orphan(MODEL_DEPLOYMENT, b.NAME)
        await operator.settle()
        before = copy.deepcopy([cluster.find(*child) for child in OF_THE_DEPLOYMENT])
        cluster.user(b.spec(1, traffic=BOTH))
        fresh = Operator(cluster)
        await fresh.live()
        assert [cluster.find(*child) for child in OF_THE_DEPLOYMENT] == before, "they serve on as they are"
        assert "NameTaken" in {e.reason for e in fresh.events}
        assert cluster.status.stable is None or ready(cluster)[1] == "NameTaken"
        for resource, name in OF_THE_DEPLOYMENT:
            cluster.remove(resource, name)
        await fresh.live()
        assert ready(cluster)[:2] == ("True", "Stable")

    run(main())


def test_a_child_that_loses_its_reference_gets_it_back() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        for resource, name in OF_THE_DEPLOYMENT:
            cluster.change(resource, name, lambda o: o["metadata"].pop("ownerReferences"))
        await operator.settle()
        uid = cluster.all(MODEL_DEPLOYMENT)[b.NAME]["metadata"]["uid"]
        assert {controller_of(cluster.all(r)[n]) for r, n in OF_THE_DEPLOYMENT} == {uid} and ready(cluster)[
            0
        ] == "True"

    run(main())


def test_what_another_controls_is_not_adopted_even_if_it_was_ours() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        theirs = [{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "x", "controller": True}]
        cluster.change(POD_DISRUPTION_BUDGET, b.NAME, lambda o: o["metadata"].update(ownerReferences=theirs))
        await operator.settle()
        assert cluster.all(POD_DISRUPTION_BUDGET)[b.NAME]["metadata"]["ownerReferences"] == theirs
        assert ready(cluster)[1] == "NameTaken" and "ConfigMap x controls it" in ready(cluster)[2]

    run(main())


def test_the_record_follows_what_is_made_anew() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.remove(SERVICE, b.NAME)
        await operator.settle()
        recorded = cluster.all(MODEL_REVISION)[V1]["status"]["children"]
        assert recorded == sorted(cluster.all(r)[n]["metadata"]["uid"] for r, n in OF_THE_DEPLOYMENT)

    run(main())


# --- whoever writes whatever


UIDS = ["md", *(f"r{i}" for i in range(4)), "else", None]
KINDS = [SERVICE.kind, DEPLOYMENT.kind, JOB.kind, HTTP_ROUTE.kind, MODEL_REVISION.kind]


@st.composite
def objects(draw: st.DrawFn) -> dict[tuple[str, str], Object]:
    actual: dict[tuple[str, str], Object] = {}
    for i in range(draw(st.integers(0, 8))):
        kind, controller = draw(st.sampled_from(KINDS)), draw(st.sampled_from(UIDS))
        owners = [{"uid": controller, "controller": draw(st.booleans())}] if controller else []
        o: Object = {
            "kind": kind,
            "metadata": {"name": f"o{i}", "uid": f"{'r' if kind == MODEL_REVISION.kind else 'u'}{i}"},
        }
        o["metadata"] |= {"ownerReferences": owners, "labels": draw(st.sampled_from([OURS, {}]))}
        if kind == MODEL_REVISION.kind:
            o["spec"] = {"deployment": draw(st.sampled_from([KEY[1], "other"]))}
            o["status"] = {
                "children": draw(st.lists(st.sampled_from([f"u{n}" for n in range(8)]), max_size=3))
            }
        actual[kind, f"o{i}"] = o
    return actual


@given(objects())
def test_nothing_is_our_own_but_by_a_uid_that_we_control_or_recorded(
    by_name: dict[tuple[str, str], Object],
) -> None:
    deployment = {"metadata": {"uid": "md", "name": KEY[1], "namespace": KEY[0]}}
    children = own_children(deployment, by_name)
    revisions = [o for (kind, _), o in children.items() if kind == MODEL_REVISION.kind]
    recorded = {uid for o in revisions for uid in o["status"]["children"]}
    for (kind, _), o in children.items():
        controller = controller_of(o)
        assert controller in ("md", *(r["metadata"]["uid"] for r in revisions)) or (
            controller is None and (kind == MODEL_REVISION.kind or o["metadata"]["uid"] in recorded)
        )
    relabelled = {i: {**o, "metadata": {**o["metadata"], "labels": {}}} for i, o in by_name.items()}
    assert set(own_children(deployment, relabelled)) == set(children), "labels change nothing"
