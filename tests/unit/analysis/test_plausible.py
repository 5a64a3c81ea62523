"""Forged counts are noticed, and honest traffic never is: a thousand rollouts of every kind of
it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest

from modelrollout.analysis.plausibility import more_labels_than_rows, share_off_weight, weight_ignored
from modelrollout.api.v1alpha1 import Counter

Counts = tuple[float, float]  # of canary and stable


def implausible(canary: float, stable: float, weight: int) -> bool:
    problem = share_off_weight(Counter(total=canary), Counter(total=stable), weight)
    return problem is not None and problem.reason == "EvidenceImplausible"


@pytest.mark.parametrize(
    ("canary", "stable", "weight"), [(97, 13, 20), (90, 13, 20), (30, 1, 5), (4000, 4000, 5), (1000, 100, 50)]
)
def test_what_is_far_from_the_weight_is_told(canary: int, stable: int, weight: int) -> None:
    assert implausible(canary, stable, weight)


def test_no_weight_no_requests_and_no_stable_are_no_ground() -> None:
    assert not implausible(1000, 10, 0) and not implausible(10, 1000, 100)
    assert not implausible(0, 100_000, 20) and not implausible(1, 5000, 75), (
        "a canary that crashes has few requests, and must be rolled back"
    )
    assert share_off_weight(Counter(total=100), None, 5) is None and share_off_weight(None, None, 5) is None


def test_a_gateway_that_sends_all_or_nothing_is_told_with_its_counts() -> None:
    def told(canary: float, stable: float, weight: int) -> str:
        counters = [Counter(total=n, began=100.0, scraped=160.0) for n in (canary, stable)]
        problem = weight_ignored(*counters, weight)
        return f"{problem.reason}: {problem.message}" if problem else ""

    assert told(0, 600, 5).startswith(
        "WeightIgnored: 0 of 600 requests (0.0 %) went to the canary at weight 5"
    )
    assert told(600, 0, 5).startswith("WeightIgnored: 600 of 600")
    assert not implausible(600, 0, 5), "no stranger takes stable's counts away"
    assert told(30, 570, 5) == told(300, 300, 50) == ""
    assert told(0, 600, 4) == told(600, 0, 96) == "", "a share that takes too long to tell"
    assert weight_ignored(None, Counter(total=600), 50) is None


def by_chance(rng: random.Random, weight: int) -> Iterator[Counts]:
    """Many proxies, each with few requests; a busy minute and a quiet hour. A batch of 32, or a
    stream, is one request.
    """
    while True:
        n = rng.choice((rng.randrange(4), rng.randrange(200), 2000))
        canary = sum(rng.random() * 100 < weight for _ in range(n))
        yield canary, n - canary


def in_turns(rng: random.Random, weight: int) -> Iterator[Counts]:
    """Proxies that each deal in turns, the heavier side first, and now and then begin anew, as a
    change of endpoints makes them.
    """
    light = min(weight, 100 - weight)
    credits = [0] * rng.choice((1, 2, 5, 30))
    while True:
        actual = [0, 0]
        for _ in range(rng.randrange(1, 200)):
            at = rng.randrange(len(credits))
            credits[at] += light
            to_light = credits[at] >= 100
            credits[at] -= 100 * to_light
            actual[to_light] += 1
        if rng.random() < 0.1:
            credits = [0] * len(credits)
        heavy, lighter = actual
        yield (heavy, lighter) if weight > 50 else (lighter, heavy)


def without_pods(rng: random.Random, weight: int) -> Iterator[Counts]:
    """For a look the canary has no endpoints, which the gateway does not count."""
    for canary, stable in by_chance(rng, weight):
        yield (0 if rng.random() < 0.05 else canary), stable


@pytest.mark.heavy
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


# --- labels


def test_more_labels_than_rows_are_told_once_the_servers_were_scraped_after_them() -> None:
    labels = Counter(total=2000, scraped=100.0)
    problem = more_labels_than_rows(labels, 40, 100.0, 1)
    assert (
        problem is not None
        and problem.reason == "EvidenceImplausible"
        and "feedback.labelsPerRow" in problem.message
    )
    assert more_labels_than_rows(labels, 40, 99.9, 1) is None, "rows that have not been read yet"
    assert more_labels_than_rows(labels, 40, 100.0, 25) is None
    assert (
        more_labels_than_rows(labels, math.nan, 100.0, 1) is None
        and more_labels_than_rows(labels, 40, math.nan, 1) is None
    )
    assert more_labels_than_rows(Counter(total=10, scraped=1.0), 0, 2.0, 1) is None
    assert (
        more_labels_than_rows(None, 0, 2.0, 1) is None
        and more_labels_than_rows(Counter(total=50), 0, 2.0, 1) is None
    )


class Server:
    """Triton's counters of a pod, as of its last scrape, and the largest that Prometheus has seen
    of each run.
    """

    def __init__(self, rng: random.Random) -> None:
        self.every, self.offset = rng.choice((2, 15, 30)), rng.random() * 30
        self.count = self.success = self.resets = 0
        self.seen, self.largest, self.scraped = 0, 0, -1.0

    def scrape(self, now: float) -> None:
        if int((now - self.offset) / self.every) > int((self.scraped - self.offset) / self.every):
            value = self.count + self.success
            self.resets += value < self.seen
            self.seen, self.largest, self.scraped = value, max(self.largest, value), now


@pytest.mark.heavy
def test_honest_labels_are_never_too_many() -> None:
    """Every answer is labelled at once, or some, or late: single rows, batches of 32, streams of a
    hundred rows in one gRPC call, answers from the cache, clients that come past the gateway; a
    server that is restarted, and one that comes later.
    """
    for seed in range(350):
        rng = random.Random(seed)
        servers = [Server(rng) for _ in range(rng.choice((1, 2, 4)))]
        rows, labelled = rng.choice((1, 32, 100)), rng.choice((1.0, 1.0, 0.3))
        cached = rows == 1 and rng.random() < 0.3
        every, waiting, sent, before = rng.choice((2, 15, 30)), 0, 0, None
        for now in range(1, 240):
            for _ in range(rng.randrange(5)):
                at = rng.choice(servers)
                at.success += 1
                at.count += 0 if cached else rows
                waiting += sum(rng.random() < labelled for _ in range(rows))
            arrived = waiting if rng.random() < 0.5 else waiting // 2
            sent, waiting = sent + arrived, waiting - arrived
            if now == 120:
                # after its last words were scraped, as a drain gives time for
                servers[0].count = servers[0].success = 0
            if now == 119:
                servers[0].every = 1
            if now == 150:
                servers.append(Server(rng))
            for server in servers:
                server.scrape(now)
            if before is not None and all(s.scraped >= 0 for s in servers):
                most = sum(s.largest * (1 + s.resets) for s in servers)
                told = more_labels_than_rows(before, most, min(s.scraped for s in servers), 1)
                assert told is None, (seed, now, told)
            if now % every == 0:
                before = Counter(total=sent, scraped=float(now))
