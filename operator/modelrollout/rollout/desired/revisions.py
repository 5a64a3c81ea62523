"""ModelRevisions: the one to create, the evidence that each keeps, and those beyond the history."""

from __future__ import annotations

from datetime import datetime

from modelrollout.api.v1alpha1 import (
    MetricStatus,
    ModelRevisionStatus,
    Outcome,
    RolloutStatus,
)
from modelrollout.reasons import Reason
from modelrollout.rollout.plan import NewRevision
from modelrollout.rollout.server_crashes import without_pods
from modelrollout.rollout.snapshot import (
    SERVED,
    Observed,
    Revision,
    Snapshot,
    artifact_is_unusable,
    in_flight,
    still_draining,
)
from modelrollout.rollout.transitions import MAX_VERBS
from modelrollout.rollout.views import Specified


def new_revision(s: Snapshot) -> NewRevision | None:
    rollout = s.status.rollout
    if (
        rollout is None
        or rollout.stage != "Prepare"
        or rollout.revision is None
        or s.revision(rollout.revision)
    ):
        return None
    assert rollout.number is not None and rollout.sha256 is not None
    return NewRevision(rollout.revision, rollout.number, rollout.sha256, s.triton_versions)


# Stages that add no evidence, or end at once: the write of the next stage covers them.
_PASSING = ("Prepare", "Promote", "Revert")
# Likewise, but for what Prepare has found: status has it meanwhile, and the pods run it.
_BEFORE_TRAFFIC = ("Provision", "Evaluate")


def _is_passing(s: Observed, rollout: RolloutStatus) -> bool:
    """Whether the revision's status can wait for the next stage. It cannot where the stage may last
    (in a queue), or where much work would be lost with the rollout's status; nor can that of a
    first version, which alone says whose children there are already.
    """
    lasts = rollout.queue is not None or rollout.tuning is not None
    waits = rollout.stage in _BEFORE_TRAFFIC and s.status.stable is not None and not lasts
    return rollout.stage in _PASSING or waits


def revision_status(s: Snapshot) -> dict[str, ModelRevisionStatus]:
    """Status of the revisions whose written status differs: evidence of the rollout, and the
    outcome of former ones.
    """
    changed: dict[str, ModelRevisionStatus] = {}
    stable = s.status.stable.revision if s.status.stable else None
    rollout = s.status.rollout
    for revision in s.revisions:
        desired = revision.status
        if rollout and rollout.revision == revision.name and _is_passing(s, rollout):
            continue
        if rollout and rollout.revision == revision.name and rollout.reason != Reason.QUARANTINED:
            step = s.status.step if in_flight(rollout) else None
            desired = _of_rollout(revision, rollout).model_copy(update={"step": step})
        elif revision.name == stable and revision.status.outcome not in SERVED:
            # Recovered from the route after status was lost during its promotion: without this
            # record neither recovery nor a rollback would find it again.
            desired = revision.status.model_copy(update={"outcome": "Stable", "reason": Reason.STATE_REBUILT})
        elif revision.name != stable and revision.status.outcome in ("Stable", "Promoted"):
            # A person rolled back from it: a spec that returns to it is judged like a new version.
            by_hand = rollout is not None and rollout.mode == "Rollback" and rollout.revision == stable
            since_when = s.status.stable.since if s.status.stable and not by_hand else None
            desired = revision.status.model_copy(
                update={"outcome": "Retired", "reason": "Replaced", "retired": since_when}
            )
        if revision.name == (stable or (rollout.revision if rollout else None)):
            desired = desired.model_copy(update={"children": list(s.children)})
        if desired != revision.status:
            changed[revision.name] = desired
    return changed


