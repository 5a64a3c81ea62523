"""The evidence is what it claims to be: by exact enumeration, against published tests, by
simulation of looks; and finds what is there.
"""

from __future__ import annotations

from itertools import product
from math import exp, inf, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from modelrollout.statistics.sequential import (
    _BETS,
    PRECISION,
    difference_interval,
    log_evidence,
    over_steps,
    share_interval,
    share_log_evidence,
)


def binomial(n: int, p: float) -> NDArray[np.float64]:
    """Probabilities of 0 to n."""
    k = np.arange(1.0, n + 1)
    logs = (
        np.concatenate([[0.0], np.cumsum(np.log((n - k + 1) / k))])
        + np.arange(n + 1) * log(p)
        + (n - np.arange(n + 1)) * log(1 - p)
    )
    return np.asarray(np.exp(logs))


# --- e-values


@pytest.mark.parametrize("share", [0.01, 0.3])
@pytest.mark.parametrize("n", [10, 120])
def test_the_evidence_on_one_share_is_1_on_average_while_the_hypothesis_holds(n: int, share: float) -> None:
    evidence = np.exp(share_log_evidence(np.arange(n + 1.0), np.full(n + 1, float(n)), share))
    assert float(np.sum(evidence * binomial(n, share))) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("n", "m"), [(20, 80), (10, 190), (50, 50)])
@pytest.mark.parametrize(
    ("stable", "difference"), [(0.01, 0.0), (0.1, 0.0), (0.01, 0.0005), (0.01, 0.02), (0.1, -0.05)]
)
def test_the_evidence_on_a_difference_is_about_1_at_most(
    n: int, m: int, stable: float, difference: float
) -> None:
    """The centre is taken from the counts themselves: that is worth 2.5 % at most where up to a
    tenth is bad.
    """
    bad, other = np.meshgrid(np.arange(n + 1.0), np.arange(m + 1.0), indexing="ij")
    evidence = np.exp(log_evidence(bad, np.full_like(bad, n), other, np.full_like(bad, m), difference))
    assert float(np.sum(evidence * np.outer(binomial(n, stable + difference), binomial(m, stable)))) <= 1.025


def test_without_a_difference_it_is_the_likelihood_ratio_of_two_samples() -> None:
    """Turner, Ly, Grünwald 2024: theta_c against theta_s over one theta that is their mean,
    weighted by the numbers of requests.
    """
    bad, n, other, m = 30, 1000, 60, 4000
    weight, pooled = n / (n + m), (bad + other) / (n + m)
    total = 0.0
    for excess, share in _BETS:
        low = pooled / (weight * (1 + excess) + 1 - weight)
        high = low * (1 + excess)
        ratio = bad * log(high / pooled) + (n - bad) * log((1 - high) / (1 - pooled))
        ratio += other * log(low / pooled) + (m - other) * log((1 - low) / (1 - pooled))
        total += exp(share + ratio)
    assert log_evidence(bad, n, other, m, 0.0) == pytest.approx(log(total), abs=1e-9)


@pytest.mark.parametrize(
    ("bad", "other", "reference"), [(60, 100, 10.708), (30, 20, 15.139), (20, 80, -1.238), (500, 1700, 2.141)]
)
def test_rare_bad_requests_make_it_the_test_of_multinomial_counts(
    bad: float, other: float, reference: float
) -> None:
    """Lindon and Malek 2022, from savvi 0.3.1: Multinomial(theta_0=[0.2, 0.8], k=10).update_odds.
    The mixtures differ, by 1.5 nats at most here.
    """
    assert log_evidence(bad, 2e8, other, 8e8, 0.0) == pytest.approx(reference, abs=1.5)


counts = st.tuples(st.integers(0, 500), st.integers(1, 5000)).map(lambda c: (float(min(c)), float(max(c))))


@given(canary=counts, stable=counts, difference=st.floats(-0.9, 0.9))
def test_numbers_and_arrays_agree(
    canary: tuple[float, float], stable: tuple[float, float], difference: float
) -> None:
    one = log_evidence(*canary, *stable, difference)
    many = log_evidence(*(np.array([v, v]) for v in (*canary, *stable)), difference)
    assert many == pytest.approx([one, one], rel=1e-9, abs=1e-9)


