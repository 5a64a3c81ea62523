"""Estimates when the evidence of a metric suffices, at the current rate of samples."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from modelrollout.api.times import since
from modelrollout.api.v1alpha1 import MetricStatus, Rollout, StepStatus, seconds

# Caches, connections and lazily loaded code are warm after some seconds; and two scrapes at the
# usual interval of 15 s lie between, so that no scrape of the cold time is counted.
INITIAL_DELAY_SECONDS = 30.0
_OF_DEADLINE = 0.1  # at most: a short deadline is mostly for counting


class Pace(NamedTuple):
    """One metric: the samples of the canary that are missing, how many come each second, and how
    many seconds that takes.
    """

    metric: str
    needed: int
    per_second: float
    seconds: float

    def describe(self) -> str:
        """A clause for messages."""
        rate = (
            f"{self.per_second:.1f} a second"
            if self.per_second >= 0.1
            else f"{60 * self.per_second:.1f} a minute"
        )
        return (
            f"{self.metric} needs about {self.needed} more samples, {_span(self.seconds)} at the present rate"
            f" of {rate}"
        )


def initial_delay(rollout: Rollout) -> float:
    """Seconds for which nothing is counted after the weight or a side's pods changed."""
    if rollout.analysis.initial_delay is not None:
        return seconds(rollout.analysis.initial_delay)
    return min(INITIAL_DELAY_SECONDS, _OF_DEADLINE * seconds(rollout.progress_deadline))


def counted_seconds(step: StepStatus, rollout: Rollout, now: datetime) -> float:
    """For how long the step has been counting; 0 during initialDelay and while the weight is
    shifting.
    """
    if step.phase == "Shifting":
        return 0.0
    return max(0.0, since(step.observed_since or step.since, now) - delay_seconds(step, rollout))


def delay_seconds(step: StepStatus, rollout: Rollout) -> float:
    """The initial delay of this step. A pause changes no weight, so it has none."""
    return initial_delay(rollout) if step.observed_since or step.phase == "Shifting" else 0.0


def paces(metrics: Iterable[MetricStatus], counted: float) -> list[Pace]:
    """The pace of every deciding metric that waits for samples, slowest first. Without samples so
    far, as if one came now.
    """
    waiting = []
    for m in metrics:
        if m.needed and m.canary is not None and not m.dry_run and m.slice is None and counted > 0:
            rate = max(1.0, m.canary.total) / counted
            waiting.append(Pace(m.name, m.needed, rate, m.needed / rate))
    return sorted(waiting, key=lambda p: -p.seconds)


def _span(value: float) -> str:
    if value < 120:
        return f"{value:.0f} s"
    return (
        f"{value / 60:.0f} min"
        if value < 7200
        else f"{value / 3600:.1f} h"
        if value < 172_800
        else f"{value / 86400:.0f} days"
    )
