"""Forged counts are noticed, and honest traffic never is: a thousand rollouts of every kind of it."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from modelrollout.analysis.plausible import off_weight
from modelrollout.api.v1alpha1 import Counter

Counts = tuple[float, float]  # of canary and stable


def implausible(canary: float, stable: float, weight: int) -> bool:
    found = off_weight(Counter(total=canary), Counter(total=stable), weight)
    return found is not None and found.kind == "EvidenceImplausible"


@pytest.mark.parametrize(
    ("canary", "stable", "weight"),
    [(97, 13, 20), (90, 13, 20), (30, 0, 5), (4000, 4000, 5), (1000, 100, 50)],
)
def test_what_is_far_from_the_weight_is_told(canary: int, stable: int, weight: int) -> None:
    assert implausible(canary, stable, weight)


def test_no_weight_no_requests_and_no_stable_are_no_ground() -> None:
    assert not implausible(1000, 10, 0) and not implausible(10, 1000, 100)
    assert not implausible(0, 100_000, 20) and not implausible(1, 5000, 75), "a canary that crashes has few requests, and must be rolled back"
    assert off_weight(Counter(total=100), None, 5) is None and off_weight(None, None, 5) is None


def by_chance(rng: random.Random, weight: int) -> Iterator[Counts]:
    """Many proxies, each with few requests; a busy minute and a quiet hour. A batch of 32, or a stream, is one request."""
    while True:
        n = rng.choice((rng.randrange(4), rng.randrange(200), 2000))
        canary = sum(rng.random() * 100 < weight for _ in range(n))
        yield canary, n - canary


def in_turns(rng: random.Random, weight: int) -> Iterator[Counts]:
    """Proxies that each deal in turns, the heavier side first, and now and then begin anew, as a change of endpoints makes them."""
    light = min(weight, 100 - weight)
    credits = [0] * rng.choice((1, 2, 5, 30))
    while True:
        found = [0, 0]
        for _ in range(rng.randrange(1, 200)):
            at = rng.randrange(len(credits))
            credits[at] += light
            to_light = credits[at] >= 100
            credits[at] -= 100 * to_light
            found[to_light] += 1
        if rng.random() < 0.1:
            credits = [0] * len(credits)
        heavy, lighter = found
        yield (heavy, lighter) if weight > 50 else (lighter, heavy)


def without_pods(rng: random.Random, weight: int) -> Iterator[Counts]:
    """For a look the canary has no endpoints, which the gateway does not count."""
    for canary, stable in by_chance(rng, weight):
        yield (0 if rng.random() < 0.05 else canary), stable


@pytest.mark.parametrize("traffic", [by_chance, in_turns, without_pods])
def test_honest_rollouts_are_never_accused(traffic: object) -> None:
    """Over 350 rollouts of three steps each, at every look."""
    assert callable(traffic)
    for seed in range(350):
        rng = random.Random(seed)
        for weight in rng.sample((1, 5, 10, 20, 25, 50, 75, 90, 99), 3):
            canary = stable = 0.0
            for _, (more, others) in zip(range(8), traffic(rng, weight), strict=False):
                canary, stable = canary + more, stable + others
                assert not implausible(canary, stable, weight), (seed, weight, canary, stable)
