"""Jobs: resolve, prepare, evaluate. They have no API access; their task is in the environment, their answer in the termination message."""

from __future__ import annotations

import math

from pydantic import TypeAdapter
from pydantic.alias_generators import to_camel

from modelrollout.api import names
from modelrollout.api.config import OperatorConfig
from modelrollout.api.tasks import (
    SIGNER_DIR,
    TASK_ENV,
    Batching,
    DataSet,
    EvaluateTask,
    ExitCode,
    Gate,
    GateMetric,
    PrepareTask,
    ResolveTask,
    Signature,
    Step,
)
from modelrollout.api.tasks import ModelFile as StepModelFile
from modelrollout.api.v1alpha1 import (
    ApiModel,
    Credentials,
    Data,
    Golden,
    Model,
    ModelFile,
    Optimization,
    OptimizationStep,
    Resources,
    Serving,
    seconds,
)
from modelrollout.resources.common import (
    Located,
    Object,
    Owner,
    allowed,
    artifact_location,
    container_security,
    labels,
    locate,
    metadata,
    pod_security,
    tenant_uri,
)
from modelrollout.resources.server import GPU, wants_gpu

_FINAL = [int(c) for c in (ExitCode.BAD_INPUT, ExitCode.DENIED, ExitCode.GATE_FAILED, ExitCode.GATE_INCONCLUSIVE)]
_DEFAULT_RESOURCES = Resources(requests={"cpu": "250m", "memory": "512Mi"}, limits={"cpu": "1", "memory": "2Gi"})
_SMALL_RESOURCES = Resources(requests={"cpu": "100m", "memory": "256Mi"}, limits={"cpu": "1", "memory": "1Gi"})


def _data(field: str, data: Data, fallback: Credentials | None, config: OperatorConfig, folder: str) -> tuple[DataSet, Located]:
    located = locate(data.uri, allowed(f"{field}.uri", data.uri, config), data.credentials or fallback, folder)
    return DataSet(location=located.location, labels=data.labels, slices=tuple(data.slices or ())), located


def _step(index: int, step: OptimizationStep, fallback: Credentials | None, config: OperatorConfig) -> tuple[Step, list[Located]]:
    """The step as a task: the same fields, with sources located."""
    found: list[Located] = []

    def told(value: ApiModel, path: str) -> dict[str, object]:
        return {name: inside(getattr(value, name), f"{path}.{to_camel(name)}") for name in type(value).model_fields}

    def inside(value: object, path: str) -> object:
        field = f"spec.optimization.steps[{index}].{path}"
        folder = f"{path.split('.', 1)[-1].replace('.', '-')}-{index}"
        match value:
            case Data():
                data, where = _data(field, value, fallback, config, folder)
                found.append(where)
                return data
            case ModelFile():
                where = locate(value.uri, allowed(f"{field}.uri", value.uri, config), value.credentials or fallback, folder)
                found.append(where)
                return StepModelFile(location=where.location, sha256=value.sha256)
            case ApiModel():
                return told(value, path)
            case _:
                return value

    kind, chosen = step.chosen()
    task: Step = TypeAdapter(Step).validate_python({"kind": kind} | told(chosen, kind))
    return task, found


