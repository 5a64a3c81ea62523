"""Decides whether a model has lost more than allowed against another one on the same inputs.

Both models answer the same ``n`` samples. For every metric each sample i has a number d_i: how much
worse the candidate makes the metric by it, so that the mean of d is the loss (positive is worse, in
the metric's units). For accuracy d_i is 1 where only the baseline is right, -1 where only the
candidate is, else 0. For metrics that are no plain means d_i is the loss plus the difference of the
two influence functions (the infinitesimal jackknife: L. A. Jaeckel 1972, B. Efron 1981; for AUC
that is the paired test of E. R. DeLong, D. M. DeLong and D. L. Clarke-Pearson, Biometrics 44, 1988;
for F1 the delta method, as in K. Takahashi et al., Applied Intelligence 52, 2022);
``modelrollout.optimizer.gate.metrics`` computes them.

**Interval.** Adjusted Wald: one sample each way is added, as in D. G. Bonett and R. M. Price,
"Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on Paired Data",
Journal of Educational and Behavioral Statistics 37(4), 2012. For accuracy with ``b`` = only the
baseline right and ``c`` = only the candidate right it is theirs:

    p = (b + 1) / (n + 2),  q = (c + 1) / (n + 2),  (p - q) +- z * sqrt((p + q - (p - q)^2) / (n +
    2)),  z = 1.95996 for 95 %.

It needs no iteration and no random numbers, and keeps its coverage with few or no disagreements:
two models that agree on ten samples are not proven equal, where a bootstrap or a plain Wald
interval would have width 0. For other metrics the added samples are as large as a sample that turns
from right to wrong would be, one pair for each class that the metric averages over
(``Estimate.added``).

**Decision**, in this order:

1. *Failed, AccuracyLow or MetricLow*: the candidate's value is beyond ``min`` or ``max``.
2. *Failed, AccuracyDrop or MetricDrop*: the loss exceeds the budget and the interval lies above 0:
   a loss is proven, and the best guess is too large.
3. *Inconclusive, TooFewSamples*: the loss exceeds the budget, but is not proven; or it does not,
   but the interval's upper bound does and its half width exceeds the budget as well: so few samples
   that a loss beyond the budget would hardly show; or the interval of the candidate's own value
   reaches beyond ``min`` or ``max``. Too little data is no pass.
4. *Successful*: everything else. So a loss inside the budget passes although the upper bound lies
   beyond it, when there are enough samples for the half width to be inside the budget: the data
   could tell, and it told nothing bad.

A relative budget is the share of the baseline's value, taken as known: its own error is a few
hundredths of the budget. Where both are given, the smaller one counts. Pure: numbers in, decision
out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from modelrollout.contract.gate import GateBudget
from modelrollout.contract.results import Paired
from modelrollout.reasons import Reason

Z_95 = 1.959963984540054
# a drop of 0.01 from 1 of 100 is not beyond a budget of 0.01 because of the last bit
_EPSILON = 1e-12

Verdict = Literal["Successful", "Failed", "Inconclusive"]


@dataclass(frozen=True)
class Estimate:
    """One metric of both models on the same ``n`` samples.

    ``before`` and ``after`` are the metric's values, ``total`` and ``squares`` the sums of d and of
    its square (module docstring), ``added`` the sum of squares of the ``pairs`` pairs of added
    samples, ``spread`` that of the candidate's own influences, ``smaller_is_better`` for errors.
    """

    name: str
    n: int
    before: float
    after: float
    total: float
    squares: float
    added: float
    pairs: int
    spread: float
    smaller_is_better: bool = False

    @property
    def loss(self) -> float:
        """How much worse the candidate is; negative is better."""
        return self.after - self.before if self.smaller_is_better else self.before - self.after

    def interval(self, z: float = Z_95, scale: float = 1.0) -> tuple[float, float]:
        """Of the loss; ``scale``: as if there were so many times as many samples that behave
        alike.
        """
        n = scale * self.n + 2 * self.pairs
        center = scale * self.total / n
        half = z * math.sqrt(max(0.0, (scale * self.squares + self.added) / n - center**2) / n)
        return center - half, center + half

    def value_interval(self, z: float = Z_95) -> tuple[float, float]:
        """Of the candidate's own value: Wald with the added samples, whose ends are those of
        Wilson's interval where a share is 0 or 1.
        """
        half = z * math.sqrt(self.spread + z**2 * self.added / 2) / max(1, self.n)
        return self.after - half, self.after + half


@dataclass(frozen=True)
class GateDecision:
    """``drop`` (the loss) and ``interval`` are absolute; ``samples_needed`` only where there are
    too few.
    """

    verdict: Verdict
    reason: Reason
    message: str
    drop: float
    interval: tuple[float, float]
    samples_needed: int | None = None


def accuracies(paired: Paired) -> tuple[float, float]:
    """(baseline, candidate) as shares of n; 0 where n is 0."""
    n = max(paired.n, 1)
    return (paired.both_right + paired.only_baseline_right) / n, (
        paired.both_right + paired.only_candidate_right
    ) / n


def share_estimate(name: str, paired: Paired) -> Estimate:
    """A metric that is the share of samples that a model is right on. Raises ValueError for counts
    that do not add up.
    """
    cells = (paired.both_right, paired.only_candidate_right, paired.only_baseline_right, paired.both_wrong)
    if min(cells) < 0 or sum(cells) != paired.n:
        raise ValueError(f"counts {cells} do not add up to {paired.n}")
    before, after = accuracies(paired)
    b, c = paired.only_baseline_right, paired.only_candidate_right
    return Estimate(name, paired.n, before, after, b - c, b + c, 2, 1, paired.n * after * (1 - after))


def drop_interval(n: int, only_baseline: int, only_candidate: int, z: float = Z_95) -> tuple[float, float]:
    """Bonett-Price interval of the drop of a share (baseline minus candidate), clipped to [-1,
    1].
    """
    low, high = Estimate(
        "", n, 0, 0, only_baseline - only_candidate, only_baseline + only_candidate, 2, 1, 0
    ).interval(z)
    return max(-1.0, low), min(1.0, high)


def samples_needed(estimate: Estimate, half_width: float, z: float = Z_95, limit: int = 100_000_000) -> int:
    """Samples for an interval of the loss of at most this half width, if the models go on to differ
    as much as so far; at most ``limit``.
    """

    def half(n: int) -> float:
        low, high = estimate.interval(z, n / max(1, estimate.n))
        return (high - low) / 2

    low, high = max(estimate.n, 1), max(estimate.n, 1)
    while high < limit and half(high) > half_width:
        low, high = high, min(2 * high, limit)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if half(middle) > half_width else (low, middle)
    return high


def z_of(comparisons: int) -> float:
    """The quantile for 95 % intervals that hold all together (Bonferroni): many slices must not
    fail by chance.
    """
    return NormalDist().inv_cdf(1 - 0.025 / max(1, comparisons))


def allowed_loss(budget: GateBudget, before: float) -> float | None:
    """The largest loss in the metric's units; None where the budget names none."""
    absolute = budget.max_drop if budget.max_drop is not None else budget.max_increase
    share = budget.max_drop_relative if budget.max_drop_relative is not None else budget.max_increase_relative
    return min(
        (limit for limit in (absolute, None if share is None else share * abs(before)) if limit is not None),
        default=None,
    )


