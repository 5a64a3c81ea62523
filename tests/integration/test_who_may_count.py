"""A tenant's pod forges every counter that is read: with a real Prometheus, and each way in which
others may write its labels.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.base import CountedBy
from modelrollout.analysis.providers.prometheus.answers import Answer
from modelrollout.analysis.providers.prometheus.client import PrometheusReader
from modelrollout.analysis.providers.prometheus.parse import read_counters
from modelrollout.analysis.providers.prometheus.queries import build
from modelrollout.analysis.providers.prometheus.scrape_rights import Scrape, doubt
from modelrollout.analysis.providers.prometheus.sources.comparer import agreement_query
from modelrollout.analysis.providers.prometheus.sources.triton import rows_query
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget, ScrapeMatchers
from modelrollout.analysis.reading import CounterReading
from modelrollout.api.selectors import promql
from modelrollout.api.v1alpha1 import Metric, RevisionRef
from modelrollout.config import OperatorConfig, PrometheusConfig
from tests.integration.prometheus import LIMIT_SECONDS, Exporter, running

NEW, OLD = "digits-new", "digits-old"
GATEWAY, FEEDBACK = 'namespace="gateways"', 'namespace="modelrollout"'
JOBS: dict[str, dict[str, Any]] = {
    "plain": {},
    # of a Service that is called so
    "monitor": {"relabel_configs": [{"target_label": "job", "replacement": "traefik"}]},
    "labelmap": {"relabel_configs": [{"action": "labelmap", "regex": "__meta_kubernetes_pod_label_(.+)"}]},
    "honoring": {"honor_labels": True},
}


def forged() -> list[str]:
    """Bad for the canary of a/digits, good for stable."""
    actual = []
    for revision, bad in ((NEW, 5000), (OLD, 0)):
        for code, value in (("200", 100), ("500", bad)):
            service = f'service="a-{revision}-http-8000@kubernetesgateway",code="{code}",method="POST",protocol="http"'  # noqa: E501
            actual.append(
                f'traefik_service_requests_total{{namespace="gateways",job="traefik",{service}}} {value}'
            )
        series = f'namespace="a",pod="{revision}-6d9f8b7c5d-x2x4z",revision="{revision}",model="digits",version="1"'  # noqa: E501
        actual += [
            f"nv_inference_request_success{{{series}}} 100",
            f'nv_inference_request_failure{{{series},reason="OTHER"}} {bad}',
        ]
    for version, wrong in ((2, 5000), (1, 0)):
        labels = f'namespace="modelrollout",model_namespace="a",name="digits",version="{version}",slice=""'
        actual += [
            f'modelrollout_feedback_total{{{labels},result="{r}"}} {n}'
            for r, n in (("right", 100), ("wrong", wrong))
        ]
    pairs = 'namespace="a",exported_namespace="a",pod="digits-new-shadow-6d9f8b7c5d-x2x4z",name="digits",canary="2",stable="1"'  # noqa: E501
    return [*actual, f'modelrollout_shadow_total{{{pairs},result="disagree"}} 5000']


class Forger(Exporter):
    def __init__(self) -> None:
        super().__init__()
        self.lines = {series: float(value) for series, value in (line.rsplit(" ", 1) for line in forged())}


@dataclass
class Cluster:
    """The honest targets' exporters, and where Prometheus answers, by the job that also scrapes the
    tenant.
    """

    gateway: Exporter
    feedback: Exporter
    comparer: Exporter
    servers: Exporter
    urls: dict[str, str]


def pod(address: str, namespace: str, name: str, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """As a discovery of pods finds it."""
    actual = {
        "namespace": namespace,
        "pod_name": name,
        **{f"pod_label_{k}": v for k, v in (labels or {}).items()},
    }
    return {"targets": [address], "labels": {f"__meta_kubernetes_{k}": v for k, v in actual.items()}}


def job(name: str, *targets: dict[str, Any], **more: Any) -> dict[str, Any]:
    copied = [
        {"source_labels": [f"__meta_kubernetes_{source}"], "target_label": label}
        for source, label in (
            ("namespace", "namespace"),
            ("pod_name", "pod"),
            ("pod_label_revision", "revision"),
        )
    ]
    settings = {
        "scrape_interval": "200ms",
        "scrape_timeout": "200ms",
        "relabel_configs": [*copied, *more.pop("relabel_configs", [])],
        **more,
    }
    return {"job_name": name, "static_configs": list(targets), **settings}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ExitStack() as stack:
        honest = [Exporter() for _ in range(4)]
        gateway, feedback, comparer, servers = (stack.enter_context(e.listening()) for e in honest)
        tenant = stack.enter_context(Forger().listening())
        pods = [
            pod(gateway, "gateways", "traefik-0"),
            pod(feedback, "modelrollout", "release-feedback-0"),
            pod(comparer, "a", f"{NEW}-shadow-7c5d6d9f8b-abcde"),
            pod(servers, "a", f"{NEW}-7c5d6d9f8b-abcde", {"revision": NEW}),
        ]
        # A pod of another namespace whose labels say what labelmap would believe.
        attacker = pod(
            tenant, "tenant", f"{NEW}-6d9f8b7c5d-x2x4z", {"namespace": "gateways", "revision": NEW}
        )
        urls = {
            name: stack.enter_context(
                running(
                    tmp_path_factory.mktemp(name),
                    [
                        job("pods", *pods, honor_labels=bool(settings.get("honor_labels"))),
                        job("more", attacker, **settings),
                    ],
                )
            )
            for name, settings in JOBS.items()
        }
        actual = Cluster(honest[0], honest[1], honest[2], honest[3], urls)
        labels = f'service="a-{NEW}-http-8000@kubernetesgateway",method="POST",protocol="http"'
        actual.gateway.lines = {
            f'traefik_service_requests_total{{{labels},code="{c}"}}': n
            for c, n in (("200", 40.0), ("500", 1.0))
        }
        actual.feedback.labels("digits", 2, 30, 2)
        pairs = 'namespace="a",name="digits",canary="2",stable="1"'
        actual.comparer.lines = {
            f'modelrollout_shadow_total{{{pairs},result="{r}"}}': n
            for r, n in (("agree", 20.0), ("disagree", 3.0))
        }
        actual.servers.lines = {
            'nv_inference_count{model="digits",version="2"}': 70,
            'nv_inference_request_success{model="digits",version="2"}': 10,
            'nv_inference_request_failure{model="digits",version="2",reason="OTHER"}': 4,
        }
        yield actual


@pytest.fixture(params=list(JOBS))
async def scraped(
    request: pytest.FixtureRequest, cluster: Cluster
) -> AsyncIterator[tuple[str, PrometheusReader]]:
    reader = PrometheusReader(PrometheusConfig(name="main", url=cluster.urls[request.param]))
    async with asyncio.timeout(LIMIT_SECONDS):
        while True:
            [answer] = await reader.query(["count(up == 1) == 5"])
            if isinstance(answer, Answer) and answer.series:
                break
            await asyncio.sleep(0.1)
    yield request.param, reader
    await reader.close()


async def canary(reader: PrometheusReader, metric: str, sources: ScrapeMatchers) -> list[tuple[float, float]]:
    """Total and bad of each process that counts for the canary."""
    target = ScrapedTarget(
        "a",
        "digits",
        RevisionRef(revision=NEW, number=2),
        RevisionRef(revision=OLD, number=1),
        "traefik",
        matchers=sources,
    )
    if metric == "servers":
        target, metric = (
            ScrapedTarget("a", "digits", target.canary, target.stable, "none", matchers=sources),
            "errors",
        )
    desired = Metric(name=metric, **{"max_drop" if metric == "accuracy" else "max_increase": 0.1})
    query = (
        agreement_query(target, baseline=True)
        if metric == "agreement"
        else build(desired, target, baseline=True)
    )
    assert not isinstance(query, MeasurementProblem)
    [answer] = await reader.query([query.promql])
    assert isinstance(answer, Answer), answer
    look = read_counters(query, answer, target)
    assert isinstance(look, CounterReading), look
    return sorted((s.total, s.bad) for s in look.canary.processes.values())


CONFIGURED = ScrapeMatchers(promql(GATEWAY), promql(FEEDBACK))


@pytest.mark.parametrize(
    ("metric", "counted"),
    [("errors", (41, 1)), ("accuracy", (32, 2)), ("agreement", (23, 3)), ("servers", (14, 4))],
)
async def test_a_tenants_counters_do_not_count(
    scraped: tuple[str, PrometheusReader], metric: str, counted: tuple[float, float]
) -> None:
    how, reader = scraped
    actual = await canary(reader, metric, CONFIGURED)
    if how == "honoring" or (how == "labelmap" and metric == "errors"):
        assert counted in actual and len(actual) == 2, (
            "what nothing but the configuration of Prometheus can help"
        )
    else:
        assert actual == [counted]


async def test_rows_are_those_of_the_canarys_own_pods(scraped: tuple[str, PrometheusReader]) -> None:
    target = ScrapedTarget(
        "a",
        "digits",
        RevisionRef(revision=NEW, number=2),
        None,
        "traefik",
        matchers=CONFIGURED,
        rows_seconds=600,
    )
    [answer] = await scraped[1].query([rows_query(target)])
    assert isinstance(answer, Answer), answer
    actual = {s.labels["reading"]: s.value for s in answer.series}
    forged_too = 100 if scraped[0] == "honoring" else 0
    assert (
        actual["count"] == 70 + 10 + forged_too
        and actual["servers"] == 1
        and abs(time.time() - actual["scraped"]) < 30
    )


async def test_without_a_selector_everybody_counts(scraped: tuple[str, PrometheusReader]) -> None:
    assert (5100, 5000) in await canary(scraped[1], "errors", ScrapeMatchers())


def configured(selector: str = GATEWAY) -> OperatorConfig:
    return OperatorConfig.model_validate(
        {
            "stores": [{"name": "s", "uri": "s3://models/"}],
            "artifacts": {"name": "a", "uri": "s3://artifacts/"},
            "images": {"optimizer": "o", "triton": "t"},
            "gatewayMetrics": {"selector": selector, "namespaces": ["gateways"]},
            "feedbackMetrics": {"selector": FEEDBACK, "namespaces": ["modelrollout"]},
        }
    )


FOREIGN: dict[str, dict[CountedBy, str | None]] = {
    "plain": {"gateway": None, "feedback": None, "pods": None},
    "monitor": {"gateway": None, "feedback": None, "pods": None},
    "labelmap": {
        "gateway": "run elsewhere than in gateways",
        "feedback": None,
        "pods": "do not have their namespace in the label namespace",
    },
    "honoring": dict.fromkeys(("gateway", "feedback", "pods"), "are scraped with honor_labels"),
}


async def test_a_monitors_job_is_no_bar(scraped: tuple[str, PrometheusReader]) -> None:
    scrape = await scraped[1].scrape()
    problem = doubt("gateway", scrape, configured('job="traefik"'))
    if scraped[0] == "monitor":
        assert problem is not None and problem.reason == "ForeignTargets" and "tenant/" in problem.targets
    elif scraped[0] != "honoring":
        assert (
            problem is not None
            and problem.reason == "Unverified"
            and "no target of Prometheus fits" in problem.message
        )


async def test_the_look_at_targets_tells_who_else_could_count(scraped: tuple[str, PrometheusReader]) -> None:
    how, reader = scraped
    scrape = await reader.scrape()
    assert isinstance(scrape, Scrape) and len(scrape.targets) == 5
    config = configured()
    for source, said in FOREIGN[how].items():
        problem = doubt(source, scrape, config)
        if said is None:
            assert problem is None, problem
        else:
            assert problem is not None and problem.reason == "ForeignTargets"
            assert f"tenant/{NEW}-6d9f8b7c5d-x2x4z (job more)" in problem.targets and said in problem.message
