"""Why a pod is not created: a ResourceQuota, a LimitRange, admission, a missing ServiceAccount. The
controllers of Jobs and ReplicaSets quote the API server; this adds the remedy.
"""

from __future__ import annotations

from modelrollout.kube.objects import Object, condition
from modelrollout.problem import Problem
from modelrollout.reasons import Reason


def refused_pod(whose: str, quoted: str, resources_field: str) -> Problem:
    """``PodRefused``. ``whose``: kind and name of the Job or Deployment; ``quoted``: the API
    server's words; ``resources_field``: what in spec sets the pod's requests and limits.
    """
    return Problem(Reason.POD_REFUSED, f"{whose} gets no pod: {quoted}; {_remedy(quoted, resources_field)}")


def refused_server(deployment: Object) -> Problem | None:
    """Why a Deployment lacks pods, by its condition ReplicaFailure; None: nothing was refused."""
    failure = condition(deployment, "ReplicaFailure")
    if failure.get("status") != "True":
        return None
    name = deployment["metadata"]["name"]
    return refused_pod(f"Deployment {name}", failure.get("message", ""), "spec.serving.resources")


def _remedy(quoted: str, resources_field: str) -> str:
    text = quoted.lower()
    if "service account" in text or "serviceaccount" in text:
        return "create that ServiceAccount, or correct spec.serving.serviceAccountName"
    if any(word in text for word in ("webhook", "policy", "podsecurity", "denied the request")):
        return "do what it demands, or have it changed for this namespace"
    return f"change {resources_field}, or what the namespace allows"
