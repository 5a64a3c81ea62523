"""In Bake the counts of stable stand still: what they were in the last judged step is what the
revision is compared with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.prometheus.answers import Answer, Series
from modelrollout.analysis.providers.prometheus.client import PrometheusReader
from modelrollout.api.v1alpha1 import Counter, MetricStatus
from modelrollout.config import (
    ArtifactStoreConfig,
    ImagesConfig,
    OperatorConfig,
    PrometheusConfig,
    StoreConfig,
)
from modelrollout.controller.lookups.metrics import MetricsAssessor
from modelrollout.rollout.snapshot import Snapshot
from modelrollout.testing import builders as b

CONFIG = OperatorConfig(
    stores=[StoreConfig(name="models", uri="s3://models")],
    artifacts=ArtifactStoreConfig(name="artifacts", uri="s3://artifacts"),
    images=ImagesConfig(optimizer="example/optimizer:1", triton="example/triton:1"),
    prometheus=[PrometheusConfig(name="main", url="http://prometheus:9090")],
)
V2 = b.revision_name(2)


def baking(*metrics: MetricStatus) -> Snapshot:
    spec = b.spec(
        2,
        gateway=False,
        rollout={"bake": "30m", "analysis": {"metrics": [{"name": "errors", "maxIncrease": 0.01}]}},
    )
    return b.second("Bake", wanted=spec, changes={"step": b.step(3, 100, metrics=list(metrics))})


def counted(bad: float, total: float) -> dict[str, Any]:
    """Triton's counters of the one pod of version 2."""
    asked: dict[str, Any] = {"queries": []}

    async def query(self: PrometheusReader, queries: Sequence[str]) -> list[Answer | MeasurementProblem]:
        asked["queries"] += queries
        pod = {"revision": V2, "instance": "10.0.0.1:8002"}
        readings = [("good", total - bad), ("bad", bad), ("scraped", 1_800_000_000.0)]
        return [
            Answer(
                tuple(
                    Series({**pod, "reading": reading}, value, 1_800_000_000.0) for reading, value in readings
                )
            )
            for _ in queries
        ]

    asked["query"] = query
    return asked


@pytest.mark.parametrize(("bad", "verdict"), [(400, "Failed"), (10, "Successful")])
def test_it_is_compared_with_what_stable_did_before(
    bad: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = Counter(total=20_000, bad=100, spread=[333, 2, 59, 0.3, 20_000, 100])
    seen = Counter(
        total=0, bad=0, last={"10.0.0.1:8002": [0.0, 0.0, 1_700_000_000.0]}, scraped=1_700_000_000.0
    )
    s = baking(
        MetricStatus(name="errors", verdict="Inconclusive", reason="NoData", canary=seen, stable=frozen)
    )
    fake = counted(bad, 4000)
    monkeypatch.setattr(PrometheusReader, "query", fake["query"])
    assessment = asyncio.run(MetricsAssessor(CONFIG, lambda: b.START).assess(s))
    assert assessment is not None and assessment.verdict == verdict
    assert (
        assessment.metrics[0].stable == frozen
        and assessment.metrics[0].canary
        and assessment.metrics[0].canary.total == 4000
    )
    assert all(b.revision_name(1) not in query for query in fake["queries"]), (
        "the former stable has no traffic to count"
    )


def test_without_a_reference_there_is_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Counter(
        total=0, bad=0, last={"10.0.0.1:8002": [0.0, 0.0, 1_700_000_000.0]}, scraped=1_700_000_000.0
    )
    s = baking(MetricStatus(name="errors", verdict="Inconclusive", reason="NoData", canary=seen))
    monkeypatch.setattr(PrometheusReader, "query", counted(400, 4000)["query"])
    assessment = asyncio.run(MetricsAssessor(CONFIG, lambda: b.START).assess(s))
    assert assessment is not None and (assessment.verdict, assessment.reason) == (
        "Inconclusive",
        "NoStableData",
    )
