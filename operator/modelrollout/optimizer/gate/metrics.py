"""Metrics of two models on the same samples, as the numbers that ``modelrollout.statistics.paired``
judges. No I/O.

Values agree with scikit-learn's functions of the same names (zero_division=0; macro averages over
the classes that have samples). Each metric also gives its influence function: how much each sample
moves it, times n, with mean 0 over the samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelrollout.contract.gate import Average, GateMetric, MetricName
from modelrollout.contract.results import Paired
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.gate.numbers import NUMBERS, Numbers, numeric_estimate
from modelrollout.reasons import Reason
from modelrollout.statistics.paired import Estimate, share_estimate

Floats = NDArray[np.float64]
Classes = NDArray[np.int64]

ERRORS: frozenset[MetricName] = frozenset({"mae", "mse"})
SMALLER = ERRORS | {"relativeError"}  # where less is better


@dataclass(frozen=True)
class Answers:
    """A model's answers to n samples; only those that the metrics need.

    ``classes``: [n], -1 where a score is NaN; ``ranks``: [n], how many other classes score at least
    as high as the label's (a tie is against the model); ``scores``: [n, k], or [n, 1] of class 1;
    ``values``: [n] of a regression; ``numbers``: outputs as they are, for metrics of numbers.
    """

    classes: Classes | None = None
    ranks: NDArray[np.int64] | None = None
    scores: Floats | None = None
    values: Floats | None = None
    numbers: Numbers | None = None

    def rows(self, mask: NDArray[np.bool_]) -> Answers:
        """The answers of some samples."""

        def some(part: NDArray[Any] | None) -> Any:
            return None if part is None else part[mask]

        numbers = self.numbers and {
            name: tuple(a for a, chosen in zip(answers, mask, strict=True) if chosen)
            for name, answers in self.numbers.items()
        }
        return Answers(some(self.classes), some(self.ranks), some(self.scores), some(self.values), numbers)


@dataclass(frozen=True)
class _Measured:
    """A value, its influence function [n], and the squares of the pairs of samples to add
    (statistics.paired).
    """

    value: float
    influence: Floats
    added: float
    pairs: int


def count_pairs(labels: Classes, baseline: Classes, candidate: Classes) -> Paired:
    """Paired counts; all three are [n] classes of the same samples."""
    return _count_right(baseline == labels, candidate == labels)


def _count_right(right_b: NDArray[np.bool_], right_c: NDArray[np.bool_]) -> Paired:
    return Paired(
        n=len(right_b),
        both_right=int((right_b & right_c).sum()),
        only_candidate_right=int((~right_b & right_c).sum()),
        only_baseline_right=int((right_b & ~right_c).sum()),
        both_wrong=int((~right_b & ~right_c).sum()),
    )


def average_of(metric: GateMetric, labels: Classes | None, classes: int | None, field: str) -> Average | None:
    """The average that counts, None for metrics without; raises JobError (AverageImpossible) for
    Binary with more than two classes.
    """
    if metric.name not in _RATES:
        return None
    assert labels is not None
    two = (classes or 2) <= 2 and bool(np.isin(labels, (0, 1)).all())
    if metric.average == "Binary" and not two:
        raise bad_input(
            Reason.AVERAGE_IMPOSSIBLE,
            f"{field}: average: Binary needs labels 0 and 1, but there are {classes or int(labels.max()) + 1}"
            " classes; use Macro or Weighted",
        )
    return metric.average or ("Binary" if two else "Macro")


def estimate(
    metric: GateMetric,
    average: Average | None,
    labels: Classes | Floats | None,
    before: Answers,
    after: Answers,
    field: str,
) -> Estimate:
    """The metric on all samples of ``before`` and ``after``; ``field`` names the data in messages.
    Raises JobError: AucUndefined, OutputNotFinite.
    """
    name = metric.name
    if name in NUMBERS:
        assert before.numbers is not None and after.numbers is not None
        return numeric_estimate(metric, before.numbers, after.numbers)
    if name == "agreement":
        assert before.classes is not None and after.classes is not None
        return share_estimate(
            name, _count_right(np.ones(len(before.classes), np.bool_), before.classes == after.classes)
        )
    assert labels is not None
    if name == "accuracy":
        assert before.classes is not None and after.classes is not None
        return share_estimate(name, count_pairs(labels.astype(np.int64), before.classes, after.classes))
    if name == "topK":
        assert before.ranks is not None and after.ranks is not None
        return share_estimate(
            name, _count_right(before.ranks < (metric.k or 1), after.ranks < (metric.k or 1))
        )
    if name in ERRORS:
        with np.errstate(over="ignore", invalid="ignore"):
            mean_error = _errors(name, labels.astype(np.float64), before, after)
        # no comparison with a budget would be true: it would pass
        if not np.isfinite((mean_error.squares, mean_error.spread, mean_error.added)).all():
            raise bad_input(
                Reason.OUTPUT_NOT_FINITE,
                f"{field}: errors of this size ({name}) are beyond what float64 holds; scale labels and"
                " outputs",
            )
        return mean_error
    classes = labels.astype(np.int64)
    if name == "auc":
        assert before.scores is not None and after.scores is not None
        return _paired(name, _auc(classes, before.scores, field), _auc(classes, after.scores, field))
    assert average is not None and before.classes is not None and after.classes is not None
    rate = _RATES[name]
    return _paired(
        name, *(_averaged(rate, average, classes, answers) for answers in (before.classes, after.classes))
    )


def _paired(name: str, before: _Measured, after: _Measured) -> Estimate:
    harm = before.value - after.value + before.influence - after.influence
    return Estimate(
        name=name,
        n=len(harm),
        before=before.value,
        after=after.value,
        total=float(harm.sum()),
        squares=float((harm**2).sum()),
        added=max(before.added, after.added),
        pairs=before.pairs,
        spread=float((after.influence**2).sum()),
    )


def _errors(name: str, truth: Floats, before: Answers, after: Answers) -> Estimate:
    """Mean errors. The added samples are as large as the largest difference seen, and at least as
    the mean error: the same answers on few samples prove little.
    """
    assert before.values is not None and after.values is not None
    off_b, off_c = (
        np.abs(answers.values - truth) if name == "mae" else (answers.values - truth) ** 2
        for answers in (before, after)
        if answers.values is not None
    )
    harm = off_c - off_b
    mean = float(off_b.mean()) if len(harm) else 0.0
    largest = max(float(np.abs(harm).max(initial=0.0)), mean)
    value = float(off_c.mean()) if len(harm) else 0.0
    return Estimate(
        name=name,
        n=len(harm),
        before=mean,
        after=value,
        total=float(harm.sum()),
        squares=float((harm**2).sum()),
        added=2 * largest**2,
        pairs=1,
        spread=float(((off_c - value) ** 2).sum()),
        smaller_is_better=True,
    )


# (true positives, false positives, false negatives) of one class as [n] flags -> (numerator,
# denominator) by sample; the value is the ratio of sums
_Rate = Callable[[Floats, Floats, Floats], tuple[Floats, Floats]]
_RATES: dict[str, _Rate] = {
    "precision": lambda tp, fp, _: (tp, tp + fp),
    "recall": lambda tp, _, fn: (tp, tp + fn),
    "f1": lambda tp, fp, fn: (2 * tp, 2 * tp + fp + fn),
}


def _averaged(rate: _Rate, average: Average, labels: Classes, classes: Classes) -> _Measured:
    n = len(labels)
    kinds = [1] if average == "Binary" else np.unique(labels).tolist()
    value, influence, added = 0.0, np.zeros(n), 0.0
    for kind in kinds:
        truth, answered = labels == kind, classes == kind
        tp, fp, fn = (
            (a & b).astype(np.float64) for a, b in ((truth, answered), (~truth, answered), (truth, ~answered))
        )
        above, below = rate(tp, fp, fn)
        size = float(below.sum())
        own = float(above.sum()) / size if size else 0.0
        weight = float(truth.mean()) if average == "Weighted" else 1 / len(kinds)
        value += weight * own
        influence += weight * (above - own * below) * n / max(size, 1.0)
        if average == "Weighted":
            influence += (truth - weight) * own
        # One sample that turns from right to wrong moves a rate by at most 1/size, an F1 by at most
        # 2/size.
        added += 2 * (weight * n * float(above.max(initial=1.0)) / max(size, 1.0)) ** 2
    return _Measured(value, influence, added, len(kinds))


def _midranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Floats = (ends - (counts - 1) / 2)[where]
    return ranks


def _auc(labels: Classes, scores: Floats, field: str) -> _Measured:
    """Class 1 against class 0; with several classes the mean of one against the rest over those
    with samples. DeLong's components, by midranks.
    """
    n = len(labels)
    kinds = [1] if scores.shape[1] <= 2 else np.unique(labels).tolist()
    value, influence, added = 0.0, np.zeros(n), 0.0
    for kind in kinds:
        column = scores[:, -1] if scores.shape[1] <= 2 else scores[:, kind]
        truth = labels == kind
        # a score that is NaN is against the model
        column = np.where(np.isnan(column), np.where(truth, -np.inf, np.inf), column)
        yes, no = int(truth.sum()), int((~truth).sum())
        if not yes or not no:
            raise bad_input(
                Reason.AUC_UNDEFINED,
                f"{field}.labels: auc needs samples of class {kind} and of others, there are {yes} and {no}"
                " (each slice alone); add samples, or use another metric",
            )
        ranks = _midranks(column)
        below = np.empty(n)  # share of the other kind that a sample is on the right side of
        below[truth] = (ranks[truth] - _midranks(column[truth])) / no
        below[~truth] = 1 - (ranks[~truth] - _midranks(column[~truth])) / yes
        own = float(below[truth].mean())
        weight = 1 / len(kinds)
        value += weight * own
        influence += weight * (below - own) * n / np.where(truth, yes, no)
        added += 2 * (weight * n) ** 2 * (1 / yes**2 + 1 / no**2)
    return _Measured(value, influence, added, 2 * len(kinds))
