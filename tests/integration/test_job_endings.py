"""How the real Job controller takes the ends of pods, and what the operator makes of it.

Pods are never scheduled: their status is written by hand, as a kubelet would.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from modelrollout.api.v1alpha1 import Optimization
from modelrollout.contract.common import CONTAINER_STEP
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.controller.lookups import kueue, missing_pod
from modelrollout.controller.observe.job_state import job_state
from modelrollout.controller.observe.observation import Observation
from modelrollout.kube.client import Kube
from modelrollout.kube.errors import Conflict
from modelrollout.kube.kinds import JOB, MODEL_DEPLOYMENT, POD, WORKLOAD, Resource
from modelrollout.kube.objects import Object
from modelrollout.resources.jobs.common import LABEL_QUEUE, JobContext
from modelrollout.resources.jobs.prepare import prepare_job
from modelrollout.rollout.snapshot import JobState
from modelrollout.testing import builders as b
from tests.unit.resources import objects as o

pytestmark = pytest.mark.sandbox

NAMESPACE = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
CRD = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)
QUOTA = Resource("", "v1", "resourcequotas", "ResourceQuota")
NAME = "digits-prepare"
OOM = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
KILLED = {"terminated": {"exitCode": 137, "reason": "Error"}}
TOLD_TO_END = {
    "terminated": {
        "exitCode": 1,
        "reason": "Error",
        "message": '{"reason": "Terminated", "message": "told to end"}',
    }
}
AWAY = {
    "terminated": {
        "exitCode": 1,
        "reason": "Error",
        "message": '{"reason": "StoreUnreachable", "message": "no answer"}',
    }
}
BAD_INPUT = {
    "terminated": {
        "exitCode": 10,
        "reason": "Error",
        "message": '{"reason": "NotOnnx", "message": "a pickle"}',
    }
}
BAD_RECIPE = {
    "terminated": {
        "exitCode": 12,
        "reason": "Error",
        "message": '{"reason": "AccuracyDrop", "message": "too much"}',
    }
}


def taken_away(why: str) -> dict[str, Any]:
    return {
        "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": why, "message": "by hand"}]
    }


@contextlib.asynccontextmanager
async def fresh(kube: Kube) -> AsyncIterator[str]:
    name = f"jobs-{uuid.uuid4().hex[:8]}"
    await kube.create(NAMESPACE, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    try:
        yield name
    finally:
        await kube.delete(NAMESPACE, None, name)


@pytest_asyncio.fixture
async def namespace(kube: Kube) -> AsyncIterator[str]:
    async with fresh(kube) as name:
        yield name


async def at_once(kube: Kube, case: Callable[..., Awaitable[None]], *specified: tuple[Any, ...]) -> None:
    """The case for each of these, in a namespace of its own: they wait for the Job controller,
    which tries again after ten seconds.
    """

    async def one(*arguments: Any) -> None:
        async with fresh(kube) as namespace:
            await case(namespace, *arguments)

    async with asyncio.TaskGroup() as group:
        for arguments in specified:
            group.create_task(one(*arguments))


async def made(
    kube: Kube, namespace: str, queue: str | None = None, steps: tuple[dict[str, Any], ...] = (), **spec: Any
) -> Object:
    optimization = Optimization.model_validate({"queueName": queue, "steps": list(steps)})
    job = prepare_job(
        JobContext(o.OWNER, "digits", 1, NAME, o.MODEL, o.SERVING, o.CONFIG),
        o.SHA,
        optimization,
        salt="5a17" * 4,
    )
    job["metadata"] |= {"namespace": namespace, "ownerReferences": []}
    job["spec"] |= spec
    job["spec"]["template"]["spec"]["nodeSelector"] = {"no": "node"}
    return await kube.create(JOB, job)


async def work(kube: Kube, namespace: str) -> JobState:
    return job_state(
        await kube.get(JOB, namespace, NAME), (await kube.list(POD, namespace)).items, "s3://artifacts/all/ml"
    )


async def until(kube: Kube, namespace: str, holds: Callable[[JobState], bool]) -> JobState:
    for _ in range(300):
        state = await work(kube, namespace)
        if holds(state):
            return state
        await asyncio.sleep(0.1)
    pytest.fail(f"{state} after 30 s")


async def pod(kube: Kube, namespace: str, number: int = 1) -> Object:
    """The newest pod, once there are so many."""
    for _ in range(600):
        actual = sorted(
            (await kube.list(POD, namespace)).items,
            key=lambda p: (p["metadata"]["creationTimestamp"], int(p["metadata"]["resourceVersion"])),
        )
        if len(actual) >= number:
            return actual[-1]
        await asyncio.sleep(0.1)
    pytest.fail(f"{len(actual)} pods and not {number}")


def container(name: str, state: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": state}


async def end(
    kube: Kube, namespace: str, state: dict[str, Any] | None, number: int = 1, **status: Any
) -> None:
    """The newest pod ends as it would under a kubelet."""
    told = {"phase": "Failed", "containerStatuses": [container("job", state)] if state else []} | status
    for _ in range(50):
        finished = await pod(kube, namespace, number)
        # The scheduler and the Job controller write it, too. replace_status sends no labels and
        # finalizers, as custom resources want it.
        with contextlib.suppress(Conflict):
            await kube._guarded(POD, finished | {"status": told}, "/status")
            return
    pytest.fail("another client writes the pod all the time")


@pytest.mark.parametrize(
    ("state", "status", "reason"),
    [
        (OOM, {}, "OutOfMemory"),
        (BAD_INPUT, {}, "NotOnnx"),
        (BAD_RECIPE, {}, "AccuracyDrop"),
        (KILLED, {}, "Killed"),
        (BAD_INPUT, taken_away("x"), "NotOnnx"),
    ],
)
async def test_what_is_final_ends_the_job(
    kube: Kube, namespace: str, state: dict[str, Any], status: dict[str, Any], reason: str
) -> None:
    await made(kube, namespace)
    await end(kube, namespace, state, **status)
    actual = await until(kube, namespace, lambda w: w.state == "Failed")
    assert (
        actual.result.reason if actual.result else actual.problem.reason if actual.problem else None
    ) == reason
    assert len((await kube.list(POD, namespace)).items) == 1
    if reason == "OutOfMemory":
        assert actual.problem and "its limit of 1Gi" in actual.problem.message


async def test_what_may_help_is_tried_again(kube: Kube) -> None:
    async def case(namespace: str, state: dict[str, Any] | None, status: dict[str, Any], reason: str) -> None:
        await made(kube, namespace)
        await end(kube, namespace, state, **status)
        await pod(kube, namespace, 2)
        job = await work(kube, namespace)
        assert (
            job.state == "Running"
            and job.retried
            and job.retried.reason == reason
            and job.idle_since is not None
        )

    await at_once(
        kube,
        case,
        (AWAY, {}, "StoreUnreachable"),
        (TOLD_TO_END, taken_away("EvictionByEvictionAPI"), "Evicted"),
        (KILLED, taken_away("PreemptionByScheduler"), "Preempted"),
        (None, taken_away("DeletionByPodGC"), "NodeLost"),
    )


async def test_an_eviction_for_its_own_disk_would_be_tried_again_by_the_controller(
    kube: Kube, namespace: str
) -> None:
    await made(kube, namespace)
    await end(
        kube,
        namespace,
        TOLD_TO_END,
        reason="Evicted",
        message='Usage of EmptyDir volume "tmp" exceeds the limit "1Gi". ',
    )
    await pod(kube, namespace, 2)
    state = await work(kube, namespace)
    assert state.state == "Failed" and state.problem and state.problem.reason == "OutOfDisk"


async def test_the_number_of_tries_is_bounded_also_of_pods_that_are_taken_away(
    kube: Kube, namespace: str
) -> None:
    await made(kube, namespace, backoffLimit=1)
    await end(kube, namespace, KILLED, **taken_away("PreemptionByScheduler"))
    await end(kube, namespace, KILLED, 2, **taken_away("DeletionByTaintManager"))
    state = await until(kube, namespace, lambda w: w.state == "Failed")
    assert state.problem and state.problem.reason == "NodeLost"


async def test_a_queue_suspends_and_admits_and_takes_the_place_back(kube: Kube, namespace: str) -> None:
    """What Kueue's webhook and controller do to a Job with its label, done by hand."""
    job = await made(kube, namespace, queue="optimizers", suspend=True)
    assert job["metadata"]["labels"][LABEL_QUEUE] == "optimizers"
    await asyncio.sleep(1)
    waits = await work(kube, namespace)
    assert (
        waits.queued and "optimizers" in waits.queued.message and not (await kube.list(POD, namespace)).items
    )
    await kube.merge_patch(JOB, namespace, NAME, {"spec": {"suspend": False}})
    await pod(kube, namespace)
    admitted = await work(kube, namespace)
    assert (
        admitted.queued is None
        and admitted.idle_since is not None
        and admitted.idle_since > job["metadata"]["creationTimestamp"]
    )
    await kube.merge_patch(JOB, namespace, NAME, {"spec": {"suspend": True}})
    back = await until(kube, namespace, lambda w: w.queued is not None)
    assert back.state == "Running"
    for _ in range(100):
        if not (await kube.list(POD, namespace)).items:
            break
        await asyncio.sleep(0.1)
    await kube.merge_patch(JOB, namespace, NAME, {"spec": {"suspend": False}})
    await pod(kube, namespace)
    assert ((await kube.get(JOB, namespace, NAME)).get("status") or {}).get("failed", 0) == 0, (
        "to lose one's place is no failed try"
    )


