"""Triton servers: the pod template that a revision freezes, and the Deployment, Services and budget
around it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import ValidationError

from modelrollout.api import names
from modelrollout.api.v1alpha1 import Drain, Pod, Resources, Serving, SizeLimits, Volume, seconds
from modelrollout.config import OperatorConfig
from modelrollout.contract.common import (
    CPUS_ENV,
    CREDENTIALS_DIR,
    OBJECTIVES_ENV,
    REPOSITORY,
    SERVES_ENV,
    TASK_ENV,
    TENSORRT_ENV,
    ServingConfig,
    TensorRT,
)
from modelrollout.contract.tasks import FetchTask
from modelrollout.gpus import GpuTable
from modelrollout.quantity import quantity
from modelrollout.resources import engines
from modelrollout.resources.common import (
    ARTIFACTS,
    DISK,
    Object,
    Owner,
    artifact_location,
    bounded,
    container_security,
    labels,
    metadata,
    on_disk,
    pod_security,
    tenant_uri,
)
from modelrollout.resources.hardening import MODELS, TRITON, VISIBLE_GPUS, for_tuning, harden

# Version of what this file renders. A revision keeps its frozen template, so raising this restarts
# no pod.
BUILDER = "8"
STREAM_SECONDS = 900  # to end, for a model that streams its answers; a stream may take minutes
WORSE_SECONDS = 30  # the same for a version that was proven worse, whatever it streams
_EXIT_FLAG = "--exit-timeout-secs"
_DEFAULT, _STREAMS = "default", "streams"  # values of ANNOTATION_EXIT
_TAKES_WARMUP = 5  # the first whose init container takes a config.pbtxt with warm-up requests
_FETCH_CPU = "50m"
_MOST_CPUS = 999_999  # more than any node has; the loader takes no number of any length
FETCH = "fetch"
# On the node's disk: the model, twice while the leftover of a lost container is replaced, and what
# the server unpacks.
_DISK, _DISK_MODELS, _DISK_TMP, _DISK_LOGS = "64Gi", "42Gi", "20Gi", "2Gi"


@dataclass(frozen=True)
class Version:
    """A revision as its pods name it."""

    deployment: str
    revision: str
    number: int
    namespace: str

    def labels(self) -> dict[str, str]:
        """Labels of its servers."""
        return labels(self.deployment, names.COMPONENT_SERVER, self.revision, self.number)


class Artifact(NamedTuple):
    """The prepared model that a revision serves."""

    uri: str
    digest: str


def _fetch_cpu(server: Object) -> str:
    """Request of the init container. A pod keeps the largest one of all its containers for its
    whole life, so this is at most what the server asks for (a limit alone is a request, too).
    """
    own = [part["cpu"] for part in (server.get("requests"), server.get("limits")) if part and "cpu" in part]
    return str(min([_FETCH_CPU, *own[:1]], key=quantity))


def template(
    version: Version,
    serving: Serving,
    config: OperatorConfig,
    objectives: Sequence[int] = (),
    *,
    owner_uid: str,
) -> Object:
    """Pod template of a revision, complete except for the artifact, which does not exist yet
    (``server_deployment`` adds it). ``objectives``: milliseconds that are to be bounds of Triton's
    histogram of latencies; only for an image whose Triton takes them. ``owner_uid``: of the
    ModelDeployment.

    The grace period is preStop + exit timeout + margin: endpoints drop the pod while preStop
    sleeps, then Triton finishes its requests (docs of Triton, "Graceful shutdown").
    """
    deployment, number, pod = version.deployment, version.number, serving.pod or Pod()
    pre_stop, exit_timeout = _drain(serving, config)
    model_ready = {"httpGet": {"path": f"/v2/models/{deployment}/versions/{number}/ready", "port": "http"}}
    artifacts = artifact_location(config, tenant_uri(config, version.namespace), to_read=True)
    tmp = {"name": "tmp", "mountPath": "/tmp"}
    pull = {"imagePullPolicy": config.images.pull_policy}
    sizes = pod.size_limits or SizeLimits()
    resources = on_disk(serving.resources.wire(), _disk(sizes))
    fetching = {
        "requests": {"cpu": _fetch_cpu(resources), "memory": "128Mi"},
        "limits": {"memory": "1Gi"},
    }
    spec: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": pre_stop + exit_timeout + config.drain.margin_seconds,
        "securityContext": pod_security(config),
        "initContainers": [
            {
                "name": FETCH,
                "image": config.images.optimizer,
                **pull,
                "command": ["python", "-m", "modelrollout.optimizer"],
                "env": [
                    {"name": SERVES_ENV, "value": names.canonical_json(_serves(serving))},
                    *(
                        [{"name": OBJECTIVES_ENV, "value": names.canonical_json(list(objectives))}]
                        if objectives
                        else []
                    ),
                    *([{"name": CPUS_ENV, "value": str(cpus)}] if (cpus := _cpus(serving)) else []),
                    *_tensorrt(serving),
                ],
                "resources": on_disk(
                    fetching if pod.fetch_resources is None else pod.fetch_resources.wire(),
                    resources["limits"][DISK],
                ),
                "securityContext": container_security(),
                "volumeMounts": [{"name": MODELS, "mountPath": REPOSITORY}, tmp, *artifacts.mounts()],
            }
        ],
        "containers": [
            {
                "name": TRITON,
                "image": image(serving, config),
                **pull,
                "command": (
                    ["tritonserver"] if serving.accelerator is None else engines.command(deployment, number)
                ),
                "args": [
                    # Auto-completion gives ONNX a silent maximum batch of 4; the config is written
                    # out in full.
                    "--disable-auto-complete-config",
                    f"{_EXIT_FLAG}={exit_timeout}",
                ],
                "env": [
                    {"name": "HOME", "value": "/tmp"},
                    *_no_gpu(serving, config.gpu_table),
                    *(e.wire() for e in pod.env or ()),
                ],
                "ports": [
                    {"name": "http", "containerPort": names.PORT_HTTP, "protocol": "TCP"},
                    {"name": "grpc", "containerPort": names.PORT_GRPC, "protocol": "TCP"},
                    {"name": "metrics", "containerPort": names.PORT_METRICS, "protocol": "TCP"},
                ],
                "resources": resources,
                "securityContext": container_security(),
                # the last line says why a model was not loaded
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "startupProbe": (
                    model_ready
                    | {
                        "periodSeconds": 1,
                        "timeoutSeconds": 2,
                        "failureThreshold": max(1, math.ceil(serving.startup_seconds())),
                    }
                ),
                "readinessProbe": (
                    model_ready | {"periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 3}
                ),
                "lifecycle": {"preStop": {"sleep": {"seconds": pre_stop}}},
                "volumeMounts": [
                    tmp,
                    {"name": "shm", "mountPath": "/dev/shm"},
                    *map(_mount, pod.volumes or ()),
                    *engines.mounts(serving, owner_uid),
                ],
            }
        ],
        "volumes": [
            {"name": MODELS, "emptyDir": {"sizeLimit": _size(sizes.models, _DISK_MODELS)}},
            {"name": "tmp", "emptyDir": {"sizeLimit": _size(sizes.tmp, _DISK_TMP)}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _size(sizes.shm, "1Gi")}},
            *map(_volume, pod.volumes or ()),
            *engines.volumes(serving),
            *artifacts.volumes(),
        ],
        "topologySpreadConstraints": _spread(version, pod),
    }
    spec.update(_placement(serving, config.gpu_table))
    made = {
        "metadata": {
            # Its own come last: Services select by them, and Prometheus reads them.
            "labels": {**(pod.labels or {}), **version.labels()},
            "annotations": {
                **(pod.annotations or {}),
                "prometheus.io/scrape": "true",
                "prometheus.io/port": str(names.PORT_METRICS),
                "prometheus.io/path": "/metrics",
                **({} if _knows_exit_timeout(serving) else {names.ANNOTATION_EXIT: _DEFAULT}),
            },
        },
        "spec": spec,
    }
    return harden(made, deployment)


def _cpus(serving: Serving) -> int:
    """How many threads a server may run at once without being stopped by its own limit, so whole
    CPUs, and one at least; 0: it has no limit.
    """
    limit = quantity((serving.resources.limits or {}).get("cpu", 0))
    return min(max(1, math.floor(limit)), _MOST_CPUS) if limit else 0


def _tensorrt(serving: Serving) -> list[Object]:
    """What the loader has to know of TensorRT."""
    if serving.accelerator is None:
        return []
    workspace = serving.accelerator.tensor_rt.workspace
    task = TensorRT(workspace_bytes=None if workspace is None else math.ceil(quantity(workspace)))
    return [{"name": TENSORRT_ENV, "value": names.canonical_json(task.model_dump(exclude_none=True))}]


def image(serving: Serving, config: OperatorConfig) -> str:
    """The image that its servers have."""
    return serving.triton.image or config.images.triton


def image_of(frozen: Object) -> str:
    """The image of the server in a frozen template."""
    return next((str(c["image"]) for c in frozen["spec"]["containers"] if c["name"] == TRITON), "")


def _knows_exit_timeout(serving: Serving) -> bool:
    """Whether it is not left to what preparing finds; vLLM always streams."""
    own = serving.drain is not None and serving.drain.exit_timeout is not None
    return own or serving.triton.backend == "VLLM"


def _drain(serving: Serving, config: OperatorConfig) -> tuple[int, int]:
    """preStop and exit timeout in whole seconds: of the spec, else of the configuration."""
    own, usual = serving.drain or Drain(), config.drain.exit_timeout_seconds
    if serving.triton.backend == "VLLM":
        usual = max(usual, STREAM_SECONDS)
    return (
        config.drain.pre_stop_seconds if own.pre_stop is None else math.ceil(seconds(own.pre_stop)),
        usual if own.exit_timeout is None else math.ceil(seconds(own.exit_timeout)),
    )


def for_streams(frozen: Object) -> Object:
    """The frozen template for a model that streams its answers: with its own default time to end,
    unless the template says another, or an earlier operator froze it.
    """
    meta, spec = frozen["metadata"], frozen["spec"]
    annotations = meta.get("annotations") or {}
    before = drain_of(frozen)
    if annotations.get(names.ANNOTATION_EXIT) != _DEFAULT or before is None:
        return frozen
    more = STREAM_SECONDS - before[1]
    if more <= 0:
        return frozen
    flag = f"{_EXIT_FLAG}={STREAM_SECONDS}"
    servers = [
        c | {"args": [flag if a.startswith(f"{_EXIT_FLAG}=") else a for a in c["args"]]}
        if c["name"] == TRITON
        else c
        for c in spec["containers"]
    ]
    grace = spec["terminationGracePeriodSeconds"] + more
    return frozen | {
        "metadata": meta | {"annotations": annotations | {names.ANNOTATION_EXIT: _STREAMS}},
        "spec": spec | {"containers": servers, "terminationGracePeriodSeconds": grace},
    }


def streams(pods: Object) -> bool:
    """Whether a Deployment was rendered for a model that streams its answers: the evidence of last
    resort when a revision's status is lost.
    """
    annotations = (pods["spec"]["template"].get("metadata") or {}).get("annotations") or {}
    return bool(annotations.get(names.ANNOTATION_EXIT) == _STREAMS)


def drain_of(template: Object) -> tuple[int, int] | None:
    """preStop and exit timeout of a pod template, in seconds; None for one of another form."""
    with contextlib.suppress(KeyError, TypeError, ValueError, StopIteration):
        container = next(c for c in template["spec"]["containers"] if c["name"] == TRITON)
        flag = next(a for a in container["args"] if a.startswith(f"{_EXIT_FLAG}="))
        return int(container["lifecycle"]["preStop"]["sleep"]["seconds"]), int(flag.partition("=")[2])
    return None


def grace_once_proven_worse(frozen: Object) -> int | None:
    """Grace period of a pod of this template once its version is proven worse: as if its exit
    timeout were WORSE_SECONDS at most. None: the template is of another form.
    """
    before = drain_of(frozen)
    if before is None:
        return None
    spared = max(0, before[1] - WORSE_SECONDS)
    return int(frozen["spec"]["terminationGracePeriodSeconds"]) - spared


def takes_warmup(builder: str) -> bool:
    """Whether the loader in a template that this builder rendered takes warm-up requests: earlier
    ones refuse fields that they do not know.
    """
    return builder.isdecimal() and int(builder) >= _TAKES_WARMUP


def _serves(serving: Serving) -> Object:
    """What the loader may place for this server: only this backend, and code only if allowed."""
    triton = serving.triton
    return {} if triton.backend is None else {"backend": triton.backend, "code": triton.code == "Allowed"}


def _no_gpu(serving: Serving, gpus: GpuTable) -> list[Object]:
    """Hides the node's GPUs from a server that requests none: images of CUDA ask for all of them,
    and NVIDIA's runtime gives what an image asks for. Where a GPU is requested the device plugin
    says which, and a variable here would win; so would it where the table does not know the plugin.
    """
    pod = serving.pod or Pod()
    if pod.runtime_class_name is None or gpus.may_have_gpu(serving.resources.limits):
        return []
    return [{"name": VISIBLE_GPUS, "value": "void"}]


def tolerations(serving: Serving, requested: Iterable[Resources], gpus: GpuTable) -> list[Any]:
    """Those of the spec, plus the usual ones of the nodes that have what the pod requests."""
    specified: list[Any] = list(serving.tolerations or [])
    for key in dict.fromkeys(key for r in requested for key in gpus.tolerated(r.limits)):
        usual = {"key": key, "operator": "Exists", "effect": "NoSchedule"}
        if usual not in specified:
            specified.append(usual)
    return specified


def _size(own: int | str | None, usual: str) -> str:
    return usual if own is None else str(own)


def _disk(sizes: SizeLimits) -> str:
    """The default limit on the node's disk: room for both volumes, and for what a server logs."""
    if sizes.models is None and sizes.tmp is None:
        return _DISK
    parts = (_size(sizes.models, _DISK_MODELS), _size(sizes.tmp, _DISK_TMP), _DISK_LOGS)
    return str(math.ceil(sum(map(quantity, parts))))