def _of_rollout(revision: Revision, rollout: RolloutStatus) -> ModelRevisionStatus:
    old = revision.status
    # An artifact that servers could not load is dropped even if this attempt ends for another
    # reason, or the next one would reuse it.
    artifact = rollout.artifact or (None if artifact_is_unusable(old) else old.artifact)
    evaluation = rollout.evaluation or old.evaluation
    outcome: Outcome = rollout.outcome or (
        "Canary" if rollout.stage in ("Canary", "Promote", "Bake") else "Pending"
    )
    unproven = rollout.stage == "Failed" and old.outcome in SERVED and rollout.outcome != "RolledBack"
    if rollout.mode == "Rollback" and (in_flight(rollout) or unproven):
        # a rollback that fails says nothing about the version that it leads to
        outcome = old.outcome
    elif rollout.outcome == "Superseded" and old.retired is not None:
        outcome = "Retired"  # it has served, and nothing was proven against it
    ended = not in_flight(rollout)
    status = old.model_copy(
        update={
            "outcome": outcome,
            "reason": (rollout.reason or "-") if ended or rollout.stage == "Revert" else "-",
            "message": (rollout.message or "") if ended or rollout.stage == "Revert" else "",
            "artifact": artifact,
            "tuning": rollout.tuning or old.tuning,
            "evaluation": evaluation,
            "shadow": (
                _without_counters(rollout.shadow.metric)
                if rollout.shadow and rollout.shadow.metric
                else old.shadow
            ),
            "restarts": without_pods(rollout.restarts) if rollout.restarts else old.restarts,
            "steps": rollout.history or old.steps,
            "verbs": [*old.verbs, *(v for v in rollout.verbs if v not in old.verbs)][-MAX_VERBS:],
            # Proven worse, it no longer counts as a version that has served.
            "retired": None if outcome in ("RolledBack", "Rejected") else old.retired,
            "stages": dict(rollout.stages) if ended else old.stages,
            "started": rollout.started,
            "finished": rollout.since if ended else None,
            "accuracy": _accuracy(rollout, old),
            "size": _size(artifact.size_before, artifact.size_after) if artifact else old.size,
            "p99": (
                f"{evaluation.latency_p99_ms:.1f}ms"
                if evaluation and evaluation.latency_p99_ms is not None
                else old.p99
            ),
        }
    )
    # preparing it again may yield another model
    return status.model_copy(update={"retired": None}) if artifact_is_unusable(status) else status


def _without_counters(metric: MetricStatus) -> MetricStatus:
    counted = metric.canary.model_copy(update={"last": {}, "scraped": None}) if metric.canary else None
    return metric.model_copy(update={"canary": counted, "stable": None})


def _accuracy(rollout: RolloutStatus, old: ModelRevisionStatus) -> str | None:
    artifact = rollout.artifact or old.artifact
    evaluation = rollout.evaluation or old.evaluation
    if artifact and artifact.accuracy_after is not None and artifact.accuracy_before is not None:
        return f"{artifact.accuracy_after:.3f} ({artifact.accuracy_after - artifact.accuracy_before:+.3f})"
    if evaluation and evaluation.accuracy is not None:
        return f"{evaluation.accuracy:.3f}"
    if artifact and artifact.metrics:  # a regression has no accuracy: its first metric by name
        first = artifact.metrics[0]
        return f"{first.name} {first.after:.4g} ({first.after - first.before:+.2g})"
    return old.accuracy


def _size(before: int, after: int) -> str:
    if not after:
        return human_bytes(before)
    if not before or before == after:
        return human_bytes(after)
    return f"{human_bytes(after)} ({round(100 * (after - before) / before):+d} %)"


def human_bytes(count: int) -> str:
    """``412Ki`` as Kubernetes writes quantities."""
    value = float(count)
    for unit in ("", "Ki", "Mi", "Gi"):
        if value < 1024 or unit == "Gi":
            return f"{value:.0f}{unit}" if value >= 10 or unit == "" else f"{value:.1f}{unit}"
        value /= 1024
    raise AssertionError("unreachable")


def beyond_history(s: Specified, now: datetime) -> tuple[str, ...]:
    status = s.status
    needed = {
        status.stable.revision if status.stable else None,
        *still_draining(s, now),
        status.rollout.revision if status.rollout else None,
        status.pinned.revision if status.pinned else None,
        status.pinned.rolled_back_from if status.pinned else None,
    }
    others = sorted((r for r in s.revisions if r.name not in needed), key=lambda r: r.number, reverse=True)
    limit = s.spec.revision_history_limit
    # Counted apart: a row of bad versions must not push out those that can be rolled back to.
    served, never = (
        [r for r in others if r.status.outcome in SERVED],
        [r for r in others if r.status.outcome not in SERVED],
    )
    return tuple(r.name for r in (*served[limit:], *never[limit:]))
