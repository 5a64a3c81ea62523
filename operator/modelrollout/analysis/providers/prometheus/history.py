"""How stable's requests failed together in the hour before a step: a step's dispersion starts from
there (``statistics.dispersion``).
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
# squared standard errors from the usual share: clusters of twenty requests hardly exceed it
_OUTAGE = 100.0


def times_before(now: float, since: float = 0.0) -> list[int]:
    """One time a minute of the last hour, Unix seconds; none before ``since``."""
    times = range(int(now) - HISTORY_SECONDS, int(now) + 1, LOOK_SECONDS)
    return [t for t in times if t >= since]


def baseline_spread(
    query: Query, past: Mapping[int, Answer], stable: ScrapedTarget
) -> dict[str, Spread[float]]:
    """The spread of each reading of the metric. ``stable``: a target with stable as its canary;
    ``past``: an answer for each time.
    """
    looks: dict[str, list[Raw]] = {}
    for at in sorted(past):
        for name, reading in read(query, past[at], stable).items():
            if isinstance(reading, CounterReading):
                looks.setdefault(name, []).append(reading.canary)
    return {name: spread(increments(raws)) for name, raws in looks.items()}


def increments(looks: Iterable[Raw]) -> list[tuple[float, float]]:
    """(requests, bad requests) between each two readings. A process that starts or restarts sets
    its baseline and counts nothing: its counts up to then belong to no minute.
    """
    counts: list[tuple[float, float]] = []
    last: dict[str, Sample] = {}
    for raw in looks:
        total = bad = 0.0
        for process, sample in raw.processes.items():
            before = last.get(process, sample)
            last[process] = sample
            more, wrong = sample.total - before.total, sample.bad - before.bad
            if more >= wrong >= 0:
                total, bad = total + more, bad + wrong
        counts.append((total, bad))
    return counts[1:]


def spread(minutes: Sequence[tuple[float, float]]) -> Spread[float]:
    """The spread of all minutes but those of the longest outage. One outage in an hour is not how
    requests usually fail, and with it the rollout would be blind. Several are: pods that fail by
    themselves a few times an hour will do so on the canary too.
    """
    busy = [(n, bad) for n, bad in minutes if n > 0]
    total, wrong = sum(n for n, _ in busy), sum(bad for _, bad in busy)
    centre = (median(bad / n for n, bad in busy) or wrong / total) if busy else 0.0
    begin, end = _longest([(bad / n - centre) ** 2 * n > _OUTAGE * centre * (1 - centre) for n, bad in busy])
    usual = NO_SPREAD
    for n, bad in [*busy[:begin], *busy[end:]]:
        usual = widened(usual, n, bad)
    return usual


def _longest(unusual: Sequence[bool]) -> tuple[int, int]:
    """Begin and end of the longest stretch of unusual minutes."""
    begin = end = start = 0
    for i, flag in enumerate([*unusual, False]):
        if not flag:
            if i - start > end - begin:
                begin, end = start, i
            start = i + 1
    return begin, end
