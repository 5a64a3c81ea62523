"""Our queries against a real Prometheus: counter restarts, missed scrapes, no series, several, NaN,
wrong bounds.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import requests

from modelrollout.analysis.judge import judge
from modelrollout.analysis.measurement import Counts, Measurement, counts_of, fold_in
from modelrollout.analysis.metrics import DEFAULT_METRICS
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.prometheus.answers import Answer
from modelrollout.analysis.providers.prometheus.client import PrometheusReader
from modelrollout.analysis.providers.prometheus.confinement import confine
from modelrollout.analysis.providers.prometheus.parse import read_counters
from modelrollout.analysis.providers.prometheus.provider import read_metrics
from modelrollout.analysis.providers.prometheus.queries import build
from modelrollout.analysis.providers.prometheus.sources.base import Query
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget
from modelrollout.analysis.reading import CounterReading
from modelrollout.api.v1alpha1 import Metric, MetricStatus, RevisionRef, Slice
from modelrollout.config import PrometheusConfig
from tests.integration.prometheus import LIMIT_SECONDS, VICTORIA_METRICS, Exporter, new_series_shown, running

ERRORS = Metric(name="errors", max_increase=0.005)
ACCURACY = Metric(name="accuracy", max_drop=0.01)
LATENCY = Metric(name="latency", objective="50ms", max_increase=0.005)
_NUMBERS = itertools.count()


async def measure(
    reader: PrometheusReader, target: ScrapedTarget, metrics: Sequence[Metric], counters: Mapping[str, Counts]
) -> dict[str, Measurement]:
    """One look, added to the counts."""
    return fold_in(
        await read_metrics(reader, target, metrics, counters, time.time()),
        counters,
        stable=target.stable is not None,
    )


class Bench:
    """An exporter, the Prometheus that scrapes it, and a reader of that."""

    def __init__(self, exporter: Exporter, reader: PrometheusReader, target: ScrapedTarget) -> None:
        self.exporter, self.reader, self.target = exporter, reader, target

    async def measure(self, metric: Metric, before: Measurement | None = None) -> Measurement:
        counters = {metric.name: Counts(before.canary, before.stable)} if before else {}
        platform = replace(self.target, promql=frozenset({metric.query} if metric.query else ()))
        return (await measure(self.reader, platform, [metric], counters))[metric.name]

    async def scraped(self) -> None:
        """Until a scrape that began after this call has been stored by both jobs."""
        await new_series_shown()
        now = time.time()
        await self.until(f"count(timestamp(up{{job=~'gateway|again'}}) > {now}) == 2")

    async def until(self, query: str) -> None:
        await _until(self.reader, query)


async def _until(reader: PrometheusReader, query: str) -> None:
    """Until it gives a series."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while True:
            [answer] = await reader.query([query])
            if isinstance(answer, Answer) and answer.series:
                return
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Exporter, str]]:
    """One exporter and one Prometheus for the module."""
    exporter = Exporter()
    # Two jobs scrape the same process, and the target's label `namespace` takes the place of ours,
    # as in an ordinary set-up.
    with (
        exporter.listening() as scraped,
        running(
            tmp_path_factory.mktemp("prometheus"),
            [job("gateway", scraped, "monitoring"), job("again", scraped, "monitoring")],
        ) as url,
    ):
        yield exporter, url


def job(name: str, address: str, namespace: str) -> dict[str, Any]:
    """A scrape of that address, which sets that namespace."""
    targets = [{"targets": [address], "labels": {"namespace": namespace}}]
    return {
        "job_name": name,
        "scrape_interval": "200ms",
        "scrape_timeout": "200ms",
        "static_configs": targets,
    }


@pytest.fixture
async def bench(served: tuple[Exporter, str]) -> AsyncIterator[Bench]:
    """Names of its own for each test, and an exporter that exports nothing yet."""
    exporter, url = served
    exporter.lines.clear()
    reader = PrometheusReader(PrometheusConfig(name="main", url=url))
    name = f"digits{next(_NUMBERS)}"
    target = ScrapedTarget(
        "a",
        name,
        RevisionRef(revision=f"{name}-new", number=2),
        RevisionRef(revision=f"{name}-old", number=1),
        "traefik",
    )
    bench = Bench(exporter, reader, target)
    await bench.until("count(up == 1) == 2")
    yield bench
    await reader.close()


