"""The alerts: each has its section, names metrics that exist with labels that they have, and has
what a pager shows. What they fire for is tested with promtool (tests/integration).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from modelrollout.feedback.ledger import Ledger
from modelrollout.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
RULES = yaml.safe_load((ROOT / "charts/model-rollout-operator/files/prometheus/rules.yaml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]


def families(registry: CollectorRegistry) -> Iterator[str]:
    for family in registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
        yield from (f"{family.name}{suffix}" for suffix in suffixes.get(family.type, [""]))


def known() -> set[str]:
    metrics = Metrics()
    metrics.queue_depth(lambda: 0)
    metrics.leading(lambda: True)
    metrics.shards(dict)
    metrics.deployments(list, 10)
    metrics.rollouts(dict)
    metrics.conditions(dict)
    metrics.unreadable(dict)
    metrics.pruned(dict)
    metrics.doubted(dict)
    metrics.registry.register(Ledger())
    return set(families(metrics.registry))


@pytest.mark.parametrize("rule", ALERTS, ids=lambda r: r["alert"])
class TestEachAlert:
    def test_has_a_section_with_what_to_do(self, rule: dict[str, Any]) -> None:
        assert f"## {rule['alert']}\n" in (ROOT / "docs/reference/alerts.md").read_text()

    def test_names_metrics_that_exist(self, rule: dict[str, Any]) -> None:
        named = set(re.findall(r"\bmodelrollout_[a-z_]+", rule["expr"]))
        assert named and named <= known(), named - known()

    def test_has_severity_summary_and_description(self, rule: dict[str, Any]) -> None:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_no_section_is_of_an_alert_that_is_gone() -> None:
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs/reference/alerts.md").read_text(), re.M)
    assert sections == [rule["alert"] for rule in ALERTS]
