"""Golden data: one paired experiment on the served model, judged once.

Sending a finite set again adds no information, so nothing here is sequential. The decision on the counts is the gate's (``analysis.gate``).
"""

from __future__ import annotations

from collections.abc import Callable

from modelrollout.analysis.gate import decide
from modelrollout.api.tasks import TaskResult
from modelrollout.api.v1alpha1 import EvaluationEvidence, Golden, VerdictName


def judge_golden(golden: Golden, result: TaskResult, stable: str | None) -> EvaluationEvidence:
    """The verdict on an evaluate Job that has succeeded. ``stable``: name of the revision it was to be compared with."""

    def evidence(verdict: VerdictName, reason: str, message: str) -> EvaluationEvidence:
        return EvaluationEvidence(
            verdict=verdict,
            reason=reason,
            message=message,
            samples=result.samples or 0,
            accuracy=result.accuracy,
            stable_accuracy=result.stable_accuracy,
            stable=stable,
            only_candidate_right=result.paired.only_candidate_right if result.paired else None,
            only_stable_right=result.paired.only_baseline_right if result.paired else None,
            latency_p50_ms=result.latency_p50_ms,
            latency_p99_ms=result.latency_p99_ms,
        )

    if result.protocols_agree is False:
        text = "HTTP and gRPC gave different answers to the same golden inputs: look at the server's log and at the model's outputs"
        return evidence("Failed", "ProtocolsDisagree", text)
    if not result.samples or result.accuracy is None:
        return evidence("Error", "NoResult", f"the evaluation ended without an accuracy: {result.message or 'no message'}")
    if stable is None:
        return _alone(golden, result.samples, result.accuracy, evidence)
    if result.paired is None:
        return evidence("Error", "NotPaired", f"the evaluation did not ask {stable} on the same inputs: it was probably not reachable; retry")
    try:
        decision = decide(result.paired, max_drop=golden.max_drop, minimum=golden.min)
    except ValueError as e:
        return evidence("Error", "NoResult", f"the evaluation's counts cannot be used: {e}")
    reason = {"AccuracyDrop": "AccuracyLow", "WithinBudget": "ProvenNotWorse"}.get(decision.reason, decision.reason)
    return evidence(decision.verdict, reason, f"golden data, against {stable}: {decision.message}")


def _alone(golden: Golden, samples: int, accuracy: float, evidence: Callable[[VerdictName, str, str], EvaluationEvidence]) -> EvaluationEvidence:
    """Nothing to compare with: only ``min`` decides, a plain threshold on this very data."""
    numbers = f"golden data: accuracy {accuracy:.4f} on {samples} samples"
    if golden.min is not None and accuracy < golden.min:
        return evidence("Failed", "AccuracyLow", f"{numbers}, below min {golden.min:g}")
    return evidence("Successful", "WithinLimits", numbers if golden.min is None else f"{numbers}, min {golden.min:g}")
