"""A result is its Job's: it counts only from a pod that the Job controls, that runs what its
template says, and with the Job's own condition.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelrollout.api.v1alpha1 import Optimization, Tune
from modelrollout.contract.common import CONTAINER_STEP, TASK_ENV
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.results import TaskResult
from modelrollout.controller.observe.job_state import job_state
from modelrollout.kube.diff import foreign_changes
from modelrollout.kube.kinds import JOB, POD
from modelrollout.kube.objects import Object
from modelrollout.kube.projection import project
from modelrollout.resources.jobs.common import JobContext
from modelrollout.resources.jobs.evaluate import evaluate_job
from modelrollout.resources.jobs.prepare import prepare_job
from modelrollout.resources.jobs.resolve import resolve_job
from modelrollout.resources.jobs.tune import tune_job
from modelrollout.resources.server import Artifact
from modelrollout.rollout.snapshot import JobState
from modelrollout.testing.fake_cluster import of_job
from tests.unit.resources import objects as o

FOLDER = "s3://artifacts/all/ml"
DIGEST = f"sha256:{'ab' * 32}"
SALT = "5a17" * 4
KEY = "1" * 64
STEP = {"container": {"image": f"example/trainer@{DIGEST}", "command": ["train"]}}
PLAIN, OWN = (Optimization.model_validate(spec) for spec in ({"steps": []}, {"steps": [STEP]}))
TUNE = Tune.model_validate({"objective": "50ms"})


def every_job() -> dict[str, Object]:
    no_revision = JobContext(o.DEPLOYMENT, o.NAME, None, "job", o.MODEL, o.SERVING, o.CONFIG)
    context = JobContext(o.OWNER, "digits", 1, "job", o.MODEL, o.SERVING, o.CONFIG)
    return {
        "resolve": resolve_job(no_revision),
        "prepare": prepare_job(context, o.SHA, PLAIN, salt=SALT),
        "container": prepare_job(context, o.SHA, OWN, salt=SALT),
        "tune": tune_job(context, TUNE, None, o.template(), Artifact(f"{FOLDER}/x", DIGEST)),
        "evaluate": evaluate_job(context, o.GOLDEN, None),
    }


JOBS = every_job()


def made(kind: str = "prepare", **status: Any) -> Object:
    job = copy.deepcopy(JOBS[kind])
    job["metadata"]["uid"] = "the-job"
    return job | {"status": status}


def ended(*conditions: str, kind: str = "prepare", reason: str = "PodFailurePolicy") -> Object:
    return made(
        kind, conditions=[{"type": c, "status": "True", "reason": reason, "message": "m"} for c in conditions]
    )


def pod(job: Object, result: TaskResult | None = None, code: int = 0, name: str = "p", **more: Any) -> Object:
    """As the Job controller makes it, admission changes it, and a kubelet ends it."""
    spec = copy.deepcopy(job["spec"]["template"]["spec"])
    spec |= {
        "nodeName": "n1",
        "schedulerName": "default-scheduler",
        "preemptionPolicy": "PreemptLowerPriority",
        "priority": 0,
    }
    spec["tolerations"] = [
        *spec.get("tolerations", []),
        {"key": "node.kubernetes.io/not-ready", "operator": "Exists"},
    ]
    said = result.model_dump_json(exclude_none=True) if result else ""
    state = {"name": "job", "state": {"terminated": {"exitCode": code, "message": said}}}
    status = {"phase": "Failed" if code else "Succeeded", "containerStatuses": [state]}
    return {"metadata": {"name": name, "uid": name, **of_job(job)}, "spec": spec, "status": status} | more


GOOD = TaskResult(artifact_uri=f"{FOLDER}/{KEY}-{SALT}-0123abcd", artifact_digest=DIGEST)


def test_the_jobs_own_pod_is_believed() -> None:
    job = ended("Complete")
    state = job_state(job, [pod(job, GOOD)], FOLDER)
    assert state.state == "Succeeded" and state.result == GOOD


@pytest.mark.parametrize("condition", ["Complete", "Failed"])
@pytest.mark.parametrize(
    "owners",
    [
        [],
        [{"kind": "Job", "name": "job", "uid": "another", "controller": True}],
        [{"kind": "Job", "name": "job", "uid": "the-job"}],
        [{"kind": "Job", "name": "job", "uid": "the-job", "controller": False}],
    ],
    ids=["no owner", "an earlier Job", "no controller", "said to be none"],
)
def test_a_pod_with_the_labels_alone_proves_nothing(owners: list[Object], condition: str) -> None:
    job = ended(condition)
    copied = pod(job, GOOD)
    copied["metadata"]["ownerReferences"] = owners
    assert job_state(job, [copied], FOLDER).result is None
    assert job_state(made(), [copied], FOLDER).no_pod_created, "nor does it hide that the Job has no pod"


@pytest.mark.parametrize("code", [0, int(ExitCode.REUSED), int(ExitCode.GATE_FAILED)])
def test_nothing_is_believed_before_the_job_has_ended_itself(code: int) -> None:
    job = made()
    assert job_state(job, [pod(job, GOOD, code)], FOLDER).state == "Running"


def test_work_that_was_done_before_counts_where_the_pod_failure_policy_ended_the_job() -> None:
    job = ended("Failed")
    state = job_state(job, [ended_in("fetch", job, GOOD, ExitCode.REUSED)], FOLDER)
    assert (state.state, state.exit_code, state.result) == ("Succeeded", 0, GOOD)


def ended_in(container: str, job: Object, result: TaskResult, code: ExitCode) -> Object:
    """A pod that one of its init containers has ended."""
    finished = pod(job, result, int(code))
    said = finished["status"].pop("containerStatuses")[0]["state"]
    waits = {"name": "job", "state": {"waiting": {"reason": "PodInitializing"}}}
    return finished | {
        "status": (
            finished["status"]
            | {"initContainerStatuses": [{"name": container, "state": said}], "containerStatuses": [waits]}
        )
    }


@pytest.mark.parametrize(
    ("kind", "container"), [("prepare", "convert"), ("container", "before"), ("container", "convert")]
)
def test_who_opens_a_strangers_file_says_of_no_artifact_that_it_is_there(kind: str, container: str) -> None:
    """It knows the Job's salt and what is recorded: both stand in its task."""
    job = ended("Failed", kind=kind)
    state = job_state(job, [ended_in(container, job, GOOD, ExitCode.REUSED)], FOLDER)
    assert (
        (state.state, state.result) == ("Failed", None)
        and state.problem
        and state.problem.reason == "OutputRefused"
    )
    refused = job_state(job, [ended_in(container, job, GOOD, ExitCode.GATE_FAILED)], FOLDER)
    assert refused.state == "Failed" and refused.result and refused.exit_code == ExitCode.GATE_FAILED
    assert (refused.result.artifact_uri, refused.result.artifact_digest) == (None, None), (
        "what a gate refused would be served at the next try"
    )


