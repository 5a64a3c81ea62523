"""Latency by Triton's own histogram: what is asked, what counts, and where there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelrollout.analysis.measurement import Counts, counts_of
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.prometheus.answers import Answer, Series
from modelrollout.analysis.providers.prometheus.provider import read_metrics
from modelrollout.analysis.providers.prometheus.queries import build
from modelrollout.analysis.providers.prometheus.sources.base import Query
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget
from modelrollout.analysis.reading import CounterReading, Reading
from modelrollout.analysis.target import sources_of
from modelrollout.api.v1alpha1 import Metric, MetricStatus, RevisionRef
from tests.unit.analysis.test_measure import FakeReader, measure

NEW, OLD = "digits-new", "digits-old"
TARGET = ScrapedTarget(
    "a", "digits", RevisionRef(revision=NEW, number=2), RevisionRef(revision=OLD, number=1), "none"
)
LATENCY = Metric(name="latency", objective="50ms", max_increase=0.01)
FIRST = LATENCY.model_copy(update={"of": "FirstResponse"})
WHOLE = LATENCY.model_copy(update={"of": "WholeAnswer"})


def histogram(scraped: float, bound: str = "49.0", **counts: tuple[int, int]) -> Answer:
    """By revision (fast, all)."""
    series = []
    for revision, (fast, total) in counts.items():
        labels = {"revision": revision.replace("_", "-"), "instance": f"{revision}:8002"}
        series += [
            Series({**labels, "le": le, "reading": "count"}, n, 0)
            for le, n in ((bound, fast), ("+Inf", total))
        ]
        series.append(Series({**labels, "reading": "scraped"}, scraped, 0))
    return Answer(tuple(series))


def asked(metric: Metric, target: ScrapedTarget = TARGET) -> Query:
    query = build(metric, target, baseline=False)
    assert isinstance(query, Query), query
    return query


def test_the_bound_a_millisecond_below_the_objective_is_asked_for() -> None:
    promql = asked(LATENCY).promql
    assert 'nv_inference_first_response_histogram_ms_bucket{revision=~"digits-new|digits-old"' in promql
    assert 'le=~"49\\\\.0|49|\\\\+Inf"' in promql
    assert 'le=~"0\\\\.0|0|\\\\+Inf"' in asked(LATENCY.model_copy(update={"objective": "1ms"})).promql


async def test_what_took_the_objective_or_longer_is_slow_and_a_restart_loses_nothing() -> None:
    reader = FakeReader(histogram=histogram(10, digits_new=(50, 60), digits_old=(900, 1000)))
    first = (await measure(reader, TARGET, [FIRST], {}))["latency"]
    assert first.canary and first.stable and (first.canary.total, first.stable.total) == (0, 0)
    counts = {"latency": Counts(first.canary, first.stable)}
    reader.answers["histogram"] = histogram(20, digits_new=(130, 160), digits_old=(1890, 2000))
    second = (await measure(reader, TARGET, [FIRST], counts))["latency"]
    assert second.canary and (second.canary.total, second.canary.bad) == (100, 20)
    assert second.stable and (second.stable.total, second.stable.bad) == (1000, 10)
    # a restarted server has counted its own warm-up, so its first reading is a baseline
    reader.answers["histogram"] = histogram(30, digits_new=(3, 5), digits_old=(1890, 2000))
    third = (await measure(reader, TARGET, [FIRST], {"latency": Counts(second.canary, second.stable)}))[
        "latency"
    ]
    assert third.canary and (third.canary.total, third.canary.bad) == (100, 20)


async def read(reader: FakeReader, target: ScrapedTarget, metric: Metric = FIRST) -> Reading:
    return (await read_metrics(reader, target, [metric], {}, 1_800_000_000.0))["latency"]


async def test_a_bound_that_one_side_lacks_is_named_with_those_that_both_have() -> None:
    bounds = Answer(tuple(Series({"le": le}, 2, 0) for le in ("-1.0", "0.0", "99", "1999.0", "+Inf")))
    without = Answer((Series({"revision": OLD, "instance": "o", "le": "+Inf", "reading": "count"}, 5, 0),))
    reader = FakeReader(**{"count by (le) (": bounds, "histogram": without})
    problem = await read(reader, TARGET)
    assert isinstance(problem, MeasurementProblem) and problem.reason == "NotABucketBound"
    assert "0.05 s is no bucket bound of Triton's histogram" in problem.message
    assert "its bounds are 1ms, 100ms, 2s: choose one of them" in problem.message
    assert "(docs/reference/gateways.md, Triton's histogram of latencies)" in problem.message
    assert "== 2" in reader.asked[-1] and "revision" in reader.asked[-1], "of all revisions"


@pytest.mark.parametrize("objective", ["12.5ms", "0.5ms"])
def test_parts_of_milliseconds_are_refused_with_the_ways_out(objective: str) -> None:
    problem = build(FIRST.model_copy(update={"objective": objective}), TARGET, baseline=True)
    assert isinstance(problem, MeasurementProblem) and problem.reason == "NotABucketBound"
    assert "latency.objective" in problem.message and "whole milliseconds" in problem.message
    assert "1ms" in problem.message and "spec.traffic.gateway" in problem.message


@pytest.mark.parametrize(
    ("version", "decoupled", "words"),
    [
        ("2.51.0", False, ("Triton 2.51.0", "since 26.01 (2.65) for models that do not stream")),
        ("2.60.0", False, ("Triton 2.60.0", "since 26.01 (2.65)")),
        ("2.51.0", True, ("Triton 2.51.0", "since 24.11 (2.52) for models that stream")),
        (None, False, ("a Triton whose version is unknown", "26.01")),
        ("2.65.0", False, ("Triton 2.65.0", f"modelrollout restart digits --revision {OLD}")),
        ("2.52.0", True, ("Triton 2.52.0", f"modelrollout restart digits --revision {OLD}")),
    ],
)
async def test_servers_without_the_histogram_have_no_source_and_are_named_with_their_version(
    version: str | None, decoupled: bool, words: tuple[str, ...]
) -> None:
    target = replace(TARGET, decoupled=decoupled, triton_versions={OLD: version} if version else {})
    served = Answer((Series({"revision": OLD}, 2, 0),))
    reader = FakeReader(**{"unless on (revision, instance) nv": served, "histogram": histogram(1)})
    problem = await read(reader, target)
    assert isinstance(problem, MeasurementProblem) and problem.reason == "NoSource"
    assert problem.message.startswith(f"latency: the servers of {OLD}")
    assert all(word in problem.message for word in (*words, "spec.traffic.gateway")), problem.message
    if "restart" not in words[1]:
        assert "spec.serving.triton.image" in problem.message


async def test_servers_that_were_not_scraped_yet_are_waited_for() -> None:
    reader = FakeReader(**{"unless on (revision, instance) nv": Answer(()), "histogram": histogram(1)})
    problem = await read(reader, TARGET)
    assert isinstance(problem, MeasurementProblem) and problem.reason == "NoData"
    trouble = MeasurementProblem("ProviderTimeout", "slow")
    reader.answers["unless on (revision, instance) nv"] = trouble
    assert await read(reader, TARGET) == trouble


def test_the_whole_answer_of_a_stream_is_not_what_triton_counts() -> None:
    streams = replace(TARGET, decoupled=True)
    problem = build(WHOLE, streams, baseline=True)
    assert isinstance(problem, MeasurementProblem) and problem.reason == "NoSource"
    assert "latency.of" in problem.message and "FirstResponse" in problem.message
    assert asked(WHOLE).promql == asked(FIRST).promql, "of any other model both are one"
    assert isinstance(build(FIRST, streams, baseline=True), Query)


async def test_the_first_response_is_counted_by_triton_behind_a_gateway_too() -> None:
    behind = replace(TARGET, profile="traefik")
    assert "traefik" in asked(WHOLE, behind).promql and "traefik" in asked(LATENCY, behind).promql
    assert "nv_inference_first_response" in asked(FIRST, behind).promql
    assert sources_of([FIRST, Metric(name="errors", max=0.1)], "traefik") == {
        "latency": "triton",
        "errors": "traefik",
    }


def test_counts_of_the_gateway_and_of_triton_are_never_added_up() -> None:
    [counted] = [MetricStatus(name="latency", verdict="Inconclusive", reason="NoData", source="traefik")]
    assert counts_of([counted], sources_of([WHOLE], "traefik"))
    assert not counts_of([counted], sources_of([FIRST], "traefik"))


async def test_history_is_read_with_the_same_bound() -> None:
    reader = FakeReader(histogram=histogram(10, digits_new=(1, 1), digits_old=(9, 10)))
    reading = await read(reader, TARGET)
    assert isinstance(reading, CounterReading) and reading.stable.processes["digits_old:8002"].bad == 1
