"""From one look to the next: baselines, counts, and problems that lose nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest

from modelrollout.analysis.counters import spread_of
from modelrollout.analysis.judge import judge
from modelrollout.analysis.measurement import Counts, Measurement, counts_of, fold_in
from modelrollout.analysis.metrics import DEFAULT_METRICS
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.prometheus.answers import Answer, Series
from modelrollout.analysis.providers.prometheus.provider import read_metrics
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget, ScrapeMatchers
from modelrollout.api.v1alpha1 import Counter, Metric, RevisionRef, Slice
from modelrollout.statistics.dispersion import dispersion

NEW, OLD = RevisionRef(revision="digits-new", number=2), RevisionRef(revision="digits-old", number=1)
TARGET = ScrapedTarget("a", "digits", NEW, OLD, "traefik", promql=frozenset({"max(x)"}), queries="Own")
ERRORS = Metric(name="errors", max_increase=0.005)
LATENCY = Metric(name="latency", objective="50ms", max_increase=0.005)
QUERY = Metric(name="memory", query="max(x)", max=10)


class FakeReader:
    """Answers in turn with what it was given for a word in the query."""

    def __init__(self, **answers: Answer | MeasurementProblem) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.own: list[tuple[str, dict[str, str]]] = []
        self.past: list[tuple[str, Sequence[int]]] = []
        self.before: Callable[[int], Answer] | None = None

    async def query(self, queries: Sequence[str]) -> list[Answer | MeasurementProblem]:
        self.asked += queries
        return [next(a for word, a in self.answers.items() if word in q) for q in queries]

    async def query_own(
        self, namespace: str, queries: Mapping[str, str]
    ) -> dict[str, Answer | MeasurementProblem]:
        self.own.append((namespace, dict(queries)))
        return {key: next(a for word, a in self.answers.items() if word in q) for key, q in queries.items()}

    async def history(self, query: str, times: Sequence[int]) -> dict[int, Answer] | MeasurementProblem:
        self.past.append((query, times))
        return (
            {t: self.before(t) for t in times}
            if self.before
            else MeasurementProblem("ProviderTimeout", "slow")
        )


async def measure(
    reader: FakeReader, target: ScrapedTarget, metrics: Sequence[Metric], counters: Mapping[str, Counts]
) -> dict[str, Measurement]:
    """One look, added to the counts."""
    return fold_in(
        await read_metrics(reader, target, metrics, counters, 1_800_000_000.0),
        counters,
        stable=target.stable is not None,
    )


def requests(
    scraped: float, new: tuple[int, int] | None = None, old: tuple[int, int] | None = None
) -> Answer:
    series = []
    for revision, counts in (("digits-new", new), ("digits-old", old)):
        service = {"service": f"a-{revision}-http-8000@kubernetesgateway", "instance": "g"}
        if counts:
            series += [
                Series({**service, "code": code, "reading": "count"}, n, 0)
                for code, n in zip(("200", "500"), counts, strict=True)
            ]
            series.append(Series({**service, "reading": "scraped"}, scraped, 0))
    return Answer(tuple(series))


async def test_the_first_look_is_the_baseline_and_a_later_service_counts_from_nothing() -> None:
    reader = FakeReader(traefik_service_requests_total=requests(10, old=(5000, 50)))
    first = (await measure(reader, TARGET, [ERRORS], {}))["errors"]
    assert first.canary and first.stable and (first.canary.total, first.stable.total) == (0, 0)
    assert "last_over_time" in reader.asked[0]
    status = judge(ERRORS, first.canary, first.stable, first.problem, first.value, 5, 25, 0.01)
    assert status.reason == "NoData"

    reader.answers["traefik_service_requests_total"] = requests(15, new=(40, 2), old=(5100, 51))
    second = (await measure(reader, TARGET, [ERRORS], counts_of([status])))["errors"]
    assert second.canary and second.stable
    assert (second.canary.total, second.canary.bad) == (42, 2)
    assert (second.stable.total, second.stable.bad) == (101, 1)
    assert "last_over_time" not in reader.asked[1]


def pods(scraped: float, **served: int) -> Answer:
    """Triton's own counters, by revision."""
    series = []
    for revision, good in served.items():
        labels = {"revision": revision.replace("_", "-"), "instance": f"{revision}:8002"}
        series += [
            Series({**labels, "reading": "good"}, good, 0),
            Series({**labels, "reading": "scraped"}, scraped, 0),
        ]
    return Answer(tuple(series))


