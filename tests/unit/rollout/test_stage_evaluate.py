"""evaluate: golden data at 0 % traffic, the authoritative gate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest

from modelrollout.api.v1alpha1 import VerdictName
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.formats import Backend
from modelrollout.contract.results import TaskResult
from modelrollout.problem import Problem
from modelrollout.rollout.decide import decide
from modelrollout.rollout.desired.jobs import stage_job
from modelrollout.rollout.desired.traffic import split
from modelrollout.rollout.policy.rules import NO_RULES, combine, read
from modelrollout.rollout.snapshot import JobState
from modelrollout.rollout.views import InFlight
from modelrollout.testing import builders as b

GOLDEN = b.spec(2, golden=True, steps=b.STEPS)
ANSWERED = JobState("Succeeded", 0, TaskResult(samples=1000, accuracy=0.97))


def test_without_golden_data_the_canary_begins_at_once() -> None:
    to = b.moved(decide(b.second("Evaluate", wanted=b.spec(2, steps=b.STEPS)), b.START))
    assert (
        to.stage == "Canary"
        and to.step
        and (to.step.index, to.step.weight, to.step.phase) == (0, 5, "Shifting")
    )


def backend(name: str = "Python") -> dict[str, object]:
    code = {"code": "Allowed"} if name in ("Python", "VLLM") else {}
    resources = {"limits": {"nvidia.com/gpu": 1}}
    return {"serving": {"replicas": 2, "resources": resources, "triton": {"backend": name} | code}}


def with_backend(name: str = "Python", *, first: bool = False, **facts: Any) -> InFlight:
    """The rollout's revision is served by a backend, and there is no golden data."""
    wanted = b.spec(2, steps=b.STEPS, **backend(name))
    s = b.second("Evaluate", wanted=wanted, **facts)
    revisions = tuple(replace(r, input=wanted.user_input()) if r.number == 2 else r for r in s.revisions)
    s = replace(s, revisions=revisions)
    return InFlight.narrowed(
        replace(s, status=s.status.model_copy(update={"stable": None}), revisions=revisions[1:])
        if first
        else s
    )


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("name", sorted(set(get_args(Backend)) - {"VLLM"}))
def test_a_model_that_prepare_could_not_run_has_answered_before_any_weight(name: str, first: bool) -> None:
    s = with_backend(name, first=first)
    job = stage_job(s)
    assert job is not None and job[0] == "evaluate"
    for work in (JobState(), JobState("Running")):
        assert b.moved(decide(replace(s, work=work), b.START)).stage == "Evaluate"
    plan = decide(replace(s, work=JobState("Succeeded", 0, TaskResult())), b.START)
    assert b.moved(plan).stage == ("Promote" if first else "Canary")
    assert [(e.reason, e.type) for e in plan.events] == [("Answered", "Normal")]
    assert (evidence := b.moved(plan).evaluation) is not None
    assert (evidence.verdict, evidence.reason, evidence.samples) == ("Successful", "Answered", 0)


def test_a_model_that_fails_every_request_never_gets_traffic() -> None:
    failed = TaskResult(reason="InferenceFailed", message="it answers none of 3 requests")
    plan = decide(with_backend(work=JobState("Failed", int(ExitCode.BAD_INPUT), failed)), b.START)
    to = b.moved(plan)
    assert (to.stage, to.outcome, to.reason) == ("Failed", "Failed", "InferenceFailed")
    assert plan.status.stable == b.ref(1)


def test_what_takes_no_made_up_inputs_goes_on_and_that_is_said() -> None:
    work = JobState("Succeeded", 0, TaskResult(message="candidate: it was not asked"))
    plan = decide(with_backend(work=work), b.START)
    assert b.moved(plan).stage == "Canary"
    (event,) = plan.events
    assert work.result is not None
    assert (event.reason, event.type, event.message) == ("AnswersUnknown", "Warning", work.result.message)
    assert (evidence := b.moved(plan).evaluation) is not None, "an event does not last"
    assert (evidence.verdict, evidence.message) == ("Inconclusive", work.result.message)


def test_a_lost_answer_is_asked_for_again() -> None:
    to = b.moved(decide(with_backend(work=JobState("Succeeded")), b.START))
    assert (to.stage, to.attempt) == ("Evaluate", 1)


def test_only_what_prepare_could_not_run_is_asked() -> None:
    """A fleet of ONNX models runs no Job for it; vLLM streams; golden data asks better."""
    assert stage_job(b.second("Evaluate", wanted=b.spec(2, steps=b.STEPS))) is None
    assert stage_job(with_backend("VLLM")) is None
    assert b.moved(decide(with_backend("VLLM"), b.START)).stage == "Canary"
    s = with_backend()
    made_up, golden = stage_job(s), stage_job(replace(s, spec=b.spec(2, golden=True, **backend())))
    assert made_up is not None and golden is not None and made_up != golden


def test_the_revision_is_asked_as_it_is_served_not_as_spec_says_now() -> None:
    """A person may go back to a version of another backend."""
    s = with_backend()
    assert stage_job(replace(s, spec=b.spec(3))) == stage_job(s) is not None


