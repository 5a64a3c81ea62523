"""Diagnoses pods: why they are blocked, and what a finished one reported."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from modelrollout.api import names
from modelrollout.contract.common import CONTAINER_STEP
from modelrollout.contract.results import TaskResult
from modelrollout.kube.objects import (
    Object,
    condition,
    controller_of,
    controller_reference,
    is_deleting,
    label,
)
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.resources.hardening import DIED, TRITON
from modelrollout.resources.jobs.common import CRASHED, FINAL, KILLED, TERMINATED, TRUSTED_CONTAINERS
from modelrollout.rollout.pod_restarts import TOO_OLD, TOO_OLD_WHY
from modelrollout.rollout.snapshot import Crash
from modelrollout.triton.layout import WARMUP

_IMAGE_REASONS = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "RegistryUnavailable",
}
# What tritonserver logs when its only model cannot be loaded: about the model, and as its last
# line; with model control none or explicit.
_LOAD_FAILED = re.compile(
    r"(?:failed to load '[^']*' version \d+|[Pp]oll failed for model directory '[^']*'): (.*?)(?:\"?$)",
    re.MULTILINE,
)
_LOAD_FAILED_EXPLICIT = re.compile(
    r"load failed for model '.*?': version \d+ is at UNAVAILABLE state: (.*)", re.DOTALL
)
_NOT_CREATED = "error: creating server: Internal - failed to load all models"
# What it logs for an unknown flag: the flag, then its long help, of which the termination message
# has only the end.
_USAGE = re.compile(r"^  --[a-z][a-z-]+ <[a-z]+>\n\t", re.MULTILINE)
_NO_BACKEND = re.compile(r"unable to find backend library for backend '([^']*)'")
_TEMPLATE_HASH = "pod-template-hash"  # label of Kubernetes
_SAID = 300  # characters of a user's container's message that a problem quotes
_CONFIG_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
# Reasons of the condition DisruptionTarget; all others (the eviction API, the kubelet under
# pressure or shutting down) evict.
_DISRUPTIONS = {
    "PreemptionByScheduler": "Preempted",
    "DeletionByTaintManager": Reason.NODE_LOST,
    "DeletionByPodGC": Reason.NODE_LOST,
}
# what the kubelet writes of a container whose end it has not seen, for example after a reboot
_LOST_TRACK = {"Unknown", "ContainerStatusUnknown"}
_LARGEST = 2**53  # beyond that the API server takes no number for an integer
_HOPELESS = {Reason.OUT_OF_DISK, Reason.DEADLINE_EXCEEDED, Reason.OUT_OF_MEMORY, Reason.CONTAINER_FAILED}


@dataclass(frozen=True)
class Ending:
    """How a Job's pod ended. ``hopeless``: another would end the same way, which the Job controller
    cannot always tell and tries again.
    """

    exit_code: int | None
    result: TaskResult | None
    problem: Problem | None = None
    hopeless: bool = False
    at: str | None = None  # when, as the kubelet writes times


def pods_of_job(pods: Iterable[Object], job: Object) -> list[Object]:
    """The pods that this Job controls. Their results count only if they also match the Job's
    template (``controller.observe.job_state``).
    """
    return [p for p in pods if controller_of(p) == job["metadata"]["uid"]]


def pods_of_server(pods: Iterable[Object], deployment: Object) -> list[Object]:
    """Those that a ReplicaSet of this Deployment controls. The Deployment controller names it after
    the Deployment and the template's hash, which pods carry as a label. ReplicaSets themselves are
    not watched: people who may write those may write pods.
    """
    return [p for p in pods if _is_server_of(p, deployment["metadata"]["name"])]


def ending_servers(pods: Iterable[Object]) -> tuple[Object, ...]:
    """The pods of servers that are being deleted, also where their Deployment is gone already."""
    return tuple(
        p
        for p in pods
        if is_deleting(p)
        and not has_ended(p)
        and label(p, names.LABEL_COMPONENT) == names.COMPONENT_SERVER
        and _is_server_of(p, label(p, names.LABEL_REVISION) or "")
    )


def _is_server_of(pod: Object, name: str) -> bool:
    owner = controller_reference(pod)
    return owner.get("kind") == "ReplicaSet" and owner.get("name") == (
        f"{name}-{label(pod, _TEMPLATE_HASH) or ''}"
    )


def has_ended(pod: Object) -> bool:
    """Whether the pod has finished, successfully or not."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def pod_problem(pods: Iterable[Object]) -> Problem | None:
    """The first problem of these pods, as kubectl describe would show it."""
    for pod in _alive(pods):
        status = pod.get("status") or {}
        scheduled = condition(pod, "PodScheduled")
        if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
            return Problem(
                Reason.UNSCHEDULABLE,
                f"pod {pod['metadata']['name']}: {scheduled.get('message', 'no node fits')}",
            )
        for container in _containers(status):
            problem = _container_problem(pod["metadata"]["name"], container)
            if problem:
                return problem
    return None


