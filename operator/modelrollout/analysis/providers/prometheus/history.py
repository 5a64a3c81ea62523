"""How stable's requests fail together, as the hour before a step has shown it: the looks from which
a step's dispersion starts (dispersion.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from modelrollout.analysis.counters import NO_SPREAD, Raw, Sample
from modelrollout.analysis.providers.prometheus.answers import Answer
from modelrollout.analysis.providers.prometheus.parse import read
from modelrollout.analysis.providers.prometheus.sources.base import Query
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget
from modelrollout.analysis.reading import CounterReading
from modelrollout.statistics.dispersion import Spread, widened

HISTORY_SECONDS, LOOK_SECONDS = 3600, 60
# squared standard errors of independent requests from the usual share: clusters of twenty come as
# far as that, hardly more
_OUTAGE = 100.0


def times_before(now: float) -> list[int]:
    """The times of the looks, Unix seconds, the last of them now."""
    return list(range(int(now) - HISTORY_SECONDS, int(now) + 1, LOOK_SECONDS))


def baseline_spread(
    query: Query, past: Mapping[int, Answer], stable: ScrapedTarget
) -> dict[str, Spread[float]]:
    """The spread of each reading of the metric. ``stable`` is a target whose canary it is; ``past``
    has an answer for each time.
    """
    looks: dict[str, list[Raw]] = {}
    for at in sorted(past):
        for name, reading in read(query, past[at], stable).items():
            if isinstance(reading, CounterReading):
                looks.setdefault(name, []).append(reading.canary)
    return {name: spread(counted(raws)) for name, raws in looks.items()}


def counted(looks: Iterable[Raw]) -> list[tuple[float, float]]:
    """(requests, bad ones) between each two looks, of processes that both have. One that restarts
    or is new sets its baseline and counts nothing: what it counted before it was first seen belongs
    to no minute.
    """
    found: list[tuple[float, float]] = []
    last: dict[str, Sample] = {}
    for raw in looks:
        total = bad = 0.0
        for process, sample in raw.processes.items():
            before = last.get(process, sample)
            last[process] = sample
            more, wrong = sample.total - before.total, sample.bad - before.bad
            if more >= wrong >= 0:
                total, bad = total + more, bad + wrong
        found.append((total, bad))
    return found[1:]


def spread(minutes: Sequence[tuple[float, float]]) -> Spread[float]:
    """Of all minutes but those of an outage, which is no way in which requests usually fail: with
    it the rollout would see nothing any more.
    """
    busy = [(n, bad) for n, bad in minutes if n > 0]
    total, wrong = sum(n for n, _ in busy), sum(bad for _, bad in busy)
    centre = (median(bad / n for n, bad in busy) or wrong / total) if busy else 0.0
    found = NO_SPREAD
    for n, bad in busy:
        if (bad / n - centre) ** 2 * n <= _OUTAGE * centre * (1 - centre):
            found = widened(found, n, bad)
    return found
