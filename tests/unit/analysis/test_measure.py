"""From one look to the next: baselines, counts, and problems that lose nothing."""

from __future__ import annotations

from collections.abc import Sequence

from modelrollout.analysis.judge import judge
from modelrollout.analysis.look import Counts, counts_of
from modelrollout.analysis.problem import Answer, Problem, Series
from modelrollout.analysis.providers.measure import measure
from modelrollout.analysis.queries import Target
from modelrollout.api.v1alpha1 import Metric, RevisionRef

TARGET = Target("a", "digits", RevisionRef(revision="digits-new", number=2), RevisionRef(revision="digits-old", number=1), "traefik")
ERRORS = Metric(name="errors", max_increase=0.005)
LATENCY = Metric(name="latency", objective="50ms", max_increase=0.005)
QUERY = Metric(name="memory", query="max(x)", max=10)


class FakeReader:
    """Answers in turn with what it was given for a word in the query."""

    def __init__(self, **answers: Answer | Problem) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def ask(self, queries: Sequence[str]) -> list[Answer | Problem]:
        self.asked += queries
        return [next(a for word, a in self.answers.items() if word in q) for q in queries]


def requests(scraped: float, new: tuple[int, int] | None = None, old: tuple[int, int] | None = None) -> Answer:
    series = []
    for revision, counts in (("digits-new", new), ("digits-old", old)):
        service = {"service": f"a-{revision}-http-8000@kubernetesgateway", "instance": "g"}
        if counts:
            series += [Series({**service, "code": code, "reading": "count"}, n, 0) for code, n in zip(("200", "500"), counts, strict=True)]
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


async def test_the_same_scrape_again_changes_nothing() -> None:
    reader = FakeReader(traefik_service_requests_total=requests(10, new=(40, 2), old=(100, 1)))
    first = (await measure(reader, TARGET, [ERRORS], {}))["errors"]
    again = (await measure(reader, TARGET, [ERRORS], {"errors": Counts(first.canary, first.stable)}))["errors"]
    assert again.canary is first.canary and again.stable is first.stable


async def test_a_problem_keeps_the_counts_for_when_it_is_over() -> None:
    reader = FakeReader(traefik_service_requests_total=requests(10, old=(100, 1)), max=Problem("ProviderError", "x"))
    before = (await measure(reader, TARGET, [ERRORS], {}))["errors"]
    reader.answers["traefik_service_requests_total"] = Problem("ProviderUnreachable", "gone")
    found = await measure(reader, TARGET, [ERRORS], {"errors": Counts(before.canary, before.stable)})
    assert found["errors"].problem == Problem("ProviderUnreachable", "gone")
    assert (found["errors"].canary, found["errors"].stable) == (before.canary, before.stable)


async def test_a_problem_at_the_first_look_leaves_the_baseline_to_the_next() -> None:
    reader = FakeReader(traefik_service_requests_total=Problem("ProviderTimeout", "slow"))
    found = (await measure(reader, TARGET, [ERRORS], {}))["errors"]
    assert found.canary is None and found.problem
    reader.answers["traefik_service_requests_total"] = requests(10, new=(900, 100))
    baseline = (await measure(reader, TARGET, [ERRORS], {"errors": Counts(found.canary, found.stable)}))["errors"]
    assert baseline.canary and baseline.canary.total == 0


async def test_the_bounds_are_asked_only_when_the_objective_is_none_of_them() -> None:
    service = {"service": "a-digits-old-http-8000@kubernetesgateway", "instance": "g", "reading": "count"}
    answers = {
        "sum by": Answer((Series({**service, "le": "+Inf"}, 7, 0),)),
        "count by (le)": Answer((Series({"le": "0.1"}, 1, 0), Series({"le": "+Inf"}, 1, 0))),
    }
    reader = FakeReader(**answers)
    found = (await measure(reader, TARGET, [LATENCY], {}))["latency"]
    assert found.problem and found.problem.kind == "NotABucketBound" and "100ms" in found.problem.message
    assert len(reader.asked) == 2
    reader.answers["sum by"] = Answer((Series({**service, "le": "+Inf"}, 7, 0), Series({**service, "le": "0.05"}, 7, 0)))
    assert (await measure(reader, TARGET, [LATENCY], {}))["latency"].problem is None
    assert len(reader.asked) == 3


async def test_metrics_are_asked_together_and_fail_apart() -> None:
    reader = FakeReader(traefik_service_requests_total=requests(10, old=(1, 0)), max=Answer((Series({}, 1, 0), Series({"a": "b"}, 2, 0))))
    found = await measure(reader, TARGET, [ERRORS, QUERY], {})
    assert found["errors"].problem is None
    assert found["memory"].problem and found["memory"].problem.kind == "SeveralSeries"
    reader.answers["max"] = Answer((Series({}, 7.5, 0),))
    assert (await measure(reader, TARGET, [QUERY], {}))["memory"].value == 7.5


async def test_what_cannot_be_asked_is_not_asked() -> None:
    reader = FakeReader()
    metric = QUERY.model_copy(update={"query": "{{oops}}"})
    found = await measure(reader, TARGET, [metric], {})
    assert found["memory"].problem and found["memory"].problem.kind == "UnknownPlaceholder"
    assert reader.asked == []


async def test_without_stable_there_are_no_counts_of_it() -> None:
    alone = Target("a", "digits", TARGET.canary, None, "traefik")
    found = (await measure(FakeReader(traefik_service_requests_total=requests(10, new=(5, 0))), alone, [ERRORS], {}))["errors"]
    assert found.canary is not None and found.stable is None