def _volume(volume: Volume) -> Object:
    made: Object = {"name": f"mnt-{volume.name}"}
    if volume.secret is not None:
        return made | {"secret": {"secretName": volume.secret.name, "defaultMode": 0o440}}
    if volume.config_map is not None:
        return made | {"configMap": volume.config_map.wire()}
    assert volume.persistent_volume_claim is not None
    return made | {"persistentVolumeClaim": volume.persistent_volume_claim.wire() | {"readOnly": True}}


def _mount(volume: Volume) -> Object:
    """All in one folder, where no program of the image looks by itself."""
    return {"name": f"mnt-{volume.name}", "mountPath": f"/mnt/{volume.name}", "readOnly": True}


def _spread(version: Version, pod: Pod) -> list[Object]:
    """How its pods are spread. A constraint of the spec cannot name the revision, which has no name
    while the spec is written.
    """
    own = {
        "labelSelector": {
            "matchLabels": {
                names.LABEL_REVISION: version.revision,
                names.LABEL_COMPONENT: names.COMPONENT_SERVER,
            }
        }
    }
    usual = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
    }
    return [own | constraint for constraint in pod.topology_spread_constraints or [usual]]


def _placement(serving: Serving, gpus: GpuTable) -> Object:
    placement: Object = {}
    for key, value in (serving.pod or Pod()).wire().items():
        if key in ("runtimeClassName", "priorityClassName", "schedulerName"):
            placement[key] = value
    if tolerated := tolerations(serving, [serving.resources], gpus):
        placement["tolerations"] = tolerated
    if serving.node_selector:
        placement["nodeSelector"] = dict(serving.node_selector)
    if serving.affinity:
        placement["affinity"] = serving.affinity
    if serving.service_account_name:
        placement["serviceAccountName"] = serving.service_account_name
    if serving.image_pull_secrets:
        placement["imagePullSecrets"] = [s.wire() for s in serving.image_pull_secrets]
    return placement


