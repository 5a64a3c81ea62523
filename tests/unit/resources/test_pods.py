"""What a spec says of its servers' pods: the table of docs/reference/pods.md, and the template."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from modelrollout.api import names
from modelrollout.api.v1alpha1 import Pod, RevisionRef, Serving, Shadow, Tune, same_version
from modelrollout.api.v1alpha1.pod import EnvVar
from modelrollout.cli.manifests.rules import broken_rules, schema_of
from modelrollout.config import DrainConfig, GpuConfig, ImagesConfig, WorkloadRules
from modelrollout.resources import comparer, server
from modelrollout.resources.common import container_security
from modelrollout.resources.jobs.prepare import prepare_job
from modelrollout.resources.jobs.tune import tune_job
from modelrollout.testing import builders as b
from tests.unit.resources import objects as o

ROOT = Path(__file__).parents[3]
# A value of each field of spec.serving other than what is left out.
CHANGED: dict[str, Any] = {
    "triton": {"image": "example/other"},
    "replicas": 3,
    "resources": {"limits": {"cpu": "3"}},
    "nodeSelector": {"zone": "a"},
    "tolerations": [{"operator": "Exists"}],
    "affinity": {
        "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]}
    },
    "serviceAccountName": "account",
    "imagePullSecrets": [{"name": "registry"}],
    "accelerator": {"tensorRT": {"workspace": "4Gi"}},
    "batching": {"maxBatchSize": 8},
    "tune": {"objective": "50ms"},
    "surge": "Wait",
    "floor": 1,
    "drain": {"preStop": "20s"},
    "startupTimeout": "20m",
    "pod.labels": {"team": "vision"},
    "pod.annotations": {"owner": "vision"},
    "pod.runtimeClassName": "nvidia",
    "pod.priorityClassName": "serving",
    "pod.schedulerName": "volcano",
    "pod.env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}}],
    "pod.volumes": [{"name": "ca", "configMap": {"name": "company-ca"}}],
    "pod.sizeLimits": {"shm": "4Gi"},
    "pod.fetchResources": {"limits": {"memory": "4Gi"}},
    "pod.topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
    ],
}
# Other defaults of the chart for everything in a pod.
DEFAULTS = o.CONFIG.model_copy(
    update={
        "images": ImagesConfig(optimizer="example/newer", triton="example/newer", pull_policy="Never"),
        "workloads": WorkloadRules(users="Platform"),
        "drain": DrainConfig(pre_stop_seconds=1, exit_timeout_seconds=2, margin_seconds=3),
        "gpus": {"nvidia.com/gpu": GpuConfig(weight="1/2", toleration="example.com/gpu")},
    }
)


def table() -> dict[str, list[str]]:
    """Its rows by field: part of the version, pods that run, left out."""
    section = (ROOT / "docs/reference/pods.md").read_text().split("\n## Fields\n", 1)[1].split("\n## ", 1)[0]
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in section.splitlines() if "| `" in line[:3]]
    return {re.sub("`", "", field): cells for field, *cells in rows}


def serving(field: str | None = None) -> Serving:
    fields: dict[str, Any] = {"resources": {"limits": {"nvidia.com/gpu": 1}}}
    if field is not None:
        group, _, name = field.rpartition(".")
        (fields.setdefault(group, {}) if group else fields)[name] = CHANGED[field]
    return Serving.model_validate(fields)


def version(of: Serving) -> dict[str, Any]:
    return b.spec(1, serving=of.wire()).user_input()


def test_every_field_has_its_row_and_an_example() -> None:
    known = {f.alias or n for n, f in Serving.model_fields.items()} - {"pod"}
    known |= {f"pod.{f.alias or n}" for n, f in Pod.model_fields.items()}
    assert set(table()) == known == set(CHANGED)


@pytest.mark.parametrize("field", CHANGED)
def test_the_table_says_what_makes_a_version_and_that_no_pod_is_restarted(field: str) -> None:
    part, running, _ = table()[field]
    before, after = serving(), serving(field)
    assert (not same_version(version(before), version(after))) is (part == "yes") and part in ("yes", "no")
    # What a spec says later reaches the pods of a revision by its number of replicas alone.
    frozen = o.template(before)
    then, now = (
        o.deployment(frozen, config, replicas=of.replicas)
        for of, config in ((before, o.CONFIG), (after, DEFAULTS))
    )
    assert o.template(before, DEFAULTS) != frozen, "the next revision has other defaults"
    assert then["spec"]["template"] == now["spec"]["template"], "no field and no default restarts a pod"
    assert (then != now) is (running == "are scaled at once") and running in ("stay", "are scaled at once")


@pytest.mark.parametrize("field", [f for f in CHANGED if f.startswith("pod.")])
def test_each_field_is_in_the_pods_of_the_next_revision(field: str) -> None:
    name, before, after = field.partition(".")[2], o.template(), o.template(serving(field))
    assert before != after
    if name in ("volumes", "sizeLimits", "fetchResources"):
        return  # each has a test below
    if name == "env":
        (triton,) = after["spec"]["containers"]
        assert CHANGED[field][0] in triton["env"]
        assert after["spec"]["initContainers"] == before["spec"]["initContainers"]
        return
    where = after["metadata"] if name in after["metadata"] else after["spec"]
    if isinstance(CHANGED[field], dict):
        assert CHANGED[field].items() <= where[name].items()
    elif name != "topologySpreadConstraints":
        assert where[name] == CHANGED[field]


def test_a_spec_that_says_nothing_of_pods_is_what_it_was() -> None:
    """Name of a version and template as before spec.serving.pod existed. Whoever changes the
    template raises BUILDER, and gives the new hash.
    """
    name = names.revision_name("ml", "digits", b.spec(1).user_input(), b.sha(1))
    assert name == "digits-349dbdf4"
    assert {"8": names.short_hash(o.template(), 16)} == {server.BUILDER: "fc1530a651081aaf"}
    empty = b.spec(1, serving=b.spec(1).serving.wire() | {"pod": {}})
    assert empty.user_input() == b.spec(1).user_input()
    assert o.template(Serving.model_validate(o.SERVING.wire() | {"pod": {}})) == o.template()


EMPTY: list[dict[str, Any]] = [
    {"labels": {}},
    {"annotations": {}},
    {"sizeLimits": {}},
    {"labels": {}, "annotations": {}, "sizeLimits": {}},
    {"fetchResources": {}},
    {"fetchResources": {"limits": {}}},
    {"fetchResources": {"limits": {}, "requests": {}}},
]


def test_the_cases_above_are_all_that_can_be_empty() -> None:
    can = set()
    for name, field in Pod.model_fields.items():
        for empty in ({}, [], ""):
            with contextlib.suppress(ValidationError):
                Pod.model_validate({name: empty})
                can.add(field.alias or name)
    assert can == {field for case in EMPTY for field in case}


@pytest.mark.parametrize("said", [{}, {"labels": {"team": "vision"}}, {"fetchResources": {}}])
@pytest.mark.parametrize("empty", EMPTY)
def test_what_is_empty_makes_a_version_only_where_it_makes_another_template(
    empty: dict[str, Any], said: dict[str, Any]
) -> None:
    before, after = (Serving.model_validate(o.SERVING.wire() | {"pod": p}) for p in (said, empty | said))
    same = o.template(before) == o.template(after)
    assert same is ("fetchResources" not in empty or "fetchResources" in said)
    assert same_version(version(before), version(after)) is same
    assert (version(before) == version(after)) is same, "the name of a revision is made of it"


@pytest.mark.parametrize(
    "empty",
    [
        {"nodeSelector": {}},
        {"tolerations": []},
        {"affinity": {}},
        {"imagePullSecrets": []},
        {"resources": {"limits": {"nvidia.com/gpu": 1}, "requests": {}}},
    ],
    ids=lambda part: next(iter(part)),
)
def test_what_is_empty_beside_pod_makes_no_other_template(empty: dict[str, Any]) -> None:
    """The version is the same (``tests/unit/api/test_said.py``), so the pods must be."""
    before, after = serving(), Serving.model_validate(serving().wire() | empty)
    assert version(before) == version(after)
    assert o.template(before) == o.template(after)


def test_the_operators_own_labels_and_annotations_win() -> None:
    theirs = {
        "labels": {names.LABEL_NAME: "other", "team": "vision"},
        "annotations": {"prometheus.io/port": "1", names.ANNOTATION_HARDENED: "0"},
    }
    made = o.template(Serving.model_validate(o.SERVING.wire() | {"pod": theirs}))["metadata"]
    usual = o.template()["metadata"]
    assert made == usual | {"labels": usual["labels"] | {"team": "vision"}}


def test_a_spread_without_a_selector_is_about_the_same_revision() -> None:
    own = {"labelSelector": {"matchLabels": {"app": "other"}}}
    field = "pod.topologySpreadConstraints"
    (constraint,) = CHANGED[field]
    fields = {"pod": {"topologySpreadConstraints": [constraint, constraint | own]}}
    made = o.template(Serving.model_validate(o.SERVING.wire() | fields))
    (usual,) = o.template()["spec"]["topologySpreadConstraints"]
    assert made["spec"]["topologySpreadConstraints"] == [
        constraint | {"labelSelector": usual["labelSelector"]},
        constraint | own,
    ]


def test_a_server_that_is_tuned_has_the_same_runtime_and_displaces_no_pod() -> None:
    wanted = {"runtimeClassName": "nvidia", "schedulerName": "volcano"}
    fields = {"pod": wanted | {"priorityClassName": "serving", "labels": {"team": "vision"}}}
    frozen = o.template(Serving.model_validate(o.SERVING.wire() | fields))
    beside = server.beside(frozen, o.VERSION, o.ARTIFACT, o.CONFIG)
    assert wanted.items() <= beside.items() and "priorityClassName" not in beside


@pytest.mark.parametrize(
    ("limits", "hidden"),
    [
        ({}, True),
        ({"cpu": 1, "memory": "1Gi"}, True),
        ({"nvidia.com/gpu": 0}, True),
        ({"nvidia.com/gpu": "0.0"}, True),
        ({"example.com/dongle": 1}, True),
        ({"nvidia.com/gpu": 1}, False),
        ({"nvidia.com/gpu": "1000m"}, False),
        ({"nvidia.com/mig-1g.10gb": 1}, False),
        ({"nvidia.com/gpu.shared": 1}, False),
        ({"nvidia.com/anything": 1}, False),
        ({"amd.com/gpu": 1}, False),
        ({"gpu.intel.com/millicores": 1}, True),
        ({"example.com/vgpu-number": 1}, False),
        ({"example.com/vgpu-number": 0}, True),
    ],
)
def test_with_a_runtime_a_server_that_requests_no_gpu_sees_none(limits: dict[str, Any], hidden: bool) -> None:
    """Images of CUDA say NVIDIA_VISIBLE_DEVICES=all, which NVIDIA's runtime carries out."""
    env = [{"name": "HF_HOME", "value": "/tmp"}]
    fields = {"resources": {"limits": limits}, "pod": {"runtimeClassName": "nvidia", "env": env}}
    frozen = o.template(Serving.model_validate(fields))
    tuned = tune_job(o.context("t"), Tune(objective="50ms"), None, frozen, o.ARTIFACT)
    for pod in (o.pod(o.deployment(frozen)), o.pod(tuned)):
        (triton,) = (c for c in [*pod["containers"], *pod["initContainers"]] if c["name"] == server.TRITON)
        assert pod["runtimeClassName"] == "nvidia"
        said = [e["value"] for e in triton["env"] if e["name"] == "NVIDIA_VISIBLE_DEVICES"]
        assert said == (["void"] if hidden else [])
        assert env[0] in triton["env"]


