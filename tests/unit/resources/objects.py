"""Every object that the operator makes, of a ModelDeployment with the longest name allowed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from modelrollout.api import names
from modelrollout.api.v1alpha1 import Data, Golden, Model, Optimization, Serving, Traffic, Tune
from modelrollout.config import (
    ArtifactStoreConfig,
    DrainConfig,
    ImagesConfig,
    NetworkPoliciesConfig,
    OperatorConfig,
    Peers,
    PeersAtPorts,
    StoreConfig,
)
from modelrollout.resources import network_policies, server
from modelrollout.resources.common import Object, Owner
from modelrollout.resources.jobs.common import JobContext
from modelrollout.resources.jobs.evaluate import ask_job, evaluate_job
from modelrollout.resources.jobs.prepare import prepare_job
from modelrollout.resources.jobs.resolve import resolve_job
from modelrollout.resources.jobs.tune import tune_job
from modelrollout.traffic.gateway_api import routes

NAME = "m" + "x" * 38 + "9"  # 40 characters
SHA = "ab" * 32
CONFIG = OperatorConfig(
    stores=[
        StoreConfig(
            name="models",
            uri="s3://models",
            endpoint="http://s3:9000",
            region="eu",
            allow_http=True,
            secret_name="s3-reader",
        ),
        StoreConfig(name="open", uri="https://open.example.com"),
    ],
    artifacts=ArtifactStoreConfig(
        name="artifacts", uri="s3://artifacts/all", endpoint="http://s3:9000", secret_name="s3-writer"
    ),
    images=ImagesConfig(
        optimizer="example/optimizer@sha256:1",
        trainer="example/trainer@sha256:3",
        triton="example/triton@sha256:2",
        pull_policy="Always",
    ),
    drain=DrainConfig(pre_stop_seconds=12, exit_timeout_seconds=40, margin_seconds=6),
)
POLICIES = NetworkPoliciesConfig(
    mode="Write",
    proxies=Peers(namespaces=["gateways"]),
    prometheus=Peers(namespaces=["monitoring"]),
    stores=[PeersAtPorts(addresses=["0.0.0.0/0"])],
)
MODEL = Model.model_validate({"uri": "s3://models/digits/v1.onnx"})
SERVING = Serving.model_validate({"resources": {"limits": {"nvidia.com/gpu": 1}}})
OPTIMIZATION = Optimization.model_validate(
    {
        "steps": [
            {
                "int8": {
                    "method": "Static",
                    "calibration": {
                        "uri": "s3://models/c.npz",
                        "credentials": {"secretRef": {"name": "mine"}},
                    },
                }
            }
        ],
        "gate": {
            "data": {"uri": "s3://models/held.npz", "slices": ["writer"]},
            "metrics": [{"name": "accuracy", "maxDrop": 0.005}],
        },
        "timeout": "90m",
    }
)
GOLDEN = Golden.model_validate(
    {"uri": "https://open.example.com/golden.npz", "labels": "y", "output": "probabilities"}
)
TRAFFIC = Traffic.model_validate(
    {
        "gateway": {"name": "public"},
        "http": {"hostnames": ["a.example.com"]},
        "grpc": {"hostnames": ["b.example.com"]},
    }
)
REVISION = names.revision_name("ml", NAME, {"model": {}}, SHA)
DEPLOYMENT = Owner("ModelDeployment", NAME, "ml", "uid-md")
OWNER = Owner("ModelRevision", REVISION, "ml", "uid-rev")


VERSION = server.Version(NAME, REVISION, 7, "ml")
ARTIFACT = server.Artifact("s3://artifacts/all/ml/key", "sha256:aa")


OWNER_UID = "1e8f2f1c-7a0b-4a56-9d53-0c1f2f0d8a11"  # of the ModelDeployment


def template(serving: Serving = SERVING, config: OperatorConfig = CONFIG) -> Object:
    return server.template(VERSION, serving, config, owner_uid=OWNER_UID)


def deployment(
    frozen: Object | None = None,
    config: OperatorConfig = CONFIG,
    digest: str = "sha256:aa",
    replicas: int = 2,
) -> Object:
    return server.server_deployment(
        OWNER, VERSION, frozen or template(), ARTIFACT._replace(digest=digest), replicas, config
    )


def context(
    name: str, model: Model = MODEL, serving: Serving = SERVING, config: OperatorConfig = CONFIG
) -> JobContext:
    """Of a Job of the revision."""
    return JobContext(OWNER, NAME, 7, name, model, serving, config)


def resolve(model: Model = MODEL, serving: Serving = SERVING) -> Object:
    name = names.resolve_job_name(NAME, "1f2e")
    return resolve_job(JobContext(DEPLOYMENT, NAME, None, name, model, serving, CONFIG))


def prepare(
    model: Model = MODEL,
    optimization: Optimization = OPTIMIZATION,
    serving: Serving = SERVING,
    config: OperatorConfig = CONFIG,
) -> Object:
    name = names.stage_job_name(REVISION, "prepare", "1f2e")
    return prepare_job(context(name, model, serving, config), SHA, optimization, salt="5a17" * 4)


def evaluate(
    golden: Golden = GOLDEN, stable: tuple[str, int] | None = ("digits-1", 6), serving: Serving = SERVING
) -> Object:
    name = names.stage_job_name(REVISION, "evaluate", "1f2e")
    return evaluate_job(context(name, serving=serving), golden, stable)


def ask(serving: Serving = SERVING) -> Object:
    return ask_job(context(names.stage_job_name(REVISION, "evaluate", "2f2e"), serving=serving))


def tune(
    asked: dict[str, Any] | None = None, data: Data | None = GOLDEN, serving: Serving = SERVING
) -> Object:
    source = ("spec.rollout.analysis.golden", data) if data else None
    name = names.stage_job_name(REVISION, "tune", "1f2e")
    spec = Tune.model_validate({"objective": "50ms", **(asked or {})})
    return tune_job(context(name, serving=serving), spec, source, template(serving), ARTIFACT)


def everything() -> list[Object]:
    return [
        resolve(),
        prepare(),
        tune(),
        evaluate(),
        ask(),
        deployment(),
        server.revision_service(OWNER, NAME, 7),
        server.stable_service(DEPLOYMENT, REVISION),
        server.disruption_budget(DEPLOYMENT, REVISION),
        server.canary_budget(OWNER, NAME, 7),
        *network_policies.policies(DEPLOYMENT, [], POLICIES),
        *routes.routes(DEPLOYMENT, TRAFFIC, routes.client_rules((("digits-1", 95), (REVISION, 5)))),
    ]


def pod(obj: Object) -> Object:
    """Pod spec of a Job or Deployment."""
    spec: Object = obj["spec"]["template"]["spec"]
    return spec


def containers(obj: Object) -> Iterator[Object]:
    yield from pod(obj)["containers"]
    yield from pod(obj).get("initContainers", [])


def container(obj: Object, name: str) -> Object:
    return next(c for c in containers(obj) if c["name"] == name)


def task(obj: Object) -> dict[str, Any]:
    """The task that a Job's program, or the init container, finds in its environment."""
    import json

    from modelrollout.contract.common import TASK_ENV

    values = [e["value"] for c in containers(obj) for e in c.get("env", []) if e["name"] == TASK_ENV]
    component = obj["metadata"]["labels"][names.LABEL_COMPONENT]
    # each of its containers has the whole task, and its part
    if component == names.COMPONENT_PREPARE:
        assert len({json.dumps(json.loads(value) | {"part": None}) for value in values}) == 1
    else:
        assert len(values) == 1 + (component == names.COMPONENT_TUNE), "with it, what its server fetches"
    report: dict[str, Any] = json.loads(values[0])
    return report
