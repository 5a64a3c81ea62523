"""A gateway that sends all or nothing is told within a minute; no honest one ever is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from modelrollout.statistics.split import ENOUGH, LAG_SECONDS, LEAST, MOST, split_log_evidence

WEIGHTS = (LEAST, 25, 50, 75, MOST)
ROLLOUTS = 1000
SECONDS = 180
# when a step is looked at: each second at first, then every five
LOOKS = [*range(1, 16), *range(20, SECONDS + 1, 5)]
Numbers = NDArray[np.float64]
# (requests of the canary, all requests) in each second (columns) of each rollout
Dealer = Callable[[np.random.Generator, Numbers, int], tuple[Numbers, Numbers]]


def by_chance(rng: np.random.Generator, shares: Numbers, rate: int) -> tuple[Numbers, Numbers]:
    """They come at random, and go at random."""
    total = rng.poisson(rate, shares.shape)
    return rng.binomial(total, shares).astype(float), total.astype(float)


def by_turns(rng: np.random.Generator, shares: Numbers, rate: int) -> tuple[Numbers, Numbers]:
    """Eight proxies that deal in turns, each from another point of its round."""
    per_proxy = np.cumsum(shares * rate / 8, axis=1) + rng.random((8, len(shares), 1))
    dealt = np.diff(np.floor(per_proxy), axis=2, prepend=0.0).sum(axis=0)
    return dealt, np.full(shares.shape, float(rate))


def counted(canary: Numbers, total: Numbers) -> Iterator[tuple[Numbers, Numbers, float]]:
    """Counts at each look."""
    canaries, totals = np.cumsum(canary, axis=1), np.cumsum(total, axis=1)
    for second in LOOKS:
        of_canary = canaries[:, second - 1]
        yield of_canary, np.maximum(totals[:, second - 1] - of_canary, 0.0), float(second)


@pytest.mark.parametrize("rate", [10, 100])
@pytest.mark.parametrize("deal", [by_chance, by_turns])
@pytest.mark.parametrize("weights", [WEIGHTS, (50, LEAST, MOST, LEAST, 75)])
def test_of_a_thousand_honest_rollouts_none_is_accused(
    rate: int, deal: Dealer, weights: tuple[int, ...]
) -> None:
    """Over all steps and looks, with the former weight for the first seconds of each."""
    rng = np.random.default_rng(17)
    accused, before = np.zeros(ROLLOUTS, dtype=bool), 0
    for weight in weights:
        lag = rng.uniform(0, LAG_SECONDS, ROLLOUTS)[:, None]
        share = np.where(np.arange(SECONDS) + 1 <= lag, before, weight) / 100
        for of_canary, of_stable, seconds in counted(*deal(rng, share, rate)):
            now = np.full(ROLLOUTS, seconds)
            accused |= split_log_evidence(of_canary, of_stable, weight, now) >= ENOUGH
        before = weight
    assert accused.sum() == 0


def ignores_weight(canary: float, stable: float, weight: int, seconds: float) -> bool:
    return split_log_evidence(canary, stable, weight, seconds) >= ENOUGH


@pytest.mark.parametrize("rate", [10, 100])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("everything", [False, True])
def test_all_or_nothing_is_told_within_a_minute(rate: int, weight: int, everything: bool) -> None:
    told = [
        second
        for second in range(1, 61)
        if ignores_weight(
            *((rate * second, 0.0) if everything else (0.0, rate * second)), weight, float(second)
        )
    ]
    assert told and told == list(range(told[0], 61)), "once told, it stays so"


@pytest.mark.parametrize("weight", WEIGHTS)
def test_nothing_counted_is_no_ground(weight: int) -> None:
    assert not ignores_weight(0.0, 0.0, weight, 0.0) and not ignores_weight(0.0, 3.0, weight, 60.0)


def test_a_split_that_comes_back_is_told_no_more() -> None:
    assert ignores_weight(0.0, 600.0, 25, 60.0)
    assert not ignores_weight(900.0, 600.0 + 2700.0, 25, 420.0)