def server_selector(deployment: str, revision: str | None) -> dict[str, str]:
    """Selector of the pods of one revision, or of all revisions of a ModelDeployment."""
    selector = {names.LABEL_NAME: deployment, names.LABEL_COMPONENT: names.COMPONENT_SERVER}
    if revision:
        selector[names.LABEL_REVISION] = revision
    return selector


def server_deployment(
    owner: Owner,
    version: Version,
    frozen: Object,
    artifact: Artifact,
    replicas: int,
    config: OperatorConfig,
    *,
    restarted: str | None = None,
    serving: ServingConfig | None = None,
    ends_first: bool = False,
) -> Object:
    """Deployment of a revision (its owner): the frozen template plus the artifact to fetch and
    verify, the ``serving`` configuration that tuning chose, and when its pods were last restarted.
    ``ends_first``: a replaced pod ends before its successor starts.
    """
    spec = frozen["spec"]
    meta = frozen["metadata"]
    if restarted:
        meta = meta | {
            "annotations": (meta.get("annotations") or {}) | {names.ANNOTATION_RESTARTED: restarted}
        }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(owner, owner.name, version.labels()),
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 0,
            "selector": {"matchLabels": server_selector(version.deployment, version.revision)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": int(ends_first), "maxSurge": int(not ends_first)},
            },
            "template": {
                "metadata": meta,
                "spec": (spec | {"initContainers": _fetching(spec, version, artifact, config, serving)}),
            },
        },
    }


