"""resolve: pin the digest of the source. The revision exists only afterwards."""

from __future__ import annotations

from datetime import datetime

from modelrollout.rollout.facts import Event, Snapshot
from modelrollout.rollout.stages.move import Move, failed_job, wait_or_fail
from modelrollout.rollout.transitions import allocate, change, enter, fail

MAX_LOST = 3  # results lost with their pods before it is called a failure


def resolve(s: Snapshot, now: datetime) -> Move:
    """Take the digest that the Job found."""
    work = s.work
    if work.state == "Succeeded" and work.result and work.result.sha256:
        status = allocate(s, s.status, work.result.sha256, now)
        assert status.rollout is not None
        if s.status.stable and status.rollout.revision == s.status.stable.revision and s.revision(status.rollout.revision):
            # The source still is what stable was made of: there is nothing to roll out.
            same = enter(s.status, "Done", now, outcome="Stable", sha256=work.result.sha256)
            return Move(same, (Event("Unchanged", f"the source is still that of stable revision {status.rollout.revision}"),))
        return Move(status)
    if work.state == "Succeeded":
        return lost(s, now)
    if work.state == "Failed":
        return failed_job(s, work, now)
    return wait_or_fail(s, now, work.problem, "the resolve Job")


def lost(s: Snapshot, now: datetime) -> Move:
    """The Job ended well but its pod, and with it the result, is gone: run it again; it finds its work in the store."""
    rollout = s.status.rollout
    assert rollout is not None
    if rollout.attempt >= MAX_LOST:
        message = "the Job's result was lost with its pod several times; see what deletes pods in this namespace, then say retry"
        return Move(fail(s.status, now, "Failed", "ResultLost", message), (Event("ResultLost", message, "Warning"),))
    return Move(change(s.status, attempt=rollout.attempt + 1))
