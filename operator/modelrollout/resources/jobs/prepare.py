"""The Job that prepares a model: fetch, verify, optimize, gate, publish."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Literal

from pydantic import TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from modelrollout.api import names
from modelrollout.api.v1alpha1 import (
    ApiModel,
    Credentials,
    Data,
    Model,
    ModelFile,
    Optimization,
    OptimizationStep,
    Resources,
    Serving,
    Triton,
    seconds,
)
from modelrollout.api.v1alpha1.optimization import NO_PART
from modelrollout.config import OperatorConfig
from modelrollout.contract.common import SIGNER_DIR, TASK_ENV
from modelrollout.contract.common import ModelFile as StepModelFile
from modelrollout.contract.formats import FLAVOUR_BY_BACKEND, Backend, Served, Tensor, Tensors
from modelrollout.contract.gate import Gate, GateMetric
from modelrollout.contract.steps import Step
from modelrollout.contract.tasks import MADE_DIR, WORK_DIR, Batching, PrepareTask, Recorded, Signature
from modelrollout.gpus import GpuTable
from modelrollout.resources.common import (
    DISK,
    Located,
    Object,
    artifact_location,
    container_security,
    locate,
    on_disk,
    our_user,
    store_for_field,
    tenant_uri,
)
from modelrollout.resources.jobs.common import (
    CRASHED,
    FINAL,
    JOB_CONTAINER,
    KILLED,
    LABEL_PRIORITY,
    LABEL_QUEUE,
    SMALL_RESOURCES,
    JobContext,
    build_job,
    fail_on,
    locate_data,
    mount,
)
from modelrollout.resources.jobs.container import DISK_STEPS, add_container, environment
from modelrollout.resources.server import FETCH, tolerations

_PRODUCT = "nvidia.com/gpu.product"  # label by NVIDIA's discovery
_DIVIDED: frozenset[Backend] = frozenset({"VLLM", "Python"})  # may be divided over several GPUs
_CONVERT = "convert"  # the container that reads what was fetched
_READER = "artifacts-reader"  # volume of the Secret that only reads the artifact store
_DEFAULT_RESOURCES = Resources(
    requests={"cpu": "250m", "memory": "512Mi"}, limits={"cpu": "1", "memory": "2Gi"}
)
# on the node's disk, with a model of MAX_MODEL_BYTES: the archive and its content
_DISK_PLAIN = "48Gi"


def prepare_task(job: Object) -> PrepareTask | None:
    """The task of a prepare Job; None if another version of the operator wrote it and today's types
    cannot read it.
    """
    pod = job["spec"]["template"]["spec"]
    for container in pod.get("containers") or []:
        for variable in container.get("env") or []:
            if variable["name"] == TASK_ENV:
                with contextlib.suppress(ValidationError):
                    return PrepareTask.model_validate_json(variable.get("value") or "")
    return None


def prepare_job(
    context: JobContext,
    sha256: str,
    optimization: Optimization,
    *,
    salt: str,
    recorded: Iterable[tuple[str, str]] = (),
    warmup: bool = True,
) -> Object:
    """Fetch, verify, optimize, gate, publish. ``salt``: random, for this Job; ``recorded``:
    (URI, digest) of artifacts that it may reuse; ``warmup``: as of PrepareTask.
    """
    model, serving, config = context.model, context.serving, context.config
    source = locate(
        model.uri, store_for_field("spec.model.uri", model.uri, config), model.credentials, "source"
    )
    artifacts = artifact_location(config, tenant_uri(config, context.owner.namespace))
    located = [source]
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
        data, where = locate_data(
            "spec.optimization.gate.data", optimization.gate.data, model.credentials, config, "gate"
        )
        located.append(where)
        # the same fields; those that the spec leaves out keep the task's default
        gate = Gate(
            data=data,
            metrics=tuple(
                GateMetric.model_validate(m.model_dump(exclude_none=True)) for m in optimization.gate.metrics
            ),
        )
    task = PrepareTask(
        source=source.location,
        sha256=sha256,
        signature=signature[0] if signature else None,
        format=model.format,
        tensors=None if serving.triton.backend or not serving.triton.inputs else _tensors(serving.triton),
        rounds=model.rounds,
        missing=model.missing,
        served=_served(serving.triton),
        steps=tuple(steps),
        gate=gate,
        batching=Batching(
            max_batch_size=serving.batching.max_batch_size,
            max_queue_delay_us=round(seconds(serving.batching.max_queue_delay) * 1e6),
        ),
        instance_kind="KIND_AUTO",
        warmup=warmup,
        artifacts=artifacts.location,
        salt=salt,
        recorded=tuple(Recorded(uri=uri, digest=digest) for uri, digest in recorded),
        target_hardware=_hardware(serving, config.gpu_table),
        gpus=config.gpu_table.devices(serving.resources.limits)
        if serving.triton.backend in _DIVIDED
        else None,
    )
    resources = optimization.resources or _DEFAULT_RESOURCES
    job = build_job(
        context,
        names.COMPONENT_PREPARE,
        "modelrollout.optimizer",
        task,
        located=[*located, artifacts],
        resources=resources,
        timeout=seconds(optimization.timeout),
        image=_image(model, serving.triton.backend, optimization, config),
        disk=DISK_STEPS if optimization.steps else _DISK_PLAIN,
        queued=optimization.queue_name is not None,
    )
    if optimization.queue_name:
        # Kueue's webhook suspends the Job until it is admitted; without Kueue it runs at once.
        job["metadata"]["labels"][LABEL_QUEUE] = optimization.queue_name
    if optimization.queue_priority_class:
        job["metadata"]["labels"][LABEL_PRIORITY] = optimization.queue_priority_class
    job["metadata"]["annotations"] = {names.ANNOTATION_EXECUTION: _execution_hash(optimization)}
    _separate(
        job,
        task,
        [m for x in located for m in x.mounts()],
        signer,
        (artifact_location(config, artifacts.location.uri, to_read=True), artifacts),
        our_user(config),
    )
    requested = [
        r
        for r in (optimization.resources, optimization.container and optimization.container.resources)
        if r and config.gpu_table.has_gpu(r.limits)
    ]
    if requested:  # it runs where the servers run
        placed = tolerations(serving, requested, config.gpu_table)
        job["spec"]["template"]["spec"]["tolerations"] = placed
    if optimization.container:
        add_container(job, task, optimization.container, resources)
    return job


def _separate(
    job: Object,
    task: PrepareTask,
    sources: list[Object],
    signer: list[tuple[Object, Object]],
    artifacts: tuple[Located, Located],
    user: int | None,
) -> None:
    """Split the Job's container into three, fetch, convert and publish. Those with Secrets open no
    untrusted file. The one that opens it has no Secret, no write access to the store, and no
    writable folder that the others trust. Each has its own /tmp, and those with Secrets run as
    another user.

    ``sources``: mounts of the sources' Secrets; ``artifacts``: the namespace's folder, to read and
    to write; ``user``: of the containers with Secrets.
    """
    pod, rules = job["spec"]["template"]["spec"], job["spec"]["podFailurePolicy"]["rules"]
    [whole], [tmp, *secrets] = pod["containers"], pod["volumes"]
    small = SMALL_RESOURCES.wire()
    if DISK in (whole["resources"].get("limits") or {}):
        small = on_disk(small, whole["resources"]["limits"][DISK])

    def one(
        name: str,
        part: Literal["Fetch", "Convert", "Publish"],
        mounts: list[Object],
        resources: Object,
        user_of: int | None = None,
    ) -> Object:
        own = [mount(f"{name}-tmp", "/tmp"), *mounts]
        made = {
            "name": name,
            "env": environment(whole, task, part),
            "resources": resources,
            "securityContext": container_security(user_of),
        }
        return {**whole, **made, "volumeMounts": own}

    reader, writer = artifacts
    read, more = writer.mounts(), []
    if reader.secret != writer.secret:
        read = [m | {"name": _READER} for m in reader.mounts()]
        more = [v | {"name": _READER} for v in reader.volumes()]
    work, made = mount("work", WORK_DIR, readOnly=True), mount("made", MADE_DIR, readOnly=True)
    pod["initContainers"] = [
        one(
            FETCH,
            "Fetch",
            [mount("work", WORK_DIR), *sources, *read, *(mount for _, mount in signer)],
            small,
            user,
        ),
        one(_CONVERT, "Convert", [work, mount("made", MADE_DIR)], whole["resources"]),
    ]
    pod["containers"] = [one(JOB_CONTAINER, "Publish", [work, made, *writer.mounts()], small, user)]
    folders = [
        tmp | {"name": name}
        for name in ("work", "made", *(f"{name}-tmp" for name in (FETCH, _CONVERT, JOB_CONTAINER)))
    ]
    pod["volumes"] = [*folders, *secrets, *more, *(volume for volume, _ in signer)]
    # the log that people look for
    job["spec"]["template"]["metadata"]["annotations"] = {"kubectl.kubernetes.io/default-container": _CONVERT}
    for name in (FETCH, _CONVERT):
        rules.insert(0, fail_on(name, FINAL))
        rules.append(fail_on(name, CRASHED | {KILLED}))


def _execution_hash(optimization: Optimization) -> str:
    """Hash of the execution settings in spec; a queued Job with another hash is recreated."""
    container = optimization.container
    own = container.resources.wire() if container and container.resources else None
    return names.short_hash(
        [optimization.model_dump(mode="json", include=set(NO_PART), exclude_none=True), own]
    )


def _served(triton: Triton) -> Served | None:
    """How a model that is passed through unchanged is served; None for ONNX Runtime."""
    if triton.backend is None:
        return None
    tensors = _tensors(triton)
    return Served(
        backend=triton.backend, inputs=tensors.inputs, outputs=tensors.outputs, code=triton.code == "Allowed"
    )


def _tensors(triton: Triton) -> Tensors:
    inputs, outputs = (
        tuple(Tensor.model_validate(t.model_dump()) for t in tensors or ())
        for tensors in (triton.inputs, triton.outputs)
    )
    return Tensors(inputs=inputs, outputs=outputs)


def _image(
    model: Model, backend: Backend | None, optimization: Optimization, config: OperatorConfig
) -> str | None:
    """The image of a prepare Job, None for the default. A spec that needs two images is refused
    earlier (``controller.observe.validation``).
    """
    trainers = {step.trainer for step in optimization.steps}
    if "Needed" in trainers or ("Welcome" in trainers and model.flavour is None):
        return config.images.trainer
    flavour = model.flavour or FLAVOUR_BY_BACKEND.get(backend or "")
    return config.images.of_flavour(flavour) if flavour else None


def _signature(
    model: Model, config: OperatorConfig
) -> tuple[tuple[Signature, Located] | None, list[tuple[Object, Object]]]:
    """The required signature with its location, and (volume, mount) of the signer's key."""
    signature = model.signature
    if signature is None:
        return None, []
    uri = signature.uri or f"{model.uri}.sig"
    where = locate(
        uri, store_for_field("spec.model.signature.uri", uri, config), model.credentials, "signature"
    )
    ref = signature.key_secret_ref
    secret = {
        "secretName": ref.name,
        "optional": True,
        "defaultMode": 0o440,
        "items": [{"key": ref.key, "path": ref.key}],
    }
    volume, mount = (
        {"name": "signer", "secret": secret},
        {"name": "signer", "mountPath": SIGNER_DIR, "readOnly": True},
    )
    return (Signature(location=where.location, key_file=f"{SIGNER_DIR}/{ref.key}"), where), [(volume, mount)]


