"""How many pods each revision is to have, and whether those that are ready suffice."""

from __future__ import annotations

import math
from datetime import datetime

from modelrollout.api.times import since
from modelrollout.api.v1alpha1 import (
    Canary,
    ModelDeploymentSpec,
    RolloutStatus,
    StepStatus,
)
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout import strategy
from modelrollout.rollout.policy.mandatory_metrics import steps_of
from modelrollout.rollout.policy.slot_limits import pods_covered_by_slot, waiting_replicas
from modelrollout.rollout.snapshot import (
    NOT_READY,
    Observed,
    active_in_place,
    baseline,
    serving_revision,
    still_draining,
)
from modelrollout.rollout.transitions import scale_down_delay
from modelrollout.rollout.views import InFlight, Specified

_SERVING_STAGES = ("Provision", "Evaluate", "Shadow", "Canary", "Promote", "Bake", "Revert")


def candidate_revision(rollout: RolloutStatus | None) -> str | None:
    """The revision in flight if it has pods; one that is queued has none yet."""
    return (
        rollout.revision if rollout and rollout.stage in _SERVING_STAGES and rollout.queue is None else None
    )


def replicas_with_traffic(s: Specified) -> dict[str, int]:
    """Replicas of stable and of the candidate.

    While traffic is divided, neither is scaled down: an autoscaler sees only the part of the load
    that stable gets, and after a rollback stable has to carry all of it again. In Bake the
    autoscaler looks at the new revision, and the former stable keeps its size.
    """
    full = s.spec.serving.replicas
    counts: dict[str, int] = {}
    status, rollout = s.status, s.status.rollout
    stable = status.stable.revision if status.stable else None
    new = candidate_revision(rollout)
    divided = rollout is not None and rollout.stage in ("Canary", "Promote", "Bake", "Revert")
    shared = active_in_place(status)
    if stable:
        counts[stable] = max(full, s.server(stable).desired_replicas) if divided else full
        if shared is not None:
            counts[stable] = max(shared.stable_replicas, stable_floor(s.spec))
    if new and new != stable and rollout:
        counts[new] = max(1, full) if shared is None or rollout.stage == "Bake" else canary_room(s.spec)
        if full == 0 and rollout.stage in ("Provision", "Evaluate", "Shadow"):
            counts[new] = 0  # it waits for replicas
        elif rollout.stage == "Revert":
            counts[new] = s.server(new).desired_replicas or counts[new]
        elif s.exact_weights and rollout.stage in ("Provision", "Evaluate", "Shadow"):
            counts[new] = trial_pods(s)
        elif s.exact_weights and rollout.stage in ("Canary", "Promote"):
            # Pods that counts no GPU are not requested again.
            present = (
                s.server(new).desired_replicas
                if shared is None
                else min(s.server(new).ready, s.server(new).desired_replicas)
            )
            counts[new] = max(trial_pods(s) if rollout.stage == "Canary" else counts[new], present)
        elif rollout.stage == "Canary" and rollout.step and rollout.step.strategy == "Canary":
            # Without a gateway: as near to the weight as whole pods allow; status.share has the
            # real one.
            counts[new] = share_replicas(counts.get(stable or "") or 1, rollout.step.weight)
        covered = pods_covered_by_slot(s)
        if covered is not None:  # existing pods carry requests, so they stay
            counts[new] = min(counts[new], max(covered, s.server(new).desired_replicas))
    return counts


def replicas(s: Specified, now: datetime) -> dict[str, int]:
    """Replicas per revision: those carrying traffic, plus draining revisions at their current size.

    While a revision drains, its successor is not scaled down either: the autoscaler's number is
    from when the load was divided.
    """
    counts, status, full = replicas_with_traffic(s), s.status, s.spec.serving.replicas
    left = still_draining(s, now)
    taken_over = serving_revision(status)
    lately = (
        status.rollout is not None
        and status.rollout.stage == "Bake"
        and since(status.rollout.since, now) < scale_down_delay(s)
    )
    if (
        taken_over
        and taken_over.revision in counts
        and (lately or any(r != taken_over.revision for r in left))
    ):
        counts[taken_over.revision] = max(
            counts[taken_over.revision], s.server(taken_over.revision).desired_replicas
        )
    for revision in left:
        size = s.server(revision).desired_replicas if revision in s.servers else max(1, full)
        counts[revision] = max(counts.get(revision, 0), size)
    return counts


