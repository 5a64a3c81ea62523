"""resolve: pin the digest of the source; the revision comes after it."""

from __future__ import annotations

from modelrollout.api.v1alpha1 import ModelDeploymentStatus
from modelrollout.contract.results import TaskResult
from modelrollout.problem import Problem
from modelrollout.rollout.decide import decide
from modelrollout.rollout.snapshot import JobState
from modelrollout.testing import builders as b

PINNED = JobState("Succeeded", 0, TaskResult(sha256=b.sha(2), size_bytes=1000))


def test_a_given_digest_needs_no_job() -> None:
    plan = decide(b.snapshot(b.spec(1, pinned=True), ModelDeploymentStatus()), b.START)
    begun = b.moved(plan)
    assert (begun.stage, begun.sha256, begun.revision, begun.number) == (
        "Prepare",
        b.sha(1),
        b.revision_name(1),
        1,
    )


def test_without_a_digest_a_job_of_the_model_deployment_looks_for_it() -> None:
    started = decide(b.snapshot(b.spec(1)), b.START)
    assert b.moved(started).stage == "Resolve"
    children = b.children(b.snapshot(b.spec(1), started.status))
    assert children.work and children.work[0] == "resolve" and children.work[1].startswith("digits-resolve-")
    assert children.new_revision is None


def test_the_digest_names_the_revision_and_takes_the_next_number() -> None:
    plan = decide(b.second("Resolve", work=PINNED), b.START)
    to = b.moved(plan)
    assert (to.stage, to.sha256, to.revision, to.number) == ("Prepare", b.sha(2), b.revision_name(2), 3)
    assert plan.status.last_number == 3


def test_a_version_that_is_known_keeps_its_revision_and_its_number() -> None:
    plan = decide(
        b.second("Resolve", work=PINNED, revisions=(b.revision(1, "Stable"), b.revision(2, "Superseded"))),
        b.START,
    )
    assert (b.moved(plan).revision, b.moved(plan).number, plan.status.last_number) == (
        b.revision_name(2),
        2,
        2,
    )


def test_a_number_is_not_used_again_after_its_revision_went() -> None:
    state = b.status(1, rollout=b.rollout("Resolve"), last_number=7)
    plan = decide(b.snapshot(b.spec(2), state, work=PINNED, revisions=(b.revision(1, "Stable"),)), b.START)
    assert b.moved(plan).number == 8


def test_a_source_that_still_is_stables_is_nothing_to_roll_out() -> None:
    """A person said retry on the ModelDeployment to look at a URI whose content may have
    changed.
    """
    state = b.status(1, rollout=b.rollout("Resolve", 1))
    same = JobState("Succeeded", 0, TaskResult(sha256=b.sha(1)))
    plan = decide(b.snapshot(b.spec(1), state, work=same, revisions=(b.revision(1, "Promoted"),)), b.START)
    assert b.moved(plan).stage == "Done" and plan.status.stable == b.ref(1)


def test_a_source_that_cannot_be_read_fails_with_the_programs_words() -> None:
    work = JobState("Failed", 10, TaskResult(reason="CredentialsDenied", message="look at spec.model.uri"))
    plan = decide(b.second("Resolve", work=work), b.START)
    to = b.moved(plan)
    assert (to.stage, to.outcome, to.reason, to.message) == (
        "Failed",
        "Failed",
        "CredentialsDenied",
        "look at spec.model.uri",
    )
    assert plan.status.stable == b.ref(1)


MISSING = JobState("Failed", 10, TaskResult(reason="ObjectMissing", message="no such file"))


def test_a_missing_file_is_looked_for_again_for_some_minutes() -> None:
    """Git is often faster than the upload."""
    status, looks = b.second("Resolve", work=MISSING).status, []
    for second in range(-10, 400, 2):  # the stage began then
        before = status.rollout
        status = decide(
            b.snapshot(b.spec(2), status, work=MISSING, revisions=(b.revision(1, "Stable"),)), b.at(second)
        ).status
        rollout = status.rollout
        assert before is not None
        assert rollout is not None
        if rollout.stage == "Failed":
            break
        if rollout.attempt > before.attempt:
            looks.append(second + 10)
        assert "no such file; it is looked for again until 20" in (rollout.message or "")
    assert looks == [10, 30, 70, 150, 310]
    assert rollout is not None
    assert (rollout.stage, rollout.reason, rollout.message) == ("Failed", "ObjectMissing", "no such file")
    assert second < 330


def test_a_short_deadline_ends_the_search_for_a_missing_file() -> None:
    s = b.snapshot(
        b.spec(2, rollout={"progressDeadline": "20s"}),
        b.status(1, rollout=b.rollout("Resolve", attempt=1)),
        work=MISSING,
        revisions=(b.revision(1, "Stable"),),
    )
    assert b.moved(decide(s, b.at(15))).stage == "Failed"


def test_a_pod_that_died_without_a_word_is_told_by_the_pod() -> None:
    plan = decide(
        b.second("Resolve", work=JobState("Failed", 137, None, Problem("OutOfMemory", "raise the limit"))),
        b.START,
    )
    assert (b.moved(plan).reason, b.moved(plan).message) == ("OutOfMemory", "raise the limit")


def test_a_lost_result_is_asked_for_again_by_a_job_of_another_name() -> None:
    again = decide(b.second("Resolve", work=JobState("Succeeded")), b.START).status
    assert again.rollout and (again.rollout.stage, again.rollout.attempt) == ("Resolve", 1)
    first, next_one = b.children(b.second("Resolve")).work, b.children(b.snapshot(b.spec(2), again)).work
    assert first and next_one and first[1] != next_one[1]


def test_the_wait_for_the_job_ends_at_the_deadline() -> None:
    spec = b.spec(2, rollout={"progressDeadline": "10m"})
    s = b.second(
        "Resolve", wanted=spec, work=JobState("Running", problem=Problem("Unschedulable", "no node fits"))
    )
    waiting = decide(s, b.at(589))
    assert b.moved(waiting).stage == "Resolve" and b.condition(waiting, "Resolved").reason == "Unschedulable"
    assert b.moved(decide(s, b.at(591))).reason == "Unschedulable"
    assert (
        b.moved(
            decide(
                b.second("Resolve", wanted=spec, work=JobState("Running", idle_since=b.at(-20).isoformat())),
                b.at(591),
            )
        ).reason
        == "ProgressDeadlineExceeded"
    )
