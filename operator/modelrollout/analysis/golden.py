"""Golden data: one paired experiment on the served model, judged once.

Sending a finite set again adds no information, so nothing here is sequential. The decision on the
counts is the gate's (``statistics.paired``).

Slices: a gain of the whole must not hide a loss on a part. A slice that has lost more than
``maxDrop``, proven by intervals that hold for all slices together, fails the evaluation. A slice
that is too small to prove anything blocks nothing; the whole has to pass in any case.
"""

from __future__ import annotations

from collections.abc import Callable

from modelrollout.api.v1alpha1 import EvaluationEvidence, Golden, SliceEvidence, VerdictName
from modelrollout.contract.results import TaskResult
from modelrollout.reasons import Reason
from modelrollout.statistics.paired import decide, drop_interval, z_of


def judge_golden(golden: Golden, result: TaskResult, stable: str | None) -> EvaluationEvidence:
    """The verdict on a successful evaluate Job. ``stable``: the revision to compare with."""
    slices = _slices(result) if stable else []

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
            slices=slices or None,
        )

    if result.protocols_agree is False:
        text = (
            "HTTP and gRPC gave different answers to the same golden inputs: look at the server's log and at"
            " the model's outputs"
        )
        return evidence("Failed", Reason.PROTOCOLS_DISAGREE, text)
    if not result.samples or result.accuracy is None:
        return evidence(
            "Error",
            Reason.NO_RESULT,
            f"the evaluation ended without an accuracy: {result.message or 'no message'}",
        )
    if stable is None:
        return _alone(golden, result.samples, result.accuracy, evidence)
    if result.paired is None:
        return evidence(
            "Error",
            Reason.NOT_PAIRED,
            f"the evaluation did not ask {stable} on the same inputs: it was probably not reachable; retry",
        )
    try:
        decision = decide(result.paired, max_drop=golden.max_drop, minimum=golden.min)
    except ValueError as e:
        return evidence("Error", Reason.NO_RESULT, f"the evaluation's counts cannot be used: {e}")
    worse = [s for s in slices if s.interval[0] > golden.max_drop]
    if worse and decision.verdict != "Failed":
        named = "; ".join(
            f"{s.name} lost {s.drop:.4f} (at least {s.interval[0]:.4f}) on {s.samples} samples"
            for s in worse[:4]
        )
        text = (
            f"golden data, against {stable}: proven to lose over {golden.max_drop:g} on {len(worse)} of"
            f" {result.slices_compared} slices: {named}"
        )
        return evidence("Failed", Reason.SLICE_ACCURACY_LOW, f"{text}; on all of it {decision.message}")
    reason = {"AccuracyDrop": Reason.ACCURACY_LOW, "WithinBudget": Reason.PROVEN_NOT_WORSE}.get(
        decision.reason, decision.reason
    )
    return evidence(decision.verdict, reason, f"golden data, against {stable}: {decision.message}")


def _slices(result: TaskResult) -> list[SliceEvidence]:
    """The slices that lost most first, with intervals that hold for all slices together."""
    z = z_of(result.slices_compared)
    slices = []
    for name, n, gained, lost in result.slices:
        interval = drop_interval(n, lost, gained, z)
        slices.append(
            SliceEvidence(
                name=name,
                samples=n,
                drop=round((lost - gained) / max(1, n), 6),
                interval=[round(v, 6) for v in interval],
            )
        )
    return sorted(slices, key=lambda s: -s.interval[0])


def _alone(
    golden: Golden,
    samples: int,
    accuracy: float,
    evidence: Callable[[VerdictName, str, str], EvaluationEvidence],
) -> EvaluationEvidence:
    """Without a revision to compare with only ``min`` decides: a plain threshold on this data."""
    numbers = f"golden data: accuracy {accuracy:.4f} on {samples} samples"
    if golden.min is not None and accuracy < golden.min:
        return evidence("Failed", Reason.ACCURACY_LOW, f"{numbers}, below min {golden.min:g}")
    return evidence(
        "Successful",
        Reason.WITHIN_LIMITS,
        (
            f"{numbers}; it proves nothing: there is no stable to compare with, and no min"
            if golden.min is None
            else f"{numbers}, min {golden.min:g}"
        ),
    )
