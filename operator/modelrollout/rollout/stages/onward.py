"""What comes after a stage that a spec may leave out."""

from __future__ import annotations

from datetime import datetime

from modelrollout.api import names
from modelrollout.api.v1alpha1 import ModelDeploymentStatus, Shadow, ShadowStatus
from modelrollout.rollout.facts import Snapshot, baseline, stamp
from modelrollout.rollout.transitions import at_step, change, enter


def after_evaluate(s: Snapshot, status: ModelDeploymentStatus, now: datetime) -> ModelDeploymentStatus:
    """To the shadow, if the spec asks for one and there is somebody to compare with."""
    assert s.spec is not None
    if s.spec.rollout.shadow is None or baseline(s) is None:
        return after_shadow(s, status, now)
    return in_shadow(enter(status, "Shadow", now), "Starting", now, outputs=outputs_of(s.spec.rollout.shadow), mirror=s.mirror.way)


def after_shadow(s: Snapshot, status: ModelDeploymentStatus, now: datetime) -> ModelDeploymentStatus:
    """To the canary; with nothing to compare with, or a first weight of 100, to promotion."""
    assert s.spec is not None
    first = s.spec.rollout.canary.steps[0]
    if baseline(s) is None or first.weight == 100:
        return enter(status, "Promote", now)
    return at_step(enter(status, "Canary", now), 0, first.weight or 0, now, pause=first.pause is not None)


def in_shadow(status: ModelDeploymentStatus, phase: str, now: datetime, **changes: object) -> ModelDeploymentStatus:
    """Go to a phase of the shadow."""
    assert status.rollout is not None
    before = status.rollout.shadow.model_dump() if status.rollout.shadow else {}
    return change(status, shadow=ShadowStatus.model_validate(before | {"phase": phase, "since": stamp(now)} | changes), reason=None, message=None)


def outputs_of(shadow: Shadow) -> str:
    """Names how answers are compared."""
    return names.short_hash([o.wire() for o in shadow.outputs or ()])
