"""From a provider's answer to raw counters of each side, or to one number."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from modelrollout.analysis.counters import Raw, Sample
from modelrollout.analysis.plausibility import impossible_counts
from modelrollout.analysis.problem import Answer, MeasurementProblem, Series
from modelrollout.analysis.providers.prometheus.promql import READING, Query, Target, service_labels
from modelrollout.statistics.dispersion import Spread

Side = Literal["canary", "stable"]

# gRPC statuses that are the server's fault: DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNIMPLEMENTED,
# INTERNAL, UNAVAILABLE, DATA_LOSS. UNKNOWN (2) is left out. Traefik 3.6 looks for the status in the
# headers only: a success, whose status comes in the trailers, is counted as 2, and so is a refused
# connection. Errors of Triton come without a message, hence in the headers, and are counted right
# (docs/reasons-analysis.md, Blind spots).
GRPC_BAD = frozenset({"4", "8", "12", "13", "14", "15"})
_SHOWN = 300  # characters of a user's query or labels in a message: it lives in status


@dataclass(frozen=True, slots=True)
class CounterReading:
    """The raw counters of both sides at one moment; a side without series has an empty one.
    ``usual``: how stable's bad share has varied before that, as far as it is known; of a look that
    sets a baseline.
    """

    canary: Raw
    stable: Raw
    usual: Spread[float] | None = None


class _NoBoundError(Exception):
    """A process counts requests, but has no bucket at the objective."""


def read(
    query: Query, answer: Answer | MeasurementProblem, target: Target
) -> dict[str, CounterReading | float | MeasurementProblem]:
    """The readings of a metric: its own, and with slices one of each as ``METRIC/SLICE``. A problem
    is a problem of all.
    """
    if isinstance(answer, MeasurementProblem):
        whole: CounterReading | float | MeasurementProblem = answer
    elif query.shape == "value":
        whole = read_value(query, answer)
    else:
        whole = read_counters(query, answer, target)
    found = {query.metric: whole}
    for part in query.slices:
        if isinstance(answer, Answer) and not isinstance(whole, MeasurementProblem):
            # A process without a label of this slice counts 0 of it: its scrape stands for that.
            of_part = tuple(
                s
                for s in answer.series
                if s.labels.get(READING) == "scraped" or s.labels.get("slice") == part
            )
            found[f"{query.metric}/{part}"] = read_counters(query, Answer(of_part), target)
        else:
            found[f"{query.metric}/{part}"] = whole
    return found


def read_counters(query: Query, answer: Answer, target: Target) -> CounterReading | MeasurementProblem:
    """Raw counters by side and process. Problem ``EvidenceImplausible`` for what no counter can be,
    ``NotABucketBound`` (bounds not named yet).
    """
    sides = _sides(query, target)
    found: dict[Side, dict[str, list[Series]]] = {"canary": defaultdict(list), "stable": defaultdict(list)}
    for series in answer.series:
        side, process = sides.get(series.labels.get(_side_label(query), ""), (None, ""))
        if side is not None:
            found[side][_process(series, process)].append(series)
    try:
        look = {
            side: Raw({p: _sample(query, series) for p, series in processes.items()})
            for side, processes in found.items()
        }
    except _NoBoundError:
        return MeasurementProblem(
            "NotABucketBound", f"{query.objective:g} s is no bucket bound of the gateway's histogram"
        )
    except ValueError as e:
        return impossible_counts(f"{query.metric}: {e}")
    return CounterReading(look["canary"], look["stable"])


def read_value(query: Query, answer: Answer) -> float | MeasurementProblem:
    """The one number of a custom query."""
    if not answer.series:
        return MeasurementProblem(
            "NoData", f"the query of {query.metric} found nothing: {query.promql[:_SHOWN]}"
        )
    if len(answer.series) > 1:
        shown = ", ".join(str(dict(s.labels)) for s in answer.series[:3])[:_SHOWN]
        return MeasurementProblem(
            "SeveralSeries",
            f"the query of {query.metric} gives {len(answer.series)} series ({shown}): aggregate it to one,"
            " e.g. with sum or max",
        )
    value = answer.series[0].value
    if not math.isfinite(value):
        return MeasurementProblem(
            "NotANumber",
            f"the query of {query.metric} gives {value}: often a division by 0; guard the divisor with  > 0",
        )
    return value


def name_bounds(problem: MeasurementProblem, bounds: Answer) -> MeasurementProblem:
    """The problem with the bounds that exist."""
    known = sorted({b for s in bounds.series if math.isfinite(b := _number(s.labels.get("le", "")))})
    named = ", ".join(f"{b * 1000:g}ms" if b < 1 else f"{b:g}s" for b in known) or "none"
    return MeasurementProblem(
        problem.reason,
        f"{problem.message}; its bounds are {named}: choose one of them, or configure the gateway's buckets",
    )


def _side_label(query: Query) -> str:
    return {
        "codes": "service",
        "buckets": "service",
        "outcomes": "revision",
        "labels": "version",
        "pairs": "canary",
    }[query.shape]


def _sides(query: Query, target: Target) -> dict[str, tuple[Side, str]]:
    """Value of the side's label to the side and what tells its counters apart within one process.

    HTTP and gRPC are counters of their own: the gateway may drop and create one of them while the
    other goes on.
    """
    sides: dict[str, tuple[Side, str]] = {}
    revisions: list[tuple[Side, str, int]] = [("canary", target.canary.revision, target.canary.number)]
    if target.stable:
        revisions.append(("stable", target.stable.revision, target.stable.number))
    for side, revision, number in revisions:
        if query.shape in ("codes", "buckets"):
            sides |= {
                label: (side, protocol)
                for label, protocol in service_labels(target.namespace, revision).items()
            }
        else:
            sides[revision if query.shape == "outcomes" else str(number)] = (side, "")
    return sides


def _process(series: Series, part: str) -> str:
    instance = series.labels.get("instance", "")
    return f"{instance}/{part}" if part else instance


def _sample(query: Query, series: list[Series]) -> Sample:
    scraped = max((s.value for s in series if s.labels.get(READING) == "scraped"), default=0.0)
    counts = [s for s in series if s.labels.get(READING) != "scraped"]
    for s in counts:
        if not (math.isfinite(s.value) and s.value >= 0):
            raise ValueError(f"the counter {str(dict(s.labels))[:_SHOWN]} is {s.value}")
    if query.shape == "buckets":
        return _buckets(query, counts, scraped)
    bad = sum(s.value for s in counts if _is_bad(query, s))
    return Sample(sum(s.value for s in counts), bad, scraped)


def _buckets(query: Query, counts: list[Series], scraped: float) -> Sample:
    total = sum(s.value for s in counts if s.labels.get("le") == "+Inf")
    fast = [s.value for s in counts if _number(s.labels.get("le", "")) == query.objective]
    if total and not fast:
        raise _NoBoundError
    return Sample(total, total - sum(fast), scraped)


def _is_bad(query: Query, series: Series) -> bool:
    if query.shape == "codes":
        code = series.labels.get("code", "")
        grpc = series.labels.get("service", "").endswith("-grpc@kubernetesgateway")
        return code in GRPC_BAD if grpc else code.startswith("5")
    if query.shape == "pairs":
        return series.labels.get("result") != "agree"
    return (
        series.labels.get(READING) == "bad"
        if query.shape == "outcomes"
        else series.labels.get("result") == "wrong"
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
