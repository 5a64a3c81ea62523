"""Metrics of the gate: values by hand and by brute force, influences by leaving samples out,
intervals by simulation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from modelrollout.contract.gate import Average, GateMetric, MetricName
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.gate.metrics import Answers, average_of, estimate

RNG = np.random.default_rng(5)


def classes_of(*values: int) -> Answers:
    return Answers(classes=np.array(values))


def value(
    name: MetricName, labels: Any, answers: Answers, average: Average | None = None, k: int | None = None
) -> float:
    return estimate(GateMetric(name=name, k=k), average, np.asarray(labels), answers, answers, "data").after


def test_by_hand() -> None:
    labels, said = np.array([0, 0, 0, 1, 1, 2]), classes_of(0, 0, 1, 1, 2, 2)
    assert value("precision", labels, said, "Macro") == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert value("recall", labels, said, "Macro") == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert value("f1", labels, said, "Macro") == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)
    assert value("f1", labels, said, "Weighted") == pytest.approx((3 * 4 / 5 + 2 * 1 / 2 + 2 / 3) / 6)
    assert value("recall", np.array([1, 0, 1, 1]), classes_of(1, 1, 0, 1), "Binary") == pytest.approx(2 / 3)
    # nothing was said to be positive
    assert value("precision", np.array([1, 0]), classes_of(0, 0), "Binary") == 0
    assert value("mae", [1.0, 2.0], Answers(values=np.array([1.5, 4.0]))) == 1.25
    assert value("mse", [1.0, 2.0], Answers(values=np.array([1.5, 4.0]))) == 2.125
    assert value("topK", [0, 1, 2, 0], Answers(ranks=np.array([0, 1, 2, 5])), k=2) == 0.5


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=40).filter(
        lambda xs: len({y for y, _ in xs}) == 2
    )
)
def test_auc_is_the_share_of_pairs_in_the_right_order(samples: list[tuple[int, int]]) -> None:
    labels, scores = np.array([y for y, _ in samples]), np.array([float(s) for _, s in samples])
    yes, no = scores[labels == 1], scores[labels == 0]
    pairs = (yes[:, None] > no).sum() + 0.5 * (yes[:, None] == no).sum()
    expected = pairs / (len(yes) * len(no))
    assert value("auc", labels, Answers(scores=scores[:, None])) == pytest.approx(expected)
    assert value("auc", labels, Answers(scores=np.stack([-scores, scores], axis=1))) == pytest.approx(
        expected
    )


def test_auc_of_several_classes_is_the_mean_of_one_against_the_rest() -> None:
    labels, scores = RNG.integers(0, 3, 200), RNG.normal(size=(200, 3))
    alone = [value("auc", (labels == k).astype(np.int64), Answers(scores=scores[:, [k]])) for k in range(3)]
    assert value("auc", labels, Answers(scores=scores)) == pytest.approx(np.mean(alone))


def test_auc_of_one_class_is_refused() -> None:
    with pytest.raises(JobError, match="AucUndefined"):
        value("auc", [1, 1], Answers(scores=np.array([[0.1], [0.2]])))


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_a_score_that_is_no_number_is_never_on_the_right_side(columns: int) -> None:
    """float16 that overflows answers NaN: for a sample of class 0 that must not look like a low
    score of class 1.
    """
    labels = np.array([0, 1] * 20)
    good = RNG.normal(size=(40, columns))
    before = value("auc", labels, Answers(scores=good))
    for kind in (0, 1):
        broken = good.copy()
        broken[labels == kind] = np.nan
        assert value("auc", labels, Answers(scores=broken)) == 0 < before
    assert value("auc", labels, Answers(scores=np.full((40, columns), np.nan))) == 0


def test_errors_beyond_all_numbers_are_no_pass() -> None:
    huge = Answers(values=np.array([1e200, 1.0]))
    with pytest.raises(JobError, match="OutputNotFinite"):
        value("mse", np.array([0.0, 1.0]), huge)


def drawn(
    name: MetricName, n: int, rng: np.random.Generator, worse: float = 0.0
) -> tuple[NDArray[Any], Answers, Answers]:
    """Labels of three uneven classes, and two models that are mostly right and mostly agree."""
    labels = rng.choice(3, n, p=[0.6, 0.3, 0.1])
    if name in ("mae", "mse"):
        truth = rng.normal(size=n)
        before = truth + rng.normal(0, 0.3, n)
        return truth, Answers(values=before), Answers(values=before + rng.normal(0, 0.1 + worse, n))
    scores = rng.normal(size=(n, 3)) + 2.0 * np.eye(3)[labels]
    after = scores + rng.normal(0, 0.3 + worse, (n, 3))
    return labels, *(Answers(classes=s.argmax(1), scores=s) for s in (scores, after))


CASES: list[tuple[MetricName, Average | None]] = [
    ("accuracy", None), ("agreement", None), ("precision", "Macro"), ("recall", "Macro"), ("f1", "Macro"),
    ("f1", "Weighted"),
    ("auc", None), ("mae", None), ("mse", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "average"), CASES)
def test_influences_are_those_of_leaving_a_sample_out(name: MetricName, average: Average | None) -> None:
    labels, before, after = drawn(name, 400, np.random.default_rng(1))
    metric = GateMetric(name=name)
    whole = estimate(metric, average, labels, before, after, "data")
    left_out = []
    for i in range(400):
        retained = np.arange(400) != i
        left_out.append(
            estimate(
                metric, average, labels[retained], before.rows(retained), after.rows(retained), "data"
            ).loss
        )
    # n - 1 times the change: influences, by sample
    jackknife = 399 * (np.mean(left_out) - np.array(left_out))
    assert whole.total / 400 == pytest.approx(whole.loss, abs=1e-9)
    ours = whole.squares / 400 - whole.loss**2
    assert ours == pytest.approx(float((jackknife**2).mean()), rel=0.05)


@pytest.mark.parametrize(("name", "average"), CASES)
def test_the_interval_covers_in_simulation(name: MetricName, average: Average | None) -> None:
    rng = np.random.default_rng(11)
    truth = float(
        np.mean(
            [
                estimate(GateMetric(name=name), average, *drawn(name, 20_000, rng), "data").loss
                for _ in range(10)
            ]
        )
    )
    hits, runs = 0, 300
    for _ in range(runs):
        low, high = estimate(GateMetric(name=name), average, *drawn(name, 200, rng), "data").interval()
        hits += low <= truth <= high
    assert hits / runs >= 0.92


@pytest.mark.parametrize(("name", "average"), CASES)
def test_identical_answers_on_few_samples_are_no_certainty(name: MetricName, average: Average | None) -> None:
    labels, before, _ = drawn(name, 40, np.random.default_rng(2))
    estimated = estimate(GateMetric(name=name), average, labels, before, before, "data")
    low, high = estimated.interval()
    assert estimated.loss == 0
    assert low < 0 < high
    assert high - low > 0.04 * (estimated.before if name in ("mae", "mse") else 1)


def test_which_average_counts() -> None:
    f1, two, three = GateMetric(name="f1"), np.array([0, 1, 1]), np.array([0, 1, 2])
    assert average_of(f1, two, 2, "f") == average_of(f1, two, None, "f") == "Binary"
    assert average_of(f1, three, 3, "f") == average_of(f1, two, 3, "f") == "Macro"
    assert average_of(GateMetric(name="recall", average="Weighted"), two, 2, "f") == "Weighted"
    assert average_of(GateMetric(name="auc"), two, 2, "f") is None
    with pytest.raises(JobError, match="AverageImpossible"):
        average_of(GateMetric(name="f1", average="Binary"), three, None, "spec.optimization.gate.metrics[0]")


def _worse(name: MetricName) -> Callable[[int], float]:
    return lambda n: estimate(
        GateMetric(name=name), "Macro", *drawn(name, n, np.random.default_rng(0), worse=1.0), "data"
    ).interval()[0]


@pytest.mark.parametrize("name", ["accuracy", "f1", "auc", "mae", "mse"])
def test_a_real_loss_is_proven(name: MetricName) -> None:
    assert _worse(name)(3000) > 0
