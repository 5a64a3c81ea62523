"""The children that a written state asks for."""

from __future__ import annotations

from modelrollout.api import names
from modelrollout.api.v1alpha1 import ModelDeploymentStatus, ModelRevisionStatus, Outcome, RolloutStatus
from modelrollout.rollout.facts import SERVED, Desired, NewRevision, Revision, Snapshot, Split, in_flight, rollout_id

ALL_REVISIONS = "*"
_SERVING_STAGES = ("Provision", "Evaluate", "Canary", "Promote", "Revert")


def desired(s: Snapshot) -> Desired:
    """Everything that is to exist now; what is not named goes away."""
    status = s.status
    stable = status.stable.revision if status.stable else None
    return Desired(
        new_revision=_new_revision(s),
        work=stage_job(s.status, s),
        servers=replicas(s),
        split=split(s),
        selector=service_selector(s),
        budget=stable,
        revision_status=revision_status(s),
        forget=_beyond_history(s),
    )


def _new_revision(s: Snapshot) -> NewRevision | None:
    rollout = s.status.rollout
    if rollout is None or rollout.stage != "Prepare" or rollout.revision is None or s.revision(rollout.revision):
        return None
    assert rollout.number is not None and rollout.sha256 is not None
    return NewRevision(rollout.revision, rollout.number, rollout.sha256)


def stage_job(status: ModelDeploymentStatus, s: Snapshot) -> tuple[str, str] | None:
    """Component and name of the Job that the present stage waits for."""
    rollout = status.rollout
    if rollout is None:
        return None
    if rollout.stage == "Resolve":
        return names.COMPONENT_RESOLVE, names.resolve_job_name(s.name, rollout_id(rollout))
    if rollout.revision is None:
        return None
    if rollout.stage == "Prepare":
        revision = s.revision(rollout.revision)
        if revision is None or revision.prepared is not None:
            return None
        return names.COMPONENT_PREPARE, names.stage_job_name(rollout.revision, "prepare", rollout_id(rollout))
    golden = s.spec.rollout.analysis.golden if s.spec else None
    if rollout.stage == "Evaluate" and golden:
        # Other golden data, edited under way, is other work. The budgets are no part of it: the verdict reads the present ones.
        data = golden.model_dump(mode="json", exclude={"max_drop", "min"})
        return names.COMPONENT_EVALUATE, names.stage_job_name(rollout.revision, "evaluate", names.short_hash([rollout_id(rollout), data], 4))
    return None


def candidate(rollout: RolloutStatus | None) -> str | None:
    """The revision in flight that has pods."""
    return rollout.revision if rollout and rollout.stage in _SERVING_STAGES else None


def replicas(s: Snapshot) -> dict[str, int]:
    """Replicas by revision: stable, the candidate, and one that has just lost its traffic.

    While the traffic is divided nothing that carries it is scaled down: an autoscaler looks at stable's pods, which then see only a part of the
    load, and after a rollback stable has to carry all of it again. What has lost its traffic keeps the pods that it has.
    """
    assert s.spec is not None
    full = s.spec.serving.replicas
    found: dict[str, int] = {}
    status, rollout = s.status, s.status.rollout
    stable = status.stable.revision if status.stable else None
    new = candidate(rollout)
    divided = rollout is not None and rollout.stage in ("Canary", "Promote", "Revert")
    if stable:
        found[stable] = max(full, s.server(stable).asked) if divided else full
    if status.retiring:
        found.setdefault(status.retiring.revision, s.server(status.retiring.revision).asked or max(1, full))
    if new and new != stable and rollout:
        found[new] = max(1, full)
        if rollout.stage == "Revert":
            found[new] = s.server(new).asked or found[new]
        elif divided and s.gateway:
            found[new] = max(found[new], s.server(new).asked)
        elif rollout.stage == "Canary" and rollout.step:
            # Replica-weighted: as near to the weight as whole pods allow; the status shows the real share.
            found[new] = share_replicas(found.get(stable or "") or 1, rollout.step.weight)
    return found


def share_replicas(stable: int, weight: int) -> int:
    """Canary pods beside ``stable`` pods behind one Service for about ``weight`` percent of the connections; at least one."""
    return max(1, round(stable * weight / (100 - weight))) if weight < 100 else stable


