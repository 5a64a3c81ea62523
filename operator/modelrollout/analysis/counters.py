"""From raw counters of processes to counts of one step.

PromQL's ``increase()`` extrapolates and misses the first value of a new series. So the operator
reads raw counters and keeps the baselines itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from modelrollout.api.v1alpha1 import Counter
from modelrollout.statistics.dispersion import Spread, widened


class Cold(NamedTuple):
    """While pods of either side are cold nothing is counted, on both: they stay comparable. Unix
    seconds; ``until`` may be long ago.
    """

    since: float
    until: float


# Two servers that scrape the same process and answer in turns: a value that is a little smaller, a
# moment later, is the other one's. A process that restarts within that time counts from nothing.
STEP_BACK_SECONDS, STEP_BACK_SHARE = 5.0, 0.9
NO_SPREAD = Spread(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters of one process as scraped at ``scraped`` (Unix seconds; 0: unknown). ``primed``:
    the process counts requests of its own when it starts. Raises ValueError for values that no
    counter can have.
    """

    total: float
    bad: float
    scraped: float = 0.0
    primed: bool = False

    def __post_init__(self) -> None:
        if not all(math.isfinite(v) and v >= 0 for v in (self.total, self.bad, self.scraped)):
            raise ValueError(
                f"a counter is {self.total!r} with {self.bad!r} bad: neither may be negative, NaN or infinite"
            )
        if self.bad > self.total:
            raise ValueError(f"{self.bad!r} bad of {self.total!r}: the counters do not belong together")


@dataclass(frozen=True, slots=True)
class Raw:
    """The counters of all processes that served a revision; none where nothing has been counted
    yet.
    """

    processes: Mapping[str, Sample] = field(default_factory=dict)


def fold(previous: Counter | None, raw: Raw) -> Counter:
    """Counts after this reading; ``previous`` itself when it brought nothing new.

    The first reading only sets the baseline. A process that is missing there has started since, and
    counts from 0. A smaller counter is a restart at 0. A process that is primed counts from its
    first reading after a start instead, since what it had counted by then may be its own. A process
    that vanishes keeps its counts, and its last counters, should it return. Every process advances
    by its own scrape time: behind two Prometheus servers an older scrape of one process can arrive
    with a newer one of another, and must not look like a restart. Nor must a step back between the
    two, whose clocks and times of scraping differ a little (``_is_step_back``).
    """
    if previous is None:
        return Counter(
            last={p: _stored(s) for p, s in raw.processes.items()},
            scraped=_newest(raw, None),
            began=_newest(raw, None),
        )
    total, bad, last, advanced = previous.total, previous.bad, dict(previous.last), False
    for process, sample in raw.processes.items():
        before_total, before_bad, scraped = last.get(process, [0.0, 0.0, -1.0])
        if sample.scraped <= scraped or _is_step_back(sample, before_total, scraped):
            continue
        if (
            process not in last
            or sample.total < before_total
            or sample.bad < before_bad
            or sample.total - sample.bad < before_total - before_bad
        ):
            before_total, before_bad = (sample.total, sample.bad) if sample.primed else (0.0, 0.0)
        total += sample.total - before_total
        bad += sample.bad - before_bad
        last[process] = _stored(sample)
        advanced = True
    if not advanced:
        return previous
    spread = widened(spread_of(previous), total - previous.total, bad - previous.bad)
    return Counter(
        total=total,
        bad=bad,
        last=last,
        scraped=_newest(raw, previous.scraped),
        began=previous.began,
        spread=list(spread),
    )


def _is_step_back(sample: Sample, before: float, scraped: float) -> bool:
    return STEP_BACK_SHARE * before <= sample.total < before and sample.scraped - scraped < STEP_BACK_SECONDS


def spread_of(counter: Counter) -> Spread[float]:
    """The spread that the counter holds, also in the form of an earlier operator; none before the
    first reading with requests.
    """
    match counter.spread:
        case [total, bad, differences, squares]:
            return Spread(total, bad, differences, squares, counter.total, counter.bad)
        case [_, _, _, _, _, _]:
            return Spread(*counter.spread)
    return NO_SPREAD


def _stored(sample: Sample) -> list[float]:
    return [sample.total, sample.bad, sample.scraped]


def _newest(raw: Raw, known: float | None) -> float | None:
    times = [s.scraped for s in raw.processes.values() if s.scraped > 0]
    return max([*times, known] if known is not None else times, default=None)
