"""The children that a written state asks for."""

from __future__ import annotations

import math
from datetime import datetime

from modelrollout.api import names
from modelrollout.api.v1alpha1 import (
    Canary,
    MetricStatus,
    ModelDeploymentSpec,
    ModelDeploymentStatus,
    ModelRevisionStatus,
    Outcome,
    RolloutStatus,
    StepStatus,
)
from modelrollout.rollout import strategy as stepping
from modelrollout.rollout.plan import Desired, NewRevision
from modelrollout.rollout.pod_restarts import restart_requested_at, revisions_to_harden
from modelrollout.rollout.policy.mandatory_metrics import first_weight, steps_of, too_coarse
from modelrollout.rollout.policy.slot_limits import pods_covered_by_slot, waiting_replicas
from modelrollout.rollout.snapshot import (
    NOT_READY,
    SERVED,
    Problem,
    Revision,
    Snapshot,
    Split,
    active_in_place,
    artifact_is_unusable,
    baseline,
    in_flight,
    rollout_id,
    rollout_of,
    serving_revision,
    since,
    still_draining,
)
from modelrollout.rollout.transitions import reached, scale_down_delay
from modelrollout.rollout.views import InFlight, Specified

ALL_REVISIONS = "*"
_SERVING_STAGES = ("Provision", "Evaluate", "Shadow", "Canary", "Promote", "Bake", "Revert")


def desired(s: Specified, now: datetime) -> Desired:
    """Everything that is to exist now; what is not named goes away."""
    loaded, shares = serving_revision(s.status), split(s)
    servers = replicas(s, now)
    return Desired(
        new_revision=_new_revision(s),
        work=stage_job(s.status, s),
        servers=servers,
        restarts={name: at for name in servers if (at := restart_requested_at(s, name))},
        hardened=revisions_to_harden(s, servers),
        ends_first=frozenset(
            name
            for name in servers
            if (record := s.status.restarts.get(name)) and record.allow_downtime and not record.done
        ),
        narrow=bool(s.overly_open),
        split=shares,
        draining=frozenset(still_draining(s, now)),
        matched=header_revision(s),
        preview=preview_revision(s),
        selector=service_selector(s),
        budget=loaded.revision if loaded else shares[0][0] if shares else None,
        revision_status=revision_status(s),
        forget=_beyond_history(s, now),
    )


def desired_traffic_only(s: Snapshot) -> Desired:
    """What a rollback needs where spec cannot be read: the weights; everything else stays as it
    is.
    """
    shares = split(s)
    servers = {name: server.desired_replicas for name, server in s.servers.items()}
    return Desired(
        servers=servers, split=shares, selector=shares[0][0] if shares else None, narrow=bool(s.overly_open)
    )


def needs_measurement(s: Snapshot) -> bool:
    """Whether the revision in flight is to be judged now, on its traffic or on what is mirrored."""
    rollout = s.status.rollout
    if rollout is not None and rollout.stage == "Shadow" and rollout.shadow is not None:
        return rollout.shadow.phase == "Observing" or (
            rollout.shadow.phase == "Mirroring" and s.traffic.programmed
        )
    if rollout is None or rollout.step is None or s.spec is None:
        return False
    # as long as it waits for pods, it has the weight of the last step
    if rollout.stage == "Promote":
        return s.status.stable is not None and rollout.step.phase != "Shifting" and not has_all_pods(s)
    return rollout.stage == "Bake" or (
        rollout.stage == "Canary"
        and (stepping.with_traffic(rollout.step).phase != "Shifting" or s.traffic.programmed)
    )