def test_the_candidate_has_no_traffic_meanwhile() -> None:
    s = b.second("Evaluate", wanted=GOLDEN)
    assert split(s) == ((b.revision_name(1), 100),)
    plan = decide(s, b.START)
    assert stage_job(replace(s, status=plan.status)) is not None


def test_a_successful_evaluation_leads_to_the_canary_and_is_kept() -> None:
    to = b.moved(
        decide(
            b.second("Evaluate", wanted=GOLDEN, work=ANSWERED, evaluation=b.evaluation("Successful")), b.START
        )
    )
    assert to.stage == "Canary" and to.evaluation == b.evaluation("Successful")


@pytest.mark.parametrize("verdict", ["Failed", "Inconclusive", "Error"])
def test_anything_else_rejects_and_never_gets_traffic(verdict: VerdictName) -> None:
    plan = decide(
        b.second("Evaluate", wanted=GOLDEN, work=ANSWERED, evaluation=b.evaluation(verdict)), b.START
    )
    to = b.moved(plan)
    assert (to.stage, to.outcome, to.reason) == ("Failed", "Rejected", "AccuracyLow"), (
        "nothing is promoted without evidence"
    )
    assert to.evaluation and to.evaluation.accuracy == 0.97
    assert plan.status.stable == b.ref(1)


def test_a_job_that_failed_is_no_verdict_on_the_model() -> None:
    work = JobState(
        "Failed",
        int(ExitCode.BAD_INPUT),
        TaskResult(reason="LabelsMissing", message="no array 'labels' in golden.npz"),
    )
    to = b.moved(decide(b.second("Evaluate", wanted=GOLDEN, work=work), b.START))
    assert (to.outcome, to.reason) == ("Failed", "LabelsMissing")


def test_a_lost_result_runs_again() -> None:
    to = b.moved(decide(b.second("Evaluate", wanted=GOLDEN, work=JobState("Succeeded")), b.START))
    assert (to.stage, to.attempt) == ("Evaluate", 1)


def test_a_job_that_cannot_start_ends_at_the_deadline() -> None:
    spec = b.spec(
        2,
        golden=True,
        rollout={"progressDeadline": "10m", "analysis": {"golden": {"uri": "s3://models/golden.npz"}}},
    )
    s = b.second(
        "Evaluate", wanted=spec, work=JobState("Running", problem=Problem("Unschedulable", "no CPU left"))
    )
    assert b.moved(decide(s, b.START)).stage == "Evaluate"
    assert b.moved(decide(s, b.at(700))).reason == "Unschedulable"


def test_the_first_version_has_nothing_to_be_compared_with() -> None:
    state = b.status(None, rollout=b.rollout("Evaluate", 1))
    s = b.snapshot(b.spec(1), state, revisions=(b.revision(1),), servers={b.revision_name(1): b.ready()})
    assert b.moved(decide(s, b.START)).stage == "Promote"


def test_stable_made_anew_is_not_compared_with_itself() -> None:
    """Stable's revision was deleted; the same version comes back under another number."""
    state = b.status(1, rollout=b.rollout("Evaluate", 1, number=5), last_number=5)
    s = b.snapshot(
        b.spec(1), state, revisions=(b.revision(1, number=5),), servers={b.revision_name(1): b.ready()}
    )
    assert b.moved(decide(s, b.START)).stage == "Promote"


def test_a_first_weight_of_100_is_promotion_without_a_canary() -> None:
    assert (
        b.moved(decide(b.second("Evaluate", wanted=b.spec(2, steps=[{"weight": 100}])), b.START)).stage
        == "Promote"
    )


def test_a_canary_may_begin_with_a_pause_at_no_traffic() -> None:
    s = b.second("Evaluate", wanted=b.spec(2, steps=[{"pause": {}}, {"weight": 5}]))
    to = b.moved(decide(s, b.START))
    assert to.step and (to.step.weight, to.step.phase, to.reason) == (0, "Paused", "PauseStep")


def test_golden_data_that_is_edited_under_way_is_other_work() -> None:
    def job(golden: dict[str, object]) -> tuple[str, str] | None:
        s = b.second("Evaluate", wanted=b.spec(2, rollout={"analysis": {"golden": golden}}))
        return stage_job(s)

    old = job({"uri": "s3://models/golden.npz"})
    assert job({"uri": "s3://models/golden-2.npz"}) != old
    assert job({"uri": "s3://models/golden.npz", "maxDrop": 0.2}) == old, (
        "budgets are read when the verdict is made"
    )


def test_golden_data_that_is_taken_out_under_way_is_missed_by_a_first_version() -> None:
    """It was accepted with golden data; they are all that it could show."""
    rules = combine([read({"metadata": {"name": "p"}, "spec": {"gates": {"golden": True}}})])
    state = b.status(None, rollout=b.rollout("Evaluate", 1))
    s = b.snapshot(
        b.spec(1), state, rules=rules, revisions=(b.revision(1),), servers={b.revision_name(1): b.ready()}
    )
    rollout = b.moved(decide(s, b.START))
    assert (
        rollout.stage == "Evaluate"
        and rollout.reason == "GateRequired"
        and "spec.rollout.analysis.golden" in (rollout.message or "")
    )
    assert b.moved(decide(replace(s, rules=NO_RULES), b.START)).stage == "Promote"
