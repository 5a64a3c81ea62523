"""The queries of each gateway's profile against a real Prometheus that scrapes what the gateway
documents, or what was recorded of it (``tests/expositions.py``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from modelrollout.analysis.measurement import Counts, Measurement, fold_in
from modelrollout.analysis.providers.prometheus.answers import Answer
from modelrollout.analysis.providers.prometheus.client import PrometheusReader
from modelrollout.analysis.providers.prometheus.provider import read_metrics
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget, ScrapeMatchers
from modelrollout.api.v1alpha1 import Metric, RevisionRef
from modelrollout.config import GatewayQueries, Profile, PrometheusConfig
from tests.expositions import CUSTOM_QUERIES, GATEWAYS, envoy, recorded
from tests.integration.prometheus import LIMIT_SECONDS, Exporter, new_series_shown, running
from tests.integration.test_prometheus import job

METRICS = [
    Metric(name="errors", max_increase=0.005),
    Metric(name="clientErrors", max_increase=0.02),
    Metric(name="refusedRequests", max_increase=0.02),
    Metric(name="latency", objective="50ms", max_increase=0.005),
]
STABLE, CANARY = "digits-old", "digits-new"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Exporter, str]]:
    """The gateway, which two jobs scrape, and a stranger who exports the same."""
    exporter = Exporter()
    with exporter.listening() as scraped:
        jobs = [job(name, scraped, space) for name, space in (("a", "gateways"), ("b", "gateways"))]
        with running(
            tmp_path_factory.mktemp("prometheus"), [*jobs, job("stranger", scraped, "other")]
        ) as url:
            yield exporter, url


@pytest.fixture
async def reader(served: tuple[Exporter, str]) -> AsyncIterator[PrometheusReader]:
    served[0].lines.clear()
    reader = PrometheusReader(PrometheusConfig(name="main", url=served[1]))
    yield reader
    await reader.close()


async def scraped(reader: PrometheusReader) -> None:
    """Until a scrape that began after this call has been stored."""
    await new_series_shown()
    now = time.time()
    async with asyncio.timeout(LIMIT_SECONDS):
        while True:
            [answer] = await reader.query([f"count((timestamp(up) > {now}) and (up == 1)) == 3"])
            if isinstance(answer, Answer) and answer.series:
                return
            await asyncio.sleep(0.05)


async def look(
    reader: PrometheusReader, target: ScrapedTarget, before: dict[str, Measurement]
) -> dict[str, Measurement]:
    known = {name: Counts(m.canary, m.stable) for name, m in before.items()}
    return fold_in(await read_metrics(reader, target, METRICS, known, time.time()), known, stable=True)


def counted(look: dict[str, Measurement]) -> dict[str, tuple[float, ...]]:
    for m in look.values():
        assert m.problem is None and m.canary is not None and m.stable is not None, m.problem
    return {
        name: (m.canary.total, m.canary.bad, m.stable.total, m.stable.bad)
        for name, m in look.items()
        if m.canary and m.stable
    }


def target_of(profile: Profile) -> ScrapedTarget:
    return ScrapedTarget(
        "ml",
        "digits",
        RevisionRef(revision=CANARY, number=2),
        RevisionRef(revision=STABLE, number=1),
        profile,
        positions=(STABLE, CANARY),
        matchers=ScrapeMatchers(
            gateway='namespace="gateways"', queries=GatewayQueries.model_validate(CUSTOM_QUERIES)
        ),
    )


@pytest.mark.parametrize("profile", GATEWAYS)
async def test_answers_and_durations_of_both_protocols_are_counted_by_revision(
    served: tuple[Exporter, str], reader: PrometheusReader, profile: Profile
) -> None:
    export, exporter = GATEWAYS[profile], served[0]
    target = target_of(profile)
    # others: another model, a shadow, and a revision whose name begins as stable's
    exporter.lines |= export("digits-older", {"500": 7}, {"13": 7}, 7)
    exporter.lines |= export(STABLE, {"200": 9000, "500": 300}, {"0": 500, "13": 40}, 0)
    await scraped(reader)
    first = await look(reader, target, {})
    assert counted(first) == dict.fromkeys(first, (0, 0, 0, 0)), "the past of stable is a baseline"

    exporter.lines |= export(STABLE, {"200": 9380, "500": 305, "404": 10, "429": 5}, {"0": 580, "13": 60}, 0)
    exporter.lines |= export(CANARY, {"200": 10, "503": 4, "400": 3}, {"0": 2, "3": 1, "14": 2, "2": 1}, 1)
    await scraped(reader)
    second = counted(await look(reader, target, first))
    assert {name: n for name, n in second.items() if name != "latency"} == {
        "errors": (23, 7, 500, 25),
        "clientErrors": (23, 4, 500, 10),
        "refusedRequests": (23, 0, 500, 5),
    }
    canary, slow, stable, slow_stable = second["latency"]
    assert (canary, stable) == (23, 500) and abs(slow - 2.3) < 2 and abs(slow_stable - 50) < 2


async def test_what_the_real_envoy_gateway_exports_is_counted_by_revision(
    served: tuple[Exporter, str], reader: PrometheusReader
) -> None:
    target, exporter = target_of("envoy-gateway"), served[0]
    exporter.lines |= dict.fromkeys(recorded(), 0)
    await scraped(reader)
    first = await look(reader, target, {})
    exporter.lines |= recorded()
    await scraped(reader)
    second = counted(await look(reader, target, first))
    assert {name: n for name, n in second.items() if name != "latency"} == {
        "errors": (28, 2, 107, 13),
        "clientErrors": (28, 1, 107, 10),
        "refusedRequests": (28, 0, 107, 5),
    }
    canary, slow, stable, slow_stable = second["latency"]
    assert (canary, stable) == (28, 107) and slow < canary and slow_stable < stable


@pytest.mark.parametrize("profile", GATEWAYS)
async def test_a_restarted_proxy_counts_from_nothing(
    served: tuple[Exporter, str], reader: PrometheusReader, profile: Profile
) -> None:
    export, exporter, target = GATEWAYS[profile], served[0], target_of(profile)
    exporter.lines |= export(STABLE, {"200": 9000}, {"0": 500}, 0)
    await scraped(reader)
    first = await look(reader, target, {})
    exporter.lines.clear()
    exporter.lines |= export(STABLE, {"200": 4, "500": 2}, {"0": 3}, 0)
    await scraped(reader)
    assert counted(await look(reader, target, first))["errors"] == (0, 0, 9, 2)


@pytest.mark.parametrize("profile", GATEWAYS)
async def test_an_objective_that_is_no_bound_names_those_that_are(
    served: tuple[Exporter, str], reader: PrometheusReader, profile: Profile
) -> None:
    served[0].lines |= GATEWAYS[profile](STABLE, {"200": 9000}, {"0": 500}, 0)
    await scraped(reader)
    metric = Metric(name="latency", objective="60ms", max_increase=0.005)
    target = replace(target_of(profile), stable_since=time.time())
    reading = (await read_metrics(reader, target, [metric], {}, time.time()))["latency"]
    assert getattr(reading, "reason", None) == "NotABucketBound", reading
    listed = "0.06 s is no bucket bound" if profile == "custom" else "its bounds are 50ms, 100ms"
    assert listed in getattr(reading, "message", "")


async def test_a_rule_that_goes_takes_no_more_along_than_its_own_requests(
    served: tuple[Exporter, str], reader: PrometheusReader
) -> None:
    """Envoy Gateway counts each rule of each route apart: a host name's, a preview's, a test's. A
    model whose name begins alike has routes of its own.
    """
    target, exporter = replace(target_of("envoy-gateway"), routes=("digits", "digits-preview")), served[0]

    def rule(route: str, ok: int) -> dict[str, float]:
        cluster = f"httproute/ml/{route}/rule/0/backend/0"
        return envoy(cluster, cluster.replace("http", "grpc", 1), {"200": ok}, {}, "ModelInfer")

    exporter.lines |= rule("digits", 9000) | rule("digits-preview", 70) | rule("digits-0123abcd", 500)
    await scraped(reader)
    first = await look(reader, target, {})
    exporter.lines.clear()
    exporter.lines |= rule("digits", 9010) | rule("digits-0123abcd", 700)
    await scraped(reader)
    second = await look(reader, target, first)
    exporter.lines |= rule("digits", 9010) | rule("digits-preview", 3)
    await scraped(reader)
    third = await look(reader, target, second)
    assert counted(second)["errors"] == (0, 0, 10, 0) and counted(third)["errors"] == (0, 0, 13, 0)
