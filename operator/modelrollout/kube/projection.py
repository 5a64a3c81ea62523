"""Which parts of an object are kept in memory: those that some decision reads.

Children are compared with what is desired, so everything that the operator sets is kept; of pods
and Jobs only the parts below are read. Nothing is written back from a projection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from modelrollout.api import names
from modelrollout.contract.common import TASK_ENV
from modelrollout.kube.field_ownership import foreign_entries
from modelrollout.kube.kinds import GATEWAY, GATEWAY_CLASS, JOB, POD, Resource
from modelrollout.kube.objects import Object, label, own_annotations

# characters of what a pod or a container says; the kubelet takes no more bytes of a container
MESSAGE = 4096
_METADATA = (
    "name", "generateName", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp",
    "deletionTimestamp", "deletionGracePeriodSeconds", "labels",
    "ownerReferences",
)  # fmt: skip
_CONTAINER = ("name", "image", "command", "args", "resources", "restartPolicy")
# Of a Job's template and its pods: all by which they are compared (``kube.diff``).
_OF_JOB = (
    *_CONTAINER, "workingDir", "env", "envFrom", "volumeMounts", "volumeDevices", "lifecycle",
    "securityContext", "livenessProbe", "readinessProbe",
    "startupProbe", "terminationMessagePath", "terminationMessagePolicy",
)  # fmt: skip
_POD_OF_JOB = ("volumes", "securityContext", "shareProcessNamespace", "hostPID", "hostIPC", "hostNetwork")
_CONTAINER_STATUS = ("name", "image", "ready", "restartCount", "state", "lastState")
_CONDITION = ("type", "status", "reason", "message", "lastTransitionTime")
_STATED = ("type", "status", "reason", "message", "observedGeneration")
_LISTENER = ("name", "hostname", "protocol", "allowedRoutes")


def project(resource: Resource, obj: Object) -> Object:
    """The object as it is kept."""
    if resource == POD:
        spec = _pod_spec(obj.get("spec"), of_job=label(obj, names.LABEL_JOB) is not None)
        return _with(
            obj, metadata=_some(obj["metadata"], _METADATA), spec=spec, status=_pod_status(obj.get("status"))
        )
    if resource == JOB:
        metadata = obj["metadata"]
        spec = obj.get("spec") or {}
        template = {"spec": _pod_spec((spec.get("template") or {}).get("spec"), of_job=True)}
        return _with(
            obj,
            metadata=_some(metadata, _METADATA) | {"annotations": own_annotations(obj)},
            spec={**spec, "template": template},
            status=obj.get("status"),
        )
    if resource == GATEWAY:
        return _gateway(obj)
    if resource == GATEWAY_CLASS:
        spec, status = _some(obj.get("spec") or {}, ("controllerName",)), obj.get("status") or {}
        return _with(
            obj,
            metadata=_some(obj["metadata"], _METADATA),
            spec=spec,
            status=_stated(status) | _some(status, ("supportedFeatures",)),
        )
    metadata = {k: v for k, v in obj["metadata"].items() if k != "managedFields"}
    if metadata.get("annotations"):
        metadata["annotations"] = own_annotations(obj)
    if resource.child and (
        edits := foreign_entries(obj["metadata"].get("managedFields"), names.FIELD_MANAGER)
    ):
        metadata["managedFields"] = edits
    return {**obj, "metadata": metadata}


def _gateway(obj: Object) -> Object:
    """Without counts of attached routes: each route of any tenant changes them."""
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    return _with(
        obj,
        metadata=_some(obj["metadata"], _METADATA),
        spec=_some(spec, ("gatewayClassName",))
        | {"listeners": [_some(x, _LISTENER) for x in _maps(spec.get("listeners"))]},
        status=_stated(status)
        | {"listeners": [_some(x, ("name",)) | _stated(x) for x in _maps(status.get("listeners"))]},
    )


def _stated(status: Mapping[str, Any]) -> Object:
    """The conditions, without their times."""
    return {"conditions": [_cut(_some(c, _STATED)) for c in _maps(status.get("conditions"))]}


def _maps(value: Any) -> list[Mapping[str, Any]]:
    return [x for x in value if isinstance(x, Mapping)] if isinstance(value, list) else []


def node_for_capacity(obj: Object) -> Object:
    """The parts of a node that say how many GPUs it has and which pods may run there."""
    status = _some(obj.get("status") or {}, ("allocatable", "conditions"))
    return _with(
        obj, metadata=_some(obj["metadata"], ("name", "labels")), spec=obj.get("spec"), status=status
    )


def pod_for_capacity(obj: Object) -> Object:
    """The parts of a pod that say how many GPUs it uses, and where."""
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    requested = {
        part: [_some(c, ("resources", "restartPolicy")) for c in spec.get(part) or []]
        for part in ("containers", "initContainers")
    }
    placed = requested | _some(spec, ("nodeName",))
    return _with(
        obj,
        metadata=_some(obj["metadata"], ("name", "namespace")),
        spec=placed,
        status=_some(status, ("phase",)),
    )


def route_for_hostnames(obj: Object) -> Object:
    """The parts of a route that say which requests it takes."""
    return {
        "kind": obj["kind"],
        "metadata": _some(obj["metadata"], ("namespace", "name")),
        "spec": obj.get("spec"),
        "status": obj.get("status"),
    }


def event_for_message(obj: Object) -> Object:
    """The message of an Event, and its time."""
    metadata = _some(obj["metadata"], ("name",))
    return {"metadata": metadata} | _some(obj, ("lastTimestamp", "eventTime", "message"))


def _with(obj: Object, **parts: Any) -> Object:
    return _some(obj, ("apiVersion", "kind")) | {k: v for k, v in parts.items() if v is not None}


def _some(value: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    return {k: value[k] for k in fields if k in value}


def _pod_spec(spec: Any, *, of_job: bool) -> Object | None:
    if spec is None:
        return None
    parts = {
        part: [_container(c, of_job) for c in spec[part]]
        for part in ("initContainers", "containers")
        if spec.get(part)
    }
    if of_job:
        parts |= (
            {"ephemeralContainers": [_some(c, ("name",)) for c in spec["ephemeralContainers"]]}
            if spec.get("ephemeralContainers")
            else {}
        )
        parts |= _some(spec, _POD_OF_JOB)
    return _some(spec, ("nodeName", "serviceAccountName")) | parts


def _container(container: Mapping[str, Any], of_job: bool) -> Object:
    if of_job:
        return _some(container, _OF_JOB)
    task = [e for e in container.get("env") or [] if e.get("name") == TASK_ENV]
    return _some(container, _CONTAINER) | ({"env": task} if task else {})


def _pod_status(status: Any) -> Object | None:
    if status is None:
        return None
    projected: Object = _cut(_some(status, ("phase", "reason", "message", "startTime", "podIP")))
    if conditions := status.get("conditions"):
        projected["conditions"] = [_cut(_some(c, _CONDITION)) for c in conditions]
    for part in ("initContainerStatuses", "containerStatuses"):
        if of := status.get(part):
            projected[part] = [_cut(_some(c, _CONTAINER_STATUS)) for c in of]
    return projected


def _cut(value: Any) -> Any:
    """The value with its texts cut to MESSAGE characters."""
    if isinstance(value, str):
        return value[:MESSAGE]
    if isinstance(value, dict):
        return {k: _cut(v) for k, v in value.items()}
    return value
