"""The intervals hold what they promise while somebody looks after every few requests, and find what is there."""

from __future__ import annotations

import random

import pytest

from modelrollout.analysis.compare import PRECISION, difference_interval, share_interval


def test_share_interval_is_the_inverted_mixture_martingale() -> None:
    # 0 of n: the limit solves Beta(1/2, n + 1/2) / Beta(1/2, 1/2) / (1 - p)^n = 1 / alpha; for n = 100 and alpha = 0.05 worked out by hand
    lower, upper = share_interval(0, 100, 0.05)
    assert lower == 0.0
    assert upper == pytest.approx(0.0570, abs=2e-4)


@pytest.mark.parametrize(("bad", "total"), [(0, 0), (0, 1), (1, 1), (3, 10), (50, 100), (1, 1_000_000), (999_999, 1_000_000)])
def test_an_interval_holds_its_share_and_is_symmetric(bad: int, total: int) -> None:
    lower, upper = share_interval(bad, total, 0.01)
    assert 0 <= lower <= (bad / total if total else 0) <= upper <= 1
    mirrored = share_interval(total - bad, total, 0.01)
    assert (1 - mirrored.upper, 1 - mirrored.lower) == pytest.approx((lower, upper), abs=3 * PRECISION)


def test_more_evidence_and_a_larger_alpha_narrow_it() -> None:
    widths = [upper - lower for lower, upper in (share_interval(n // 10, n, 0.01) for n in (10, 100, 1000, 10_000))]
    assert widths == sorted(widths, reverse=True)
    strict, lax = share_interval(10, 100, 0.001), share_interval(10, 100, 0.1)
    assert strict.lower < lax.lower and strict.upper > lax.upper


def test_nothing_seen_is_nothing_known() -> None:
    assert share_interval(0, 0, 0.01) == (0, 1)
    assert difference_interval(0, 0, 5, 100, 0.01) == (-1, 1)
    assert difference_interval(5, 100, 0, 0, 0.01) == (-1, 1)


@pytest.mark.parametrize(("bad", "total", "alpha"), [(2, 1, 0.01), (-1, 5, 0.01), (1, 5, 0.0), (1, 5, 1.0)])
def test_what_is_no_share_is_refused(bad: float, total: float, alpha: float) -> None:
    with pytest.raises(ValueError):
        share_interval(bad, total, alpha)


def _looks(rng: random.Random, canary: float, stable: float, weight: float, requests: int) -> list[tuple[int, int, int, int]]:
    """Counts as seen after every look; looks grow apart slowly, to keep the simulation fast."""
    bad_c = n_c = bad_s = n_s = sent = 0
    seen = []
    while sent < requests:
        batch = max(20, sent // 8)
        sent += batch
        for _ in range(batch):
            if rng.random() < weight:
                n_c += 1
                bad_c += rng.random() < canary
            else:
                n_s += 1
                bad_s += rng.random() < stable
        seen.append((bad_c, n_c, bad_s, n_s))
    return seen


@pytest.mark.parametrize(("share", "weight"), [(0.002, 0.05), (0.02, 0.05), (0.02, 0.25), (0.1, 0.5)])
def test_looking_often_at_equal_models_keeps_false_alarms_below_alpha(share: float, weight: float) -> None:
    """Both sides together, at 5 %, so that 400 runs can tell: a fixed-sample 95 % interval fails this with about 20 %."""
    alpha, runs = 0.05, 400
    rng = random.Random(20)
    alarms = 0
    for _ in range(runs):
        for look in _looks(rng, share, share, weight, 2000):
            lower, upper = difference_interval(*look, alpha)
            if lower > 0 or upper < 0:
                alarms += 1
                break
    assert alarms / runs <= alpha


def test_a_fixed_interval_would_not_keep_it() -> None:
    """The test above can fail: the same looks with an interval for one look."""
    rng = random.Random(20)
    alarms = 0
    for _ in range(200):
        for bad_c, n_c, bad_s, n_s in _looks(rng, 0.1, 0.1, 0.5, 2000):
            c, s = bad_c / n_c, bad_s / n_s
            if abs(c - s) > 1.96 * (c * (1 - c) / n_c + s * (1 - s) / n_s) ** 0.5:
                alarms += 1
                break
    assert alarms / 200 > 0.15


@pytest.mark.parametrize(("canary", "stable", "weight", "within"), [(0.05, 0.001, 0.05, 400), (0.3, 0.01, 0.05, 100), (0.15, 0.05, 0.5, 1000)])
def test_a_clear_difference_is_found(canary: float, stable: float, weight: float, within: int) -> None:
    """In nine of ten runs before the canary has answered ``within`` requests."""
    rng = random.Random(21)
    found = sum(
        any(n_c <= within and difference_interval(bad_c, n_c, bad_s, n_s, 0.01).lower > 0 for bad_c, n_c, bad_s, n_s in looks)
        for looks in (_looks(rng, canary, stable, weight, round(1.2 * within / weight)) for _ in range(30))
    )
    assert found >= 27