def split(s: Snapshot) -> Split:
    """Weights of the route's backends in percent.

    A revision none of whose pods is ready gets nothing until one is: its share would fail. Stable is in the route in every state before
    promotion (invariant 2).
    """
    status, rollout = s.status, s.status.rollout
    stable = status.stable.revision if status.stable else None
    if rollout and rollout.revision and rollout.stage == "Promote" and (stable is None or s.server(rollout.revision).ready > 0):
        return ((rollout.revision, 100),)
    if stable is None:
        return ()
    if rollout and rollout.revision and rollout.stage == "Canary" and rollout.step and rollout.step.weight > 0:
        weight = rollout.step.weight if s.server(rollout.revision).ready > 0 else 0
        return ((stable, 100 - weight), (rollout.revision, weight)) if weight else ((stable, 100),)
    return ((stable, 100),)


def service_selector(s: Snapshot) -> str | None:
    """With a gateway always one revision; without one both, until the new one can carry everything."""
    weights = split(s)
    if not weights:
        return None
    if s.gateway:
        return weights[0][0]
    assert s.spec is not None
    arriving = s.status.stable is not None and weights[0][0] != s.status.stable.revision
    if len(weights) > 1 or (arriving and s.server(weights[0][0]).ready < max(1, s.spec.serving.replicas)):
        return ALL_REVISIONS
    return weights[0][0]


# Stages that bring nothing new about the revision, or end at once: the next one's write says it all.
_PASSING = ("Prepare", "Promote", "Revert")


def revision_status(s: Snapshot) -> dict[str, ModelRevisionStatus]:
    """Status of the revisions whose written one differs: the evidence of the rollout, and what became of former ones."""
    found: dict[str, ModelRevisionStatus] = {}
    stable = s.status.stable.revision if s.status.stable else None
    rollout = s.status.rollout
    for revision in s.revisions:
        wanted = revision.status
        if rollout and rollout.revision == revision.name and rollout.stage in _PASSING:
            continue
        if rollout and rollout.revision == revision.name and rollout.reason != "Quarantined":
            wanted = _of_rollout(revision, rollout)
        elif revision.name != stable and revision.status.outcome in ("Stable", "Promoted"):
            wanted = revision.status.model_copy(update={"outcome": "Retired", "reason": "Replaced"})
        if wanted != revision.status:
            found[revision.name] = wanted
    return found


def _of_rollout(revision: Revision, rollout: RolloutStatus) -> ModelRevisionStatus:
    old = revision.status
    artifact = rollout.artifact or old.artifact
    evaluation = rollout.evaluation or old.evaluation
    outcome: Outcome = rollout.outcome or ("Canary" if rollout.stage in ("Canary", "Promote") else "Pending")
    if (rollout.mode == "Rollback" and in_flight(rollout)) or (rollout.mode == "Rollback" and rollout.stage == "Failed" and old.outcome in SERVED):
        outcome = old.outcome  # a rollback that does not get on says nothing about the version that it leads to
    ended = not in_flight(rollout)
    return old.model_copy(
        update={
            "outcome": outcome,
            "reason": (rollout.reason or "-") if ended or rollout.stage == "Revert" else "-",
            "message": (rollout.message or "") if ended or rollout.stage == "Revert" else "",
            "artifact": artifact,
            "evaluation": evaluation,
            "steps": rollout.history or old.steps,
            "stages": dict(rollout.stages) if ended else old.stages,
            "started": rollout.started,
            "finished": rollout.since if ended else None,
            "accuracy": _accuracy(rollout, old),
            "size": _size(artifact.size_before, artifact.size_after) if artifact else old.size,
            "p99": f"{evaluation.latency_p99_ms:.1f}ms" if evaluation and evaluation.latency_p99_ms is not None else old.p99,
        }
    )


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


def _beyond_history(s: Snapshot) -> tuple[str, ...]:
    assert s.spec is not None
    status = s.status
    needed = {
        status.stable.revision if status.stable else None,
        status.retiring.revision if status.retiring else None,
        status.rollout.revision if status.rollout else None,
        status.pinned.revision if status.pinned else None,
        status.pinned.against if status.pinned else None,
    }
    others = sorted((r for r in s.revisions if r.name not in needed), key=lambda r: r.number, reverse=True)
    limit = s.spec.revision_history_limit
    # Apart from each other: a row of bad versions must not push out what can be rolled back to.
    served, never = [r for r in others if r.status.outcome in SERVED], [r for r in others if r.status.outcome not in SERVED]
    return tuple(r.name for r in (*served[limit:], *never[limit:]))