def _job(
    owner: Owner,
    name: str,
    own_labels: dict[str, str],
    module: str,
    task: str,
    located: list[Located],
    resources: Resources,
    timeout: float,
    serving: Serving,
    config: OperatorConfig,
    image: str | None = None,
) -> Object:
    spec: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "securityContext": pod_security(),
        "containers": [
            {
                "name": "job",
                "image": image or config.images.optimizer,
                "imagePullPolicy": config.images.pull_policy,
                "command": ["python", "-m", module],
                "env": [
                    {"name": TASK_ENV, "value": task},
                    # Libraries size their pools by the node's cores, not by the container's limit.
                    {"name": "OMP_NUM_THREADS", "value": "1"},
                ],
                "resources": resources.wire(),
                "securityContext": container_security(),
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *(m for x in located for m in x.mounts())],
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}, *(v for x in located for v in x.volumes())],
    }
    if serving.service_account_name:  # workload identity
        spec["serviceAccountName"] = serving.service_account_name
    if serving.image_pull_secrets:
        spec["imagePullSecrets"] = [s.wire() for s in serving.image_pull_secrets]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(owner, name, own_labels),
        "spec": {
            "backoffLimit": 3,
            "activeDeadlineSeconds": max(1, math.ceil(timeout)),
            "ttlSecondsAfterFinished": config.job_ttl_seconds,
            "podFailurePolicy": {
                "rules": [
                    {"action": "FailJob", "onExitCodes": {"containerName": "job", "operator": "In", "values": _FINAL}},
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": {"metadata": {"labels": own_labels}, "spec": spec},
        },
    }


def _task(task: ResolveTask | PrepareTask | EvaluateTask) -> str:
    return names.canonical_json(task.model_dump(mode="json", exclude_none=True))


def resolve_job(owner: Owner, name: str, model: Model, serving: Serving, config: OperatorConfig) -> Object:
    """Pins the digest of the source; belongs to the ModelDeployment, since there is no revision yet."""
    source = locate(model.uri, allowed("spec.model.uri", model.uri, config), model.credentials, "source")
    return _job(
        owner,
        name,
        labels(owner.name, names.COMPONENT_RESOLVE),
        "modelrollout.optimizer",
        _task(ResolveTask(source=source.location)),
        [source],
        _SMALL_RESOURCES,
        3600,
        serving,
        config,
    )


def prepare_job(
    owner: Owner,
    deployment: str,
    number: int,
    name: str,
    model: Model,
    sha256: str,
    optimization: Optimization,
    serving: Serving,
    config: OperatorConfig,
) -> Object:
    """Fetch, verify, optimize, gate, publish; belongs to the revision."""
    source = locate(model.uri, allowed("spec.model.uri", model.uri, config), model.credentials, "source")
    artifacts = artifact_location(config, tenant_uri(config, owner.namespace))
    located = [source, artifacts]
    signature, signer = _signature(model, config)
    if signature:
        located.append(signature[1])
    steps = []
    for i, step in enumerate(optimization.steps):
        task_step, where_from = _step(i, step, model.credentials, config)
        steps.append(task_step)
        located += where_from
    gate = None
    if optimization.gate:
        data, where = _data("spec.optimization.gate.data", optimization.gate.data, model.credentials, config, "gate")
        located.append(where)
        # Field by field the same; what the spec leaves out keeps the task's default.
        gate = Gate(data=data, metrics=tuple(GateMetric.model_validate(m.model_dump(exclude_none=True)) for m in optimization.gate.metrics))
    task = PrepareTask(
        source=source.location,
        sha256=sha256,
        signature=signature[0] if signature else None,
        format=model.format,
        steps=tuple(steps),
        gate=gate,
        batching=Batching(max_batch_size=serving.batching.max_batch_size, max_queue_delay_us=round(seconds(serving.batching.max_queue_delay) * 1e6)),
        instance_kind="KIND_AUTO",
        artifacts=artifacts.location,
        target_hardware=_hardware(serving),
    )
    job = _job(
        owner,
        name,
        labels(deployment, names.COMPONENT_PREPARE, owner.name, number),
        "modelrollout.optimizer",
        _task(task),
        located,
        optimization.resources or _DEFAULT_RESOURCES,
        seconds(optimization.timeout),
        serving,
        config,
        _image(model, optimization, config),
    )
    pod = job["spec"]["template"]["spec"]
    pod["volumes"] += [volume for volume, _ in signer]
    pod["containers"][0]["volumeMounts"] += [mount for _, mount in signer]
    return job


def _image(model: Model, optimization: Optimization, config: OperatorConfig) -> str | None:
    """The image of a prepare Job, None for the usual one; what needs two of them is refused before (``controller.observe``)."""
    wishes = {step.trainer for step in optimization.steps}
    if "Needed" in wishes or ("Welcome" in wishes and not model.needs_trees):
        return config.images.trainer
    return config.images.trees if model.needs_trees else None


def _signature(model: Model, config: OperatorConfig) -> tuple[tuple[Signature, Located] | None, list[tuple[Object, Object]]]:
    """The signature that is asked for with where it lies, and (volume, mount) of the signer's key."""
    wanted = model.signature
    if wanted is None:
        return None, []
    uri = wanted.uri or f"{model.uri}.sig"
    where = locate(uri, allowed("spec.model.signature.uri", uri, config), model.credentials, "signature")
    ref = wanted.key_secret_ref
    secret = {"secretName": ref.name, "optional": True, "defaultMode": 0o440, "items": [{"key": ref.key, "path": ref.key}]}
    volume, mount = {"name": "signer", "secret": secret}, {"name": "signer", "mountPath": SIGNER_DIR, "readOnly": True}
    return (Signature(location=where.location, key_file=f"{SIGNER_DIR}/{ref.key}"), where), [(volume, mount)]


def _hardware(serving: Serving) -> str:
    """What the artifact is made for: the GPU product asked for, else that there is a GPU, else any."""
    product = (serving.node_selector or {}).get(f"{GPU}.product")
    return product or ("gpu" if wants_gpu(serving) else "any")


def evaluate_job(
    owner: Owner,
    deployment: str,
    number: int,
    name: str,
    golden: Golden,
    stable: tuple[str, int] | None,
    model: Model,
    serving: Serving,
    config: OperatorConfig,
) -> Object:
    """Golden data once through the served candidate, paired with stable ((revision, number)) where there is one; belongs to the revision."""
    data, where = _data("spec.rollout.analysis.golden", golden, model.credentials, config, "golden")
    host = f"{owner.name}.{owner.namespace}.svc"
    stable_host = f"{stable[0]}.{owner.namespace}.svc" if stable else None
    task = EvaluateTask(
        data=data,
        model=deployment,
        candidate_http=f"{host}:{names.PORT_HTTP}",
        candidate_grpc=f"{host}:{names.PORT_GRPC}",
        candidate_number=number,
        stable_http=f"{stable_host}:{names.PORT_HTTP}" if stable_host else None,
        stable_grpc=f"{stable_host}:{names.PORT_GRPC}" if stable_host else None,
        stable_number=stable[1] if stable else None,
    )
    return _job(
        owner,
        name,
        labels(deployment, names.COMPONENT_EVALUATE, owner.name, number),
        "modelrollout.evaluator",
        _task(task),
        [where],
        _SMALL_RESOURCES,
        3600,
        serving,
        config,
    )