def counts(measurement: Measurement) -> tuple[float, float, float, float]:
    assert measurement.problem is None, measurement.problem
    assert measurement.canary is not None and measurement.stable is not None
    return measurement.canary.total, measurement.canary.bad, measurement.stable.total, measurement.stable.bad


async def test_a_restart_of_the_gateway_and_a_service_that_appears(bench: Bench) -> None:
    old, new = bench.target.stable, bench.target.canary
    assert old is not None
    bench.exporter.requests(old.revision, 10_000, 300)
    await bench.scraped()
    first = await bench.measure(ERRORS)
    assert counts(first) == (0, 0, 0, 0)

    bench.exporter.requests(old.revision, 10_100, 301)
    bench.exporter.requests(new.revision, 20)
    await bench.scraped()
    second = await bench.measure(ERRORS, first)
    assert counts(second) == (20, 0, 101, 1)
    unchanged = await bench.measure(ERRORS, second)
    assert counts(unchanged) == (20, 0, 101, 1)

    bench.exporter.lines.clear()
    bench.exporter.requests(old.revision, 7)  # restarted: no failure yet, so no series for failures
    bench.exporter.requests(new.revision, 3, 1)
    await bench.scraped()
    third = await bench.measure(ERRORS, second)
    assert counts(third) == (24, 1, 108, 1)


async def test_a_gateway_whose_scrape_failed_at_the_baseline_does_not_bring_its_past(bench: Bench) -> None:
    stable = bench.target.stable
    assert stable is not None
    bench.exporter.requests(stable.revision, 50_000, 5000)
    await bench.scraped()
    bench.exporter.broken = True
    await bench.until(f'absent(traefik_service_requests_total{{service=~"a-{stable.revision}.*"}})')
    first = await bench.measure(ERRORS)
    bench.exporter.broken = False
    bench.exporter.requests(stable.revision, 50_010, 5001)
    await bench.scraped()
    assert counts(await bench.measure(ERRORS, first)) == (0, 0, 11, 1)


async def test_a_canary_that_answers_400_to_everyone_has_client_errors_and_no_other(bench: Bench) -> None:
    old, new = bench.target.stable, bench.target.canary
    assert old is not None
    bench.exporter.answers(old.revision, {"200": 9000, "400": 300, "401": 40, "500": 5})
    bench.exporter.answers(old.revision, {"2": 700, "3": 9}, "8001-grpc")
    await bench.scraped()
    first = await measure(bench.reader, bench.target, DEFAULT_METRICS, {})
    assert {name: counts(m) for name, m in first.items()} == dict.fromkeys(first, (0, 0, 0, 0))
    bench.exporter.answers(old.revision, {"200": 9300, "400": 303, "401": 41, "500": 6})
    bench.exporter.answers(old.revision, {"2": 800, "3": 10, "5": 2}, "8001-grpc")
    bench.exporter.answers(new.revision, {"400": 20})
    bench.exporter.answers(new.revision, {"12": 2}, "8001-grpc")
    await bench.scraped()
    before = {name: Counts(m.canary, m.stable) for name, m in first.items()}
    second = await measure(bench.reader, bench.target, DEFAULT_METRICS, before)
    assert {name: counts(m) for name, m in second.items()} == {
        "errors": (22, 0, 408, 1),
        "clientErrors": (22, 22, 408, 4),
        "refusedRequests": (22, 0, 408, 3),
    }
    verdicts = {
        m.name: judge(m, second[m.name].canary, second[m.name].stable, None, None, 5, 25, 0.005).reason
        for m in DEFAULT_METRICS
        if not m.dry_run
    }
    assert verdicts == {"errors": "TooFewSamples", "clientErrors": "ClientErrorsHigh"}


async def test_labels_are_counted_under_a_scrape_that_renames_namespace(bench: Bench) -> None:
    bench.exporter.labels(bench.target.name, 1, 90, 10)
    await bench.scraped()
    first = await bench.measure(ACCURACY)
    bench.exporter.labels(bench.target.name, 1, 180, 20)
    bench.exporter.labels(bench.target.name, 2, 40, 10)
    await bench.scraped()
    assert counts(await bench.measure(ACCURACY, first)) == (50, 10, 100, 10)


