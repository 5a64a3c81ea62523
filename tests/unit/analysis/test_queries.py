"""What is asked, and how answers become raw counters."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from modelrollout.analysis.counters import Raw, Sample
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.prometheus.answers import Answer, Series
from modelrollout.analysis.providers.prometheus.custom_queries import (
    PLACEHOLDERS,
    own_query_problem,
    unknown_placeholders,
)
from modelrollout.analysis.providers.prometheus.parse import read_counters, read_value
from modelrollout.analysis.providers.prometheus.queries import build
from modelrollout.analysis.providers.prometheus.sources.base import Query
from modelrollout.analysis.providers.prometheus.sources.comparer import agreement_query
from modelrollout.analysis.providers.prometheus.sources.gateway import name_bounds
from modelrollout.analysis.providers.prometheus.sources.traefik import (
    bounds_query,
    metric_of,
    service_labels,
)
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget, ScrapeMatchers
from modelrollout.analysis.reading import CounterReading
from modelrollout.api.v1alpha1 import ANSWER_METRICS, Metric, RevisionRef

TARGET = ScrapedTarget(
    "team-a",
    "digits",
    RevisionRef(revision="digits-new", number=3),
    RevisionRef(revision="digits-old", number=2),
    "traefik",
    42.4,
)
WITHOUT_GATEWAY = ScrapedTarget(TARGET.namespace, TARGET.name, TARGET.canary, TARGET.stable, "none")
FIRST = ScrapedTarget(TARGET.namespace, TARGET.name, TARGET.canary, None, "traefik")
ERRORS = Metric(name="errors", max_increase=0.005)
LATENCY = Metric(name="latency", objective="50ms", max_increase=0.005)
ACCURACY = Metric(name="accuracy", max_drop=0.01)
CLIENT_ERRORS = Metric(name="clientErrors", max_increase=0.02)
REFUSED = Metric(name="refusedRequests", max_increase=0.02)


def query(metric: Metric, target: ScrapedTarget = TARGET, *, baseline: bool = False) -> Query:
    built = build(metric, target, baseline=baseline)
    assert isinstance(built, Query), built
    return built


def look(
    metric: Metric, *series: tuple[Mapping[str, str], float], target: ScrapedTarget = TARGET
) -> CounterReading:
    reading = read_counters(
        query(metric, target), Answer(tuple(Series(labels, value, 0.0) for labels, value in series)), target
    )
    assert isinstance(reading, CounterReading), reading
    return reading


def http(revision: str, **labels: str) -> dict[str, str]:
    return {
        "service": f"team-a-{revision}-http-8000@kubernetesgateway",
        "instance": "g1",
        "reading": "count",
        **labels,
    }


def grpc(revision: str, **labels: str) -> dict[str, str]:
    return {
        "service": f"team-a-{revision}-8001-grpc@kubernetesgateway",
        "instance": "g1",
        "reading": "count",
        **labels,
    }


def test_traefik_names_a_service_by_kind_of_route() -> None:
    assert service_labels("team-a", "digits-new") == {
        "team-a-digits-new-http-8000@kubernetesgateway": "http",
        "team-a-digits-new-8001-grpc@kubernetesgateway": "grpc",
    }


def test_traefik_turns_other_characters_into_one_dash() -> None:
    assert "team-a-v1-2-x-http-8000@kubernetesgateway" in service_labels("team-a", "v1.2--x")


def test_one_query_speaks_of_both_revisions_and_protocols_and_of_the_scrape() -> None:
    promql = query(ERRORS).promql
    for part in (
        "digits-new-http-8000",
        "digits-old-http-8000",
        "digits-new-8001-grpc",
        "digits-old-8001-grpc",
        "timestamp(",
    ):
        assert part in promql
    assert "last_over_time" not in promql
    assert "digits-old" not in query(ERRORS, FIRST).promql


def test_only_the_baseline_looks_back_for_processes_that_missed_a_scrape() -> None:
    for metric in (ERRORS, LATENCY, ACCURACY):
        assert "last_over_time" in query(metric, baseline=True).promql


def test_the_objective_is_asked_for_as_prometheus_2_and_3_write_it() -> None:
    assert 'le=~"0\\\\.05|\\\\+Inf"' in query(LATENCY).promql
    assert 'le=~"1\\\\.0|1|\\\\+Inf"' in query(LATENCY.model_copy(update={"objective": "1s"})).promql
    assert query(LATENCY.model_copy(update={"objective": "57ms"})).objective == 0.057
    assert bounds_query(TARGET).startswith("count by (le)")


@pytest.mark.parametrize(
    ("metric", "why"),
    [
        (CLIENT_ERRORS, "does not count the requests that it refuses"),
        (REFUSED, "does not count the requests that it refuses"),
    ],
)
def test_what_triton_does_not_count_has_no_source_without_a_gateway(metric: Metric, why: str) -> None:
    problem = build(metric, WITHOUT_GATEWAY, baseline=False)
    assert isinstance(problem, MeasurementProblem) and problem.reason == "NoSource"
    assert problem.message.startswith(metric.name) and why in problem.message
    assert "set spec.traffic.gateway" in problem.message and "leave the metric out" in problem.message


def test_errors_without_a_gateway_come_from_triton_by_revision() -> None:
    def triton(revision: str, reading: str) -> dict[str, str]:
        return {"revision": revision, "instance": "p1", "reading": reading}

    assessment = look(
        ERRORS,
        (triton("digits-new", "good"), 90),
        (triton("digits-new", "bad"), 10),
        (triton("digits-new", "scraped"), 5),
        (triton("digits-old", "good"), 7),
        target=WITHOUT_GATEWAY,
    )
    assert assessment == CounterReading(
        Raw({"p1": Sample(100, 10, 5, primed=True)}), Raw({"p1": Sample(7, 0, 0, primed=True)})
    )


def test_http_errors_are_those_of_the_server() -> None:
    reading = look(
        ERRORS,
        (http("digits-new", code="200"), 95),
        (http("digits-new", code="404"), 3),
        (http("digits-new", code="503"), 2),
        (http("digits-new", reading="scraped"), 1234.5),
        (http("digits-old", code="200"), 900),
        (http("another-model", code="500"), 50),
    )
    assert reading.canary == _raw(**{"g1/http": (100, 2, 1234.5)})
    assert reading.stable == _raw(**{"g1/http": (900, 0, 0)})


def test_grpc_counts_apart_from_http_and_unknown_is_no_error() -> None:
    """Traefik counts every success of a gRPC server as UNKNOWN (2): measured with 3.6.12 in front
    of Triton.
    """
    reading = look(
        ERRORS,
        (http("digits-new", code="200"), 10),
        (grpc("digits-new", code="2"), 80),
        (grpc("digits-new", code="3"), 5),
        (grpc("digits-new", code="13"), 4),
        (grpc("digits-new", code="14"), 1),
    )
    assert reading.canary == _raw(**{"g1/http": (10, 0, 0), "g1/grpc": (90, 5, 0)})


BAD_HTTP = {
    "clientErrors": "400 404 405 406 409 410 411 412 413 414 415 416 417 418 422 423 424 426 428 431",
    "refusedRequests": "401 402 403 407 408 421 425 429 451 499",
    "errors": "500 501 502 503 504",
}
BAD_GRPC = {"clientErrors": "3 6 9 10 11 12", "refusedRequests": "1 5 7 16", "errors": "4 8 13 14 15"}


@pytest.mark.parametrize(
    ("service", "bad", "good"), [(http, BAD_HTTP, "100 200 204 302"), (grpc, BAD_GRPC, "0 2")]
)
def test_each_answer_is_bad_in_one_metric_at_most(
    service: Callable[..., dict[str, str]], bad: dict[str, str], good: str
) -> None:
    """The counter of each code is another power of two, so a sum says of which codes it is."""
    codes = [*good.split(), *(code for listed in bad.values() for code in listed.split())]
    series = [(service("digits-new", code=code), float(2**i)) for i, code in enumerate(codes)]
    for metric in (ERRORS, CLIENT_ERRORS, REFUSED):
        [sample] = look(metric, *series).canary.processes.values()
        assert sample.total == 2 ** len(codes) - 1
        assert {c for i, c in enumerate(codes) if int(sample.bad) >> i & 1} == set(bad[metric.name].split())


def test_every_status_code_is_good_or_bad_in_one_metric_and_4xx_and_5xx_are_bad() -> None:
    for code in range(100, 600):
        bad_in = metric_of(Series(http("digits-new", code=str(code)), 1, 0))
        assert (bad_in in ANSWER_METRICS) == (code >= 400), code
    bad_grpc = {c for c in range(17) if metric_of(Series(grpc("digits-new", code=str(c)), 1, 0))}
    assert bad_grpc == set(range(17)) - {0, 2}


def test_the_page_on_what_is_counted_says_the_same() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "reasons-analysis.md").read_text()
    for metric in ("clientErrors", "refusedRequests", "errors"):
        [row] = [line for line in page.splitlines() if line.startswith(f"| `{metric}`: ")]
        *_, of_http, of_grpc, _ = row.split("|")
        assert set(re.findall(r"\((\d+)\)", of_grpc)) == set(BAD_GRPC[metric].split())
        assert metric == "errors" or re.findall(r"4\d\d", of_http) == BAD_HTTP[metric].split()


def test_latency_counts_what_is_not_within_the_objective() -> None:
    reading = look(
        LATENCY,
        (http("digits-new", le="+Inf"), 100),
        (http("digits-new", le="0.05"), 97),
        (http("digits-new", reading="scraped"), 9),
        (grpc("digits-new", le="+Inf"), 0),
    )
    assert reading.canary == _raw(**{"g1/http": (100, 3, 9), "g1/grpc": (0, 0, 0)})


def test_an_objective_between_the_bounds_is_told_from_no_data() -> None:
    problem = read_counters(query(LATENCY), Answer((Series(http("digits-old", le="+Inf"), 100, 0),)), TARGET)
    assert isinstance(problem, MeasurementProblem) and problem.reason == "NotABucketBound"
    named = name_bounds(
        problem,
        Answer(tuple(Series({"le": le}, 1, 0) for le in ("0.1", "0.025", "+Inf", "1.0", "odd"))),
        query(LATENCY),
    )
    assert named.reason == "NotABucketBound" and "25ms, 100ms, 1s" in named.message
    assert look(LATENCY) == CounterReading(_raw(), _raw())


def test_labels_are_those_of_the_models_namespace_whatever_the_scrape_says() -> None:
    assert '{model_namespace="team-a",name="digits",version=~"3|2"}' in query(ACCURACY).promql


SOURCES = ScrapeMatchers('namespace="gateways"', 'ns="modelrollout"', "ns", "pod_name")
CONFIGURED = replace(TARGET, matchers=SOURCES)


def test_every_selector_of_the_gateway_and_of_feedback_says_who_may_count() -> None:
    for metric, counter, who in (
        (ERRORS, "traefik_service_requests_total{", SOURCES.gateway),
        (LATENCY, "traefik_service_request_duration_seconds_bucket{", SOURCES.gateway),
        (ACCURACY, "modelrollout_feedback_total{", SOURCES.feedback),
    ):
        selectors = [
            part.split("}")[0] for part in query(metric, CONFIGURED, baseline=True).promql.split(counter)[1:]
        ]
        assert len(selectors) >= 3 and all(f",{who}" in s for s in selectors), selectors
    assert SOURCES.gateway in bounds_query(CONFIGURED)


def test_comparer_and_servers_count_in_the_models_namespace_by_the_names_of_their_pods() -> None:
    pairs = agreement_query(CONFIGURED, baseline=True).promql
    assert pairs.count("modelrollout_shadow_total{") == pairs.count(
        ',ns="team-a",pod_name=~"(?:digits-new-shadow-)[a-z0-9]*-?[a-z0-9]{5}|"'
    )
    of_servers = query(ERRORS, replace(WITHOUT_GATEWAY, matchers=SOURCES), baseline=True).promql
    assert of_servers.count("{revision=") == of_servers.count(
        ',ns="team-a",pod_name=~"(?:digits-new-|digits-old-)[a-z0-9]*-?[a-z0-9]{5}|"'
    )


@pytest.mark.parametrize(
    ("revision", "pod", "ours"),
    [
        ("digits-new", "digits-new-6d9f8b7c5d-x2x4z", True),
        ("digits-new", "", True),
        ("digits-new", "digits-new-shadow-6d9f8b7c5d-x2x4z", False),
        ("digits-new", "digits-new-prepare-ab12-x2x4z", False),
        ("digits-new", "digits-new", False),
        ("digits-new", "a-digits-new-6d9f8b7c5d-x2x4z", False),
        ("v1.2", "v1x2-6d9f8b7c5d-x2x4z", False),
        ("n" * 45, "n" * 45 + "-6d9f8b7c5d-x2x4z", True),
        ("n" * 51, "n" * 51 + "-6d9f8bx2x4z", True),
        ("n" * 57, "n" * 57 + "-x2x4z", True),
        ("n" * 60, "n" * 58 + "x2x4z", True),
    ],
)
def test_the_pattern_is_that_of_a_deployments_pods_however_long_its_name(
    revision: str, pod: str, ours: bool
) -> None:
    target = replace(WITHOUT_GATEWAY, canary=RevisionRef(revision=revision, number=3), stable=None)
    actual = re.search(r'pod=~"([^"]*)"', query(ERRORS, target).promql)
    assert actual is not None and (re.fullmatch(actual[1].replace("\\\\", "\\"), pod) is not None) is ours


def test_accuracy_counts_labels_by_version() -> None:
    def label(version: str, result: str) -> dict[str, str]:
        return {"version": version, "result": result, "instance": "f1", "reading": "count"}

    reading = look(
        ACCURACY,
        (label("3", "right"), 90),
        (label("3", "wrong"), 10),
        (label("2", "right"), 5),
        (label("9", "wrong"), 5),
    )
    assert reading == CounterReading(_raw(f1=(100, 10, 0)), _raw(f1=(5, 0, 0)))


@pytest.mark.parametrize("value", [math.nan, -1.0, math.inf])
def test_a_counter_that_is_no_number_is_named_and_never_counted(value: float) -> None:
    problem = read_counters(
        query(ERRORS), Answer((Series(http("digits-new", code="500"), value, 0),)), TARGET
    )
    assert isinstance(problem, MeasurementProblem) and problem.reason == "EvidenceImplausible"


def test_more_bad_ones_than_requests_cannot_be() -> None:
    labels = (http("digits-new", le="+Inf"), http("digits-new", le="0.05"))
    problem = read_counters(
        query(LATENCY),
        Answer(tuple(Series(actual, value, 0) for actual, value in zip(labels, (3, 5), strict=True))),
        TARGET,
    )
    assert (
        isinstance(problem, MeasurementProblem)
        and problem.reason == "EvidenceImplausible"
        and "gatewayMetrics.selector" in problem.message
    )


CUSTOM = Metric(
    name="memory",
    query='max(x{r="{{revision}}",s="{{ stable }}",n="{{namespace}}/{{name}}"}[{{window}}])',
    max=1,
)


PLATFORM = replace(TARGET, promql=frozenset({CUSTOM.query or ""}))
OWN = replace(TARGET, queries="Own")


def test_placeholders_are_filled_in() -> None:
    assert query(CUSTOM, PLATFORM).promql == 'max(x{r="digits-new",s="digits-old",n="team-a/digits"}[42s])'
    assert not query(CUSTOM, PLATFORM).own


def test_a_query_that_no_policy_has_is_asked_only_where_own_ones_are_allowed() -> None:
    metric = CUSTOM.model_copy(update={"query": 'max(rate(x{r="{{revision}}"}[{{window}}]))'})
    problem = build(metric, PLATFORM, baseline=False)
    assert (
        isinstance(problem, MeasurementProblem)
        and problem.reason == "QueryNotAllowed"
        and "use a template" in problem.message
    )
    own = query(metric, OWN)
    assert own.own and own.promql == 'max(rate(x{namespace="team-a", r="digits-new"}[42s]))'
    elsewhere = query(metric, replace(OWN, matchers=ScrapeMatchers(namespace="kubernetes_namespace")))
    assert elsewhere.promql == 'max(rate(x{kubernetes_namespace="team-a", r="digits-new"}[42s]))', (
        "a series may set any other label itself"
    )
    problem = build(CUSTOM.model_copy(update={"query": "vector(1)"}), OWN, baseline=False)
    assert (
        isinstance(problem, MeasurementProblem)
        and problem.reason == "QueryNotAllowed"
        and "memory" in problem.message
    )


def test_a_window_that_grows_refuses_no_query_on_its_way() -> None:
    text = " + ".join(["max(rate(x[{{window}}]))"] * 24)
    assert own_query_problem(text, "team-a", "digits", "namespace") is None
    week = query(CUSTOM.model_copy(update={"query": text}), replace(OWN, window_seconds=7 * 86400.0))
    assert "[1h]" in week.promql
    assert (
        own_query_problem(" + ".join(["max(rate(x[{{window}}]))"] * 25), "team-a", "digits", "namespace")
        is not None
    )


@pytest.mark.parametrize("text", ["vector(1)", "max(x[{{window}}:1s])", 'x{namespace="other"}'])
def test_what_could_not_be_asked_is_known_before_anything_begins(text: str) -> None:
    problem = own_query_problem(text, "team-a", "digits", "namespace")
    assert problem is not None and problem.reason == "QueryNotAllowed"
    fine = 'max(x{namespace="{{namespace}}", r=~"{{revision}}|{{stable}}", v="{{version}}"}) * {{weight}}'
    assert own_query_problem(fine, "team-a", "digits", "namespace") is None


def test_what_placeholders_stand_for_ends_no_string() -> None:
    """Names of Kubernetes objects, as long and odd as they may be."""
    odd = ScrapedTarget(
        "a-0",
        "x.y-z",
        RevisionRef(revision="x.y-z-0a", number=3),
        RevisionRef(revision="x.y-z-0b", number=2),
        "none",
        1e9,
        100,
    )
    template = 'a{x="' + " ".join(f"{{{{{p}}}}}" for p in PLACEHOLDERS) + '"}'
    filled = query(
        CUSTOM.model_copy(update={"query": template}), replace(odd, promql=frozenset({template}))
    ).promql
    assert re.fullmatch(r'a\{x="[-a-z0-9. ]+"\}', filled)


def test_an_unknown_placeholder_is_named() -> None:
    metric = CUSTOM.model_copy(update={"query": "sum(x{a='{{canary}}'})"})
    problem = build(metric, OWN, baseline=False)
    assert isinstance(problem, MeasurementProblem) and problem.reason == "UnknownPlaceholder"
    assert "{{canary}}" in problem.message and "{{revision}}" in problem.message
    assert unknown_placeholders("{{canary}} {{name}} {{}}") == ["canary", ""]


def test_a_query_that_needs_stable_waits_for_one() -> None:
    problem = build(CUSTOM, replace(FIRST, promql=PLATFORM.promql), baseline=False)
    assert isinstance(problem, MeasurementProblem) and problem.reason == "NoStableData"


@pytest.mark.parametrize(
    ("values", "kind"),
    [((), "NoData"), ((1.0, 2.0), "SeveralSeries"), ((math.nan,), "NotANumber"), ((math.inf,), "NotANumber")],
)
def test_a_value_is_one_number_or_a_named_problem(values: tuple[float, ...], kind: str) -> None:
    problem = read_value(
        query(CUSTOM, PLATFORM), Answer(tuple(Series({"i": str(i)}, v, 0) for i, v in enumerate(values)))
    )
    assert isinstance(problem, MeasurementProblem) and problem.reason == kind
    assert read_value(query(CUSTOM, PLATFORM), Answer((Series({}, 3.5, 0),))) == 3.5


def _raw(**processes: tuple[float, float, float]) -> Raw:
    return Raw({p: Sample(*values) for p, values in processes.items()})
