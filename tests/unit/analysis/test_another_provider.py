"""A worked example for docs/contributing/adding-a-metrics-provider.md: a provider for a hosted
metrics system, from its configuration to the verdict on a canary step.

It uses only what the page names. The system is a fake: one HTTP call that takes a query such as
``sum:requests{revision:digits-new} by {host,status}`` and returns series with points.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import Field

from modelrollout.analysis.counters import Raw, Sample
from modelrollout.analysis.measurement import Counts, Measurement
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.base import CountedBy, Doubt, MetricsProvider
from modelrollout.analysis.providers.registry import PROVIDERS, unknown_provider
from modelrollout.analysis.reading import CounterReading, Reading
from modelrollout.analysis.target import Target
from modelrollout.api.v1alpha1 import Counter, Metric
from modelrollout.config import OperatorConfig, ProviderConfig
from modelrollout.controller.lookups.metrics import MetricsAssessor
from modelrollout.problem import Problem
from modelrollout.rollout.snapshot import Assessment
from modelrollout.testing import builders as b
from modelrollout.testing.provider_check import check_provider

V1, V2 = b.revision_name(1), b.revision_name(2)

# --- the system that is read: a fake of its HTTP API


@dataclass
class HostedApi:
    """Answers ``GET /api/v1/query`` in the manner of hosted metrics systems."""

    time: float = 1.0
    up: bool = True
    requests: dict[str, tuple[int, int]] = field(default_factory=dict)  # total and bad, by revision

    def get(self, query: str) -> dict[str, Any]:
        if not self.up:
            raise ConnectionError("connection refused")
        revision = query.partition("revision:")[2].partition("}")[0]
        total, bad = self.requests.get(revision, (0, 0))
        return {
            "series": [
                {"tag_set": ["host:gateway-1", f"status:{code}"], "pointlist": [[self.time * 1000, n]]}
                for code, n in (("2xx", total - bad), ("5xx", bad))
                if revision in self.requests
            ]
        }


# --- the provider: its configuration, and the protocol


class HostedConfig(ProviderConfig):
    """A hosted metrics system, by its site."""

    kind = "Hosted"

    site: str


class HostedProvider:
    """``MetricsProvider`` over the system's query API."""

    def __init__(self, provider: HostedConfig) -> None:
        self._name, self._api = provider.name, SITES[provider.site]

    @classmethod
    def connect(
        cls, provider: HostedConfig, config: OperatorConfig | None, patience: float | None
    ) -> HostedProvider:
        return cls(provider)

    async def read(
        self, target: Target, metrics: Sequence[Metric], counts: Mapping[str, Counts], now: float
    ) -> dict[str, Reading]:
        return {m.name: self._reading(m, target) for m in metrics}

    async def read_past(
        self, target: Target, metrics: Sequence[Metric], times: Sequence[int]
    ) -> dict[int, dict[str, Reading]] | MeasurementProblem:
        return MeasurementProblem("NoSource", f"Hosted {self._name} keeps no history of counters")

    async def read_agreement(self, target: Target, before: Counter | None) -> Measurement:
        problem = MeasurementProblem("NoSource", f"Hosted {self._name} does not know the comparer")
        return Measurement(before, problem=problem)

    async def doubts(self, counted_by: Sequence[CountedBy]) -> dict[CountedBy, Doubt]:
        return {c: Doubt("Unverified", f"Hosted {self._name} does not say who writes") for c in counted_by}

    async def close(self) -> None:
        pass

    def _reading(self, metric: Metric, target: Target) -> Reading:
        bad = {"errors": "5xx", "clientErrors": "4xx"}.get(metric.name)
        if bad is None:
            return MeasurementProblem("NoSource", f"Hosted {self._name} does not measure {metric.name}")
        try:
            canary = self._counters(target.canary.revision, bad)
            return CounterReading(
                canary, self._counters(target.stable.revision, bad) if target.stable else Raw()
            )
        except ConnectionError as e:
            return MeasurementProblem("ProviderUnreachable", f"Hosted {self._name} cannot be reached: {e}")

    def _counters(self, revision: str, bad: str) -> Raw:
        answer = self._api.get(f"sum:requests{{revision:{revision}}} by {{host,status}}")
        by_host: defaultdict[str, list[tuple[str, float, float]]] = defaultdict(list)
        for series in answer["series"]:
            tags = dict(tag.split(":", 1) for tag in series["tag_set"])
            milliseconds, value = series["pointlist"][-1]
            by_host[tags["host"]].append((tags["status"], value, milliseconds / 1000))
        return Raw(
            {
                host: Sample(
                    total=sum(value for _, value, _ in points),
                    bad=sum(value for status, value, _ in points if status == bad),
                    scraped=max(at for *_, at in points),
                )
                for host, points in by_host.items()
            }
        )


