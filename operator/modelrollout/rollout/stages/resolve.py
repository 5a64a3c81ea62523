"""resolve: pin the digest of the source. The revision exists only afterwards."""

from __future__ import annotations

from datetime import datetime

from modelrollout.reasons import Reason
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.snapshot import rollout_of
from modelrollout.rollout.stages.job import RESULT_LOST, failed_job, job_in_progress, retry_job
from modelrollout.rollout.stages.spec import StageSpec
from modelrollout.rollout.transitions import allocate, enter
from modelrollout.rollout.views import InFlight


def resolve(s: InFlight, now: datetime) -> Transition:
    """Pin the digest that the Job found."""
    work = s.work
    if work.state == "Succeeded" and work.result and work.result.sha256:
        status = allocate(s, s.status, work.result.sha256, now)
        revision = rollout_of(status).revision
        if s.status.stable and revision == s.status.stable.revision and s.revision(revision):
            # The source is still the one that stable was made of: there is nothing to roll out.
            same = enter(s.status, "Done", now, outcome="Stable", sha256=work.result.sha256)
            return Transition(
                same,
                (Event(Reason.UNCHANGED, f"the source is still that of stable revision {revision}"),),
            )
        return Transition(status)
    if work.state == "Succeeded":
        return retry_job(s, now, RESULT_LOST)
    if work.state == "Failed":
        return failed_job(s, work, now)
    return job_in_progress(s, now, "the resolve Job")


RESOLVE = StageSpec(
    "Resolve",
    resolve,
    InFlight,
    phase="Resolving",
    doing="the digest of the source is being pinned",
    then="the model is prepared",
    condition="Resolved",
)
