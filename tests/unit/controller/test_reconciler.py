"""Passes against a cluster in memory: real observe, decide, act and store; what fails in between
must change nothing of the outcome.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, TypeVar

import pytest

from modelrollout.api import names
from modelrollout.api.v1alpha1 import ModelRevisionStatus
from modelrollout.contract.common import ServingConfig
from modelrollout.controller.apply.actor import NotLeading
from modelrollout.kube.errors import Conflict, Forbidden
from modelrollout.kube.kinds import (
    DEPLOYMENT,
    EVENT,
    GATEWAY,
    GATEWAY_CLASS,
    GRPC_ROUTE,
    HTTP_ROUTE,
    JOB,
    LEASE,
    MODEL_DEPLOYMENT,
    MODEL_REVISION,
    POD,
    POD_DISRUPTION_BUDGET,
    SERVICE,
    Resource,
)
from modelrollout.resources.jobs.prepare import prepare_task
from modelrollout.resources.server import fetch_task
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import Cluster, Operator, of_job

T = TypeVar("T")
V1, V2 = b.revision_name(1), b.revision_name(2)
BOTH = {
    "http": {"hostnames": ["digits.example.com"]},
    "grpc": {"hostnames": ["digits-grpc.example.com"]},
    "gateway": {"name": "public"},
}


def run(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(main)


def conditions(cluster: Cluster) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status, c.reason) for c in cluster.status.conditions}


async def serving(spec: Any = None) -> tuple[Cluster, Operator]:
    """Version 1 is stable, and nothing is left to do."""
    cluster = Cluster()
    cluster.user(spec or b.spec(1, traffic=BOTH))
    operator = Operator(cluster)
    await operator.live()
    assert cluster.status.phase == "Stable"
    cluster.requests.clear()
    operator.events.clear()
    return cluster, operator


async def until(operator: Operator, stage: str) -> None:
    """Until the rollout in flight comes to a stage, and the children match."""
    cluster = operator.cluster
    for _ in range(40):
        await operator.settle()
        if cluster.status.rollout and cluster.status.rollout.stage == stage:
            return
        cluster.end_jobs()
        cluster.start_pods()
        cluster.accept_routes()
        cluster.now += timedelta(seconds=4)
    raise AssertionError(f"never came to {stage}: {cluster.status.rollout}")


# --- the normal path


def test_the_first_version_serves() -> None:
    async def main() -> None:
        cluster, _ = await serving()
        assert set(cluster.all(DEPLOYMENT)) == {V1} and set(cluster.all(SERVICE)) == {V1, "digits"}
        assert cluster.weights() == cluster.weights(GRPC_ROUTE) == {V1: 100}
        service, budget, revision = (
            cluster.find(SERVICE),
            cluster.find(POD_DISRUPTION_BUDGET),
            cluster.find(MODEL_REVISION, V1),
        )
        assert service and service["spec"]["selector"][names.LABEL_REVISION] == V1
        assert budget and budget["spec"]["selector"]["matchLabels"][names.LABEL_REVISION] == V1
        assert (
            revision
            and revision["metadata"]["annotations"][names.ANNOTATION_OUTCOME]
            == "Stable"
            == revision["status"]["outcome"]
        )
        assert revision["spec"]["number"] == 1 and revision["spec"]["sha256"] == b.sha(1)

    run(main())


def test_a_version_is_served_with_what_was_measured_and_keeps_it() -> None:
    async def main() -> None:
        cluster, operator = await serving(b.spec(1, traffic=BOTH, golden=True, tune={"objective": "50ms"}))
        name = b.revision_name(1)
        [job] = [
            o
            for o in cluster.all(JOB).values()
            if o["metadata"]["labels"][names.LABEL_COMPONENT] == names.COMPONENT_TUNE
        ]
        task = json.loads(job["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"])
        assert (task["objective_ms"], task["field"]) == (50.0, "spec.rollout.analysis.golden")
        pods = cluster.find(DEPLOYMENT, name)
        assert pods is not None and fetch_task(pods).serving == ServingConfig(
            instances=2, batch=8, queue_delay_us=500
        )
        before = json.dumps(pods["spec"])
        # all that is known is gone, but for the pods: they go on as they are
        cluster.change(MODEL_REVISION, name, lambda o: o.pop("status"))
        cluster.change(MODEL_DEPLOYMENT, "digits", lambda o: o.pop("status"))
        await operator.live()
        pods = cluster.find(DEPLOYMENT, name)
        assert pods is not None and json.dumps(pods["spec"]) == before
        assert (
            len(
                [
                    o
                    for o in cluster.all(JOB).values()
                    if o["metadata"]["labels"][names.LABEL_COMPONENT] == names.COMPONENT_TUNE
                ]
            )
            == 1
        )

    run(main())


def test_at_rest_a_pass_makes_no_request() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        for _ in range(3):
            assert await operator.once() is None
        assert cluster.requests == []

    run(main())


def test_an_observing_canary_makes_no_request_without_news() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        operator.assessment = b.judged("Inconclusive")
        cluster.user(b.spec(2, traffic=BOTH))
        await until(operator, "Canary")
        await operator.live(rounds=3)
        assert (
            cluster.status.rollout
            and cluster.status.rollout.step
            and cluster.status.rollout.step.phase == "Observing"
        )
        cluster.requests.clear()
        for _ in range(5):
            assert await operator.once()
        assert cluster.requests == []

    run(main())


def test_a_canary_from_job_to_promotion_costs_few_requests() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.user(b.spec(2, traffic=BOTH, golden=True))
        operator.assessment = b.judged("Successful")
        cluster.requests.clear()
        await operator.live(rounds=20)
        assert cluster.status.stable and cluster.status.stable.revision == V2
        assert len(cluster.requests) <= 40, cluster.requests

    run(main())


# --- what others do to children


@pytest.mark.parametrize(
    ("resource", "name"),
    [
        (DEPLOYMENT, V1),
        (SERVICE, V1),
        (SERVICE, "digits"),
        (POD_DISRUPTION_BUDGET, "digits"),
        (HTTP_ROUTE, "digits"),
        (GRPC_ROUTE, "digits"),
    ],
)
def test_a_child_that_is_deleted_by_hand_comes_back(resource: Resource, name: str) -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.remove(resource, name)
        await operator.settle()
        assert cluster.find(resource, name) is not None
        assert (
            cluster.status.stable
            and cluster.status.stable.revision == V1
            and len(cluster.all(MODEL_REVISION)) == 1
        )

    run(main())


@pytest.mark.parametrize(
    ("resource", "name", "edit", "back"),
    [
        (
            HTTP_ROUTE,
            "digits",
            lambda o: o["spec"]["rules"][0]["backendRefs"][0].update(weight=3),
            lambda o: o["spec"]["rules"][0]["backendRefs"][0]["weight"] == 100,
        ),
        (
            HTTP_ROUTE,
            "digits",
            lambda o: o["spec"]["rules"].append({}),
            lambda o: len(o["spec"]["rules"]) == 1,
        ),
        (
            SERVICE,
            "digits",
            lambda o: o["spec"]["selector"].update({names.LABEL_REVISION: "x"}),
            lambda o: o["spec"]["selector"][names.LABEL_REVISION] == V1,
        ),
        (
            SERVICE,
            "digits",
            lambda o: o["spec"]["selector"].update({"one": "more"}),
            lambda o: "one" not in o["spec"]["selector"],
        ),
        (DEPLOYMENT, V1, lambda o: o["spec"].update(replicas=0), lambda o: o["spec"]["replicas"] == 2),
        (
            DEPLOYMENT,
            V1,
            lambda o: o["spec"]["template"]["spec"]["containers"][0].update(image="evil"),
            lambda o: o["spec"]["template"]["spec"]["containers"][0]["image"] == "example/triton:1",
        ),
        (
            DEPLOYMENT,
            V1,
            lambda o: o["metadata"]["labels"].pop(names.LABEL_NAME),
            lambda o: names.LABEL_NAME in o["metadata"]["labels"],
        ),
    ],
    ids=["weight", "rule", "selector", "narrower selector", "replicas", "image", "our label"],
)
def test_drift_is_put_back(resource: Resource, name: str, edit: Any, back: Any) -> None:
    async def main() -> None:
        cluster, operator = await serving()
        uid = cluster.change(resource, name, edit)["metadata"]["uid"]
        await operator.settle()
        live = cluster.find(resource, name)
        assert live is not None and back(live) and live["metadata"]["uid"] == uid

    run(main())


@pytest.mark.parametrize("resource", [DEPLOYMENT, SERVICE, HTTP_ROUTE])
def test_what_others_add_to_metadata_is_left_alone(resource: Resource) -> None:
    async def main() -> None:
        cluster, operator = await serving()
        name = V1 if resource == DEPLOYMENT else "digits"
        cluster.change(resource, name, lambda o: o["metadata"]["labels"].update({"team": "vision"}))
        assert await operator.once() is None and cluster.requests == []

    run(main())


def test_a_pass_that_loses_the_lease_under_way_writes_nothing_more() -> None:
    """A process that is stopped between two writes goes on long after another leads."""

    async def main() -> None:
        cluster, operator = await serving()
        for resource in (DEPLOYMENT, SERVICE, HTTP_ROUTE, GRPC_ROUTE):
            for name in list(cluster.all(resource)):
                cluster.remove(resource, name)
        await operator.once()  # says in status that no pod is ready
        cluster.requests.clear()

        def lost(verb: str, resource: Resource, name: str) -> None:
            operator.leads = False

        cluster.before = lost
        with pytest.raises(NotLeading):
            await operator.once()
        assert len(cluster.requests) == 1

    run(main())


def test_a_strangers_service_of_that_name_is_not_taken_over() -> None:
    async def main() -> None:
        cluster = Cluster()
        stranger = cluster.put(
            SERVICE,
            {
                "metadata": {"name": "digits", "labels": {"app": "other"}},
                "spec": {"selector": {"app": "other"}},
            },
        )
        cluster.user(b.spec(1))
        operator = Operator(cluster)
        await operator.live()
        live = cluster.find(SERVICE)
        assert live == stranger
        assert (
            conditions(cluster)["Reconciling"][1] == "NameTaken"
            or conditions(cluster)["Stalled"][1] == "NameTaken"
        )
        cluster.remove(SERVICE, "digits")
        await operator.live()
        assert cluster.status.phase == "Stable" and conditions(cluster)["Ready"] == ("True", "Stable")

    run(main())


def test_children_of_an_earlier_object_of_the_name_are_not_taken_for_our_own() -> None:
    """Deleted and made anew within seconds: the garbage collector has not come by yet."""

    async def main() -> None:
        cluster, _ = await serving()
        not_ours = (MODEL_DEPLOYMENT, GATEWAY, GATEWAY_CLASS)
        old = {i: o for i, o in cluster.objects.items() if i[0] not in not_ours}
        cluster.remove(MODEL_DEPLOYMENT, "digits")
        cluster.objects.update(copy.deepcopy(old))
        cluster.user(b.spec(1, traffic=BOTH))
        operator = Operator(cluster)
        await operator.settle()
        assert (
            cluster.status.stable is None
            and cluster.status.rollout
            and cluster.status.rollout.stage == "Resolve"
        )
        for (resource, _, name), o in list(cluster.objects.items()):
            if (
                o["metadata"]["uid"] in {x["metadata"]["uid"] for x in old.values()}
                and cluster.find(resource, name) is not None
            ):
                cluster.remove(resource, name)
        await operator.live()
        assert cluster.status.phase == "Stable" and set(cluster.all(DEPLOYMENT)) == {V1}

    run(main())


# --- the order of writes


def test_a_backend_goes_only_after_the_route_that_named_it_was_written_and_taken_up() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.user(b.spec(2, traffic=BOTH))
        operator.assessment = b.judged("Successful")
        cluster.requests.clear()
        await operator.live(rounds=20)
        order = [
            r
            for r in cluster.requests
            if r.split()[1] in ("HTTPRoute", "GRPCRoute") or r.startswith("delete")
        ]
        assert order.index(f"delete Deployment {V1}") > max(
            i for i, r in enumerate(order) if r.startswith("apply")
        )
        assert order.index(f"delete Service {V1}") > max(
            i for i, r in enumerate(order) if r.startswith("apply")
        )

    run(main())


def test_what_carries_traffic_is_written_before_what_sends_it_there() -> None:
    async def main() -> None:
        cluster = Cluster()
        cluster.user(b.spec(1))
        operator = Operator(cluster)
        await operator.live()
        creates = [r for r in cluster.requests if r.startswith("create")]
        assert creates.index(f"create Service {V1}") < creates.index("create HTTPRoute digits")
        assert creates.index(f"create Deployment {V1}") < creates.index("create HTTPRoute digits")

    run(main())


def test_a_transition_is_written_before_any_of_its_effects() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.user(b.spec(2, traffic=BOTH))
        while not any(r.startswith("create Job") for r in cluster.requests):
            before = len(cluster.requests)
            await operator.once()
            new = cluster.requests[before:]
            assert not (any(r.startswith("status ModelDeployment") for r in new) and len(new) > 1), (
                "one or the other"
            )

    run(main())


# --- stale reads, conflicts, two leaders


def test_a_conflict_leads_to_a_live_read_and_the_next_pass_gets_on() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        operator.deaf = True
        cluster.user(b.spec(1, replicas=3, traffic=BOTH))
        cluster.annotate(V1, "retry", "n1")
        operator.hear()
        operator.deaf = True
        cluster.change(
            MODEL_DEPLOYMENT, "digits", lambda o: o["metadata"].setdefault("labels", {}).update(team="vision")
        )
        with pytest.raises(Conflict):
            await operator.once()
        assert cluster.requests[-1] == "get ModelDeployment digits"
        await operator.settle()
        deployment = cluster.find(DEPLOYMENT, V1)
        assert deployment and deployment["spec"]["replicas"] == 3

    run(main())


def test_a_route_that_was_written_meanwhile_is_read_before_it_is_written() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        operator.deaf = True
        cluster.change(HTTP_ROUTE, "digits", lambda o: o["metadata"]["labels"].update(team="vision"))
        operator.store.observe(
            HTTP_ROUTE, {"type": "DELETED", "object": copy.deepcopy(cluster.find(HTTP_ROUTE))}
        )
        with pytest.raises(Conflict):
            await operator.once()  # it seemed to be gone: created, and it was there
        await operator.settle()
        assert cluster.weights() == {V1: 100}
        live = cluster.find(HTTP_ROUTE)
        assert live and live["metadata"]["labels"]["team"] == "vision"

    run(main())


def test_a_child_that_changed_meanwhile_is_read_too() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        operator.deaf = True
        cluster.change(HTTP_ROUTE, "digits", lambda o: o["metadata"]["labels"].update(team="vision"))
        edited = cluster.user(b.spec(1, traffic=BOTH | {"http": {"hostnames": ["new.example.com"]}}))
        operator.store.observe(MODEL_DEPLOYMENT, {"type": "MODIFIED", "object": edited})
        with pytest.raises(Conflict):
            while True:
                await operator.once()
        assert "get HTTPRoute digits" in cluster.requests
        await operator.settle()  # the watch still is silent
        live = cluster.find(HTTP_ROUTE)
        assert (
            live
            and live["spec"]["hostnames"] == ["new.example.com"]
            and live["metadata"]["labels"]["team"] == "vision"
        )

    run(main())


def test_a_former_leader_cannot_write_the_route_back() -> None:
    async def main() -> None:
        cluster, leader = await serving()
        cluster.user(b.spec(2, traffic=BOTH))
        leader.assessment = b.judged("Successful")
        await until(leader, "Provision")
        cluster.start_pods()
        while cluster.status.rollout and cluster.status.rollout.stage != "Canary":
            await leader.once()
        former = Operator(cluster)
        former.assessment = leader.assessment
        await former.lookups.hostnames.refresh()
        former.deaf = True  # paused with what it knows: it is about to write the first weight
        await leader.live(rounds=20)
        assert cluster.weights() == {V2: 100} and set(cluster.all(DEPLOYMENT)) == {V2}
        before, status = copy.deepcopy(cluster.find(HTTP_ROUTE)), cluster.status
        with pytest.raises(Conflict):
            await former.once()
        assert cluster.find(HTTP_ROUTE) == before
        # and the next pass does not do with a fresh resourceVersion what it could not do with an
        # old one
        await former.settle(limit=5)
        assert (
            cluster.weights() == {V2: 100}
            and cluster.status.stable == status.stable
            and set(cluster.all(DEPLOYMENT)) == {V2}
        )

    run(main())


def test_two_leaders_at_once_do_no_harm() -> None:
    async def main() -> None:
        cluster, one = await serving()
        other = Operator(cluster)
        cluster.user(b.spec(2, traffic=BOTH))
        for operator in (one, other):
            operator.assessment = b.judged("Successful")
        for _ in range(20):
            await asyncio.gather(one.live(rounds=1), other.live(rounds=1))
        assert (
            cluster.status.stable and cluster.status.stable.revision == V2 and cluster.status.last_number == 2
        )
        assert cluster.weights() == {V2: 100} and set(cluster.all(DEPLOYMENT)) == {V2}

    run(main())


def test_a_pass_that_lost_the_lease_writes_nothing() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.user(b.spec(2, traffic=BOTH))
        operator.leads = False
        assert await operator.once() is None and cluster.requests == []

    run(main())


# --- crashes


STORY = ((1, None, 6), (2, "Successful", 11), (3, "Failed", 9))


class Story(Cluster):
    """``round``: of ``STORY``, under way."""

    round = 0


async def _play(cluster: Story) -> None:
    """Version 1, then 2 by canary, then 3 rolled back, from the round on that is under way. After
    one that dies a new operator lists everything.
    """
    begin = cluster.round
    operator = Operator(cluster)
    for i, (version, verdict) in enumerate(
        (version, verdict) for version, verdict, rounds in STORY for _ in range(rounds)
    ):
        if i < begin:
            continue
        cluster.round = i
        cluster.user(b.spec(version, traffic=BOTH, golden=True))
        operator.assessment = b.judged(verdict) if verdict else None  # type: ignore[arg-type]
        await operator.live(rounds=1)


def _told(cluster: Cluster) -> dict[str, Any]:
    revisions = {
        name: (
            o["spec"]["number"],
            ModelRevisionStatus.model_validate(o["status"]).outcome,
            o["metadata"]["annotations"][names.ANNOTATION_OUTCOME],
        )
        for name, o in cluster.all(MODEL_REVISION).items()
    }
    left = {
        kind.kind: sorted(cluster.all(kind))
        for kind in (DEPLOYMENT, SERVICE, HTTP_ROUTE, GRPC_ROUTE, POD_DISRUPTION_BUDGET)
    }
    stable = cluster.status.stable
    return {
        "revisions": revisions,
        "left": left,
        "weights": cluster.weights(),
        "stable": stable.revision if stable else None,
        "phase": cluster.status.phase,
    }


@pytest.mark.heavy
def test_killing_the_operator_between_any_two_requests_changes_nothing_of_the_outcome() -> None:
    """For each request of the story: everything is as it was before it, and another operator goes
    on from there.
    """

    async def main() -> None:
        undisturbed = Story()
        moments: list[tuple[str, Story]] = []
        undisturbed.before = lambda *_: moments.append((undisturbed.requests[-1], undisturbed.copy()))
        await _play(undisturbed)
        expected = _told(undisturbed)
        assert expected["stable"] == V2 and expected["revisions"][b.revision_name(3)][1:] == (
            "RolledBack",
            "RolledBack",
        )
        for request, cluster in moments:
            await _play(cluster)
            assert _told(cluster) == expected, f"died before {request}"

    run(main())


# --- what the API server refuses


def test_a_refused_job_is_told_ends_at_the_deadline_and_gets_on_when_it_is_allowed() -> None:
    async def main() -> None:
        cluster, operator = await serving()

        def quota(verb: str, resource: Resource, name: str) -> None:
            if verb == "create" and resource == JOB:
                raise Forbidden(403, "Forbidden", "exceeded quota: pods")

        cluster.before = quota
        cluster.user(b.spec(2, traffic=BOTH))
        await operator.settle(limit=6)
        assert cluster.status.rollout and cluster.status.rollout.reason == "ChildRefused"
        assert "exceeded quota" in (cluster.status.rollout.message or "")
        writes = len([r for r in cluster.requests if r.startswith("status")])
        await operator.settle(limit=6)
        assert len([r for r in cluster.requests if r.startswith("status")]) == writes, "it is told once"
        cluster.before = lambda verb, resource, name: None
        operator.assessment = b.judged("Successful")
        await operator.live(rounds=20)
        assert cluster.status.stable and cluster.status.stable.revision == V2

    run(main())


def test_a_job_that_gets_no_pod_says_why_in_the_words_of_the_quota() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.user(b.spec(2, traffic=BOTH))
        await operator.settle(limit=6)
        (job,) = (o for o in cluster.all(JOB).values() if not (o.get("status") or {}).get("conditions"))
        assert "list Event" not in cluster.requests, "a Job that was made just now may have no pod yet"
        for uid, reason, message in (
            (
                job["metadata"]["uid"],
                "FailedCreate",
                'Error creating: pods "x" is forbidden: exceeded quota: small, limited: limits.memory=1Gi',
            ),
            (job["metadata"]["uid"], "SuccessfulCreate", "another story"),
            ("of-another", "FailedCreate", "another Job"),
        ):
            told = {
                "reason": reason,
                "message": message,
                "lastTimestamp": "2026-11-22T12:00:00Z",
                "involvedObject": {"uid": uid},
            }
            cluster.put(EVENT, {"metadata": {"name": f"e-{uid}-{reason}"}} | told)
        cluster.now += timedelta(seconds=30)
        await operator.settle(limit=6)
        assert cluster.status.rollout and cluster.status.rollout.reason == "PodRefused"
        assert "exceeded quota: small" in (cluster.status.rollout.message or "")
        operator.assessment = b.judged("Successful")
        await operator.live(rounds=20)
        assert cluster.status.stable and cluster.status.stable.revision == V2

    run(main())


def test_a_refused_server_says_why_and_the_deadline_is_kept() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.user(b.spec(2, traffic=BOTH, rollout={"progressDeadline": "90s"}))

        def refuse(verb: str, resource: Resource, name: str) -> None:
            if resource == DEPLOYMENT and verb == "create":
                raise Forbidden(403, "Forbidden", 'admission webhook "limits" denied the request: no')

        cluster.before = refuse
        for _ in range(10):
            await operator.settle(limit=6)
            cluster.end_jobs()
        began, rollout = cluster.now, cluster.status.rollout
        assert rollout is not None
        assert (rollout.stage, rollout.reason) == ("Provision", "ChildRefused")
        while rollout.stage == "Provision" and (cluster.now - began).total_seconds() < 300:
            operator.retries.clear()
            await operator.settle(limit=4)
            rollout = cluster.status.rollout
            assert rollout is not None
            # what the queue does: of the back-off and this, the earlier counts
            cluster.now += timedelta(seconds=min(operator.retries, default=0.0))
        assert (rollout.stage, rollout.reason) == ("Failed", "ChildRefused")
        assert 90 <= (cluster.now - began).total_seconds() < 100

    run(main())


def test_without_the_right_to_read_events_nothing_else_suffers() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.user(b.spec(2, traffic=BOTH))
        await operator.settle(limit=6)

        def forbidden(verb: str, resource: Resource, name: str) -> None:
            if resource == EVENT:
                raise Forbidden(403, "Forbidden", "events is forbidden")

        cluster.before = forbidden
        cluster.now += timedelta(seconds=30)
        await operator.settle(limit=6)
        assert (
            cluster.status.rollout
            and cluster.status.rollout.reason is None
            and "list Event" in cluster.requests
        )

    run(main())


def test_what_was_told_is_taken_back_once_it_is_over_whoever_helped() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        budget = copy.deepcopy(cluster.find(POD_DISRUPTION_BUDGET))
        assert budget is not None

        def denied(verb: str, resource: Resource, name: str) -> None:
            if resource == POD_DISRUPTION_BUDGET:
                raise Forbidden(403, "Forbidden", "denied by admission")

        cluster.before = denied
        cluster.remove(POD_DISRUPTION_BUDGET, "digits")
        await operator.settle(limit=5)
        assert (
            conditions(cluster)["Stalled"] == ("True", "ChildRefused")
            and conditions(cluster)["Available"][0] == "True"
        )
        cluster.put(POD_DISRUPTION_BUDGET, budget)
        await operator.settle()
        assert conditions(cluster)["Ready"] == ("True", "Stable")

    run(main())


def test_a_child_that_is_refused_holds_up_no_rollback() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.user(b.spec(2, traffic=BOTH))
        operator.assessment = b.judged("Inconclusive")
        await until(operator, "Canary")
        await operator.live(rounds=2)

        def denied(verb: str, resource: Resource, name: str) -> None:
            if resource == POD_DISRUPTION_BUDGET or (
                resource == DEPLOYMENT and name == V2 and verb != "delete"
            ):
                raise Forbidden(403, "Forbidden", "denied by admission")

        cluster.before = denied
        operator.assessment = b.judged("Failed")
        await operator.live(rounds=5)
        assert cluster.weights() == {V1: 100}
        assert cluster.status.rollout and cluster.status.rollout.outcome == "RolledBack"

    run(main())


def test_golden_data_from_a_store_that_is_not_allowed_is_told_while_it_is_wanted() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.user(b.spec(2, traffic=BOTH))
        await until(operator, "Prepare")
        elsewhere = {"analysis": {"golden": {"uri": "https://elsewhere.example.com/golden.npz"}}}
        cluster.user(b.spec(2, traffic=BOTH, rollout=elsewhere))
        await operator.live(rounds=4)
        rollout = cluster.status.rollout
        assert (
            rollout
            and (rollout.stage, rollout.reason) == ("Evaluate", "StoreNotAllowed")
            and "elsewhere.example.com" in (rollout.message or "")
        )
        cluster.user(b.spec(2, traffic=BOTH))
        operator.assessment = b.judged("Successful")
        await operator.live(rounds=20)
        assert cluster.status.stable and cluster.status.stable.revision == V2

    run(main())


@pytest.mark.parametrize(
    ("rules", "golden", "reason"),
    [
        ({"allowedSecrets": []}, {"credentials": {"secretRef": {"name": "theirs"}}}, "SecretNotAllowed"),
        ({"allowedSources": {"data": ["s3://models/golden/"]}}, {}, "SourceNotAllowed"),
    ],
)
def test_what_is_edited_while_a_rollout_goes_on_takes_no_more_than_before_it(
    rules: Any, golden: Any, reason: str
) -> None:
    """Golden data is no part of a version, so an edit of it is no other rollout: the Job looks
    again, and rollbacks go on.
    """

    async def main() -> None:
        cluster, operator = await serving()
        cluster.policy("production", **rules)
        cluster.user(b.spec(2, traffic=BOTH))
        await until(operator, "Prepare")
        edited = {"analysis": {"golden": {"uri": "s3://models/theirs/golden.npz", **golden}}}
        cluster.user(b.spec(2, traffic=BOTH, rollout=edited))
        await operator.live(rounds=4)
        rollout = cluster.status.rollout
        assert (
            rollout
            and (rollout.stage, rollout.reason) == ("Evaluate", reason)
            and "RolloutPolicy production allows only" in (rollout.message or "")
        )
        assert not [name for name in cluster.all(JOB) if "evaluate" in name]
        cluster.user(b.spec(1, traffic=BOTH))
        await operator.live(rounds=6)
        assert cluster.weights() == {V1: 100} and cluster.status.phase == "Stable"

    run(main())


def test_a_revision_of_a_newer_operator_is_told_and_breaks_nothing() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.user(b.spec(2, traffic=BOTH))
        while V2 not in cluster.all(MODEL_REVISION):
            await operator.settle(limit=1)
            cluster.end_jobs()
        cluster.change(
            MODEL_REVISION, V2, lambda o: o["spec"]["input"]["serving"].update(quantum={"spin": 1})
        )
        for job in list(cluster.all(JOB)):
            cluster.remove(JOB, job)
        await operator.settle(limit=8)
        rollout = cluster.status.rollout
        assert rollout and (rollout.stage, rollout.reason) == ("Prepare", "RevisionUnreadable")
        assert conditions(cluster)["Available"][0] == "True"

    run(main())


def test_a_revision_records_what_is_empty_so_that_an_earlier_operator_begins_no_rollout() -> None:
    """That one compares it with spec, where it keeps what is empty."""
    empty = {"nodeSelector": {}, "affinity": {"podAffinity": {}}, "pod": {"labels": {}}}
    plain = b.spec(1, traffic=BOTH)
    written = b.spec(1, traffic=BOTH, serving=plain.serving.wire() | empty)

    async def main() -> None:
        cluster, _ = await serving(written)
        recorded = cluster.all(MODEL_REVISION)[V1]["spec"]["input"]["serving"]
        of_today = plain.user_input()["serving"]
        assert recorded == of_today | {"nodeSelector": {}, "affinity": {"podAffinity": {}}}

    run(main())


# --- traffic settings that are refused after the version serves


def test_without_the_gateway_api_an_edit_of_traffic_is_answered_and_breaks_nothing() -> None:
    async def main() -> None:
        cluster, operator = await serving(b.spec(1, gateway=False))
        cluster.kinds.clear()
        cluster.user(b.spec(1, traffic=BOTH))
        assert await operator.settle() == 30
        assert (
            conditions(cluster)["Stalled"] == ("True", "GatewayAPIMissing")
            and conditions(cluster)["Available"][0] == "True"
        )
        assert not any("Route" in r for r in cluster.requests)
        service = cluster.find(SERVICE)
        assert service and service["spec"]["selector"][names.LABEL_REVISION] == V1

    run(main())


# --- a status that was lost or damaged


@pytest.mark.parametrize(
    "damage",
    [
        lambda o: o.pop("status"),
        lambda o: o.update(status={}),
        lambda o: o.update(status={"stable": "v1", "rollout": 7, "lastNumber": "many"}),
        lambda o: o["status"]["rollout"].update(stage="Dreaming"),
        lambda o: o["status"]["rollout"].update(since="yesterday"),
        lambda o: o["status"].update(conditions=[{"type": 3}], handledVerbs=[1]),
        lambda o: o["status"].pop("stable"),
    ],
    ids=["none", "empty", "nonsense", "stage", "time", "lists", "no stable"],
)
def test_a_damaged_status_restarts_no_pod_and_begins_no_rollout(damage: Any) -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.user(b.spec(2, traffic=BOTH))
        operator.assessment = b.judged("Successful")
        await operator.live(rounds=20)
        deployment, route = (
            copy.deepcopy(cluster.find(DEPLOYMENT, V2)),
            copy.deepcopy(cluster.find(HTTP_ROUTE)),
        )
        cluster.change(MODEL_DEPLOYMENT, "digits", damage)
        cluster.requests.clear()
        await operator.settle()
        cluster.now += timedelta(seconds=4)  # what is promoted anew waits for the data plane
        await operator.settle()
        assert cluster.status.stable and (cluster.status.stable.revision, cluster.status.stable.number) == (
            V2,
            2,
        )
        assert conditions(cluster)["Ready"] == ("True", "Stable") and cluster.status.last_number == 2
        assert cluster.find(DEPLOYMENT, V2) == deployment and cluster.find(HTTP_ROUTE) == route
        assert {r.split()[0] for r in cluster.requests} <= {"status", "patch"}, cluster.requests

    run(main())


def test_a_backup_without_any_status_brings_the_same_state_back() -> None:
    """Revisions with their annotations, pods that run; no status on anything of ours."""

    async def main() -> None:
        cluster, _ = await serving()
        cluster.user(b.spec(2, traffic=BOTH, golden=True))
        first = Operator(cluster)
        first.assessment = b.judged("Failed")
        await first.live(rounds=16)
        assert (
            cluster.find(MODEL_REVISION, V2)["metadata"]["annotations"][names.ANNOTATION_OUTCOME]
            == "RolledBack"
        )  # type: ignore[index]
        for resource, name in ((MODEL_DEPLOYMENT, "digits"), (MODEL_REVISION, V1), (MODEL_REVISION, V2)):
            cluster.change(resource, name, lambda o: o.pop("status"))
        deployment = copy.deepcopy(cluster.find(DEPLOYMENT, V1))
        operator = Operator(cluster)
        await operator.live(rounds=4)
        assert cluster.status.stable and cluster.status.stable.revision == V1
        assert conditions(cluster)["Stalled"] == ("True", "Quarantined"), (
            "the bad version in spec is still known to be bad"
        )
        assert cluster.find(DEPLOYMENT, V1)["spec"] == deployment["spec"]  # type: ignore[index]
        assert not [r for r in cluster.requests if r.startswith("create Job")][4:], (
            "nothing is prepared again"
        )

    run(main())


def test_a_backup_of_after_a_rollback_brings_back_the_version_that_served() -> None:
    """Neither a route nor a status: annotations alone say which version that is."""

    async def main() -> None:
        cluster, operator = await serving()
        operator.assessment = b.judged("Successful")
        for version in (2, 3):
            cluster.user(b.spec(version, traffic=BOTH))
            await operator.live(rounds=60)
            assert cluster.status.stable and cluster.status.stable.number == version
        cluster.annotate(V1, "rollback", "n1")
        await operator.live(rounds=60)
        for resource in (MODEL_DEPLOYMENT, MODEL_REVISION):
            for name in cluster.all(resource):
                cluster.change(resource, name, lambda o: o.pop("status"))
        for resource in (HTTP_ROUTE, GRPC_ROUTE, SERVICE):
            for name in cluster.all(resource):
                cluster.remove(resource, name)
        await Operator(cluster).live(rounds=4)
        assert cluster.status.stable and cluster.status.stable.revision == V1
        assert cluster.status.pinned and cluster.status.pinned.revision == V1

    run(main())


def test_an_outcome_is_mirrored_before_status_says_it() -> None:
    """Whatever dies in between, status still differs, and the next pass does both."""

    async def main() -> None:
        cluster, _ = await serving()
        cluster.user(b.spec(2, traffic=BOTH))
        operator = Operator(cluster)
        operator.assessment = b.judged("Successful")
        cluster.requests.clear()
        await operator.live(rounds=20)
        about = [r for r in cluster.requests if r.endswith(f"ModelRevision {V2}")]
        assert (
            about.index(f"patch ModelRevision {V2}") < len(about) - 1
            and about[-1] == f"status ModelRevision {V2}"
        )

    run(main())


def test_evidence_that_was_lost_removes_no_pods_of_stable() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.change(MODEL_REVISION, V1, lambda o: o.update(status={"outcome": "Stable"}))
        await operator.settle()
        assert cluster.find(DEPLOYMENT, V1) is not None and cluster.find(SERVICE, V1) is not None
        cluster.change(DEPLOYMENT, V1, lambda o: o["spec"]["template"]["spec"].pop("initContainers"))
        cluster.change(MODEL_REVISION, V1, lambda o: o.update(status={"outcome": "Stable"}))
        cluster.change(MODEL_DEPLOYMENT, "digits", lambda o: o["status"].pop("rollout"))
        await operator.settle()
        assert cluster.find(DEPLOYMENT, V1) is not None, "nor where it cannot even be told what they run"

    run(main())


def test_an_object_that_is_gone_or_going_is_left_to_the_garbage_collector() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.change(
            MODEL_DEPLOYMENT,
            "digits",
            lambda o: o["metadata"].update(deletionTimestamp="2026-11-22T13:00:00Z"),
        )
        assert await operator.once() is None
        cluster.remove(MODEL_DEPLOYMENT, "digits")
        cluster.requests.clear()
        assert await operator.once() is None
        assert {request.split()[1] for request in cluster.requests} <= {"Lease", "ModelDeployment"}
        assert not [i for i in cluster.objects if i[0] == LEASE], "its host names are free"

    run(main())


def test_pods_of_a_job_are_kept_in_view_for_their_message() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.user(b.spec(2, traffic=BOTH))
        await operator.settle()
        cluster.end_jobs(lambda job: (10, '{"reason": "AccessDenied", "message": "no such key"}'))
        await operator.settle()
        assert cluster.all(POD)
        rollout = cluster.status.rollout
        assert rollout and (rollout.stage, rollout.reason, rollout.message) == (
            "Failed",
            "AccessDenied",
            "no such key",
        )

    run(main())


def test_a_watch_of_pods_that_brings_nothing_loses_no_result() -> None:
    async def main() -> None:
        cluster = Cluster()
        operator = Operator(cluster)
        cluster.deaf_to(POD)
        cluster.user(b.spec(1, traffic=BOTH))
        await operator.live()
        assert (
            cluster.status.phase == "Stable"
            and cluster.status.rollout is not None
            and cluster.status.rollout.attempt == 0
        )

    run(main())


def test_a_job_whose_pod_has_spoken_keeps_it_and_goes_when_another_begins() -> None:
    async def main() -> None:
        cluster = Cluster()
        operator = Operator(cluster)
        cluster.user(b.spec(1, traffic=BOTH, pinned=True))
        await until(operator, "Prepare")
        [(name, job)] = cluster.all(JOB).items()
        killed = {"exitCode": 137, "reason": "OOMKilled"}
        status = {
            "phase": "Failed",
            "reason": "Evicted",
            "message": "ephemeral-storage limit",
            "containerStatuses": [{"name": "job", "state": {"terminated": killed}}],
        }
        spec = copy.deepcopy(job["spec"]["template"]["spec"])
        cluster.put(POD, {"metadata": {"name": "ended", **of_job(job)}, "spec": spec, "status": status})
        await operator.settle()
        assert cluster.status.rollout is not None and cluster.status.rollout.stage == "Failed"
        assert list(cluster.all(JOB)) == [name], "its log is what a person will want to read"
        cluster.put(
            POD,
            {"metadata": {"name": "another", **of_job(job)}, "spec": spec, "status": {"phase": "Running"}},
        )
        await operator.settle()
        assert not cluster.all(JOB), "it would be tried again for nothing"

    run(main())


def test_a_state_that_the_api_server_does_not_keep_is_no_reason_to_write_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A definition that is older than the operator prunes what it does not know, and answers as if
    nothing was asked.
    """

    async def main() -> None:
        cluster = Cluster()
        cluster.user(b.spec(1))
        operator = Operator(cluster)

        async def pruned(resource: Resource, obj: Any) -> Any:
            return copy.deepcopy(
                cluster.objects[resource, obj["metadata"]["namespace"], obj["metadata"]["name"]]
            )

        cluster.replace_status = pruned  # type: ignore[method-assign]
        assert await operator.once() == 0.0, "it has claimed its host name"
        assert await operator.once() == 30.0
        assert "apply crds/" in caplog.text and operator.events == []

    asyncio.run(main())


def test_a_job_is_told_what_the_namespace_records_of_its_source_and_gets_a_salt_of_its_own() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        first = cluster.find(MODEL_REVISION, V1)
        assert first is not None
        artifact = first["status"]["artifact"]
        batching = {
            "replicas": 2,
            "resources": {"limits": {"nvidia.com/gpu": 1}},
            "batching": {"maxBatchSize": 4},
        }
        cluster.user(b.spec(1, pinned=True, traffic=BOTH, serving=batching))
        await until(operator, "Prepare")
        assert cluster.status.rollout
        (job,) = [
            job
            for name, job in cluster.all(JOB).items()
            if name.startswith(str(cluster.status.rollout.revision))
        ]
        task = prepare_task(job)
        assert task is not None and [(r.uri, r.digest) for r in task.recorded] == [
            (artifact["uri"], artifact["digest"])
        ]
        assert task.salt not in artifact["uri"]

    run(main())