def _fetching(
    spec: Object,
    version: Version,
    artifact: Artifact,
    config: OperatorConfig,
    serving: ServingConfig | None = None,
) -> list[Object]:
    """Init containers of the frozen pod, with the task to fetch the artifact."""
    location = artifact_location(config, artifact.uri, to_read=True).location
    fetch = FetchTask(
        # The frozen pod mounts the Secret that was configured then, or none. Another name would
        # restart it, and it would not find that Secret.
        artifact=location.model_copy(update={"credentials": _mounted(spec)}),
        digest=artifact.digest,
        model=version.deployment,
        number=version.number,
        target=REPOSITORY,
        serving=serving,
    )
    # Without defaults: a field that a newer operator adds must not change the text, or an upgrade
    # would restart every pod.
    task = names.canonical_json({"task": fetch.task, **fetch.model_dump(mode="json", exclude_defaults=True)})
    env = [{"name": TASK_ENV, "value": task}]
    return [
        c | {"env": [*c.get("env", []), *env]} if c["name"] == FETCH else c for c in spec["initContainers"]
    ]


def _mounted(spec: Object) -> str | None:
    """The folder with the artifact store's credentials that the frozen pod has."""
    mounts = [m for c in spec["initContainers"] if c["name"] == FETCH for m in c.get("volumeMounts") or []]
    folder = f"{CREDENTIALS_DIR}/{ARTIFACTS}"
    return ARTIFACTS if any(m["mountPath"] == folder for m in mounts) else None