async def test_slices_are_counted_apart_and_together(bench: Bench) -> None:
    metric = Metric(name="accuracy", max_drop=0.01, slices=[Slice(name="night"), Slice(name="writer=12")])

    async def seen(before: dict[str, Measurement]) -> dict[str, Measurement]:
        return await measure(
            bench.reader, bench.target, [metric], {n: Counts(m.canary, m.stable) for n, m in before.items()}
        )

    def labels(part: str, version: int, right: int, wrong: int) -> None:
        bench.exporter.labels(bench.target.name, version, right, wrong, part)

    labels("night", 1, 90, 10)
    await bench.scraped()
    first = await seen({})
    labels("night", 1, 180, 20)
    labels("night", 2, 40, 10)
    labels("day", 2, 100, 1)
    labels("writer=12", 2, 5, 5)
    await bench.scraped()
    observation = await seen(first)
    assert counts(observation["accuracy"]) == (161, 16, 100, 10)
    assert counts(observation["accuracy/night"]) == (50, 10, 100, 10)
    assert counts(observation["accuracy/writer=12"]) == (10, 5, 0, 0)


async def test_history_is_what_was_answered_then(bench: Bench) -> None:
    """query_range, with the times of the scrapes as an instant query has them."""
    stable = bench.target.stable
    assert stable is not None
    bench.exporter.requests(stable.revision, 100, 1)
    await bench.scraped()
    now = int(time.time()) + 1
    await bench.until(f"vector(time()) > {now}")
    query = build(ERRORS, bench.target, baseline=False)
    assert isinstance(query, Query)
    series = await bench.reader.history(query.promql, [now - 7200, now - 3600, now])
    assert not isinstance(series, MeasurementProblem), series
    assert list(series) == [now - 7200, now - 3600, now] and series[now - 7200] == Answer(())
    then = read_counters(query, series[now], bench.target)
    assert isinstance(then, CounterReading)
    [sample] = then.stable.processes.values()
    assert (sample.total, sample.bad) == (101, 1) and 0 <= now - sample.scraped < 5
    refused = await bench.reader.history("sum(", [1, 2])
    assert isinstance(refused, MeasurementProblem) and refused.reason == "QueryRejected"


async def test_latency_by_a_bound_and_a_refusal_that_names_the_bounds(bench: Bench) -> None:
    old, new = bench.target.stable, bench.target.canary
    assert old is not None
    nothing = await bench.measure(LATENCY)
    assert nothing.problem and nothing.problem.reason == "NoData", (
        "before anything was scraped there is no baseline"
    )
    bench.exporter.buckets(old.revision, **{"0.025": 70, "0.05": 80, "1": 90, "+Inf": 90})
    await bench.scraped()
    first = await bench.measure(LATENCY)
    bench.exporter.buckets(new.revision, **{"0.025": 80, "0.05": 90, "1": 99, "+Inf": 100})
    await bench.scraped()
    assert counts(await bench.measure(LATENCY, first)) == (100, 10, 0, 0)
    one_second = await bench.measure(LATENCY.model_copy(update={"objective": "1s"}), first)
    assert counts(one_second)[:2] == (100, 1)
    between = await bench.measure(LATENCY.model_copy(update={"objective": "60ms"}), first)
    assert between.problem and between.problem.reason == "NotABucketBound"
    assert "25ms, 50ms, 1s" in between.problem.message


@pytest.mark.parametrize(
    ("promql", "expected"),
    [
        ("max(absent_everywhere)", "NoData"),
        ("scrape_duration_seconds", "SeveralSeries"),
        # VictoriaMetrics leaves NaN out of its answers
        ("vector(0) / vector(0)", "NoData" if VICTORIA_METRICS else "NotANumber"),
        ("1 / vector(0)", "NotANumber"),
        ("up[1m]", "BadAnswer"),
        ("sum(", "QueryRejected"),
        ("count(up) + {{", "QueryRejected"),
    ],
)
async def test_what_is_no_number_is_named(bench: Bench, promql: str, expected: str) -> None:
    metric = Metric(name="custom", query=promql, max=1e9)
    measurements = await bench.measure(metric)
    assert measurements.problem and measurements.problem.reason == expected, measurements
    status = judge(
        metric,
        measurements.canary,
        measurements.stable,
        measurements.problem,
        measurements.value,
        5,
        25,
        0.01,
    )
    assert status.verdict in ("Error", "Inconclusive")