def _new_revision(s: Snapshot) -> NewRevision | None:
    rollout = s.status.rollout
    if (
        rollout is None
        or rollout.stage != "Prepare"
        or rollout.revision is None
        or s.revision(rollout.revision)
    ):
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
        if revision is None or revision.prepared is not None or s.shared.by is not None:
            return None
        return names.COMPONENT_PREPARE, names.stage_job_name(rollout.revision, "prepare", rollout_id(rollout))
    tune = s.spec.serving.tune if s.spec else None
    if rollout.stage == "Tune" and tune and rollout.queue is None:
        return names.COMPONENT_TUNE, names.stage_job_name(
            rollout.revision, "tune", names.short_hash([rollout_id(rollout), tune.wire()], 4)
        )
    golden = s.spec.rollout.analysis.golden if s.spec else None
    if rollout.stage == "Evaluate" and golden:
        # Other golden data, edited under way, is other work. The budgets are no part of it: the
        # verdict reads the present ones.
        data = golden.model_dump(mode="json", exclude={"max_drop", "min"})
        return names.COMPONENT_EVALUATE, names.stage_job_name(
            rollout.revision, "evaluate", names.short_hash([rollout_id(rollout), data], 4)
        )
    return None


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
    enough = _for_everything(Specified.of(s)) if s.gateway and s.spec is not None else 1
    return s.candidate.ready >= enough


def _for_everything(s: Specified) -> int:
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


def split(s: Snapshot) -> Split:
    """Weights of the route's backends in percent.

    A revision gets no more than its ready pods are enough for: nothing while there are none, the
    former weight until those for the next are there. Stable is in the route in every state before
    promotion (invariant 2).
    """
    status, rollout = s.status, s.status.rollout
    stable = status.stable.revision if status.stable else None
    new = rollout.revision if rollout else None
    if stable is None:
        return ((new, 100),) if new and rollout and rollout.stage == "Promote" else ()
    weight = _granted(s) if new and new != stable else 0
    if not new or weight == 0:
        return ((stable, 100),)
    return ((new, 100),) if weight == 100 else ((stable, 100 - weight), (new, weight))


def _granted(s: Snapshot) -> int:
    """Percent of the requests for the revision in flight."""
    rollout = rollout_of(s.status)
    if s.candidate.ready == 0:
        return 0
    # when all its pods were gone, everything comes back with the last of them, not with the first
    if rollout.stage == "Bake":
        return 100 if has_all_pods(s) or dict(s.live_split).get(rollout.revision or "", 0) > 0 else 0
    if rollout.stage == "Promote":
        return 100 if has_all_pods(s) else reached(rollout.step) if rollout.step else 0
    if rollout.stage != "Canary" or rollout.step is None:
        return 0
    step = rollout.step
    if too_coarse(s):
        return 0
    return (
        step.previous_weight
        if step.phase == "Shifting" and s.spec is not None and not has_pods_for(Specified.of(s), step)
        else step.weight
    )


def header_revision(s: Snapshot) -> str | None:
    """The revision that gets the requests with the headers of a test, if one is under way and its
    pods are ready.
    """
    rollout = s.status.rollout
    tested = (
        rollout is not None
        and rollout.stage == "Canary"
        and rollout.step is not None
        and rollout.step.strategy == "ABTest"
    )
    if (
        not tested
        or s.spec is None
        or s.spec.rollout.ab_test is None
        or rollout is None
        or s.server(rollout.revision).ready == 0
    ):
        return None
    if first_weight(s) is not None:  # a header that all requests carry chooses everybody
        return None
    return rollout.revision


def preview_revision(s: Snapshot) -> str | None:
    """The revision behind the preview's names: the one on trial, else stable, so that they always
    lead somewhere.
    """
    rollout, stable = s.status.rollout, s.status.stable
    if s.spec is None or s.spec.rollout.blue_green is None or stable is None:
        return None
    shown = (
        rollout is not None
        and rollout.revision is not None
        and rollout.stage in ("Canary", "Promote", "Bake")
    )
    return rollout.revision if shown and rollout and s.server(rollout.revision).ready > 0 else stable.revision


def preview_host_revision(s: Snapshot) -> str | None:
    """The revision behind the preview's host names. Nobody while a share of everybody's requests
    proves the revision to what policies demand: a gateway counts by revision, so what is chosen and
    sent to the preview would be counted with them.
    """
    rollout = s.status.rollout
    proves = (
        rollout is not None
        and rollout.stage == "Canary"
        and rollout.step is not None
        and rollout.step.weight > 0
    )
    return None if proves and first_weight(s) is not None else preview_revision(s)