GPU: dict[str, Any] = {"resources": {"limits": {"nvidia.com/gpu": 1}}}
TENSORRT: dict[str, Any] = {"accelerator": {"tensorRT": {}}}


def steps(*of: dict[str, Any]) -> dict[str, Any]:
    return {"steps": list(of)}


@pytest.mark.parametrize(
    ("serving", "optimization", "told"),
    [
        (GPU | TENSORRT, steps(), ""),
        ({"resources": {"limits": {"nvidia.com/mig-1g.10gb": 1}}} | TENSORRT, steps(), ""),
        (GPU | {"triton": {"image": "example/triton"}} | TENSORRT, steps(), ""),
        (GPU | TENSORRT, steps({"halfPrecision": {}}), ""),
        (GPU | TENSORRT, steps({"int8": {"method": "Static"}}), ""),
        ({"resources": {"limits": {"cpu": 1}}} | TENSORRT, steps(), "needs a GPU of NVIDIA"),
        ({"resources": {"limits": {"amd.com/gpu": 1}}} | TENSORRT, steps(), "needs a GPU of NVIDIA"),
        ({"resources": {"requests": {"nvidia.com/gpu": 1}}} | TENSORRT, steps(), "needs a GPU of NVIDIA"),
        (
            GPU | {"triton": {"backend": "TorchScript"}} | TENSORRT,
            steps(),
            "leave triton.backend or accelerator",
        ),
        (GPU | TENSORRT, steps({"graph": {}}, {"int4": {}}), "no operators for int4"),
        (GPU | TENSORRT, steps({"int8": {}}), "use int8 with method Static"),
        (GPU | TENSORRT, steps({"int8": {"method": "Dynamic"}}), "use int8 with method Static"),
        (GPU, steps({"int8": {}}, {"int4": {}}), ""),
        ({"resources": {}, "triton": {"backend": "FIL"}}, steps(), ""),
    ],
)
def test_tensorrt_is_refused_where_it_cannot_compute(
    serving: dict[str, Any], optimization: dict[str, Any], told: str
) -> None:
    schema = schema_of("ModelDeployment")["properties"]["spec"]
    spec = {
        "model": {"uri": "s3://m/m.onnx"},
        "serving": serving,
        "optimization": optimization,
        "rollout": {},
    }
    found = [message for _, message in broken_rules(schema, spec, "spec") if "accelerator" in message]
    assert [told in message for message in found] == ([True] if told else [])