@pytest.mark.parametrize(
    "numbers", ['"accuracy_before": NaN', '"drop_interval": [0, 1e999]', f'"size_bytes": {10**40}']
)
def test_numbers_that_no_status_can_hold_are_no_result(numbers: str) -> None:
    """The API server would refuse the status each time, and nothing would get on."""
    job = ended("Failed")
    odd = ended_in("convert", job, TaskResult(), ExitCode.GATE_FAILED)
    odd["status"]["initContainerStatuses"][0]["state"]["terminated"]["message"] = (
        f'{{"reason": "AccuracyLow", {numbers}}}'
    )
    state = job_state(job, [odd], FOLDER)
    assert (state.state, state.result) == ("Failed", None) and state.problem
    large = ended_in("convert", job, TaskResult(accuracy_before=1e300), ExitCode.GATE_FAILED)
    assert job_state(job, [large], FOLDER).result


@pytest.mark.parametrize(
    ("asked", "specified", "same"),
    [
        ("mirror:5000/ml/optimizer:1", f"mirror:5000/ml/optimizer:1@{DIGEST}", True),
        ("mirror:5000/ml/optimizer:1", f"mirror:5000/ml/optimizer@{DIGEST}", True),
        ("optimizer:1", f"optimizer@{DIGEST}", True),
        ("mirror:5000/ml/optimizer:1", f"mirror:5000/ml/other@{DIGEST}", False),
        ("mirror:5000/ml/optimizer:1", f"mirror@{DIGEST}", False),
        ("mirror:5000/ml/optimizer:1", "mirror:5000/ml/optimizer:2", False),
        (f"ml/optimizer@{DIGEST}", f"ml/optimizer@sha256:{'cd' * 32}", False),
    ],
)
def test_admission_pins_a_tag_with_it_or_in_its_place(asked: str, specified: str, same: bool) -> None:
    """Some write the digest behind the tag, some leave the tag out: with a digest it says
    nothing.
    """
    desired, actual = ({"containers": [{"name": "job", "image": image}]} for image in (asked, specified))
    assert (foreign_changes(actual, desired) is None) is same


