"""A Job that Kueue holds back, before a cluster in memory: what of the Workload is told, and what
of spec reaches a Job that waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest

from modelrollout.api import names
from modelrollout.controller.lookups.kueue import LABEL_JOB_UID, PATIENCE_SECONDS, queue_reason
from modelrollout.kube.errors import Forbidden
from modelrollout.kube.kinds import JOB, POD, WORKLOAD, WORKLOAD_BEFORE, Resource
from modelrollout.kube.objects import Object
from modelrollout.resources.jobs.common import LABEL_PRIORITY, LABEL_QUEUE
from modelrollout.rollout.stages.job import MAX_LOST, SOON_SECONDS
from modelrollout.rollout.stages.waiting import CHECK_SECONDS
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import Cluster, Operator, of_job

FULL = (
    "couldn't assign flavors to pod set main: insufficient unused quota for cpu in flavor small, 1 more"
    " needed"
)
MISSING = "LocalQueue optimizers doesn't exist"


def condition(kind: str, status: str, reason: str, message: str) -> Object:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def pending(message: str, reason: str = "Pending") -> list[Object]:
    return [condition("QuotaReserved", "False", reason, message)]


def workload(conditions: list[Object], queue: str | None = "optimizers", **more: Any) -> Object:
    spec = {"queueName": queue} if queue else {}
    return {
        "metadata": {"name": "job-x"},
        "spec": spec | more.pop("spec", {}),
        "status": {"conditions": conditions, **more},
    }


def job(component: str = names.COMPONENT_PREPARE) -> Object:
    return {"metadata": {"name": "x", "labels": {names.LABEL_COMPONENT: component}}}


# --- what is told of a Workload


def test_a_job_that_waits_for_quota() -> None:
    problem = queue_reason(job(), workload(pending(FULL)))
    assert problem.reason == "Queued" and problem.message.startswith(
        "Job x in Kueue's LocalQueue optimizers (Workload job-x) waits"
    )
    assert problem.message.endswith(FULL)
    assert queue_reason(job(), workload([])).message.endswith("without time limit"), (
        "those behind others in a strict queue have no condition"
    )


@pytest.mark.parametrize(
    "reason", ["Inadmissible", "Misconfigured", "Suspended", "NoMatchingFlavor", "ExceedsMaxQuota"]
)
def test_what_time_does_not_heal_names_the_field(reason: str) -> None:
    problem = queue_reason(job(), workload(pending(MISSING, reason)))
    assert (
        problem.reason == "NotAdmissible"
        and MISSING in problem.message
        and "spec.optimization.queueName" in problem.message
    )


def test_a_job_without_a_field_for_its_queue_names_what_took_it() -> None:
    default = queue_reason(
        job(names.COMPONENT_EVALUATE),
        workload(pending("LocalQueue default is stopped", "Inadmissible"), queue="default"),
    )
    assert default.message.endswith("have the queue corrected") and "spec.optimization" not in default.message
    every = queue_reason(
        job(names.COMPONENT_RESOLVE),
        workload(pending("LocalQueue  doesn't exist", "Inadmissible"), queue=None),
    )
    assert "without a LocalQueue" in every.message and "called default" in every.message


def test_a_preempted_job_waits_as_before() -> None:
    why = "Preempted to accommodate a workload (UID: a, JobUID: b) due to prioritization in the ClusterQueue"
    problem = queue_reason(job(), workload([condition("Evicted", "True", "Preempted", why), *pending(why)]))
    assert problem.reason == "Queued" and why in problem.message


def test_a_workload_that_is_never_admitted_again_says_so() -> None:
    limit = condition(
        "Evicted",
        "True",
        "Deactivated",
        "The workload is deactivated due to exceeding the maximum number of re-queuing retries",
    )
    off = queue_reason(job(), workload([limit, *pending("...")], spec={"active": False}))
    assert off.reason == "NotAdmissible" and "re-queuing" in off.message and "spec.active" in off.message
    by_hand = queue_reason(job(), workload([], spec={"active": False}))
    assert "is deactivated; set" in by_hand.message
    failed = queue_reason(
        job(),
        workload([condition("Finished", "True", "FailedToStart", "conflict for nodeSelector"), *pending("")]),
    )
    assert (
        failed.reason == "NotAdmissible"
        and "conflict for nodeSelector" in failed.message
        and "delete the Job" in failed.message
    )


def test_quota_alone_does_not_admit() -> None:
    reserved = condition("QuotaReserved", "True", "QuotaReserved", "Quota reserved in ClusterQueue all")
    checks = [
        {"name": "nodes", "state": "Pending", "message": "provisioning"},
        {"name": "budget", "state": "Ready"},
    ]
    problem = queue_reason(job(), workload([reserved], admissionChecks=checks))
    assert (
        problem.reason == "Queued"
        and "nodes is Pending provisioning" in problem.message
        and "budget" not in problem.message
    )


# --- passes


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


class SuspendingCluster(Cluster):
    """Kueue's webhook: a Job with a queue's name is suspended when it is made."""

    def __init__(self, served: Resource = WORKLOAD) -> None:
        super().__init__()
        self.served = served

    async def has_kind(self, resource: Resource, ttl: float = 60.0) -> bool:
        return resource == self.served or await super().has_kind(resource, ttl)

    async def create(self, resource: Resource, obj: Object) -> Object:
        if resource == JOB and LABEL_QUEUE in obj["metadata"]["labels"]:
            obj = {**obj, "spec": obj["spec"] | {"suspend": True}}
        return await super().create(resource, obj)

    def waiting(self) -> Object:
        """The prepare Job."""
        (actual,) = (
            o
            for o in self.all(JOB).values()
            if o["metadata"]["labels"][names.LABEL_COMPONENT] == names.COMPONENT_PREPARE
        )
        return actual

    def says(self, conditions: list[Object]) -> None:
        """Kueue writes the Workload of that Job, which it makes if need be."""
        uid = self.waiting()["metadata"]["uid"]
        name = f"job-{uid}"
        if self.find(self.served, name) is None:
            metadata = {
                "name": name,
                "labels": {LABEL_JOB_UID: uid},
                "ownerReferences": [{"uid": uid, "controller": True}],
            }
            self.put(self.served, {"metadata": metadata, "spec": {"queueName": "optimizers"}})
        self.set_status(self.served, name, {"conditions": conditions})

    def told(self) -> tuple[str | None, str]:
        rollout = self.status.rollout
        assert rollout is not None and rollout.stage == "Prepare"
        return rollout.reason, rollout.message or ""


def edited(**optimization: Any) -> Any:
    return b.spec(1, optimization={"queueName": "optimizers"} | optimization)


async def queued(cluster: SuspendingCluster, **optimization: Any) -> Operator:
    """A first version whose prepare Job waits in its queue."""
    cluster.user(edited(**optimization))
    operator = Operator(cluster)
    await operator.settle()
    cluster.end_jobs()  # resolve
    await operator.settle()
    assert cluster.waiting()["spec"]["suspend"] is True
    return operator


@pytest.mark.parametrize("served", [WORKLOAD, WORKLOAD_BEFORE])
def test_the_latest_words_of_kueue_stand_in_status_and_one_event_is_posted(served: Resource) -> None:
    async def main() -> None:
        cluster = SuspendingCluster(served)
        operator = await queued(cluster)
        assert cluster.told()[0] == "Queued"
        for needed in ("1 more needed", "2 more needed"):
            cluster.says(pending(f"insufficient unused quota, {needed}"))
            assert await operator.settle() == CHECK_SECONDS
            assert cluster.told()[0] == "Queued" and needed in cluster.told()[1]
        assert [e.reason for e in operator.events].count("Queued") == 1
        before = len(cluster.requests)
        await operator.settle()
        assert not [r for r in cluster.requests[before:] if not r.startswith("list")], (
            "nothing new is nothing to write"
        )

    run(main())


def test_a_queue_that_is_missing_is_told_and_taken_back_when_it_is_made() -> None:
    async def main() -> None:
        cluster = SuspendingCluster()
        operator = await queued(cluster)
        cluster.says(pending(MISSING, "Inadmissible"))
        await operator.settle()
        assert cluster.told()[0] == "NotAdmissible" and MISSING in cluster.told()[1]
        cluster.now += timedelta(days=9)
        cluster.says(pending(FULL))
        await operator.settle()
        assert cluster.told()[0] == "Queued" and FULL in cluster.told()[1]
        assert [e.reason for e in operator.events if e.reason in ("Queued", "NotAdmissible")] == [
            "Queued",
            "NotAdmissible",
            "Queued",
        ]

    run(main())


def test_kueue_is_asked_again_soon_until_it_has_spoken_or_should_have() -> None:
    async def main() -> None:
        cluster = SuspendingCluster()
        operator = await queued(cluster, queuePriorityClass="urgent")
        assert await operator.settle() == SOON_SECONDS
        assert cluster.told()[0] == "Queued" and "no Workload" not in cluster.told()[1], (
            "it has hardly had the time"
        )
        cluster.now += timedelta(seconds=PATIENCE_SECONDS + 1)
        assert await operator.settle() == CHECK_SECONDS
        reason, message = cluster.told()
        assert (
            reason == "Queued"
            and "has made no Workload" in message
            and "WorkloadPriorityClass urgent" in message
        )

    run(main())


def test_without_the_right_to_read_workloads_the_queue_is_told_all_the_same() -> None:
    async def main() -> None:
        cluster = SuspendingCluster()

        def forbidden(verb: str, resource: Resource, name: str) -> None:
            if resource == WORKLOAD and verb == "list":
                raise Forbidden(403, "Forbidden", "workloads is forbidden")

        cluster.before = forbidden
        operator = await queued(cluster)
        assert await operator.settle() == CHECK_SECONDS
        assert cluster.told()[0] == "Queued" and "LocalQueue optimizers" in cluster.told()[1]

    run(main())


@pytest.mark.parametrize(
    "correction",
    [
        {"queueName": "other"},
        {"queueName": None},
        {"resources": {"limits": {"cpu": "2"}}},
        {"queuePriorityClass": "urgent"},
        {"timeout": "2h"},
    ],
)
def test_what_is_corrected_in_spec_reaches_a_job_that_waits(correction: dict[str, Any]) -> None:
    """Its queue may not exist, or its resources be more than any quota: as it is it would wait for
    ever.
    """

    async def main() -> None:
        cluster = SuspendingCluster()
        operator = await queued(cluster)
        before = cluster.waiting()["metadata"]
        cluster.user(edited(**correction))
        await operator.settle()
        after = cluster.waiting()
        assert after["metadata"]["name"] == before["name"] and after["metadata"]["uid"] != before["uid"]
        labels = after["metadata"]["labels"]
        assert labels.get(LABEL_QUEUE) == correction.get("queueName", "optimizers")
        assert labels.get(LABEL_PRIORITY) == correction.get("queuePriorityClass")
        assert [r for r in cluster.requests if r.startswith("delete Job")] == [f"delete Job {before['name']}"]
        await operator.settle()
        assert cluster.waiting()["metadata"]["uid"] == after["metadata"]["uid"]

    run(main())


def admitted(o: Object) -> None:
    """As Kueue starts a Job in a flavor with node labels and a taint."""
    o["spec"]["suspend"] = False
    pod = o["spec"]["template"]
    pod["metadata"].setdefault("labels", {})["kueue.x-k8s.io/podset"] = "main"
    pod["metadata"]["annotations"] = {"kueue.x-k8s.io/workload": "job-x"}
    pod["spec"]["nodeSelector"], pod["spec"]["schedulingGates"] = {"pool": "cpu"}, [{"name": "topology"}]
    pod["spec"]["tolerations"] = [{"key": "pool", "operator": "Exists"}]


def preempted(o: Object) -> None:
    o["spec"]["suspend"] = True
    o["metadata"].setdefault("annotations", {})["kueue.x-k8s.io/stopping"] = "true"
    o["status"] = {"conditions": []}


def other_labels(o: Object) -> None:
    """Another webhook's words, and a queue that a person moved the Job to."""
    o["metadata"]["labels"] |= {LABEL_QUEUE: "elsewhere", "team": "a"}
    o["spec"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "9"}}


