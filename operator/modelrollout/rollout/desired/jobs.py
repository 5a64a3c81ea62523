"""The Job of the present stage."""

from __future__ import annotations

from modelrollout.api import names
from modelrollout.api.v1alpha1 import FollowStatus, RolloutStatus
from modelrollout.contract.tasks import Known
from modelrollout.rollout.snapshot import JobState, Observed, rollout_id


def waits_for_turn(work: JobState) -> bool:
    """Whether the Job is not to be created yet: others have their turn."""
    return work.state == "Absent" and work.queued is not None


def is_look(s: Observed) -> bool:
    """Whether the Job is a look at a source that is followed: where the rollout has none, or there
    is no rollout.
    """
    return looks(s.status.follow, s.status.rollout)


def looks(follow: FollowStatus | None, rollout: RolloutStatus | None) -> bool:
    """``is_look``, by the status."""
    if follow is None or follow.looking is None:
        return False
    return rollout is None or rollout.stage in ("Failed", "Done", "Canary", "Shadow")


def look_job_name(name: str, follow: FollowStatus) -> str:
    """Of the look under way, of a ModelDeployment of this name."""
    # long: the result of an earlier look, whose Job may still be there, is an older digest
    return names.resolve_job_name(name, names.short_hash([follow.uri, follow.looking], 12))


def known_source(s: Observed) -> Known | None:
    """What a look compares the source with, where its store said how."""
    follow = s.status.follow
    if follow is None or follow.sha256 is None or follow.etag is None or not is_look(s):
        return None
    return Known(etag=follow.etag, sha256=follow.sha256)


def work_since(s: Observed) -> str | None:
    """Since when the work of the Job is to be done."""
    if is_look(s) and s.status.follow is not None:
        return s.status.follow.looking
    return s.status.rollout.since if s.status.rollout else None


def asks_made_up(s: Observed) -> bool:
    """Whether Evaluate sends made-up inputs to the revision, so that what gets traffic has
    answered: a backend serves the file that the prepare Job could not run. Golden data asks it
    better. vLLM only streams.
    """
    if s.spec is None or s.spec.rollout.analysis.golden is not None or s.status.rollout is None:
        return False
    # of a revision that a person went back to, spec may say another
    revision = s.revision(s.status.rollout.revision)
    user_input = revision.input if revision else s.spec.user_input()
    return user_input.get("serving", {}).get("triton", {}).get("backend") not in (None, "VLLM")


def stage_job(s: Observed) -> tuple[str, str] | None:
    """Component and name of the Job of the present stage. In Prepare another ModelDeployment's Job
    may do the same work (``Snapshot.shared``); then this one is not created.
    """
    rollout = s.status.rollout
    if is_look(s) and s.status.follow is not None:
        return names.COMPONENT_RESOLVE, look_job_name(s.name, s.status.follow)
    if rollout is None:
        return None
    if rollout.stage == "Resolve":
        return names.COMPONENT_RESOLVE, names.resolve_job_name(s.name, rollout_id(rollout))
    if rollout.revision is None:
        return None
    if rollout.stage == "Prepare":
        revision = s.revision(rollout.revision)
        if revision is None or revision.prepared is not None:
            return None
        return names.COMPONENT_PREPARE, names.stage_job_name(rollout.revision, "prepare", rollout_id(rollout))
    tune = s.spec.serving.tune if s.spec else None
    if rollout.stage == "Tune" and tune and rollout.queue is None:
        return names.COMPONENT_TUNE, names.stage_job_name(
            rollout.revision, "tune", names.short_hash([rollout_id(rollout), tune.wire()], 4)
        )
    golden = s.spec.rollout.analysis.golden if s.spec else None
    if rollout.stage == "Evaluate" and (golden or asks_made_up(s)):
        # Edited golden data needs another Job. Edited budgets do not: the verdict reads the present
        # ones.
        data: object = golden.model_dump(mode="json", exclude={"max_drop", "min"}) if golden else "made up"
        if golden and rollout.uncompared_since is not None:
            data = [data, "without stable"]
        return names.COMPONENT_EVALUATE, names.stage_job_name(
            rollout.revision, "evaluate", names.short_hash([rollout_id(rollout), data], 4)
        )
    return None