# --- a pod of the Job's own that runs something else


def first(spec: Object) -> Object:
    return spec["containers"][0]  # type: ignore[no-any-return]


def env(spec: Object, name: str, value: str) -> None:
    first(spec)["env"] = [*first(spec)["env"], {"name": name, "value": value}]


def told(spec: Object, **changes: Any) -> None:
    task = next(e for e in first(spec)["env"] if e["name"] == TASK_ENV)
    task["value"] = json.dumps(json.loads(task["value"]) | changes)


def mount(spec: Object, path: str, volume: str = "theirs") -> None:
    spec["volumes"] = [*spec["volumes"], {"name": "theirs", "configMap": {"name": "code"}}]
    first(spec)["volumeMounts"] = [*first(spec)["volumeMounts"], {"name": volume, "mountPath": path}]


def beside(spec: Object, **more: Any) -> None:
    spec["containers"] = [*spec["containers"], {"name": "sidecar", "image": "mesh/proxy"} | more]


STRANGE: dict[str, tuple[Callable[[Object], Any], str]] = {
    "image": (lambda s: first(s).update(image="busybox"), "the image busybox"),
    "an image whose name goes on": (
        lambda s: first(s).update(image=first(s)["image"] + "-evil"),
        "the image ",
    ),
    "command": (lambda s: first(s).update(command=["sh", "-c", "echo"]), "another command"),
    "arguments": (lambda s: first(s).update(args=["--help"]), "another args"),
    "folder": (lambda s: first(s).update(workingDir="/tmp"), "another workingDir"),
    "task": (lambda s: told(s, sha256="00" * 32), f"another value of {TASK_ENV}"),
    "a variable twice": (lambda s: env(s, TASK_ENV, "{}"), f"another value of {TASK_ENV}"),
    "a variable from elsewhere": (
        lambda s: first(s)["env"][1].update(valueFrom={"fieldRef": {}}),
        "another value of ",
    ),
    "code by a variable": (lambda s: env(s, "PYTHONPATH", "/theirs"), "the variable PYTHONPATH"),
    "a library by a variable": (lambda s: env(s, "LD_PRELOAD", "/theirs.so"), "the variable LD_PRELOAD"),
    "variables from elsewhere": (
        lambda s: first(s).update(envFrom=[{"configMapRef": {"name": "x"}}]),
        "another envFrom",
    ),
    "code in a volume": (lambda s: mount(s, "/usr/lib/python3"), "a volume at /usr/lib/python3"),
    "steps back from tokens": (lambda s: mount(s, "/var/run/secrets/../../../usr"), "a volume at "),
    "another volume in its place": (
        lambda s: first(s)["volumeMounts"][0].update(name="theirs"),
        "another volume at /tmp",
    ),
    "a part of the volume": (
        lambda s: first(s)["volumeMounts"][0].update(subPath="x"),
        "another volume at /tmp",
    ),
    "a volume of another kind": (
        lambda s: s["volumes"].__setitem__(0, {"name": "work", "hostPath": {"path": "/"}}),
        "its volume work is another",
    ),
    "a hook": (
        lambda s: first(s).update(lifecycle={"preStop": {"exec": {"command": ["sh"]}}}),
        "another lifecycle",
    ),
    "a probe": (
        lambda s: first(s).update(livenessProbe={"exec": {"command": ["sh"]}}),
        "another livenessProbe",
    ),
    "a message from elsewhere": (
        lambda s: first(s).update(terminationMessagePath="/etc/hostname"),
        "another terminationMessagePath",
    ),
    "rights": (
        lambda s: first(s)["securityContext"].update(allowPrivilegeEscalation=True),
        "another securityContext",
    ),
    "user": (lambda s: s["securityContext"].update(runAsUser=0), "its securityContext is another"),
    "no container": (
        lambda s: s.update(containers=[{"name": "x", "image": "x"}]),
        "its containers are not job",
    ),
    "a container beside that shares": (
        lambda s: beside(s, volumeMounts=[{"name": "made", "mountPath": "/x"}]),
        "mounts the volume made",
    ),
    "processes together": (lambda s: s.update(shareProcessNamespace=True), "it has shareProcessNamespace"),
    "the node's processes": (lambda s: s.update(hostPID=True), "it has hostPID"),
    "a person inside": (
        lambda s: s.update(ephemeralContainers=[{"name": "debugger", "image": "x"}]),
        "the ephemeral container debugger",
    ),
}