async def test_a_place_that_is_taken_back_at_work_is_no_failed_try(kube: Kube, namespace: str) -> None:
    """What Kueue does at each turn, done by hand: admit with a flavor's node labels; suspend, clear
    startTime, restore the template.
    """
    await made(kube, namespace, queue="optimizers", suspend=True, backoffLimit=1)
    for turn in range(3):
        flavor = {
            "nodeSelector": {"pool": f"turn-{turn}"},
            "tolerations": [{"key": "pool", "operator": "Exists"}],
        }
        template = {"metadata": {"labels": {"kueue.x-k8s.io/podset": "main"}}, "spec": flavor}
        await kube.merge_patch(JOB, namespace, NAME, {"spec": {"suspend": False, "template": template}})
        at_work = (await pod(kube, namespace))["metadata"]
        # No kubelet has it: the finalizer stands for the time in which one ends its containers.
        pending = {"metadata": {"finalizers": [*at_work["finalizers"], "example.com/kubelet"]}}
        await kube.merge_patch(POD, namespace, at_work["name"], pending)
        await until(kube, namespace, lambda w: w.queued is None)
        stopping = {
            "metadata": {"annotations": {"kueue.x-k8s.io/stopping": "true"}},
            "spec": {"suspend": True},
        }
        await kube.merge_patch(JOB, namespace, NAME, stopping)
        for _ in range(100):
            if (await pod(kube, namespace))["metadata"].get("deletionTimestamp"):
                break
            await asyncio.sleep(0.1)
        await end(kube, namespace, TOLD_TO_END)
        await asyncio.sleep(1)  # the Job controller sees it, while it is still there
        waits = await work(kube, namespace)
        assert (
            waits.state == "Running" and waits.queued and waits.retried is None and waits.idle_since is None
        )
        await kube.merge_patch(POD, namespace, at_work["name"], {"metadata": {"finalizers": None}})
        job = await kube.get(JOB, namespace, NAME)
        await kube._guarded(
            JOB, job | {"status": {k: v for k, v in job["status"].items() if k != "startTime"}}, "/status"
        )
        before = {
            "metadata": {"labels": {"kueue.x-k8s.io/podset": None}},
            "spec": {"nodeSelector": {"pool": None}, "tolerations": None},
        }
        restored = {
            "metadata": {"annotations": {"kueue.x-k8s.io/stopping": None}},
            "spec": {"template": before},
        }
        await kube.merge_patch(JOB, namespace, NAME, restored)
        for _ in range(100):
            if not (await kube.list(POD, namespace)).items:
                break
            await asyncio.sleep(0.1)
    assert (await kube.get(JOB, namespace, NAME))["status"].get("failed", 0) == 0