@given(stable=counts, total=st.integers(50, 5000), bad=st.integers(0, 400))
def test_more_bad_requests_are_more_evidence(stable: tuple[float, float], total: int, bad: int) -> None:
    bad = min(bad, total - 1)
    fewer, more = (log_evidence(float(b), float(total), *stable, 0.0) for b in (bad, bad + 1))
    assert more >= fewer - 0.01 or bad / total < stable[0] / stable[1]


@pytest.mark.parametrize("side", [(0.0, 0.0, 5.0, 100.0), (5.0, 100.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)])
@pytest.mark.parametrize("difference", [0.0, 0.02, -0.02])
def test_one_side_alone_is_no_evidence(side: tuple[float, float, float, float], difference: float) -> None:
    assert log_evidence(*side, difference) == pytest.approx(0, abs=1e-6)


# --- steps


def test_over_steps_it_is_1_on_average_however_many_there_are() -> None:
    """Every step ends with 3 with probability 1/4 and with 1/3 otherwise: on average 1."""
    for steps in (1, 2, 4):
        total = 0.0
        for actual in product((3.0, 1 / 3), repeat=steps):
            chance = np.prod([0.25 if e == 3.0 else 0.75 for e in actual])
            total += float(chance) * exp(over_steps(log(actual[-1]), [log(e) for e in actual[:-1]]))
        assert total == pytest.approx(1)


def test_a_good_step_does_not_shield_a_bad_one() -> None:
    assert over_steps(10.0, [-50.0]) >= 10 + log(0.1) - 1e-9
    assert over_steps(10.0, [-50.0, -50.0]) >= 10 + log(0.2 / 6) - 1e-9


def test_evidence_of_steps_adds_up() -> None:
    assert over_steps(4.0, [4.0]) > 8 + log(0.8) > over_steps(4.0, [0.0])


# --- looks


