"""From the readings of a step to counts, and from counts to a verdict on each metric. The operator
and the replay of a recording share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from modelrollout.analysis.counters import Cold, Raw
from modelrollout.analysis.judge import judge
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.process_groups import (
    age_of,
    counting_again,
    counts_again,
    fold_all,
    newest_scrape,
)
from modelrollout.analysis.reading import CounterReading, Reading
from modelrollout.analysis.verdict import Part
from modelrollout.api.times import since, stamp
from modelrollout.api.v1alpha1 import (
    Counter,
    Metric,
    MetricStatus,
    ServerCounts,
    StepEvidence,
    StepStatus,
    seconds,
)
from modelrollout.reasons import Reason

BEYOND = Reason.BEYOND_LIMITS
SLICE_FAILED = Reason.SLICE_ACCURACY_LOW


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts of a metric so far in a step; None on both sides before its baseline."""

    canary: Counter | None = None
    stable: Counter | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """What ``judge`` takes: the counts of both sides, or a value, or a problem with the counts from
    before it.
    """

    canary: Counter | None = None
    stable: Counter | None = None
    value: float | None = None
    problem: MeasurementProblem | None = None


def without_stale(
    name: str, reading: Reading, before: Counts | None, began: float, now: float, provider: str
) -> Reading:
    """The reading; a problem instead of a baseline that was scraped before the step ``began`` to
    count (Unix seconds; 0: unknown). It would add requests of the weight before to this step:
    behind a provider that lags, minutes of them.
    """
    if not isinstance(reading, CounterReading) or (before is not None and before.canary is not None):
        return reading
    age = age_of((reading.canary, reading.stable), now)
    if age is None or age <= now - began:
        return reading
    return MeasurementProblem(
        Reason.STALE_DATA,
        f"{name}: the newest that {provider} has was scraped {age:.0f} s ago, and this step began"
        f" {now - began:.0f} s ago: counting begins with a scrape of after that; if the lag is longer than"
        " spec.rollout.analysis.progressDeadline, raise that, or name another provider in"
        " spec.rollout.analysis.prometheus",
    )


def counts_of(
    metrics: Iterable[MetricStatus], sources: Mapping[str, str | None] | None = None
) -> dict[str, Counts]:
    """The counts that a step's status holds, by metric.

    ``sources``: who counts now, by metric (``target.sources_of``). What another source has counted
    is left out, so that the metric gets a new baseline. None: unknown, or it cannot have changed.
    """
    return {m.name: Counts(m.canary, m.stable) for m in metrics if is_counted_by(m, sources)}


def is_counted_by(m: MetricStatus, sources: Mapping[str, str | None] | None) -> bool:
    """Whether the counts come from the source that counts now. An earlier operator, which knew one
    source only, recorded none.
    """
    return m.source is None or sources is None or m.source == sources.get(m.name.partition("/")[0])


def counted_by_servers(metrics: Iterable[MetricStatus], sources: Mapping[str, str | None] | None) -> Counts:
    """What the servers have counted of a step's errors beside the gateway that counts now."""
    beside = (m.servers for m in metrics if m.servers is not None and is_counted_by(m, sources))
    counts = next(beside, ServerCounts())
    return Counts(counts.canary, counts.stable)


def fold_in(
    readings: Mapping[str, Reading],
    counters: Mapping[str, Counts],
    *,
    stable: bool,
    cold: Cold | None = None,
) -> dict[str, Measurement]:
    """Add readings to the counts. The first reading sets the baseline and counts nothing.
    ``stable``: whether there is a stable revision to compare with; ``cold`` as of ``fold_all``.
    """
    measurements: dict[str, Measurement] = {}
    for name, reading in readings.items():
        before = counters.get(name) or Counts()
        if isinstance(reading, MeasurementProblem):
            measurements[name] = Measurement(before.canary, before.stable, problem=reading)
        elif isinstance(reading, CounterReading):
            sides = ((before.canary, reading.canary), *([(before.stable, reading.stable)] if stable else []))
            again = any(counts_again(counted, raw, cold) for counted, raw in sides)
            now = max(newest_scrape(raw) for _, raw in sides) if again else None
            measurements[name] = Measurement(
                _counted(before.canary, reading.canary, cold, now),
                _of_stable(before.stable, reading, cold, now) if stable else None,
            )
        else:
            measurements[name] = Measurement(value=reading)
    return measurements