async def test_a_number_is_a_number(bench: Bench) -> None:
    assert (
        await bench.measure(Metric(name="custom", query="count(up{namespace='monitoring'})", max=5))
    ).value == 2
    assert (await bench.measure(Metric(name="custom", query="scalar(vector(3))", max=5))).value == 3


class Tenants:
    """A Prometheus that scrapes pods of two namespaces, and what each of them reads by queries of
    its own.
    """

    def __init__(self, url: str, exporters: Mapping[str, Exporter], reader: PrometheusReader) -> None:
        self.url, self.exporters, self.reader = url, exporters, reader

    def target(self, namespace: str) -> ScrapedTarget:
        return ScrapedTarget(
            namespace, "digits", RevisionRef(revision="digits-new", number=2), None, "none", queries="Own"
        )

    async def read(self, namespace: str, query: str) -> Measurement:
        return (
            await measure(self.reader, self.target(namespace), [Metric(name="own", query=query, max=1e9)], {})
        )["own"]

    async def raw(self, query: str, at: float) -> set[tuple[tuple[tuple[str, str], ...], str]]:
        answer = await asyncio.to_thread(
            requests.get, f"{self.url}/api/v1/query", {"query": query, "time": f"{at:.3f}"}, timeout=10
        )
        assert answer.status_code == 200, answer.text
        return {
            (tuple(sorted(row["metric"].items())), row["value"][1]) for row in answer.json()["data"]["result"]
        }


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Mapping[str, Exporter]]]:
    """Two of each namespace, and the Prometheus that scrapes them."""
    one, other = Exporter(), Exporter()
    for exporter, value in ((one, 2), (other, 40)):
        exporter.lines = {f'memory{{pod="{pod}"}}': value for pod in ("x", "y")}
    with (
        one.listening() as first,
        other.listening() as second,
        running(
            tmp_path_factory.mktemp("tenants"), [job("one", first, "a"), job("other", second, "b")]
        ) as url,
    ):
        yield url, {"a": one, "b": other}


