"""The accuracy gate: its interval against published theory and simulation, and its decisions."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelrollout.contract.gate import GateBudget
from modelrollout.contract.results import Paired
from modelrollout.statistics.paired import (
    accuracies,
    decide,
    drop_interval,
    judge,
    samples_needed,
    share_estimate,
    z_of,
)


def pairs(n: int, b: int, c: int, wrong: int = 0) -> Paired:
    """n samples; b only the baseline right, c only the candidate."""
    return Paired(
        n=n, both_right=n - b - c - wrong, only_candidate_right=c, only_baseline_right=b, both_wrong=wrong
    )


counts = st.tuples(*[st.integers(0, 3000)] * 4).map(
    lambda t: Paired(
        n=sum(t), both_right=t[0], only_candidate_right=t[1], only_baseline_right=t[2], both_wrong=t[3]
    )
)
budgets = st.floats(0.0005, 0.3)


def test_interval_by_hand() -> None:
    # n = 98, b = 9, c = 1: p = 0.1, q = 0.02, half = 1.96 sqrt((0.12 - 0.0064) / 100)
    low, high = drop_interval(98, 9, 1)
    half = 1.959963984540054 * math.sqrt(0.1136 / 100)
    assert (low, high) == (pytest.approx(0.08 - half), pytest.approx(0.08 + half))


@pytest.mark.parametrize(
    ("p_b", "p_c", "n"), [(0.02, 0.02, 400), (0.05, 0.01, 300), (0.005, 0.001, 1000), (0.2, 0.1, 100)]
)
def test_interval_covers_in_simulation(p_b: float, p_c: float, n: int) -> None:
    rng = random.Random(7)
    hits, runs = 0, 400
    for _ in range(runs):
        draws = [rng.random() for _ in range(n)]
        b = sum(d < p_b for d in draws)
        c = sum(p_b <= d < p_b + p_c for d in draws)
        low, high = drop_interval(n, b, c)
        hits += low <= p_b - p_c <= high
    assert hits / runs >= 0.93


def test_no_disagreement_is_no_certainty() -> None:
    low, high = drop_interval(100, 0, 0)
    assert low < 0 < high
    assert high == pytest.approx(0.0271, abs=1e-3)


@pytest.mark.parametrize(
    ("paired", "max_drop", "minimum", "verdict", "reason"),
    [
        (pairs(2000, 4, 4), 0.005, None, "Successful", "WithinBudget"),
        (pairs(2000, 60, 10), 0.005, None, "Failed", "AccuracyDrop"),
        (pairs(2000, 8, 0, 400), None, 0.9, "Failed", "AccuracyLow"),
        (pairs(2000, 8, 0, 100), None, 0.9, "Successful", "WithinBudget"),
        # perfect, but 100 samples cannot tell half a point
        (pairs(100, 0, 0), 0.005, None, "Inconclusive", "TooFewSamples"),
        # over the budget, not proven
        (pairs(50, 1, 0), 0.01, None, "Inconclusive", "TooFewSamples"),
        # a drop of just the budget is inside it
        (pairs(2000, 20, 0), 0.01, None, "Successful", "WithinBudget"),
        (pairs(0, 0, 0), None, 0.5, "Inconclusive", "TooFewSamples"),
        (pairs(0, 0, 0), 0.1, 0.5, "Inconclusive", "TooFewSamples"),
        # both fail: the plain threshold is named
        (pairs(400, 100, 0), 0.005, 0.9, "Failed", "AccuracyLow"),
    ],
)
def test_decisions(
    paired: Paired, max_drop: float | None, minimum: float | None, verdict: str, reason: str
) -> None:
    decision = decide(paired, max_drop=max_drop, minimum=minimum)
    assert (decision.verdict, decision.reason) == (verdict, reason)


def test_inconclusive_says_how_many_samples_are_needed() -> None:
    decision = decide(pairs(100, 0, 0), max_drop=0.005, minimum=None)
    assert decision.samples_needed is not None
    assert str(decision.samples_needed) in decision.message
    assert decide(pairs(decision.samples_needed, 0, 0), max_drop=0.005, minimum=None).verdict == "Successful"
    assert (
        decide(pairs(decision.samples_needed - 1, 0, 0), max_drop=0.005, minimum=None).verdict
        == "Inconclusive"
    )


def test_counts_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="add up"):
        decide(
            Paired(n=5, both_right=1, only_candidate_right=1, only_baseline_right=1, both_wrong=1),
            max_drop=0.1,
            minimum=None,
        )


@given(counts, budgets)
def test_never_passes_beyond_the_budget_and_never_fails_within_it(paired: Paired, budget: float) -> None:
    decision = decide(paired, max_drop=budget, minimum=None)
    if decision.drop > budget + 1e-9:
        assert decision.verdict != "Successful"
    if decision.drop < budget:
        assert decision.verdict != "Failed"
    if decision.verdict == "Failed":
        assert decision.interval[0] > 0


@given(counts, budgets)
def test_a_smaller_budget_is_never_easier(paired: Paired, budget: float) -> None:
    if decide(paired, max_drop=budget / 2, minimum=None).verdict == "Successful":
        assert decide(paired, max_drop=budget, minimum=None).verdict == "Successful"


@given(counts)
def test_interval_holds_the_adjusted_drop_and_mirrors(paired: Paired) -> None:
    n, b, c = paired.n, paired.only_baseline_right, paired.only_candidate_right
    low, high = drop_interval(n, b, c)
    assert -1 <= low <= (b - c) / (n + 2) <= high <= 1
    assert drop_interval(n, c, b) == (pytest.approx(-high), pytest.approx(-low))


@given(counts, budgets)
def test_samples_needed_is_enough(paired: Paired, budget: float) -> None:
    need = samples_needed(share_estimate("accuracy", paired), budget)
    assert need >= max(1, paired.n)
    rate_b, rate_c = (
        (paired.only_baseline_right / paired.n, paired.only_candidate_right / paired.n)
        if paired.n
        else (0, 0)
    )
    low, high = drop_interval(need, rate_b * need, rate_c * need)
    assert (high - low) / 2 <= budget + 1e-9


@given(counts)
def test_accuracies_are_shares(paired: Paired) -> None:
    before, after = accuracies(paired)
    assert 0 <= before <= 1
    assert 0 <= after <= 1


def test_a_relative_budget_is_a_share_of_the_original() -> None:
    half_right = pairs(4000, 60, 20, wrong=2000)  # 0.49 against 0.505 before: 0.01 is 2 % of it
    assert (
        judge(share_estimate("topK", half_right), GateBudget(max_drop_relative=0.05)).verdict == "Successful"
    )
    decision = judge(share_estimate("topK", half_right), GateBudget(max_drop_relative=0.01))
    assert (decision.verdict, decision.reason) == ("Failed", "MetricDrop")


def test_the_smaller_of_two_budgets_counts() -> None:
    estimate = share_estimate("accuracy", pairs(2000, 60, 10))
    assert judge(estimate, GateBudget(max_drop=0.5, max_drop_relative=0.001)).verdict == "Failed"
    assert judge(estimate, GateBudget(max_drop=0.001, max_drop_relative=0.5)).verdict == "Failed"


@pytest.mark.parametrize(("n", "verdict"), [(20, "Inconclusive"), (2000, "Successful")])
def test_a_limit_of_the_value_needs_data_too(n: int, verdict: str) -> None:
    decision = judge(share_estimate("agreement", pairs(n, 0, 0)), GateBudget(min=0.95))
    assert decision.verdict == verdict


def test_golden_data_keeps_its_plain_threshold() -> None:
    assert decide(pairs(20, 0, 0), max_drop=0.5, minimum=0.95).verdict == "Successful"


@pytest.mark.parametrize(("share", "n"), [(1.0, 50), (0.98, 200), (0.9, 100), (0.5, 40)])
def test_the_interval_of_a_value_covers_in_simulation(share: float, n: int) -> None:
    rng = random.Random(3)
    runs, hits = 600, 0
    for _ in range(runs):
        right = sum(rng.random() < share for _ in range(n))
        low, high = share_estimate(
            "accuracy",
            Paired(
                n=n, both_right=right, only_candidate_right=0, only_baseline_right=0, both_wrong=n - right
            ),
        ).value_interval()
        hits += low <= share <= high
    assert hits / runs >= 0.94


def test_many_comparisons_widen_intervals() -> None:
    assert z_of(1) == pytest.approx(1.959964, abs=1e-6)
    assert z_of(50) == pytest.approx(3.2905, abs=1e-3)  # 1 - 0.025 / 50


@pytest.mark.parametrize(
    ("budget", "before"), [(GateBudget(max_drop=0), 0.9), (GateBudget(max_drop_relative=0.1), 0.0)]
)
def test_a_budget_of_nothing_is_told_as_such(budget: GateBudget, before: float) -> None:
    """No number of samples proves that nothing was lost: to ask for more data would send the user
    on an endless errand.
    """
    right = round(before * 10_000)
    decision = judge(share_estimate("accuracy", pairs(10_000, 0, 0, 10_000 - right)), budget)
    assert (decision.verdict, decision.reason) == ("Inconclusive", "TooFewSamples")
    assert "larger budget" in decision.message and "would do" not in decision.message
    assert decision.samples_needed is None
