"""Waiting, with a reason in status and a deadline."""

from __future__ import annotations

from datetime import datetime

from modelrollout.api.times import since, stamp
from modelrollout.api.v1alpha1 import seconds
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout.dead_stable import COMPARING_STAGES, seconds_until_dead
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.snapshot import Snapshot
from modelrollout.rollout.transitions import change, cut, fail
from modelrollout.rollout.views import InFlight

CHECK_SECONDS = 30.0  # until the next pass of a stage that waits for a watched event
# what a stage may need after a time without a leader: pods start, Jobs run
GRACE_SECONDS = 600.0
SILENT_SECONDS = 10.0


def wait(
    s: InFlight, problem: Problem | None = None, requeue_after: float = CHECK_SECONDS, *, latest: bool = False
) -> Transition:
    """Stay in the stage, and give the problem, if there is one, as the reason in status.
    ``latest``: update the message while the reason stays the same.
    """
    rollout = s.rollout
    problem = problem or s.write_problem
    reason, message = (problem.reason, cut(problem.message)) if problem else (None, None)
    if rollout.reason == reason and (not latest or rollout.message == message):
        # Messages of one reason differ from pass to pass (ErrImagePull and ImagePullBackOff take
        # turns), so the first one stays.
        return Transition(s.status, requeue_after=requeue_after)
    events = (
        (Event(problem.reason, problem.message, "Warning"),) if problem and rollout.reason != reason else ()
    )
    return Transition(change(s.status, reason=reason, message=message), events, requeue_after)


def remaining(s: InFlight, now: datetime, idle_since: str | None = None) -> float:
    """Seconds until the progressDeadline of the stage, or of the step in the canary; negative when
    it has passed. ``idle_since``: it counts from then.

    It stands still while a person has paused the rollout. A new leader gives every stage
    ``GRACE_SECONDS`` (or the whole deadline, if that is shorter), since the deadline may have
    passed while there was no leader. Nor does it pass before it is decided whether stable is dead.
    """
    rollout = s.rollout
    if rollout.paused_by_user is not None:
        return CHECK_SECONDS
    limit = seconds(s.spec.rollout.progress_deadline)
    start = rollout.step.since if rollout.step and rollout.stage in ("Canary", "Bake") else rollout.since
    start = max(start, idle_since or start, key=datetime.fromisoformat)
    bake = seconds(s.spec.rollout.bake) if rollout.stage == "Bake" and s.spec.rollout.bake else 0.0
    left = time_left(s, limit, since(start, now) - bake, now)
    compares = rollout.stage in COMPARING_STAGES and rollout.uncompared_since is None
    dead_in = seconds_until_dead(s, now, s.leading_since) if compares else None
    return left if dead_in is None else max(left, dead_in)


def time_left(s: Snapshot, limit: float, spent: float, now: datetime) -> float:
    """Seconds of ``limit``, with the time that a new leader gives."""
    left = limit - spent
    grace = min(limit, GRACE_SECONDS) - since(stamp(s.leading_since), now) if s.leading_since else left
    return max(left, grace)


def data_plane_problem(s: Snapshot, began: str, now: datetime) -> Problem | None:
    """Why the data plane does not carry what the state has called for since ``began``. Silence
    counts only after SILENT_SECONDS: no gateway answers at once.
    """
    if s.traffic.programmed:
        return None
    if s.traffic.problem is not None or since(began, now) < SILENT_SECONDS:
        return s.traffic.problem
    return s.write_problem or Problem(Reason.TRAFFIC_UNCONFIRMED, s.traffic.message)


def wait_or_fail(
    s: InFlight, now: datetime, problem: Problem | None, waiting_for: str, idle_since: str | None = None
) -> Transition:
    """Wait until progressDeadline, then fail with the problem that was in the way."""
    left = remaining(s, now, idle_since)
    problem = problem or s.write_problem
    if left > 0:
        return wait(s, problem, min(CHECK_SECONDS, left))
    reason = problem.reason if problem else Reason.PROGRESS_DEADLINE_EXCEEDED
    detail = problem.message if problem else f"still waiting for {waiting_for}"
    message = f"not done within progressDeadline {s.spec.rollout.progress_deadline}: {detail}"
    return Transition(fail(s.status, now, "Failed", reason, message), (Event(reason, message, "Warning"),))
