"""Independent requests are taken as they are; clusters on one side are found and counted for what
they are worth.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from modelrollout.analysis.counters import NO_SPREAD, Raw, Sample, fold, spread_of
from modelrollout.api.v1alpha1 import Counter
from modelrollout.statistics.dispersion import Spread, dispersion, divisor, is_known, lasting, widened

NOTHING = NO_SPREAD
Sizes = NDArray[np.float64]


def estimated(bad: Sizes, total: Sizes) -> float:
    """The dispersion after looks that brought these."""
    spread = NOTHING
    for x, n in zip(bad.tolist(), total.tolist(), strict=True):
        spread = widened(spread, n, x)
    return dispersion(spread)


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_independent_requests_are_not_dispersed(share: float) -> None:
    rng = np.random.default_rng(1)
    total = rng.poisson(100, (100, 40)).astype(np.float64)
    bad = rng.binomial(total.astype(np.int64), share).astype(np.float64)
    values = [estimated(b, n) for b, n in zip(bad, total, strict=True)]
    assert (
        min(values) >= 1
        and np.median(values) == pytest.approx(1 + 1 / 1600, abs=1e-3)
        and np.mean(values) < 1.15
    )


def test_clusters_of_four_weigh_a_quarter() -> None:
    rng = np.random.default_rng(2)
    total = np.full(400, 400.0)
    assert estimated(4.0 * rng.poisson(1.0, 400), total) == pytest.approx(4, rel=0.2)


def test_a_slow_course_is_no_dispersion() -> None:
    bad = np.array([1.0, 1.0] * 20 + [10.0, 10.0] * 20)
    assert estimated(bad, np.full(80, 100.0)) < 1.3


@pytest.mark.parametrize(("looks", "least"), [(0, 2.0), (1, 2.0), (2, 1.25), (11, 1 + 1 / 121)])
def test_what_is_not_known_yet_is_assumed(looks: int, least: float) -> None:
    spread = NOTHING
    for _ in range(looks):
        spread = widened(spread, 10.0, 0.0)
    assert dispersion(spread) == pytest.approx(least)


def test_a_look_without_requests_changes_nothing() -> None:
    spread = widened(widened(NOTHING, 10.0, 1.0), 20.0, 1.0)
    assert widened(spread, 0.0, 0.0) == spread


def test_the_counters_keep_it_from_look_to_look() -> None:
    counter: Counter | None = None
    spread = NOTHING
    for look, (total, bad) in enumerate([(100, 5), (250, 6), (250, 6), (400, 30)]):
        before = (counter.total, counter.bad) if counter else None
        counter = fold(counter, Raw({"a": Sample(total, bad, 10.0 + look)}))
        if before:
            spread = widened(spread, counter.total - before[0], counter.bad - before[1])
    assert counter and spread_of(counter) == spread and spread.differences == 1


def test_a_spread_that_the_operator_did_not_write_is_none() -> None:
    assert spread_of(Counter(total=5, bad=1, spread=[1.0])) == NOTHING


def test_a_spread_of_an_earlier_operator_has_the_counts_of_its_step() -> None:
    assert spread_of(Counter(total=50, bad=2, spread=[10.0, 1.0, 3.0, 0.5])) == Spread(
        10.0, 1.0, 3.0, 0.5, 50.0, 2.0
    )


def test_arrays_and_numbers_agree() -> None:
    rng = np.random.default_rng(3)
    total = rng.poisson(3, (2, 30)).astype(np.float64)
    bad = rng.binomial(total.astype(np.int64), 0.3).astype(np.float64)
    zero = np.zeros(2)
    spread = Spread(zero, zero, zero, zero, zero, zero)
    for x, n in zip(bad.T, total.T, strict=True):
        spread = widened(spread, n, x)
    together = dispersion(spread)
    assert together == pytest.approx([estimated(b, n) for b, n in zip(bad, total, strict=True)])


def over(bad: list[float], total: float) -> Spread[float]:
    """The spread after looks of ``total`` requests."""
    spread = NOTHING
    for x in bad:
        spread = widened(spread, total, x)
    return spread


KNOWN, YOUNG = over([10.0, 12.0] * 20, 1000.0), over([10.0, 12.0] * 5, 1000.0)
EPISODIC = over([10.0, 12.0, 10.0, 500.0, 12.0] * 8, 1000.0)
EPISODE, STEADY = over([2.0, 2.0, 125.0], 250.0), over([25.0, 25.0, 25.0], 250.0)


def test_the_canarys_own_looks_count_until_stable_is_known() -> None:
    assert is_known(KNOWN) and not is_known(YOUNG)
    assert divisor(KNOWN, EPISODE) == dispersion(KNOWN)
    assert divisor(YOUNG, EPISODE) == dispersion(EPISODE, at_once=True) > 50
    assert divisor(YOUNG, STEADY) < 1.2


def test_where_stable_has_episodes_the_canarys_own_looks_tell_a_regression_from_one() -> None:
    assert dispersion(EPISODIC) > 100
    assert divisor(EPISODIC, STEADY) == 4
    assert (
        divisor(EPISODIC, EPISODE) == min(dispersion(EPISODIC), 2 * dispersion(EPISODE, at_once=True)) > 100
    )


def test_one_burst_in_a_short_past_of_stable_does_not_hide_a_canary_that_fails_all_the_time() -> None:
    burst = over([0.0, 0.0, 33.0, 0.0, 0.0, 0.0], 200.0)
    assert not is_known(burst) and dispersion(burst) > 50
    assert divisor(burst, over([100.0] * 3, 100.0)) == 4
    assert divisor(burst, over([100.0] * 2, 100.0)) > 50, "one episode may last for two looks"
    assert divisor(burst, over([60.0] * 5, 100.0)) > 50, "that is no version that fails all along"


def test_before_the_first_bad_request_of_stable_counts_weigh_a_third() -> None:
    assert divisor(over([0.0] * 20, 1000.0), STEADY) == pytest.approx(3, abs=0.01)
    assert divisor(over([0.0] * 40, 1000.0), STEADY) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("stable", "looks", "bad", "seconds", "proof"),
    [
        (KNOWN, 1, 10, 1, True),
        (YOUNG, 1, 10, 1, False),
        (YOUNG, 2, 10, 110, False),
        (YOUNG, 3, 10, 125, True),
        (YOUNG, 1, 95, 15, False),
        (YOUNG, 1, 95, 25, True),
        (YOUNG, 1, 80, 25, False),
        (EPISODIC, 1, 95, 25, False),
        (EPISODIC, 3, 10, 125, True),
    ],
)
def test_one_episode_is_no_proof_until_stable_is_known(
    stable: Spread[float], looks: int, bad: float, seconds: float, proof: bool
) -> None:
    assert lasting(stable, over([bad] * looks, 100.0), bad * looks, 100.0 * looks, seconds) is proof
