"""evaluate: sends golden data through the served model at 0 % traffic, paired with stable; this is
the authoritative gate. Without golden data a model that prepare could not run is asked made-up
inputs, so that none gets traffic that fails every request.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from modelrollout.api.v1alpha1 import EvaluationEvidence
from modelrollout.contract.results import TaskResult
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout.dead_stable import is_down
from modelrollout.rollout.desired.jobs import asks_made_up
from modelrollout.rollout.plan import Event, Transition
from modelrollout.rollout.policy.requirements import golden_violation
from modelrollout.rollout.stages.job import RESULT_LOST, SOON_SECONDS, failed_job, job_in_progress, retry_job
from modelrollout.rollout.stages.next_stage import after_evaluate
from modelrollout.rollout.stages.spec import StageSpec
from modelrollout.rollout.stages.waiting import wait, wait_or_fail
from modelrollout.rollout.transitions import change, fail
from modelrollout.rollout.views import InFlight

_STABLE_TROUBLE = (Reason.STABLE_FAILED, Reason.STABLE_WRONG_VERSION)  # says nothing of the candidate


def evaluate(s: InFlight, now: datetime) -> Transition:
    """The shadow or the trial once the Job's verdict is Successful; Rejected otherwise. Without a
    stable that answers, all that decides is ``min``.
    """
    if (
        (s.status.stable is None or s.rollout.uncompared_since is not None)
        and s.rollout.mode == "Update"
        and (problem := golden_violation(s.rules, s.spec))
    ):
        return wait_or_fail(s, now, problem, "golden data")
    golden = s.spec.rollout.analysis.golden
    if golden is None and not asks_made_up(s):
        return Transition(after_evaluate(s, s.status, now))
    work, evidence = s.work, s.evaluation
    if work.state == "Failed" and work.result and work.result.reason in _STABLE_TROUBLE:
        problem = Problem(work.result.reason, work.result.message)
        # whether stable comes back or is dead is decided within a minute
        return wait(s, problem, SOON_SECONDS) if is_down(s) else retry_job(s, now, problem)
    if work.state == "Failed":
        return failed_job(s, work, now)
    if work.state != "Succeeded":
        return job_in_progress(s, now, "the evaluate Job")
    if golden is None and work.result is not None:
        answers, severity = _answers(work.result)
        event = Event(answers.reason, answers.message, severity)
        return Transition(change(after_evaluate(s, s.status, now), evaluation=answers), (event,))
    if evidence is None:
        return retry_job(s, now, RESULT_LOST)
    if evidence.verdict != "Successful":
        rejected = fail(s.status, now, "Rejected", evidence.reason, evidence.message)
        return Transition(
            change(rejected, evaluation=evidence), (Event(evidence.reason, evidence.message, "Warning"),)
        )
    return Transition(change(after_evaluate(s, s.status, now), evaluation=evidence), (_event(evidence),))


def _answers(result: TaskResult) -> tuple[EvaluationEvidence, Literal["Normal", "Warning"]]:
    """Evidence of made-up inputs: that it answers, or why that is not known."""
    if result.message:
        unknown = EvaluationEvidence(
            verdict="Inconclusive", reason=Reason.ANSWERS_UNKNOWN, message=result.message
        )
        return unknown, "Warning"
    text = "the served model answers made-up inputs"
    return EvaluationEvidence(verdict="Successful", reason=Reason.ANSWERED, message=text), "Normal"


def _event(evidence: EvaluationEvidence) -> Event:
    against = f", stable {evidence.stable_accuracy:.4f}" if evidence.stable_accuracy is not None else ""
    return Event(
        Reason.EVALUATED,
        f"golden accuracy {evidence.accuracy or 0:.4f}{against} on {evidence.samples} samples",
    )


EVALUATE = StageSpec(
    "Evaluate",
    evaluate,
    InFlight,
    phase="Evaluating",
    doing="golden data, or a few made-up inputs, are being sent through the served model",
    then="the canary begins",
    condition="Evaluated",
    watched=True,
)