async def test_a_pod_that_is_killed_for_its_place_ends_the_job_and_counts_as_none(
    kube: Kube, namespace: str
) -> None:
    """The rule on SIGKILL is applied to pods that the Job controller ends itself, if it still finds
    them: the finalizer makes sure of that here.
    """
    await made(kube, namespace, queue="optimizers", suspend=True)
    await kube.merge_patch(JOB, namespace, NAME, {"spec": {"suspend": False}})
    at_work = (await pod(kube, namespace))["metadata"]
    pending = {"metadata": {"finalizers": [*at_work["finalizers"], "example.com/kubelet"]}}
    await kube.merge_patch(POD, namespace, at_work["name"], pending)
    await kube.merge_patch(JOB, namespace, NAME, {"spec": {"suspend": True}})
    await until(kube, namespace, lambda w: w.queued is not None)
    await end(kube, namespace, KILLED)
    for _ in range(300):
        conditions = (await kube.get(JOB, namespace, NAME))["status"].get("conditions") or []
        if any(c["type"] == "Failed" for c in conditions):
            break
        await asyncio.sleep(0.1)
    assert [c["reason"] for c in conditions if c["type"] == "Failed"] == ["PodFailurePolicy"]
    assert await work(kube, namespace) == JobState()
    await kube.merge_patch(POD, namespace, at_work["name"], {"metadata": {"finalizers": None}})
    assert await until(kube, namespace, lambda w: w == JobState())