@pytest.mark.parametrize("workspace", [0, -1, "0", "0Gi", "0.5Gi", "4 Gi", "much", "500m"])
def test_a_workspace_is_some_memory(workspace: Any) -> None:
    with pytest.raises(ValidationError):
        Serving.model_validate(GPU | {"accelerator": {"tensorRT": {"workspace": workspace}}})


def test_without_a_runtime_of_the_spec_the_environment_is_what_it_was() -> None:
    fields = {"resources": {}, "pod": {"labels": {"team": "vision"}}}
    (triton,) = o.template(Serving.model_validate(fields))["spec"]["containers"]
    assert {e["name"] for e in triton["env"]} == {"HOME", "POD_UID"}


@pytest.mark.parametrize(
    ("pod", "told"),
    [
        ({"labels": {"example.com/team": "vision", "team": "", "a_b.c": "V-1"}}, ""),
        ({"labels": {"modelrollout.dev/name": "x"}}, "keys of modelrollout.dev are the operator's"),
        ({"labels": {"x.modelrollout.dev/name": "x"}}, "keys of modelrollout.dev are the operator's"),
        ({"labels": {"pod-template-hash": "x"}}, "Kubernetes and Kueue manage pods"),
        ({"labels": {"batch.kubernetes.io/job-name": "x"}}, "Kubernetes and Kueue manage pods"),
        ({"labels": {"kueue.x-k8s.io/queue-name": "x"}}, "servers are not queued"),
        ({"labels": {"app.kubernetes.io/part-of": "x"}}, ""),
        ({"labels": {"a b": "x"}}, "a key is a name of letters"),
        ({"labels": {"/a": "x"}}, "a key is a name of letters"),
        ({"labels": {"a": "x y"}}, "labels: a value has letters"),
        ({"annotations": {"a": "x y, z"}}, ""),
        ({"annotations": {"prometheus.io/port": "1"}}, "those of prometheus.io are the operator's"),
        (
            {"annotations": {"container.apparmor.security.beta.kubernetes.io/triton": "unconfined"}},
            "would loosen what every pod has",
        ),
        ({"annotations": {"modelrollout.dev/hardened": "0"}}, "keys of modelrollout.dev"),
        ({"priorityClassName": "system-node-critical"}, "are the cluster's own: name another"),
    ],
)
def test_keys_that_are_not_a_users_are_refused_by_the_api_server(pod: dict[str, Any], told: str) -> None:
    schema = schema_of("ModelDeployment")["properties"]["spec"]["properties"]["serving"]["properties"]["pod"]
    found = [str(problem) for problem in broken_rules(schema, pod, "spec.serving.pod")]
    assert (len(found) == 1 and told in found[0]) if told else not found


