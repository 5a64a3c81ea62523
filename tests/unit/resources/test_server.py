"""Triton servers: what a revision freezes, and what is around it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from modelrollout.api import names
from modelrollout.api.v1alpha1 import Serving
from modelrollout.config import DrainConfig, ImagesConfig
from modelrollout.contract.common import CPUS_ENV, ServingConfig
from modelrollout.contract.tasks import FetchTask
from modelrollout.resources import server
from modelrollout.resources.hardening import hardening_version
from tests.unit.resources import objects as o


def serving(**fields: Any) -> Serving:
    return Serving.model_validate({"resources": {"limits": {"nvidia.com/gpu": 1}}} | fields)


def triton(obj: o.Object) -> o.Object:
    return next(c for c in o.containers(obj) if c["name"] == "triton")


# --- frozen


def test_another_configuration_renders_another_template_and_changes_no_revision() -> None:
    """An upgrade of the operator, a changed default: no canary begins, and no pod restarts."""
    frozen = o.template()
    upgraded = o.CONFIG.model_copy(
        update={
            "images": ImagesConfig(optimizer="example/optimizer:2", triton="example/triton:2"),
            "drain": DrainConfig(pre_stop_seconds=1),
        }
    )
    assert o.template(config=upgraded) != frozen
    assert o.deployment(frozen, upgraded) == o.deployment(frozen, o.CONFIG)


def test_rendering_does_not_touch_what_is_frozen() -> None:
    frozen = o.template()
    before = copy.deepcopy(frozen)
    o.deployment(frozen, digest="sha256:bb")
    assert frozen == before


def test_a_field_that_the_task_gets_with_a_default_changes_no_deployment() -> None:
    """The init container's task is rendered anew each time: what is at its default is left out of
    it.
    """
    assert set(o.task(o.deployment())) == {"task", "artifact", "digest", "model", "number"}
    assert FetchTask.model_validate(o.task(o.deployment())).target == "/models"


def test_another_artifact_is_another_pod_and_other_replicas_are_not() -> None:
    one, other, more = o.deployment(), o.deployment(digest="sha256:bb"), o.deployment(replicas=5)
    assert (
        one["spec"]["template"] != other["spec"]["template"]
        and one["spec"]["template"] == more["spec"]["template"]
    )


def test_pods_fetch_the_artifact_that_the_revision_names() -> None:
    task = o.task(o.deployment())
    assert task["artifact"]["uri"] == "s3://artifacts/all/ml/key" and task["digest"] == "sha256:aa"
    assert (task["model"], task["number"]) == (o.NAME, 7)


def test_what_pods_fetch_can_be_read_back() -> None:
    task = server.fetch_task(o.deployment())
    assert task is not None and (task.artifact.uri, task.digest, task.serving) == (
        "s3://artifacts/all/ml/key",
        "sha256:aa",
        None,
    )
    assert server.fetch_task({"spec": {"template": {"spec": {}}}}) is None


def test_what_tuning_chose_is_told_to_the_pods_and_can_be_read_back() -> None:
    best = ServingConfig(instances=2, batch=16, queue_delay_us=500)
    tuned = server.server_deployment(o.OWNER, o.VERSION, o.template(), o.ARTIFACT, 2, o.CONFIG, serving=best)
    assert o.task(tuned)["serving"] == {"instances": 2, "batch": 16, "queue_delay_us": 500}
    task = server.fetch_task(tuned)
    assert task is not None and task.serving == best


def test_a_server_beside_a_program_is_that_of_the_pods_without_a_model() -> None:
    serving = Serving.model_validate(
        {
            "resources": {"limits": {"nvidia.com/gpu": 1}},
            "nodeSelector": {"gpu": "h100"},
            "serviceAccountName": "reader",
        }
    )
    frozen = o.template(serving)
    containers = server.beside(frozen, o.VERSION, o.ARTIFACT, o.CONFIG)
    fetch, triton = containers["initContainers"]
    (pods,) = frozen["spec"]["containers"]
    assert fetch == o.pod(o.deployment(frozen))["initContainers"][0]
    assert (triton["image"], triton["resources"]) == (pods["image"], pods["resources"])
    assert [m["mountPath"] for m in triton["volumeMounts"]] == ["/models", "/tmp", "/dev/shm"] and triton[
        "volumeMounts"
    ][0]["readOnly"]
    assert triton["restartPolicy"] == "Always" and "--model-control-mode=explicit" in triton["args"]
    assert not [a for a in triton["args"] if a.startswith("--load-model")], (
        "configurations come from the program"
    )
    assert {f"--{part}-address=127.0.0.1" for part in ("http", "grpc", "metrics")} <= set(triton["args"]), (
        "only the program beside it manages it"
    )
    assert not {"startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "ports"} & set(triton), (
        "no kubelet reaches it there"
    )
    assert (containers["nodeSelector"], containers["serviceAccountName"]) == (
        {"gpu": "h100"},
        "reader",
    ) and "topologySpreadConstraints" not in containers
    assert containers["tolerations"] == frozen["spec"]["tolerations"]


@pytest.mark.parametrize(
    ("resources", "requested"),
    [
        ({}, "50m"),
        ({"requests": {"cpu": "4"}}, "50m"),
        ({"requests": {"cpu": "10m"}, "limits": {"cpu": "1"}}, "10m"),
        ({"limits": {"cpu": "20m"}}, "20m"),  # without a request the limit is one
        ({"requests": {"memory": "1Gi"}}, "50m"),
    ],
)
def test_the_init_container_reserves_no_more_processor_than_the_server(
    resources: dict[str, Any], requested: str
) -> None:
    """The scheduler takes the largest request of a pod's containers, for as long as it lives."""
    fetch = o.container(o.deployment(o.template(serving(resources=resources))), "fetch")
    assert fetch["resources"]["requests"]["cpu"] == requested