def service_selector(s: Specified) -> str | None:
    """With a gateway always one revision; without one both, until the new one can carry
    everything.
    """
    weights = split(s)
    if not weights:
        return None
    if s.gateway:
        return weights[0][0]
    arriving = (
        s.status.rollout is not None and s.status.rollout.stage == "Promote" and s.status.stable is not None
    )
    if len(weights) > 1 or (
        arriving
        and weights[0][0] == candidate(s.status.rollout)
        and s.server(weights[0][0]).ready < _for_everything(s)
    ):
        return ALL_REVISIONS
    return weights[0][0]


# Stages that bring nothing new about the revision, or end at once: the next one's write says it
# all.
_PASSING = ("Prepare", "Promote", "Revert")


def revision_status(s: Snapshot) -> dict[str, ModelRevisionStatus]:
    """Status of the revisions whose written one differs: the evidence of the rollout, and what
    became of former ones.
    """
    found: dict[str, ModelRevisionStatus] = {}
    stable = s.status.stable.revision if s.status.stable else None
    rollout = s.status.rollout
    for revision in s.revisions:
        wanted = revision.status
        if rollout and rollout.revision == revision.name and rollout.stage in _PASSING:
            continue
        if rollout and rollout.revision == revision.name and rollout.reason != "Quarantined":
            wanted = _of_rollout(revision, rollout)
        elif revision.name == stable and revision.status.outcome not in SERVED:
            # Taken for stable from the route, when status was lost in its promotion: without a
            # record it could not be found again, nor gone back to.
            wanted = revision.status.model_copy(update={"outcome": "Stable", "reason": "StateRebuilt"})
        elif revision.name != stable and revision.status.outcome in ("Stable", "Promoted"):
            # Whoever rolled back by hand had a reason: a spec goes back to it as to any new
            # version.
            by_hand = rollout is not None and rollout.mode == "Rollback" and rollout.revision == stable
            since_when = s.status.stable.since if s.status.stable and not by_hand else None
            wanted = revision.status.model_copy(
                update={"outcome": "Retired", "reason": "Replaced", "retired": since_when}
            )
        if revision.name == (stable or (rollout.revision if rollout else None)):
            wanted = wanted.model_copy(update={"children": list(s.children)})
        if wanted != revision.status:
            found[revision.name] = wanted
    return found


def _of_rollout(revision: Revision, rollout: RolloutStatus) -> ModelRevisionStatus:
    old = revision.status
    # What its servers could not load is forgotten by a try that ends for another reason, or the
    # next one would take it again.
    artifact = rollout.artifact or (None if artifact_is_unusable(old) else old.artifact)
    evaluation = rollout.evaluation or old.evaluation
    outcome: Outcome = rollout.outcome or (
        "Canary" if rollout.stage in ("Canary", "Promote", "Bake") else "Pending"
    )
    unproven = rollout.stage == "Failed" and old.outcome in SERVED and rollout.outcome != "RolledBack"
    if rollout.mode == "Rollback" and (in_flight(rollout) or unproven):
        # a rollback that does not get on says nothing about the version that it leads to
        outcome = old.outcome
    elif rollout.outcome == "Superseded" and old.retired is not None:
        outcome = "Retired"  # it has served, and nothing was found against it
    ended = not in_flight(rollout)
    found = old.model_copy(
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
            "steps": rollout.history or old.steps,
            # Proven worse it is no version to come back to, though it has served once.
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
    # made anew it may be another model
    return found.model_copy(update={"retired": None}) if artifact_is_unusable(found) else found


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


def _beyond_history(s: Specified, now: datetime) -> tuple[str, ...]:
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
    # Apart from each other: a row of bad versions must not push out what can be rolled back to.
    served, never = (
        [r for r in others if r.status.outcome in SERVED],
        [r for r in others if r.status.outcome not in SERVED],
    )
    return tuple(r.name for r in (*served[limit:], *never[limit:]))