class TestOwnQueries:
    @pytest.fixture
    async def tenants(self, pods: tuple[str, Mapping[str, Exporter]]) -> AsyncIterator[Tenants]:
        url, exporters = pods
        reader = PrometheusReader(PrometheusConfig(name="main", url=url), patience=5.0)
        await _until(reader, "count(max_over_time(memory[10s:1s])) == 4")
        yield Tenants(url, exporters, reader)
        await reader.close()

    @pytest.mark.parametrize(
        ("query", "a", "b"),
        [
            ("sum(memory)", 4, 80),
            ('sum(memory{namespace="{{namespace}}"})', 4, 80),
            ('sum({__name__="memory"})', 4, 80),
            ("-sum(memory) ^ 2 / (3 - 1) % 7", -1, -1),
            ("max(memory) - on () max(memory offset 1ms) or sum(memory)", 0, 0),
            ("count(count_over_time(memory[1m]) > bool 0)", 2, 2),
            ("sum(max_over_time(memory[10s:1s])) > 0", 4, 80),
            ('sum by (namespace) (label_replace(memory, "namespace", "b", "", ""))', 4, 80),
            ('count(count by (pod) (memory{pod=~".+"}))', 2, 2),
            ('sum(memory{namespace="a"} or memory)', 4, None),
            ("1 - absent(memory) or sum(memory) * 0 + 5", 5, 5),
            ("quantile(0.5, memory) + scalar(max(memory))", 4, 80),
            ('sum(memory{pod!=`"} or memory{pod="`})', 4, 80),
            ("1e-3 * sum(memory) < bool Inf", 1, 1),
        ],
    )
    async def test_each_sees_its_own_namespace(
        self, tenants: Tenants, query: str, a: float, b: float | None
    ) -> None:
        assert (await tenants.read("a", query)).value == a
        assert (answer := await tenants.read("b", query)).value == b, answer.problem

    @pytest.mark.parametrize(
        "query",
        [
            'sum(memory{namespace=~".+"})',
            "vector(1)",
            'count({__name__=~".+"})',
            'sum(count_over_time({__name__=~".+"}[600m:1s]))',
            "sum(count_over_time(memory[600m:1s]))",
            'sum(memory{a="`"}) + sum(memory @ 0)',
        ],
    )
    async def test_what_reaches_further_is_not_asked(self, tenants: Tenants, query: str) -> None:
        answer = await tenants.read("a", query)
        assert answer.problem and answer.problem.reason == "QueryNotAllowed", answer

    @pytest.mark.parametrize(
        "query",
        [
            "2 ^ 3 ^ 2 - -memory ^ 2 * 3 % 5",
            "memory * 2 > 1 and memory < 100 or memory unless memory > 3",
            "memory atan2 2 + 1 == bool 1",
            "sum without (pod) (memory) / ignoring (pod) group_right () memory",
            "topk by (job) (1, memory) + on (pod, job) group_left (instance) memory",
            "deriv(memory[5s]) + rate(memory[1m30s] offset 1s)",
            "clamp_min(sort_desc(memory), 1.5e0) - 0x10",
            "timestamp((memory)) > bool 0",
            r'label_replace(memory, "a", "$1\\n\u00e9x", "pod", "(\\w)")',
            "label_replace(memory, 'a', `$1\"x`, 'pod', `(.*)`)",
            "count_values by (job) ('v', memory)",
            "month() + 0 * sum(memory)",
        ],
    )
    async def test_what_is_sent_means_what_was_written(self, tenants: Tenants, query: str) -> None:
        """The text that is written anew, against the given one with a matcher put in by hand."""
        sent, at = confine(query, "b"), time.time()
        assert isinstance(sent, str), sent
        assert await tenants.raw(sent, at) == await tenants.raw(
            query.replace("memory", 'memory{namespace="b"}'), at
        ), sent

    async def test_queries_that_cost_all_that_they_may_hold_up_no_built_in_one(
        self, tenants: Tenants
    ) -> None:
        tenants.exporters["a"].lines |= {f'memory{{pod="p{i}"}}': i for i in range(2000)}
        dear = "sum(sum_over_time(deriv(memory[1m])[24m:1s]))"
        quick = PrometheusReader(PrometheusConfig(name="main", url=tenants.url))
        await _until(quick, "count(memory) > 2000")
        metrics = [Metric(name=f"own-{i}", query=dear, max=1e9) for i in range(16)]
        waits, kinds = [], set()
        try:
            for _ in range(12):
                began = time.monotonic()
                looks = [
                    measure(quick, replace(tenants.target("a"), name=f"digits-{i}"), metrics, {})
                    for i in range(4)
                ]
                answers, *results = await asyncio.gather(quick.query(["count(up)"]), *looks)
                kinds |= {m.problem.reason for look in results for m in look.values() if m.problem}
                waits.append(time.monotonic() - began)
                assert isinstance(answers[0], Answer), answers
                await asyncio.sleep(0.25)
        finally:
            await quick.close()
            tenants.exporters["a"].lines = {k: v for k, v in tenants.exporters["a"].lines.items() if v == 2}
        assert max(waits) < 3, waits
        assert kinds <= {"QueryPending", "QueriesPaused", "ProviderTimeout", "QueryRejected", "NoData"}, kinds


async def test_an_empty_prometheus_is_no_data_and_no_regression(bench: Bench) -> None:
    measurements = await bench.measure(ERRORS)
    again = await measure(bench.reader, bench.target, [ERRORS], counts_of([_judged(measurements)]))
    assert _judged(again["errors"]).reason == "NoData"


def _judged(m: Measurement) -> MetricStatus:
    return judge(ERRORS, m.canary, m.stable, m.problem, m.value, 5, 25, 0.01)


async def test_a_prometheus_that_went_away_is_unreachable_and_keeps_the_counts(bench: Bench) -> None:
    first = await bench.measure(ERRORS)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        gone = PrometheusReader(
            PrometheusConfig(name="gone", url=f"http://127.0.0.1:{closed.getsockname()[1]}")
        )
        measurements = (
            await measure(gone, bench.target, [ERRORS], {"errors": Counts(first.canary, first.stable)})
        )["errors"]
        await gone.close()
    assert (
        isinstance(measurements.problem, MeasurementProblem)
        and measurements.problem.reason == "ProviderUnreachable"
    )
    assert measurements.canary == first.canary
