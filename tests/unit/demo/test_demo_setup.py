from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from demo import DemoError, setup
from demo.target import from_file, sandbox_gateway
from modelrollout.api.v1alpha1 import ModelDeploymentSpec
from modelrollout.config import OperatorConfig
from tests.unit.demo.demo_operator import target


def test_the_operator_knows_every_field_of_the_object() -> None:
    spec = ModelDeploymentSpec.model_validate(setup.model_deployment(target(), "v3")["spec"])
    assert spec.model.uri == "s3://models/digits/v3/model.onnx"
    assert spec.rollout.analysis.golden is not None and spec.optimization.gate is not None
    assert spec.revision_history_limit >= 7, "the last chapter goes back to the first version"


def test_versions_differ_in_nothing_but_the_model() -> None:
    one, two = (setup.model_deployment(target(), v) for v in ("v1", "v2"))
    one["spec"]["model"]["uri"] = two["spec"]["model"]["uri"]
    assert one == two


def test_the_operator_may_read_what_the_object_names() -> None:
    values = setup.chart_values(target())
    config = OperatorConfig.model_validate(
        {
            "images": {"optimizer": "o", "triton": "t"},
            **{k: values[k] for k in ("stores", "artifacts", "prometheus", "gatewayMetrics")},
        }
    )
    spec = ModelDeploymentSpec.model_validate(setup.model_deployment(target(), "v1")["spec"])
    golden = spec.rollout.analysis.golden
    assert golden is not None
    for uri in (spec.model.uri, golden.uri):
        store = config.store_for(uri)
        assert store is not None and store.secret_name == setup.SECRET and store.allow_http
    assert config.provider_for(spec.rollout.analysis.prometheus) is not None


def test_a_registry_with_a_port_keeps_its_tag() -> None:
    assert (
        setup.chart_values(target())["image"]["repository"]
        == "registry.test:5000/models/modelrollout-operator"
    )
    assert setup.chart_values(target())["image"]["tag"] == "dev"


def test_a_cluster_of_ones_own_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "target.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "gateway": {
                    "name": "public",
                    "namespace": "edge",
                    "http": "192.0.2.7:80",
                    "grpc": "192.0.2.7:81",
                },
                "store": {
                    "endpoint": "http://192.0.2.8",
                    "endpointInCluster": "http://s3",
                    "accessKey": "a",
                    "secretKey": "b",
                    "models": "m",
                },
                "prometheus": "http://prometheus",
                "images": {"triton": "other/triton:1"},
            }
        )
    )
    target = from_file(path, None, "mine", "registry.test/x")
    assert target.context == "mine" and target.gateway.grpc == "192.0.2.7:81" and target.store.models == "m"
    assert (
        target.images.triton == "other/triton:1"
        and target.images.operator == "registry.test/x/modelrollout-operator:dev"
    )


def test_what_is_missing_in_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "target.yaml"
    path.write_text("gateway: {name: public}\n")
    with pytest.raises(DemoError, match=r"gateway\.namespace: Field required"):
        from_file(path, None, "mine", "registry.test")


STATUS: dict[str, Any] = {
    "gateway": {"name": "public", "namespace": "gateways", "address": "10.0.0.1:8080"},
    "envoy": {
        "name": "envoy",
        "namespace": "gateways",
        "address": "10.96.0.7:8080",
        "proxies": "envoy-gateway-system",
    },
}


def test_the_sandbox_has_two_gateways_each_with_its_own_counters() -> None:
    traefik, envoy = (sandbox_gateway(STATUS, which) for which in ("traefik", "envoy"))
    assert (traefik.name, traefik.http, traefik.traefik_services) == ("public", "10.0.0.1:8080", True)
    assert (envoy.name, envoy.grpc, envoy.traefik_services) == ("envoy", "10.96.0.7:8080", False)
    assert (traefik.envoy_gateway, envoy.envoy_gateway) == (False, True)
    assert traefik.metrics_selector == 'job="traefik"' and traefik.metrics_namespaces == []
    assert envoy.metrics_selector == 'namespace="envoy-gateway-system"'
    assert envoy.metrics_namespaces == ["envoy-gateway-system"]


def test_a_gateway_that_is_not_there_is_named_with_the_remedy() -> None:
    with pytest.raises(DemoError, match="GATEWAY=envoy make sandbox-up"):
        sandbox_gateway(STATUS | {"envoy": None}, "envoy")
    with pytest.raises(DemoError, match="'evnoy': set it to traefik or envoy"):
        sandbox_gateway(STATUS, "evnoy")
