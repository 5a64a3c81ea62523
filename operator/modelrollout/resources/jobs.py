"""Jobs: resolve, prepare, tune, evaluate. They have no API access; their task is in the
environment, their answer in the termination message.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from typing import Literal

from pydantic import TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from modelrollout.api import names
from modelrollout.api.v1alpha1 import (
    ApiModel,
    Container,
    Credentials,
    Data,
    Golden,
    Model,
    ModelFile,
    Optimization,
    OptimizationStep,
    Resources,
    Serving,
    Triton,
    Tune,
    seconds,
)
from modelrollout.api.v1alpha1.optimization import NO_PART
from modelrollout.config import OperatorConfig
from modelrollout.contract.common import (
    CONTAINER_STEP,
    REPOSITORY,
    SIGNER_DIR,
    TASK_ENV,
    TIMEOUT_ENV,
    DataSet,
)
from modelrollout.contract.common import ModelFile as StepModelFile
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.formats import Served, Tensor, Tensors
from modelrollout.contract.gate import Gate, GateMetric
from modelrollout.contract.steps import Step
from modelrollout.contract.tasks import (
    IN_DIR,
    MADE_DIR,
    OUT_DIR,
    WORK_DIR,
    Batching,
    EvaluateTask,
    PrepareTask,
    Recorded,
    ResolveTask,
    Signature,
    TuneTask,
)
from modelrollout.resources.common import (
    DISK,
    OURS,
    Located,
    Object,
    Owner,
    artifact_location,
    bounded,
    container_security,
    labels,
    locate,
    metadata,
    on_disk,
    pod_security,
    store_for_field,
    tenant_uri,
)
from modelrollout.resources.hardening import MODELS
from modelrollout.resources.server import FETCH, GPU, beside, tolerations, wants_gpu

FINAL = frozenset(int(code) for code in ExitCode) - {int(ExitCode.OK), int(ExitCode.RETRYABLE)}
KILLED = 137  # SIGKILL: by the kernel for memory, or by somebody else; the pod's status tells which
# SIGTERM, and who does not listen to it: ours ends with a code of its own then, a user's container
# need not
TOLD_TO_END = frozenset({143, KILLED})
# SIGILL, SIGABRT, SIGBUS, SIGFPE, SIGSEGV: native code and this file
CRASHED = frozenset({132, 134, 135, 136, 139})
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
LABEL_PRIORITY = "kueue.x-k8s.io/priority-class"
RETRIES = 5  # of a store that is away, and of pods that were taken away
# Containers of a Job: of the prepare Job the one that fetches, those that read what was fetched,
# and the last, which publishes.
_BEFORE, _CONVERT, _JOB = "before", "convert", "job"
# open no stranger's file, so that they may say where an artifact lies
TOLD_ARTIFACTS = frozenset({FETCH, _JOB})
_READER = "artifacts-reader"  # volume of the Secret that only reads the artifact store
_PROGRAM_TMP = "job-tmp"  # of ours, beside a server that has its own
_DEFAULT_RESOURCES = Resources(
    requests={"cpu": "250m", "memory": "512Mi"}, limits={"cpu": "1", "memory": "2Gi"}
)
# What one client can send decides from where on a measurement is the client's: it gets two cores
# where there are.
_TUNE_RESOURCES = Resources(requests={"cpu": "250m", "memory": "512Mi"}, limits={"cpu": "2", "memory": "2Gi"})
# of the Job beyond start and search: images are pulled, the last comparison is made
_TUNE_MORE_SECONDS = 600.0
# On the node's disk, with a model of MAX_MODEL_BYTES: the archive and what is in it; with steps
# also the best, the present and a candidate model.
_DISK_PLAIN, _DISK_STEPS = "48Gi", "128Gi"
_DISK_DATA = "10Gi"  # a data set
_DISK_NOTHING = "1Gi"
_SMALL_RESOURCES = Resources(
    requests={"cpu": "100m", "memory": "256Mi"}, limits={"cpu": "1", "memory": "1Gi"}
)


def _data(
    field: str, data: Data, fallback: Credentials | None, config: OperatorConfig, folder: str
) -> tuple[DataSet, Located]:
    located = locate(
        data.uri, store_for_field(f"{field}.uri", data.uri, config), data.credentials or fallback, folder
    )
    return DataSet(location=located.location, labels=data.labels, slices=tuple(data.slices or ())), located


def _step(
    index: int, step: OptimizationStep, fallback: Credentials | None, config: OperatorConfig
) -> tuple[Step, list[Located]]:
    """The step as a task: the same fields, with sources located."""
    found: list[Located] = []

    def told(value: ApiModel, path: str) -> dict[str, object]:
        return {
            name: inside(getattr(value, name), f"{path}.{to_camel(name)}")
            for name in type(value).model_fields
        }

    def inside(value: object, path: str) -> object:
        field = f"spec.optimization.steps[{index}].{path}"
        folder = f"{path.split('.', 1)[-1].replace('.', '-')}-{index}"
        match value:
            case Data():
                data, where = _data(field, value, fallback, config, folder)
                found.append(where)
                return data
            case ModelFile():
                where = locate(
                    value.uri,
                    store_for_field(f"{field}.uri", value.uri, config),
                    value.credentials or fallback,
                    folder,
                )
                found.append(where)
                return StepModelFile(location=where.location, sha256=value.sha256)
            case ApiModel():
                return told(value, path)
            case _:
                return value

    kind, chosen = step.chosen()
    fields = told(chosen, kind)
    fields.pop("resources", None)  # they are the pod's, and shape no result
    task: Step = TypeAdapter(Step).validate_python({"kind": kind} | fields)
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
    disk: str = _DISK_DATA,
    queued: bool = False,
) -> Object:
    bound = on_disk(resources.wire(), disk)
    most = bound["limits"][DISK]
    limit = max(1, math.ceil(timeout))
    spec: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        # Each program keeps the limit for its run itself; this is for one that hangs, and for a
        # user's container. A deadline of the Job would count the time without a pod, and of earlier
        # tries, too.
        "activeDeadlineSeconds": 2 * limit + 300,
        "securityContext": pod_security(),
        "containers": [
            {
                "name": _JOB,
                "image": image or config.images.optimizer,
                "imagePullPolicy": config.images.pull_policy,
                "command": ["python", "-m", module],
                "env": [
                    {"name": TASK_ENV, "value": task},
                    {"name": TIMEOUT_ENV, "value": str(limit)},
                    # Libraries size their pools by the node's cores, not by the container's limit.
                    {"name": "OMP_NUM_THREADS", "value": "1"},
                    # XLA's name for it; rounded up
                    {"name": "NPROC", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                ],
                # A queue admits nothing that asks for a resource which it has no quota of; the
                # volumes are bounded all the same.
                "resources": resources.wire() if queued else bound,
                "securityContext": container_security(),
                "volumeMounts": [
                    {"name": "tmp", "mountPath": "/tmp"},
                    *(m for x in located for m in x.mounts()),
                ],
            }
        ],
        "volumes": bounded(
            [{"name": "tmp", "emptyDir": {}}, *(v for x in located for v in x.volumes())], most
        ),
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
            "backoffLimit": RETRIES,
            "ttlSecondsAfterFinished": config.job_ttl_seconds,
            "podFailurePolicy": {
                "rules": [  # the first that fits
                    _fail_on(_JOB, FINAL),
                    # Counted as a try like others, so that their number is bounded; and before the
                    # exit codes: who takes a pod away kills it.
                    {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    _fail_on(_JOB, CRASHED | {KILLED}),
                ]
            },
            "template": {"metadata": {"labels": own_labels}, "spec": spec},
        },
    }


def _fail_on(container: str, codes: frozenset[int], operator: Literal["In", "NotIn"] = "In") -> Object:
    return {
        "action": "FailJob",
        "onExitCodes": {"containerName": container, "operator": operator, "values": sorted(codes)},
    }


def _task(task: ResolveTask | PrepareTask | TuneTask | EvaluateTask) -> str:
    return names.canonical_json(task.model_dump(mode="json", exclude_none=True))


def prepare_task(job: Object) -> PrepareTask | None:
    """What a prepare Job was told; None where another version of the operator made it, in words
    that today's types do not know.
    """
    pod = job["spec"]["template"]["spec"]
    for container in pod.get("containers") or []:
        for variable in container.get("env") or []:
            if variable["name"] == TASK_ENV:
                with contextlib.suppress(ValidationError):
                    return PrepareTask.model_validate_json(variable.get("value") or "")
    return None


def resolve_job(owner: Owner, name: str, model: Model, serving: Serving, config: OperatorConfig) -> Object:
    """Pins the digest of the source; belongs to the ModelDeployment, since there is no revision
    yet.
    """
    source = locate(
        model.uri, store_for_field("spec.model.uri", model.uri, config), model.credentials, "source"
    )
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
        disk=_DISK_NOTHING,
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
    salt: str,
    recorded: Iterable[tuple[str, str]],
    config: OperatorConfig,
) -> Object:
    """Fetch, verify, optimize, gate, publish; belongs to the revision. ``salt``: random, for this
    Job; ``recorded``: (URI, digest) of artifacts that it may take again.
    """
    source = locate(
        model.uri, store_for_field("spec.model.uri", model.uri, config), model.credentials, "source"
    )
    artifacts = artifact_location(config, tenant_uri(config, owner.namespace))
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
        data, where = _data(
            "spec.optimization.gate.data", optimization.gate.data, model.credentials, config, "gate"
        )
        located.append(where)
        # Field by field the same; what the spec leaves out keeps the task's default.
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
        served=_served(serving.triton),
        steps=tuple(steps),
        gate=gate,
        batching=Batching(
            max_batch_size=serving.batching.max_batch_size,
            max_queue_delay_us=round(seconds(serving.batching.max_queue_delay) * 1e6),
        ),
        instance_kind="KIND_AUTO",
        artifacts=artifacts.location,
        salt=salt,
        recorded=tuple(Recorded(uri=uri, digest=digest) for uri, digest in recorded),
        target_hardware=_hardware(serving),
    )
    job = _job(
        owner,
        name,
        labels(deployment, names.COMPONENT_PREPARE, owner.name, number),
        "modelrollout.optimizer",
        _task(task),
        [*located, artifacts],
        optimization.resources or _DEFAULT_RESOURCES,
        seconds(optimization.timeout),
        serving,
        config,
        _image(model, optimization, config),
        _DISK_STEPS if optimization.steps else _DISK_PLAIN,
        queued=optimization.queue_name is not None,
    )
    if optimization.queue_name:
        # Kueue's webhook suspends it until it is admitted; where there is no Kueue it runs at once,
        # and the label does nothing.
        job["metadata"]["labels"][LABEL_QUEUE] = optimization.queue_name
    if optimization.queue_priority_class:
        job["metadata"]["labels"][LABEL_PRIORITY] = optimization.queue_priority_class
    job["metadata"]["annotations"] = {names.ANNOTATION_ASKED: _asked(optimization)}
    pod = job["spec"]["template"]["spec"]
    _apart(
        job,
        task,
        [mount for x in located for mount in x.mounts()],
        signer,
        (_to_read(config, artifacts), artifacts),
    )
    if any(
        wants_gpu(r)
        for r in (optimization.resources, optimization.container and optimization.container.resources)
        if r
    ):
        pod["tolerations"] = tolerations(serving, gpu=True)  # it goes where the servers go
    if optimization.container:
        _add_container(job, task, optimization.container, optimization.resources or _DEFAULT_RESOURCES)
    return job


def _to_read(config: OperatorConfig, artifacts: Located) -> Located:
    return artifact_location(config, artifacts.location.uri, to_read=True)


def _apart(
    job: Object,
    task: PrepareTask,
    sources: list[Object],
    signer: list[tuple[Object, Object]],
    artifacts: tuple[Located, Located],
) -> None:
    """Three containers of the one: who has Secrets opens no stranger's file, and who opens one has
    no Secret, no right to write to the store, and no folder in which others could be led astray.
    Each has a /tmp of its own, and those with Secrets another user.

    ``sources``: mounts of their Secrets; ``artifacts``: the namespace's folder, to read and to
    write.
    """
    pod, rules = job["spec"]["template"]["spec"], job["spec"]["podFailurePolicy"]["rules"]
    [whole], [tmp, *secrets] = pod["containers"], pod["volumes"]
    small = _SMALL_RESOURCES.wire()
    if DISK in (whole["resources"].get("limits") or {}):
        small = on_disk(small, whole["resources"]["limits"][DISK])

    def one(
        name: str,
        part: Literal["Fetch", "Convert", "Publish"],
        mounts: list[Object],
        resources: Object,
        user: int | None = None,
    ) -> Object:
        own = [_mount(f"{name}-tmp", "/tmp"), *mounts]
        made = {
            "name": name,
            "env": _told(whole, task, part),
            "resources": resources,
            "securityContext": container_security(user),
        }
        return {**whole, **made, "volumeMounts": own}

    reader, writer = artifacts
    read, more = writer.mounts(), []
    if reader.secret != writer.secret:
        read = [m | {"name": _READER} for m in reader.mounts()]
        more = [v | {"name": _READER} for v in reader.volumes()]
    work, made = _mount("work", WORK_DIR, readOnly=True), _mount("made", MADE_DIR, readOnly=True)
    pod["initContainers"] = [
        one(
            FETCH,
            "Fetch",
            [_mount("work", WORK_DIR), *sources, *read, *(mount for _, mount in signer)],
            small,
            OURS,
        ),
        one(_CONVERT, "Convert", [work, _mount("made", MADE_DIR)], whole["resources"]),
    ]
    pod["containers"] = [one(_JOB, "Publish", [work, made, *writer.mounts()], small, OURS)]
    folders = [
        tmp | {"name": name}
        for name in ("work", "made", *(f"{name}-tmp" for name in (FETCH, _CONVERT, _JOB)))
    ]
    pod["volumes"] = [*folders, *secrets, *more, *(volume for volume, _ in signer)]
    # whose log people look for
    job["spec"]["template"]["metadata"]["annotations"] = {"kubectl.kubernetes.io/default-container": _CONVERT}
    for name in (FETCH, _CONVERT):
        rules.insert(0, _fail_on(name, FINAL))
        rules.append(_fail_on(name, CRASHED | {KILLED}))


def _told(container: Object, task: PrepareTask, part: str) -> list[Object]:
    """The environment of a container of ours, for its part of the task."""
    told = {"name": TASK_ENV, "value": _task(task.model_copy(update={"part": part}))}
    return [told if variable["name"] == TASK_ENV else variable for variable in container["env"]]


def _mount(name: str, path: str, **more: bool) -> Object:
    return {"name": name, "mountPath": path, **more}


def _asked(optimization: Optimization) -> str:
    """What spec says on how the Job is carried out: a Job of other words that still waits in its
    queue is made anew.
    """
    container = optimization.container
    own = container.resources.wire() if container and container.resources else None
    return names.short_hash(
        [optimization.model_dump(mode="json", include=set(NO_PART), exclude_none=True), own]
    )


def _served(triton: Triton) -> Served | None:
    """How a source is served as it is; None for what goes to ONNX Runtime."""
    if triton.backend is None:
        return None
    said = _tensors(triton)
    return Served(
        backend=triton.backend, inputs=said.inputs, outputs=said.outputs, code=triton.code == "Allowed"
    )


def _tensors(triton: Triton) -> Tensors:
    inputs, outputs = (
        tuple(Tensor.model_validate(t.model_dump()) for t in tensors or ())
        for tensors in (triton.inputs, triton.outputs)
    )
    return Tensors(inputs=inputs, outputs=outputs)


def _add_container(job: Object, task: PrepareTask, container: Container, resources: Resources) -> None:
    """The user's container between two of ours. It gets the folders that it reads and writes, and
    nothing else of the pod: no Secret, no task.

    The first of ours makes the steps before it, the last takes what it made for a file of a
    stranger.
    """
    pod = job["spec"]["template"]["spec"]
    fetch, convert = pod["initContainers"]
    own = (container.resources or resources).wire()
    on_a_disk = on_disk(own, _DISK_STEPS)
    theirs: Object = {
        "name": CONTAINER_STEP,
        "image": container.image,
        "imagePullPolicy": "IfNotPresent",  # a digest is what it is
        "env": [{"name": "HOME", "value": "/tmp"}],
        "resources": own if LABEL_QUEUE in job["metadata"]["labels"] else on_a_disk,
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            _mount("step-tmp", "/tmp"),
            _mount("step-in", IN_DIR, readOnly=True),
            _mount("step-out", OUT_DIR),
        ],
    }
    theirs |= {
        name: value for name, value in (("command", container.command), ("args", container.args)) if value
    }
    given, taken = (
        _mount("step-in", IN_DIR),
        [_mount("step-in", IN_DIR, readOnly=True), _mount("step-out", OUT_DIR, readOnly=True)],
    )
    before = convert | {
        "name": _BEFORE,
        "env": _told(convert, task, "BeforeContainer"),
        "volumeMounts": [*convert["volumeMounts"], given],
    }
    after = convert | {
        "env": _told(convert, task, "AfterContainer"),
        "volumeMounts": [*convert["volumeMounts"], *taken],
    }
    pod["initContainers"] = [fetch, before, theirs, after]
    pod["volumes"] += bounded(
        [{"name": f"step-{name}", "emptyDir": {}} for name in ("in", "out", "tmp")], on_a_disk["limits"][DISK]
    )
    rules = job["spec"]["podFailurePolicy"]["rules"]
    rules.insert(0, _fail_on(_BEFORE, FINAL))
    rules.append(_fail_on(_BEFORE, CRASHED | {KILLED}))
    # Whatever it ends with, it would most likely end with again; but a queue that takes the Job
    # back ends its pod without a word in the status.
    rules.append(_fail_on(CONTAINER_STEP, TOLD_TO_END | {0}, "NotIn"))


def _image(model: Model, optimization: Optimization, config: OperatorConfig) -> str | None:
    """The image of a prepare Job, None for the usual one; what needs two of them is refused before
    (``controller.observe.observation``).
    """
    wishes = {step.trainer for step in optimization.steps}
    if "Needed" in wishes or ("Welcome" in wishes and model.flavour is None):
        return config.images.trainer
    return config.images.of_flavour(model.flavour) if model.flavour else None


def _signature(
    model: Model, config: OperatorConfig
) -> tuple[tuple[Signature, Located] | None, list[tuple[Object, Object]]]:
    """The signature that is asked for with where it lies, and (volume, mount) of the signer's
    key.
    """
    wanted = model.signature
    if wanted is None:
        return None, []
    uri = wanted.uri or f"{model.uri}.sig"
    where = locate(
        uri, store_for_field("spec.model.signature.uri", uri, config), model.credentials, "signature"
    )
    ref = wanted.key_secret_ref
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


def _hardware(serving: Serving) -> str:
    """What the artifact is made for: the GPU product asked for, else that there is a GPU, else
    any.
    """
    product = (serving.node_selector or {}).get(f"{GPU}.product")
    return product or ("gpu" if wants_gpu(serving.resources) else "any")


def tune_job(
    owner: Owner,
    deployment: str,
    number: int,
    name: str,
    tune: Tune,
    source: tuple[str, Data] | None,
    frozen: Object,
    artifact: tuple[str, str],
    model: Model,
    serving: Serving,
    config: OperatorConfig,
) -> Object:
    """Measures serving configurations on a server of the frozen template beside it; belongs to the
    revision.

    ``source``: the inputs with the field that names them, None: they are made up; ``artifact``: its
    URI and digest.
    """
    data, located = None, []
    if source is not None:
        data, where = _data(*source, model.credentials, config, "tune")
        located.append(where)
    task = TuneTask(
        http=f"127.0.0.1:{names.PORT_HTTP}",
        repository=REPOSITORY,
        model=deployment,
        data=data,
        field=source[0] if source else "",
        objective_ms=seconds(tune.objective) * 1e3,
        share=tune.share,
        instances=tuple(tune.instances),
        timeout_seconds=seconds(tune.timeout),
    )
    job = _job(
        owner,
        name,
        labels(deployment, names.COMPONENT_TUNE, owner.name, number),
        "modelrollout.evaluator",
        _task(task),
        located,
        _TUNE_RESOURCES,
        seconds(serving.startup_timeout) + seconds(tune.timeout) + _TUNE_MORE_SECONDS,
        serving,
        config,
    )
    rules = job["spec"]["podFailurePolicy"]["rules"]
    rules.insert(1, _fail_on(FETCH, FINAL))
    pod, server = job["spec"]["template"]["spec"], beside(frozen, deployment, number, *artifact, config)
    # The server's image may be a stranger's: it sees nothing of what this program fetches, neither
    # by a folder nor as the same user.
    (program,), (tmp, *secrets) = pod["containers"], pod["volumes"]
    program["securityContext"] = container_security(OURS)
    program["volumeMounts"][0] = program["volumeMounts"][0] | {"name": _PROGRAM_TMP}
    program["volumeMounts"].append({"name": MODELS, "mountPath": REPOSITORY, "readOnly": True})
    volumes = [*server.pop("volumes"), tmp | {"name": _PROGRAM_TMP}, *secrets]
    pod.update(server, volumes=volumes)
    return job


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
    """Golden data once through the served candidate, paired with stable ((revision, number)) where
    there is one; belongs to the revision.
    """
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
