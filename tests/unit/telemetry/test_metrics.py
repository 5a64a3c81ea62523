"""The operator's metrics."""

from __future__ import annotations

import pytest
from prometheus_client.exposition import generate_latest

from modelrollout.telemetry.fleet import NAMESPACE
from modelrollout.telemetry.metrics import Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_everything_that_is_counted_is_exposed(metrics: Metrics) -> None:
    metrics.queue_added()
    metrics.queue_retried()
    metrics.queue_depth(lambda: 7)
    metrics.reconciled(0.02)
    metrics.reconcile_failed(KeyError("x"))
    metrics.api_request("get", "pods", "404")
    metrics.leading(lambda: True)
    metrics.shards(lambda: {("0",): 1, ("1",): 0})
    value = metrics.registry.get_sample_value
    assert value("modelrollout_queue_adds_total") == 1
    assert value("modelrollout_queue_retries_total") == 1
    assert value("modelrollout_queue_depth") == 7
    assert value("modelrollout_reconcile_seconds_count") == 1
    assert value("modelrollout_reconcile_errors_total", {"kind": "KeyError"}) == 1
    assert value("modelrollout_api_requests_total", {"verb": "get", "resource": "pods", "code": "404"}) == 1
    assert value("modelrollout_leader") == 1
    assert [value("modelrollout_shard", {"shard": shard}) for shard in "01"] == [1, 0]
    assert b"process_cpu_seconds_total" in generate_latest(metrics.registry)


def test_rollouts_are_counted_at_the_scrape_and_empty_phases_vanish(metrics: Metrics) -> None:
    counts = {("ns", "Canary"): 2}
    metrics.rollouts(lambda: counts)
    assert (
        metrics.registry.get_sample_value("modelrollout_rollouts", {NAMESPACE: "ns", "phase": "Canary"}) == 2
    )
    counts.clear()
    counts["ns", "Stable"] = 2
    assert (
        metrics.registry.get_sample_value("modelrollout_rollouts", {NAMESPACE: "ns", "phase": "Canary"})
        is None
    )
    assert (
        metrics.registry.get_sample_value("modelrollout_rollouts", {NAMESPACE: "ns", "phase": "Stable"}) == 2
    )


def test_labels_name_no_objects(metrics: Metrics) -> None:
    metrics.api_request("get", "pods", "200")
    metrics.rollouts(lambda: {("ns", "Stable"): 1})
    labels = {
        label for family in metrics.registry.collect() for sample in family.samples for label in sample.labels
    }
    assert labels <= {"verb", "resource", "code", "kind", "le", NAMESPACE, "phase"}


def test_conditions_and_events_are_counted_by_namespace(metrics: Metrics) -> None:
    metrics.conditions(lambda: {("ns", "Hardened", "False"): 3})
    labels = {NAMESPACE: "ns", "type": "Hardened", "status": "False"}
    assert metrics.registry.get_sample_value("modelrollout_conditions", labels) == 3
    metrics.event_posted("ns", "Warning", "ServerCrashed")
    assert (
        metrics.registry.get_sample_value(
            "modelrollout_events_total",
            {NAMESPACE: "ns", "type": "Warning", "reason": "ServerCrashed"},
        )
        == 1
    )
