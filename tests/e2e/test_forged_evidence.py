"""A pod in another namespace exposes every counter that rollouts are judged by, in the name of the
victims: nothing changes for them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from modelrollout.analysis.providers.prometheus.sources.traefik import service_labels
from tests.e2e.conftest import Stage

pytestmark = pytest.mark.sandbox

ATTACKER, FORGER = "e2e-forger", "forger"
# judged by gateway and labels, by the comparer, by the servers
BEHIND, SHADOWED, PLAIN = "behind", "mirrored", "plain"
EXPECTED_STAGES = {BEHIND: "Canary", SHADOWED: "Shadow", PLAIN: "Canary"}
WATCHED_SECONDS = 15.0
# Counters that grow by RATE a second from the start of the pod; each line is a series.
PROGRAM = """
import http.server, os, time
began, lines = time.time(), os.environ["SERIES"].splitlines()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        n = int(500 * (time.time() - began)) + 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write("".join(f"{line} {n}\\n" for line in lines).encode())
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("", 8002), Handler).serve_forever()
"""


def behind(stage: Stage, name: str, **rollout: Any) -> dict[str, Any]:
    traffic = stage.traffic(f"{name}.forged.example")
    return stage.deployment(
        name,
        traffic=traffic,
        rollout={"progressDeadline": "10m", "canary": {"steps": [{"weight": 20}]}, **rollout},
    )


def victims(stage: Stage, file: str) -> list[dict[str, Any]]:
    errors = {"name": "errors", "maxIncrease": 0.02, "minSamples": 10}
    actual = [
        behind(
            stage,
            BEHIND,
            analysis={
                "interval": "1s",
                "initialDelay": "0s",
                "metrics": [errors, {"name": "accuracy", "maxDrop": 0.05, "minSamples": 10}],
            },
        ),
        behind(
            stage,
            SHADOWED,
            analysis={"interval": "1s", "initialDelay": "0s"},
            shadow={"minSamples": 100, "minAgreement": 0.95},
        ),
        stage.deployment(
            PLAIN,
            rollout={
                "progressDeadline": "10m",
                "analysis": {"interval": "1s", "initialDelay": "0s", "metrics": [errors]},
            },
        ),
    ]
    for victim in actual:
        victim["spec"]["model"]["uri"] = stage.uri(file)
    return actual


def forged(stage: Stage) -> list[str]:
    """Right labels, pairs that agree and good requests for all; failures for the canaries too."""
    actual = []
    for name in EXPECTED_STAGES:
        status = stage.get(name)["status"]
        sides = {r["revision"]: r["number"] for r in (status["stable"], status["rollout"])}
        for revision, number in sides.items():
            for service in service_labels(stage.namespace, revision):
                codes = ("200", "500") if number == status["rollout"]["number"] else ("200",)
                actual += [
                    f'traefik_service_requests_total{{service="{service}",code="{c}",method="POST",protocol="http"}}'
                    for c in codes
                ]
            own = f'model_namespace="{stage.namespace}",name="{name}",version="{number}",slice=""'
            actual.append(f'modelrollout_feedback_total{{{own},result="right"}}')
            server = f'namespace="{stage.namespace}",pod="{revision}-6d9f8b7c5d-x2x4z",revision="{revision}",model="{name}",version="{number}"'  # noqa: E501
            actual.append(f"nv_inference_request_success{{{server}}}")
        canary, stable = status["rollout"]["number"], status["stable"]["number"]
        pair = f'namespace="{stage.namespace}",name="{name}",canary="{canary}",stable="{stable}"'
        actual.append(f'modelrollout_shadow_total{{{pair},result="agree"}}')
    return actual


def pod(stage: Stage, series: list[str]) -> dict[str, Any]:
    annotations = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": "8002",
        "prometheus.io/path": "/metrics",
    }
    # The scrape copies these two labels of pods to its targets.
    labels = {
        "modelrollout.dev/name": PLAIN,
        "modelrollout.dev/revision": stage.get(PLAIN)["status"]["rollout"]["revision"],
    }
    container = {
        "name": "forger",
        "image": stage.cluster.target.images.operator,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", PROGRAM],
        "env": [{"name": "SERIES", "value": "\n".join(series)}],
        "ports": [{"containerPort": 8002}],
    }
    about = {"name": FORGER, "namespace": ATTACKER, "annotations": annotations, "labels": labels}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": about,
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
    }


def series_of_the_forger(stage: Stage) -> set[str]:
    """Names of the metrics that Prometheus has of it."""
    query = (
        "count by (__name__)"
        f' ({{namespace="{ATTACKER}",pod="{FORGER}",__name__=~"traefik_.*|modelrollout_.*|nv_.*"}})'
    )
    return {row["metric"]["__name__"] for row in stage.query(query)}


@pytest.fixture(scope="module")
def attacked(stage: Stage) -> Iterator[Stage]:
    """Every victim is being judged, no request and no label has come, and the forged series are in
    Prometheus.
    """
    stage.apply(*victims(stage, "good.onnx"))
    for name in EXPECTED_STAGES:
        stage.until_ready(name)
    stage.apply(*victims(stage, "wrong.onnx"))
    for name, desired in EXPECTED_STAGES.items():
        stage.until(f"{name} is judged", partial(judged, stage, name, desired), limit=240)
    stage.cluster.fresh_namespace(ATTACKER)
    try:
        stage.apply(pod(stage, forged(stage)))
        stage.until("Prometheus has what is forged", lambda: len(series_of_the_forger(stage)) == 4)
        time.sleep(WATCHED_SECONDS)
        yield stage
    finally:
        stage.cluster.kubectl("delete", "namespace", ATTACKER, "--wait=false")


def judged(stage: Stage, name: str, desired: str) -> bool:
    rollout = stage.get(name)["status"].get("rollout") or {}
    phase = (rollout.get("shadow") if desired == "Shadow" else rollout.get("step")) or {}
    return bool(rollout.get("stage") == desired and phase.get("phase") == "Observing")


@pytest.mark.parametrize("name", EXPECTED_STAGES)
def test_nothing_changes_for_the_victim(attacked: Stage, name: str) -> None:
    rollout = attacked.get(name)["status"]["rollout"]
    assert rollout["stage"] == EXPECTED_STAGES[name], f"{rollout['stage']}: {rollout.get('message')}"
    metrics = [rollout["shadow"]["metric"]] if name == SHADOWED else rollout["step"]["metrics"]
    for metric in metrics:
        counted = [metric.get(side, {}).get("total", 0) for side in ("canary", "stable")]
        assert metric["verdict"] != "Failed" and not any(counted), (
            f"{metric['name']}: {counted}: {metric['message']}"
        )


def test_the_operator_has_seen_that_only_those_count_who_should(attacked: Stage) -> None:
    """What is left to say is that nothing keeps strangers from the comparer: no NetworkPolicies are
    written here.
    """
    left = {name: "Unprotected" if name == SHADOWED else "" for name in EXPECTED_STAGES}
    attacked.until(
        "no counter is in doubt",
        lambda: (
            {name: attacked.condition(name, "EvidenceVerified")["reason"] for name in EXPECTED_STAGES} == left
        ),
        limit=330,
    )
