"""From objects as last seen to observed facts."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from modelrollout.api import names
from modelrollout.config import (
    ArtifactStoreConfig,
    ImagesConfig,
    OperatorConfig,
    PrometheusConfig,
    StoreConfig,
)
from modelrollout.contract.common import TASK_ENV
from modelrollout.controller.observe.observation import Observation, observe
from modelrollout.kube import cache
from modelrollout.kube.kinds import (
    DEPLOYMENT,
    HTTP_ROUTE,
    JOB,
    MODEL_DEPLOYMENT,
    MODEL_REVISION,
    POD,
    SERVICE,
    Resource,
)
from modelrollout.kube.objects import Object
from modelrollout.rollout.policy.rules import NO_RULES, Rules, combine, read
from modelrollout.rollout.snapshot import JobState, Server
from modelrollout.testing import builders as b
from modelrollout.traffic.hostnames import (
    Claim,
    Claims,
    ForeignRoutes,
    Known,
    holder_of,
    stored_requested_hosts,
)

KEY = (b.NAMESPACE, b.NAME)
V1, V2 = b.revision_name(1), b.revision_name(2)
CONFIG = OperatorConfig(
    stores=[StoreConfig(name="models", uri="s3://models")],
    artifacts=ArtifactStoreConfig(name="artifacts", uri="s3://artifacts"),
    images=ImagesConfig(optimizer="example/optimizer:1", triton="example/triton:1"),
    prometheus=[PrometheusConfig(name="main", url="http://prometheus:9090")],
)
ROUTES = frozenset({"HTTPRoute", "GRPCRoute"})


def obj(
    resource: Resource,
    name: str,
    *,
    owner: str | None = "md",
    labels: dict[str, str] | None = None,
    **body: Any,
) -> tuple[Resource, Object]:
    metadata: Object = {
        "name": name,
        "namespace": KEY[0],
        "uid": f"uid-{resource.kind}-{name}",
        "resourceVersion": "1",
        "generation": 1,
    }
    metadata["labels"] = {names.LABEL_NAME: KEY[1]} | (labels or {})
    if owner:
        metadata["ownerReferences"] = [{"uid": owner, "controller": True, "kind": "x", "name": "x"}]
    return resource, {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": metadata | body.pop("metadata", {}),
        **body,
    }


def deployment(spec: Any = None, **body: Any) -> tuple[Resource, Object]:
    wire = (spec or b.spec(2)).wire() if not isinstance(spec, dict) else spec
    return obj(
        MODEL_DEPLOYMENT,
        KEY[1],
        owner=None,
        spec=wire,
        metadata={"uid": "md"} | body.pop("metadata", {}),
        **body,
    )


def revision(
    version: int, *, owner: str | None = "md", annotations: dict[str, str] | None = None, **body: Any
) -> tuple[Resource, Object]:
    spec = {
        "number": version,
        "sha256": b.sha(version),
        "input": b.spec(version).user_input(),
        "template": {},
        "builder": "1",
        "deployment": KEY[1],
    }
    return obj(
        MODEL_REVISION,
        b.revision_name(version),
        owner=owner,
        spec=spec,
        metadata={"annotations": annotations or {}},
        **body,
    )


def server(version: int, fetch: str = "", **status: Any) -> tuple[Resource, Object]:
    name = b.revision_name(version)
    init = [{"name": "fetch", "env": [{"name": TASK_ENV, "value": fetch}]}]
    template = {"spec": {"initContainers": init, "containers": []}}
    return obj(
        DEPLOYMENT,
        name,
        owner=f"uid-ModelRevision-{name}",
        spec={"replicas": 2, "template": template},
        status=status,
    )


def seen(
    *objects: tuple[Resource, Object],
    config: OperatorConfig = CONFIG,
    kinds: frozenset[str] = ROUTES,
    known: Known | None = None,
    rules: Rules = NO_RULES,
) -> Observation:
    """Without ``known`` it holds every host name that it asks for."""
    store = cache.ObjectCache()
    for resource, o in objects:
        store.observe(resource, {"type": "ADDED", "object": copy.deepcopy(o)})
    mine = store.get(MODEL_DEPLOYMENT, *KEY)
    pending = (
        [Claim(host, holder_of(mine)) for host in stored_requested_hosts(mine.get("spec"))] if mine else []
    )
    observation = observe(
        store,
        KEY,
        config,
        kinds,
        known or Known(Claims(pending), ForeignRoutes(), lambda _: (), only_by_policy=False),
        rules=rules,
        now=b.START,
    )
    assert observation is not None
    return observation


# --- spec and status


def test_a_spec_that_cannot_be_read_is_told_by_field() -> None:
    wire = b.spec(1).wire() | {"surprise": 1, "rollout": {"canary": {"steps": [{"weight": "many"}]}}}
    s = seen(deployment(wire)).observed
    assert (
        s.spec is None
        and "spec.surprise" in (s.parse_error or "")
        and "spec.rollout.canary.steps.0.weight" in (s.parse_error or "")
    )


@pytest.mark.parametrize("body", [{}, {"spec": None}])
def test_no_spec_at_all(body: Object) -> None:
    resource, o = deployment()
    del o["spec"]
    assert seen((resource, o | body)).observed.spec is None


def test_status_as_far_as_it_can_be_read() -> None:
    stable = {"revision": V1, "number": 1, "since": "2026-11-22T12:00:00Z"}
    s = seen(
        deployment(
            status={
                "stable": stable,
                "lastNumber": 7,
                "rollout": {"stage": "Dreaming"},
                "phase": "Confused",
                "handledVerbs": [1],
            }
        )
    ).observed
    assert s.status.stable and s.status.stable.revision == V1 and s.status.last_number == 7
    assert s.status.rollout is None and s.status.phase == "Pending"


def test_a_status_that_contradicts_itself_is_believed_no_more_than_it_can_be() -> None:
    s = seen(deployment(status=b.status(1, rollout=b.rollout("Canary", 2, step=None)).wire())).observed
    assert s.status.rollout is None and s.status.stable == b.ref(1)


def test_fields_of_a_newer_operator_are_no_damage() -> None:
    assert seen(deployment(status={"lastNumber": 7, "quantum": {"spin": 1}})).observed.status.last_number == 7


# --- whose children


def test_children_of_an_earlier_object_of_the_name_are_not_ours() -> None:
    observation = seen(deployment(), revision(1, owner="md-of-yesterday"), server(1))
    observed = observation.observed
    assert observed.revisions == () and observed.servers == {} and observation.children == {}


def test_a_revision_that_lost_its_owner_in_a_backup_is_ours() -> None:
    assert [r.name for r in seen(deployment(), revision(1, owner=None)).observed.revisions] == [V1]


def test_what_is_being_deleted_is_gone() -> None:
    gone = revision(1, annotations={"modelrollout.dev/rollback": "n1"})
    gone[1]["metadata"]["deletionTimestamp"] = "2026-11-22T12:00:00Z"
    s = seen(deployment(), gone, revision(2)).observed
    assert [r.name for r in s.revisions] == [V2] and s.verbs == ()


def test_an_object_that_is_gone_or_going_has_no_snapshot() -> None:
    store = cache.ObjectCache()
    assert (
        observe(
            store, KEY, CONFIG, ROUTES, Known(Claims(), ForeignRoutes(), lambda _: (), only_by_policy=False)
        )
        is None
    )
    store.observe(
        MODEL_DEPLOYMENT,
        {"type": "ADDED", "object": deployment(metadata={"deletionTimestamp": "2026-11-22T12:00:00Z"})[1]},
    )
    assert (
        observe(
            store, KEY, CONFIG, ROUTES, Known(Claims(), ForeignRoutes(), lambda _: (), only_by_policy=False)
        )
        is None
    )


# --- revisions


def test_the_mirror_is_believed_only_where_status_is_empty() -> None:
    mirrored = {names.ANNOTATION_OUTCOME: "RolledBack", names.ANNOTATION_REASON: "AccuracyLow"}
    s = seen(
        deployment(),
        revision(1, annotations=mirrored),
        revision(2, annotations=mirrored, status={"outcome": "Stable"}),
    ).observed
    assert [(r.status.outcome, r.status.reason) for r in s.revisions] == [
        ("RolledBack", "AccuracyLow"),
        ("Stable", "-"),
    ]


def test_a_mirror_that_says_nonsense_is_no_outcome() -> None:
    s = seen(deployment(), revision(1, annotations={names.ANNOTATION_OUTCOME: "Excellent"})).observed
    assert s.revisions[0].status.outcome == "Pending"


def test_a_lost_artifact_is_told_by_the_pods_that_run_it() -> None:
    fetch = '{"task":"fetch","artifact":{"uri":"s3://artifacts/ml/k"},"digest":"sha256:aa","model":"digits","number":1}'
    s = seen(deployment(), revision(1), server(1, fetch)).observed
    artifact = s.revisions[0].status.artifact
    assert artifact and (artifact.uri, artifact.digest) == ("s3://artifacts/ml/k", "sha256:aa")
    assert (
        seen(deployment(), revision(1), server(1, "not a task")).observed.revisions[0].status.artifact is None
    )


# --- servers


def test_ready_replicas_are_those_of_the_generation_that_was_asked_for() -> None:
    fresh = server(1, replicas=3, availableReplicas=3, observedGeneration=1)
    assert seen(deployment(), revision(1), fresh).observed.servers == {
        V1: Server(3, 3, None, 2, hardened=None, updated=0)
    }
    stale = server(1, replicas=3, availableReplicas=3, observedGeneration=0)
    assert seen(deployment(), revision(1), stale).observed.servers == {
        V1: Server(3, 2, None, 2, hardened=None)
    }
    assert seen(deployment(), revision(1), server(1)).observed.servers == {
        V1: Server(0, 0, None, 2, hardened=None)
    }


def test_the_trouble_of_a_revisions_pods_is_its_own() -> None:
    waiting = {
        "containerStatuses": [
            {
                "name": "triton",
                "image": "x",
                "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}},
            }
        ]
    }
    labels = {names.LABEL_REVISION: V2, names.LABEL_COMPONENT: "server", "pod-template-hash": "5d8"}
    of_v2 = {
        "ownerReferences": [{"kind": "ReplicaSet", "name": f"{V2}-5d8", "uid": "rs", "controller": True}]
    }
    both = (deployment(), revision(1), revision(2), server(1), server(2))
    s = seen(*both, obj(POD, "p", labels=labels, metadata=of_v2, status=waiting)).observed
    problem = s.server(V2).problem
    assert problem and problem.reason == "ImagePullFailed" and s.server(V1).problem is None
    copied = [
        obj(POD, "p", owner=None, labels=labels, status=waiting),
        obj(POD, "q", owner=f"uid-Deployment-{V2}", labels=labels, status=waiting),
    ]
    assert seen(*both, *copied).observed.server(V2).problem is None, "labels make no pod a server"


# --- the Job of the stage


def at_stage(stage: str, **changes: Any) -> tuple[Resource, Object]:
    return deployment(status=b.status(1, rollout=b.rollout(stage, 2, **changes)).wire())


def job(*conditions: str, code: int | None = None, message: str = "") -> list[tuple[Resource, Object]]:
    """The resolve Job with these conditions, and its pod if it has ended with a code."""
    children = b.children(b.second("Resolve"))
    assert children.work
    name = children.work[1]
    status = {
        "conditions": [
            {"type": c, "status": "True", "reason": f"{c}Reason", "message": "as the controller says"}
            for c in conditions
        ]
    }
    actual = [obj(JOB, name, spec={}, status=status)]
    if code is not None:
        ended = {"name": "job", "state": {"terminated": {"exitCode": code, "message": message}}}
        labels = {names.LABEL_JOB: name}
        actual.append(
            obj(
                POD,
                f"{name}-x",
                owner=f"uid-Job-{name}",
                labels=labels,
                status={"phase": "Failed" if code else "Succeeded", "containerStatuses": [ended]},
            )
        )
    return actual


def work(*objects: tuple[Resource, Object]) -> JobState:
    return seen(at_stage("Resolve"), *objects).work


def test_no_job_yet() -> None:
    assert work() == JobState("Absent")


def test_a_job_that_runs() -> None:
    assert work(*job()) == JobState("Running", no_pod_created=True)
    (resource, made), *_ = job()
    made["metadata"]["creationTimestamp"] = "2026-11-22T12:00:00Z"
    name = made["metadata"]["name"]
    assert work((resource, made)) == JobState(
        "Running", no_pod_created=True, idle_since="2026-11-22T12:00:00Z"
    )
    assert work((resource, made), job_pod(name, {"running": {}})) == JobState("Running")
    starts = job_pod(name, {"waiting": {"reason": "ContainerCreating"}}, created="2026-11-22T12:03:00Z")
    assert work((resource, made), starts) == JobState("Running", idle_since="2026-11-22T12:03:00Z"), (
        "it counts from this pod on"
    )


def job_pod(
    name: str, state: Object, created: str = "2026-11-22T12:01:00Z", phase: str = "Running", **status: Any
) -> tuple[Resource, Object]:
    resource, made = obj(POD, f"{name}-{created}", owner=f"uid-Job-{name}", labels={names.LABEL_JOB: name})
    made["metadata"]["creationTimestamp"] = created
    return resource, made | {
        "status": (
            {"phase": phase, "containerStatuses": [{"name": "job", "image": "x", "state": state}]} | status
        )
    }


@pytest.mark.parametrize(("code", "reason"), [(0, "Completed"), (10, "NotOnnx")])
def test_nothing_is_said_of_another_try_where_there_will_be_none(code: int, reason: str) -> None:
    """The Job controller takes a moment to say that the Job is complete, or has failed for good."""
    (resource, made), *_ = job()
    message = f'{{"reason": "{reason}", "message": "words"}}'
    ended = {"terminated": {"exitCode": code, "message": message, "finishedAt": "2026-11-22T12:05:00Z"}}
    pod = job_pod(made["metadata"]["name"], ended, phase="Succeeded" if code == 0 else "Failed")
    assert work((resource, made), pod).retried is None


def test_a_job_that_is_tried_again_says_why() -> None:
    (resource, made), *_ = job()
    name = made["metadata"]["name"]
    lost = [
        {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": "for a more important pod",
        }
    ]
    first = job_pod(
        name,
        {"terminated": {"exitCode": 137, "finishedAt": "2026-11-22T12:05:00Z"}},
        phase="Failed",
        conditions=lost,
    )
    between = work((resource, made), first)
    assert (
        between.state == "Running"
        and between.retried
        and between.retried.reason == "Preempted"
        and "more important" in between.retried.message
    )
    assert between.idle_since == "2026-11-22T12:05:00Z"
    second = work((resource, made), first, job_pod(name, {"running": {}}, created="2026-11-22T12:06:00Z"))
    assert second.retried == between.retried and second.idle_since is None
    away = {
        "terminated": {"exitCode": 1, "message": '{"reason": "StoreUnreachable", "message": "no answer"}'}
    }
    told = work((resource, made), job_pod(name, away, phase="Failed")).retried
    assert told and told.reason == "StoreUnreachable"
    speechless = work(
        (resource, made), job_pod(name, {"terminated": {"exitCode": 1}}, phase="Failed")
    ).retried
    assert speechless and speechless.reason == "JobFailed" and "code 1" in speechless.message


def test_what_the_job_controller_would_try_in_vain_has_failed() -> None:
    (resource, made), *_ = job()
    full = job_pod(
        made["metadata"]["name"],
        {},
        phase="Failed",
        reason="Evicted",
        message='Usage of EmptyDir volume "tmp" exceeds the limit "1Gi". ',
    )
    state = work((resource, made), full)
    assert state.state == "Failed" and state.problem and state.problem.reason == "OutOfDisk"


def test_a_pod_on_a_node_that_does_not_answer() -> None:
    (resource, made), *_ = job()
    kind, hangs = job_pod(made["metadata"]["name"], {"running": {}})
    hangs["metadata"]["deletionTimestamp"] = "2026-11-22T12:09:00Z"
    state = work((resource, made), (kind, hangs))
    assert (
        state.stuck
        and state.stuck[0] == "2026-11-22T12:09:00Z"
        and state.stuck[1].reason == "NodeLost"
        and not state.no_pod_created
    )


@pytest.mark.parametrize(("queue", "told"), [("optimizers", "LocalQueue optimizers"), (None, "suspended")])
def test_a_job_whose_turn_has_not_come(queue: str | None, told: str) -> None:
    (resource, made), *_ = job()
    made["spec"]["suspend"] = True
    made["metadata"]["labels"] = made["metadata"]["labels"] | (
        {"kueue.x-k8s.io/queue-name": queue} if queue else {}
    )
    state = work((resource, made))
    assert state.queued and state.queued.reason == "Queued" and told in state.queued.message
    assert state.idle_since is None and not state.no_pod_created, "no deadline runs"
    made["spec"]["suspend"] = False
    made["metadata"]["creationTimestamp"] = "2026-11-20T12:00:00Z"
    made["status"] = {"conditions": [{"type": "Suspended", "status": "True", "reason": "JobSuspended"}]}
    assert work((resource, made)).queued, (
        "admitted, but the Job controller has not seen it: days of waiting would pass for idleness"
    )
    made["status"] = {
        "startTime": "2026-11-22T12:00:00Z",
        "conditions": [{"type": "Suspended", "status": "False", "reason": "JobResumed"}],
    }
    assert work((resource, made)) == JobState(
        "Running", idle_since="2026-11-22T12:00:00Z", no_pod_created=True
    )


def test_a_job_that_ended_well_with_its_result() -> None:
    state = work(*job("Complete", code=0, message=f'{{"sha256": "{b.sha(2)}", "size_bytes": 5}}'))
    assert state.state == "Succeeded" and state.result and state.result.sha256 == b.sha(2)


def test_a_result_that_went_with_its_pod() -> None:
    state = work(*job("Complete"))
    assert (state.state, state.result) == ("Succeeded", None)


def test_the_answer_of_a_pod_that_failed_before_is_not_the_jobs() -> None:
    state = work(*job("Complete", code=1, message='{"reason": "StoreUnreachable", "message": "try again"}'))
    assert (state.state, state.result) == ("Succeeded", None)


def test_a_job_that_failed_says_why_itself_or_its_pod_or_its_controller() -> None:
    told = work(*job("Failed", code=10, message='{"reason": "NotOnnx", "message": "a pickle"}'))
    assert told.state == "Failed" and told.exit_code == 10 and told.result and told.result.reason == "NotOnnx"
    silent = work(*job("Failed"))
    assert (
        silent.result is None
        and silent.problem
        and silent.problem.reason == "JobFailed"
        and "FailedReason: as the controller says" in silent.problem.message
    )


def test_a_job_that_was_ended_because_all_was_done_before_has_ended_well() -> None:
    state = work(*job("Failed", code=20, message='{"artifact_digest": "sha256:00", "reused": true}'))
    assert (state.state, state.exit_code) == ("Succeeded", 0) and state.result and state.result.reused
    not_told_yet = work(*job(code=20, message=f'{{"sha256": "{b.sha(2)}", "reused": true}}'))
    assert (not_told_yet.state, not_told_yet.result) == ("Running", None), (
        "until the pod failure policy has ended the Job"
    )


def test_a_users_container_at_work_is_no_idleness_and_its_failure_no_other_try() -> None:
    (resource, made), *_ = job()
    before = {
        "name": "before",
        "state": {"terminated": {"exitCode": 0, "finishedAt": "2026-11-22T13:00:00Z"}},
    }

    def at(state: Object, **status: Any) -> JobState:
        own = {"name": "container-step", "state": state}
        return work(
            (resource, made),
            job_pod(made["metadata"]["name"], {"waiting": {}}, initContainerStatuses=[before, own], **status),
        )

    assert at({"running": {}}, phase="Pending") == JobState("Running")
    assert (
        at({"waiting": {"reason": "PodInitializing"}}, phase="Pending").idle_since == "2026-11-22T13:00:00Z"
    )
    failed = at({"terminated": {"exitCode": 1, "message": "no GPU"}}, phase="Failed")
    assert (
        (failed.state, failed.exit_code, failed.result) == ("Failed", None, None)
        and failed.problem
        and failed.problem.reason == "ContainerFailed"
    )
    oom = at({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}, phase="Failed")
    assert (
        oom.state == "Failed"
        and oom.problem
        and "the step's container.resources.limits.memory" in oom.problem.message
    )
    lost = [
        {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "EvictionByEvictionAPI",
            "message": "drained",
        }
    ]
    drained = at({"terminated": {"exitCode": 137}}, phase="Failed", conditions=lost)
    assert drained.state == "Running" and drained.retried and drained.retried.reason == "Evicted"


@pytest.mark.parametrize(
    "message", ["", "Traceback (most recent call last)", '{"reason": 1}', "x" * 5000, '{"reason": "A"']
)
def test_a_message_that_is_no_result(message: str) -> None:
    assert work(*job("Complete", code=0, message=message)).result is None


# --- verbs


@pytest.mark.parametrize(
    ("value", "step", "nonce"),
    [
        ("2/4 7f3a", "2/4", "7f3a"),
        ("7f3a", None, "7f3a"),
        (" 2/4   7f3a ", "2/4", "7f3a"),
        ("2/4 by me 7f3a", "2/4", "7f3a"),
    ],
)
def test_a_verb_is_an_annotation_with_step_and_nonce(value: str, step: str | None, nonce: str) -> None:
    s = seen(deployment(), revision(2, annotations={"modelrollout.dev/promote": value})).observed
    assert [(v.verb, v.revision, v.step, v.nonce) for v in s.verbs] == [("promote", V2, step, nonce)]


def test_an_empty_verb_is_none() -> None:
    assert seen(deployment(), revision(2, annotations={"modelrollout.dev/promote": " "})).observed.verbs == ()


def test_the_model_deployment_takes_what_needs_no_revision() -> None:
    said = {f"modelrollout.dev/{verb}": "n1" for verb in names.VERBS}
    assert {v.verb for v in seen(deployment(metadata={"annotations": said})).observed.verbs} == {
        "retry",
        "abort",
    }


# --- what is not allowed


def refusal(
    spec: Any,
    *others: tuple[Resource, Object],
    config: OperatorConfig = CONFIG,
    kinds: frozenset[str] = ROUTES,
) -> tuple[str, str] | None:
    problem = seen(deployment(spec), *others, config=config, kinds=kinds).spec_problem
    return (problem.reason, problem.message) if problem else None


GOLDEN = {"analysis": {"golden": {"uri": "s3://elsewhere/golden.npz"}}}
GATE = {
    "gate": {"data": {"uri": "s3://elsewhere/gate.npz"}, "metrics": [{"name": "accuracy", "maxDrop": 0.1}]}
}
TRAINED = {
    "steps": [
        {"graph": {}},
        {"prune": {"sparsity": 0.5, "training": {"data": {"uri": "s3://elsewhere/t.npz"}}}},
    ]
}
STATIC = {"steps": [{"int8": {"method": "Static", "calibration": {"uri": "s3://elsewhere/c.npz"}}}]}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (b.spec(1, model={"uri": "s3://elsewhere/m.onnx"}), "spec.model.uri"),
        (b.spec(1, model={"uri": "s3://models-2/m.onnx"}), "spec.model.uri"),
        (b.spec(1, model={"uri": "s3://models/../artifacts/m.onnx"}), "spec.model.uri"),
        (b.spec(1, rollout=GOLDEN), "spec.rollout.analysis.golden.uri"),
        (b.spec(1, optimization=GATE), "spec.optimization.gate.data.uri"),
        (b.spec(1, optimization=STATIC), "spec.optimization.steps[0].int8.calibration.uri"),
        (b.spec(1, optimization=TRAINED), "spec.optimization.steps[1].prune.training.data.uri"),
    ],
)
def test_a_store_that_is_not_allowed_is_named_with_its_field_and_the_remedy(spec: Any, field: str) -> None:
    problem = refusal(spec)
    assert (
        problem
        and problem[0] == "StoreNotAllowed"
        and problem[1].startswith(f"{field}: ")
        and "ask the platform team" in problem[1]
    )
    assert "prometheus" not in problem[1] and problem[1].count("://") == 1, "no other store is named"


def test_what_is_not_the_specs_own_needs_a_policy_where_the_configuration_says_so() -> None:
    spec = b.spec(1, serving={"resources": {}, "serviceAccountName": "builder"})
    shut = CONFIG.model_copy(
        update={"workloads": CONFIG.workloads.model_copy(update={"only_by_policy": True})}
    )
    problem = refusal(spec, config=shut)
    assert (
        problem
        and problem[0] == "ServiceAccountNotAllowed"
        and problem[1].startswith("spec.serving.serviceAccountName: builder: ")
    )
    assert refusal(spec) is None and refusal(b.spec(1), config=shut) is None


def test_a_step_that_trains_needs_an_image_that_can() -> None:
    spec = b.spec(
        1,
        optimization={
            "steps": [{"prune": {"sparsity": 0.5, "training": {"data": {"uri": "s3://models/t.npz"}}}}]
        },
    )
    problem = refusal(spec)
    assert (
        problem
        and problem[0] == "TrainerMissing"
        and problem[1].startswith("spec.optimization.steps[0].prune: ")
        and "trainer.image" in problem[1]
    )
    images = CONFIG.images.model_copy(update={"trainer": "trainer:1"})
    assert refusal(spec, config=CONFIG.model_copy(update={"images": images})) is None
    assert refusal(b.spec(1, optimization={"steps": [{"prune": {"sparsity": 0.5}}]})) is None


def test_a_search_does_without_the_image_that_trains() -> None:
    auto = {"data": {"uri": "s3://models/s.npz"}, "training": {"data": {"uri": "s3://models/t.npz"}}}
    gate = {"data": {"uri": "s3://models/h.npz"}, "metrics": [{"name": "accuracy", "maxDrop": 0.01}]}
    spec = b.spec(1, optimization={"steps": [{"auto": auto}], "gate": gate})
    assert refusal(spec) is None
    assert (
        refusal(spec.model_copy(update={"model": spec.model.model_copy(update={"format": "XGBoost"})}))
        is None
    )


@pytest.mark.parametrize(
    ("step", "kind"),
    [("prune", {"sparsity": 0.5, "training": {"data": {"uri": "s3://models/t.npz"}}}), ("int4", {})],
)
def test_a_job_has_one_image(step: str, kind: Any) -> None:
    images = CONFIG.images.model_copy(update={"trainer": "trainer:1", "trees": "trees:1"})
    config = CONFIG.model_copy(update={"images": images})
    spec = b.spec(1, optimization={"steps": [{"graph": {}}, {step: kind}]})
    trees = spec.model_copy(update={"model": spec.model.model_copy(update={"format": "XGBoost"})})
    problem = refusal(trees, config=config)
    assert problem and problem[0] == "ImageFlavoursClash"
    assert (
        problem[1].startswith(f"spec.optimization.steps[1].{step}: ")
        and "spec.model.format: XGBoost" in problem[1]
    )
    assert refusal(spec, config=config) is None
    light = trees.model_copy(
        update={"optimization": b.spec(1, optimization={"steps": [{"graph": {}}]}).optimization}
    )
    assert refusal(light, config=config) is None


def test_a_prometheus_that_is_not_allowed_is_named() -> None:
    problem = refusal(b.spec(1, rollout={"analysis": {"prometheus": "mine"}}))
    assert problem and problem[0] == "PrometheusNotAllowed" and "main" in problem[1]
    assert refusal(b.spec(1, rollout={"analysis": {"prometheus": "main"}})) is None


def test_promql_of_a_specs_own_is_refused_before_anything_begins_unless_it_is_allowed() -> None:
    spec = b.spec(1, rollout={"analysis": {"metrics": [{"name": "gpu", "query": "max(x)", "max": 1}]}})
    problem = refusal(spec)
    assert (
        problem
        and problem[0] == "QueryNotAllowed"
        and "spec.rollout.analysis.metrics[gpu].query" in problem[1]
    )
    assert refusal(spec, config=CONFIG.model_copy(update={"queries": "Own"})) is None


@pytest.mark.parametrize(("taken_over", "refused"), [(200, False), (50, True)])
def test_a_version_from_before_its_host_name_was_taken_over_is_checked_like_a_new_one(
    taken_over: int, refused: bool
) -> None:
    """It was stable until 100 seconds ago, but the clients of the name came only afterwards: where
    metrics are mandatory its A/B test would wait for requests that it must not get.
    """
    gates = {"metrics": [{"name": "errors", "max": 0.1}]}
    demanding = combine([read({"metadata": {"name": "production"}, "spec": {"gates": gates}})])
    spec = b.spec(1, rollout={"abTest": {"headers": [{"name": "x-new", "value": "yes"}]}})
    mine = deployment(spec, status=b.status(2).wire())
    holder = holder_of(mine[1])
    claims = [
        Claim(host, holder, reserved="720h", since=b.at(-taken_over)) for host in spec.traffic.http.hostnames
    ]
    found = seen(
        mine,
        revision(1, status={"outcome": "Retired", "reason": "Replaced", "retired": b.ago(100)}),
        revision(2, status={"outcome": "Promoted", "reason": "-"}),
        known=Known(Claims(claims), ForeignRoutes(), lambda _: (), only_by_policy=False),
        rules=demanding,
    )
    problem = found.spec_problem
    assert (problem is not None) is refused
    if problem is not None:
        assert problem.reason == "GateRequired" and problem.message.startswith("spec.rollout.abTest: ")


def test_no_gateway_api_on_the_cluster() -> None:
    problem = refusal(b.spec(1), kinds=frozenset())
    assert problem and problem[0] == "GatewayAPIMissing" and "HTTPRoute" in problem[1]
    assert refusal(b.spec(1, gateway=False), kinds=frozenset()) is None


# --- the live route


def test_what_the_cluster_does_now_for_a_status_that_was_lost() -> None:
    refs = [{"name": V1, "weight": 95}, {"name": V2, "weight": 5}, {"name": "old", "weight": 0}]
    route = obj(HTTP_ROUTE, KEY[1], spec={"rules": [{"backendRefs": refs}]})
    service = obj(SERVICE, KEY[1], spec={"selector": {names.LABEL_REVISION: V2}})
    assert seen(deployment(), revision(1), route, service).observed.live_split == ((V1, 95), (V2, 5))
    assert seen(deployment(), revision(1), service).observed.live_split == ((V2, 100),)
    assert seen(deployment()).observed.live_split == ()