def judge(estimate: Estimate, budget: GateBudget, z: float = Z_95) -> GateDecision:
    """The decision of the module's docstring."""
    e, max_loss = estimate, allowed_loss(budget, estimate.before)
    loss, interval = e.loss, e.interval(z)
    if e.n == 0:
        return GateDecision(
            "Inconclusive", Reason.TOO_FEW_SAMPLES, f"{e.name}: there are no samples", loss, interval, 1
        )
    word = "rise" if e.smaller_is_better else "drop"
    numbers = (
        f"{e.name} {e.after:.4f} against {e.before:.4f} on {e.n} samples ({word} {loss:.4f}, 95 % interval"
        f" {interval[0]:.4f} to {interval[1]:.4f})"
    )
    low, high = e.value_interval(z)
    beyond = _beyond(budget, e.after, e.after)
    if beyond:
        return GateDecision(
            "Failed",
            Reason.ACCURACY_LOW if e.name == "accuracy" else Reason.METRIC_LOW,
            f"{numbers}: {beyond}",
            loss,
            interval,
        )
    if max_loss is not None:
        over = loss > max_loss + _EPSILON
        if over and interval[0] > 0:
            reason: Reason = Reason.ACCURACY_DROP if e.name == "accuracy" else Reason.METRIC_DROP
            return GateDecision(
                "Failed", reason, f"{numbers}: the loss exceeds the budget of {max_loss:.4g}", loss, interval
            )
        if over or (interval[1] > max_loss and (interval[1] - interval[0]) / 2 > max_loss):
            if max_loss <= 0:
                text = (
                    f"{numbers}: no number of samples proves that nothing at all was lost; give a larger"
                    " budget"
                )
                return GateDecision("Inconclusive", Reason.TOO_FEW_SAMPLES, text, loss, interval)
            need = samples_needed(e, max_loss, z)
            text = (
                f"{numbers}: too few samples to tell a loss of {max_loss:.4g}; about {need} would do: give"
                " more held-out data or a larger budget"
            )
            return GateDecision("Inconclusive", Reason.TOO_FEW_SAMPLES, text, loss, interval, need)
    unsure = _beyond(budget, low, high)
    if unsure:
        text = (
            f"{numbers}: the value may be {unsure} (its interval is {low:.4f} to {high:.4f}); give more"
            " held-out data or another limit"
        )
        return GateDecision("Inconclusive", Reason.TOO_FEW_SAMPLES, text, loss, interval)
    return GateDecision("Successful", Reason.WITHIN_BUDGET, numbers, loss, interval)


def _beyond(budget: GateBudget, low: float, high: float) -> str:
    """Which limit a value from ``low`` to ``high`` may be beyond, in words; empty: none."""
    if budget.min is not None and low < budget.min - _EPSILON:
        return f"below the minimum of {budget.min:g}"
    if budget.max is not None and high > budget.max + _EPSILON:
        return f"above the maximum of {budget.max:g}"
    return ""


def decide(paired: Paired, *, max_drop: float | None, minimum: float | None) -> GateDecision:
    """Golden data: accuracy, with ``minimum`` as a plain threshold on this very data. Raises
    ValueError for counts that do not add up.
    """
    estimate = share_estimate("accuracy", paired)
    if paired.n and minimum is not None:
        low = judge(estimate, GateBudget(min=minimum))
        if low.verdict == "Failed":
            return low
    return judge(estimate, GateBudget(max_drop=max_drop))


def worst(decisions: list[GateDecision]) -> GateDecision:
    """The one that decides: Failed over Inconclusive over Successful, the first among equals."""
    return max(decisions, key=lambda d: ("Successful", "Inconclusive", "Failed").index(d.verdict))
