"""Agreement of the canary with stable on mirrored requests: pairs in, one verdict out.

A pair is the answers of both revisions to one request. The share of the pairs that disagree has a
confidence sequence (``statistics.sequential``), so that frequent readings cause no false alarms.
Fail: proven above the limit, which is 1 - minAgreement. Pass: minSamples compared, and proven
within the limit.
"""

from __future__ import annotations

from math import ceil

from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.api.v1alpha1 import Counter, MetricStatus, Shadow, VerdictName
from modelrollout.reasons import Reason
from modelrollout.statistics.sequential import share_interval

NAME = "agreement"
_NO_EVIDENCE = (Reason.NO_DATA, Reason.NO_STABLE_DATA)  # every other problem is an Error
_LARGEST_PLAN = 10_000_000  # pairs; more than this is "never" for a rollout


def judge_agreement(
    shadow: Shadow, pairs: Counter | None, problem: MeasurementProblem | None, alpha: float
) -> MetricStatus:
    """The verdict on ``pairs`` (bad: disagreements and failures of the canary). ``alpha``: its
    false-alarm budget.
    """
    limit = round(1 - shadow.min_agreement, 12)
    if problem is not None:
        verdict: VerdictName = "Inconclusive" if problem.reason in _NO_EVIDENCE else "Error"
        return MetricStatus(
            name=NAME, verdict=verdict, reason=problem.reason, message=problem.message, canary=pairs
        )
    pairs = pairs or Counter()
    interval = share_interval(pairs.bad, pairs.total, alpha)

    def status(verdict: VerdictName, reason: str, message: str, needed: int | None = None) -> MetricStatus:
        return MetricStatus(
            name=NAME,
            verdict=verdict,
            reason=reason,
            message=f"{NAME}: {message}",
            canary=pairs,
            value=None if pairs.total == 0 else round(1 - pairs.bad / pairs.total, 6),
            interval=[round(v, 6) for v in interval] if pairs.total else None,
            needed=needed,
        )

    if pairs.total == 0:
        text = (
            "no mirrored request has been compared yet: none came, or they are no inference requests over"
            " HTTP, or larger than the comparer takes"
        )
        return status("Inconclusive", Reason.NO_DATA, text, shadow.min_samples)
    counted = (
        f"{pairs.bad:.0f} of {pairs.total:.0f} mirrored requests were answered differently, a share between"
        f" {100 * interval.lower:.2f} % and {100 * interval.upper:.2f} %, of which minAgreement allows"
        f" {100 * limit:.2f} %"
    )
    if interval.lower > limit:
        return status(
            "Failed", Reason.SHADOW_DISAGREES, f"proven to disagree with stable too often: {counted}"
        )
    if pairs.total < shadow.min_samples:
        missing = ceil(shadow.min_samples - pairs.total)
        return status(
            "Inconclusive",
            Reason.TOO_FEW_SAMPLES,
            f"{missing} more samples until minSamples {shadow.min_samples}: {counted}",
            missing,
        )
    if interval.upper <= limit:
        return status("Successful", Reason.SHADOW_AGREES, counted)
    needed = _needed(pairs, limit, alpha)
    how = (
        f"about {needed} more samples at the current rates"
        if needed is not None
        else "cannot pass at the current rates, however many samples arrive"
    )
    return status("Inconclusive", Reason.NOT_YET_PROVEN, f"{how}: {counted}", needed)


def _needed(pairs: Counter, limit: float, alpha: float) -> int | None:
    """Pairs that are still needed if the share stays the same, to about 5 %; None: no number is
    enough.
    """

    def proven(times: float) -> bool:
        return share_interval(times * pairs.bad, times * pairs.total, alpha).upper <= limit

    low, high, most = 1.0, 2.0, max(_LARGEST_PLAN / pairs.total, 2.0)
    while not proven(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 0.05 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if proven(middle) else (middle, high)
    return max(1, ceil((high - 1) * pairs.total))
