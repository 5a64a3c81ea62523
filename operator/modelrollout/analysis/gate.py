"""Has a model lost more accuracy than allowed, on the same inputs as the model that it is compared with?

The two models answer the same ``n`` inputs, so only the inputs on which exactly one is right carry information on the difference. With
``b`` = only the baseline right, ``c`` = only the candidate right, the drop is (b - c) / n.

**Interval.** Adjusted Wald for paired proportions: D. G. Bonett and R. M. Price, "Adjusted Wald Confidence Interval for a Difference of
Binomial Proportions Based on Paired Data", Journal of Educational and Behavioral Statistics 37(4), 2012: one sample is added to each of b and c,

    p = (b + 1) / (n + 2),  q = (c + 1) / (n + 2),  (p - q) +- z * sqrt((p + q - (p - q)^2) / (n + 2)),  z = 1.95996 for 95 %.

It needs no iteration, keeps its coverage with few or no disagreements (b = c = 0 does not give a width of 0), and comes close to Newcombe's
score interval (Statistics in Medicine 17, 1998, method 10).

**Decision** on ``max_drop`` and ``min``, in this order:

1. *Failed, AccuracyLow*: the candidate's accuracy is below ``min``. This is a plain threshold on the point estimate.
2. *Failed, AccuracyDrop*: the drop exceeds ``max_drop`` and the interval lies above 0: a loss is proven, and the best guess is too large.
3. *Inconclusive, TooFewSamples*: the drop exceeds ``max_drop``, but a loss is not proven; or it does not, but the interval's upper bound does and
   its half width exceeds ``max_drop`` as well: so few samples that a loss beyond the budget would hardly show. Too little data is no pass.
4. *Successful*: everything else. So a drop inside the budget passes although the upper bound lies beyond it, when there are enough samples for
   the half width to be inside the budget: the data could tell, and it told nothing bad.

No ``max_drop`` means that only ``min`` decides. Pure: counts in, decision out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from modelrollout.api.tasks import Paired

Z_95 = 1.959963984540054
_EPSILON = 1e-12  # a drop of 0.01 from 1 of 100 is not beyond a budget of 0.01 because of the last bit


@dataclass(frozen=True)
class GateDecision:
    """``drop`` and ``interval`` (95 %) are absolute; ``samples_needed`` only where there are too few."""

    verdict: Literal["Successful", "Failed", "Inconclusive"]
    reason: Literal["WithinBudget", "AccuracyLow", "AccuracyDrop", "TooFewSamples"]
    message: str
    drop: float
    interval: tuple[float, float]
    samples_needed: int | None = None


def accuracies(paired: Paired) -> tuple[float, float]:
    """(baseline, candidate) as shares of n; 0 where n is 0."""
    n = max(paired.n, 1)
    return (paired.both_right + paired.only_baseline_right) / n, (paired.both_right + paired.only_candidate_right) / n


def drop_interval(n: float, only_baseline: float, only_candidate: float, z: float = Z_95) -> tuple[float, float]:
    """Bonett-Price interval of the drop (baseline minus candidate), clipped to [-1, 1]."""
    p, q = (only_baseline + 1) / (n + 2), (only_candidate + 1) / (n + 2)
    half = z * math.sqrt(max(0.0, p + q - (p - q) ** 2) / (n + 2))
    return max(-1.0, p - q - half), min(1.0, p - q + half)


def z_of(comparisons: int) -> float:
    """The quantile for 95 % intervals that hold all together (Bonferroni): many slices must not fail by chance."""
    return NormalDist().inv_cdf(1 - 0.025 / max(1, comparisons))


def _half_width(n: float, only_baseline: float, only_candidate: float) -> float:
    low, high = drop_interval(n, only_baseline, only_candidate)
    return (high - low) / 2


def samples_needed(paired: Paired, half_width: float, limit: int = 100_000_000) -> int:
    """Samples for an interval of at most this half width, if the models go on to disagree as often as so far; at most ``limit``."""
    rate_b, rate_c = (paired.only_baseline_right / paired.n, paired.only_candidate_right / paired.n) if paired.n else (0.0, 0.0)
    low, high = max(paired.n, 1), max(paired.n, 1)
    while high < limit and _half_width(high, rate_b * high, rate_c * high) > half_width:
        low, high = high, min(2 * high, limit)
    while low < high:
        middle = (low + high) // 2
        if _half_width(middle, rate_b * middle, rate_c * middle) > half_width:
            low = middle + 1
        else:
            high = middle
    return high


def decide(paired: Paired, *, max_drop: float | None, minimum: float | None) -> GateDecision:
    """The decision of the module's docstring. Raises ValueError for counts that do not add up."""
    cells = (paired.both_right, paired.only_candidate_right, paired.only_baseline_right, paired.both_wrong)
    if min(cells) < 0 or sum(cells) != paired.n:
        raise ValueError(f"counts {cells} do not add up to {paired.n}")
    before, after = accuracies(paired)
    b, c, n = paired.only_baseline_right, paired.only_candidate_right, paired.n
    drop, interval = before - after, drop_interval(n, b, c)
    numbers = f"accuracy {after:.4f} against {before:.4f} on {n} samples (drop {drop:.4f}, 95 % interval {interval[0]:.4f} to {interval[1]:.4f})"
    if n and minimum is not None and after < minimum - _EPSILON:
        return GateDecision("Failed", "AccuracyLow", f"{numbers}: below the minimum of {minimum:g}", drop, interval)
    if max_drop is not None:
        over = drop > max_drop + _EPSILON
        if over and interval[0] > 0:
            return GateDecision("Failed", "AccuracyDrop", f"{numbers}: the loss exceeds the budget of {max_drop:g}", drop, interval)
        if over or (interval[1] > max_drop and (interval[1] - interval[0]) / 2 > max_drop):
            need = samples_needed(paired, max_drop)
            text = f"{numbers}: too few samples to tell a loss of {max_drop:g}; about {need} would do: give more held-out data or a larger budget"
            return GateDecision("Inconclusive", "TooFewSamples", text, drop, interval, need)
    if n == 0:
        return GateDecision("Inconclusive", "TooFewSamples", "there are no samples", drop, interval, 1)
    return GateDecision("Successful", "WithinBudget", numbers, drop, interval)
