"""Jobs: resolve, prepare, tune, evaluate."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelrollout.api.v1alpha1 import Golden, Model, Optimization, Serving, Signature, Triton
from modelrollout.contract.common import TIMEOUT_ENV
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.resources import server
from modelrollout.resources.common import NotAllowedError
from tests.unit.resources import objects as o


def secrets(obj: o.Object) -> dict[str, str]:
    return {v["name"]: v["secret"]["secretName"] for v in o.pod(obj)["volumes"] if "secret" in v}


def test_resolve_asks_for_nothing_but_the_source() -> None:
    source = {
        "uri": "s3://models/digits/v1.onnx",
        "endpoint": "http://s3:9000",
        "region": "eu",
        "allow_http": True,
        "credentials": "source",
    }
    assert o.task(o.resolve())["source"] == source, "endpoint and region are the operator's, never a user's"
    assert secrets(o.resolve()) == {"credentials-source": "s3-reader"}


def test_prepare_has_all_it_needs() -> None:
    task = o.task(o.prepare())
    assert task["sha256"] == o.SHA and "format" not in task
    assert (
        task["steps"][0]["method"] == "Static"
        and task["steps"][0]["calibration"]["location"]["uri"] == "s3://models/c.npz"
    )
    assert task["gate"]["metrics"] == [{"name": "accuracy", "max_drop": 0.005}] and task["gate"]["data"][
        "slices"
    ] == ["writer"]
    assert task["artifacts"]["uri"] == "s3://artifacts/all/ml", "caches are per tenant"
    assert task["target_hardware"] == "gpu"


TRAINING = {"data": {"uri": "s3://models/t.npz"}, "epochs": 7}
STUDENT = {
    "uri": "s3://models/small.onnx",
    "sha256": "0" * 64,
    "credentials": {"secretRef": {"name": "mine"}},
}
EVERY_STEP = [
    {"graph": {}},
    {"prune": {"sparsity": 0.5, "importance": "Activation", "training": TRAINING}},
    {"distill": {"student": STUDENT, "temperature": 2, "hardLabels": 0.1, "training": TRAINING}},
    {"halfPrecision": {"type": "BFloat16"}},
    {
        "int8": {
            "method": "Static",
            "calibration": {"uri": "s3://models/c.npz"},
            "calibrationMethod": "Entropy",
            "leaveOut": "BySensitivity",
        }
    },
    {"int4": {"blockSize": 64, "minWeights": 10}},
]


@pytest.mark.parametrize(
    "job", [o.prepare(), o.prepare(optimization=Optimization.model_validate({}))], ids=["steps", "none"]
)
def test_who_opens_a_strangers_file_has_no_secret_and_cannot_write(job: o.Object) -> None:
    """The process that parsed it could read the Secrets mounted beside it, and the Job held the key
    that writes to the store.
    """
    fetch, convert = o.pod(job)["initContainers"]
    [publish] = o.pod(job)["containers"]
    kinds = {v["name"]: "secret" if "secret" in v else "folder" for v in o.pod(job)["volumes"]}

    def mounts(container: o.Object) -> dict[str, bool]:
        return {m["name"]: not m.get("readOnly", False) for m in container["volumeMounts"]}

    assert mounts(convert) == {"convert-tmp": True, "work": False, "made": True}, (
        "no Secret, and what was fetched cannot be changed"
    )
    assert mounts(publish) == {
        "job-tmp": True,
        "work": False,
        "made": False,
        "credentials-artifacts": False,
    }, "of Secrets only the store's"
    assert (
        "made" not in mounts(fetch)
        and mounts(fetch)["work"]
        and all(kinds[n] == "folder" for n, writes in mounts(fetch).items() if writes)
    )
    writable = [{n for n, writes in mounts(c).items() if writes} for c in (fetch, convert, publish)]
    assert not writable[0] & writable[1] and not writable[1] & writable[2] and not writable[0] & writable[2]
    users = [
        c["securityContext"].get("runAsUser", o.pod(job)["securityContext"]["runAsUser"])
        for c in (fetch, convert, publish)
    ]
    assert users == [65533, 65532, 65533], "those with Secrets are another user"
    assert job["spec"]["template"]["metadata"]["annotations"] == {
        "kubectl.kubernetes.io/default-container": "convert"
    }


def test_who_fetches_reads_the_artifact_store_with_the_secret_that_only_reads() -> None:
    store = o.CONFIG.artifacts.model_copy(update={"read_secret_name": "s3-artifact-reader"})
    job = o.prepare(config=o.CONFIG.model_copy(update={"artifacts": store}))
    volume = next(
        m["name"] for m in o.container(job, "fetch")["volumeMounts"] if m["mountPath"].endswith("/artifacts")
    )
    assert (
        secrets(job)[volume] == "s3-artifact-reader" and secrets(job)["credentials-artifacts"] == "s3-writer"
    )
    assert "credentials-artifacts" not in {m["name"] for m in o.container(job, "fetch")["volumeMounts"]}


def test_every_step_reaches_its_job_as_it_was_written() -> None:
    job = o.prepare(optimization=Optimization.model_validate({"steps": EVERY_STEP}))
    steps = o.task(job)["steps"]
    assert [step["kind"] for step in steps] == ["graph", "prune", "distill", "halfPrecision", "int8", "int4"]
    assert steps[1]["importance"] == "Activation" and steps[1]["training"]["epochs"] == 7
    assert steps[1]["training"]["data"]["location"]["uri"] == "s3://models/t.npz"
    assert (steps[2]["temperature"], steps[2]["hard_labels"], steps[2]["student"]["sha256"]) == (
        2,
        0.1,
        "0" * 64,
    )
    assert steps[3]["type"] == "BFloat16"
    assert (steps[4]["calibration_method"], steps[4]["leave_out"], steps[4]["per_channel"]) == (
        "Entropy",
        "BySensitivity",
        True,
    )
    assert (steps[5]["block_size"], steps[5]["min_weights"]) == (64, 10)
    mounted = {name: secret for name, secret in secrets(job).items() if name[-1].isdigit()}
    assert mounted == {
        "credentials-training-data-1": "s3-reader",
        "credentials-training-data-2": "s3-reader",
        "credentials-student-2": "mine",
        "credentials-calibration-4": "s3-reader",
    }


def test_a_backend_reaches_the_job_with_its_tensors() -> None:
    tensor = {"name": "x", "dataType": "FP32", "shape": [-1, 4]}
    triton = {"backend": "TensorRT", "inputs": [tensor], "outputs": [tensor | {"name": "y"}]}
    served = o.task(o.prepare(serving=Serving.model_validate({"resources": {}, "triton": triton})))["served"]
    assert served["backend"] == "TensorRT" and served["code"] is False
    assert (
        served["inputs"] == [{"name": "x", "data_type": "FP32", "shape": [-1, 4]}]
        and served["outputs"][0]["name"] == "y"
    )
    python = Serving.model_validate({"resources": {}, "triton": {"backend": "Python", "code": "Allowed"}})
    assert o.task(o.prepare(serving=python))["served"] == {
        "backend": "Python",
        "code": True,
        "inputs": [],
        "outputs": [],
    }
    assert "served" not in o.task(o.prepare())


def test_what_an_xgboost_file_does_not_say_reaches_the_job() -> None:
    model = Model.model_validate(
        {"uri": "s3://models/m.ubj", "format": "XGBoost", "rounds": "All", "missing": 0}
    )
    task = o.task(o.prepare(model))
    assert (task["rounds"], task["missing"]) == ("All", 0.0)
    assert not {"rounds", "missing"} & o.task(o.prepare()).keys()


def test_trees_for_fil_are_read_in_the_image_that_has_their_libraries() -> None:
    fil = Serving.model_validate({"resources": {}, "triton": {"backend": "FIL"}})
    images = o.CONFIG.images.model_copy(update={"trees": "example/trees@sha256:4"})
    job = o.prepare(
        serving=fil, optimization=Optimization(), config=o.CONFIG.model_copy(update={"images": images})
    )
    assert o.pod(job)["containers"][0]["image"] == "example/trees@sha256:4"


def test_only_steps_that_train_get_the_image_that_can() -> None:
    def image(steps: list[dict[str, object]]) -> str:
        finished: str = o.pod(o.prepare(optimization=Optimization.model_validate({"steps": steps})))[
            "containers"
        ][0]["image"]
        return finished

    assert image(EVERY_STEP) == "example/trainer@sha256:3"
    assert image([{"prune": {"sparsity": 0.5}}, EVERY_STEP[4]]) == "example/optimizer@sha256:1"


CONTAINER = {
    "image": "example/own@sha256:" + "a" * 64,
    "command": ["python", "/train.py"],
    "args": ["--epochs", "3"],
    "data": {"uri": "s3://models/t.npz", "labels": "y"},
    "resources": {"limits": {"nvidia.com/gpu": 1}},
}


def with_container(**fields: object) -> o.Object:
    return o.prepare(
        optimization=Optimization.model_validate(
            {"steps": [{"graph": {}}, {"container": CONTAINER | fields}, {"int8": {}}]}
        )
    )


def test_the_users_container_runs_between_two_of_ours() -> None:
    job = with_container()
    fetch, before, own, after = o.pod(job)["initContainers"]
    [last] = o.pod(job)["containers"]
    parts = [json.loads(c["env"][0]["value"])["part"] for c in (fetch, before, after, last)]
    assert parts == ["Fetch", "BeforeContainer", "AfterContainer", "Publish"] and {
        c["image"] for c in (before, after)
    } == {"example/optimizer@sha256:1"}
    step = json.loads(after["env"][0]["value"])["steps"][1]
    assert (step["image"], step["args"], step["data"]["labels"]) == (
        CONTAINER["image"],
        ["--epochs", "3"],
        "y",
    )
    assert "resources" not in step, "they shape no result, and are no part of the artifact's key"
    assert (own["image"], own["command"], own["args"]) == (
        CONTAINER["image"],
        CONTAINER["command"],
        CONTAINER["args"],
    )
    assert own["resources"]["limits"] == CONTAINER["resources"]["limits"] | {"ephemeral-storage": "128Gi"}
    assert (
        with_container(resources=None)["spec"]["template"]["spec"]["initContainers"][2]["resources"]
        == before["resources"]
    )


def test_a_job_that_asks_for_a_gpu_tolerates_what_keeps_others_from_the_node() -> None:
    def tolerated(optimization: dict[str, object], **serving: object) -> object:
        asked = Serving.model_validate({"resources": {"limits": {"nvidia.com/gpu": 1}}, **serving})
        return o.pod(o.prepare(optimization=Optimization.model_validate(optimization), serving=asked)).get(
            "tolerations"
        )

    usual = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    gpu = {"limits": {"nvidia.com/gpu": 1}}
    assert tolerated({"steps": []}) is None, "what needs no GPU stays away from nodes with one"
    assert tolerated({"steps": [], "resources": gpu}) == [usual]
    assert tolerated({"steps": [{"container": CONTAINER}]}) == [usual]
    own = {"key": "team", "operator": "Exists"}
    assert tolerated({"steps": [], "resources": gpu}, tolerations=[own]) == [own, usual]


def test_the_users_container_sees_its_folders_and_nothing_else() -> None:
    job = with_container()
    _, before, own, after = o.pod(job)["initContainers"]
    assert own["env"] == [{"name": "HOME", "value": "/tmp"}]
    assert own["securityContext"] == after["securityContext"] == before["securityContext"]
    assert {(m["name"], m["mountPath"], m.get("readOnly", False)) for m in own["volumeMounts"]} == {
        ("step-in", "/in", True),
        ("step-out", "/out", False),
        ("step-tmp", "/tmp", False),
    }
    shared = {m["name"]: m for m in after["volumeMounts"]}
    assert shared["step-out"]["readOnly"] and shared["step-in"]["readOnly"] and "step-tmp" not in shared
    assert "step-out" not in {m["name"] for m in before["volumeMounts"]}
    known = {v["name"] for v in o.pod(job)["volumes"]}
    assert {m["name"] for c in (before, own, after) for m in c["volumeMounts"]} <= known


def test_a_container_that_fails_is_not_run_again_but_a_lost_node_is_forgiven() -> None:
    rules = with_container()["spec"]["podFailurePolicy"]["rules"]
    of = {
        r["onExitCodes"]["containerName"]: (rules.index(r), r["onExitCodes"])
        for r in rules
        if "onExitCodes" in r
    }
    # a queue takes its Job back so; what the kernel killed for its memory is told apart by its
    # status
    told_to_end = [137, 143]
    assert of["container-step"][1] == {
        "containerName": "container-step",
        "operator": "NotIn",
        "values": [0, *told_to_end],
    }
    taken = next(i for i, r in enumerate(rules) if r["action"] == "Count")
    assert taken < of["container-step"][0], "a lost node is told apart before"
    for name in ("fetch", "before", "convert", "job"):
        final, killed = (r for r in rules if r.get("onExitCodes", {}).get("containerName") == name)
        assert (
            int(ExitCode.REUSED) in final["onExitCodes"]["values"]
            and int(ExitCode.RETRYABLE) not in final["onExitCodes"]["values"]
        )
        assert rules.index(final) < taken < rules.index(killed) and {137, 139} <= set(
            killed["onExitCodes"]["values"]
        )


def test_a_search_takes_the_image_that_trains_where_there_is_one_and_none_is_asked_for_by_the_format() -> (
    None
):
    data = {"uri": "s3://models/selection.npz", "credentials": {"secretRef": {"name": "mine"}}}
    steps = [
        {
            "auto": {
                "objective": "Latency",
                "data": data,
                "training": {"data": {"uri": "s3://models/t.npz"}},
                "timeLimit": "5m",
            }
        }
    ]
    job = o.prepare(optimization=Optimization.model_validate({"steps": steps}))
    step = o.task(job)["steps"][0]
    assert (step["kind"], step["objective"], step["time_limit"], step["training"]["epochs"]) == (
        "auto",
        "Latency",
        "5m",
        3,
    )
    assert (
        secrets(job)["credentials-data-0"] == "mine"
        and secrets(job)["credentials-training-data-0"] == "s3-reader"
    )

    def image(model: Model | None = None, **images: object) -> str:
        config = o.CONFIG.model_copy(update={"images": o.CONFIG.images.model_copy(update=images)})
        job = o.prepare(model or o.MODEL, Optimization.model_validate({"steps": steps}), config=config)
        finished: str = o.pod(job)["containers"][0]["image"]
        return finished

    assert image() == "example/trainer@sha256:3"
    assert image(trainer=None) == "example/optimizer@sha256:1"
    assert (
        image(Model(uri="s3://models/m.ubj", format="XGBoost"), trees="example/trees@sha256:4")
        == "example/trees@sha256:4"
    )


def test_each_location_has_its_own_credentials() -> None:
    assert secrets(o.prepare()) == {
        "credentials-source": "s3-reader",
        "credentials-artifacts": "s3-writer",
        "credentials-calibration-0": "mine",
        "credentials-gate": "s3-reader",
    }


def test_data_without_credentials_use_those_of_the_model() -> None:
    model = Model.model_validate(
        {"uri": "s3://models/m.onnx", "credentials": {"secretRef": {"name": "users"}}}
    )
    assert secrets(o.prepare(model)) == {
        "credentials-source": "users",
        "credentials-artifacts": "s3-writer",
        "credentials-calibration-0": "mine",
        "credentials-gate": "users",
    }


def test_an_open_store_needs_none() -> None:
    assert secrets(o.resolve(Model.model_validate({"uri": "https://open.example.com/m.onnx"}))) == {}


@pytest.mark.parametrize(
    ("serving", "hardware"),
    [
        (
            {
                "resources": {"limits": {"nvidia.com/gpu": 1}},
                "nodeSelector": {"nvidia.com/gpu.product": "H100"},
            },
            "H100",
        ),
        ({"resources": {"limits": {"nvidia.com/gpu": "2"}}}, "gpu"),
        ({"resources": {"limits": {"nvidia.com/mig-1g.5gb": 1}}}, "gpu"),
        ({"resources": {"limits": {"amd.com/gpu": 1}}}, "gpu"),
        ({"resources": {"limits": {"example.com/dongle": 1}}}, "any"),
        ({"resources": {"limits": {"cpu": 4}}}, "any"),
        ({"resources": {}}, "any"),
    ],
)
def test_an_artifact_is_made_for_hardware(serving: dict[str, object], hardware: str) -> None:
    assert o.task(o.prepare(serving=Serving.model_validate(serving)))["target_hardware"] == hardware


@pytest.mark.parametrize(
    ("triton", "limits", "gpus"),
    [
        ({"backend": "VLLM"}, {"nvidia.com/gpu": 4}, 4),
        ({"backend": "Python", "code": "Allowed"}, {"amd.com/gpu": "2"}, 2),
        ({"backend": "VLLM"}, {"nvidia.com/mig-3g.40gb": 1}, 1),
        ({"backend": "VLLM"}, {"example.com/vgpu": 1}, None),
        ({"backend": "VLLM"}, {"cpu": 4}, None),
        ({"backend": "TensorRT"}, {"nvidia.com/gpu": 4}, None),
        ({}, {"nvidia.com/gpu": 4}, None),
    ],
)
def test_a_model_that_may_be_divided_is_prepared_for_the_gpus_of_a_pod(
    triton: dict[str, object], limits: dict[str, object], gpus: int | None
) -> None:
    serving = Serving.model_validate({"triton": triton, "resources": {"limits": limits}})
    assert o.task(o.prepare(serving=serving)).get("gpus") == gpus


def test_prepare_has_the_users_resources_and_time() -> None:
    optimization = o.OPTIMIZATION.model_copy(
        update={"resources": Optimization.model_validate({"resources": {"limits": {"cpu": "4"}}}).resources}
    )
    job = o.prepare(optimization=optimization)
    resources = o.container(job, "convert")["resources"]
    assert (
        resources
        == {"limits": {"cpu": "4", "ephemeral-storage": "128Gi"}, "requests": {"ephemeral-storage": "0"}}
        and limit(job) == "5400"
    )


def limit(job: o.Object) -> str:
    (actual,) = (e["value"] for e in o.pod(job)["containers"][0]["env"] if e["name"] == TIMEOUT_ENV)
    return str(actual)


@pytest.mark.parametrize(("timeout", "seconds"), [("500ms", 1), ("0s", 1), ("1.5s", 2), ("1h", 3600)])
def test_a_time_limit_is_never_zero_and_is_the_pods(timeout: str, seconds: int) -> None:
    """The API server refuses activeDeadlineSeconds 0; a Job's would count its time in a queue and
    all tries together.
    """
    job = o.prepare(optimization=o.OPTIMIZATION.model_copy(update={"timeout": timeout}))
    assert (
        limit(job) == str(seconds)
        and o.pod(job)["activeDeadlineSeconds"] > 2 * seconds
        and "activeDeadlineSeconds" not in job["spec"]
    )


def test_a_queue_is_a_label_of_the_prepare_job_and_of_no_pod() -> None:
    """Kueue's webhook suspends a Job with it; a suspend of our own would never end where there is
    no Kueue.
    """
    job = o.prepare(optimization=o.OPTIMIZATION.model_copy(update={"queue_name": "optimizers"}))
    assert (
        job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "optimizers"
        and "suspend" not in job["spec"]
    )
    assert "kueue" not in str(job["spec"]["template"]) and "kueue" not in str(o.prepare()) + str(
        o.resolve()
    ) + str(o.evaluate())


def test_evaluate_asks_candidate_and_stable_by_their_own_services() -> None:
    task = o.task(o.evaluate())
    assert task["model"] == o.NAME and task["candidate_number"] == 7 and task["stable_number"] == 6
    assert (
        task["candidate_http"] == f"{o.REVISION}.ml.svc:8000"
        and task["candidate_grpc"] == f"{o.REVISION}.ml.svc:8001"
    )
    assert task["stable_http"] == "digits-1.ml.svc:8000" and task["data"]["labels"] == "y"
    assert task["output"] == "probabilities"


def test_evaluate_without_stable() -> None:
    assert not {k for k in o.task(o.evaluate(stable=None)) if k.startswith("stable")}


def test_who_has_no_golden_data_is_asked_alone() -> None:
    job = o.ask()
    assert o.task(job) == {
        "task": "ask",
        "model": o.NAME,
        "http": f"{o.REVISION}.ml.svc:8000",
        "grpc": f"{o.REVISION}.ml.svc:8001",
        "number": 7,
        "timeout_seconds": 60.0,
    }
    assert job["metadata"]["labels"] == o.evaluate()["metadata"]["labels"], "the same network policy"


def test_tune_measures_beside_a_server_of_its_own() -> None:
    job = o.tune({"instances": [1, 2], "timeout": "5m", "share": 0.95})
    task = o.task(job)
    assert (task["objective_ms"], task["share"], task["instances"], task["timeout_seconds"]) == (
        50.0,
        0.95,
        [1, 2],
        300.0,
    )
    assert (
        task["http"] == "127.0.0.1:8000"
        and task["field"] == "spec.rollout.analysis.golden"
        and "credentials" not in task["data"]["location"]
    )
    assert [c["name"] for c in o.containers(job)] == ["job", "fetch", "triton"]
    program = o.pod(job)["containers"][0]
    assert {"name": "models", "mountPath": task["repository"], "readOnly": True} in program["volumeMounts"]
    limit = next(int(e["value"]) for e in program["env"] if e["name"] == TIMEOUT_ENV)
    assert o.pod(job)["activeDeadlineSeconds"] > limit > 300 + 600, "the search's own limit comes first"
    assert "annotations" not in job["spec"]["template"]["metadata"], "Prometheus is not to scrape it"
    ours = {
        r["onExitCodes"]["containerName"]
        for r in job["spec"]["podFailurePolicy"]["rules"]
        if "onExitCodes" in r
    }
    assert ours == {"job", "fetch"}, "a server that dies under a candidate does not end the Job"


def test_what_tuning_fetches_is_out_of_the_servers_reach() -> None:
    """The server's image is the user's: it read the labelled data by the folder that both had as
    /tmp.
    """
    pod = o.pod(o.tune())
    (ours,), theirs = pod["containers"], next(c for c in pod["initContainers"] if c["name"] == "triton")
    shared = {m["name"] for m in ours["volumeMounts"]} & {m["name"] for m in theirs["volumeMounts"]}
    assert shared == {"models"}, "the model to be served, which both only read"
    assert all(m["readOnly"] for c in (ours, theirs) for m in c["volumeMounts"] if m["name"] == "models")
    assert (
        ours["securityContext"]["runAsUser"] == 65533
        and "runAsUser" not in theirs["securityContext"]
        and pod["securityContext"]["runAsUser"] == 65532
    )


def test_disk_limits_of_the_user_are_kept_and_a_queue_is_asked_for_none() -> None:
    def prepared(**optimization: Any) -> tuple[Any, Any]:
        pod = o.pod(o.prepare(optimization=Optimization.model_validate(optimization)))
        return pod["initContainers"][1]["resources"], next(
            v["emptyDir"] for v in pod["volumes"] if v["name"] == "made"
        )

    asked = {"limits": {"ephemeral-storage": "5Gi"}, "requests": {"ephemeral-storage": "4Gi"}}
    assert prepared(resources=asked) == (asked, {"sizeLimit": "5Gi"})
    assert (
        prepared(resources={"requests": {"ephemeral-storage": "200Gi"}})[0]["limits"]["ephemeral-storage"]
        == "200Gi"
    )
    assert prepared(resources={"limits": {"ephemeral-storage": "1Mi"}})[0]["requests"] == {
        "ephemeral-storage": "0"
    }, "not the limit"
    assert prepared()[1] == {"sizeLimit": "48Gi"}, "an archive of 20 GiB, and what is in it"
    # Kueue admits nothing that asks for a resource which its queue has no quota of.
    assert prepared(queueName="q", resources={"limits": {"cpu": "1"}}) == (
        {"limits": {"cpu": "1"}},
        {"sizeLimit": "48Gi"},
    )


def test_a_template_of_before_gets_its_limits_where_it_is_tuned() -> None:
    """A pod's limit is the sum of its containers': one that has none counts as none."""
    frozen = o.template()
    for container in (*frozen["spec"]["initContainers"], *frozen["spec"]["containers"]):
        container["resources"] = {"limits": {"memory": "1Gi"}}
    frozen["spec"]["volumes"] = [{"name": "models", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]
    made = server.beside(frozen, o.VERSION, o.ARTIFACT, o.CONFIG)
    assert {c["resources"]["limits"]["ephemeral-storage"] for c in made["initContainers"]} == {"64Gi"}
    assert all(v["emptyDir"]["sizeLimit"] for v in made["volumes"])


def test_tune_without_data_makes_its_inputs_up() -> None:
    assert "data" not in o.task(o.tune(data=None))


def test_what_is_final_is_not_tried_again_and_what_was_taken_away_is() -> None:
    """The order matters: a pod that is preempted dies by SIGKILL too."""
    spec = o.evaluate()["spec"]
    final, taken, killed = spec["podFailurePolicy"]["rules"]
    assert final["action"] == killed["action"] == "FailJob" and taken["action"] == "Count"
    assert set(final["onExitCodes"]["values"]) == {int(c) for c in ExitCode} - {
        int(ExitCode.OK),
        int(ExitCode.RETRYABLE),
    }
    assert {137, 139} <= set(killed["onExitCodes"]["values"]) and 143 not in killed["onExitCodes"]["values"]
    assert taken["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert 0 < spec["backoffLimit"] < 10, (
        "a number of tries that is bounded, also of pods that are taken away"
    )
    assert o.pod(o.prepare())["restartPolicy"] == "Never", "podFailurePolicy needs it"
    assert {r["onExitCodes"]["containerName"] for r in (final, killed)} == {
        o.pod(o.prepare())["containers"][0]["name"]
    }


def test_placement_of_the_users_secrets_and_account() -> None:
    serving = Serving.model_validate(
        {"resources": {}, "serviceAccountName": "identity", "imagePullSecrets": [{"name": "registry"}]}
    )
    spec = o.pod(o.prepare(serving=serving))
    assert spec["serviceAccountName"] == "identity" and spec["imagePullSecrets"] == [{"name": "registry"}]


def test_jobs_do_not_ask_for_the_servers_gpu() -> None:
    for job in (o.resolve(), o.prepare(), o.evaluate()):
        assert "nvidia.com/gpu" not in str(
            o.pod(job)["containers"][0]["resources"]
        ) and "tolerations" not in o.pod(job)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: o.resolve(Model.model_validate({"uri": "s3://others/m.onnx"})), "spec.model.uri"),
        (
            lambda: o.evaluate(Golden.model_validate({"uri": "s3://models-2/g.npz"})),
            "spec.rollout.analysis.golden.uri",
        ),
        (
            lambda: o.prepare(
                optimization=Optimization.model_validate(
                    {"steps": [{"int8": {"calibration": {"uri": "https://x.example.com/c"}}}]}
                )
            ),
            "spec.optimization.steps[0].int8.calibration.uri",
        ),
        (
            lambda: o.prepare(
                optimization=Optimization.model_validate(
                    {
                        "steps": [
                            {
                                "distill": {
                                    "student": {"uri": "https://x.example.com/s"},
                                    "training": {"data": {"uri": "s3://models/t.npz"}},
                                }
                            }
                        ]
                    }
                )
            ),
            "spec.optimization.steps[0].distill.student.uri",
        ),
    ],
)
def test_a_uri_outside_the_allowed_stores_is_refused_by_field(make: object, field: str) -> None:
    with pytest.raises(
        NotAllowedError, match=f"^{field.replace('[', '.').replace(']', '.')}: .* ask the platform team"
    ):
        make()  # type: ignore[operator]


def test_a_signed_model_brings_the_signers_key() -> None:
    model = o.MODEL.model_copy(
        update={
            "signature": Signature.model_validate({"keySecretRef": {"name": "signers", "key": "digits.pub"}})
        }
    )
    job = o.prepare(model=model)
    assert o.task(job)["signature"] == {
        "location": o.task(job)["source"] | {"uri": f"{model.uri}.sig", "credentials": "signature"},
        "key_file": "/var/run/modelrollout/signer/digits.pub",
    }
    pod = job["spec"]["template"]["spec"]
    volume = next(v for v in pod["volumes"] if v["name"] == "signer")
    assert (volume["secret"]["secretName"], volume["secret"]["items"]) == (
        "signers",
        [{"key": "digits.pub", "path": "digits.pub"}],
    )
    assert {"name": "signer", "mountPath": "/var/run/modelrollout/signer", "readOnly": True} in o.container(
        job, "fetch"
    )["volumeMounts"]
    assert "signature" not in o.task(o.prepare())


def test_a_signature_lies_in_an_allowed_store() -> None:
    elsewhere = Signature.model_validate(
        {"keySecretRef": {"name": "signers", "key": "k"}, "uri": "s3://elsewhere/m.sig"}
    )
    with pytest.raises(NotAllowedError, match=r"spec.model.signature.uri"):
        o.prepare(model=o.MODEL.model_copy(update={"signature": elsewhere}))


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        (None, "example/optimizer@sha256:1"),
        ("ONNX", "example/optimizer@sha256:1"),
        ("XGBoost", "example/trees:1"),
        ("Keras", "example/tf:1"),
        ("PyTorch", "example/torch:1"),
    ],
)
def test_the_image_goes_with_the_format(kind: str | None, image: str) -> None:
    images = o.CONFIG.images.model_copy(
        update={"trees": "example/trees:1", "tensorflow": "example/tf:1", "pytorch": "example/torch:1"}
    )
    job = o.prepare(
        model=o.MODEL.model_copy(update={"format": kind}),
        config=o.CONFIG.model_copy(update={"images": images}),
    )
    assert o.pod(job)["containers"][0]["image"] == image
    assert o.task(job).get("format") == kind


def test_what_a_program_of_pytorch_takes_goes_with_its_task() -> None:
    x, scores = (
        {"name": name, "dataType": "FP32", "shape": [-1, size]} for name, size in (("x", 4), ("scores", 3))
    )
    serving = o.SERVING.model_copy(
        update={"triton": Triton.model_validate({"inputs": [x], "outputs": [scores]})}
    )
    task = o.task(o.prepare(model=o.MODEL.model_copy(update={"format": "PyTorch"}), serving=serving))
    assert task["tensors"] == {
        "inputs": [{"name": "x", "data_type": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "scores", "data_type": "FP32", "shape": [-1, 3]}],
    }
    assert "served" not in task