def env_problems(env: list[dict[str, Any]]) -> list[str]:
    schema = schema_of("ModelDeployment")["properties"]["spec"]["properties"]["serving"]["properties"]["pod"]
    return [message for _, message in broken_rules(schema, {"env": env}, "spec.serving.pod")]


@pytest.mark.parametrize(
    "name",
    [
        "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONSTARTUP", "AIP_MODE", "TRITON_X",
        "TRITONSERVER_X", "NVIDIA_VISIBLE_DEVICES", "BASH_ENV", "BASH_FUNC_x", "HOME", "PATH", "POD_UID",
        "ENV", "SAGEMAKER_MODE", "MODELROLLOUT_TASK", "CUDA_INJECTION64_PATH", "OPENSSL_CONF",
        "GLIBC_TUNABLES", "KUBERNETES_SERVICE_HOST", "SHELLOPTS", "BASHOPTS", "PS0", "PS4", "PROMPT_COMMAND",
        "VLLM_NCCL_SO_PATH", "VLLM_CUDART_SO_PATH", "NCCL_NET_PLUGIN", "NCCL_TUNER_PLUGIN", "NCCL_CONF_FILE",
        "CC", "CXX", "NVCC_PREPEND_FLAGS", "CPATH", "TORCHINDUCTOR_CACHE_DIR", "OMPI_MCA_plm_rsh_agent",
    ],
)  # fmt: skip
def test_names_that_decide_what_a_program_loads_are_refused(name: str) -> None:
    (told,) = env_problems([{"name": name, "value": "x"}])
    assert told.startswith("env: HOME, PATH") and told.endswith("; leave it out")


