"""follow: looks at a source that may have new bytes, and what stops them.

Status keeps the digest that was seen last. ``ModelDeploymentSpec.following`` puts it into the spec
in effect, so a new digest is to all other code what a change of ``spec.model.sha256`` is: the whole
rollout, its gates, policies and verbs hold for it. Here is only when to look, and when not to.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from modelrollout.api import names
from modelrollout.api.times import since, stamp
from modelrollout.api.v1alpha1 import (
    Follow,
    FollowStatus,
    ModelDeploymentSpec,
    ModelDeploymentStatus,
    RolloutStatus,
    seconds,
)
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout import strategy
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.policy.mandatory_metrics import steps_of
from modelrollout.rollout.snapshot import QUARANTINED, Observed, Revision, Snapshot, in_flight
from modelrollout.rollout.stages.job import RESULT_LOST
from modelrollout.rollout.stages.waiting import CHECK_SECONDS
from modelrollout.rollout.transitions import cut, is_pinned, known_version, seen_at
from modelrollout.rollout.views import Specified, SpecifiedSnapshot

LEAST_SECONDS = 300.0
MAX_MESSAGE = 512
Truth = Literal["True", "False", "Unknown"]
_SHA256 = re.compile(r"[0-9a-f]{64}")


def look_at_source(s: SpecifiedSnapshot, now: datetime) -> Transition | None:
    """Begin a look that is due, or end the one under way. It waits for nothing here: a look holds
    up no rollout, and a store that does not answer changes only what status says of following.
    """
    before = s.status.follow
    if s.spec.model.follow is None:
        return None if before is None else Transition(_with(s.status, None))
    settings = _settings(s.spec.model.follow)
    if before is None or before.uri != s.spec.model.uri:
        return Transition(_with(s.status, _first(s, settings)))
    if before.settings != settings:
        changed = before.model_copy(update={"settings": settings})
        return Transition(_with(s.status, changed if in_flight(s.status.rollout) else _resumed(s, changed)))
    if before.looking is None:
        due = _may_look(s) and s.write_problem is None and _is_due(s, before, now)
        return Transition(_with(s.status, before.model_copy(update={"looking": stamp(now)}))) if due else None
    if not _may_look(s):
        return Transition(_with(s.status, before.model_copy(update={"looking": None})))
    return _end_look(s, before, now)


def _with(status: ModelDeploymentStatus, follow: FollowStatus | None) -> ModelDeploymentStatus:
    return status.model_copy(update={"follow": follow})


def _settings(follow: Follow) -> str:
    """Changes where a person edits follow. Its parts are named, so that a field that a newer
    operator adds lets nothing go on.
    """
    return names.short_hash([follow.every, follow.supersede])


def _first(s: Specified, settings: str) -> FollowStatus:
    """Begin to follow, past whatever has ended before spec said so. These ends stop it all the
    same: a person's rollback; that of a rollout of spec as it is, since then what was known is
    lost; and, where that rollout is lost too, a version that failed, which therefore counts as the
    one seen last.
    """
    seen = known_version(s) if s.status.rollout is None else None
    refused = seen is not None and seen.status.outcome in QUARANTINED
    fresh = FollowStatus(
        uri=s.spec.model.uri, settings=settings, sha256=seen.sha256 if seen is not None and refused else None
    )
    rollout = s.status.rollout
    was_lost = rollout is not None and rollout.generation == s.generation
    # a rollout in flight has not ended yet: its end still stops
    return fresh if is_pinned(s) or in_flight(rollout) or was_lost else _resumed(s, fresh)


def _resumed(s: Observed, follow: FollowStatus) -> FollowStatus:
    return follow.model_copy(update={"resumed": _last_rollout(s.status)})


def resume(s: Observed, follow: FollowStatus) -> FollowStatus:
    """Follow again, whatever ended, and look at once."""
    return _resumed(s, follow).model_copy(update={"checked": None})


def _last_rollout(status: ModelDeploymentStatus) -> str:
    return status.rollout.started if status.rollout else ""


def stopped(s: Specified) -> Problem | None:
    """Why the source is not followed any more: a person rolled back, or the last rollout ended
    badly, and neither a person nor a change of spec has let it go on since.
    """
    follow, rollout = s.status.follow, s.status.rollout
    if follow is None or follow.resumed == _last_rollout(s.status):
        return None
    if is_pinned(s):
        stable = s.status.stable.revision if s.status.stable else "none"
        return Problem(Reason.ROLLED_BACK_BY_USER, f"a person rolled back to revision {stable}")
    if rollout is None or rollout.stage != "Failed" or rollout.outcome not in QUARANTINED:
        return None
    if is_missed(s, rollout.reason):
        return None
    tried = s.revision(rollout.revision)
    if tried is not None and not _is_of_input(tried, s.spec):
        return None
    message = f"the rollout of {rollout.revision or 'the source'} ended as {rollout.outcome}"
    return Problem(rollout.reason or Reason.FAILED, f"{message}: {rollout.message}")


def _is_of_input(revision: Revision, spec: ModelDeploymentSpec) -> bool:
    """Whether spec asks for that version, whatever its bytes. What an operator of another version
    recorded is read with today's types, and replicas are no part of it.
    """
    return revision.is_version(
        spec.model_copy(update={"model": spec.model.model_copy(update={"sha256": None})})
    )


def is_missed(s: Specified, reason: str | None) -> bool:
    """Whether a version failed only because the source had other bytes again before they were
    fetched. Nothing was judged, so it does not stop, and may come back.
    """
    return s.spec.model.follow is not None and reason == Reason.DIGEST_MISMATCH


def _may_look(s: SpecifiedSnapshot) -> bool:
    """Not while something forbids the spec, or a rollout is in flight: that ends first, unless it
    makes way.
    """
    if s.spec_problem or s.definition_problem or stopped(s):
        return False
    rollout = s.status.rollout
    if rollout is not None and in_flight(rollout):
        return makes_way(s, rollout)
    return not is_before_first(s)


def is_before_first(s: Observed) -> bool:
    """Whether what lies there is for the first rollout to find: nothing serves yet, and nothing
    has been seen.
    """
    return s.status.stable is None and (s.status.follow is None or s.status.follow.sha256 is None)


def is_unseen(s: SpecifiedSnapshot) -> bool:
    """Whether spec follows a path whose bytes a look is about to find: what is known of it from
    earlier times may lie there no more.
    """
    follow = s.status.follow
    return s.spec.model.follow is not None and follow is not None and follow.sha256 is None and _may_look(s)


def makes_way(s: Specified, rollout: RolloutStatus) -> bool:
    """Whether the rollout waits for a person who allowed that a newer version takes its place:
    without evidence, or at a pause step without an end. Not what was proven worse, and not what a
    person paused.
    """
    follow = s.spec.model.follow
    if follow is None or follow.supersede != "Paused" or rollout.paused_by_user is not None:
        return False
    if rollout.stage == "Shadow":
        paused = rollout.shadow is not None and rollout.shadow.phase == "Paused"
        return paused and rollout.reason == Reason.INCONCLUSIVE
    if rollout.stage != "Canary" or rollout.step is None or rollout.step.phase != "Paused":
        return False
    if rollout.reason == Reason.INCONCLUSIVE:
        return True
    steps = steps_of(s)
    pause = strategy.pause_at(steps, strategy.locate(steps, rollout.step))
    return rollout.reason == Reason.PAUSE_STEP and not (pause is not None and pause.duration)


def _every(follow: Follow) -> float:
    return max(LEAST_SECONDS, seconds(follow.every))


def _is_due(s: SpecifiedSnapshot, follow: FollowStatus, now: datetime) -> bool:
    """Also where the last look is recorded for a time far ahead: by a clock that was wrong."""
    assert s.spec.model.follow is not None
    due = next_look(s, follow)
    return now >= due or (due - now).total_seconds() > 2 * _every(s.spec.model.follow)


def next_look(s: Specified, follow: FollowStatus) -> datetime:
    """When the next look is due. Each ModelDeployment has its own moment within ``every``, so that
    a thousand that were applied, or woken by a new leader, at one time do not look together.
    """
    assert s.spec.model.follow is not None
    every = _every(s.spec.model.follow)
    if follow.checked is None:
        return datetime.fromtimestamp(0, UTC)
    own = int(names.short_hash([s.namespace, s.name]), 16) % every
    earliest = datetime.fromisoformat(follow.checked).timestamp() + every / 2
    turns = -((own - earliest) // every)
    return datetime.fromtimestamp(0, UTC) + timedelta(seconds=own + turns * every)


def seconds_until_look(s: SpecifiedSnapshot, now: datetime) -> float | None:
    """Seconds until the next pass that a look needs; None: it needs none."""
    follow = s.status.follow
    if s.spec.model.follow is None or follow is None or not _may_look(s):
        return None
    if follow.looking is not None or s.write_problem is not None:
        return CHECK_SECONDS
    return max(1.0, (next_look(s, follow) - now).total_seconds())


def _end_look(s: SpecifiedSnapshot, follow: FollowStatus, now: datetime) -> Transition | None:
    work = s.work
    if work.state == "Succeeded" and work.result and _SHA256.fullmatch(work.result.sha256 or ""):
        return _seen(s, follow, work.result.sha256 or "", work.result.etag, now)
    problem = _failure(s, now)
    if problem is None:
        return None
    ended = {"checked": follow.looking, "looking": None}
    why = {"reason": problem.reason, "message": cut(problem.message, MAX_MESSAGE)}
    # one event until a look succeeds: a store may be away for days
    events = (
        (Event(problem.reason, f"the source cannot be looked at: {problem.message}", "Warning"),)
        if follow.reason != problem.reason
        else ()
    )
    return Transition(_with(s.status, follow.model_copy(update=ended | why)), events)


def _failure(s: Snapshot, now: datetime) -> Problem | None:
    """Why the look has failed; None while its Job is queued, runs, or may still start."""
    work = s.work
    if work.state == "Succeeded":
        return RESULT_LOST
    if work.state == "Failed":
        if work.result:
            return Problem(work.result.reason, work.result.message)
        return work.problem or Problem(Reason.JOB_FAILED, "the Job left no message; see its pod's log")
    if work.queued:
        return None
    if work.state == "Absent":
        return s.look_problem
    if work.idle_since is None or since(work.idle_since, now) < LEAST_SECONDS:
        return None
    return work.problem or Problem(
        Reason.PROGRESS_DEADLINE_EXCEEDED, f"no pod of the Job has run for {LEAST_SECONDS:.0f} s"
    )


def _seen(
    s: SpecifiedSnapshot, follow: FollowStatus, sha256: str, etag: str | None, now: datetime
) -> Transition:
    """The source has these bytes now."""
    looked = seen_at(follow, sha256, etag, follow.looking or stamp(now))
    stable = s.revision(s.status.stable.revision) if s.status.stable else None
    served = stable.sha256 if stable else None
    if sha256 == (follow.sha256 or served):
        return Transition(_with(s.status, looked))
    message = f"{follow.uri} has other bytes, sha256 {sha256}: a version like any other"
    return Transition(_with(s.status, looked), (Event(Reason.SOURCE_CHANGED, message),))


def following(s: Snapshot, status: ModelDeploymentStatus) -> tuple[Truth, str, str] | None:
    """Truth, reason and message of the condition Following; None where spec does not follow."""
    if s.spec is None or s.spec.model.follow is None or (follow := status.follow) is None:
        return None
    after = Specified.of(replace(s, status=status))
    problem = s.spec_problem or s.definition_problem
    if problem is not None:
        return "False", problem.reason, f"the source is not looked at: {problem.message}"
    if (end := stopped(after)) is not None:
        verb = "retry" if is_before_first(after) else "follow"
        remedy = f"run modelrollout {verb} {s.name}, or change the version in spec"
        return "False", end.reason, f"{end.message}; to follow the source again {remedy}"
    if follow.reason is not None:
        text = f"{follow.message}; the source is looked at again every {s.spec.model.follow.every}"
        return "Unknown", follow.reason, text
    if follow.sha256 is None:
        return "True", Reason.FOLLOWING, "the source has not been looked at yet"
    return "True", Reason.FOLLOWING, f"sha256 {follow.sha256}, first seen {follow.seen}"
