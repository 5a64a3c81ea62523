"""One metric of one step: from counts to a verdict (DESIGN.md, Evidence and verdict).

Fail: proven worse than stable by more than the tolerance, a tenth of the margin; or proven beyond an absolute limit. Fail wins.
Pass: nothing proven, the minimum of samples seen, and what would do too much harm at the next weight ruled out: margin * 100 / next weight.
Anything else is no verdict, and says what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from modelrollout.analysis.compare import Interval, difference_interval, share_interval
from modelrollout.analysis.problem import Problem
from modelrollout.api.v1alpha1 import Counter, Metric, MetricStatus, VerdictName

TOLERANCE = 0.1  # of the margin
_FAILURE = {"accuracy": "AccuracyLow", "errors": "ErrorsHigh", "latency": "LatencyHigh"}
_BAD = {"accuracy": "wrong answers", "errors": "failed requests", "latency": "slow requests"}
_INCONCLUSIVE_PROBLEMS = ("NoData", "NoStableData")  # everything else that keeps a number away is an Error
_LARGEST_PLAN = 10_000_000  # samples; more than this is "never" for a rollout


@dataclass(frozen=True, slots=True)
class _Criterion:
    """Something that may be proven or ruled out, in the terms of harm: bad share, or its difference to stable's."""

    interval: Callable[[float], Interval]  # if there were so many times the evidence, in the same proportions
    fail_above: float
    pass_at: float
    versus_stable: bool


def judge(
    metric: Metric,
    canary: Counter | None,
    stable: Counter | None,
    problem: Problem | None,
    value: float | None,
    weight: int,
    next_weight: int,
    alpha: float,
    carried: Sequence[float] = (),
) -> MetricStatus:
    """The verdict on one metric. ``weight`` and ``next_weight`` in percent (100 after the last step), ``alpha`` the metric's false-alarm budget."""
    if problem is not None:
        verdict: VerdictName = "Inconclusive" if problem.kind in _INCONCLUSIVE_PROBLEMS else "Error"
        return MetricStatus(name=metric.name, verdict=verdict, reason=problem.kind, message=problem.message, canary=canary, stable=stable)
    if metric.query is not None:
        return _judge_value(metric, value)
    return _judge_counts(metric, canary or Counter(), stable, weight, next_weight, alpha)


def _judge_value(metric: Metric, value: float | None) -> MetricStatus:
    def status(verdict: VerdictName, reason: str, message: str) -> MetricStatus:
        return MetricStatus(name=metric.name, verdict=verdict, reason=reason, message=f"{metric.name}: {message}", value=value)

    if value is None:
        return status("Inconclusive", "NoData", "not measured yet")
    if value != value:  # NaN passes and fails every comparison silently
        return status("Error", "NotANumber", "the query gives NaN")
    if metric.max is not None and value > metric.max:
        return status("Failed", "ValueTooHigh", f"{value:g} is above max {metric.max:g}")
    if metric.min is not None and value < metric.min:
        return status("Failed", "ValueTooLow", f"{value:g} is below min {metric.min:g}")
    return status("Successful", "WithinLimits", f"{value:g} is within its limits")


