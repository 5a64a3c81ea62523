"""Servers that end and come back while a version is on trial, on the real kubelet: counted, shown,
and never promoted by the operator itself.
"""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.api import names
from tests.e2e.conftest import Stage

pytestmark = pytest.mark.sandbox

NAME, SHADOWED = "restarts", "restarts-shadowed"
NO_GPU = {
    "replicas": 1,
    "resources": {"limits": {"cpu": "500m", "memory": "512Mi"}, "requests": {"cpu": "100m"}},
}
# as for a model that streams: whose versions are proven worse in here
SLOW_TO_END = {SHADOWED: {"drain": {"exitTimeout": "15m"}}}
WORSE_GRACE = 10 + 30 + 5  # preStop, what a version that was proven worse has beyond it, margin
# no request is sent, so that nothing else decides
TRIAL = {
    "canary": {"steps": [{"weight": 50}]},
    "analysis": {"interval": "1s", "initialDelay": "0s"},
    "progressDeadline": "10m",
}
STUB = "kill -9 $(cat /tmp/.stubs-of-* | tr -d ' ' | cut -d/ -f3)"
SERVER = "kill -TERM 1"


def deployment(stage: Stage, name: str, file: str, **rollout: Any) -> dict[str, Any]:
    traffic = stage.traffic(f"{name}.e2e.example")
    serving = NO_GPU | SLOW_TO_END.get(name, {})
    return stage.deployment(name, file, serving=serving, traffic=traffic, rollout={**TRIAL, **rollout})


def rollout(stage: Stage, name: str) -> dict[str, Any]:
    """status.rollout; empty before there is any."""
    state: dict[str, Any] = (stage.get(name).get("status") or {}).get("rollout") or {}
    return state


def server(stage: Stage, revision: str) -> tuple[str, dict[str, Any]]:
    """The one pod of a revision, and what the kubelet says of its server."""
    labels = f"{names.LABEL_REVISION}={revision},{names.LABEL_COMPONENT}={names.COMPONENT_SERVER}"
    (pod,) = (
        p for p in stage.cluster.pods(stage.namespace, labels) if not p["metadata"].get("deletionTimestamp")
    )
    status: dict[str, Any] = pod["status"]["containerStatuses"][0]
    return pod["metadata"]["name"], status


def run(stage: Stage, pod: str, command: str) -> str:
    return stage.cluster.kubectl(
        "exec", "-n", stage.namespace, pod, "-c", "triton", "--", "sh", "-c", command
    )


def end_server(stage: Stage, revision: str, how: str = SERVER) -> None:
    """End the revision's server from within, and wait until it is back."""
    stage.until("the server is ready", lambda: server(stage, revision)[1]["ready"], 60)
    pod, before = server(stage, revision)
    if how == STUB:
        listed = "cat /tmp/.stubs-of-* 2>/dev/null || true"
        stage.until("the probe has looked once", lambda: "/proc/" in run(stage, pod, listed), 30)
    run(stage, pod, how)
    stage.until(
        "it is started again",
        lambda: (
            (now := server(stage, revision)[1])["restartCount"] == before["restartCount"] + 1 and now["ready"]
        ),
        90,
    )


def counts(stage: Stage, name: str, side: str) -> int:
    """Ends that status counts of canary or stable."""
    restarts = rollout(stage, name).get("restarts") or {}
    return sum(((restarts.get(side) or {}).get("counts") or {}).values())


def on_trial(stage: Stage, name: str, file: str, stages: str = "Canary", **changes: Any) -> str:
    """Apply a version and wait until it is observed; its revision."""
    stage.apply(deployment(stage, name, file, **changes))

    def observed() -> str | None:
        at = rollout(stage, name)
        step = at.get("step" if stages == "Canary" else "shadow") or {}
        there = at.get("stage") == stages and step.get("phase") == "Observing"
        return str(at["revision"]) if there else None

    return stage.until(f"{file} is observed in {stages}", observed)