@pytest.mark.parametrize("stable", [True, False])
async def test_golden_inputs_that_went_to_pods_before_they_were_scraped_are_no_traffic(stable: bool) -> None:
    """Without a gateway the pods count themselves. A thousand good answers would pass the step
    without one request of a client.
    """
    target = replace(TARGET, profile="none", stable=TARGET.stable if stable else None)
    reader = FakeReader(nv_inference=pods(10, digits_old=5000))
    first = (await measure(reader, target, [ERRORS], {}))["errors"]
    assert first.problem and first.problem.reason == "NoData" and first.canary is None
    reader.answers["nv_inference"] = pods(20, digits_old=5100, digits_new=1000)
    second = (await measure(reader, target, [ERRORS], {"errors": Counts(first.canary, first.stable)}))[
        "errors"
    ]
    reader.answers["nv_inference"] = pods(30, digits_old=5200, digits_new=1007)
    third = (await measure(reader, target, [ERRORS], {"errors": Counts(second.canary, second.stable)}))[
        "errors"
    ]
    assert third.canary and third.canary.total == 7
    assert not stable or (third.stable and third.stable.total == 100)


async def test_what_a_server_counts_while_it_warms_up_is_no_traffic() -> None:
    """A pod that is new, or starts again, has counted its warm-up requests before it is scraped."""

    def server(scraped: float, good: float) -> tuple[Series, Series]:
        labels = {"revision": "digits-new", "instance": "second:8002"}
        return Series(labels | {"reading": "good"}, good, 0), Series(
            labels | {"reading": "scraped"}, scraped, 0
        )

    reader = FakeReader(nv_inference=pods(10, digits_old=5000, digits_new=65))
    counts, totals = Counts(), []
    for scraped, first, second in ((10, 65, None), (20, 70, 65), (30, 75, 66), (40, 65, 66), (50, 68, 67)):
        answer = pods(scraped, digits_old=5000, digits_new=first)
        others = () if second is None else server(scraped, second)
        reader.answers["nv_inference"] = Answer((*answer.series, *others))
        seen = await measure(reader, replace(TARGET, profile="none"), [ERRORS], {"errors": counts})
        counts = Counts(seen["errors"].canary, seen["errors"].stable)
        totals.append(counts.canary.total if counts.canary else None)
    assert totals == [0, 5, 11, 11, 15]


async def test_the_same_scrape_again_changes_nothing() -> None:
    reader = FakeReader(traefik_service_requests_total=requests(10, new=(40, 2), old=(100, 1)))
    first = (await measure(reader, TARGET, [ERRORS], {}))["errors"]
    again = (await measure(reader, TARGET, [ERRORS], {"errors": Counts(first.canary, first.stable)}))[
        "errors"
    ]
    assert again.canary is first.canary and again.stable is first.stable


async def test_a_problem_keeps_the_counts_for_when_it_is_over() -> None:
    reader = FakeReader(
        traefik_service_requests_total=requests(10, old=(100, 1)),
        max=MeasurementProblem("ProviderError", "x"),
    )
    before = (await measure(reader, TARGET, [ERRORS], {}))["errors"]
    reader.answers["traefik_service_requests_total"] = MeasurementProblem("ProviderUnreachable", "gone")
    measurements = await measure(reader, TARGET, [ERRORS], {"errors": Counts(before.canary, before.stable)})
    assert measurements["errors"].problem == MeasurementProblem("ProviderUnreachable", "gone")
    assert (measurements["errors"].canary, measurements["errors"].stable) == (before.canary, before.stable)


async def test_a_problem_at_the_first_look_leaves_the_baseline_to_the_next() -> None:
    reader = FakeReader(traefik_service_requests_total=MeasurementProblem("ProviderTimeout", "slow"))
    measurements = (await measure(reader, TARGET, [ERRORS], {}))["errors"]
    assert measurements.canary is None and measurements.problem
    reader.answers["traefik_service_requests_total"] = requests(10, new=(900, 100))
    baseline = (
        await measure(reader, TARGET, [ERRORS], {"errors": Counts(measurements.canary, measurements.stable)})
    )["errors"]
    assert baseline.canary and baseline.canary.total == 0