@pytest.mark.parametrize(
    "changes", [[admitted], [admitted, preempted], [admitted, preempted, admitted], [other_labels]]
)
def test_what_others_change_in_the_job_is_not_fought_over(changes: list[Callable[[Object], None]]) -> None:
    async def main() -> None:
        cluster = SuspendingCluster()
        operator = await queued(cluster)
        name = cluster.waiting()["metadata"]["name"]
        for change in changes:
            cluster.change(JOB, name, change)
        live = cluster.waiting()
        for _ in range(3):
            await operator.settle()
            cluster.now += timedelta(seconds=30)
        assert cluster.waiting() == live

    run(main())


def test_a_job_that_runs_is_left_alone_and_one_that_another_controller_suspended() -> None:
    async def main() -> None:
        cluster = SuspendingCluster()
        operator = await queued(cluster)
        live = cluster.change(JOB, cluster.waiting()["metadata"]["name"], admitted)
        cluster.user(edited(resources={"limits": {"cpu": "2"}}))
        await operator.settle()
        assert cluster.waiting() == live

        plain = SuspendingCluster()
        plain.user(b.spec(1))
        other = Operator(plain)
        await other.settle()
        plain.end_jobs()
        await other.settle()
        pending = plain.change(
            JOB, plain.waiting()["metadata"]["name"], lambda o: o["spec"].update(suspend=True)
        )
        plain.user(b.spec(1, optimization={"timeout": "2h"}))
        await other.settle()
        assert plain.waiting() == pending, "who suspended it has a reason"

    run(main())


