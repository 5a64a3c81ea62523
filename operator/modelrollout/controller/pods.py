"""What pods tell: why they do not get on, and what a finished one left behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from modelrollout.api import names
from modelrollout.api.tasks import TaskResult
from modelrollout.kube.client import Object
from modelrollout.resources.jobs import CRASHED, FINAL, KILLED
from modelrollout.rollout.facts import Problem

_IMAGE_REASONS = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
_CONFIG_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
# Reasons of the condition DisruptionTarget; all others (the eviction API, the kubelet under pressure or shutting down) evict.
_DISRUPTIONS = {"PreemptionByScheduler": "Preempted", "DeletionByTaintManager": "NodeLost", "DeletionByPodGC": "NodeLost"}
_HOPELESS = {"OutOfDisk", "DeadlineExceeded"}


@dataclass(frozen=True)
class Ending:
    """How a Job's pod ended. ``hopeless``: another would end the same way, which the Job controller cannot tell and tries again."""

    exit_code: int | None
    result: TaskResult | None
    problem: Problem | None = None
    hopeless: bool = False
    at: str | None = None  # when, as the kubelet writes times


def pod_problem(pods: Iterable[Object]) -> Problem | None:
    """The first thing that stands in the way of these pods, as a person would find it with kubectl describe."""
    for pod in pods:
        status = pod.get("status") or {}
        if pod["metadata"].get("deletionTimestamp") or status.get("phase") in ("Succeeded", "Failed"):
            continue
        for condition in status.get("conditions") or []:
            if condition["type"] == "PodScheduled" and condition["status"] == "False" and condition.get("reason") == "Unschedulable":
                return Problem("Unschedulable", f"pod {pod['metadata']['name']}: {condition.get('message', 'no node fits')}")
        for container in _containers(status):
            problem = _container_problem(pod["metadata"]["name"], container)
            if problem:
                return problem
    return None