def _seen(namespace: str, job: Object, at: JobState) -> Observation:
    """A rollout whose prepare Job this is."""
    s = replace(b.second("Prepare"), namespace=namespace)
    deployment = {"metadata": {"name": "digits", "namespace": namespace}, "kind": MODEL_DEPLOYMENT.kind}
    return Observation(deployment, {}, s, None, job=job, work=at)


@contextlib.asynccontextmanager
async def workloads(kube: Kube) -> AsyncIterator[None]:
    """A kind of the name that Kueue's has, without Kueue: what it would write is written by
    hand.
    """
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": WORKLOAD.version, "served": True, "storage": True, "schema": schema}
    kind = {"plural": WORKLOAD.plural, "singular": "workload", "kind": WORKLOAD.kind}
    # Of a protected group: the API server asks for a word on who approved it.
    metadata = {
        "name": f"{WORKLOAD.plural}.{WORKLOAD.group}",
        "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
    }
    spec = {"group": WORKLOAD.group, "scope": "Namespaced", "names": kind, "versions": [version]}
    await kube.create(
        CRD,
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": metadata,
            "spec": spec,
        },
    )
    try:
        for _ in range(100):
            if await kube.has_kind(WORKLOAD, ttl=0):
                break
            await asyncio.sleep(0.1)
        yield
    finally:
        await kube.delete(CRD, None, metadata["name"])


