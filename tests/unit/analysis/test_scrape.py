"""Whether those count who should, by what Prometheus says of its targets."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.base import COUNTED_BY, CountedBy, Doubt
from modelrollout.analysis.providers.prometheus.client import jobs_without_honor_labels
from modelrollout.analysis.providers.prometheus.scrape_rights import Scrape, ScrapeTarget, doubt
from modelrollout.config import OperatorConfig

REQUIRED = {
    "stores": [{"name": "s", "uri": "s3://models/"}],
    "artifacts": {"name": "a", "uri": "s3://artifacts/"},
    "images": {"optimizer": "o", "triton": "t"},
}
GATEWAY = {"selector": 'namespace="gateways"', "namespaces": ["gateways"]}
FEEDBACK = {"selector": 'namespace="modelrollout"', "namespaces": ["modelrollout"]}


def config(**changed: Any) -> OperatorConfig:
    return OperatorConfig.model_validate(
        REQUIRED | {"gatewayMetrics": GATEWAY, "feedbackMetrics": FEEDBACK} | changed
    )


def pod(where: str, job: str = "pods", **labels: str) -> ScrapeTarget:
    actual = {"__meta_kubernetes_namespace": where, "__meta_kubernetes_pod_name": f"{where}-0"}
    return ScrapeTarget(job, {"namespace": where, "job": job, **labels}, actual)


def static(job: str, **labels: str) -> ScrapeTarget:
    return ScrapeTarget(
        job, {"instance": "192.0.2.1:80", "job": job, **labels}, {"__address__": "192.0.2.1:80"}
    )


OURS = (pod("gateways"), pod("modelrollout"), pod("team-a"), static("node"))


def doubts_of(
    *more: ScrapeTarget, honoring: tuple[str, ...] = (), **changed: Any
) -> dict[CountedBy, Doubt | None]:
    scrape = Scrape((*OURS, *more), frozenset(honoring))
    return {source: doubt(source, scrape, config(**changed)) for source in COUNTED_BY}


def test_all_is_well() -> None:
    assert set(doubts_of().values()) == {None}
    assert set(
        doubts_of(
            pod("monitoring", "kubelet"), honoring=("kubelet",), scrape={"trustedNamespaces": ["monitoring"]}
        ).values()
    ) == {None}
    outside = {"gatewayMetrics": {"selector": 'counts="gateway"'}}
    assert set(doubts_of(static("edge", counts="gateway"), **outside).values()) == {None}, (
        "whoever configures Prometheus has named it"
    )


def test_what_is_not_set_names_the_field() -> None:
    doubts = doubts_of(gatewayMetrics={}, feedbackMetrics={})
    for source, field in (("gateway", "gatewayMetrics.selector"), ("feedback", "feedback.selector")):
        told = doubts[source]  # type: ignore[index]
        assert (
            told is not None
            and told.reason == "Unverified"
            and told.message.startswith(f"{field} is not set")
        )
    assert doubts["pods"] is None


@pytest.mark.parametrize(
    "scrape",
    [
        None,
        MeasurementProblem("ProviderDenied", "Prometheus main refuses the operator's credentials (HTTP 403)"),
    ],
)
def test_where_no_prometheus_can_be_asked_it_is_unknown(scrape: MeasurementProblem | None) -> None:
    for source in COUNTED_BY:
        told = doubt(source, scrape, config())
        assert told is not None and told.reason == "Unverified"


def test_a_selector_that_no_target_fits_is_told() -> None:
    told = doubts_of(gatewayMetrics={"selector": 'job="traefik"'})["gateway"]
    assert (
        told is not None
        and told.reason == "Unverified"
        and 'gatewayMetrics.selector job="traefik"' in told.message
    )


def test_who_fits_and_runs_elsewhere_is_named_to_the_platform_in_an_order_that_stays() -> None:
    forgers = [pod(f"tenant-{i:02}", job="traefik") for i in range(12, 0, -1)]
    told = doubts_of(*forgers, gatewayMetrics={"selector": 'job="traefik"', "namespaces": ["gateways"]})[
        "gateway"
    ]
    assert told is not None and told.reason == "ForeignTargets" and "(12, which" in told.message
    assert "tenant" not in told.message, "who runs what is not for every team to read"
    assert told.targets.startswith(
        "tenant-01/tenant-01-0 (job traefik), tenant-02/"
    ) and told.targets.endswith(" and 2 more")


def test_labels_that_overwrite_those_of_the_scrape_put_everything_in_doubt() -> None:
    doubts = doubts_of(pod("tenant", "theirs"), honoring=("theirs",))
    assert [d and d.reason for d in doubts.values()] == ["ForeignTargets"] * 3
    assert set(
        doubts_of(pod("gateways", "edge"), static("federate"), honoring=("edge", "federate")).values()
    ) == {None}


@pytest.mark.parametrize("label", ["team-a", ""])
def test_a_pod_with_another_namespace_or_none_in_its_labels_may_count_there(label: str) -> None:
    told = doubts_of(
        pod("tenant", namespace=label) if label else ScrapeTarget("x", {}, pod("tenant").discovered)
    )["pods"]
    assert told is not None and "tenant/tenant-0" in told.targets and "label namespace" in told.message
    assert (
        doubts_of(ScrapeTarget("apiserver", {}, {"__meta_kubernetes_namespace": "default"}))["pods"] is None
    )
    other = doubts_of(scrape={"namespaceLabel": "kubernetes_namespace"})["pods"]
    assert other is not None and "team-a/team-a-0" in other.targets


def test_jobs_that_obey_are_read_line_by_line() -> None:
    loaded = """global:
  scrape_interval: 2s
scrape_configs:
- job_name: prometheus
  honor_timestamps: true
  static_configs:
  - targets: ["x"]
- job_name: serviceMonitor/a/b/0
  honor_labels: true
  relabel_configs:
  - target_label: note
    replacement: "  honor_labels: true"
- job_name: "1.5"
  scrape_interval: 2s
- job_name: 'it'
  honor_labels: true
"""
    assert jobs_without_honor_labels(loaded) == {"prometheus", "1.5"}
    assert jobs_without_honor_labels("") == frozenset(), "what is not there to read is not known to obey"