def failed(o: Object) -> None:
    """The Job controller on a pod that it told to end, and that was killed."""
    told_why = {
        "reason": "PodFailurePolicy",
        "message": "Container job for pod x failed with exit code 137 matching FailJob rule at index 2",
    }
    o["status"] = {
        "conditions": [
            {"type": "Suspended", "status": "True"},
            {"type": "Failed", "status": "True"} | told_why,
        ]
    }


def ended_pod(cluster: SuspendingCluster, state: Object) -> None:
    job = cluster.waiting()
    status = {"phase": "Failed", "containerStatuses": [{"name": "job", "state": {"terminated": state}}]}
    cluster.put(
        POD,
        {"metadata": {"name": "p", **of_job(job)}, "spec": job["spec"]["template"]["spec"], "status": status},
    )


@pytest.mark.parametrize("pod", [None, {"exitCode": 137, "reason": "Error"}])
def test_a_preempted_pod_that_had_to_be_killed_is_no_failed_try_however_often(pod: Object | None) -> None:
    """It has five seconds to end, and native code may hold the interpreter for longer."""

    async def main() -> None:
        cluster = SuspendingCluster()
        operator = await queued(cluster)
        uids = set()
        for _ in range(2 * MAX_LOST):
            name = cluster.waiting()["metadata"]["name"]
            uids.add(cluster.waiting()["metadata"]["uid"])
            if pod is not None:
                ended_pod(cluster, pod)
            for change in (admitted, preempted, failed):
                cluster.change(JOB, name, change)
            await operator.settle()
            assert cluster.find(POD, "p") is None, "it goes with its Job"
            assert (
                cluster.waiting()["metadata"]["name"] == name
                and cluster.waiting()["metadata"]["uid"] not in uids
            )
            assert (
                cluster.told()[0] == "Queued"
                and cluster.status.rollout
                and cluster.status.rollout.attempt == 0
            )

    run(main())


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"exitCode": 137, "reason": "OOMKilled"}, "OutOfMemory"),
        ({"exitCode": 10, "message": '{"reason": "NotOnnx", "message": "a pickle"}'}, "NotOnnx"),
    ],
)
def test_what_a_pod_found_out_before_its_place_was_taken_counts(state: Object, reason: str) -> None:
    async def main() -> None:
        cluster = SuspendingCluster()
        operator = await queued(cluster)
        ended_pod(cluster, state)
        for change in (admitted, preempted, failed):
            cluster.change(JOB, cluster.waiting()["metadata"]["name"], change)
        await operator.settle()
        rollout = cluster.status.rollout
        assert rollout and (rollout.stage, rollout.reason) == ("Failed", reason)

    run(main())
