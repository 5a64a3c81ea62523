"""Whether a live object has what is desired. PURE.

Compared in one direction: everything desired must be there; what the API server, admission and
schedulers add does not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelrollout.kube.objects import Object
from modelrollout.quantity import quantity

_EXACT = frozenset({"selector", "matchLabels", "matches"})
# Fields of a route's rule that decide what clients get. If the rule leaves one out, it must not be
# added: the gateway's retries would hide the failures of a version on trial.
_OF_RULE = ("filters", "timeouts", "retry", "sessionPersistence")
# Fields of a container that decide which program runs. If the template leaves one out, it must not
# be added.
_PROGRAM = (
    "command", "args", "workingDir", "envFrom", "lifecycle", "restartPolicy", "volumeDevices",
    "livenessProbe", "readinessProbe", "startupProbe",
    "terminationMessagePath", "terminationMessagePolicy",
)  # fmt: skip
# Variables that change the program, even when only added.
_LOADERS = ("LD_", "PYTHON", "PATH", "GLIBC_", "MODELROLLOUT_")
# Where a platform puts tokens into pods: of service accounts, and of workload identities.
_TOKENS = ("/var/run/secrets/", "/run/secrets/")
_SHARED = ("shareProcessNamespace", "hostPID", "hostIPC", "hostNetwork")


def is_up_to_date(live: Any, desired: Any) -> bool:
    """Whether the live object has everything desired; defaults that the API server added do not
    count.

    An empty map or list equals an absent one, and quantities compare by value. Selectors and route
    matches must be equal: one more label selects less.
    """
    # what is equal, which is most, is compared without a step of ours
    return bool(live == desired) or _covers(live, desired)


def _covers(live: Any, desired: Any) -> bool:
    """``is_up_to_date`` of what is not equal."""
    if isinstance(desired, dict):
        if not isinstance(live, dict):
            return not desired and live is None
        if "backendRefs" in desired and any(live.get(k) for k in _OF_RULE if k not in desired):
            return False
        for k, v in desired.items():
            found = live.get(k)
            if found != v and (k in _EXACT or not _covers(found, v)):
                return False
        return True
    if isinstance(desired, list):
        if not isinstance(live, list):
            return not desired and live is None
        return len(live) == len(desired) and all(
            a == b or _covers(a, b) for a, b in zip(live, desired, strict=True)
        )
    if isinstance(desired, int | str) and isinstance(live, int | str) and not isinstance(desired, bool):
        try:
            return quantity(live) == quantity(desired)
        except ValueError:
            return False
    return False


def differing_fields(live: Any, desired: Any, *path: str) -> Iterator[tuple[str, ...]]:
    """Paths of the fields in which the live object lacks what is desired; a list is one field."""
    if not isinstance(desired, dict) or not isinstance(live, dict):
        if not is_up_to_date(live, desired):
            yield path
        return
    for name, value in desired.items():
        if name in _EXACT:
            if live.get(name) != value:
                yield (*path, name)
        else:
            yield from differing_fields(live.get(name), value, *path, name)


def foreign_changes(pod: Mapping[str, Any], template: Mapping[str, Any]) -> str | None:
    """How a pod's spec differs from the Job's template so that it may have run something else; None
    if it does not.

    Additions are allowed for scheduling, resources, volumes, variables, token mounts, and
    containers that share no volume with the template's (a mesh's sidecar).
    """
    return next(_differences(pod, template), None)


def _differences(pod: Mapping[str, Any], template: Mapping[str, Any]) -> Iterator[str]:
    if pod.get("ephemeralContainers"):
        yield f"it has the ephemeral container {pod['ephemeralContainers'][0].get('name')}"
    for field in _SHARED:
        if pod.get(field) and not template.get(field):
            yield f"it has {field}"
    for field in ("securityContext", "serviceAccountName"):
        if field in template and not is_up_to_date(pod.get(field), template[field]):
            yield f"its {field} is another"
    volumes = {v.get("name"): v for v in pod.get("volumes") or []}
    for volume in template.get("volumes") or []:
        own = volumes.get(volume["name"])
        if own is None or set(own) != set(volume) or not is_up_to_date(own, volume):
            yield f"its volume {volume['name']} is another"
    template_volumes = {v["name"] for v in template.get("volumes") or []}
    for part in ("initContainers", "containers"):
        desired = template.get(part) or []
        actual = {c.get("name"): c for c in pod.get(part) or []}
        known = {c["name"] for c in desired}
        if [n for n in actual if n in known] != [c["name"] for c in desired]:
            yield f"its {part} are not {', '.join(c['name'] for c in desired)}"
            continue
        for container in desired:
            yield from (
                f"its container {container['name']} has {what}"
                for what in _changes(actual[container["name"]], container)
            )
        for name, container in actual.items():
            if name not in known and (
                mounted := template_volumes & {m.get("name") for m in container.get("volumeMounts") or []}
            ):
                yield f"its container {name}, which the template has not, mounts the volume {min(mounted)}"


def _changes(container: Mapping[str, Any], desired: Mapping[str, Any]) -> Iterator[str]:
    image, desired_image = container.get("image") or "", desired.get("image") or ""
    # admission may pin a tag by its digest
    if image != desired_image and not image.startswith(
        (f"{desired_image}@sha256:", f"{_repository(desired_image)}@sha256:")
    ):
        yield f"the image {image}"
    for field in _PROGRAM:
        if not container.get(field) and not desired.get(field):
            continue
        if not is_up_to_date(container.get(field), desired.get(field)) or not is_up_to_date(
            desired.get(field), container.get(field)
        ):
            yield f"another {field}"
    if not is_up_to_date(container.get("securityContext"), desired.get("securityContext") or {}):
        yield "another securityContext"
    variables, asked_for = _by(container, "env", "name"), _by(desired, "env", "name")
    for name, value in asked_for.items():
        if not is_up_to_date(variables.get(name), value) or set(variables[name]) != set(value):
            yield f"another value of {name}"
    for name in variables.keys() - asked_for.keys():
        if name.startswith(_LOADERS):
            yield f"the variable {name}"
    mounts, places = _by(container, "volumeMounts", "mountPath"), _by(desired, "volumeMounts", "mountPath")
    for path, mount in places.items():
        if not is_up_to_date(mounts.get(path), mount) or set(mounts[path]) - set(mount) - {
            "recursiveReadOnly"
        }:
            yield f"another volume at {path}"
    for path in mounts.keys() - places.keys():
        if not path.startswith(_TOKENS) or ".." in path:
            yield f"a volume at {path}"


def _repository(image: str) -> str:
    """The image without its tag. An image with a digest stays as it is: the digest identifies the
    program.
    """
    folder, slash, name = image.rpartition("/")
    return image if "@" in image else f"{folder}{slash}{name.partition(':')[0]}"


def _by(container: Mapping[str, Any], field: str, key: str) -> dict[str, Object]:
    """Where one comes twice the last counts, for Kubernetes too."""
    return {entry.get(key, ""): entry for entry in container.get(field) or []}