async def test_the_bounds_are_asked_only_when_the_objective_is_none_of_them() -> None:
    service = {"service": "a-digits-old-http-8000@kubernetesgateway", "instance": "g", "reading": "count"}
    answers = {
        "sum by": Answer((Series({**service, "le": "+Inf"}, 7, 0),)),
        "count by (le)": Answer((Series({"le": "0.1"}, 1, 0), Series({"le": "+Inf"}, 1, 0))),
    }
    reader = FakeReader(**answers)
    measurements = (await measure(reader, TARGET, [LATENCY], {}))["latency"]
    assert (
        measurements.problem
        and measurements.problem.reason == "NotABucketBound"
        and "100ms" in measurements.problem.message
    )
    assert len(reader.asked) == 2
    reader.answers["sum by"] = Answer(
        (Series({**service, "le": "+Inf"}, 7, 0), Series({**service, "le": "0.05"}, 7, 0))
    )
    assert (await measure(reader, TARGET, [LATENCY], {}))["latency"].problem is None
    assert len(reader.asked) == 3


async def test_metrics_are_asked_together_and_fail_apart() -> None:
    reader = FakeReader(
        traefik_service_requests_total=requests(10, old=(1, 0)),
        max=Answer((Series({}, 1, 0), Series({"a": "b"}, 2, 0))),
    )
    measurements = await measure(reader, TARGET, [ERRORS, QUERY], {})
    assert measurements["errors"].problem is None
    assert measurements["memory"].problem and measurements["memory"].problem.reason == "SeveralSeries"
    reader.answers["max"] = Answer((Series({}, 7.5, 0),))
    assert (await measure(reader, TARGET, [QUERY], {}))["memory"].value == 7.5


async def test_own_queries_are_asked_apart_by_a_name_that_is_this_weights_alone() -> None:
    reader = FakeReader(
        traefik_service_requests_total=requests(10),
        y=Answer((Series({}, 3.0, 0),)),
        max=Answer((Series({}, 7.0, 0),)),
    )
    own = Metric(name="own", query="min(y)", max=10)
    measurements = await measure(reader, replace(TARGET, weight=25), [ERRORS, QUERY, own], {})
    assert (measurements["memory"].value, measurements["own"].value) == (7.0, 3.0)
    assert reader.own == [("a", {"digits/digits-new/25/own": 'min(y{namespace="a"})'})]
    assert not any("y" in q.split() or "min(" in q for q in reader.asked) and "max(x)" in reader.asked


async def test_what_cannot_be_asked_is_not_asked() -> None:
    reader = FakeReader()
    metric = QUERY.model_copy(update={"query": "{{oops}}"})
    measurements = await measure(reader, TARGET, [metric], {})
    assert measurements["memory"].problem and measurements["memory"].problem.reason == "UnknownPlaceholder"
    assert reader.asked == []


async def test_without_stable_there_are_no_counts_of_it() -> None:
    alone = ScrapedTarget("a", "digits", TARGET.canary, None, "traefik")
    measurements = (
        await measure(
            FakeReader(traefik_service_requests_total=requests(10, new=(5, 0))), alone, [ERRORS], {}
        )
    )["errors"]
    assert measurements.canary is not None and measurements.stable is None