def _containers(status: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The containers that matter now. Once the main containers run, the init containers are done,
    and a restart of the sidecar is what the program beside it expects.
    """
    if not any("running" in (c.get("state") or {}) for c in status.get("containerStatuses") or []):
        yield from status.get("initContainerStatuses") or []
    yield from status.get("containerStatuses") or []


def _container_problem(pod: str, container: Mapping[str, Any]) -> Problem | None:
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    where = f"pod {pod}, container {container['name']}"
    if reason in _IMAGE_REASONS:
        return Problem(
            Reason.IMAGE_PULL_FAILED,
            f"{where}: image {container.get('image')} cannot be pulled: {message}; check the name and"
            " imagePullSecrets",
        )
    if reason in _CONFIG_REASONS:
        return Problem(Reason.CONTAINER_CONFIG_ERROR, f"{where}: {message}")
    last = (container.get("lastState") or {}).get("terminated") or state.get("terminated") or {}
    if reason == "CrashLoopBackOff" or (
        container.get("restartCount", 0) > 0 and last.get("exitCode", 0) != 0 and not container.get("ready")
    ):
        return _why_ended(where, last)
    return None


def _why_ended(where: str, ended: Mapping[str, Any]) -> Problem:
    """Why a container ended that should have kept running."""
    message = ended.get("message") or ""
    if result := _result(message):
        return Problem(result.reason, f"{where}: {result.message}")
    if ended.get("reason") == "OOMKilled":
        return Problem(
            Reason.OUT_OF_MEMORY,
            f"{where} was killed for using more memory than its limit; raise resources.limits.memory",
        )
    if _USAGE.search(message):
        return Problem(TOO_OLD, f"{where}: {TOO_OLD_WHY}")
    if unloaded := _not_loaded(message):
        return Problem(unloaded.reason, f"{where}: {unloaded.message}")
    if DIED in message:
        return Problem(
            Reason.SERVER_CRASHED,
            f"{where}: {DIED}, so the server was restarted; see kubectl logs --previous",
        )
    return Problem(Reason.SERVER_CRASHED, f"{where} {_how_ended(ended)}; see kubectl logs --previous")


def _how_ended(ended: Mapping[str, Any]) -> str:
    """The signal that ended a container, or its exit code. Container runtimes add 128 to a
    signal's number.
    """
    code = ended.get("exitCode", 0)
    number = ended.get("signal") or (code - 128 if 128 < code < 128 + signal.NSIG else 0)
    if not number:
        return f"ended with code {code}"
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    probe = ", by its liveness probe or by hand" if number in (signal.SIGTERM, signal.SIGKILL) else ""
    return f"was ended by {name}{probe} (exit code {code})"


def _not_loaded(log: str) -> Problem | None:
    """Why Triton did not load the model, from the end of its log."""
    match = _LOAD_FAILED_EXPLICIT.search(log) or _LOAD_FAILED.search(log)
    if match is None:
        return (
            Problem(
                Reason.MODEL_NOT_LOADED, "Triton does not load the model; kubectl logs --previous says why"
            )
            if _NOT_CREATED in log
            else None
        )
    why = " ".join(match[1].replace("\\n", " ").split())[:400].rstrip("; ")
    if backend := _NO_BACKEND.search(why):
        remedy = "set spec.serving.triton.image to one that has it"
        return Problem(Reason.BACKEND_MISSING, f"the Triton image has no backend {backend[1]}: {remedy}")
    if f"failed to run warmup sample '{WARMUP}" in why:
        return Problem(
            Reason.MODEL_NOT_LOADED,
            f"Triton does not load the model: {why}; its prepare Job got an answer to the same requests, on"
            " the CPU: give the pods more memory, or lower spec.serving.batching.maxBatchSize",
        )
    return Problem(
        Reason.MODEL_NOT_LOADED,
        f"Triton does not load the model: {why}; is it made for this image and this GPU?",
    )


def crashes(pods: Iterable[Object]) -> tuple[Crash, ...]:
    """Of each pod the latest end of a server that should still run, and how many there were.

    The kubelet has restarted it since, or is about to; or it evicted the pod for exceeding a limit
    of its own. No other end is the server's doing: not that of a pod that is being deleted, not an
    eviction that a node needs, not what a reboot left (reason Unknown).
    """
    return tuple(
        crash
        for pod in pods
        if not is_deleting(pod)
        for container in _servers(pod)
        if (crash := _crash(pod, container)) is not None
    )


def _crash(pod: Object, container: Mapping[str, Any]) -> Crash | None:
    ended = _last_end(container)
    at, name = ended.get("finishedAt"), pod["metadata"]["name"]
    if has_ended(pod):
        if not _exceeded_limit(pod["status"]):
            return None
        problem = Problem(
            Reason.SERVER_CRASHED, f"pod {name} was evicted: {pod['status'].get('message', '').strip()}"
        )
    else:
        problem = _why_ended(f"pod {name}, container {container['name']}", ended)
    if not at or ended.get("reason") in _LOST_TRACK:
        return None
    waiting = (container.get("state") or {}).get("waiting") or {}
    # The kubelet counts an end when it starts the next container.
    uncounted = bool(_ended(container)) or waiting.get("reason") == "CrashLoopBackOff"
    return Crash(
        at,
        problem.reason,
        problem.message,
        pod=names.short_hash(pod["metadata"].get("uid", name)),
        created=pod["metadata"].get("creationTimestamp", ""),
        count=container.get("restartCount", 0) + uncounted,
    )


def newest_ready(pods: Iterable[Object]) -> str | None:
    """When a pod last became ready, as the kubelet writes times."""
    ready = [condition(p, "Ready") for p in _alive(pods)]
    return max((at for c in ready if c.get("status") == "True" and (at := _time(c))), default=None)


def _time(of: Mapping[str, Any]) -> str | None:
    """When the condition changed. Whoever may write a pod's status may write nonsense there."""
    at = of.get("lastTransitionTime")
    try:
        datetime.fromisoformat(at or "")
    except ValueError:
        return None
    return at


def server_down(pods: Iterable[Object]) -> Problem | None:
    """Why a server that was ready no longer is. One that starts for the first time is not down."""
    for pod in _alive(pods):
        name, ready = pod["metadata"]["name"], condition(pod, "Ready")
        if ready.get("status") != "False":
            continue
        for container in _servers(pod):
            begun = ((container.get("state") or {}).get("running") or {}).get("startedAt")
            if not container.get("ready") and (ended := _last_end(container)):
                return _why_ended(f"pod {name}, container {container['name']}", ended)
            if begun and (ready.get("lastTransitionTime") or "") > begun:
                lost = (
                    "its node does not answer"
                    if container.get("ready")
                    else "see kubectl describe and its log"
                )
                return Problem(Reason.SERVER_NOT_READY, f"pod {name} was ready and no longer is: {lost}")
    return None


def _servers(pod: Object) -> list[Mapping[str, Any]]:
    return [c for c in (pod.get("status") or {}).get("containerStatuses") or [] if c.get("name") == TRITON]


def _last_end(container: Mapping[str, Any]) -> Mapping[str, Any]:
    return _ended(container) or (container.get("lastState") or {}).get("terminated") or {}


def starting_pods(pods: Iterable[Object]) -> list[Object]:
    """Pods that neither ended nor are being deleted, and of which no container runs yet."""
    return [
        p
        for p in _alive(pods)
        if not any("running" in (c.get("state") or {}) for c in _containers(p.get("status") or {}))
    ]


def starting_since(pod: Object) -> str | None:
    """Since when a starting pod has been idle: its creation, or the end of its latest container."""
    ends = [_ended(c).get("finishedAt") for c in _containers(pod.get("status") or {})]
    return max((t for t in (pod["metadata"].get("creationTimestamp"), *ends) if t), default=None)


def any_running(pods: Iterable[Object]) -> bool:
    """Whether a container of any of them runs."""
    alive = _alive(pods)
    return len(alive) > len(starting_pods(alive))


def _alive(pods: Iterable[Object]) -> list[Object]:
    return [p for p in pods if not is_deleting(p) and not has_ended(p)]


def stuck_pod(pods: Iterable[Object]) -> tuple[str, Problem] | None:
    """Since when a deleted pod has failed to terminate. Its node no longer answers, or it would be
    gone within seconds.
    """
    for pod in pods:
        gone = pod["metadata"].get("deletionTimestamp")
        if gone and not has_ended(pod):
            return gone, Problem(
                Reason.NODE_LOST, f"{_where(pod)} should have terminated, but its node does not answer"
            )
    return None


def _result(message: str) -> TaskResult | None:
    """The result in a termination message. An untrusted file may have taken the program over: a
    number that no status can hold would fail every write of it.
    """
    try:
        result = TaskResult.model_validate_json(message)
    except ValidationError:
        return None
    return result if _can_be_written(result.model_dump()) else None


def _can_be_written(value: Any) -> bool:
    match value:
        case int():
            return abs(value) <= _LARGEST
        case float():
            return math.isfinite(value)
        case dict():
            return all(map(_can_be_written, value.values()))
        case list() | tuple():
            return all(map(_can_be_written, value))
    return True


def _ended(container: Mapping[str, Any]) -> Mapping[str, Any]:
    return (container.get("state") or {}).get("terminated") or {}


def _that_ended(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The containers that ended, or else init containers that failed before those began. Sidecars
    do not count: Kubernetes terminates them.
    """
    ended = [c for c in status.get("containerStatuses") or [] if _ended(c)]
    return ended or [
        c for c in status.get("initContainerStatuses") or [] if _ended(c).get("exitCode", 0) != 0
    ]


def ending(pods: Iterable[Object]) -> Ending | None:
    """How the newest finished pod of a Job ended; None when none has finished. The container that
    ended the pod counts.

    If the pod was evicted, the reason of the eviction says more than what the program wrote on
    SIGTERM. After a kill there is no message, so the reason is the pod's. A user's container never
    yields an exit code or a result, and an artifact counts only from containers that open no
    untrusted file.
    """
    ended = [p for p in pods if has_ended(p)]
    if not ended:
        return None
    pod = max(ended, key=lambda p: p["metadata"].get("creationTimestamp", ""))
    status = pod["status"]
    last: Mapping[str, Any] = next(iter(_that_ended(status)), {})
    done, at = _ended(last), _ended(last).get("finishedAt")
    theirs = last.get("name") == CONTAINER_STEP
    code, result = (None, None) if theirs else (done.get("exitCode"), _result(done.get("message") or ""))
    if result is not None and last.get("name") not in TRUSTED_CONTAINERS:
        result = result.model_copy(update={"artifact_uri": None, "artifact_digest": None})
    if status["phase"] == "Succeeded" or (result is not None and code in FINAL):
        return Ending(code, result, at=at)
    if problem := disruption(pod):
        return Ending(code, None, problem, at=at)
    if problem := _pod_ended(pod) or (_container_step_problem(pod, done) if theirs else _killed(pod, last)):
        return Ending(code, None, problem, hopeless=problem.reason in _HOPELESS, at=at)
    return Ending(code, result, at=at)


def disruption(pod: Object) -> Problem | None:
    """Why the pod was evicted: the condition DisruptionTarget, which Kubernetes sets beforehand."""
    target = condition(pod, "DisruptionTarget")
    if target.get("status") != "True":
        return None
    reason = _DISRUPTIONS.get(target.get("reason", ""), Reason.EVICTED)
    return Problem(reason, f"{_where(pod)} was taken away: {target.get('message') or target.get('reason')}")


def _pod_ended(pod: Object) -> Problem | None:
    """Why the kubelet ended or refused the whole pod."""
    reason, message = pod["status"].get("reason"), pod["status"].get("message", "")
    if _exceeded_limit(pod["status"]):
        name = CONTAINER_STEP if f"Container {CONTAINER_STEP} " in message else ""
        return Problem(
            Reason.OUT_OF_DISK,
            f"{_where(pod)}: {message.strip()}; raise {_field(pod, name, 'ephemeral-storage')}",
        )
    if reason == "DeadlineExceeded":
        limit = (
            "spec.serving.tune.timeout"
            if label(pod, names.LABEL_COMPONENT) == names.COMPONENT_TUNE
            else "spec.optimization.timeout"
        )
        return Problem(
            Reason.DEADLINE_EXCEEDED, f"{_where(pod)} was ended by the kubelet: {message}; raise {limit}"
        )
    if reason == "Evicted":
        return Problem(Reason.EVICTED, f"{_where(pod)} was taken away: {message}")
    return Problem(Reason.POD_REFUSED, f"{_where(pod)}: {reason}: {message}") if reason else None


def _exceeded_limit(status: Mapping[str, Any]) -> bool:
    """Whether the kubelet evicted the pod for a limit of its own. When the node is low on something
    the kubelet speaks of no limit.
    """
    return status.get("reason") == "Evicted" and "limit" in status.get("message", "")


def _container_step_problem(pod: Object, done: Mapping[str, Any]) -> Problem:
    """How the user's own container of an optimization step failed. Its output is untrusted: the
    last line is quoted, and it is never a result.
    """
    if done.get("reason") == "OOMKilled":
        return _out_of_memory(pod, CONTAINER_STEP)
    code = done.get("exitCode")
    if code in TERMINATED and pod["metadata"].get("deletionTimestamp"):
        return Problem(Reason.EVICTED, f"{_where(pod)} was terminated while the container of the step ran")
    lines = [line for line in str(done.get("message") or "").splitlines() if line.strip()]
    last = "".join(c for c in lines[-1] if c.isprintable()).strip()[:_SAID] if lines else "it said nothing"
    return Problem(
        Reason.CONTAINER_FAILED,
        f"the container of the step ended with code {code}: {last}; see the log of container"
        f" {CONTAINER_STEP}",
    )


def _killed(pod: Object, container: Mapping[str, Any]) -> Problem | None:
    """Why the kernel or a person on the node ended one of our containers."""
    done = _ended(container)
    code = done.get("exitCode", 0)
    if done.get("reason") == "OOMKilled":
        return _out_of_memory(pod, container.get("name", ""))
    if code == KILLED:
        return Problem(Reason.KILLED, f"{_where(pod)} was killed (SIGKILL), and not for its memory")
    if code in CRASHED:
        return Problem(
            Reason.JOB_CRASHED,
            f"{_where(pod)} crashed in native code (signal {code - 128}); its log may say where. The same"
            " file would do so again",
        )
    return None


def _out_of_memory(pod: Object, container: str) -> Problem:
    limit = _limit(pod, container, "memory")
    used = f"its limit of {limit}" if limit else "the node's memory, for it has no limit"
    who = f"{_where(pod)}{': the container of the step' if container == CONTAINER_STEP else ''}"
    return Problem(
        Reason.OUT_OF_MEMORY,
        f"{who} was killed for using more memory than {used}; raise {_field(pod, container, 'memory')}",
    )


def _where(pod: Object) -> str:
    node = (pod.get("spec") or {}).get("nodeName")
    return f"pod {pod['metadata']['name']}" + (f" on node {node}" if node else "")


def _limit(pod: Object, container: str, resource: str) -> str | None:
    spec = pod.get("spec") or {}
    for c in (*(spec.get("initContainers") or []), *(spec.get("containers") or [])):
        if c["name"] == container and resource in (limits := (c.get("resources") or {}).get("limits") or {}):
            return str(limits[resource])
    return None


def _field(pod: Object, container: str, resource: str) -> str:
    """The field that sizes the container; resolve and evaluate have none, their input decides."""
    if container == CONTAINER_STEP:
        return f"the step's container.resources.limits.{resource}, and say retry on the revision"
    if label(pod, names.LABEL_COMPONENT) in (None, names.COMPONENT_PREPARE):
        return f"spec.optimization.resources.limits.{resource}, and say retry on the revision"
    return "nothing: give it less data"
