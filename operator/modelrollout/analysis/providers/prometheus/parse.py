"""From an answer of Prometheus to raw counters of each side, or to one number."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from modelrollout.analysis.counters import Raw, Sample
from modelrollout.analysis.plausibility import impossible_counts
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.prometheus.answers import Answer, Series
from modelrollout.analysis.providers.prometheus.promql import READING
from modelrollout.analysis.providers.prometheus.sources.base import EvidenceSource, NoBoundError, Query
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget
from modelrollout.analysis.reading import CounterReading, Reading, Side
from modelrollout.reasons import Reason

_SHOWN = 300  # characters of a user's query or labels in a message, which is stored in status


def read(query: Query, answer: Answer | MeasurementProblem, target: ScrapedTarget) -> dict[str, Reading]:
    """The readings of a metric: its own, and with slices one of each as ``METRIC/SLICE``. A problem
    of one is a problem of all.
    """
    if isinstance(answer, MeasurementProblem):
        whole: Reading = answer
    elif query.source is None:
        whole = read_value(query, answer)
    else:
        whole = read_counters(query, answer, target)
    readings = {query.metric: whole}
    for part in query.slices:
        if isinstance(answer, Answer) and not isinstance(whole, MeasurementProblem):
            # A process without a label of this slice counts 0 of it: its scrape stands for that.
            of_part = tuple(
                s
                for s in answer.series
                if s.labels.get(READING) == "scraped" or s.labels.get("slice") == part
            )
            readings[f"{query.metric}/{part}"] = read_counters(query, Answer(of_part), target)
        else:
            readings[f"{query.metric}/{part}"] = whole
    return readings


def read_counters(query: Query, answer: Answer, target: ScrapedTarget) -> CounterReading | MeasurementProblem:
    """Raw counters by side and process. Problem ``EvidenceImplausible`` for values that no counter
    can have, ``NotABucketBound`` (bounds not named yet).
    """
    source = query.source
    assert source is not None
    sides = source.sides(target)
    by_side: dict[Side, dict[str, list[Series]]] = {"canary": defaultdict(list), "stable": defaultdict(list)}
    for series in answer.series:
        side, part = sides.get(series.labels.get(source.side_label, ""), (None, ""))
        if side is not None:
            by_side[side][_process(series, part)].append(series)
    try:
        raw = {
            side: Raw({p: _sample_of(p, source, query, series) for p, series in processes.items()})
            for side, processes in by_side.items()
        }
    except NoBoundError:
        return MeasurementProblem(
            Reason.NOT_A_BUCKET_BOUND, f"{query.objective:g} s is no bucket bound of {query.histogram}"
        )
    except ValueError as e:
        return impossible_counts(f"{query.metric}: {e}")
    return CounterReading(raw["canary"], raw["stable"])


def read_value(query: Query, answer: Answer) -> float | MeasurementProblem:
    """The one number of a custom query."""
    if not answer.series:
        return MeasurementProblem(
            Reason.NO_DATA, f"the query of {query.metric} found nothing: {query.promql[:_SHOWN]}"
        )
    if len(answer.series) > 1:
        shown = ", ".join(str(dict(s.labels)) for s in answer.series[:3])[:_SHOWN]
        return MeasurementProblem(
            Reason.SEVERAL_SERIES,
            f"the query of {query.metric} gives {len(answer.series)} series ({shown}): aggregate it to one,"
            " e.g. with sum or max",
        )
    value = answer.series[0].value
    if not math.isfinite(value):
        return MeasurementProblem(
            Reason.NOT_A_NUMBER,
            f"the query of {query.metric} gives {value}: often a division by 0; guard the divisor with  > 0",
        )
    return value


def _process(series: Series, part: str) -> str:
    instance = series.labels.get("instance", "")
    return f"{instance}/{part}" if part else instance


def _sample_of(process: str, source: EvidenceSource, query: Query, series: Sequence[Series]) -> Sample:
    """Without ``instance``, as a recording rule may leave it, the counters are a sum of processes:
    when it is smaller, one of them has restarted, and the others have not counted all that again.
    """
    sample = _sample(source, query, series)
    return sample if process.partition("/")[0] else replace(sample, primed=True)


def _sample(source: EvidenceSource, query: Query, series: Sequence[Series]) -> Sample:
    scraped = max((s.value for s in series if s.labels.get(READING) == "scraped"), default=0.0)
    counts = [s for s in series if s.labels.get(READING) != "scraped"]
    for s in counts:
        if not (math.isfinite(s.value) and s.value >= 0):
            raise ValueError(f"the counter {str(dict(s.labels))[:_SHOWN]} is {s.value}")
    return source.sample(query, counts, scraped)