@pytest.mark.parametrize("what", STRANGE)
def test_what_a_pod_says_that_ran_something_else_does_not_count(what: str) -> None:
    job = ended("Complete")
    strange = pod(job, GOOD)
    change, says = STRANGE[what]
    change(strange["spec"])
    state = job_state(job, [strange], FOLDER)
    assert (
        (state.state, state.result) == ("Failed", None)
        and state.problem
        and state.problem.reason == "PodChanged"
    )
    assert says in state.problem.message and "what it says does not count" in state.problem.message
    as_kept = project(JOB, job), [project(POD, strange)]
    assert job_state(*as_kept, FOLDER) == state, "the operator's memory holds all that this is seen by"
    assert job_state(job, [strange, pod(job, GOOD, name="real")], FOLDER).result == GOOD, (
        "and it silences no other"
    )


def test_a_pod_that_the_job_controller_adopted_by_its_labels_makes_the_job_anew() -> None:
    job = ended("Failed")
    adopted = pod(job, GOOD, int(ExitCode.REUSED))
    del adopted["metadata"]["generateName"]
    first(adopted["spec"])["command"] = ["sh"]
    for given_job, pods in ((job, [adopted]), (project(JOB, job), [project(POD, adopted)])):
        state = job_state(given_job, pods, FOLDER)
        assert (
            (state.state, state.result) == ("Failed", None)
            and state.problem
            and state.problem.reason == "PodForeign"
        )


ADDED: dict[str, Callable[[Object], Any]] = {
    "a digest for a tag": lambda s: first(s).update(image=f"{first(s)['image']}@{DIGEST}"),
    "variables of a cloud": lambda s: env(s, "AWS_ROLE_ARN", "arn:aws:iam::1:role/x"),
    "tokens of a cloud": lambda s: mount(s, "/var/run/secrets/eks.amazonaws.com/serviceaccount"),
    "a mesh": lambda s: beside(s, volumeMounts=[{"name": "theirs", "mountPath": "/x"}]),
    "a mesh before it": lambda s: s.update(
        initContainers=[{"name": "mesh-init", "image": "mesh/init"}, *s.get("initContainers", [])]
    ),
    "resources": lambda s: first(s).update(resources={"requests": {"cpu": "3"}}),
    "a volume that is not mounted": lambda s: s["volumes"].append({"name": "more", "emptyDir": {}}),
    "placement": lambda s: s.update(
        nodeSelector={"a": "b"}, affinity={}, priorityClassName="x", runtimeClassName="gvisor"
    ),
}


@pytest.mark.parametrize("kind", JOBS)
@pytest.mark.parametrize("what", ADDED)
def test_what_platforms_add_to_pods_takes_nothing_from_them(kind: str, what: str) -> None:
    job = ended("Complete", kind=kind)
    changed = pod(job, GOOD if kind in ("prepare", "container") else TaskResult())
    ADDED[what](changed["spec"])
    assert job_state(job, [changed], FOLDER).result is not None
    assert job_state(project(JOB, job), [project(POD, changed)], FOLDER).result is not None


def fields(kind: str) -> list[tuple[str, int, str]]:
    spec = JOBS[kind]["spec"]["template"]["spec"]
    return [
        (part, i, field)
        for part in ("initContainers", "containers")
        for i, c in enumerate(spec.get(part) or [])
        for field in ("image", "command", "args", "env", "volumeMounts", "securityContext")
        if c.get(field)
    ]


@pytest.mark.heavy
@given(st.data())
def test_whatever_a_template_states_of_its_containers_must_be_so(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(JOBS)))
    part, i, field = data.draw(st.sampled_from(fields(kind)))
    desired = JOBS[kind]["spec"]["template"]["spec"]
    given_spec = copy.deepcopy(desired)
    value = given_spec[part][i][field]
    if isinstance(value, str):
        given_spec[part][i][field] = data.draw(st.text(max_size=20).filter(lambda t: t != value))
    elif isinstance(value, list):
        value.pop(data.draw(st.integers(0, len(value) - 1)))
    else:
        value.pop(data.draw(st.sampled_from(sorted(value))))
    assert foreign_changes(desired, desired) is None
    assert foreign_changes(given_spec, desired) is not None


