"""resolve: pin the digest of the source. The revision exists only afterwards."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from modelrollout.api.v1alpha1 import ModelDeploymentStatus
from modelrollout.contract.results import TaskResult
from modelrollout.reasons import Reason
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.snapshot import rollout_of
from modelrollout.rollout.stages.job import RESULT_LOST, failed_job, job_in_progress, retry_job
from modelrollout.rollout.stages.spec import StageSpec
from modelrollout.rollout.transitions import allocate, change, enter, input_hash, seen_at
from modelrollout.rollout.views import InFlight


def resolve(s: InFlight, now: datetime) -> Transition:
    """Pin the digest that the Job found."""
    work = s.work
    if work.state == "Succeeded" and work.result and work.result.sha256:
        status = allocate(s, _followed(s, work.result), work.result.sha256, now)
        revision = rollout_of(status).revision
        if s.status.stable and revision == s.status.stable.revision and s.revision(revision):
            # The source is still the one that stable was made of: there is nothing to roll out.
            same = enter(_followed(s, work.result), "Done", now, outcome="Stable", sha256=work.result.sha256)
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


def _followed(s: InFlight, result: TaskResult) -> ModelDeploymentStatus:
    """Where spec follows the source, the digest is the version that it asks for from now on, and
    that this rollout brings.
    """
    follow = s.status.follow
    if s.spec.model.follow is None or follow is None or result.sha256 is None:
        return s.status
    known = seen_at(follow, result.sha256, result.etag, s.rollout.since)
    asked = replace(s, spec=s.spec.following(known))
    return change(s.status.model_copy(update={"follow": known}), input_hash=input_hash(asked))


RESOLVE = StageSpec(
    "Resolve",
    resolve,
    InFlight,
    phase="Resolving",
    doing="the digest of the source is being pinned",
    then="the model is prepared",
    condition="Resolved",
)