def _hardware(serving: Serving, gpus: GpuTable) -> str:
    """The hardware that the artifact targets: the GPU product in the node selector, "gpu", or
    "any".
    """
    product = (serving.node_selector or {}).get(_PRODUCT)
    return product or ("gpu" if gpus.has_gpu(serving.resources.limits) else "any")


def _step(
    index: int, step: OptimizationStep, fallback: Credentials | None, config: OperatorConfig
) -> tuple[Step, list[Located]]:
    """The step as a task (the same fields, with sources located), and what to mount for it."""
    located: list[Located] = []

    def fields_of(value: ApiModel, path: str) -> dict[str, object]:
        return {
            name: inside(getattr(value, name), f"{path}.{to_camel(name)}")
            for name in type(value).model_fields
        }

    def inside(value: object, path: str) -> object:
        field = f"spec.optimization.steps[{index}].{path}"
        folder = f"{path.split('.', 1)[-1].replace('.', '-')}-{index}"
        match value:
            case Data():
                data, where = locate_data(field, value, fallback, config, folder)
                located.append(where)
                return data
            case ModelFile():
                where = locate(
                    value.uri,
                    store_for_field(f"{field}.uri", value.uri, config),
                    value.credentials or fallback,
                    folder,
                )
                located.append(where)
                return StepModelFile(location=where.location, sha256=value.sha256)
            case ApiModel():
                return fields_of(value, path)
            case _:
                return value

    kind, chosen = step.chosen()
    fields = fields_of(chosen, kind)
    fields.pop("resources", None)  # of the pod; they do not change the result
    task: Step = TypeAdapter(Step).validate_python({"kind": kind} | fields)
    return task, located
