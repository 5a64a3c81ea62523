"""What pods tell: why they do not get on, and what a finished one left behind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from modelrollout.api.tasks import CONTAINER_STEP, TaskResult
from modelrollout.kube.client import Object
from modelrollout.rollout.facts import Problem

_IMAGE_REASONS = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
# As tritonserver ends where its one model cannot be loaded.
_LOAD_FAILED = re.compile(r"load failed for model '.*?': version \d+ is at UNAVAILABLE state: (.*)", re.DOTALL)
_NO_BACKEND = re.compile(r"unable to find backend library for backend '([^']*)'")
_SAID = 300  # characters of what a user's container says that a message has room for
_CONFIG_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}


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
    """Once a pod's own containers run, its init containers have done their part; a sidecar that starts anew is what the program beside it expects."""
    if not any("running" in (c.get("state") or {}) for c in status.get("containerStatuses") or []):
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
        if unloaded := _not_loaded(last.get("message", "")):
            return Problem(unloaded.reason, f"{where}: {unloaded.message}")
        return Problem("ServerCrashed", f"{where} ended with code {last.get('exitCode')}; see kubectl logs --previous")
    return None


def _not_loaded(log: str) -> Problem | None:
    """Why Triton did not load the model, from the end of its log."""
    found = _LOAD_FAILED.search(log)
    if found is None:
        return None
    why = " ".join(found[1].split())[:400].rstrip("; ")
    if backend := _NO_BACKEND.search(why):
        remedy = "set spec.serving.triton.image to one that has it"
        return Problem("BackendMissing", f"the Triton image has no backend {backend[1]}: {remedy}")
    return Problem("ModelNotLoaded", f"Triton does not load the model: {why}; is it made for this image and this GPU?")


def _result(message: str) -> TaskResult | None:
    try:
        return TaskResult.model_validate_json(message)
    except ValidationError:
        return None


def _ended(container: Mapping[str, Any]) -> Mapping[str, Any]:
    return (container.get("state") or {}).get("terminated") or {}


def _that_ended(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Its containers that have ended, or an init container that failed, so that they never began. A sidecar is not asked: it is told to end."""
    ended = [c for c in status.get("containerStatuses") or [] if _ended(c)]
    return ended or [c for c in status.get("initContainerStatuses") or [] if _ended(c).get("exitCode", 0) != 0]


def _container_step_problem(done: Mapping[str, Any]) -> Problem:
    """How the user's own container of an optimization step failed. What it says is a stranger's text: its last line, and never a result."""
    if done.get("reason") == "OOMKilled":
        return Problem(
            "OutOfMemory", "the container of the step was killed for using more memory than its limit; raise container.resources.limits.memory"
        )
    lines = [line for line in str(done.get("message") or "").splitlines() if line.strip()]
    last = "".join(c for c in lines[-1] if c.isprintable()).strip()[:_SAID] if lines else "it said nothing"
    return Problem(
        "ContainerFailed", f"the container of the step ended with code {done.get('exitCode')}: {last}; see the log of container {CONTAINER_STEP}"
    )


def termination(pods: Iterable[Object]) -> tuple[int | None, TaskResult | None, Problem | None]:
    """Exit code, result and the pod's own trouble of the newest pod of a Job that has ended: those of the container that ended it.

    The message is lost with the pod, and absent after an out-of-memory kill: then the reason is the pod's.
    """
    ended = [p for p in pods if (p.get("status") or {}).get("phase") in ("Succeeded", "Failed")]
    for pod in sorted(ended, key=lambda p: p["metadata"].get("creationTimestamp", ""), reverse=True):
        for container in _that_ended(pod["status"]):
            done = _ended(container)
            if container.get("name") == CONTAINER_STEP:
                return None, None, _container_step_problem(done)
            problem = None
            if done.get("reason") == "OOMKilled":
                problem = Problem(
                    "OutOfMemory", "the Job was killed for using more memory than its limit; raise spec.optimization.resources.limits.memory"
                )
            return done.get("exitCode"), _result(done.get("message") or ""), problem
        reason = pod["status"].get("reason")
        if reason:
            return None, None, Problem(reason, pod["status"].get("message", ""))
    return None, None, None