async def test_what_kueue_says_of_a_job_is_read_from_the_workload_of_its_uid_and_goes_with_it(
    kube: Kube, namespace: str
) -> None:
    job = await made(kube, namespace, queue="optimizers", suspend=True)
    seen_work = await work(kube, namespace)
    seen = _seen(namespace, job, seen_work)
    owner = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": NAME,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    conditions = [
        {
            "type": "QuotaReserved",
            "status": "False",
            "reason": "Inadmissible",
            "message": "LocalQueue optimizers doesn't exist",
        }
    ]

    def workload(name: str, uid: str, **status: Any) -> Object:
        metadata = {
            "name": name,
            "namespace": namespace,
            "labels": {kueue.LABEL_JOB_UID: uid},
            "ownerReferences": [owner | {"uid": uid}],
        }
        metadata["finalizers"] = ["kueue.x-k8s.io/resource-in-use"] if uid == job["metadata"]["uid"] else []
        spec = {"queueName": "optimizers"}
        return {
            "apiVersion": WORKLOAD.api_version,
            "kind": WORKLOAD.kind,
            "metadata": metadata,
            "spec": spec,
            "status": status,
        }

    async with workloads(kube):
        mine = await kube.create(
            WORKLOAD, workload("job-mine", job["metadata"]["uid"], conditions=conditions)
        )
        await kube.create(WORKLOAD, workload("job-of-another", str(uuid.uuid4())))
        explained = await kueue.with_queue_reason(kube, seen, seen.work, datetime.now(UTC))
        assert (
            explained.queued and explained.queued.reason == "NotAdmissible" and not explained.result_pending
        )
        assert (
            "Workload job-mine" in explained.queued.message
            and "LocalQueue optimizers doesn't exist" in explained.queued.message
        )
        await kube.delete(JOB, namespace, NAME)
        for _ in range(300):
            left = await kube.get(WORKLOAD, namespace, "job-mine")
            if left["metadata"].get("deletionTimestamp"):
                break
            await asyncio.sleep(0.1)
        assert left["metadata"].get("deletionTimestamp"), (
            "the garbage collector has told it to go; Kueue lets go of it"
        )
        assert left["metadata"]["uid"] == mine["metadata"]["uid"]
        await kube.merge_patch(WORKLOAD, namespace, "job-mine", {"metadata": {"finalizers": None}})


async def test_a_quota_that_keeps_the_pod_away_is_told_in_its_own_words(kube: Kube, namespace: str) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"namespace": namespace, "name": "small"},
        "spec": {"hard": {"limits.memory": "1Gi"}},
    }
    await kube.create(QUOTA, quota)
    for _ in range(100):  # without a status it admits nothing, and says so in other words
        if (await kube.get(QUOTA, namespace, "small")).get("status", {}).get("hard"):
            break
        await asyncio.sleep(0.1)
    job = await made(kube, namespace)
    seen_work = await until(kube, namespace, lambda w: w.no_pod_created and w.idle_since is not None)
    seen = _seen(namespace, job, seen_work)
    for _ in range(100):
        explained = await missing_pod.explain_missing_pod(
            kube, seen, seen.work, datetime.now(UTC) + timedelta(seconds=10)
        )
        if explained.problem:
            break
        await asyncio.sleep(0.1)
    assert (
        explained.problem
        and explained.problem.reason == "PodRefused"
        and "exceeded quota: small" in explained.problem.message
    )


# --- a user's container between two of ours

LIMIT = "3Gi"
STEPS = (
    {
        "container": {
            "image": f"example/trainer@sha256:{'ab' * 32}",
            "resources": {"limits": {"memory": LIMIT}},
        }
    },
    {"int8": {}},
)
HANDED_OVER = {"terminated": {"exitCode": 0, "reason": "Completed", "message": '{"message": "handed over"}'}}
NEVER: dict[str, Any] = {"waiting": {"reason": "PodInitializing"}}


def theirs(code: int, said: str = "", reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "message": said}}


async def end_of_three(
    kube: Kube, namespace: str, before: dict[str, Any], own: dict[str, Any], **status: Any
) -> None:
    """The newest pod ends in an init container: ours before the user's, or the user's own."""
    states = [container("before", before), container(CONTAINER_STEP, own)]
    await end(kube, namespace, NEVER, initContainerStatuses=states, **status)


