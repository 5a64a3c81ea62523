"""What the stages with a Job have in common: it waits, works, is lost, or ends badly.

A Job tries its pod again by itself where that may help (``resources.jobs``); what it cannot see or
not tell apart is decided here. The Job of another attempt has another name, and the one before goes
away.
"""

from __future__ import annotations

from datetime import datetime

from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.snapshot import JobState, Problem, since
from modelrollout.rollout.stages.waiting import CHECK_SECONDS, wait, wait_or_fail
from modelrollout.rollout.transitions import change, fail
from modelrollout.rollout.views import InFlight

MAX_LOST = 3  # Jobs lost, or results with their pods, before it is called a failure
SOON_SECONDS = 2.0  # to hear why a Job that was just queued waits
# a pod that should be gone and is not: its node does not answer. Nothing that it may still publish
# does harm
LOST_SECONDS = 60.0
RESULT_LOST = Problem(
    "ResultLost", "the Job's result was lost with its pod; see what deletes pods in this namespace"
)


def job_in_progress(s: InFlight, now: datetime, waiting_for: str) -> Transition:
    """The Job has not ended. While it works it has a limit of its own; progressDeadline is for the
    time in which no pod of it does, and while it is queued there is none.
    """
    work = s.work
    if work.queued:
        return wait(s, work.queued, SOON_SECONDS if work.result_pending else CHECK_SECONDS, latest=True)
    if work.stuck:
        gone, problem = work.stuck
        left = LOST_SECONDS - since(gone, now)
        return wait(s, work.retried, min(CHECK_SECONDS, left)) if left > 0 else retry_job(s, now, problem)
    if not (work.idle_since or work.problem or s.write_problem):
        return wait(s, work.retried)
    return wait_or_fail(s, now, work.problem or s.write_problem or work.retried, waiting_for, work.idle_since)


def retry_job(s: InFlight, now: datetime, problem: Problem) -> Transition:
    """Run it once more as another Job."""
    rollout = s.rollout
    if rollout.attempt < MAX_LOST:
        return Transition(change(s.status, attempt=rollout.attempt + 1))
    message = f"{problem.message}; that was try {rollout.attempt + 1}, say retry when the cause is gone"
    return Transition(
        fail(s.status, now, "Failed", problem.reason, message), (Event(problem.reason, message, "Warning"),)
    )


def failed_job(s: InFlight, work: JobState, now: datetime) -> Transition:
    """A Job that ended badly for good: the program's own reason, or the pod's. Killed for no reason
    of its own, or ended by a stranger's pod, it runs again.
    """
    result, problem = work.result, work.problem
    if problem and problem.reason in ("Killed", "PodForeign"):
        return retry_job(s, now, problem)
    reason = result.reason if result else problem.reason if problem else "JobFailed"
    message = (
        result.message
        if result
        else problem.message
        if problem
        else "the Job failed and left no message; see its pod's log"
    )
    return Transition(fail(s.status, now, "Failed", reason, message), (Event(reason, message, "Warning"),))
