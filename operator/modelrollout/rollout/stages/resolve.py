"""resolve: pin the digest of the source. The revision exists only afterwards."""

from __future__ import annotations

from datetime import datetime

from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.snapshot import Snapshot
from modelrollout.rollout.stages.job import RESULT_LOST, failed_job, job_in_progress, retry_job
from modelrollout.rollout.transitions import allocate, enter


def resolve(s: Snapshot, now: datetime) -> Transition:
    """Take the digest that the Job found."""
    work = s.work
    if work.state == "Succeeded" and work.result and work.result.sha256:
        status = allocate(s, s.status, work.result.sha256, now)
        assert status.rollout is not None
        if (
            s.status.stable
            and status.rollout.revision == s.status.stable.revision
            and s.revision(status.rollout.revision)
        ):
            # The source still is what stable was made of: there is nothing to roll out.
            same = enter(s.status, "Done", now, outcome="Stable", sha256=work.result.sha256)
            return Transition(
                same,
                (
                    Event(
                        "Unchanged", f"the source is still that of stable revision {status.rollout.revision}"
                    ),
                ),
            )
        return Transition(status)
    if work.state == "Succeeded":
        return retry_job(s, now, RESULT_LOST)
    if work.state == "Failed":
        return failed_job(s, work, now)
    return job_in_progress(s, now, "the resolve Job")
