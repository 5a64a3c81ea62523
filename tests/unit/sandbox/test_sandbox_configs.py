"""What the parts are started with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox import __main__ as commands
from sandbox import addons, build_images, configs, envoy, pins
from sandbox.cluster import SandboxError
from sandbox.configs import Config, Options
from sandbox.paths import State
from sandbox.slots import NODES, Slot


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        state=State(tmp_path / "abc123"),
        slot=Slot(3),
        binaries={p.name: Path("/cache") / p.name for p in pins.PARTS},
        python="/usr/bin/python3",
        source=tmp_path,
        access_key="KEY",
        secret_key="SECRET",
        options=Options(gpus=4, gpu_product="Some-GPU", scrape_interval="5s"),
    )


def test_every_part_that_is_started_has_a_command(config: Config) -> None:
    assert set(configs.parts(config)) == {*configs.ORDER, *configs.ADDONS}


def test_every_config_file_named_in_a_command_is_written(config: Config) -> None:
    written = {str(p) for p in configs.files(config)}
    for part in configs.parts(config).values():
        for word in part["argv"]:
            path = word.partition("=")[2] or word
            if path.startswith(str(config.state.etc)):
                assert path in written


def test_nothing_of_one_sandbox_names_another_slot(config: Config) -> None:
    text = "\n".join(configs.files(config).values())
    for foreign in (Slot(2), Slot(4)):
        assert foreign.infra not in text
        assert foreign.pods not in text
        assert foreign.services not in text


def test_the_secret_key_is_in_no_command_line(config: Config) -> None:
    assert not any("SECRET" in word for part in configs.parts(config).values() for word in part["argv"])


def test_kubelets_do_not_meet(config: Config) -> None:
    gpu, cpu = (configs.kubelet(config, n) for n in NODES)
    for key in (
        "cgroupRoot",
        "address",
        "healthzPort",
        "containerRuntimeEndpoint",
        "podLogsDir",
        "volumePluginDir",
    ):
        assert gpu[key] != cpu[key], key
    roots = [
        next(w for w in configs.parts(config)[f"kubelet-{n}"]["argv"] if w.startswith("--root-dir="))
        for n in NODES
    ]
    assert len(set(roots)) == 2


def test_only_the_gpu_node_is_tainted_and_labelled(config: Config) -> None:
    assert configs.kubelet(config, "gpu")["registerWithTaints"] == [
        {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    ]
    assert configs.kubelet(config, "cpu")["registerWithTaints"] == []
    labels = {n: " ".join(configs.parts(config)[f"kubelet-{n}"]["argv"]) for n in NODES}
    assert "nvidia.com/gpu.product=Some-GPU" in labels["gpu"]
    assert "nvidia.com" not in labels["cpu"]


def test_nothing_is_written_outside_the_state_folder(config: Config) -> None:
    """Fixed paths belong to the machine; what can be told where to write is told."""
    text = configs.containerd(config, "gpu")
    for key in ("root", "state", "address", "path", "conf_dir"):
        values = [
            line.partition("=")[2].strip(' "') for line in text.splitlines() if line.startswith(f"{key} =")
        ]
        assert values, key
        assert all(v.startswith(str(config.state.root)) for v in values), key
    assert configs.cni(config, "gpu")["plugins"][0]["ipam"]["dataDir"].startswith(str(config.state.root))


def test_containerd_can_start_pods_without_the_right_to_lower_oom_scores(config: Config) -> None:
    assert "restrict_oom_score_adj = true" in configs.containerd(config, "cpu")


def test_the_audit_log_is_whole_and_bounded(config: Config) -> None:
    argv = configs.parts(config)["apiserver"]["argv"]
    assert f"--audit-log-path={config.state.audit}" in argv
    assert any(w.startswith("--audit-log-maxsize=") for w in argv)
    assert configs.audit_policy()["rules"] == [{"level": "Metadata"}]
    assert configs.audit_policy()["omitStages"] == ["RequestReceived"]


def test_prometheus_maps_our_labels(config: Config) -> None:
    pods = next(j for j in configs.prometheus(config)["scrape_configs"] if j["job_name"] == "pods")
    mapped = {r["target_label"]: r["source_labels"] for r in pods["relabel_configs"] if "target_label" in r}
    assert mapped["modeldeployment"] == ["__meta_kubernetes_pod_label_modelrollout_dev_name"]
    assert mapped["revision"] == ["__meta_kubernetes_pod_label_modelrollout_dev_revision"]
    assert {"namespace", "pod"} <= set(mapped)
    assert configs.prometheus(config)["global"]["scrape_interval"] == "5s"


def test_prometheus_reads_the_file_that_discovery_writes(config: Config) -> None:
    pods = next(j for j in configs.prometheus(config)["scrape_configs"] if j["job_name"] == "pods")
    assert pods["file_sd_configs"][0]["files"] == [configs.parts(config)["discovery"]["argv"][-1]]


def test_the_gateways_buckets_begin_below_a_millisecond_call(config: Config) -> None:
    flag = next(f for f in configs.traefik_flags(config) if f.startswith("--metrics.prometheus.buckets="))
    assert flag.endswith("=0.001,0.0025,0.005,0.01,0.025,0.05,0.1,0.25,0.5,1,2.5")


def test_the_listeners_port_is_the_entry_points(config: Config) -> None:
    port = next(o for o in addons.gateway() if o["kind"] == "Gateway")["spec"]["listeners"][0]["port"]
    assert f"--entrypoints.web.address={config.slot.infra}:{port}" in configs.traefik_flags(config)


def test_processes_have_names_in_the_cluster(config: Config) -> None:
    actual = {
        (o["metadata"]["namespace"], o["metadata"]["name"]): o
        for o in addons.base(config)
        if o["kind"] == "Service"
    }
    assert {
        ("monitoring", "prometheus"),
        ("storage", "objectstore"),
        ("gateways", "traefik"),
        ("kube-system", "kube-dns"),
    } == set(actual)
    assert actual["kube-system", "kube-dns"]["spec"]["clusterIP"] == config.slot.dns_service
    slices = [o for o in addons.base(config) if o["kind"] == "EndpointSlice"]
    assert all(o["endpoints"][0]["addresses"] == [config.slot.infra] for o in slices)


def test_envoy_is_only_there_where_it_is_asked_for(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [part for part in configs.parts(config) if "envoy" in part]
    assert not {part.name for part in pins.PARTS} & {pins.ENVOY_GATEWAY_PART.name}
    for variable, gateway in ((None, "traefik"), ("envoy", "envoy")):
        monkeypatch.delenv("GATEWAY", raising=False)
        if variable:
            monkeypatch.setenv("GATEWAY", variable)
        assert commands.parser().parse_args(["up"]).gateway == gateway
    assert commands.parser().parse_args(["up", "--gateway", "traefik"]).gateway == "traefik"


def test_a_gateway_that_is_unknown_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY", "evnoy")
    with pytest.raises(SandboxError, match=r"'evnoy': set it to one of traefik, envoy"):
        commands.up(commands.parser().parse_args(["up"]))


def test_every_pod_of_envoy_gateway_has_the_sandboxs_image() -> None:
    values = envoy.chart_values()
    provider = values["config"]["envoyGateway"]["provider"]["kubernetes"]
    objects = {o["kind"]: o for o in envoy.gateway()}
    container = objects["EnvoyProxy"]["spec"]["provider"]["kubernetes"]["envoyDeployment"]["container"]
    assert {
        values["global"]["images"]["envoyGateway"]["image"],
        provider["shutdownManager"]["image"],
        container["image"],
    } == {build_images.ENVOY}


def test_envoys_gateway_is_of_the_class_with_that_proxy() -> None:
    objects = {o["kind"]: o for o in envoy.gateway()}
    proxy, of_class, gateway = (objects[kind] for kind in ("EnvoyProxy", "GatewayClass", "Gateway"))
    assert of_class["spec"]["parametersRef"] == {
        "group": "gateway.envoyproxy.io",
        "kind": proxy["kind"],
        **proxy["metadata"],
    }
    assert gateway["spec"]["gatewayClassName"] == of_class["metadata"]["name"] != addons.GATEWAY_CLASS
    assert (gateway["metadata"]["namespace"], gateway["metadata"]["name"]) == envoy.GATEWAY != addons.GATEWAY
    assert (
        of_class["spec"]["controllerName"]
        == envoy.chart_values()["config"]["envoyGateway"]["gateway"]["controllerName"]
    )


def test_the_address_of_envoy_is_what_its_gateway_states() -> None:
    stated = {"status": {"addresses": [{"type": "IPAddress", "value": "10.96.0.7"}]}}
    described = envoy.described(stated)
    assert described is not None and described["address"] == "10.96.0.7:8080"
    assert envoy.described({}) is envoy.described({"status": {"addresses": []}}) is None


def test_files_that_are_yaml_or_json_parse(config: Config) -> None:
    parsed: list[Any] = []
    for path, text in configs.files(config).items():
        if path.suffix == ".yaml":
            parsed.append(yaml.safe_load(text))
        elif path.suffix in {".json", ".conflist"}:
            parsed.append(json.loads(text))
    assert all(parsed)