SITES: dict[str, HostedApi] = {}


# --- what the operator makes of it


class Config(OperatorConfig):
    """The operator's configuration with one field more."""

    hosted: list[HostedConfig] = Field(default_factory=list)

    @property
    def providers(self) -> Sequence[ProviderConfig]:
        return [*super().providers, *self.hosted]


CONFIG = Config.model_validate(
    {
        "stores": [{"name": "s", "uri": "s3://models/"}],
        "artifacts": {"name": "a", "uri": "s3://artifacts/"},
        "images": {"optimizer": "o", "triton": "t"},
        "hosted": [{"name": "main", "site": "eu.example.com"}],
    }
)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> HostedApi:
    monkeypatch.setitem(PROVIDERS, HostedConfig, HostedProvider.connect)
    api = HostedApi()
    monkeypatch.setitem(SITES, "eu.example.com", api)
    return api


async def judge(api: HostedApi, canary: tuple[int, int]) -> tuple[Assessment, Assessment]:
    """The baseline of a canary step, and the verdict after so many requests of the canary and
    20,000 good ones of stable.
    """
    assessor, began = MetricsAssessor(CONFIG, lambda: b.START), b.START.timestamp()
    api.requests, api.time = {V1: (5000, 50), V2: (10, 10)}, began + 1
    baseline = await assessor.assess(b.in_canary(wanted=b.spec(2, steps=b.STEPS)))
    assert baseline is not None
    api.requests, api.time = {V1: (25_000, 50), V2: (10 + canary[0], 10 + canary[1])}, began + 31
    step = b.step(0, 5, metrics=list(baseline.metrics))
    verdict = await assessor.assess(b.in_canary(wanted=b.spec(2, steps=b.STEPS), at_step=step))
    assert verdict is not None
    await assessor.close()
    return baseline, verdict


async def test_what_was_counted_before_the_step_is_its_baseline(api: HostedApi) -> None:
    baseline, _ = await judge(api, (1000, 0))
    assert (baseline.verdict, baseline.reason) == ("Inconclusive", "NoData")


async def test_a_good_canary_passes_its_step(api: HostedApi) -> None:
    _, verdict = await judge(api, (1000, 0))
    assert verdict.verdict == "Successful"
    assert verdict.metrics[0].canary is not None and verdict.metrics[0].canary.total == 1000


async def test_a_canary_that_fails_requests_fails_its_step(api: HostedApi) -> None:
    _, verdict = await judge(api, (1000, 950))
    assert (verdict.verdict, verdict.reason) == ("Failed", "ErrorsHigh")


async def test_half_a_minute_of_errors_is_no_proof_where_stable_has_no_history(api: HostedApi) -> None:
    _, verdict = await judge(api, (1000, 400))
    assert (verdict.verdict, verdict.reason) == ("Inconclusive", "NotYetProven")
    assert "stable shows only 0 of the 30 minutes" in verdict.message


async def test_a_system_that_is_down_is_an_error_and_never_a_regression(api: HostedApi) -> None:
    api.up = False
    _, verdict = await judge(api, (1000, 400))
    assert (verdict.verdict, verdict.reason) == ("Error", "ProviderUnreachable")


async def test_no_source_vouches_for_the_counters(api: HostedApi) -> None:
    assessor = MetricsAssessor(CONFIG, lambda: b.START)
    await assessor.verify()
    assert {d.reason for d in assessor.doubts.values()} == {"Unverified"}


async def test_it_keeps_the_protocol(api: HostedApi) -> None:
    provider: MetricsProvider = HostedProvider(CONFIG.hosted[0])

    def count(revision: str, total: int, bad: int) -> None:
        api.requests[revision] = (total, bad)

    def fail() -> None:
        api.up = False

    await check_provider(provider, count, fail)


def test_a_spec_may_name_it_and_a_refusal_lists_it() -> None:
    def refusal(name: str) -> Problem | None:
        spec = b.spec(1, rollout={"analysis": {"prometheus": name}})
        return unknown_provider(spec.rollout.analysis, CONFIG)

    assert refusal("main") is None
    found = refusal("mine")
    assert found is not None and found.reason == "PrometheusNotAllowed" and "(known: main)" in found.message