async def test_a_step_begins_with_what_stable_has_shown_in_the_hour_before() -> None:
    reader = FakeReader(
        traefik_service_requests_total=requests(10, old=(6000, 60)), max=Answer((Series({}, 3.0, 0),))
    )
    start = 1_800_000_000 - 3600
    reader.before = lambda t: requests(t, old=(100 * (t - start) // 60, 6 * ((t - start) // 360)))
    first = (await measure(reader, TARGET, [ERRORS, QUERY], {}))["errors"]
    assert first.stable and first.stable.total == 0, "it is no part of the counts"
    [(query, times)] = reader.past
    assert (times[0], times[-1], len(times)) == (start, 1_800_000_000, 61) and "digits-new" not in query
    spread = spread_of(first.stable)
    assert (spread.all_total, spread.all_bad, spread.differences) == (6060, 60, 59)
    assert dispersion(spread) == pytest.approx(6, rel=0.3), "six fail together, every six minutes"
    await measure(reader, TARGET, [ERRORS], {"errors": Counts(first.canary, first.stable)})
    assert len(reader.past) == 1, "asked once in a step"


async def test_the_default_metrics_share_one_query_now_and_of_the_hour_before() -> None:
    reader = FakeReader(traefik_service_requests_total=requests(10, new=(5, 0), old=(6000, 60)))
    reader.before = lambda t: requests(t, old=(t, 0))
    measurements = await measure(reader, TARGET, DEFAULT_METRICS, {})
    assert set(measurements) == {"errors", "clientErrors", "refusedRequests"} and len(reader.asked) == 1
    assert len(reader.past) == 1
    spreads = [spread_of(m.stable).all_total for m in measurements.values() if m.stable is not None]
    assert len(set(spreads)) == 1 and len(spreads) == 3 and spreads[0] > 0


async def test_a_step_that_an_earlier_operator_began_with_errors_alone_goes_on() -> None:
    """Its counts go on, and the further metrics set their baseline."""
    reader = FakeReader(traefik_service_requests_total=requests(10, new=(100, 1), old=(1000, 9)))
    first = await measure(reader, TARGET, [ERRORS], {})
    counters = {"errors": Counts(first["errors"].canary, first["errors"].stable)}
    reader.answers["traefik_service_requests_total"] = requests(15, new=(200, 1), old=(2000, 9))
    second = await measure(reader, TARGET, DEFAULT_METRICS, counters)
    totals = {name: m.canary.total for name, m in second.items() if m.canary}
    assert totals == {"errors": 100, "clientErrors": 0, "refusedRequests": 0}
    counters = {name: Counts(m.canary, m.stable) for name, m in second.items()}
    reader.answers["traefik_service_requests_total"] = requests(20, new=(300, 1), old=(3000, 9))
    third = await measure(reader, TARGET, DEFAULT_METRICS, counters)
    totals = {name: m.canary.total for name, m in third.items() if m.canary}
    assert totals == {"errors": 200, "clientErrors": 100, "refusedRequests": 100}


async def test_where_it_is_unknown_what_was_usual_the_step_begins_all_the_same() -> None:
    reader = FakeReader(traefik_service_requests_total=requests(10, old=(100, 1)))
    first = (await measure(reader, TARGET, [ERRORS], {}))["errors"]
    assert first.problem is None and first.stable and first.stable.spread == []
    await measure(reader, replace(TARGET, stable=None), [ERRORS], {})
    assert len(reader.past) == 1, "without a stable there is nothing to ask for"


def rows(count: float, scraped: float, servers: int = 2) -> Answer:
    return Answer(
        tuple(
            Series({"reading": r}, v, 0)
            for r, v in (("count", count), ("scraped", scraped), ("servers", servers))
        )
    )


async def test_labels_beyond_the_rows_that_were_answered_are_implausible_and_lose_nothing() -> None:
    metric = Metric(name="accuracy", max_drop=0.1, slices=[Slice(name="night")])
    before = {
        name: Counts(Counter(total=500, bad=400, scraped=9.0), Counter(total=10))
        for name in ("accuracy", "accuracy/night")
    }
    target = replace(TARGET, rows_seconds=600.0, pods=2, matchers=ScrapeMatchers(labels_per_row=1.0))
    reader = FakeReader(modelrollout_feedback_total=Answer(), nv_inference_count=rows(80, 10.0))
    measurements = await measure(reader, target, [metric], before)
    for name, m in measurements.items():
        assert (
            m.problem is not None
            and m.problem.reason == "EvidenceImplausible"
            and m.canary == before[name].canary
        )
    for answer in (
        rows(400, 10.0),
        rows(80, 8.0),
        rows(80, 10.0, servers=1),
        Answer(),
        MeasurementProblem("ProviderTimeout", "slow"),
    ):
        reader.answers["nv_inference_count"] = answer
        assert (await measure(reader, target, [metric], before))["accuracy"].problem is None, answer
    asked = len(reader.asked)
    for other in (replace(target, rows_seconds=0.0), replace(target, matchers=ScrapeMatchers())):
        assert (await measure(reader, other, [metric], before))["accuracy"].problem is None
    assert not any("nv_inference_count" in q for q in reader.asked[asked:])