def test_of_a_users_container_too() -> None:
    job = ended("Complete", kind="container")
    changed = pod(job, GOOD)
    theirs = next(c for c in changed["spec"]["initContainers"] if c["name"] == CONTAINER_STEP)
    theirs["image"] = "another"
    problem = job_state(job, [changed], FOLDER).problem
    assert problem and f"its container {CONTAINER_STEP} has the image another" in problem.message


def test_one_that_is_waited_for_is_told_while_it_runs() -> None:
    job = made()
    changed = pod(job)
    changed["status"] = {"phase": "Running", "containerStatuses": [{"name": "job", "state": {"running": {}}}]}
    env(changed["spec"], "PYTHONPATH", "/x")
    state = job_state(job, [changed], FOLDER)
    assert state.state == "Running" and state.problem and state.problem.reason == "PodChanged"
    real = pod(job, name="real") | {"status": changed["status"]}
    assert job_state(job, [changed, real], FOLDER).problem is None, "the Job's own pod works"


# --- where an artifact lies


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://artifacts/all/another/{KEY}-{SALT}-0123abcd",
        f"s3://artifacts/all/ml-of-another/{KEY}-{SALT}-0123abcd",
        f"{FOLDER}/{KEY}-0000000000000000-0123abcd",
        f"{FOLDER}/{KEY}",
        FOLDER,
        f"{FOLDER}/",
        f"{FOLDER}/../another/{KEY}-{SALT}-0123abcd",
        f"{FOLDER}/./{KEY}-{SALT}-0123abcd",
        f"{FOLDER}/%2e%2e/another",
        f"{FOLDER}/{KEY}-{SALT}-0123abcd?x=y",
        f"{FOLDER}/{KEY}-{SALT}-0123abcd#x",
        f"s3://user:hunter2@artifacts/all/ml/{KEY}-{SALT}-0123abcd",
        "https://elsewhere.example/models/0123",
        "/models/0123",
    ],
)
def test_a_prepare_job_answers_for_its_own_artifact_alone(uri: str) -> None:
    job = ended("Complete")
    state = job_state(job, [pod(job, GOOD.model_copy(update={"artifact_uri": uri}))], FOLDER)
    assert (
        state.state == "Failed"
        and state.result is None
        and state.problem
        and state.problem.reason == "ArtifactForeign"
    )
    assert "hunter2" not in state.problem.message and "nothing of it is served" in state.problem.message


def publisher(job: Object) -> Object:
    """The container whose task the Job's is."""
    return next(
        c
        for c in job["spec"]["template"]["spec"]["containers"]
        if any(e["name"] == TASK_ENV for e in c["env"])
    )


def test_what_it_was_told_of_is_its_answer_too_and_by_digest() -> None:
    job = ended("Complete")
    task = next(e for e in publisher(job)["env"] if e["name"] == TASK_ENV)
    for folder, digest, state in (
        (FOLDER, DIGEST, "Succeeded"),
        (FOLDER, "sha256:1", "Failed"),
        ("s3://artifacts/all/another", DIGEST, "Failed"),
    ):
        told_of = [{"uri": f"{folder}/{KEY}", "digest": DIGEST}]
        task["value"] = json.dumps(json.loads(task["value"]) | {"recorded": told_of})
        answer = GOOD.model_copy(update={"artifact_uri": f"{folder}/{KEY}", "artifact_digest": digest})
        assert job_state(job, [pod(job, answer)], FOLDER).state == state, (folder, digest)


def test_a_job_that_was_to_publish_where_the_artifact_store_was_before_is_made_anew() -> None:
    """The configuration names another store since it was made: no user is to blame, and none has
    to say retry.
    """
    job = ended("Complete")
    assert job_state(job, [pod(job, GOOD)], "s3://moved/ml") == JobState()


def test_the_job_of_an_earlier_operator_is_made_anew() -> None:
    """It took whatever lay under the key."""
    job = ended("Complete")
    task = next(e for e in publisher(job)["env"] if e["name"] == TASK_ENV)
    task["value"] = json.dumps(
        {k: v for k, v in json.loads(task["value"]).items() if k not in ("salt", "recorded")}
    )
    assert job_state(job, [pod(job, GOOD)], FOLDER) == JobState()