def stable_floor(spec: ModelDeploymentSpec) -> int:
    """Pods that may carry all traffic for a while (surge InPlace); at least one."""
    full = max(1, spec.serving.replicas)
    return min(full, spec.serving.floor or max(1, full // 2))


def canary_room(spec: ModelDeploymentSpec) -> int:
    """Pods of the new revision beside stable's floor, until it has all traffic."""
    return max(stable_floor(spec), max(1, spec.serving.replicas) - stable_floor(spec))


def trial_pods(s: Specified) -> int:
    """Pods of a revision behind a gateway before and during its trial: those of its step, or of the
    first one.
    """
    rollout, full = s.status.rollout, max(1, s.spec.serving.replicas)
    shared = active_in_place(s.status)
    if (
        strategy.strategy_of(s.spec.rollout) != "Canary"
        or (rollout and rollout.mode == "Rollback" and rollout.proven)
        or baseline(s) is None
    ):
        return full if shared is None else canary_room(s.spec)
    steps, step = steps_of(s), rollout.step if rollout else None
    index = strategy.locate(steps, step).index if step else 0
    named = [x.replicas for x in steps[: index + 1] if x.replicas is not None]
    most = full if shared is None else canary_room(s.spec)
    if named:
        return min(named[-1], most)
    if (s.spec.rollout.canary or Canary()).scale == "Full" and shared is None:
        return full
    weight = (step.weight if step else 0) or next(x.weight for x in steps if x.weight is not None)
    return min(most, pods_for(weight, full))


def pods_for(weight: int, full: int) -> int:
    """Pods that can carry ``weight`` percent of what ``full`` pods carry; at least one."""
    return max(1, math.ceil(full * weight / 100))


def has_pods_for(s: Specified, step: StepStatus) -> bool:
    """Whether enough pods are ready for the step's weight, or as many as spec allows the step."""
    ready = s.candidate_server.ready
    if not s.exact_weights:
        return ready > 0 or (step.weight == 0 and step.strategy == "Canary")
    return ready >= pods_for_step(s, step)


def pods_for_step(s: Specified, step: StepStatus) -> int:
    """Ready pods that the step's weight needs behind a gateway."""
    return min(trial_pods(s), pods_for(step.weight, max(1, s.spec.serving.replicas)))


def has_all_pods(s: Observed) -> bool:
    """Whether the revision in flight can carry all traffic. Behind a gateway that takes all its
    pods; without one stable's pods help until then.
    """
    enough = pods_for_everything(Specified.of(s)) if s.exact_weights and s.spec is not None else 1
    return s.candidate_server.ready >= enough


def pods_for_everything(s: Specified) -> int:
    """Ready pods that the revision needs before it gets all traffic."""
    return max(1, s.spec.serving.replicas) if active_in_place(s.status) is None else stable_floor(s.spec)


def scaling_problem(s: InFlight) -> Problem:
    """Why the weight waits for pods."""
    server = s.candidate_server
    if server.problem or server.ready == 0:
        return server.problem or NOT_READY
    if problem := waiting_replicas(s):
        return problem
    step = s.rollout.step
    needed = pods_for_step(s, step) if step and s.rollout.stage == "Canary" else pods_for_everything(s)
    return Problem(
        Reason.SCALING_UP,
        f"{server.ready} pods of {s.rollout.revision} are ready; the next weight needs {needed}",
    )


def share_replicas(stable: int, weight: int) -> int:
    """Canary pods beside ``stable`` pods behind one Service for about ``weight`` percent of the
    connections; at least one.
    """
    return max(1, round(stable * weight / (100 - weight))) if weight < 100 else stable


def real_share(s: Observed) -> int | None:
    """Without a gateway: percent of the ready pods that belong to the revision on trial, which is
    the share of connections that it gets.
    """
    rollout, stable = s.status.rollout, s.status.stable
    if s.exact_weights or stable is None or rollout is None or rollout.stage != "Canary":
        return None
    old, new = s.server(stable.revision).ready, s.server(rollout.revision).ready
    return round(100 * new / (old + new)) if old + new else None
