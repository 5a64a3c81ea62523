"""provision: Triton pods with the model loaded.

GPU use begins here (or in tune, where a version is tuned first), so this is where a rollout waits
for what a RolloutPolicy limits: it is queued, without pods, until it has its slots. Resolve and
prepare need no GPU and never wait. A rollback is never queued.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from modelrollout.api.times import since, stamp
from modelrollout.api.v1alpha1 import ModelDeploymentStatus, QueueStatus, SlotStatus, seconds
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout.desired.pods import replicas_with_traffic
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.policy.requirements import gpus_of_spec, too_small
from modelrollout.rollout.policy.rules import active_freeze
from modelrollout.rollout.policy.slot_limits import count, counted
from modelrollout.rollout.security_bulletins import known_flaws
from modelrollout.rollout.snapshot import Gpus, Slot
from modelrollout.rollout.stages.in_place import UNSCHEDULABLE, release_stable_pods
from modelrollout.rollout.stages.next_stage import after_provision
from modelrollout.rollout.stages.spec import StageSpec
from modelrollout.rollout.stages.waiting import CHECK_SECONDS, remaining, wait, wait_or_fail
from modelrollout.rollout.transitions import change, enter, fail
from modelrollout.rollout.views import InFlight

# Positions beyond this are not published: every departure moves everyone behind it, at one status
# write each.
PUBLISHED_POSITIONS = 10


def provision(s: InFlight, now: datetime) -> Transition:
    """Evaluate once every replica that the trial begins with serves the model."""
    rollout = s.rollout
    if rollout.queue is not None:
        return wait_in_queue(s, rollout.queue, now)
    if rollout.reason == Reason.SCALED_TO_ZERO:  # spec asks for pods again
        return Transition(enter(s.status, "Provision", now, queue=queued(s, now)))
    server = s.server(rollout.revision)
    needed = replicas_with_traffic(s)[rollout.revision or ""]
    if server.ready >= needed:
        if rollout.mode == "Rollback" and rollout.proven:
            return Transition(enter(s.status, "Promote", now))  # what is proven stays proven
        if demanding := next((name for name, gates in s.rules.gates if gates.patched_servers), None):
            return _evaluate_if_patched(s, demanding, now)
        return Transition(after_provision(s, now))
    if released := release_stable_pods(s):
        return released
    problem = server.problem
    if (
        problem is not None
        and problem.reason == Reason.UNSCHEDULABLE
        and s.gpus is not None
        and s.gpus.free < s.gpus.needed
    ):
        problem = Problem(Reason.INSUFFICIENT_GPU, f"{_gpu_counts(s.gpus)}; {problem.message}")
    limit = s.spec.rollout.unscheduled_deadline
    if problem is not None and problem.reason in UNSCHEDULABLE and limit is not None:
        left = seconds(limit) - since(rollout.since, now)
        if left <= 0:
            return _fail_unscheduled(s, problem, limit, now)
        return wait(s, problem, min(CHECK_SECONDS, left, max(0.2, remaining(s, now))))
    return wait_or_fail(
        s, now, problem, f"the model server: {server.ready} of {needed} replicas have the model loaded"
    )


def _evaluate_if_patched(s: InFlight, policy: str, now: datetime) -> Transition:
    version = s.triton_versions.get(s.rollout.revision or "")
    if version is None:
        hint = "the operator reads it with GET /v2 of a pod, which a network policy may forbid"
        return wait_or_fail(
            s,
            now,
            None,
            f"the version of Triton (RolloutPolicy {policy} requires one without known flaws): {hint}",
        )
    if problem := known_flaws(version):
        message = f"{problem.message}; RolloutPolicy {policy} demands it"
        return Transition(
            fail(s.status, now, "Rejected", problem.reason, message),
            (Event(problem.reason, message, "Warning"),),
        )
    return Transition(after_provision(s, now))


def queued(s: InFlight, now: datetime) -> QueueStatus | None:
    """The queue that a rollout enters before it gets GPUs; None if nothing limits it."""
    gpus = gpus_of_spec(s.spec, s.gpu_table)
    limited = any(limit.concerns(gpus) for limit in s.rules.limits) or active_freeze(s.rules, now) is not None
    if s.rollout.mode == "Rollback" or not (limited or (s.spec.serving.surge == "Wait" and gpus)):
        return None
    return QueueStatus(since=stamp(now), **count(gpus))


def wait_in_queue(s: InFlight, queue: QueueStatus, now: datetime) -> Transition:
    """Wait until no freeze is in force, the rollout has every slot, and (with surge Wait) the GPUs
    are free.
    """
    if freeze := active_freeze(s.rules, now):
        return wait(s, Problem(Reason.FROZEN, freeze.message), min(CHECK_SECONDS, freeze.left(now)))
    gpus = gpus_of_spec(s.spec, s.gpu_table)
    if gpus != counted(queue):  # replicas were edited or scaled meanwhile, or the table of GPUs
        return Transition(change(s.status, queue=queue.model_copy(update=count(gpus))))
    slots = {slot.policy: slot for slot in s.slots}
    for limit in s.rules.limits:
        if problem := too_small(limit, gpus):
            return wait(s, problem)
        slot = slots.get(limit.policy)
        if limit.concerns(gpus) and (slot is None or not slot.held):
            # without a slot the Leases cannot be read, and s.write_problem says why
            return _wait_in_line(s, queue, slot) if slot else wait(s)
    events: tuple[Event, ...] = ()
    if s.spec.serving.surge == "Wait" and gpus:
        if s.gpus is None:
            text = (
                "spec.serving.surge is Wait, but the operator may not look at nodes (capacity.lookAtNodes):"
                " the pods are made at once"
            )
            events = (Event(Reason.CAPACITY_UNKNOWN, text, "Warning"),)
        elif s.gpus.free < s.gpus.needed:
            return _wait_for_gpus(s, queue, s.gpus, now)
    return Transition(
        enter(s.status, s.rollout.stage, now, queue=None, slot=_slot(s, queue, slots, now)), events
    )


def _slot(s: InFlight, queue: QueueStatus, slots: Mapping[str, Slot], now: datetime) -> SlotStatus | None:
    """The slot from now on. It counts the GPUs in the Leases, even if replicas were edited
    since.
    """
    own = counted(queue)
    leased = [slots[x.policy].gpus for x in s.rules.limits if x.gpus is not None and x.policy in slots]
    limited = any(limit.concerns(own) for limit in s.rules.limits)
    return SlotStatus(since=stamp(now), **count(min([own, *leased]))) if limited else None


def _wait_in_line(s: InFlight, queue: QueueStatus, slot: Slot) -> Transition:
    if slot.turn:
        return Transition(s.status, requeue_after=CHECK_SECONDS)  # the slot is being taken
    position = slot.position if slot.position <= PUBLISHED_POSITIONS else None
    place = (
        f"{_ordinal(slot.position)} of {slot.waiting}"
        if position
        else f"more than {PUBLISHED_POSITIONS} are before it"
    )
    holders = _holders(s.namespace, slot.holders)
    problem = Problem(
        Reason.WAITING_FOR_SLOT, f"waiting for a slot of RolloutPolicy {slot.policy}: {place}; {holders}"
    )
    moved = wait(s, problem)
    if moved.status is s.status and position == queue.position:
        return moved
    status: ModelDeploymentStatus = change(
        moved.status, queue=queue.model_copy(update={"position": position}), message=problem.message
    )
    return Transition(status, moved.events, moved.requeue_after)


def _holders(namespace: str, holders: Sequence[str]) -> str:
    """The rollouts that have the slots; only a number for other namespaces, whose names a tenant
    should not see.
    """
    own = [h for h in holders if h.startswith(f"{namespace}/")]
    others = [f"{n} of other namespaces"] if (n := len(holders) - len(own)) else []
    return f"held by {', '.join(own + others)}" if holders else "none is free"


def _ordinal(n: int) -> str:
    suffix = "th" if 10 <= n % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{suffix}"


def _wait_for_gpus(s: InFlight, queue: QueueStatus, gpus: Gpus, now: datetime) -> Transition:
    problem = Problem(Reason.INSUFFICIENT_GPU, _gpu_counts(gpus))
    limit = s.spec.rollout.unscheduled_deadline or s.spec.rollout.progress_deadline
    if queue.gpu_shortage_since is None:
        moved = wait(s, problem)
        short = change(
            moved.status, queue=queue.model_copy(update={"gpu_shortage_since": stamp(now), "position": None})
        )
        return Transition(short, moved.events, moved.requeue_after)
    left = seconds(limit) - since(queue.gpu_shortage_since, now)
    if left <= 0:
        return _fail_unscheduled(s, problem, limit, now)
    return wait(s, problem, min(CHECK_SECONDS, left))


def _gpu_counts(gpus: Gpus) -> str:
    return (
        f"the pods of the new revision need {gpus.needed} {gpus.resource}, {gpus.free} of {gpus.total} are"
        f" free on the {gpus.nodes} nodes that fit"
    )


def _fail_unscheduled(s: InFlight, problem: Problem, limit: str, now: datetime) -> Transition:
    message = f"not scheduled within {limit} (unscheduledDeadline): {problem.message}"
    return Transition(
        fail(s.status, now, "Failed", problem.reason, message), (Event(problem.reason, message, "Warning"),)
    )


PROVISION = StageSpec(
    "Provision",
    provision,
    InFlight,
    phase="Provisioning",
    doing="the model servers are starting",
    then="golden data is sent, if there is any, and the canary begins",
    condition="Provisioned",
    may_queue=True,
)