# --- probes and drain


def test_probes_ask_for_the_models_own_version() -> None:
    """Readiness of the server is green with no model at all."""
    path = f"/v2/models/{o.NAME}/versions/7/ready"
    container = triton(o.deployment())
    assert (
        container["startupProbe"]["httpGet"]["path"] == container["readinessProbe"]["httpGet"]["path"] == path
    )
    assert "/v2/health/live" in container["livenessProbe"]["exec"]["command"][-1], (
        "a model that cannot load is no reason to kill the server"
    )


@pytest.mark.parametrize(("timeout", "failures"), [("10m", 600), ("90s", 90), ("1.5s", 2), ("0s", 1)])
def test_startup_may_take_as_long_as_it_says(timeout: str, failures: int) -> None:
    probe = triton(o.deployment(o.template(serving(startupTimeout=timeout))))["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] == failures


@pytest.mark.parametrize(
    ("cpu", "cpus"),
    [
        ("500m", "1"),
        ("0.1", "1"),
        ("1", "1"),
        ("1500m", "1"),
        ("2500m", "2"),
        (4, "4"),
        ("10G", "999999"),
        ("0", None),
        (None, None),
    ],
)
def test_the_loader_knows_how_many_cpus_the_server_may_use(cpu: str | int | None, cpus: str | None) -> None:
    """Whole ones: with a thread for a part of one the limit would stop all of them for a while."""
    limits = {"nvidia.com/gpu": 1} | ({} if cpu is None else {"cpu": cpu})
    frozen = o.template(serving(resources={"limits": limits, "requests": {"cpu": "250m"}}))
    [fetch] = frozen["spec"]["initContainers"]
    assert [e["value"] for e in fetch["env"] if e["name"] == CPUS_ENV] == ([] if cpus is None else [cpus])


def test_grace_is_longer_than_drain() -> None:
    """preStop (endpoints forget the pod) + exit timeout (Triton finishes what it holds) + a
    margin.
    """
    spec = o.pod(o.deployment())
    assert triton(o.deployment())["lifecycle"]["preStop"]["sleep"]["seconds"] == 12
    assert "--exit-timeout-secs=40" in triton(o.deployment())["args"]
    assert spec["terminationGracePeriodSeconds"] == 12 + 40 + 6


@pytest.mark.parametrize(
    ("fields", "grace"),
    [
        ({}, 12 + 30 + 6),
        ({"drain": {"exitTimeout": "20s"}}, 12 + 20 + 6),
        ({"drain": {"preStop": "1s", "exitTimeout": "15m"}}, 1 + 30 + 6),
        ({"triton": {"backend": "VLLM"}}, 12 + 30 + 6),
    ],
)
def test_a_version_that_was_proven_worse_has_thirty_seconds_at_most(
    fields: dict[str, Any], grace: int
) -> None:
    made = o.template(serving(**fields))
    assert (
        server.grace_once_proven_worse(made)
        == server.grace_once_proven_worse(server.for_streams(made))
        == grace
    )
    made["spec"]["containers"][0]["args"] = []
    assert server.grace_once_proven_worse(made) is None, "a template of another form"


@pytest.mark.parametrize(
    ("fields", "pre_stop", "exit_timeout"),
    [
        ({"drain": {}}, 12, 40),
        ({"drain": {"preStop": "1500ms"}}, 2, 40),
        ({"drain": {"exitTimeout": "5m"}}, 12, 300),
        ({"drain": {"preStop": "1s", "exitTimeout": "90s"}}, 1, 90),
        # vLLM always streams its answers
        ({"triton": {"backend": "VLLM"}}, 12, 900),
        ({"triton": {"backend": "VLLM"}, "drain": {"exitTimeout": "60s"}}, 12, 60),
    ],
)
def test_a_spec_may_say_how_its_pods_end(fields: dict[str, Any], pre_stop: int, exit_timeout: int) -> None:
    made = o.template(serving(**fields))
    assert server.drain_of(made) == (pre_stop, exit_timeout)
    assert triton(o.deployment(made))["lifecycle"]["preStop"]["sleep"]["seconds"] == pre_stop
    assert o.pod(o.deployment(made))["terminationGracePeriodSeconds"] == pre_stop + exit_timeout + 6


def test_a_model_that_is_found_to_stream_gets_the_time_that_streams_take() -> None:
    frozen = o.template(serving())
    streams = server.for_streams(frozen)
    assert server.drain_of(frozen) == (12, 40), "the frozen one is left alone"
    assert server.drain_of(streams) == (12, 900)
    assert o.pod(o.deployment(streams))["terminationGracePeriodSeconds"] == 12 + 900 + 6
    assert server.streams(o.deployment(streams)) and not server.streams(o.deployment(frozen))
    assert hardening_version(streams, o.NAME) == hardening_version(frozen, o.NAME)
    assert server.for_streams(streams) == streams


def test_what_spec_says_or_an_earlier_operator_froze_is_left() -> None:
    said = o.template(serving(drain={"exitTimeout": "20s"}))
    assert server.for_streams(said) == said
    earlier = json.loads(Path(__file__).with_name("template-builder-2.json").read_text())
    assert server.for_streams(earlier) == earlier, "its pods would be replaced"
    odd = {"metadata": {}, "spec": {"containers": []}}
    assert server.drain_of(odd) is None and server.drain_of({}) is None and server.for_streams(odd) == odd


def test_no_pod_goes_before_another_is_there() -> None:
    assert o.deployment()["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_triton_loads_one_model_from_a_full_configuration() -> None:
    args = triton(o.deployment())["args"]
    assert {
        "--model-repository=/repository",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
    } <= set(args)
    mounts = {m["mountPath"]: m for m in triton(o.deployment())["volumeMounts"]}
    assert mounts[f"/repository/{o.NAME}"]["subPath"] == o.NAME, (
        "with model control none every other entry of the repository would be a model"
    )


def test_shared_memory_is_memory() -> None:
    volumes = {v["name"]: v for v in o.pod(o.deployment())["volumes"]}
    mount = next(m for m in triton(o.deployment())["volumeMounts"] if m["mountPath"] == "/dev/shm")
    assert (
        volumes[mount["name"]]["emptyDir"]["medium"] == "Memory"
        and volumes[mount["name"]]["emptyDir"]["sizeLimit"]
    )


def test_only_the_init_container_has_the_stores_credentials() -> None:
    mounts = {
        c["name"]: [m["name"] for m in c["volumeMounts"] if m["name"].startswith("credentials")]
        for c in o.containers(o.deployment())
    }
    assert mounts == {"triton": [], "fetch": ["credentials-artifacts"]}


# --- placement


@pytest.mark.parametrize(
    ("limits", "tolerated"),
    [({"nvidia.com/gpu": 1}, True), ({"nvidia.com/gpu": "0"}, False), ({"cpu": 4}, False), (None, False)],
)
def test_a_gpus_taint_is_tolerated_only_where_a_gpu_is_asked_for(limits: Any, tolerated: bool) -> None:
    resources = {"limits": limits} if limits else {}
    spec = o.pod(o.deployment(o.template(serving(resources=resources))))
    assert ("tolerations" in spec) is tolerated


def test_the_users_placement_is_taken_as_it_is() -> None:
    mine = {"key": "team", "operator": "Equal", "value": "vision", "effect": "NoSchedule"}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}
    made = serving(
        tolerations=[mine],
        affinity=affinity,
        nodeSelector={"zone": "a"},
        serviceAccountName="identity",
        imagePullSecrets=[{"name": "registry"}],
        triton={"image": "example/own-triton:3"},
    )
    spec = o.pod(o.deployment(o.template(made)))
    usual = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert (
        spec["tolerations"] == [mine, usual]
        and spec["affinity"] == affinity
        and spec["nodeSelector"] == {"zone": "a"}
    )
    assert spec["serviceAccountName"] == "identity" and spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["containers"][0]["image"] == "example/own-triton:3"
    assert made.tolerations == [mine], "the user's list is not changed"


def test_a_toleration_is_not_given_twice() -> None:
    usual = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert o.pod(o.deployment(o.template(serving(tolerations=[usual]))))["tolerations"] == [usual]


# --- who selects whom


def selects(selector: dict[str, str], obj: o.Object) -> bool:
    return selector.items() <= obj["spec"]["template"]["metadata"]["labels"].items()


def test_selectors_meet_the_pods_of_their_revision_and_no_job() -> None:
    mine = [
        o.deployment()["spec"]["selector"]["matchLabels"],
        server.revision_service(o.OWNER, o.NAME, 7)["spec"]["selector"],
        server.stable_service(o.DEPLOYMENT, o.REVISION)["spec"]["selector"],
        server.stable_service(o.DEPLOYMENT, None)["spec"]["selector"],
        server.disruption_budget(o.DEPLOYMENT, o.REVISION)["spec"]["selector"]["matchLabels"],
        server.canary_budget(o.OWNER, o.NAME, 7)["spec"]["selector"]["matchLabels"],
    ]
    for selector in mine:
        assert selects(selector, o.deployment())
        assert not any(selects(selector, job) for job in (o.resolve(), o.prepare(), o.evaluate()))


def test_only_the_service_of_all_revisions_meets_another_revision() -> None:
    other = o.deployment()
    other["spec"]["template"] = {
        "metadata": {"labels": o.template()["metadata"]["labels"] | {names.LABEL_REVISION: "digits-2"}}
    }
    assert selects(server.stable_service(o.DEPLOYMENT, None)["spec"]["selector"], other)
    assert not selects(server.stable_service(o.DEPLOYMENT, o.REVISION)["spec"]["selector"], other)
    assert not selects(server.revision_service(o.OWNER, o.NAME, 7)["spec"]["selector"], other)


def test_services_name_the_ports_of_the_pods_and_grpc_is_http2() -> None:
    ports = {p["name"]: p for p in server.revision_service(o.OWNER, o.NAME, 7)["spec"]["ports"]}
    inside = {p["name"]: p["containerPort"] for p in triton(o.deployment())["ports"]}
    assert {p["targetPort"] for p in ports.values()} <= set(inside)
    assert (ports["http"]["port"], ports["grpc"]["port"], ports["grpc"]["appProtocol"]) == (
        8000,
        8001,
        "kubernetes.io/h2c",
    )


def test_prometheus_finds_the_metrics_and_the_revision() -> None:
    metadata = o.deployment()["spec"]["template"]["metadata"]
    assert (
        metadata["annotations"]["prometheus.io/port"] == "8002"
        and metadata["labels"][names.LABEL_REVISION] == o.REVISION
    )


def test_the_budget_lets_drains_through_one_by_one() -> None:
    assert server.disruption_budget(o.DEPLOYMENT, o.REVISION)["spec"]["maxUnavailable"] == 1


def test_a_canary_that_never_gets_ready_holds_up_no_drain() -> None:
    budget = server.canary_budget(o.OWNER, o.NAME, 7)
    assert budget["metadata"]["name"] == o.REVISION
    assert budget["spec"] == {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": server.server_selector(o.NAME, o.REVISION)},
    }


def test_servers_read_with_a_secret_of_their_own_and_jobs_write() -> None:
    def secrets(obj: o.Object) -> set[str]:
        return {
            v["secret"]["secretName"] for v in o.pod(obj)["volumes"] if v["name"] == "credentials-artifacts"
        }

    store = o.CONFIG.artifacts.model_copy(update={"read_secret_name": "s3-artifact-reader"})
    apart = o.CONFIG.model_copy(update={"artifacts": store})
    assert (
        secrets(o.deployment(o.template(config=apart), config=apart)) == {"s3-artifact-reader"}
        and not store.servers_can_write
    )
    assert secrets(o.prepare(config=apart)) == {"s3-writer"}
    assert secrets(o.deployment()) == {"s3-writer"} and o.CONFIG.artifacts.servers_can_write
    task = [container["env"] for container in o.pod(o.deployment(config=apart))["initContainers"]]
    assert task == [container["env"] for container in o.pod(o.deployment())["initContainers"]], (
        "no pod that runs is restarted for it"
    )


def test_the_stores_secret_comes_and_goes_in_the_configuration_and_no_pod_of_a_frozen_template_is_changed() -> (  # noqa: E501
    None
):
    """A pod has the Secret that was configured when its template was frozen. Told of one that came
    later it would look for it in vain.
    """
    without = o.CONFIG.model_copy(
        update={"artifacts": o.CONFIG.artifacts.model_copy(update={"secret_name": None})}
    )
    for then in (o.CONFIG, without):
        frozen = o.template(config=then)
        assert o.deployment(frozen, o.CONFIG) == o.deployment(frozen, without)
    assert (
        o.task(o.deployment(o.template(config=o.CONFIG), without))["artifact"]["credentials"] == "artifacts"
    )
    assert "credentials" not in o.task(o.deployment(o.template(config=without), o.CONFIG))["artifact"]
