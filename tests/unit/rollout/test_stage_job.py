"""What all stages with a Job have in common: queues, pods that are taken away, nodes that are lost,
and which time counts.
"""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.problem import Problem
from modelrollout.rollout.decide import decide
from modelrollout.rollout.snapshot import JobState
from modelrollout.rollout.stages.job import LOST_SECONDS, MAX_LOST, job_in_progress
from modelrollout.rollout.views import InFlight
from modelrollout.testing import builders as b

STAGES = ("Resolve", "Prepare", "Evaluate")
CONDITION = {"Resolve": "Resolved", "Prepare": "Prepared", "Evaluate": "Evaluated"}
GOLDEN = {"analysis": {"golden": {"uri": "s3://models/g.npz"}}}
SHORT = b.spec(2, rollout={"progressDeadline": "10m", **GOLDEN})
TAKEN_AWAY = Problem("Preempted", "pod p was taken away")


def at_work(stage: str, work: JobState, **more: Any) -> Any:
    return b.second(stage, wanted=SHORT, work=work, **more)


@pytest.mark.parametrize("stage", STAGES)
def test_time_in_a_queue_has_no_limit(stage: str) -> None:
    s = at_work(stage, JobState("Running", queued=Problem("Queued", "Job x waits in LocalQueue q")))
    told = decide(s, b.START)
    assert (
        b.condition(told, CONDITION[stage]).reason == "Queued"
        and "LocalQueue q" in b.condition(told, CONDITION[stage]).message
    )
    assert b.moved(decide(s, b.at(1_000_000))).stage == stage


@pytest.mark.parametrize("stage", STAGES)
def test_while_a_pod_works_only_its_own_limit_counts(stage: str) -> None:
    s = at_work(stage, JobState("Running", retried=TAKEN_AWAY))
    told = decide(s, b.at(100_000))
    assert b.moved(told).stage == stage and b.condition(told, CONDITION[stage]).reason == "Preempted", (
        "why it is at another try is told"
    )


@pytest.mark.parametrize("stage", STAGES)
def test_the_deadline_is_for_the_time_without_a_pod_that_works(stage: str) -> None:
    """An hour of work and then a lost node: the new pod has the whole deadline to start."""
    since = b.at(3600).isoformat().replace("+00:00", "Z")
    s = at_work(stage, JobState("Running", retried=TAKEN_AWAY, idle_since=since))
    assert b.moved(decide(s, b.at(3600 + 599))).stage == stage
    ended = b.moved(decide(s, b.at(3600 + 601)))
    assert (ended.stage, ended.outcome, ended.reason) == ("Failed", "Failed", "Preempted")
    silent = b.moved(decide(at_work(stage, JobState("Running", idle_since=since)), b.at(3600 + 601)))
    assert silent.reason == "ProgressDeadlineExceeded" and f"{stage.lower()} Job" in (silent.message or "")


@pytest.mark.parametrize("stage", STAGES)
def test_a_pod_whose_node_does_not_answer_is_given_up_for_another_job(stage: str) -> None:
    """The Job controller would wait for it until the node is removed: with a podFailurePolicy it
    replaces a pod only when that has ended.
    """
    stuck = (b.at(100).isoformat(), Problem("NodeLost", "pod p on node n"))
    s = at_work(stage, JobState("Running", stuck=stuck))
    waits = job_in_progress(InFlight.narrowed(s), b.at(100 + LOST_SECONDS - 7), "the Job")
    assert waits.status == s.status and waits.requeue_after == 7
    after = b.moved(decide(s, b.at(100 + LOST_SECONDS)))
    assert (after.stage, after.attempt) == (stage, 1)
    before, now = (
        b.children(s).work,
        b.children(at_work(stage, JobState("Absent"), changes={"attempt": 1})).work,
    )
    assert before and now and before[1] != now[1]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (
            JobState("Running", stuck=("2026-11-22T11:00:00Z", Problem("NodeLost", "pod p on node n"))),
            "NodeLost",
        ),
        (JobState("Failed", 137, None, Problem("Killed", "pod p was killed")), "Killed"),
        (
            JobState("Failed", problem=Problem("PodForeign", "pod p is not as its Job's template says")),
            "PodForeign",
        ),
    ],
)
def test_what_goes_lost_again_and_again_is_given_up(stage: str, work: JobState, reason: str) -> None:
    assert (
        b.moved(decide(at_work(stage, work, changes={"attempt": MAX_LOST - 1}), b.START)).attempt == MAX_LOST
    )
    ended = b.moved(decide(at_work(stage, work, changes={"attempt": MAX_LOST}), b.START))
    assert (ended.stage, ended.outcome, ended.reason) == ("Failed", "Failed", reason) and "retry" in (
        ended.message or ""
    )


@pytest.mark.parametrize(
    "reason",
    ["OutOfMemory", "OutOfDisk", "DeadlineExceeded", "JobCrashed", "PodChanged", "ArtifactElsewhere"],
)
def test_what_would_end_the_same_way_is_not_tried_again(reason: str) -> None:
    ended = b.moved(
        decide(at_work("Prepare", JobState("Failed", 137, None, Problem(reason, "why"))), b.START)
    )
    assert (ended.stage, ended.reason, ended.message, ended.attempt) == ("Failed", reason, "why", 0)
