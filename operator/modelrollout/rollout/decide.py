"""``decide``: an ordered list of named checks; the first that returns a transition decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from modelrollout.api.times import stamp
from modelrollout.reasons import Reason
from modelrollout.rollout import verbs
from modelrollout.rollout.compatibility import is_declared
from modelrollout.rollout.dead_stable import seconds_until_dead, seconds_until_outage
from modelrollout.rollout.desired import desired, desired_traffic_only
from modelrollout.rollout.desired.pods import has_all_pods
from modelrollout.rollout.desired.revisions import revision_status
from modelrollout.rollout.desired.traffic import is_confirmed
from modelrollout.rollout.follow import is_missed, is_unseen, look_at_source, seconds_until_look
from modelrollout.rollout.plan import Converge, Desired, Event, Plan, Transition, Wait, Write
from modelrollout.rollout.pod_restarts import waiting_restart, withdraw_incompatible_restart
from modelrollout.rollout.policy.freeze import block_while_frozen
from modelrollout.rollout.policy.mandatory_metrics import is_return
from modelrollout.rollout.policy.rules import active_freeze
from modelrollout.rollout.policy.slot_limits import count, counted, gpus_requested, held_too_long, slot_of
from modelrollout.rollout.policy.weight_cap import cap_unproven_weight
from modelrollout.rollout.recovery import recover
from modelrollout.rollout.server_crashes import count_ends
from modelrollout.rollout.snapshot import (
    QUARANTINED,
    RECHECK_SECONDS,
    SERVED,
    Observed,
    Revision,
    Snapshot,
    in_flight,
    still_draining,
)
from modelrollout.rollout.stages import STAGES
from modelrollout.rollout.stages.promote import end_revert
from modelrollout.rollout.stages.scaled_to_zero import wait_for_replicas
from modelrollout.rollout.stages.waiting import CHECK_SECONDS
from modelrollout.rollout.stages.without_stable import follow_stable, keep_what_serves
from modelrollout.rollout.status import changed_condition_events, derive_status, silence_left
from modelrollout.rollout.transitions import (
    allocate,
    begin,
    begin_rollback,
    change,
    fail,
    has_failed_for_spec,
    is_pinned,
    is_still_requested,
    known_version,
    revert,
)
from modelrollout.rollout.views import SpecifiedSnapshot

Check = Callable[[SpecifiedSnapshot, datetime], Transition | None]


def decide(s: Snapshot, now: datetime) -> Plan:
    """One pass: a transition to write, children to converge to, or a wait."""
    if s.spec is None:
        return _without_spec(s, now)
    specified = SpecifiedSnapshot.narrowed(s)
    counted = replace(specified, status=count_ends(s, now))
    transitions = (transition for check in CHECKS if (transition := check(counted, now)) is not None)
    transition = next(transitions, Transition(counted.status))
    transition = cap_unproven_weight(counted, block_while_frozen(counted, transition, now), now)
    if _would_lose_evidence(counted, transition):
        return Converge(s.status, desired(specified, now), requeue_after=0.0)
    # what a look has just found is what spec asks for
    asked = replace(specified, spec=specified.spec.following(transition.status.follow))
    status = derive_status(asked, transition.status, now)
    if status != s.status:
        return Write(
            status, tuple(dict.fromkeys((*transition.events, *changed_condition_events(asked, status, now))))
        )
    waits = [
        *still_draining(s, now).values(),
        *([] if transition.requeue_after is None else [transition.requeue_after]),
    ]
    until_dead = seconds_until_dead if in_flight(s.status.rollout) else seconds_until_outage
    dead_in = until_dead(s, now, s.leading_since)
    timed = (dead_in, silence_left(s, now), seconds_until_look(specified, now))
    waits += [left for left in timed if left is not None and left > 0]
    if (not waits and s.spec_problem) or waiting_restart(s, s.status) is not None:
        # the cause may lie in another object, whose events do not wake this ModelDeployment
        waits.append(CHECK_SECONDS)
    return Converge(status, desired(specified, now), requeue_after=min(waits, default=None))


def _without_spec(s: Snapshot, now: datetime) -> Plan:
    """A spec that cannot be read changes nothing that runs: weights stay as they are, and status
    reports it. Limits and metrics of the trial are gone with it, so only a person can end a
    rollout, with ``abort``.
    """
    verb = verbs.unhandled(s, only=("abort",))
    transition = verbs.carry_out(s, verb, now) if verb else None
    rollout = s.status.rollout
    if transition is None and rollout is not None and rollout.stage == "Revert":
        transition = end_revert(s, rollout, now)
    status = derive_status(s, transition.status if transition else s.status, now)
    if status != s.status:
        return Write(
            status, (*(transition.events if transition else ()), *changed_condition_events(s, status, now))
        )
    unconfirmed = any(d.unconfirmed for d in status.draining)
    if unconfirmed or (rollout is not None and rollout.stage == "Revert"):
        later = transition.requeue_after if transition else RECHECK_SECONDS if unconfirmed else None
        return Converge(status, desired_traffic_only(s), requeue_after=later)
    return Converge(status, Desired(narrow=True)) if s.overly_open else Wait(status)


def _would_lose_evidence(s: Snapshot, transition: Transition) -> bool:
    """Whether a new rollout would replace one whose evidence its revision does not have yet."""
    old, new = s.status.rollout, transition.status.rollout
    return old is not None and new is not None and old.started != new.started and bool(revision_status(s))


def recover_lost_status(s: SpecifiedSnapshot, now: datetime) -> Transition | None:
    """Recover a status that names no stable revision although one has served: it was emptied or
    damaged, or a backup did not contain it.
    """
    status = recover(s, now)
    if status is None:
        return None
    stable = status.stable.revision if status.stable else status.rollout.revision if status.rollout else None
    result = f"revision {stable} is stable" if stable else "no revision is known to have been stable"
    return Transition(
        status,
        (
            Event(
                Reason.STATE_REBUILT,
                "status did not name a stable revision; recovered it from the revisions and the live"
                f" route: {result}",
                "Warning",
            ),
        ),
    )


def carry_out_verb(s: Snapshot, now: datetime) -> Transition | None:
    """Carry out the first verb that was not handled yet."""
    verb = verbs.unhandled(s)
    return verbs.carry_out(s, verb, now) if verb else None


def end_superseded(s: SpecifiedSnapshot, now: datetime) -> Transition | None:
    """End a rollout whose version spec no longer requests, stable first."""
    rollout = s.status.rollout
    if (
        rollout is None
        or not in_flight(rollout)
        or rollout.stage == "Revert"
        or (rollout.stage == "Promote" and not _waits_in_trial(s))
    ):
        return None
    if is_still_requested(s, rollout):
        return None
    if kept := keep_what_serves(s, now):
        return kept
    if s.spec.model.follow is not None and s.generation == rollout.generation:
        message = f"{s.spec.model.uri}, which spec follows, has another version: sha256 {s.spec.model.sha256}"
    else:
        message = f"spec (generation {s.generation}) requests another version"
    end = revert if STAGES[rollout.stage].carries_weight else fail
    return Transition(
        end(s.status, now, "Superseded", Reason.SUPERSEDED, message), (Event(Reason.SUPERSEDED, message),)
    )


def _waits_in_trial(s: Observed) -> bool:
    """Whether promotion still waits for pods, at the weight of the last step."""
    return (
        s.status.stable is not None
        and s.status.rollout is not None
        and s.status.rollout.step is not None
        and not has_all_pods(s)
    )


def withdraw_failed_restart(s: Snapshot, now: datetime) -> Transition | None:
    """Withdraw a restart whose image lacks the flags of a hardened server."""
    withdrawn = withdraw_incompatible_restart(s)
    return Transition(withdrawn[0], (withdrawn[1],)) if withdrawn else None


def end_overdue(s: Snapshot, now: datetime) -> Transition | None:
    """End a rollout that has had its slot too long, even if a person paused it or its own deadlines
    are longer.
    """
    rollout, problem = s.status.rollout, held_too_long(s, now)
    if rollout is None or problem is None or rollout.mode == "Rollback" or rollout.stage == "Revert":
        return None
    if rollout.stage == "Promote" and (s.status.stable is None or has_all_pods(s)):
        return None  # it is about to finish
    if kept := keep_what_serves(s, now):
        return kept
    event = (Event(problem.reason, problem.message, "Warning"),)
    if STAGES[rollout.stage].carries_weight and s.status.stable is not None:
        return Transition(revert(s.status, now, "RolledBack", problem.reason, problem.message), event)
    return Transition(fail(s.status, now, "Failed", problem.reason, problem.message), event)


def enlarge_slot(s: Snapshot, now: datetime) -> Transition | None:
    """Count all GPUs of the present replicas, once every limit has room for them."""
    slot, requested = slot_of(s), gpus_requested(s)
    # a limit that was added after the slot was taken counts no GPUs
    growing = [x for x in s.slots if x.gpus]
    if (
        slot is None
        or counted(slot) >= requested
        or not growing
        or not all(x.held and x.gpus >= requested for x in growing)
    ):
        return None
    return Transition(change(s.status, slot=slot.model_copy(update=count(requested))))


def confirm_drained(s: Snapshot, now: datetime) -> Transition | None:
    """Let the pods of revisions go whose rollouts ended unconfirmed, once the data plane carries
    what the state calls for: in the usual time.
    """
    if not any(d.unconfirmed for d in s.status.draining) or not is_confirmed(s):
        return None
    confirmed = {"until": stamp(now + timedelta(seconds=s.settle_seconds)), "unconfirmed": None}
    drained = [d.model_copy(update=confirmed) if d.unconfirmed else d for d in s.status.draining]
    return Transition(s.status.model_copy(update={"draining": drained}))


def run_stage(s: Snapshot, now: datetime) -> Transition | None:
    """Run the stage of the rollout in flight."""
    rollout = s.status.rollout
    if rollout is None or not in_flight(rollout):
        return None
    return STAGES[rollout.stage].run(s, now)


def start_rollout(s: SpecifiedSnapshot, now: datetime) -> Transition | None:
    """Begin a rollout if spec requests a version that is neither stable nor quarantined."""
    status = s.status
    stable = s.revision(status.stable.revision) if status.stable else None
    if stable is not None and stable.is_version(s.spec):
        return None
    if is_pinned(s):
        return None
    known = known_version(s)
    rollout = status.rollout
    if rollout is not None and has_failed_for_spec(s) and not is_declared(s, rollout.reason):
        return None
    if problem := s.spec_problem or s.definition_problem:
        # No rollout begins, so that one begins by itself once the reason is gone.
        return Transition(status, (Event(problem.reason, problem.message, "Warning"),), CHECK_SECONDS)
    if known is not None and is_unseen(s):
        return Transition(status)
    if known is not None and _is_proven_return(s, known, now):
        text = (
            f"generation {s.generation} goes back to revision {known.name}, which was stable within"
            f" rollbackWindow {s.spec.rollout.rollback_window}: nothing is analysed again"
        )
        return Transition(begin_rollback(s, known, now, proven=True), (Event(Reason.ROLLOUT_STARTED, text),))
    if freeze := active_freeze(s.rules, now):
        return Transition(status, requeue_after=freeze.left(now))
    if (
        known is not None
        and known.status.outcome in QUARANTINED
        and not (is_declared(s, known.status.reason) or is_missed(s, known.status.reason))
    ):
        message = (
            f"revision {known.name} is this version and ended as {known.status.outcome}"
            f" ({known.status.reason}); retry that revision, or change the model"
        )
        failed = fail(
            begin(s, now, "Resolve", revision=known.name, number=known.number, sha256=known.sha256),
            now,
            known.status.outcome,
            Reason.QUARANTINED,
            message,
        )
        return Transition(failed, (Event(Reason.QUARANTINED, message, "Warning"),))
    sha256 = known.sha256 if known is not None else s.spec.model.sha256
    begun = begin(s, now, "Resolve")
    return Transition(
        allocate(s, begun, sha256, now) if sha256 else begun,
        (Event(Reason.ROLLOUT_STARTED, f"generation {s.generation}: {s.spec.model.uri}"),),
    )


def _is_proven_return(s: SpecifiedSnapshot, known: Revision, now: datetime) -> bool:
    """Whether spec goes back to a version as proven as that of a rollback by hand: a revert in Git.
    Only a window that spec sets says so.
    """
    return (
        s.spec.rollout.rollback_window is not None
        and known.prepared is not None
        and known.status.outcome in SERVED
        and is_return(s, known, now)
    )


CHECKS: tuple[Check, ...] = (
    recover_lost_status,
    carry_out_verb,
    withdraw_failed_restart,
    end_superseded,
    end_overdue,
    confirm_drained,
    enlarge_slot,
    wait_for_replicas,
    follow_stable,
    look_at_source,
    run_stage,
    start_rollout,
)