def test_a_version_whose_server_crashes_and_comes_back_waits_for_a_person(stage: Stage) -> None:
    stage.apply(deployment(stage, NAME, "good.onnx"))
    stage.until_ready(NAME)
    revision = on_trial(stage, NAME, "better.onnx")
    end_server(stage, revision, STUB)
    stage.until("the step is held", lambda: rollout(stage, NAME).get("reason") == "ServerRestarted", 30)
    assert counts(stage, NAME, "canary") == 1 and counts(stage, NAME, "stable") == 0
    message = rollout(stage, NAME)["message"]
    assert "ended once during its trial, stable's never" in message and "Python process" in message
    end_server(stage, revision)
    message = stage.until_stalled(NAME, "RepeatedCrashes", 30)
    assert "ended 2 times during its trial, stable's never" in message and "promote or abort" in message
    at = rollout(stage, NAME)
    assert (at["stage"], at["step"]["phase"], at["step"]["weight"]) == ("Canary", "Paused", 50)
    stage.until("events say so", lambda: {"ServerCrashed", "RepeatedCrashes"} <= set(stage.events(NAME)), 20)
    output = stage.cluster.modelrollout("status", NAME, "-n", stage.namespace)
    assert "ended 2 times during its trial" in " ".join(output.split())
    record = stage.until(
        "the revision keeps it",
        lambda: stage.cluster.revision(stage.namespace, revision)["status"].get("restarts"),
        20,
    )
    assert sum(record["canary"]["counts"].values()) == 2
    stage.cluster.modelrollout("promote", NAME, "-n", stage.namespace)
    stage.until_outcome(revision, "Promoted")
    stage.until_ready(NAME)


@pytest.mark.long
def test_what_ends_stables_server_too_says_nothing_about_the_version(stage: Stage) -> None:
    """After the test above."""
    stable = stage.get(NAME)["status"]["stable"]["revision"]
    revision = on_trial(stage, NAME, "third.onnx")
    end_server(stage, stable)
    stage.until("stable's end is counted", lambda: counts(stage, NAME, "stable") == 1, 30)
    end_server(stage, revision)
    stage.until("the canary's, too", lambda: counts(stage, NAME, "canary") == 1, 30)
    at = rollout(stage, NAME)
    assert (at["stage"], at["step"]["phase"]) == ("Canary", "Observing")
    assert at.get("reason") not in ("ServerRestarted", "RepeatedCrashes"), at
    stage.cluster.modelrollout("abort", NAME, "-n", stage.namespace)
    stage.until_outcome(revision, "Aborted")


@pytest.mark.long
def test_what_ends_in_the_shadow_while_stable_lives_is_rejected(stage: Stage) -> None:
    stage.apply(deployment(stage, SHADOWED, "good.onnx"))
    stage.until_ready(SHADOWED)
    stable = stage.get(SHADOWED)["status"]["stable"]["revision"]
    revision = on_trial(stage, SHADOWED, "better.onnx", "Shadow", shadow={"minSamples": 1000})
    end_server(stage, revision)
    stage.until("the shadow is held", lambda: rollout(stage, SHADOWED).get("reason") == "ServerRestarted", 30)
    end_server_unwatched(stage, revision)
    stage.until_outcome(revision, "Rejected")
    at = stage.get(SHADOWED)["status"]
    assert at["rollout"]["reason"] == "RepeatedCrashes" and at["stable"]["revision"] == stable
    labels = f"{names.LABEL_REVISION}={revision},{names.LABEL_COMPONENT}={names.COMPONENT_SERVER}"
    stage.until(
        "its pod ends, with less time than it was rendered with",
        lambda: (
            {
                p["metadata"].get("deletionGracePeriodSeconds")
                for p in stage.cluster.pods(stage.namespace, labels)
            }
            == {WORSE_GRACE}
        ),
        20,
    )


def end_server_unwatched(stage: Stage, revision: str) -> None:
    """End it; the operator may remove its pod before it is back."""
    stage.until("the server is ready", lambda: server(stage, revision)[1]["ready"], 60)
    run(stage, server(stage, revision)[0], SERVER)
