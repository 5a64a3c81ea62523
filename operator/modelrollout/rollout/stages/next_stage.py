"""What comes after a stage that a spec may leave out."""

from __future__ import annotations

from datetime import datetime

from modelrollout.api import names
from modelrollout.api.v1alpha1 import ModelDeploymentStatus, Shadow, ShadowStatus
from modelrollout.rollout.snapshot import Snapshot, baseline, stamp
from modelrollout.rollout.stages.canary import begin_trial
from modelrollout.rollout.transitions import change, enter


def after_evaluate(s: Snapshot, status: ModelDeploymentStatus, now: datetime) -> ModelDeploymentStatus:
    """To the shadow, if the spec asks for one and there is somebody to compare with."""
    assert s.spec is not None
    if s.spec.rollout.shadow is None or baseline(s) is None:
        return begin_trial(s, status, now)
    return in_shadow(
        enter(status, "Shadow", now),
        "Starting",
        now,
        outputs_hash=outputs_of(s.spec.rollout.shadow),
        mirror=s.mirror.way,
    )


def after_shadow(s: Snapshot, status: ModelDeploymentStatus, now: datetime) -> ModelDeploymentStatus:
    """To the first step of the trial, or past all steps if somebody said so. Nothing of the mirror
    is needed any more.
    """
    assert status.rollout is not None and status.rollout.shadow is not None
    left = change(status, shadow=status.rollout.shadow.model_copy(update={"mirror": None}))
    return (
        enter(left, "Promote", now) if status.rollout.shadow.promoted == "Full" else begin_trial(s, left, now)
    )


def in_shadow(
    status: ModelDeploymentStatus, phase: str, now: datetime, **changes: object
) -> ModelDeploymentStatus:
    """Go to a phase of the shadow."""
    assert status.rollout is not None
    before = status.rollout.shadow.model_dump() if status.rollout.shadow else {}
    return change(
        status,
        shadow=ShadowStatus.model_validate(before | {"phase": phase, "since": stamp(now)} | changes),
        reason=None,
        message=None,
    )


def outputs_of(shadow: Shadow) -> str:
    """Names how answers are compared."""
    return names.short_hash([o.wire() for o in shadow.outputs or ()])