# No priorityClassName: only what serves may displace other pods.
_ALIKE = (
    "tolerations",
    "nodeSelector",
    "affinity",
    "serviceAccountName",
    "imagePullSecrets",
    "runtimeClassName",
    "schedulerName",
)


def beside(frozen: Object, version: Version, artifact: Artifact, config: OperatorConfig) -> Object:
    """Parts of the spec of a pod that has a server of the frozen template as a sidecar: same image,
    resources, placement and artifact.

    It is a native sidecar (an init container that keeps running), so the pod ends with its program.
    It loads no model until the program requests it.
    """
    spec = frozen["spec"]
    (triton,) = spec["containers"]
    resources = on_disk(triton.get("resources") or {}, _DISK)
    sidecar = for_tuning(triton) | {"restartPolicy": "Always", "resources": resources}
    placement = {key: spec[key] for key in _ALIKE if key in spec}
    # An earlier operator froze it without limits; a pod's limit is the sum of its containers'.
    fetching = _fetching(spec, version, artifact, config)
    inits = [
        *(c | {"resources": on_disk(c.get("resources") or {}, resources["limits"][DISK])} for c in fetching),
        sidecar,
    ]
    return placement | {"initContainers": inits, "volumes": bounded(spec["volumes"], _DISK_MODELS)}


