"""Every field of a status in every stage, damaged in every way that the API server lets through: no
pass crashes, and stable keeps its pods.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from modelrollout.analysis.counters import Raw, Sample
from modelrollout.analysis.reading import CounterReading
from modelrollout.api.v1alpha1 import (
    Counter,
    Draining,
    FollowStatus,
    InPlaceStatus,
    MetricStatus,
    ModelDeploymentStatus,
    Pinned,
    QueueStatus,
    RestartStatus,
    ServerCounts,
    ShadowStatus,
    StepEvidence,
    UserPause,
)
from modelrollout.controller.observe.observation import parse_status
from modelrollout.rollout.assessment import assess, metrics_due
from modelrollout.rollout.decide import decide
from modelrollout.rollout.desired.traffic import needs_measurement
from modelrollout.rollout.plan import Converge
from modelrollout.rollout.snapshot import Assessment, Snapshot
from modelrollout.testing import builders as b

pytestmark = pytest.mark.heavy

V1, V2 = b.revision_name(1), b.revision_name(2)
SPEC = b.spec(
    2,
    steps=b.STEPS,
    rollout={"bake": "5m", "shadow": {"minSamples": 10}},
    model={"uri": b.uri(2), "follow": {"every": "10m", "supersede": "Paused"}},
)
COUNTED = Counter(total=100, bad=3, last={"g": [100, 3, 1.0]}, scraped=1.0, spread=[5, 1, 3, 0.1, 100, 3])
METRIC = MetricStatus(
    name="errors",
    verdict="Inconclusive",
    reason="x",
    canary=COUNTED,
    stable=COUNTED,
    servers=ServerCounts(canary=COUNTED, stable=COUNTED),
    interval=[-0.1, 0.1],
    log_evidence=1.0,
    since=b.ago(4),
)
STEP = {"step": b.step(1, 25, metrics=[METRIC], measured=b.ago(3))}
SHADOW = ShadowStatus(
    phase="Observing",
    since=b.ago(5),
    mirror="RequestMirror",
    observed_since=b.ago(4),
    measured=b.ago(3),
    metric=METRIC,
)
FOLLOWED = FollowStatus(
    uri=b.uri(2),
    settings="0",
    sha256=b.sha(2),
    etag='"1"',
    seen=b.ago(2000),
    checked=b.ago(900),
    looking=b.ago(2),
    resumed=b.ago(60),
    reason="StoreUnreachable",
    message="m",
)
ENDED = {"outcome": "RolledBack", "reason": "x", "message": "m"}
STAGES: dict[str, dict[str, Any]] = {
    "Resolve": {},
    "Prepare": {},
    "Provision": {"queue": QueueStatus(since=b.ago(9), gpus=2, gpu_shortage_since=b.ago(3))},
    "Evaluate": {},
    "Shadow": {"shadow": SHADOW},
    "Canary": STEP | {"paused_by_user": UserPause(since=b.ago(2), by="x")},
    "Promote": STEP | {"in_place": InPlaceStatus(previous_stable_replicas=2, stable_replicas=1)},
    "Bake": {"step": b.step(3, 100, metrics=[METRIC])},
    "Revert": ENDED,
    "Failed": ENDED,
    "Done": {"outcome": "Promoted"},
}
WRONG = [
    None,
    "",
    "x",
    "2026-11-22T12:00:00",
    "9999-12-31T23:59:59Z",
    -1,
    7,
    1e300,
    [],
    {},
    {"a": "b"},
    [1, 2, 3],
]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all that is inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield (*at, key)
        yield from places(part, (*at, key))


def with_wrong(wire: dict[str, Any], place: tuple[Any, ...], wrong: Any) -> dict[str, Any]:
    made = copy.deepcopy(wire)
    inside: Any = made
    for key in place[:-1]:
        inside = inside[key]
    if wrong is None and isinstance(inside, dict):
        del inside[place[-1]]
    else:
        inside[place[-1]] = wrong
    return made


def two_passes(s: Snapshot) -> None:
    for seconds in (1, 40):
        s = replace(s, assessment=None)
        if needs_measurement(s, s.traffic) and s.status.rollout and s.status.rollout.stage != "Shadow":
            asked = metrics_due(s, b.at(seconds), "traefik")
            look = CounterReading(
                Raw({"g": Sample(200, 5, 1.0 + seconds)}), Raw({"g": Sample(1900, 20, 1.0 + seconds)})
            )
            actual = (
                asked
                if isinstance(asked, Assessment)
                else assess(s, asked, {m.name: look for m in asked}, b.at(seconds))
            )
            s = replace(s, assessment=actual)
        plan = decide(s, b.at(seconds))
        ModelDeploymentStatus.model_validate(plan.status.wire())
        if isinstance(plan, Converge):
            assert V1 in plan.desired.servers, "stable has lost its pods"
            assert sum(w for _, w in plan.desired.split) == 100 and all(
                0 < w <= 100 for _, w in plan.desired.split
            )
        s = replace(s, status=plan.status)


@pytest.mark.parametrize("stage", STAGES)
def test_no_damage_crashes_a_pass_or_costs_stable_its_pods(stage: str) -> None:
    record = StepEvidence(index=0, weight=5, verdict="Successful", reason="x", seconds=3, metrics=[METRIC])
    s = b.second(
        stage,
        wanted=SPEC,
        changes=STAGES[stage] | {"history": [record], "stages": {"Resolve": 1.0}},
        live_split=((V1, 75), (V2, 25)),
    )
    if stage == "Done":  # of stable itself, made anew
        s = replace(s, status=b.status(1, rollout=b.rollout("Done", 1, outcome="Stable")))
    more = {
        "draining": [Draining(revision=V1, number=1, until=b.ago(-100))],
        "restarts": {V1: RestartStatus(at=b.ago(3))},
    }
    pinned = Pinned(revision=V1, generation=1, rolled_back_from=V2) if stage == "Failed" else None
    kept = {"pinned": pinned, "handled_verbs": [f"promote:{V2}:n"], "follow": FOLLOWED}
    wire = s.status.model_copy(update=more | kept).wire()
    for place in places(wire):
        for wrong in WRONG:
            try:
                status = parse_status({"status": with_wrong(wire, place, wrong)})
                two_passes(replace(s, spec=SPEC.following(status.follow), status=status))
            except Exception as e:
                raise AssertionError(f"{'.'.join(map(str, place))} = {wrong!r}") from e