def looks(
    rng: np.random.Generator, canary: float, stable: float, weight: float, requests: int, runs: int
) -> list[tuple[NDArray[np.float64], ...]]:
    """Counts of all runs after every look of 20 requests."""
    total = rng.binomial(20, weight, (requests // 20, runs)).astype(np.float64)
    bad = rng.binomial(total.astype(np.int64), canary).astype(np.float64)
    other = rng.binomial((20 - total).astype(np.int64), stable).astype(np.float64)
    return list(zip(*(np.cumsum(v, axis=0) for v in (bad, total, other, 20 - total)), strict=True))


@pytest.mark.parametrize("difference", [0.0, 0.01])
@pytest.mark.parametrize(("share", "weight"), [(0.002, 0.05), (0.02, 0.05), (0.02, 0.2), (0.1, 0.5)])
def test_looking_often_at_equal_models_keeps_false_alarms_below_alpha(
    share: float, weight: float, difference: float
) -> None:
    """Both directions apart, at 5 %: 1000 runs of 100 looks."""
    alpha, rng = 0.05, np.random.default_rng(20)
    worse, better = np.zeros(1000, dtype=np.bool_), np.zeros(1000, dtype=np.bool_)
    for bad, total, other_bad, other_total in looks(rng, share + difference, share, weight, 2000, 1000):
        worse |= log_evidence(bad, total, other_bad, other_total, difference) >= log(1 / alpha)
        better |= log_evidence(other_bad, other_total, bad, total, -difference) >= log(1 / alpha)
    assert worse.mean() <= alpha and better.mean() <= alpha


def test_a_test_for_one_look_would_not_keep_them() -> None:
    """The test above can fail: the same looks with a one-sided test at 5 % each."""
    alarm = np.zeros(1000, dtype=np.bool_)
    for bad, total, other_bad, other_total in looks(np.random.default_rng(20), 0.1, 0.1, 0.5, 2000, 1000):
        c, s = bad / np.maximum(total, 1), other_bad / np.maximum(other_total, 1)
        alarm |= c - s > 1.645 * np.sqrt(
            c * (1 - c) / np.maximum(total, 1) + s * (1 - s) / np.maximum(other_total, 1)
        )
    assert alarm.mean() > 0.2


@pytest.mark.parametrize(
    ("canary", "stable", "weight", "within"),
    [(0.05, 0.001, 0.05, 300), (0.3, 0.01, 0.05, 60), (0.15, 0.05, 0.5, 600)],
)
def test_a_clear_difference_is_found(canary: float, stable: float, weight: float, within: int) -> None:
    """In nine of ten runs before the canary has answered ``within`` requests."""
    actual = np.zeros(500, dtype=np.bool_)
    for bad, total, other_bad, other_total in looks(
        np.random.default_rng(21), canary, stable, weight, round(1.2 * within / weight), 500
    ):
        actual |= (total <= within) & (log_evidence(bad, total, other_bad, other_total, 0.0) >= log(100))
    assert actual.mean() >= 0.9


# --- intervals


@given(canary=counts, stable=counts)
@settings(max_examples=50)
def test_an_interval_of_a_difference_is_that_of_the_sides_exchanged(
    canary: tuple[float, float], stable: tuple[float, float]
) -> None:
    lower, upper = difference_interval(*canary, *stable, 0.01)
    assert -1 <= lower <= canary[0] / canary[1] - stable[0] / stable[1] <= upper <= 1
    mirrored = difference_interval(*stable, *canary, 0.01)
    assert (-mirrored.upper, -mirrored.lower) == pytest.approx((lower, upper), abs=2 * PRECISION)


@pytest.mark.parametrize(
    "side", [(10.0, 1000.0, 190.0, 19_000.0), (0.0, 100.0, 3.0, 1900.0), (120.0, 3000.0, 120.0, 12_000.0)]
)
def test_an_interval_ends_where_the_evidence_is_enough(side: tuple[float, float, float, float]) -> None:
    bad, total, other_bad, other_total = side
    lower, upper = difference_interval(*side, 0.01)
    assert log_evidence(*side, lower) >= log(100) > log_evidence(*side, lower + 2 * PRECISION)
    against = [log_evidence(other_bad, other_total, bad, total, -d) for d in (upper, upper - 2 * PRECISION)]
    assert against[0] >= log(100) > against[1]


@pytest.mark.parametrize(
    ("bad", "total"), [(0, 0), (0, 1), (1, 1), (3, 10), (50, 100), (1, 1_000_000), (999_999, 1_000_000)]
)
def test_an_interval_holds_its_share(bad: int, total: int) -> None:
    lower, upper = share_interval(bad, total, 0.01)
    assert 0 <= lower <= (bad / total if total else 0) <= upper <= 1
    mirrored = share_interval(total - bad, total, 0.01)
    assert (1 - mirrored.upper, 1 - mirrored.lower) == pytest.approx((lower, upper), abs=3 * PRECISION)


def test_more_evidence_and_a_larger_alpha_narrow_it() -> None:
    widths = [
        upper - lower for lower, upper in (share_interval(n // 10, n, 0.01) for n in (10, 100, 1000, 10_000))
    ]
    assert widths == sorted(widths, reverse=True)
    strict, lax = share_interval(10, 100, 0.001), share_interval(10, 100, 0.1)
    assert strict.lower < lax.lower and strict.upper > lax.upper


def test_nothing_seen_is_nothing_known() -> None:
    assert share_interval(0, 0, 0.01) == (0, 1)
    assert difference_interval(0, 0, 5, 100, 0.01) == (-1, 1)
    assert difference_interval(5, 100, 0, 0, 0.01) == (-1, 1)


@pytest.mark.parametrize(
    ("bad", "total", "alpha"), [(2, 1, 0.01), (-1, 5, 0.01), (1, 5, 0.0), (1, 5, 1.0), (inf, inf, inf)]
)
def test_what_is_no_share_is_refused(bad: float, total: float, alpha: float) -> None:
    with pytest.raises(ValueError):
        share_interval(bad, total, alpha)
