"""What a run creates: the platform once, and N models."""

from __future__ import annotations

import hashlib
from typing import Any

from modelrollout.kube.kinds import GATEWAY, GATEWAY_CLASS, MODEL_DEPLOYMENT, NAMESPACE, Resource
from modelrollout.kube.objects import Object

CONTROLLER = "traefik.io/gateway-controller"  # whose counters the Prometheus that is played has
OPERATORS, GATEWAYS = "operators", "gateways"
NAMESPACES = 10
OBJECTIVE_SECONDS = 0.05  # of latency; a bucket bound of the Prometheus that is played


def platform() -> list[tuple[Resource, Object]]:
    """Namespaces, and a Gateway that takes every route."""
    tenants = [namespace_of(i) for i in range(NAMESPACES)]
    listener = {
        "name": "http",
        "port": 80,
        "protocol": "HTTP",
        "allowedRoutes": {"namespaces": {"from": "All"}},
    }
    return [
        *((NAMESPACE, an_object(NAMESPACE, n)) for n in (OPERATORS, GATEWAYS, *tenants)),
        (GATEWAY_CLASS, an_object(GATEWAY_CLASS, "simple", spec={"controllerName": CONTROLLER})),
        (
            GATEWAY,
            an_object(
                GATEWAY, "public", GATEWAYS, spec={"gatewayClassName": "simple", "listeners": [listener]}
            ),
        ),
    ]


def model(i: int, version: int = 1) -> Object:
    """The i-th ModelDeployment: defaults, but for a canary of one weight, a pause of five seconds,
    and two queries.
    """
    objective = f"{round(OBJECTIVE_SECONDS * 1000)}ms"
    return an_object(
        MODEL_DEPLOYMENT,
        f"model-{i}",
        namespace_of(i),
        spec={
            **source(i, version),
            "serving": {"resources": {"limits": {"nvidia.com/gpu": 1}}},
            "traffic": {
                "gateway": {"name": "public", "namespace": GATEWAYS},
                "http": {"hostnames": [f"model-{i}.fleet.example"]},
            },
            "rollout": {
                "canary": {"steps": [{"weight": 50}, {"pause": {"duration": "5s"}}]},
                "analysis": {
                    "initialDelay": "0s",
                    "metrics": [
                        {"name": "errors", "maxIncrease": 0.005},
                        {"name": "latency", "maxIncrease": 0.005, "objective": objective},
                    ],
                },
            },
        },
    )


def source(i: int, version: int) -> dict[str, Any]:
    """The part of the spec that says which version."""
    return {"model": {"uri": f"s3://models/model-{i}/v{version}/model.onnx"}}


def sha256(uri: str) -> str:
    """Digest of the file that the world has there."""
    return hashlib.sha256(uri.encode()).hexdigest()


def configuration(prometheus: str) -> dict[str, Any]:
    """The operator's: defaults."""
    return {
        "stores": [{"name": "models", "uri": "s3://models"}],
        "artifacts": {"name": "artifacts", "uri": "s3://artifacts"},
        "images": {"optimizer": "example/optimizer:1", "triton": "example/triton:1"},
        "prometheus": [{"name": "main", "url": prometheus}],
    }


def is_done(deployment: Object, version: int) -> bool:
    """Whether the version is stable, and nothing is left to do for the spec."""
    status = deployment.get("status") or {}
    return (
        status.get("phase") == "Stable"
        and status.get("observedGeneration") == deployment["metadata"]["generation"]
        and (status.get("stable") or {}).get("number") == version
    )


def namespace_of(i: int) -> str:
    """Of the i-th object."""
    return f"team-{i % NAMESPACES}"


def an_object(resource: Resource, name: str, namespace: str | None = None, **parts: Any) -> Object:
    """``parts``: beside kind and metadata."""
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, **parts}