def test_the_page_lists_what_is_refused() -> None:
    page = (ROOT / "docs/reference/pods.md").read_text()
    listed = page.split("Refused are names of the operator's own", 1)[1].split("\n- ", 1)[0]
    shown = re.findall(r"`([^`]+)`", listed)
    assert {"SHELLOPTS", "PS0", "CC", "NCCL_*PLUGIN*", "VLLM_*_SO_PATH", "NVIDIA_*"} <= set(shown)
    assert [n for n in shown if not env_problems([{"name": n.replace("*", "X"), "value": "x"}])] == []
    hidden = set(re.findall(r"[A-Z][A-Z_]+", EnvVar.rules[1].rule)) - set(re.findall(r"[A-Z][A-Z_]+", listed))
    assert hidden == set(), "refused, and not on the page"


def test_the_variables_that_the_operator_writes_itself_are_refused() -> None:
    written = {e["name"] for c in o.containers(o.deployment()) for e in c["env"]}
    assert {"HOME", "POD_UID"} <= written
    assert all(env_problems([{"name": name, "value": "x"}]) for name in written)


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN", "VLLM_USE_V1", "OMP_NUM_THREADS", "HOMEPAGE", "CUDA_CACHE_PATH", "PS", "ACCOUNT", "CCX",
        "NCCL_DEBUG", "VLLM_PLUGINS", "MODEL_CC",
    ],
)  # fmt: skip
def test_other_names_are_free(name: str) -> None:
    assert env_problems([{"name": name, "value": ""}]) == []


def test_a_variable_has_one_value() -> None:
    key = {"name": "s", "key": "k"}
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "either value or valueFrom"),
        ({"value": "x", "valueFrom": {"secretKeyRef": key}}, "either value or valueFrom"),
        ({"valueFrom": {}}, "either secretKeyRef or configMapKeyRef"),
        ({"valueFrom": {"secretKeyRef": key, "configMapKeyRef": key}}, "either secretKeyRef or"),
    ]
    for wrong, told in cases:
        (message,) = env_problems([{"name": "A"} | wrong])
        assert told in message
    assert env_problems([{"name": "A", "valueFrom": {"configMapKeyRef": key}}]) == []


def with_pod(**pod: Any) -> dict[str, Any]:
    made: dict[str, Any] = o.template(Serving.model_validate(o.SERVING.wire() | {"pod": pod}))["spec"]
    return made