def _counted(before: Counter | None, raw: Raw, cold: Cold | None, again: float | None) -> Counter:
    """``again``: the time of a new baseline for both sides; None: this is none."""
    if again is not None and before is not None:
        return counting_again(before, raw, again)
    return fold_all(before, raw, cold)


def _of_stable(
    before: Counter | None, reading: CounterReading, cold: Cold | None, again: float | None
) -> Counter:
    counted = _counted(before, reading.stable, cold, again)
    return (
        counted
        if before is not None or reading.usual is None
        else counted.model_copy(update={"spread": list(reading.usual)})
    )


def carried_of(history: Iterable[StepEvidence], step: StepStatus) -> dict[str, list[float]]:
    """Log e-values with which earlier steps ended, by metric, in order.

    An earlier record of the present step (after a pause the operator continues to judge it) does
    not count twice; of two records of one step the later one counts.
    """
    last = {(e.index, e.weight): e for e in history}
    last.pop((step.index, step.weight), None)
    carried: dict[str, list[float]] = {}
    for evidence in last.values():
        for m in evidence.metrics:
            if m.log_evidence is not None:
                carried.setdefault(m.name, []).append(m.log_evidence)
    return carried


def judge_all(
    parts: Sequence[Part],
    measurements: Mapping[str, Measurement],
    before: Iterable[MetricStatus],
    carried: Mapping[str, Sequence[float]],
    weight: int,
    next_weight: int,
    now: datetime,
    *,
    simultaneous: bool = True,
) -> list[MetricStatus]:
    """A verdict on each part. ``before``: the metrics as the step's status has them; weights in
    percent; ``simultaneous`` as of ``judge``.
    """
    known = {m.name: m for m in before}

    def one(part: Part) -> MetricStatus:
        m = measurements[part.name]
        earlier = carried.get(part.name, ())
        judged = judge(
            part.metric,
            m.canary,
            m.stable,
            m.problem,
            m.value,
            weight,
            next_weight,
            part.alpha,
            earlier,
            simultaneous=simultaneous,
        )
        return _as_part(part, judged, known.get(part.name), now)

    return [one(part) for part in parts]


def _as_part(part: Part, judged: MetricStatus, before: MetricStatus | None, now: datetime) -> MetricStatus:
    changes: dict[str, object] = {"dry_run": True} if part.metric.dry_run else {}
    if part.slice is not None:
        changes |= {
            "name": part.name,
            "slice": part.slice,
            "message": f"slice {part.slice} of {judged.message}",
        }
        if judged.verdict == "Failed":
            changes["reason"] = SLICE_FAILED
    return _lasting(part.metric, judged.model_copy(update=changes), before, now)


def _lasting(
    metric: Metric, judged: MetricStatus, before: MetricStatus | None, now: datetime
) -> MetricStatus:
    """Adds since when a problem lasts. A query beyond its limits is inconclusive until that has
    lasted as long as ``for`` says.
    """
    problem_since = before.since if before else None
    if judged.verdict == "Error":
        return judged.model_copy(
            update={
                "since": problem_since
                if before and before.verdict == "Error" and problem_since
                else stamp(now)
            }
        )
    if judged.verdict != "Failed" or metric.query is None or metric.for_ is None:
        return judged
    began = problem_since if before and before.verdict != "Error" and problem_since else stamp(now)
    if since(began, now) >= seconds(metric.for_):
        return judged.model_copy(update={"since": began})
    text = f"{judged.message} for {since(began, now):.0f} s; the metric fails after {metric.for_}"
    return judged.model_copy(
        update={"verdict": "Inconclusive", "reason": BEYOND, "message": text, "since": began}
    )