def fetch_task(server: Object) -> FetchTask | None:
    """What the pods of a Deployment fetch, and with which settings they serve it: the evidence of
    last resort when a revision's status is lost.
    """
    for container in server["spec"]["template"]["spec"].get("initContainers") or []:
        for variable in container.get("env") or []:
            if container["name"] == FETCH and variable["name"] == TASK_ENV:
                with contextlib.suppress(ValidationError):
                    return FetchTask.model_validate_json(variable.get("value") or "")
    return None


def restarted_at(server: Object) -> str | None:
    """When the pods of a Deployment were last restarted, as its annotation says."""
    annotations = (server["spec"]["template"].get("metadata") or {}).get("annotations") or {}
    return annotations.get(names.ANNOTATION_RESTARTED)


def _service(owner: Owner, name: str, own_labels: dict[str, str], selector: dict[str, str]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(owner, name, own_labels),
        "spec": {
            "selector": selector,
            "ports": [
                {"name": "http", "port": names.PORT_HTTP, "targetPort": "http", "protocol": "TCP"},
                # Gateways speak HTTP/1.1 to backends by default; gRPC needs HTTP/2 without TLS.
                {
                    "name": "grpc",
                    "port": names.PORT_GRPC,
                    "targetPort": "grpc",
                    "protocol": "TCP",
                    "appProtocol": "kubernetes.io/h2c",
                },
            ],
        },
    }


def revision_service(owner: Owner, deployment: str, number: int) -> Object:
    """Service of one revision, a backend of the routes."""
    return _service(
        owner,
        owner.name,
        labels(deployment, names.COMPONENT_SERVER, owner.name, number),
        server_selector(deployment, owner.name),
    )


def stable_service(owner: Owner, selector_revision: str | None) -> Object:
    """The one address inside the cluster; ``selector_revision`` None sends to every ready pod
    (replica-weighted canary).
    """
    return _service(
        owner,
        owner.name,
        labels(owner.name, names.COMPONENT_SERVER),
        server_selector(owner.name, selector_revision),
    )


def preview_service(owner: Owner, revision: str) -> Object:
    """The address inside the cluster of the new revision in a blue-green rollout."""
    name = names.preview_name(owner.name)
    return _service(
        owner, name, labels(owner.name, names.COMPONENT_SERVER), server_selector(owner.name, revision)
    )


def disruption_budget(owner: Owner, revision: str) -> Object:
    """Lets a drain take one of stable's pods at a time."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(owner, owner.name, labels(owner.name, names.COMPONENT_SERVER)),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": server_selector(owner.name, revision)}},
    }


def canary_budget(owner: Owner, deployment: str, number: int) -> Object:
    """The same for a canary's pods that are ready. Those that are not hold up no drain: a version
    may be so bad that none ever is.
    """
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(
            owner, owner.name, labels(deployment, names.COMPONENT_SERVER, owner.name, number)
        ),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": server_selector(deployment, owner.name)},
        },
    }
