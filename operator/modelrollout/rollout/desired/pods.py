"""How many pods each revision is to have, and whether those that are ready suffice."""

from __future__ import annotations

import math
from datetime import datetime

from modelrollout.api.v1alpha1 import (
    Canary,
    ModelDeploymentSpec,
    RolloutStatus,
    StepStatus,
)
from modelrollout.rollout import strategy as stepping
from modelrollout.rollout.policy.mandatory_metrics import steps_of
from modelrollout.rollout.policy.slot_limits import pods_covered_by_slot, waiting_replicas
from modelrollout.rollout.snapshot import (
    NOT_READY,
    Problem,
    Snapshot,
    active_in_place,
    baseline,
    serving_revision,
    since,
    still_draining,
)
from modelrollout.rollout.transitions import scale_down_delay
from modelrollout.rollout.views import InFlight, Specified

_SERVING_STAGES = ("Provision", "Evaluate", "Shadow", "Canary", "Promote", "Bake", "Revert")


def candidate(rollout: RolloutStatus | None) -> str | None:
    """The revision in flight that has pods; one that is queued has none yet."""
    return (
        rollout.revision if rollout and rollout.stage in _SERVING_STAGES and rollout.queue is None else None
    )


def replicas_with_traffic(s: Specified) -> dict[str, int]:
    """Replicas of stable and of the candidate.

    While the traffic is divided nothing that carries it is scaled down: an autoscaler looks at
    stable's pods, which then see only a part of the load, and after a rollback stable has to carry
    all of it again. In Bake the autoscaler looks at the new revision, and the former stable keeps
    what it has.
    """
    full = s.spec.serving.replicas
    found: dict[str, int] = {}
    status, rollout = s.status, s.status.rollout
    stable = status.stable.revision if status.stable else None
    new = candidate(rollout)
    divided = rollout is not None and rollout.stage in ("Canary", "Promote", "Bake", "Revert")
    shared = active_in_place(status)
    if stable:
        found[stable] = max(full, s.server(stable).desired_replicas) if divided else full
        if shared is not None:
            found[stable] = max(shared.stable_replicas, stable_floor(s.spec))
    if new and new != stable and rollout:
        found[new] = max(1, full) if shared is None or rollout.stage == "Bake" else canary_room(s.spec)
        if rollout.stage == "Revert":
            found[new] = s.server(new).desired_replicas or found[new]
        elif s.gateway and rollout.stage in ("Provision", "Evaluate", "Shadow"):
            found[new] = trial_pods(s)
        elif s.gateway and rollout.stage in ("Canary", "Promote"):
            # Who finds no GPU asks for no more than is needed.
            kept = (
                s.server(new).desired_replicas
                if shared is None
                else min(s.server(new).ready, s.server(new).desired_replicas)
            )
            found[new] = max(trial_pods(s) if rollout.stage == "Canary" else found[new], kept)
        elif rollout.stage == "Canary" and rollout.step and rollout.step.strategy == "Canary":
            # Replica-weighted: as near to the weight as whole pods allow; the status shows the real
            # share.
            found[new] = share_replicas(found.get(stable or "") or 1, rollout.step.weight)
        held = pods_covered_by_slot(s)
        # what carries requests stays
        found[new] = (
            found[new] if held is None else min(found[new], max(held, s.server(new).desired_replicas))
        )
    return found


def replicas(s: Specified, now: datetime) -> dict[str, int]:
    """Replicas by revision: those of ``carriers``, and what has lately lost its traffic keeps the
    pods that it has.

    As long as that lasts, the one that took the traffic over is not scaled down either: what an
    autoscaler asked for comes from a time in which the load was divided.
    """
    found, status, full = replicas_with_traffic(s), s.status, s.spec.serving.replicas
    left = still_draining(s, now)
    taken_over = serving_revision(status)
    lately = (
        status.rollout is not None
        and status.rollout.stage == "Bake"
        and since(status.rollout.since, now) < scale_down_delay(s)
    )
    if (
        taken_over
        and taken_over.revision in found
        and (lately or any(r != taken_over.revision for r in left))
    ):
        found[taken_over.revision] = max(
            found[taken_over.revision], s.server(taken_over.revision).desired_replicas
        )
    for revision in left:
        found.setdefault(revision, s.server(revision).desired_replicas or max(1, full))
    return found


def stable_floor(spec: ModelDeploymentSpec) -> int:
    """Pods that may carry all traffic for a while (surge InPlace); at least one."""
    full = max(1, spec.serving.replicas)
    return min(full, spec.serving.floor or max(1, full // 2))


def canary_room(spec: ModelDeploymentSpec) -> int:
    """Pods of the new revision beside stable's floor, until it has all traffic."""
    return max(stable_floor(spec), max(1, spec.serving.replicas) - stable_floor(spec))


def trial_pods(s: Specified) -> int:
    """Pods of a revision before and in its trial behind a gateway: those of its step, or those that
    are to be there before the first.
    """
    rollout, full = s.status.rollout, max(1, s.spec.serving.replicas)
    shared = active_in_place(s.status)
    if (
        stepping.strategy_of(s.spec.rollout) != "Canary"
        or (rollout and rollout.mode == "Rollback" and rollout.proven)
        or baseline(s) is None
    ):
        return full if shared is None else canary_room(s.spec)
    steps, step = steps_of(s), rollout.step if rollout else None
    index = stepping.locate(steps, step).index if step else 0
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
    """Whether enough pods are ready for the step's weight; for fewer pods than that if spec asks
    for fewer.
    """
    ready = s.candidate.ready
    if not s.gateway:
        return ready > 0 or (step.weight == 0 and step.strategy == "Canary")
    return ready >= min(trial_pods(s), pods_for(step.weight, max(1, s.spec.serving.replicas)))


def has_all_pods(s: Snapshot) -> bool:
    """Whether the revision in flight can carry everything: behind a gateway that takes all its
    pods; without one stable helps until then.
    """
    enough = pods_for_everything(Specified.of(s)) if s.gateway and s.spec is not None else 1
    return s.candidate.ready >= enough


def pods_for_everything(s: Specified) -> int:
    """Pods that may carry all traffic."""
    return max(1, s.spec.serving.replicas) if active_in_place(s.status) is None else stable_floor(s.spec)


def scaling_problem(s: InFlight) -> Problem:
    """Why the weight waits."""
    server = s.candidate
    if server.problem or server.ready == 0:
        return server.problem or NOT_READY
    if problem := waiting_replicas(s):
        return problem
    return Problem(
        "ScalingUp",
        f"{server.ready} of {server.desired_replicas} pods of {s.rollout.revision} are ready;"
        " more of the traffic waits for the others",
    )


def share_replicas(stable: int, weight: int) -> int:
    """Canary pods beside ``stable`` pods behind one Service for about ``weight`` percent of the
    connections; at least one.
    """
    return max(1, round(stable * weight / (100 - weight))) if weight < 100 else stable


def real_share(s: Snapshot) -> int | None:
    """Without a gateway, percent of the ready pods that are the revision's on trial: the share of
    the connections that it really gets.
    """
    rollout, stable = s.status.rollout, s.status.stable
    if s.gateway or stable is None or rollout is None or rollout.stage != "Canary":
        return None
    old, new = s.server(stable.revision).ready, s.server(rollout.revision).ready
    return round(100 * new / (old + new)) if old + new else None
