"""Where the story is played: the sandbox of this checkout, or a cluster of one's own, described by
a file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from demo import DemoError

SANDBOX_REGISTRY = "localhost"
IMAGES = {
    "operator": "modelrollout-operator:dev",
    "optimizer": "modelrollout-optimizer:dev",
    "triton": "tritonserver-cpu:0.7.0",
}
# of the optimizer; the story needs none, the end-to-end tests do
FLAVOURS = ("trainer", "trees", "tensorflow", "pytorch")


class _Part(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class Gateway(_Part):
    """The Gateway that carries the traffic, and where this machine reaches it."""

    name: str
    namespace: str
    http: str = Field(description="HOST:PORT for HTTP, from here")
    grpc: str = Field(description="HOST:PORT for gRPC (h2c), from here")
    metrics_selector: str = Field(
        "", description="gatewayMetrics.selector of the chart: whose counters are the gateway's"
    )
    metrics_namespaces: list[str] = Field(
        default_factory=list, description="where its pods run, if they are the cluster's"
    )
    traefik_services: bool = Field(
        False, description="it is Traefik with providers.kubernetesCRD: it mirrors by its own TraefikService"
    )
    envoy_gateway: bool = Field(
        False, description="it is Envoy Gateway: sessions stick by its BackendTrafficPolicies"
    )


class Store(_Part):
    """An S3 store. Keys left out come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."""

    endpoint: str = Field(description="from here")
    endpoint_in_cluster: str
    region: str = "us-east-1"
    access_key: str = Field(default_factory=lambda: os.environ.get("AWS_ACCESS_KEY_ID", ""))
    secret_key: str = Field(default_factory=lambda: os.environ.get("AWS_SECRET_ACCESS_KEY", ""))
    models: str = Field("models", description="bucket")
    data: str = Field("data", description="bucket")
    artifacts: str = Field("artifacts", description="bucket")


class Images(_Part):
    """Full names of the images."""

    operator: str
    optimizer: str
    triton: str
    flavours: dict[str, str] = Field(
        default_factory=dict, description="of the optimizer, by their section of the chart's values"
    )

    @classmethod
    def of(cls, registry: str) -> Images:
        named = {part: f"{registry}/{name}" for part, name in IMAGES.items()}
        return cls.model_validate(
            {**named, "flavours": {flavour: f"{registry}/modelrollout-{flavour}:dev" for flavour in FLAVOURS}}
        )


class Target(_Part):
    """Everything about the cluster that the story needs to know."""

    gateway: Gateway
    store: Store
    prometheus: str = Field(
        description="URL from inside the cluster; it must scrape annotated pods and the gateway"
    )
    images: Images
    feedback: str | None = Field(
        None, description="URL of the feedback service from here; left out: its ClusterIP"
    )
    audit_log: Path | None = None
    # Not in the file: how to get there.
    kubeconfig: Path | None = Field(None, exclude=True)
    context: str | None = Field(None, exclude=True)
    path: str = Field(
        default_factory=lambda: os.environ.get("PATH", ""),
        exclude=True,
        description="where kubectl and helm are",
    )
    revision: str = Field("", exclude=True, description="changes when an image does while its name does not")

    def environment(self) -> dict[str, str]:
        """For kubectl, helm and modelrollout."""
        extra = {"KUBECONFIG": str(self.kubeconfig)} if self.kubeconfig else {}
        return {**os.environ, "PATH": self.path, **extra}

    def tool(self, name: str) -> str:
        path = shutil.which(name, path=self.path)
        if path is None:
            raise DemoError(
                f"{name} is not on the PATH; install it, or run the demo on the sandbox, which brings its own"
            )
        return path


def sandbox(kubeconfig: Path | None, registry: str | None) -> Target:
    """The sandbox of this checkout, as ``python -m sandbox status --json`` describes it; with
    ``GATEWAY=envoy`` behind its Envoy Gateway.
    """
    ran = _sandbox("status", "--json")
    try:
        status = json.loads(ran.stdout)
    except ValueError:
        status = {"running": False}
    if not status.get("running"):
        raise DemoError("no sandbox runs for this checkout; bring it up with: make sandbox-up")
    if not status.get("healthy"):
        raise DemoError(f"the sandbox is not healthy: {status.get('health')}; see: make sandbox-status")
    keys = json.loads(Path(status["objectstore"]["keys_file"]).read_text())
    store = status["objectstore"]
    return Target(
        gateway=sandbox_gateway(status, os.environ.get("GATEWAY", "traefik")),
        store=Store(
            endpoint=store["endpoint"],
            endpoint_in_cluster=store["endpoint_in_cluster"],
            region=store["region"],
            access_key=keys["access_key"],
            secret_key=keys["secret_key"],
        ),
        prometheus=status["prometheus"]["in_cluster"],
        images=Images.of(registry or SANDBOX_REGISTRY),
        audit_log=Path(status["audit_log"]),
        kubeconfig=kubeconfig or Path(status["kubeconfig"]),
        path=_sandbox("exec", "--", "printenv", "PATH").stdout.strip(),
        revision=_revision(status["images"]),
    )


def sandbox_gateway(status: dict[str, Any], which: str) -> Gateway:
    """One of the two Gateways that a sandbox can have."""
    if which == "traefik":
        at: dict[str, Any] | None = status["gateway"]
        # a job of its own, and no pod's label becomes job
        counted: dict[str, Any] = {"metrics_selector": 'job="traefik"', "traefik_services": True}
    elif which == "envoy":
        at = status["envoy"]
        proxies = at["proxies"] if at else ""
        counted = {
            "metrics_selector": f'namespace="{proxies}"',
            "metrics_namespaces": [proxies],
            "envoy_gateway": True,
        }
    else:
        raise DemoError(f"GATEWAY is {which!r}: set it to traefik or envoy, or unset it")
    if at is None:
        raise DemoError("the sandbox has no Envoy Gateway; add it with: GATEWAY=envoy make sandbox-up")
    where = {"name": at["name"], "namespace": at["namespace"], "http": at["address"], "grpc": at["address"]}
    return Gateway.model_validate({**where, **counted})


def from_file(path: Path, kubeconfig: Path | None, context: str | None, registry: str | None) -> Target:
    """A cluster of one's own; docs/how-to/demo.md explains the file."""
    try:
        raw: Any = yaml.safe_load(path.read_text())
        if isinstance(raw, dict) and registry:
            raw = {**raw, "images": {**Images.of(registry).model_dump(), **raw.get("images", {})}}
        target = Target.model_validate(raw)
    except (OSError, yaml.YAMLError) as e:
        raise DemoError(f"{path}: {e}") from e
    except ValidationError as e:
        lines = "; ".join(f"{'.'.join(map(str, err['loc']))}: {err['msg']}" for err in e.errors())
        raise DemoError(f"{path}: {lines}; docs/how-to/demo.md explains the file") from e
    return target.model_copy(update={"kubeconfig": kubeconfig, "context": context})


def _sandbox(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sandbox", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _revision(images: dict[str, dict[str, str]]) -> str:
    """The contents of the project's own images on the nodes."""
    own = sorted(
        {
            f"{name}@{digest}"
            for node in images.values()
            for name, digest in node.items()
            if "modelrollout-" in name
        }
    )
    return " ".join(own)
