"""surge InPlace in numbers: what stable keeps, and what the new revision makes do with, where there
is no GPU for both.
"""

from __future__ import annotations

from modelrollout.api.v1alpha1 import InPlaceStatus, ModelDeploymentSpec, ModelDeploymentStatus
from modelrollout.rollout.snapshot import in_flight


def stable_floor(spec: ModelDeploymentSpec) -> int:
    """Pods that may carry all traffic for a while; at least one."""
    full = max(1, spec.serving.replicas)
    return min(full, spec.serving.floor or max(1, full // 2))


def canary_room(spec: ModelDeploymentSpec) -> int:
    """Pods that the new revision makes do with beside stable's ``floor``, before it has all
    traffic.
    """
    return max(stable_floor(spec), max(1, spec.serving.replicas) - stable_floor(spec))


def active_in_place(status: ModelDeploymentStatus) -> InPlaceStatus | None:
    """What stable keeps in the rollout in flight, if it makes room for it."""
    return status.rollout.in_place if status.rollout is not None and in_flight(status.rollout) else None