def test_volumes_are_read_by_the_server_alone() -> None:
    volumes = [
        {"name": "tmp", "secret": {"name": "s"}},
        {"name": "conf", "configMap": {"name": "c"}},
        {"name": "data", "persistentVolumeClaim": {"claimName": "d"}},
    ]
    made, usual = with_pod(volumes=volumes), o.template()["spec"]
    assert made["volumes"][: len(usual["volumes"]) - 1] == usual["volumes"][:-1]
    added = [v for v in made["volumes"] if v not in usual["volumes"]]
    assert added == [
        {"name": "mnt-tmp", "secret": {"secretName": "s", "defaultMode": 0o440}},
        {"name": "mnt-conf", "configMap": {"name": "c"}},
        {"name": "mnt-data", "persistentVolumeClaim": {"claimName": "d", "readOnly": True}},
    ]
    assert made["initContainers"] == usual["initContainers"]
    mounts = [
        m for m in made["containers"][0]["volumeMounts"] if m not in usual["containers"][0]["volumeMounts"]
    ]
    assert mounts == [
        {"name": f"mnt-{v['name']}", "mountPath": f"/mnt/{v['name']}", "readOnly": True} for v in volumes
    ]


def test_the_disk_that_a_server_may_use_has_room_for_its_volumes() -> None:
    def limits(**sizes: Any) -> tuple[list[str], str]:
        made = with_pod(sizeLimits=sizes)
        own = [v["emptyDir"]["sizeLimit"] for v in made["volumes"] if "emptyDir" in v]
        return own, made["containers"][0]["resources"]["limits"]["ephemeral-storage"]

    assert limits(shm="4Gi") == (["42Gi", "20Gi", "4Gi"], "64Gi")
    assert limits(models="100Gi", tmp="8Gi") == (["100Gi", "8Gi", "1Gi"], str(110 << 30))
    assert limits(models=1 << 30) == ([str(1 << 30), "20Gi", "1Gi"], str(23 << 30))
    own = {"limits": {"nvidia.com/gpu": 1, "ephemeral-storage": "50Gi"}}
    fields = {"resources": own, "pod": {"sizeLimits": {"models": "100Gi"}}}
    (triton,) = o.template(Serving.model_validate(fields))["spec"]["containers"]
    assert triton["resources"]["limits"]["ephemeral-storage"] == "50Gi", "what a spec says holds"


def test_what_fetches_the_model_has_the_resources_of_the_spec() -> None:
    wanted = {"requests": {"cpu": "1"}, "limits": {"memory": "4Gi"}}
    (fetch,) = with_pod(fetchResources=wanted)["initContainers"]
    assert fetch["resources"] == {
        "requests": {"cpu": "1", "ephemeral-storage": "0"},
        "limits": {"memory": "4Gi", "ephemeral-storage": "64Gi"},
    }


@pytest.mark.parametrize(
    ("pod", "told"),
    [
        ({"fetchResources": {"limits": {"nvidia.com/gpu": 1}}}, "ask for GPUs in serving.resources"),
        ({"fetchResources": {"requests": {"nvidia.com/gpu": 1}}}, "ask for GPUs in serving.resources"),
        ({"volumes": [{"name": "a"}]}, "give one of secret, configMap"),
        (
            {"volumes": [{"name": "a", "secret": {"name": "s"}, "configMap": {"name": "c"}}]},
            "give one of secret, configMap",
        ),
    ],
)
def test_what_fetches_takes_no_gpu_and_a_volume_is_one_thing(pod: dict[str, Any], told: str) -> None:
    schema = schema_of("ModelDeployment")["properties"]["spec"]["properties"]["serving"]["properties"]["pod"]
    ((_, message),) = broken_rules(schema, pod, "spec.serving.pod")
    assert told in message


def test_where_the_platform_gives_out_users_no_pod_names_one() -> None:
    config = o.CONFIG.model_copy(update={"workloads": WorkloadRules(users="Platform")})
    canary, stable = RevisionRef(revision="m-2", number=2), RevisionRef(revision="m-1", number=1)
    tuned = tune_job(
        o.context("t", config=config),
        Tune(objective="50ms"),
        None,
        o.template(config=config),
        o.ARTIFACT,
    )
    running = [
        o.deployment(o.template(config=config), config),
        comparer.comparer(o.OWNER, canary, stable, Shadow(), o.SERVING, config),
        prepare_job(o.context("p", config=config), o.SHA, o.OPTIMIZATION, salt="0" * 16),
        tuned,
    ]
    for obj in running:
        context = o.pod(obj)["securityContext"]
        assert context == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        for container in o.containers(obj):
            assert container["securityContext"] == container_security()
