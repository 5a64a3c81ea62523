"""What the hour before a step says of how requests fail together."""

from __future__ import annotations

import numpy as np
import pytest

from modelrollout.analysis.counters import NO_SPREAD, Raw, Sample
from modelrollout.analysis.providers.prometheus.history import increments, spread, times_before
from modelrollout.statistics.dispersion import dispersion

RNG = np.random.default_rng(7)


def minutes(rate: float, cluster: int, share: float = 0.01) -> list[tuple[float, float]]:
    bad = cluster * RNG.poisson(60 * rate * share / cluster, 60)
    return [(60.0 * rate + b, float(b)) for b in bad]


@pytest.mark.parametrize("rate", [10, 100])
def test_clusters_are_known_before_the_first_request_of_the_canary(rate: float) -> None:
    assert dispersion(spread(minutes(rate, 4))) == pytest.approx(4, rel=0.5)
    assert dispersion(spread(minutes(rate, 1))) < 1.5


def test_an_outage_in_that_hour_is_not_what_is_usual() -> None:
    """Taken for a cluster of thousands it would blind the rollout to everything."""
    usual = minutes(100, 1)
    outage = [(6000.0, 3000.0)] * 5
    assert dispersion(spread(usual[:30] + outage + usual[30:])) < 1.5
    assert dispersion(spread(outage[:2])) < 2.1 and spread([]) == spread([(0.0, 0.0)]) == NO_SPREAD


def test_what_was_counted_before_a_process_was_first_seen_belongs_to_no_minute() -> None:
    looks = [
        Raw({"a": Sample(1000, 10)}),
        Raw({"a": Sample(1100, 11), "b": Sample(90_000, 900)}),
        Raw({"b": Sample(90_050, 900)}),
        Raw({"a": Sample(20, 0), "b": Sample(90_060, 901)}),
        Raw({"a": Sample(30, 5), "b": Sample(90_060, 901)}),
    ]
    assert increments(looks) == [(100, 1), (50, 0), (10, 1), (10, 5)]


def test_what_happens_several_times_an_hour_is_usual() -> None:
    """Pods that fail for half a minute by themselves; the longest of their outages is left out."""
    usual = minutes(100, 1)
    for at in (5, 17, 18, 29, 41, 53):
        usual[at] = (6000.0, 800.0)
    assert dispersion(spread(usual)) > 100


def test_the_past_of_a_version_begins_with_it() -> None:
    """Series of its number from before are of a deleted ModelDeployment of the same name."""
    assert len(times_before(100_000.0)) == 61
    assert times_before(100_000.0, 99_875.0) == [99_880, 99_940, 100_000]
    assert times_before(100_000.0, 100_001.0) == []