def _judge_counts(metric: Metric, canary: Counter, stable: Counter | None, weight: int, next_weight: int, alpha: float) -> MetricStatus:
    margin, limit = _margin(metric), _limit(metric)
    compared = stable if margin is not None and stable is not None and stable.total > 0 else None
    criteria = _criteria(canary, compared, margin, limit, next_weight, alpha)
    intervals = [c.interval(1.0) for c in criteria]
    seen = _seen(metric, canary, stable, intervals, criteria, weight)

    def status(verdict: VerdictName, reason: str, message: str, needed: int | None = None) -> MetricStatus:
        return MetricStatus(
            name=metric.name,
            verdict=verdict,
            reason=reason,
            message=f"{metric.name}: {message}",
            canary=canary,
            stable=stable,
            value=None if canary.total == 0 else _shown(metric, canary.bad / canary.total),
            interval=[round(v, 6) for v in intervals[0]] if intervals and canary.total else None,
            needed=needed,
        )

    if canary.total == 0:
        what = "label for an answer of the canary has come" if metric.name == "accuracy" else "request to the canary has been counted"
        return status("Inconclusive", "NoData", f"no {what} since the step began", metric.min_samples)
    proven = next((c for c, i in zip(criteria, intervals, strict=True) if i.lower > c.fail_above), None)
    if proven is not None:
        than = (
            f"than stable by more than {_points(proven.fail_above)}" if proven.versus_stable else f"than the limit of {_percent(proven.fail_above)}"
        )
        return status("Failed", _FAILURE[metric.name], f"proven worse {than}: {seen}")
    if canary.total < metric.min_samples:
        missing = ceil(metric.min_samples - canary.total)
        return status("Inconclusive", "TooFewSamples", f"{missing} more samples until minSamples {metric.min_samples}: {seen}", missing)
    if not criteria:
        return status("Inconclusive", "NoStableData", f"nothing of stable has been counted to compare with, and no absolute limit is set: {seen}")
    open_ones = [c for c, i in zip(criteria, intervals, strict=True) if i.upper > c.pass_at]
    if not open_ones:
        reason = "ProvenNotWorse" if compared is not None else "ProvenWithinLimit"
        return status("Successful", reason, f"no more harm than allowed at weight {next_weight}: {seen}")
    needed = [_needed(c, canary.total) for c in open_ones]
    more = None if None in needed else max(n for n in needed if n is not None)
    wanted = "; ".join(f"{_percent(c.pass_at)} must be ruled out" for c in open_ones)
    how = f"about {more} more samples at the present rates" if more is not None else "at the present rates no number of samples will do"
    return status("Inconclusive", "NotYetProven", f"{how}: {seen}; {wanted} for weight {next_weight}", more)


def _criteria(canary: Counter, stable: Counter | None, margin: float | None, limit: float | None, next_weight: int, alpha: float) -> list[_Criterion]:
    share = alpha / max(1, (stable is not None) + (limit is not None))
    scale = 100 / max(1, next_weight)
    found = []
    if stable is not None and margin is not None:
        found.append(
            _Criterion(
                lambda k: difference_interval(k * canary.bad, k * canary.total, k * stable.bad, k * stable.total, share),
                TOLERANCE * margin,
                min(1.0, margin * scale),
                True,
            )
        )
    if limit is not None:
        found.append(_Criterion(lambda k: share_interval(k * canary.bad, k * canary.total, share), limit, min(1.0, limit * scale), False))
    return found


def _needed(criterion: _Criterion, total: float) -> int | None:
    """Samples that the canary still needs if the shares stay as they are, to about 5 %; None: no number of them proves it."""
    low, high, most = 1.0, 2.0, max(_LARGEST_PLAN / total, 2.0)
    while criterion.interval(high).upper > criterion.pass_at:
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 0.05 * high:
        middle = (low + high) / 2
        if criterion.interval(middle).upper > criterion.pass_at:
            low = middle
        else:
            high = middle
    return max(1, ceil((high - 1) * total))


def _margin(metric: Metric) -> float | None:
    return metric.max_drop if metric.name == "accuracy" else metric.max_increase


def _limit(metric: Metric) -> float | None:
    """The largest bad share allowed whatever stable does."""
    if metric.name == "accuracy":
        return None if metric.min is None else 1 - metric.min
    if metric.name == "latency":
        return None if metric.share is None else round(1 - metric.share, 12)
    return metric.max


def _shown(metric: Metric, bad_share: float) -> float:
    return round(1 - bad_share if metric.name == "accuracy" else bad_share, 6)


def _seen(metric: Metric, canary: Counter, stable: Counter | None, intervals: list[Interval], criteria: list[_Criterion], weight: int) -> str:
    text = f"{_count(canary)} {_BAD[metric.name]} on the canary at weight {weight}"
    if stable is not None and stable.total:
        text += f", {_count(stable)} on stable"
    for criterion, interval in zip(criteria, intervals, strict=True):
        what = "difference" if criterion.versus_stable else "share"
        text += f", {what} between {_percent(interval.lower)} and {_percent(interval.upper)}"
    return text


def _count(counter: Counter) -> str:
    share = f" ({_percent(counter.bad / counter.total)})" if counter.total else ""
    return f"{counter.bad:.0f} of {counter.total:.0f}{share}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _points(share: float) -> str:
    return f"{100 * share:.2g} points"
