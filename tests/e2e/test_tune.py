"""Tuning on the real Triton: the settings that were measured are what the model is served with, and
the rollout goes on with them.
"""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

from modelrollout.api import names
from tests.e2e.conftest import Stage

pytestmark = pytest.mark.sandbox

NAME = "tuned"
PAUSED = {"canary": {"steps": [{"pause": {}}, {"weight": 50}]}, "progressDeadline": "5m"}


def tuned_deployment(stage: Stage, file: str, **tune: Any) -> dict[str, Any]:
    """A queue delay beyond the objective is configured, so that something better is there to be
    found.
    """
    made = stage.deployment(NAME, file, rollout=PAUSED)
    made["spec"]["serving"] |= {
        "batching": {"maxBatchSize": 64, "maxQueueDelay": "600ms"},
        "tune": {
            "objective": "400ms",
            "share": 0.9,
            "instances": [1, 2],
            "timeout": "25s",
            "data": {"uri": stage.data("good.npz")},
            **tune,
        },
    }
    return made


def tuning(stage: Stage, revision: str) -> dict[str, Any]:
    existing: dict[str, Any] = stage.cluster.revision(stage.namespace, revision)["status"]["tuning"]
    return existing


def served(stage: Stage, revision: str) -> dict[str, Any]:
    """The configuration that the revision's Triton says it serves with."""
    address = stage.cluster.service_address(stage.namespace, revision, names.PORT_HTTP)
    with urllib.request.urlopen(f"http://{address}/v2/models/{NAME}/config", timeout=10) as answer:
        report: dict[str, Any] = json.load(answer)
    return report


def matches(config: dict[str, Any], chosen: dict[str, Any]) -> bool:
    joined = config.get("dynamic_batching")
    preferred = (joined or {}).get("preferred_batch_size") or [config["max_batch_size"]]
    batch, delay = (preferred[0], joined["max_queue_delay_microseconds"]) if joined else (0, 0)
    told = (chosen["instances"], chosen["batch"], chosen["queueDelayMicroseconds"])
    return bool((config["instance_group"][0]["count"], batch, delay) == told)


def test_a_first_version_serves_with_what_was_measured(stage: Stage) -> None:
    stage.cluster.kubectl(
        "label", "namespace", stage.namespace, "pod-security.kubernetes.io/enforce=restricted"
    )
    stage.apply(tuned_deployment(stage, "good.onnx"))
    stage.until("it is being tuned", lambda: stage.condition(NAME, "Ready")["reason"] == "Tune")
    [pod] = stage.until(
        "the Job's pod",
        lambda: stage.cluster.pods(stage.namespace, f"{names.LABEL_COMPONENT}={names.COMPONENT_TUNE}"),
    )
    assert pod["spec"]["initContainers"][1]["resources"]["limits"]["nvidia.com/gpu"] == "1", (
        "where the serving pods run"
    )
    revision = stage.until_ready(NAME, 300)["status"]["stable"]["revision"]
    evidence = tuning(stage, revision)
    assert evidence["configured"]["queueDelayMicroseconds"] == 600_000 and not evidence["configured"].get(
        "within"
    )
    assert (
        evidence["chosen"]["within"] and evidence["chosen"]["latencyMs"] <= 400 and evidence["candidates"] > 1
    )
    assert matches(served(stage, revision), evidence["chosen"])
    assert served(stage, revision)["max_batch_size"] == 64, "what a client may send stays"
    assert stage.condition(NAME, "Tuned")["status"] == "True" and "ServingTuned" in stage.events(NAME)
    assert evidence["message"] in stage.cluster.modelrollout(
        "report", NAME, "-n", stage.namespace, "-o", "json"
    )


def test_another_objective_is_no_new_version_and_restarts_nothing(stage: Stage) -> None:
    before = stage.get(NAME)["status"]["stable"]
    [pod] = stage.cluster.pods(stage.namespace, f"{names.LABEL_COMPONENT}={names.COMPONENT_SERVER}")
    stage.apply(tuned_deployment(stage, "good.onnx", objective="300ms"))
    assert stage.until_ready(NAME)["status"]["stable"] == before
    assert [
        p["metadata"]["uid"]
        for p in stage.cluster.pods(stage.namespace, f"{names.LABEL_COMPONENT}={names.COMPONENT_SERVER}")
    ] == [pod["metadata"]["uid"]]


def test_the_next_version_is_tuned_too_and_its_canary_goes_on(stage: Stage) -> None:
    """Nothing can keep to this objective: it is told, and the canary decides."""
    stage.apply(tuned_deployment(stage, "better.onnx", objective="1ms", share=0.9999))
    stage.until(
        "the canary waits at its first pause", lambda: stage.get(NAME)["status"].get("step") == "1/2", 300
    )
    revision = stage.get(NAME)["status"]["rollout"]["revision"]
    evidence = tuning(stage, revision)
    assert "chosen" not in evidence and "nothing keeps" in evidence["message"]
    assert matches(served(stage, revision), evidence["configured"])
    assert "ObjectiveUnmet" in stage.events(NAME)


def test_a_server_that_ends_under_a_candidate_comes_back_and_the_search_goes_on(stage: Stage) -> None:
    name = "ended"
    made = tuned_deployment(stage, "third.onnx", timeout="45s")
    made["metadata"]["name"] = name
    stage.apply(made)
    jobs = f"{names.LABEL_NAME}={name},{names.LABEL_COMPONENT}={names.COMPONENT_TUNE}"

    def measures(pod: str) -> bool:
        return '"measured"' in stage.cluster.kubectl("logs", pod, "-c", "job", "-n", stage.namespace)

    def measuring() -> str | None:
        pods = stage.cluster.pods(stage.namespace, jobs)
        running = [
            p["metadata"]["name"]
            for p in pods
            if any("running" in c["state"] for c in p["status"].get("containerStatuses", []))
        ]
        return next(filter(measures, running), None)

    pod = stage.until("it measures", measuring)
    stage.cluster.kubectl("exec", pod, "-c", "triton", "-n", stage.namespace, "--", "sh", "-c", "kill 1")
    revision = stage.until_ready(name, 300)["status"]["stable"]["revision"]
    [job] = stage.cluster.jobs(stage.namespace, jobs)
    assert job["status"]["succeeded"] == 1 and not job["status"].get("failed"), "the Job did not begin anew"
    evidence = tuning(stage, revision)
    assert evidence["failed"] >= 1 and evidence["candidates"] > evidence["failed"]