async def given_up(kube: Kube, namespace: str) -> None:
    """The Job controller calls it failed, after one pod."""
    for _ in range(300):
        conditions = ((await kube.get(JOB, namespace, NAME)).get("status") or {}).get("conditions") or []
        if any(c["type"] == "Failed" and c["status"] == "True" for c in conditions):
            assert len((await kube.list(POD, namespace)).items) == 1
            return
        await asyncio.sleep(0.1)
    pytest.fail(f"not after 30 s: {conditions}")


@pytest.mark.parametrize(
    ("before", "own", "reason", "says"),
    [
        (
            HANDED_OVER,
            theirs(1, "Epoch 1\nno column 'clicks'\n"),
            "ContainerFailed",
            "ended with code 1: no column 'clicks'; ",
        ),
        (
            HANDED_OVER,
            theirs(int(ExitCode.GATE_FAILED), '{"reason": "AccuracyDrop"}'),
            "ContainerFailed",
            "ended with code 12: ",
        ),
        (HANDED_OVER, theirs(139), "ContainerFailed", "ended with code 139: it said nothing"),
        (BAD_INPUT, NEVER, "NotOnnx", "a pickle"),
        (OOM, NEVER, "OutOfMemory", "raise spec.optimization.resources.limits.memory"),
    ],
)
async def test_how_a_users_container_ends_is_final(
    kube: Kube, namespace: str, before: dict[str, Any], own: dict[str, Any], reason: str, says: str
) -> None:
    """Whatever it says, and also with a code that is one of ours; what fails before it is told as
    ever.
    """
    await made(kube, namespace, steps=STEPS)
    await end_of_three(kube, namespace, before, own)
    await given_up(kube, namespace)
    state = await work(kube, namespace)
    told = state.result or state.problem
    assert state.state == "Failed" and told and told.reason == reason and says in told.message


async def test_a_users_container_that_was_killed_would_be_tried_again_by_the_controller(kube: Kube) -> None:
    """So ends a pod whose queue takes its place back, too, and Kubernetes cannot tell: the operator
    does, and ends the work; unless the pod was taken away.
    """

    async def case(
        namespace: str, own: dict[str, Any], status: dict[str, Any], state: str, reason: str, *says: str
    ) -> None:
        await made(kube, namespace, steps=STEPS)
        await end_of_three(kube, namespace, HANDED_OVER, own, **status)
        await pod(kube, namespace, 2)
        job = await work(kube, namespace)
        told = job.problem if state == "Failed" else job.retried
        assert (job.state, job.result, told and told.reason) == (state, None, reason)
        assert told and all(word in told.message for word in says), told

    killed = theirs(137, "Epoch 3")
    await at_once(
        kube,
        case,
        (
            theirs(137, reason="OOMKilled"),
            {},
            "Failed",
            "OutOfMemory",
            f"its limit of {LIMIT}",
            "the step's container.resources.limits.memory",
        ),
        (killed, {}, "Failed", "ContainerFailed", "ended with code 137: Epoch 3"),
        (theirs(143), {}, "Failed", "ContainerFailed", "ended with code 143"),
        (killed, taken_away("PreemptionByScheduler"), "Running", "Preempted"),
    )


async def test_work_that_was_done_before_is_a_failed_job_and_no_failure(kube: Kube, namespace: str) -> None:
    """The containers that would follow must not run, and only a code other than 0 keeps them from
    it.
    """
    await made(kube, namespace, steps=STEPS)
    reused = '{"artifact_digest": "sha256:00", "reused": true}'
    await end(
        kube,
        namespace,
        NEVER,
        initContainerStatuses=[
            container("fetch", theirs(int(ExitCode.REUSED), reused)),
            container("before", NEVER),
        ],
    )
    await given_up(kube, namespace)
    state = await work(kube, namespace)
    assert (state.state, state.exit_code) == ("Succeeded", ExitCode.OK)
    assert state.result and state.result.reused and state.result.artifact_digest == "sha256:00"
