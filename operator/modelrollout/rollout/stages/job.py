"""What the stages with a Job share: it is queued, runs, is lost, or fails.

The Job itself retries its pod where that may help (``resources.jobs``); this module handles what
the Job cannot see or tell apart. The Job of another attempt has another name, and the previous one
is deleted.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from modelrollout.api.times import since, stamp
from modelrollout.api.v1alpha1 import seconds
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.snapshot import JobState
from modelrollout.rollout.stages.waiting import CHECK_SECONDS, wait, wait_or_fail
from modelrollout.rollout.transitions import change, fail
from modelrollout.rollout.views import InFlight

MAX_LOST = 3  # lost Jobs or results before the rollout fails
SOON_SECONDS = 2.0  # until the next pass, for the reason why a Job was queued
# How long to wait for a terminating pod on an unreachable node. Anything it still publishes is
# harmless.
LOST_SECONDS = 60.0
# A file that is missing may be on its way: Git is often faster than an upload. It is looked for
# after 10, 30, 70, 150 and 310 s of the stage.
MISSING_SECONDS, FIRST_LOOK_SECONDS = 320.0, 10.0
RESULT_LOST = Problem(
    Reason.RESULT_LOST, "the Job's result was lost with its pod; see what deletes pods in this namespace"
)


def job_in_progress(s: InFlight, now: datetime, waiting_for: str) -> Transition:
    """Wait for a Job that has not ended. A running pod has the Job's own time limit;
    progressDeadline counts only while none runs, and no deadline counts while the Job is queued.
    """
    work = s.work
    if work.queued:
        return wait(s, work.queued, SOON_SECONDS if work.result_pending else CHECK_SECONDS, latest=True)
    if work.stuck:
        terminating_since, problem = work.stuck
        left = LOST_SECONDS - since(terminating_since, now)
        return wait(s, work.retried, min(CHECK_SECONDS, left)) if left > 0 else retry_job(s, now, problem)
    if not (work.idle_since or work.problem or s.write_problem):
        return wait(s, work.retried)
    return wait_or_fail(s, now, work.problem or s.write_problem or work.retried, waiting_for, work.idle_since)


def retry_job(s: InFlight, now: datetime, problem: Problem) -> Transition:
    """Run it once more as another Job; fail after ``MAX_LOST`` of them."""
    rollout = s.rollout
    if rollout.attempt < MAX_LOST:
        return Transition(change(s.status, attempt=rollout.attempt + 1))
    message = f"{problem.message}; that was attempt {rollout.attempt + 1}; retry when the cause is gone"
    return Transition(
        fail(s.status, now, "Failed", problem.reason, message), (Event(problem.reason, message, "Warning"),)
    )


def failed_job(s: InFlight, work: JobState, now: datetime) -> Transition:
    """End the rollout with the reason of the program, or of its pod. A Job that was killed from
    outside, or whose pod is not its own, runs again; so does one that misses a file, for a while.
    """
    result, problem = work.result, work.problem
    if problem and problem.reason in (Reason.KILLED, Reason.POD_FOREIGN):
        return retry_job(s, now, problem)
    reason = result.reason if result else problem.reason if problem else Reason.JOB_FAILED
    message = (
        result.message
        if result
        else problem.message
        if problem
        else "the Job failed and left no message; see its pod's log"
    )
    if reason == Reason.OBJECT_MISSING and (again := _look_again(s, Problem(reason, message), now)):
        return again
    return Transition(fail(s.status, now, "Failed", reason, message), (Event(reason, message, "Warning"),))


def _look_again(s: InFlight, problem: Problem, now: datetime) -> Transition | None:
    """Another Job for the missing file, or the wait for it; None: it was missing for too long."""
    rollout, stage_seconds = s.rollout, since(s.rollout.since, now)
    sought = min(MISSING_SECONDS, seconds(s.spec.rollout.progress_deadline))
    due = FIRST_LOOK_SECONDS * (2 ** (rollout.attempt + 1) - 1)
    if due >= sought or stage_seconds >= sought:
        return None
    if stage_seconds >= due:
        return Transition(change(s.status, attempt=rollout.attempt + 1))
    until = stamp(datetime.fromisoformat(rollout.since) + timedelta(seconds=sought))
    text = f"{problem.message}; it is looked for again until {until}"
    return wait(s, Problem(problem.reason, text), due - stage_seconds)
