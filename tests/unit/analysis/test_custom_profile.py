"""A profile of the platform's own: what is checked when the configuration is read, and what is
asked then.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from modelrollout.analysis.counters import Sample, fold
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.prometheus.answers import Answer, Series
from modelrollout.analysis.providers.prometheus.parse import read_counters
from modelrollout.analysis.providers.prometheus.queries import build
from modelrollout.analysis.providers.prometheus.sources.base import Query
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget, ScrapeMatchers
from modelrollout.analysis.providers.registry import check_config
from modelrollout.analysis.reading import CounterReading
from modelrollout.api.v1alpha1 import Metric, RevisionRef
from modelrollout.config import ConfigError, OperatorConfig
from tests.unit.test_docs import ROOT

PAGE = (ROOT / "docs/reference/gateways.md").read_text()
ON_THE_PAGE: dict[str, str] = yaml.safe_load(
    PAGE.partition("## A profile of one's own")[2].partition("```yaml\n")[2].partition("```")[0]
)["gatewayMetrics"]["custom"]
ERRORS = Metric(name="errors", max_increase=0.005)
LATENCY = Metric(name="latency", objective="50ms", max_increase=0.005)


def config(profile: str = "custom", **custom: Any) -> OperatorConfig:
    queries = {k: v for k, v in (ON_THE_PAGE | custom).items() if v is not None}
    return OperatorConfig.model_validate(
        {
            "stores": [{"name": "s", "uri": "s3://models/"}],
            "artifacts": {"name": "a", "uri": "s3://artifacts/"},
            "images": {"optimizer": "o", "triton": "t"},
            "gatewayMetrics": {"profile": profile, "custom": queries},
        }
    )


def target(checked: OperatorConfig) -> ScrapedTarget:
    return ScrapedTarget(
        "ml",
        "digits",
        RevisionRef(revision="digits-new", number=3),
        RevisionRef(revision="digits-old", number=2),
        "custom",
        matchers=ScrapeMatchers.of(checked),
    )


def test_the_queries_of_the_page_are_accepted_and_asked_for_each_side() -> None:
    checked = config()
    check_config(checked)
    for metric, part in ((ERRORS, 'code=~"5.."'), (LATENCY, 'le="0.05"')):
        query = build(metric, target(checked), baseline=False)
        assert isinstance(query, Query) and part in query.promql
        assert 'backend="digits-new"' in query.promql and 'backend="digits-old"' in query.promql
        assert "{{" not in query.promql and "last_over_time" not in query.promql
        at_first = build(metric, target(checked), baseline=True)
        assert isinstance(at_first, Query) and "last_over_time" in at_first.promql


@pytest.mark.parametrize(
    ("field", "query", "fact"),
    [
        ("requests", 'sum(x{r="{{revision}}"', "no PromQL that can be read"),
        ("errors", 'x{r="{{revison}}"}', "{{revison}} means nothing here; known are {{revision}}"),
        ("clientErrors", 'x{r="{{stable}}"}', "{{stable}} means nothing here"),
        ("requests", 'x{r="{{revision}}"}[5m]', "no instant vector"),
        ("refusedRequests", '("{{revision}}")', "no instant vector"),
        ("errors", 'x{namespace="{{namespace}}"}', "both revisions have the same counts"),
        ("slow", 'x{r="{{revision}}",le="0.1"}', "without {{objective}}"),
        ("errors", 'x{r="{{revision}}",le="{{objective}}"}', "{{objective}} means nothing here"),
        ("requests", 'x{r="{{revision}}"}' + " + 1" * 300, "operators and brackets"),
    ],
)
def test_each_fault_is_named_with_its_field_when_the_configuration_is_read(
    field: str, query: str, fact: str
) -> None:
    with pytest.raises(ConfigError) as told:
        check_config(config(**{field: query}))
    assert str(told.value).startswith(f"gatewayMetrics.custom.{field}: ") and fact in str(told.value)


def test_queries_and_profile_belong_together() -> None:
    for profile in ("auto", "traefik"):
        with pytest.raises(ValidationError, match="set profile: custom, or leave them out"):
            config(profile)
    with pytest.raises(ValidationError, match=r"its queries are missing; give custom\.requests"):
        OperatorConfig.model_validate(config().model_dump() | {"gateway_metrics": {"profile": "custom"}})
    with pytest.raises(ValidationError, match="clientErrors"):
        config(clientErrors=None)


def test_what_has_no_query_has_no_source() -> None:
    problem = build(LATENCY, target(config(slow=None)), baseline=False)
    assert isinstance(problem, MeasurementProblem) and problem.reason == "NoSource"
    assert "custom.slow" in problem.message
    unknown = build(
        ERRORS, ScrapedTarget("ml", "digits", target(config()).canary, None, "custom"), baseline=False
    )
    assert isinstance(unknown, MeasurementProblem) and unknown.reason == "NoSource"


def answer(
    *parts: tuple[str, str, str, float], metric: Metric = ERRORS
) -> CounterReading | MeasurementProblem:
    checked = target(config())
    query = build(metric, checked, baseline=False)
    assert isinstance(query, Query)
    series = (
        Series({"backend": side, "instance": process, "reading": reading}, value, 0.0)
        for side, process, reading, value in parts
    )
    return read_counters(query, Answer(tuple(series)), checked)


def test_processes_are_counted_apart_and_a_missing_query_counts_0() -> None:
    reading = answer(
        ("canary", "a", "all", 30),
        ("canary", "a", "bad", 2),
        ("canary", "a", "scraped", 9),
        ("canary", "b", "all", 5),
        ("canary", "b", "scraped", 9),
        ("stable", "a", "all", 100),
        ("stable", "a", "scraped", 9),
    )
    assert isinstance(reading, CounterReading)
    assert reading.canary.processes == {"a": Sample(30, 2, 9), "b": Sample(5, 0, 9)}
    assert reading.stable.processes == {"a": Sample(100, 0, 9)}


@pytest.mark.parametrize("bad", [31.0, math.nan, -1.0])
def test_queries_that_do_not_belong_together_are_told_at_the_first_look(bad: float) -> None:
    problem = answer(("canary", "a", "all", 30), ("canary", "a", "bad", bad))
    assert isinstance(problem, MeasurementProblem) and problem.reason == "EvidenceImplausible"


def test_an_objective_that_the_histogram_lacks_is_not_taken_for_fast_requests() -> None:
    counted = [("canary", "a", "all", 30.0), ("canary", "a", "scraped", 9.0)]
    problem = answer(*counted, metric=LATENCY)
    assert isinstance(problem, MeasurementProblem) and problem.reason == "NotABucketBound"
    reading = answer(*counted, ("canary", "a", "bad", 0.0), metric=LATENCY)
    assert isinstance(reading, CounterReading) and reading.canary.processes["a"] == Sample(30, 0, 9)


def test_a_sum_of_processes_that_drops_is_no_restart_of_all() -> None:
    """As a recording rule leaves it that sums up ``instance``: one of the processes restarted."""
    asked = build(ERRORS, target(config()), baseline=False)
    assert isinstance(asked, Query)

    def look(total: float, at: float) -> CounterReading:
        series = [("all", total), ("bad", 0.0), ("scraped", at)]
        answer = Answer(tuple(Series({"backend": "canary", "reading": r}, v, 0.0) for r, v in series))
        reading = read_counters(asked, answer, target(config()))
        assert isinstance(reading, CounterReading)
        return reading

    counter = fold(None, look(100_000, 100).canary)
    counter = fold(counter, look(60_000, 160).canary)
    assert counter.total == 0, "it counted 60,000 requests that were there before"
    assert fold(counter, look(60_500, 220).canary).total == 500


def test_the_time_of_an_answer_is_asked_for_in_a_way_that_all_servers_understand() -> None:
    """VictoriaMetrics gives timestamp() of a sum another meaning: nothing was ever counted."""
    asked = build(ERRORS, target(config()), baseline=True)
    assert isinstance(asked, Query)
    assert "timestamp(" not in asked.promql and asked.promql.count("+ time()") == 2
