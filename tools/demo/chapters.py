"""PURE: the story as it must go, what a ModelDeployment's status says of it, and whether the two
agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

Object = Mapping[str, Any]

STAGES = ("Resolve", "Prepare", "Provision", "Evaluate", "Canary", "Promote", "Revert")


@dataclass(frozen=True)
class Chapter:
    """One version and what must become of it."""

    name: str
    model: str | None  # whose file goes into spec.model.uri; None: go back by hand
    outcome: str
    reason: str | None = None  # None: no bad reason
    serves: bool = True  # whether it may answer a client's request
    back_to: str | None = None


CHAPTERS = (
    Chapter("v1", "v1", "Stable"),
    Chapter("v2", "v2", "Promoted"),
    Chapter("v3", "v3", "RolledBack", "AccuracyLow"),
    Chapter("v4", "v4", "RolledBack", "LatencyHigh"),
    Chapter("v5", "v5", "Rejected", "AccuracyLow", serves=False),
    Chapter("v6", "v6", "Rejected", "AccuracyDrop", serves=False),
    Chapter("v1-again", None, "Stable", back_to="v1"),
)


@dataclass(frozen=True)
class Ending:
    """What became of a version, from the status that the operator wrote."""

    name: str
    revision: str | None
    number: int | None
    outcome: str
    reason: str
    message: str
    stages: dict[str, float]
    size: tuple[int | None, int | None]
    accuracy: tuple[float | None, float | None]
    golden: float | None
    golden_p99_ms: float | None
    started: datetime
    finished: datetime
    steps: list[dict[str, Any]] = field(default_factory=list)


def in_flight(deployment: Object) -> Object | None:
    """The rollout under way, if any."""
    rollout: Object | None = deployment.get("status", {}).get("rollout")
    return rollout if rollout and rollout["stage"] not in ("Done", "Failed") else None


def has_ended(deployment: Object, generation: int, back_to: str | None = None) -> bool:
    """Whether the rollout of this generation has ended; with ``back_to``, the return to that
    revision.
    """
    rollout = deployment.get("status", {}).get("rollout")
    if not rollout or rollout["stage"] not in ("Done", "Failed"):
        return False
    if back_to is not None:
        return bool(rollout.get("mode") == "Rollback" and rollout.get("revision") == back_to)
    return bool(rollout.get("mode", "Update") == "Update" and rollout["generation"] >= generation)


def standstill(deployment: Object, generation: int) -> str | None:
    """Why nothing goes on although the rollout has not ended: the spec was refused, or it waits for
    a person.
    """
    status = deployment.get("status", {})
    stalled = condition(deployment, "Stalled")
    if stalled and stalled["status"] == "True" and status.get("observedGeneration", 0) >= generation:
        return f"{stalled['reason']}: {stalled.get('message', '')}"
    return None


def condition(deployment: Object, kind: str) -> Object | None:
    conditions: Sequence[Object] = deployment.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == kind), None)


def is_available(deployment: Object) -> bool:
    available = condition(deployment, "Available")
    return available is not None and available["status"] == "True"


def ending(name: str, deployment: Object, revision: Object | None) -> Ending:
    """Read the end of a rollout. The revision's own evidence stands in where a rollout skipped what
    was proven before.
    """
    rollout = deployment["status"]["rollout"]
    own: Object = (revision or {}).get("status", {})
    # in the order of the alphabet, as the API server sends it
    seconds: Object = rollout.get("stages", {})
    artifact: Object = rollout.get("artifact") or own.get("artifact") or {}
    evaluation: Object = rollout.get("evaluation") or own.get("evaluation") or {}
    return Ending(
        name=name,
        revision=rollout.get("revision"),
        number=rollout.get("number"),
        outcome=rollout.get("outcome") or "Failed",
        reason=rollout.get("reason") or "-",
        message=rollout.get("message") or evaluation.get("message") or "",
        stages={
            stage: float(seconds[stage])
            for stage in (*STAGES, *sorted(set(seconds) - set(STAGES)))
            if stage in seconds
        },
        size=(artifact.get("sizeBefore"), artifact.get("sizeAfter")),
        accuracy=(artifact.get("accuracyBefore"), artifact.get("accuracyAfter")),
        golden=evaluation.get("accuracy"),
        golden_p99_ms=evaluation.get("latencyP99Ms"),
        started=datetime.fromisoformat(rollout["started"]),
        finished=datetime.fromisoformat(rollout["since"]),
        steps=list(rollout.get("history", [])),
    )


def progress(deployment: Object) -> str:
    """One line: where the rollout is."""
    status = deployment.get("status", {})
    rollout = in_flight(deployment)
    if rollout is None:
        return str(status.get("phase", "Pending"))
    step = rollout.get("step")
    where = (
        f"{rollout['stage']}"
        if rollout["stage"] != "Canary" or not step
        else f"Canary {step['weight']} % ({step['phase']})"
    )
    return f"{where}: {rollout['reason']}" if rollout.get("reason") else where


def differences(
    chapter: Chapter, ending: Ending, before: Ending | None, answered: Mapping[str, Any]
) -> list[str]:
    """What is not as the chapter says. ``before``: the ending of the version gone back to;
    ``answered``: the client's versions by number.
    """
    wrong = []
    if ending.outcome != chapter.outcome:
        wrong.append(
            f"outcome {ending.outcome} ({ending.reason}: {ending.message}), expected {chapter.outcome}"
        )
    elif chapter.reason is not None and ending.reason != chapter.reason:
        wrong.append(f"reason {ending.reason} ({ending.message}), expected {chapter.reason}")
    if (
        chapter.model is not None
        and chapter.name != "v1"
        and chapter.serves
        and "Canary" not in ending.stages
    ):
        wrong.append("it had no canary")
    if not chapter.serves:
        if str(ending.number) in answered:
            wrong.append(
                f"it answered {answered[str(ending.number)]['answers']} of the client's requests, but must"
                " not get traffic"
            )
        if "Canary" in ending.stages:
            wrong.append("it came as far as the canary")
    if chapter.name == "v5" and "Evaluate" not in ending.stages:
        wrong.append("it was not evaluated")
    if chapter.name == "v6" and "Provision" in ending.stages:
        wrong.append("it was served, although the gate should have kept it out")
    if before is not None and (ending.revision != before.revision or "Prepare" in ending.stages):
        wrong.append(
            f"it is {ending.revision} with stages {sorted(ending.stages)}; expected {before.revision}, and"
            " nothing prepared again"
        )
    return wrong
