"""What is there before the story begins: the operator by its chart, the models and data in the
store, the user's Secret and service account.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from demo.cluster import RELEASE, SYSTEM_NAMESPACE, Cluster, Object, secret
from demo.target import Target
from demo.train import VERSIONS, Models

CHART = Path(__file__).resolve().parents[2] / "charts" / "model-rollout-operator"
NAMESPACE = "modelrollout-demo"
NAME = "digits"
SECRET = "object-store"
PROMETHEUS = "main"
CLIENT_ACCOUNT = "digits-client"
FEEDBACK_ROLE = "modelrollout-feedback"
HTTP_HOST = "digits.demo.example"
GRPC_HOST = "digits-grpc.demo.example"
OBJECTIVE = "50ms"


def chart_values(target: Target) -> dict[str, Any]:
    """Values of the chart for this cluster: two replicas and the chart's default RBAC."""
    s3 = {
        "endpoint": target.store.endpoint_in_cluster,
        "region": target.store.region,
        "allowHttp": target.store.endpoint_in_cluster.startswith("http:"),
        "secretName": SECRET,
    }
    return {
        "image": _image(target.images.operator),
        "optimizer": {"image": _image(target.images.optimizer)},
        **{flavour: {"image": _image(name)} for flavour, name in target.images.flavours.items()},
        "triton": {"image": target.images.triton},
        "stores": [
            {"name": name, "uri": f"s3://{bucket}/", **s3}
            for name, bucket in (("models", target.store.models), ("data", target.store.data))
        ],
        "artifacts": {"name": "artifacts", "uri": f"s3://{target.store.artifacts}/", **s3},
        "prometheus": [{"name": PROMETHEUS, "url": target.prometheus}],
        "gatewayMetrics": {
            "provider": PROMETHEUS,
            "selector": target.gateway.metrics_selector,
            "namespaces": target.gateway.metrics_namespaces,
        },
        "shadow": {"traefik": target.gateway.traefik_services},
        "routes": {"backendTrafficPolicies": target.gateway.envoy_gateway},
        # An image that changed under the same name must restart the pods.
        "podAnnotations": {"demo/images": target.revision},
    }


def _image(name: str) -> dict[str, str]:
    repository, _, tag = name.rpartition(":")
    return {"repository": repository, "tag": tag}


def install_operator(cluster: Cluster, folder: Path) -> None:
    """Install or upgrade the release and wait until both replicas are ready."""
    values = folder / "chart-values.yaml"
    values.write_text(yaml.safe_dump(chart_values(cluster.target)))
    where = ["--namespace", SYSTEM_NAMESPACE, "--create-namespace"]
    cluster.helm(
        "upgrade",
        "--install",
        RELEASE,
        str(CHART),
        *where,
        "--values",
        str(values),
        "--wait",
        "--timeout",
        "3m",
    )


def upload(cluster: Cluster, models: Models) -> None:
    """Models to s3://models/digits/VERSION/model.onnx, data to s3://data/digits/NAME.npz."""
    store = cluster.target.store
    cluster.upload(store.models, {model_key(version): models.model(version) for version in VERSIONS})
    cluster.upload(
        store.data, {f"{NAME}/{name}.npz": models.data(name) for name in ("calibration", "heldout", "golden")}
    )


def model_key(version: str) -> str:
    return f"{NAME}/{version}/model.onnx"


def prepare_namespace(cluster: Cluster, namespace: str = NAMESPACE) -> None:
    """An empty namespace with the store's Secret and the client's service account, which may send
    feedback.
    """
    cluster.fresh_namespace(namespace)
    store = cluster.target.store
    keys = {"AWS_ACCESS_KEY_ID": store.access_key, "AWS_SECRET_ACCESS_KEY": store.secret_key}
    about = {"name": CLIENT_ACCOUNT, "namespace": namespace}
    cluster.apply(
        secret(namespace, SECRET, keys),
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": about},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": about,
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": FEEDBACK_ROLE,
            },
            "subjects": [{"kind": "ServiceAccount", **about}],
        },
    )


def model_uri(target: Target, version: str) -> str:
    return f"s3://{target.store.models}/{model_key(version)}"


def model_deployment(target: Target, version: str) -> Object:
    """The one object that the story is about."""
    data = f"s3://{target.store.data}/{NAME}"
    return {
        "apiVersion": "modelrollout.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "model": {"uri": model_uri(target, version)},
            "optimization": {
                "steps": [{"int8": {"method": "Static", "calibration": {"uri": f"{data}/calibration.npz"}}}],
                "gate": {
                    "data": {"uri": f"{data}/heldout.npz"},
                    "metrics": [{"name": "accuracy", "maxDrop": 0.01}],
                },
            },
            "serving": {
                "replicas": 2,
                "resources": {
                    "limits": {"nvidia.com/gpu": 1, "cpu": "1", "memory": "1Gi"},
                    "requests": {"cpu": "100m", "memory": "192Mi"},
                },
            },
            "traffic": {
                "gateway": {"name": target.gateway.name, "namespace": target.gateway.namespace},
                "http": {"hostnames": [HTTP_HOST]},
                "grpc": {"hostnames": [GRPC_HOST]},
            },
            "rollout": {
                # The first step is small: at 5 % of the traffic even v4 keeps up with it on a
                # fraction of a core, so that no request times out.
                "canary": {"steps": [{"weight": 5}, {"weight": 25}, {"weight": 60}]},
                "analysis": {
                    "prometheus": PROMETHEUS,
                    "interval": "3s",
                    "initialDelay": "5s",  # the models are small, and the story has seven versions
                    "golden": {"uri": f"{data}/golden.npz", "maxDrop": 0.02},
                    "metrics": [
                        {"name": "accuracy", "maxDrop": 0.03},
                        {"name": "errors", "maxIncrease": 0.02},
                        # A wide margin: all of this shares two cores, and a passing hiccup is no
                        # slow model.
                        {"name": "latency", "objective": OBJECTIVE, "maxIncrease": 0.2},
                    ],
                },
                "progressDeadline": "5m",
            },
            # All versions of the story stay, so that the last chapter can go back to the first.
            "revisionHistoryLimit": 10,
        },
    }