def _containers(status: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from status.get("initContainerStatuses") or []
    yield from status.get("containerStatuses") or []


def _container_problem(pod: str, container: Mapping[str, Any]) -> Problem | None:
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    where = f"pod {pod}, container {container['name']}"
    if reason in _IMAGE_REASONS:
        return Problem("ImagePullFailed", f"{where}: image {container.get('image')} cannot be pulled: {message}; check the name and imagePullSecrets")
    if reason in _CONFIG_REASONS:
        return Problem("ContainerConfigError", f"{where}: {message}")
    last = (container.get("lastState") or {}).get("terminated") or state.get("terminated") or {}
    if reason == "CrashLoopBackOff" or (container.get("restartCount", 0) > 0 and last.get("exitCode", 0) != 0 and not container.get("ready")):
        told = _result(last.get("message", ""))
        if told:
            return Problem(told.reason, f"{where}: {told.message}")
        if last.get("reason") == "OOMKilled":
            return Problem("OutOfMemory", f"{where} was killed for using more memory than its limit; raise resources.limits.memory")
        return Problem("ServerCrashed", f"{where} ended with code {last.get('exitCode')}; see kubectl logs --previous")
    return None


def starting(pods: Iterable[Object]) -> list[Object]:
    """Pods that have neither ended nor been told to, with no container that runs yet."""
    return [p for p in _alive(pods) if not any("running" in (c.get("state") or {}) for c in (p.get("status") or {}).get("containerStatuses") or [])]


def running(pods: Iterable[Object]) -> bool:
    """Whether one of them works."""
    alive = _alive(pods)
    return len(alive) > len(starting(alive))


def _alive(pods: Iterable[Object]) -> list[Object]:
    return [p for p in pods if not p["metadata"].get("deletionTimestamp") and (p.get("status") or {}).get("phase") not in ("Succeeded", "Failed")]


def stuck(pods: Iterable[Object]) -> tuple[str, Problem] | None:
    """Since when a pod should have ended that was told to and has not: nobody hears of its node any more, or it would be gone within seconds."""
    for pod in pods:
        gone = pod["metadata"].get("deletionTimestamp")
        if gone and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
            return gone, Problem("NodeLost", f"{_where(pod)} was told to end and its node does not answer")
    return None


def _result(message: str) -> TaskResult | None:
    try:
        return TaskResult.model_validate_json(message)
    except ValidationError:
        return None


def ending(pods: Iterable[Object]) -> Ending | None:
    """How the newest of a Job's pods that have ended did so; None when none has.

    Of a pod that was taken away, who did so says more than what the program wrote when it was told to end. The program's message is lost with the
    pod, and absent after a kill: then the reason is the pod's.
    """
    ended = [p for p in pods if (p.get("status") or {}).get("phase") in ("Succeeded", "Failed")]
    if not ended:
        return None
    pod = max(ended, key=lambda p: p["metadata"].get("creationTimestamp", ""))
    status = pod["status"]
    done: Mapping[str, Any] = next((t for c in status.get("containerStatuses") or [] if (t := (c.get("state") or {}).get("terminated"))), {})
    code, result = done.get("exitCode"), _result(done.get("message") or "")
    at = done.get("finishedAt")
    if status["phase"] == "Succeeded" or (result is not None and code in FINAL):
        return Ending(code, result, at=at)
    if problem := _disruption(pod):
        return Ending(code, None, problem, at=at)
    if problem := _killed(pod, done):
        return Ending(code, None, problem, hopeless=problem.reason in _HOPELESS, at=at)
    return Ending(code, result, at=at)


def _disruption(pod: Object) -> Problem | None:
    """Why somebody else took the pod away: the condition DisruptionTarget, which Kubernetes sets before it does so."""
    for condition in pod["status"].get("conditions") or []:
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            reason = _DISRUPTIONS.get(condition.get("reason", ""), "Evicted")
            return Problem(reason, f"{_where(pod)} was taken away: {condition.get('message') or condition.get('reason')}")
    return None


def _killed(pod: Object, done: Mapping[str, Any]) -> Problem | None:
    """Why the kubelet or the kernel ended it."""
    status = pod["status"]
    reason, message = status.get("reason"), status.get("message", "")
    if reason == "Evicted" and "limit" in message:  # its own; when the node is low on something the kubelet speaks of no limit
        return Problem("OutOfDisk", f"{_where(pod)}: {message.strip()}; raise {_field(pod, 'ephemeral-storage')}")
    if reason == "DeadlineExceeded":
        return Problem("DeadlineExceeded", f"{_where(pod)} was ended by the kubelet: {message}; raise spec.optimization.timeout")
    if reason == "Evicted":
        return Problem("Evicted", f"{_where(pod)} was taken away: {message}")
    if reason:
        return Problem("PodRefused", f"{_where(pod)}: {reason}: {message}")
    code = done.get("exitCode", 0)
    if done.get("reason") == "OOMKilled":
        limit = _limit(pod, "memory")
        used = f"its limit of {limit}" if limit else "the node's memory, for it has no limit"
        return Problem("OutOfMemory", f"{_where(pod)} was killed for using more memory than {used}; raise {_field(pod, 'memory')}")
    if code == KILLED:
        return Problem("Killed", f"{_where(pod)} was killed (SIGKILL), and not for its memory")
    if code in CRASHED:
        return Problem(
            "JobCrashed", f"{_where(pod)} crashed in native code (signal {code - 128}); its log may say where. The same file would do so again"
        )
    return None


def _where(pod: Object) -> str:
    node = (pod.get("spec") or {}).get("nodeName")
    return f"pod {pod['metadata']['name']}" + (f" on node {node}" if node else "")


def _limit(pod: Object, resource: str) -> str | None:
    containers = (pod.get("spec") or {}).get("containers") or [{}]
    found = ((containers[0].get("resources") or {}).get("limits") or {}).get(resource)
    return str(found) if found is not None else None


def _field(pod: Object, resource: str) -> str:
    """The field that sizes the pod; resolve and evaluate have none, what they read decides."""
    component = (pod["metadata"].get("labels") or {}).get(names.LABEL_COMPONENT)
    if component in (None, names.COMPONENT_PREPARE):
        return f"spec.optimization.resources.limits.{resource}, and say retry on the revision"
    return "nothing: give it less data"
