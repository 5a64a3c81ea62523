"""prepare: the optimization Job with the first gate."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.results import MetricResult, Paired, Search, SearchPoint, TaskResult
from modelrollout.problem import Problem
from modelrollout.rollout.decide import decide
from modelrollout.rollout.desired.revisions import revision_status
from modelrollout.rollout.snapshot import JobState, SharedPreparation
from modelrollout.testing import builders as b

MADE = TaskResult(
    sha256=b.sha(2),
    size_bytes=1000,
    artifact_uri="s3://artifacts/ml/key",
    artifact_digest="sha256:aa",
    artifact_size_bytes=260,
    accuracy_before=0.98,
    accuracy_after=0.975,
    paired=Paired(n=2000, both_right=1950, only_candidate_right=0, only_baseline_right=10, both_wrong=40),
    drop_interval=(0.002, 0.009),
    samples=2000,
    metrics=(
        MetricResult(
            name="f1",
            n=2000,
            before=0.97,
            after=0.96,
            interval=(0.002, 0.02),
            verdict="Successful",
            reason="WithinBudget",
        ),
    ),
)
LOST_TOO_MUCH = MADE.model_copy(
    update={
        "artifact_uri": None,
        "artifact_digest": None,
        "reason": "AccuracyDrop",
        "message": "the loss exceeds the budget",
    }
)


def test_the_revision_is_made_before_its_job() -> None:
    s = b.second("Prepare", revisions=(b.revision(1, "Stable"),))
    children = b.children(s)
    assert children.new_revision and (children.new_revision.name, children.new_revision.number) == (
        b.revision_name(2),
        2,
    )
    assert children.work is None


def test_the_job_of_the_revision_follows() -> None:
    children = b.children(b.second("Prepare"))
    assert (
        children.work
        and children.work[0] == "prepare"
        and children.work[1].startswith(f"{b.revision_name(2)}-prepare-")
    )
    assert children.new_revision is None and set(children.servers) == {b.revision_name(1)}


@pytest.mark.parametrize(
    ("reason", "anew"),
    [
        ("ArtifactDigestMismatch", True),
        ("ArtifactMissing", True),
        ("ArtifactCorrupt", True),
        ("JobFailed", False),
    ],
)
def test_what_its_servers_could_not_load_is_made_anew_by_a_retry(reason: str, anew: bool) -> None:
    s = b.second("Prepare", revisions=(b.revision(1, "Stable"), b.revision(2, "Failed", reason=reason)))
    assert (
        (b.children(s).work is not None) == anew if anew else b.moved(decide(s, b.START)).stage == "Provision"
    )


@pytest.mark.parametrize("outcome", ["Failed", "Superseded", "Aborted"])
def test_it_is_made_anew_too_where_the_retry_itself_did_not_get_on(outcome: str) -> None:
    spoilt = b.revision(2, "Failed", reason="ArtifactCorrupt")
    ended = b.second(
        "Failed",
        revisions=(b.revision(1, "Stable"), spoilt),
        changes={"outcome": outcome, "reason": "ChildRefused"},
    )
    assert (
        spoilt.prepared is None
        and replace(spoilt, status=revision_status(ended)[spoilt.name]).prepared is None
    )
    told = b.second(
        "Failed",
        revisions=ended.revisions,
        changes={"outcome": "Failed", "reason": "ArtifactCorrupt", "artifact": b.artifact(2)},
    )
    retained = revision_status(told).get(spoilt.name, spoilt.status)
    assert retained.artifact == b.artifact(2), "the evidence of the try that found it out stays"


def test_the_same_work_of_another_is_waited_for_and_taken() -> None:
    waiting = b.second("Prepare", shared=SharedPreparation("other"))
    to = b.moved(decide(waiting, b.START))
    assert (to.stage, to.reason) == ("Prepare", "PreparedTogether") and "ModelDeployment other" in (
        to.message or ""
    )
    told = replace(waiting, status=waiting.status.model_copy(update={"rollout": to}))
    assert b.children(told).work is None, "no Job, no pod"
    taken = b.moved(decide(b.second("Prepare", shared=SharedPreparation("other", b.artifact(2))), b.START))
    assert taken.stage == "Provision" and taken.artifact == b.artifact(2).model_copy(update={"reused": True})
    low = SharedPreparation(
        "other", b.artifact(2).model_copy(update={"digest": ""}), Problem("AccuracyLow", "too low")
    )
    refused = b.moved(decide(b.second("Prepare", shared=low), b.START))
    assert (refused.stage, refused.outcome, refused.reason) == (
        "Failed",
        "Rejected",
        "AccuracyLow",
    ) and "ModelDeployment other did" in (refused.message or "")


def test_how_long_it_waited_for_another_counts_for_no_deadline_of_its_own() -> None:
    """A fleet whose first Job took its time: each of the others failed at once where its own Job
    was refused for a moment.
    """
    waited = {"reason": "PreparedTogether", "since": b.ago(100_000), "started": b.ago(100_000)}
    refused = b.second("Prepare", changes=waited, write_problem=Problem("ChildRefused", "exceeded quota"))
    to = b.moved(decide(refused, b.START))
    assert (to.stage, to.since, to.reason) == ("Prepare", b.ago(0), None) and to.stages["Prepare"] >= 100_000
    told = replace(refused, status=refused.status.model_copy(update={"rollout": to}))
    assert b.moved(decide(told, b.START)).reason == "ChildRefused"


def test_what_was_made_is_kept_as_evidence() -> None:
    to = b.moved(decide(b.second("Prepare", work=JobState("Succeeded", 0, MADE)), b.START))
    assert to.stage == "Provision" and to.artifact is not None
    assert (to.artifact.digest, to.artifact.size_before, to.artifact.size_after, to.artifact.samples) == (
        "sha256:aa",
        1000,
        260,
        2000,
    )
    assert (to.artifact.accuracy_before, to.artifact.accuracy_after, to.artifact.drop_interval) == (
        0.98,
        0.975,
        [0.002, 0.009],
    )
    assert [(m.name, m.verdict, m.samples, m.interval) for m in to.artifact.metrics] == [
        ("f1", "Successful", 2000, [0.002, 0.02])
    ]


def test_that_a_version_streams_its_answers_is_kept_as_evidence() -> None:
    streams = JobState("Succeeded", 0, MADE.model_copy(update={"decoupled": True}))
    to = b.moved(decide(b.second("Prepare", work=streams), b.START))
    assert to.artifact is not None and to.artifact.decoupled is True


def test_what_a_search_found_is_kept_and_told() -> None:
    points = (
        SearchPoint("int8", 260, 0.1, 0.99, 0.002, True),
        SearchPoint("source", 1000, 0.2, 0.99, 0.001, True),
    )
    search = Search(
        objective="Size",
        metric="accuracy",
        before=0.99,
        allowed=0.01,
        chosen="int8",
        tried=9,
        ended="TimeLimit",
        points=points,
    )
    plan = decide(
        b.second("Prepare", work=JobState("Succeeded", 0, MADE.model_copy(update={"search": search}))),
        b.START,
    )
    rollout = b.moved(plan).artifact
    assert (
        rollout
        and rollout.search
        and (rollout.search.chosen, rollout.search.tried, rollout.search.ended) == ("int8", 9, "TimeLimit")
    )
    assert [
        (p.name, p.size, p.milliseconds, p.value, p.highest_loss, p.within) for p in rollout.search.points
    ] == [tuple(p) for p in points]
    assert any("auto took int8" in event.message for event in plan.events)


def test_a_revision_that_was_prepared_before_is_not_prepared_again() -> None:
    plan = decide(
        b.second("Prepare", revisions=(b.revision(1, "Stable"), b.revision(2, "RolledBack"))), b.START
    )
    assert b.moved(plan).stage == "Provision" and b.moved(plan).artifact == b.artifact(2)


@pytest.mark.parametrize("code", [ExitCode.GATE_FAILED, ExitCode.GATE_INCONCLUSIVE])
def test_a_gate_that_is_not_kept_rejects_with_its_numbers_and_nothing_to_serve(code: ExitCode) -> None:
    plan = decide(b.second("Prepare", work=JobState("Failed", int(code), LOST_TOO_MUCH)), b.START)
    to = b.moved(plan)
    assert (to.stage, to.outcome, to.reason) == ("Failed", "Rejected", "AccuracyDrop")
    assert to.artifact is not None and to.artifact.accuracy_after == 0.975 and not to.artifact.digest
    assert [e.type for e in plan.events] == ["Warning"]


def test_bad_input_fails_with_the_programs_words() -> None:
    work = JobState(
        "Failed", int(ExitCode.BAD_INPUT), TaskResult(reason="NotOnnx", message="the file is a pickle")
    )
    to = b.moved(decide(b.second("Prepare", work=work), b.START))
    assert (to.outcome, to.reason, to.message) == ("Failed", "NotOnnx", "the file is a pickle")


def test_a_job_that_ended_well_without_an_artifact_runs_again() -> None:
    to = b.moved(decide(b.second("Prepare", work=JobState("Succeeded", None, None)), b.START))
    assert (to.stage, to.attempt) == ("Prepare", 1)
    to = b.moved(decide(b.second("Prepare", work=JobState("Succeeded"), changes={"attempt": 3}), b.START))
    assert (to.stage, to.outcome, to.reason) == ("Failed", "Failed", "ResultLost")


def test_a_job_that_runs_has_its_own_deadline_and_not_ours() -> None:
    s = b.second("Prepare", work=JobState("Running"), wanted=b.spec(2, rollout={"progressDeadline": "10m"}))
    assert b.moved(decide(s, b.at(100_000))).stage == "Prepare"


def test_a_job_that_cannot_start_is_told_and_ends_at_the_deadline() -> None:
    spec = b.spec(2, rollout={"progressDeadline": "10m"})
    s = b.second(
        "Prepare",
        wanted=spec,
        work=JobState("Running", problem=Problem("ImagePullFailed", "no such image")),
    )
    waiting = decide(s, b.START)
    assert b.condition(waiting, "Prepared").reason == "ImagePullFailed"
    assert [e.reason for e in waiting.events] == ["ImagePullFailed"]
    assert b.moved(decide(s, b.at(700))).reason == "ImagePullFailed"


def test_a_job_that_the_api_server_refuses_is_told_and_ends_at_the_deadline() -> None:
    spec = b.spec(2, rollout={"progressDeadline": "10m"})
    s = b.second("Prepare", wanted=spec, write_problem=Problem("ChildRefused", "Job x: exceeded quota"))
    waiting = decide(s, b.START)
    assert (
        b.condition(waiting, "Prepared").message == "Job x: exceeded quota"
        and b.moved(waiting).stage == "Prepare"
    )
    assert b.moved(decide(s, b.at(700))).reason == "ChildRefused"


def test_a_message_without_end_is_cut() -> None:
    work = JobState("Failed", 1, TaskResult(reason="StoreUnreachable", message="x" * 100_000))
    message = b.moved(decide(b.second("Prepare", work=work), b.START)).message
    assert message is not None and len(message) <= 1024
