"""Verbs: a request of a person, carried out once or refused (docs/reference/verbs.md)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime, timedelta

from modelrollout.api import names
from modelrollout.api.times import since, stamp
from modelrollout.api.v1alpha1 import ModelDeploymentStatus, RestartStatus, UserPause, VerbRecord
from modelrollout.reasons import Reason
from modelrollout.rollout import strategy
from modelrollout.rollout.dead_stable import is_all_that_serves
from modelrollout.rollout.follow import is_before_first, resume
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.policy.mandatory_metrics import steps_of, within_window
from modelrollout.rollout.policy.rules import active_freeze
from modelrollout.rollout.server_crashes import accept_ends
from modelrollout.rollout.snapshot import Snapshot, Verb, in_flight, rollout_of, shadow_of, step_of
from modelrollout.rollout.stages import STAGES
from modelrollout.rollout.stages.next_stage import advance, in_shadow
from modelrollout.rollout.strategy import step_label
from modelrollout.rollout.transitions import (
    MAX_VERBS,
    SHADOW_STEP,
    allocate,
    begin,
    begin_rollback,
    change,
    enter,
    fail,
    fail_first,
    pinned,
    record,
    revert,
    succeed,
)
from modelrollout.rollout.views import AtStep, Specified, SpecifiedSnapshot

_REFUSALS = 32  # refusals that keep their reason; older ones keep only the key
_MAX_REFUSAL = 200
CLIENTS_NOTICE = (
    "from then on the servers refuse management requests (403 without the pod's key), and a model cannot"
    " write into its own folder"
)


def unhandled(s: Snapshot, only: Collection[str] = names.VERBS) -> Verb | None:
    """The first verb that status does not list as handled."""
    known = {":".join(entry.split(":", 3)[:3]) for entry in s.status.handled_verbs}
    return next((v for v in s.verbs if v.key not in known and v.verb in only), None)


def carry_out(s: Snapshot, verb: Verb, now: datetime) -> Transition | None:
    """The transition of the verb; None while it has to wait for the rollout in flight to end."""
    refusal, transition = _ACTIONS[verb.verb](s, verb, now)
    if refusal:
        refusal = refusal[:_MAX_REFUSAL]
        return Transition(
            _handled(s, s.status, f"{verb.key}:refused {refusal}"),
            (Event(Reason.VERB_REFUSED, f"{verb.verb}: {refusal}", "Warning"),),
        )
    if transition is None:
        return None
    if in_flight(s.status.rollout) and verb.verb == "rollback":
        return transition  # ends the rollout in flight; the verb stays unhandled until then
    status = _recorded(_handled(s, transition.status, verb.key), verb, now)
    events = tuple(replace(e, message=f"{e.message}{_author(verb)}") for e in transition.events)
    return Transition(status, events, transition.requeue_after)


def _author(verb: Verb) -> str:
    """`` (by alice: the labels were wrong)``, as far as it is known."""
    by = f"by {verb.by}" if verb.by else ""
    told = f"{by}{': ' if by else ''}{verb.reason}" if verb.reason else by
    return f" ({told})" if told else ""


def _recorded(status: ModelDeploymentStatus, verb: Verb, now: datetime) -> ModelDeploymentStatus:
    """Record the verb in the rollout that it concerns, whose revision keeps it."""
    if status.rollout is None:
        return status
    made = VerbRecord(verb=verb.verb, at=stamp(now), by=verb.by, reason=verb.reason, step=verb.step)
    return change(status, verbs=[*status.rollout.verbs, made][-MAX_VERBS:])


def _handled(s: Snapshot, status: ModelDeploymentStatus, entry: str) -> ModelDeploymentStatus:
    """Record the verb for as long as its revision, and so its annotation, exists."""
    alive = {r.name for r in s.revisions} | {""}
    slot = entry.split(":", 2)[:2]
    entries = [e for e in status.handled_verbs if e.split(":", 2)[1] in alive and e.split(":", 2)[:2] != slot]
    # No key is dropped, or its verb would be carried out again. There is one per verb and existing
    # revision.
    older = [":".join(e.split(":", 3)[:3]) for e in entries[: -(_REFUSALS - 1)]]
    return status.model_copy(update={"handled_verbs": [*older, *entries[-(_REFUSALS - 1) :], entry]})


_Answer = tuple[str | None, Transition | None]


def _promote(s: Snapshot, verb: Verb, now: datetime) -> _Answer:
    """promote skips the present step, promote-full all of them."""
    s = replace(s, status=accept_ends(s.status))
    if _is_in_shadow(s, verb):
        return _past_shadow(s, verb, now)
    refusal = _not_at(s, verb)
    if refusal:
        return refusal, None
    trial = AtStep.narrowed(s)
    full, bakes = verb.verb == "promote-full", trial.rollout.stage == "Bake"
    if full and bakes:
        return f"{verb.revision} has all traffic already; promote ends its bake", None
    steps = steps_of(trial)
    present, position = step_label(trial.rollout.stage, trial.step, steps), strategy.locate(steps, trial.step)
    status = record(
        s.status,
        "Inconclusive",
        Reason.PROMOTED_BY_USER,
        now,
        100 if full else strategy.next_weight(steps, position),
    )
    if full:
        step = step_of(status).model_copy(update={"override": _override(verb, present)})
        event = Event(
            Reason.PROMOTED_BY_USER,
            f"{verb.revision} was promoted by hand at step {present}, past all others",
        )
        return None, Transition(enter(status, "Promote", now, step=step, paused_by_user=None), (event,))
    event = Event(Reason.PROMOTED_BY_USER, f"step {present} of {verb.revision} was promoted by hand")
    if bakes:
        return None, Transition(succeed(s, status, now, "Promoted"), (event,))
    return None, Transition(advance(trial, status, position, now, _override(verb, present)), (event,))


def _is_in_shadow(s: Snapshot, verb: Verb) -> bool:
    rollout = s.status.rollout
    return rollout is not None and rollout.stage == "Shadow" and rollout.revision == verb.revision


def _past_shadow(s: Snapshot, verb: Verb, now: datetime) -> _Answer:
    """Remove the mirror from the route; then come the steps, or all traffic."""
    if verb.step != SHADOW_STEP:
        return f"it names step {verb.step or '(none)'}, but the rollout is at step {SHADOW_STEP}", None
    if shadow_of(s.status).phase == "Leaving":
        return "the shadow has ended already", None
    full = verb.verb == "promote-full"
    leaving = in_shadow(
        s.status, "Leaving", now, override=_override(verb, SHADOW_STEP), promoted="Full" if full else "Step"
    )
    past = ", and past all steps" if full else ""
    return None, Transition(
        leaving,
        (Event(Reason.PROMOTED_BY_USER, f"{verb.revision} was promoted past its shadow by hand{past}"),),
    )


def _override(verb: Verb, present: str) -> str:
    return f"{verb.verb} {verb.nonce[:64]} at {present}"


def _not_at(s: Snapshot, verb: Verb, *, any_step: bool = False) -> str | None:
    """Why the verb does not apply to the present step; None if it does."""
    rollout = s.status.rollout
    if _is_in_shadow(s, verb):
        return (
            f"{verb.revision} is in its shadow, so no client gets its answers and there is nothing to pause;"
            " promote or abort it"
        )
    if (
        rollout is None
        or rollout.stage not in ("Canary", "Bake")
        or rollout.step is None
        or rollout.revision != verb.revision
    ):
        return f"{verb.revision} is not in a step of a trial"
    present = step_label(rollout.stage, rollout.step, steps_of(Specified.of(s)))
    if verb.step == present or (any_step and verb.step is None):
        return None
    return f"it names step {verb.step or '(none)'}, but the rollout is at step {present}"


def _pause(s: Snapshot, verb: Verb, now: datetime) -> _Answer:
    refusal = _not_at(s, verb, any_step=True)
    if refusal:
        return refusal, None
    if rollout_of(s.status).paused_by_user is not None:
        return "it is paused already", None
    paused = change(s.status, paused_by_user=UserPause(since=stamp(now), by=verb.nonce[:64]))
    return None, Transition(
        paused,
        (
            Event(
                Reason.PAUSED_BY_USER,
                f"{verb.revision} stays where it is until a person resumes or promotes it",
            ),
        ),
    )


def _resume(s: Snapshot, verb: Verb, now: datetime) -> _Answer:
    refusal = _not_at(s, verb, any_step=True)
    if refusal:
        return refusal, None
    paused, step = rollout_of(s.status).paused_by_user, step_of(s.status)
    if paused is None:
        return "it is not paused by hand" + ("; promote it to go on" if step.phase == "Paused" else ""), None
    # The time of the pause counts for no deadline and no pause step.
    begun = datetime.fromisoformat(step.since) + timedelta(seconds=since(paused.since, now))
    return None, Transition(
        change(s.status, step=step.model_copy(update={"since": stamp(begun)}), paused_by_user=None),
        (Event(Reason.RESUMED_BY_USER, f"{verb.revision} continues"),),
    )


def _restart(s: Snapshot, verb: Verb, now: datetime) -> _Answer:
    """Replace the pods of a revision that has any."""
    revision = s.revision(verb.revision)
    if revision is None or verb.revision not in s.servers:
        return f"{verb.revision} has no pods", None
    downtime = verb.verb == "restart-allow-downtime"
    # until a restart is over, the serving pods are older than the template
    before = s.status.restarts.get(verb.revision)
    previous = (
        before.previous_at
        if before and not (before.done or before.triton_too_old)
        else s.server(verb.revision).restarted
    )
    restart = RestartStatus(at=stamp(now), previous_at=previous, allow_downtime=downtime)
    restarts = {name: record for name, record in s.status.restarts.items() if name in s.servers} | {
        verb.revision: restart
    }
    how = "each ends before its successor is there" if downtime else "each ends when its successor is ready"
    text = f"the pods of {verb.revision} are replaced one after the other, {how}"
    if not revision.hardened and not s.server(verb.revision).hardened:
        text += f"; {CLIENTS_NOTICE}"
    return None, Transition(
        s.status.model_copy(update={"restarts": restarts}), (Event(Reason.RESTARTED_BY_USER, text),)
    )


def _abort(s: Snapshot, verb: Verb, now: datetime) -> _Answer:
    rollout = s.status.rollout
    if rollout is None or not in_flight(rollout) or (verb.revision and rollout.revision != verb.revision):
        return f"no rollout of {verb.revision} is in flight", None
    if rollout.stage == "Revert":
        return "the rollout is already going back to stable", None
    return None, _end(s, now, Reason.ABORTED_BY_USER, "aborted by hand")


def _end(s: Snapshot, now: datetime, reason: str, message: str) -> Transition:
    rollout = rollout_of(s.status)
    if is_all_that_serves(s):
        message = f"{message}; no pod of stable is ready, so clients get no answers until one is"
    event = (Event(reason, message),)
    if not STAGES[rollout.stage].carries_weight:
        return Transition(fail(s.status, now, "Aborted", reason, message), event)
    if s.status.stable is None:
        return Transition(fail_first(s, now, "Aborted", reason, message), event)
    return Transition(revert(s.status, now, "Aborted", reason, message), event)


def _retry(snapshot: Snapshot, verb: Verb, now: datetime) -> _Answer:
    s = SpecifiedSnapshot.narrowed(snapshot)
    if in_flight(s.status.rollout):
        return "a rollout is in flight; abort it first", None
    if problem := s.spec_problem or s.definition_problem:
        return problem.message, None
    if freeze := active_freeze(s.rules, now):
        return freeze.message, None
    if not verb.revision:
        stable, sha256 = (
            s.revision(s.status.stable.revision if s.status.stable else None),
            s.spec.model.sha256,
        )
        if sha256 and stable is not None and stable.is_version(s.spec):
            return f"{stable.name} is stable", None
        begun = begin(s, now, "Resolve")
        again = allocate(s, begun, sha256, now) if sha256 else begun
        return None, Transition(again, (Event(Reason.RETRIED_BY_USER, "the source is resolved again"),))
    revision = s.revision(verb.revision)
    if revision is None or not revision.is_version(s.spec):
        return f"spec requests another version than {verb.revision}", None
    if s.status.stable and s.status.stable.revision == verb.revision:
        return f"{verb.revision} is stable", None
    status = begin(s, now, "Prepare", sha256=revision.sha256, revision=revision.name, number=revision.number)
    return None, Transition(
        status, (Event(Reason.RETRIED_BY_USER, f"revision {verb.revision} is tried again"),)
    )


def _rollback(snapshot: Snapshot, verb: Verb, now: datetime) -> _Answer:
    s = SpecifiedSnapshot.narrowed(snapshot)
    target = s.revision(verb.revision)
    if target is None:
        return f"there is no revision {verb.revision}", None
    if s.status.stable and s.status.stable.revision == verb.revision and not in_flight(s.status.rollout):
        return f"{verb.revision} is stable already", None
    if target.prepared is None:
        return f"{verb.revision} was never prepared; apply its version as spec instead", None
    if target.status.outcome not in ("Stable", "Promoted", "Retired"):
        return f"{verb.revision} never served as stable (outcome {target.status.outcome})", None
    rollout = s.status.rollout
    if rollout is not None and in_flight(rollout):
        if rollout.stage == "Revert":
            return None, None
        if rollout.revision == verb.revision:
            # to end it would say of the version that it was given up, and refuse the rollback then
            what = "rollback to" if rollout.mode == "Rollback" else "rollout of"
            return f"a {what} {verb.revision} is in flight already", None
        return None, _end(
            s, now, Reason.ROLLED_BACK_BY_USER, f"ended in favour of a rollback to {verb.revision}"
        )
    proven = within_window(s, target, now)
    status = begin_rollback(s, target, now, proven=proven)
    status = status.model_copy(update={"pinned": pinned(s, target.name)})
    judged = (
        ""
        if proven
        else (
            f"; it was stable longer than rollbackWindow {s.spec.rollout.rollback_window} ago, so it is"
            " judged again"
        )
    )
    return None, Transition(
        status, (Event(Reason.ROLLED_BACK_BY_USER, f"going back to revision {verb.revision}{judged}"),)
    )


def _follow(snapshot: Snapshot, verb: Verb, now: datetime) -> _Answer:
    """Look at the source again, at once. What it was stopped at is not tried again: that takes
    ``retry``.
    """
    s = SpecifiedSnapshot.narrowed(snapshot)
    follow, rollout = s.status.follow, s.status.rollout
    if s.spec.model.follow is None or follow is None:
        return "spec.model.follow is not set, so there is nothing to follow", None
    if in_flight(rollout):
        return "a rollout is in flight; it ends first", None
    if problem := s.spec_problem or s.definition_problem:
        return problem.message, None
    if is_before_first(s):
        return "nothing of the source was rolled out yet; retry it", None
    text = f"{follow.uri} is followed again; it is looked at now"
    return None, Transition(
        s.status.model_copy(update={"follow": resume(s, follow)}), (Event(Reason.FOLLOWED_BY_USER, text),)
    )


_ACTIONS = {
    "promote": _promote,
    "promote-full": _promote,
    "pause": _pause,
    "resume": _resume,
    "abort": _abort,
    "retry": _retry,
    "rollback": _rollback,
    "follow": _follow,
    "restart": _restart,
    "restart-allow-downtime": _restart,
}
