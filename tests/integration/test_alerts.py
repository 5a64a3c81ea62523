"""What the alerts fire for, and what not: by promtool, on series as the operator has them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.sandbox

ROOT = Path(__file__).parents[2]
RULES = ROOT / "charts/model-rollout-operator/files/prometheus/rules.yaml"
OF = 'model_namespace="ml", name="digits"'
D = "modelrollout_deployment"
ENDED = 'modelrollout_rollouts_ended_total{model_namespace="ml", outcome="Failed", reason="StoreUnavailable"}'

# alert -> (series that fire it, series beside which it stays silent, labels, at)
Series = dict[str, str]
CASES: dict[str, tuple[Series, Series, dict[str, str], str]] = {
    "ModelUnavailable": (
        {
            f"{D}_available{{{OF}}}": "0x60",
            f'{D}_revision{{{OF}, role="stable", revision="a", version="1"}}': "1x60",
            f"{D}_replicas{{{OF}}}": "2x60",
        },
        {f"{D}_replicas{{{OF}}}": "0x60"},
        {"severity": "critical"},
        "10m",
    ),
    "ModelDegraded": (
        {f"{D}_ready_replicas{{{OF}}}": "1x60", f"{D}_replicas{{{OF}}}": "2x60"},
        {f"{D}_ready_replicas{{{OF}}}": "2x60"},
        {"severity": "warning"},
        "20m",
    ),
    "ModelStalled": (
        {f'{D}_stalled{{{OF}, reason="AccuracyLow"}}': "1x60"},
        {f'{D}_stalled{{{OF}, reason="AccuracyLow"}}': "1x3 _x60"},
        {"severity": "warning", "reason": "AccuracyLow"},
        "10m",
    ),
    "CanaryWithoutVerdict": (
        {
            f"{D}_step_started_seconds{{{OF}}}": "0x100",
            f'{D}_stage{{{OF}, stage="Canary"}}': "1x100",
        },
        {f'{D}_phase{{{OF}, phase="Paused"}}': "1x100"},
        {"severity": "warning"},
        "70m",
    ),
    "RolloutWaitsForCapacity": (
        {f'{D}_waiting{{{OF}, reason="WaitingForSlot"}}': "1x100"},
        {f'{D}_waiting{{{OF}, reason="WaitingForSlot"}}': "1x30 _x100"},
        {"severity": "warning", "reason": "WaitingForSlot"},
        "70m",
    ),
    "OperatorHasNoLeader": (
        {'modelrollout_leader{instance="a"}': "0x60"},
        {'modelrollout_leader{instance="b"}': "1x60"},
        {"severity": "critical"},
        "10m",
    ),
    "OperatorShardUnworked": (
        {
            'modelrollout_shard{instance="a", shard="0"}': "1x60",
            'modelrollout_shard{instance="a", shard="1"}': "0x60",
            'modelrollout_shard{instance="b", shard="1"}': "0x60",
        },
        {
            'modelrollout_shard{instance="a", shard="1"}': "0x60",
            'modelrollout_shard{instance="b", shard="1"}': "1x60",
        },
        {"severity": "critical", "shard": "1"},
        "10m",
    ),
    "OperatorQueueOld": (
        {
            'modelrollout_queue_depth{instance="a"}': "500x60",
            'modelrollout_leader{instance="a"}': "1x60",
        },
        {'modelrollout_leader{instance="a"}': "0x60"},  # a standby's queue is not worked
        {"severity": "warning"},
        "30m",
    ),
    "ObjectsUnreadable": (
        {'modelrollout_objects_unreadable{kind="ModelDeployment", model_namespace="ml"}': "2x60"},
        {'modelrollout_objects_unreadable{kind="ModelDeployment", model_namespace="ml"}': "0x60"},
        {"severity": "warning", "kind": "ModelDeployment"},
        "10m",
    ),
    "DefinitionsOutdated": (
        {'modelrollout_definition_pruned_fields{kind="ModelDeployment"}': "3x60"},
        {'modelrollout_definition_pruned_fields{kind="ModelDeployment"}': "0x60"},
        {"severity": "warning", "kind": "ModelDeployment"},
        "20m",
    ),
    "RolloutsFail": (
        {
            ENDED: "0x10 5x50",
        },
        {
            ENDED: "0x10 1x50",
        },
        {"severity": "warning", "reason": "StoreUnavailable"},
        "20m",
    ),
    "FeedbackStopped": (
        {f'modelrollout_feedback_total{{{OF}, result="right"}}': "0+100x60 6000x400"},
        {f'modelrollout_feedback_total{{{OF}, result="right"}}': "0+100x500"},
        {"severity": "warning"},
        "300m",
    ),
}


def promtool(*args: str) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("promtool")
    assert tool, "no promtool: it comes with Debian's package prometheus, which the sandbox installs"
    return subprocess.run([tool, *args], capture_output=True, text=True, timeout=60)


def run(alert: str, series: Series, expected: list[dict[str, Any]], at: str, folder: Path) -> str:
    """What promtool says; empty where it is as expected."""
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": k, "values": v} for k, v in series.items()],
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)',
                        "eval_time": at,
                        "exp_samples": [{"labels": "{}", "value": len(expected)}],
                    },
                    *(
                        {
                            "expr": f"count(ALERTS{{{matchers}}})",
                            "eval_time": at,
                            "exp_samples": [{"labels": "{}", "value": 1}],
                        }
                        for labels in expected
                        for matchers in [
                            ", ".join(f'{k}="{v}"' for k, v in {"alertname": alert, **labels}.items())
                        ]
                    ),
                ],
            }
        ],
    }
    file = folder / "test.yaml"
    file.write_text(yaml.safe_dump(test))
    done = promtool("test", "rules", str(file))
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_the_rules_are_well_formed() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_for_its_case_alone(alert: str, tmp_path: Path) -> None:
    fires, silent, labels, at = CASES[alert]
    assert run(alert, fires, [labels], at, tmp_path) == ""
    assert run(alert, {**fires, **silent}, [], at, tmp_path) == ""
