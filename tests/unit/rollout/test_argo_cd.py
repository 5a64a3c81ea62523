"""Argo CD's health and actions (the chart's Lua), run on statuses that the operator derives: each
action is carried out where discovery offers it.

Argo CD runs the scripts with Lua 5.1 and few libraries: none for health, ``os`` where an action
asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lupa.lua51 as lua
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelrollout.api import names
from modelrollout.api.v1alpha1 import ModelDeploymentStatus, UserPause
from modelrollout.crdgen.kinds import KINDS, crd
from modelrollout.crdgen.schema import Schema
from modelrollout.problem import Problem
from modelrollout.rollout.decide import decide
from modelrollout.rollout.policy.rules import combine, read
from modelrollout.rollout.snapshot import Snapshot, Verb
from modelrollout.rollout.status import derive_status
from modelrollout.testing import builders as b
from modelrollout.testing.model_cluster import ModelCluster

SCRIPTS = Path(__file__).parents[3] / "charts/model-rollout-operator/files/argo-cd"
V1, V2 = b.revision_name(1), b.revision_name(2)
FREEZE = combine(
    [
        read(
            {
                "metadata": {"name": "p"},
                "spec": {"freezeWindows": [{"start": "2026-11-22T11:00:00Z", "end": "2026-11-23T12:00:00Z"}]},
            }
        )
    ]
)


def run(script: str, obj: dict[str, Any]) -> Any:
    """What the script returns, as plain data."""
    runtime = lua.LuaRuntime(unpack_returned_tuples=True)
    runtime.globals().obj = runtime.table_from(obj, recursive=True)
    runtime.execute("string, io, debug, load, loadstring, dofile, package = nil")
    runtime.execute(
        "local clock = {date = os.date, time = os.time}; os = nil; require = function() return clock end"
    )
    return plain(runtime.execute((SCRIPTS / script).read_text()))


def plain(value: Any) -> Any:
    if lua.lua_type(value) != "table":
        return value
    items = dict(value.items())
    if items and set(items) == set(range(1, len(items) + 1)):
        return [plain(items[i]) for i in sorted(items)]
    return {k: plain(v) for k, v in items.items()}


def deployment(s: Snapshot) -> dict[str, Any]:
    status = derive_status(s, s.status, b.START)
    return {
        "kind": "ModelDeployment",
        "metadata": {"name": b.NAME, "generation": s.generation},
        "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
    }


def health(s: Snapshot) -> tuple[str, str]:
    told = run("ModelDeployment/health.lua", deployment(s))
    return told["status"], told["message"]


def serves(version: int = 1, **facts: Any) -> Snapshot:
    usual = {"revisions": (b.revision(1, "Stable"),), "servers": {V1: b.ready()}, "traffic": b.TAKEN}
    state = b.status(1, rollout=b.rollout("Done", 1, outcome="Stable"))
    return b.snapshot(b.spec(version), state, **usual | facts)


def dead() -> Snapshot:
    s = serves(servers={V1: b.ready(0)}, leading_since=b.START - timedelta(seconds=900))
    return replace(s, status=s.status.model_copy(update={"stable_down_since": b.ago(70)}))


def trial(phase: str = "Observing", **changes: Any) -> Snapshot:
    return b.second("Canary", changes={"step": b.step(0, 5, phase), **changes})


def failed() -> Snapshot:
    former = b.rollout("Failed", 2, outcome="RolledBack", reason="AccuracyLow", message="worse")
    revisions = (b.revision(1, "Stable"), b.revision(2, "RolledBack"))
    return replace(serves(2, revisions=revisions), status=b.status(1, rollout=former))


SITUATIONS: dict[str, tuple[Callable[[], Snapshot], str, str]] = {
    "at rest": (serves, "Healthy", "serves all traffic"),
    "scaled to zero": (
        lambda: replace(serves(servers={V1: b.ready(0, 0)}), spec=b.spec(1, replicas=0)),
        "Healthy",
        "spec.serving.replicas is 0",
    ),
    "stable is dead": (dead, "Degraded", "NoReadyPods"),
    "refused": (
        lambda: b.snapshot(b.spec(1), spec_problem=Problem("StoreNotAllowed", "use another store")),
        "Degraded",
        "StoreNotAllowed: use another store (no revision",
    ),
    "unreadable": (
        lambda: replace(serves(), spec=None, parse_error="spec.model: missing"),
        "Degraded",
        "InvalidSpec",
    ),
    "failed, stable serves": (failed, "Degraded", f"AccuracyLow: worse (revision {V1} serves)"),
    "a newer version makes way": (
        lambda: replace(failed(), spec=b.spec(3)),
        "Progressing",
        "the rollout has not begun",
    ),
    "in a canary": (trial, "Progressing", f"{V2} at step 1/3, 5 %: Canary"),
    "paused for a cause": (
        lambda: trial("Paused", reason="Inconclusive", message="too few samples"),
        "Degraded",
        "too few samples",
    ),
    "at a pause step": (
        lambda: trial("Paused", reason="PauseStep", message="waits for promote"),
        "Suspended",
        "PauseStep: waits for promote",
    ),
    "paused by hand": (
        lambda: trial(paused_by_user=UserPause(since=b.ago(5), by="n1")),
        "Suspended",
        "PausedByUser",
    ),
    "frozen": (lambda: replace(trial(), rules=FREEZE), "Suspended", "Frozen"),
    **{
        stage: (lambda stage=stage: b.second(stage), "Progressing", stage)  # type: ignore[misc]
        for stage in ("Resolve", "Prepare", "Provision", "Evaluate", "Promote", "Revert")
    },
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_health(situation: str) -> None:
    make, status, words = SITUATIONS[situation]
    assert health(make())[0] == status
    assert words in health(make())[1]


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_spec_that_the_operator_has_not_seen_is_in_progress_whatever_status_says(situation: str) -> None:
    obj = deployment(SITUATIONS[situation][0]())
    obj["metadata"]["generation"] += 1
    assert run("ModelDeployment/health.lua", obj)["status"] == "Progressing"


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*/health.lua")), ids=lambda p: p.parent.name)
def test_an_object_without_status_is_in_progress(script: Path) -> None:
    bare = {"kind": script.parent.name, "metadata": {"generation": 1}}
    assert run(str(script.relative_to(SCRIPTS)), bare)["status"] == "Progressing"


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        ("Pending", "Progressing"),
        ("Canary", "Progressing"),
        ("Promoted", "Healthy"),
        ("Retired", "Healthy"),
        ("RolledBack", "Degraded"),
    ],
)
def test_health_of_a_revision_is_what_became_of_it(outcome: str, status: str) -> None:
    told = run("ModelRevision/health.lua", {"status": {"outcome": outcome, "reason": "AccuracyLow"}})
    assert told == {"status": status, "message": f"{outcome}: AccuracyLow"}


def test_health_of_a_policy_is_whether_it_was_accepted() -> None:
    condition = {"type": "Accepted", "status": "False", "message": "spec.limits: no"}
    obj = {
        "metadata": {"generation": 2},
        "status": {"observedGeneration": 2, "conditions": [condition]},
    }
    assert run("RolloutPolicy/health.lua", obj) == {"status": "Degraded", "message": "spec.limits: no"}
    assert run("RolloutPolicy/health.lua", obj | {"metadata": {"generation": 3}})["status"] == "Progressing"


def revision(s: Snapshot, name: str) -> dict[str, Any]:
    written = next(r.status for r in s.revisions if r.name == name)
    if s.status.canary == name:
        written = written.model_copy(update={"step": s.status.step})
    status = written.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {"kind": "ModelRevision", "metadata": {"name": name}, "status": status}


def offered(kind: str, obj: dict[str, Any]) -> list[str]:
    found = run(f"{kind}/actions/discovery.lua", obj)
    assert set(found) == {p.parent.name for p in (SCRIPTS / kind / "actions").glob("*/action.lua")}
    return sorted(name for name, action in found.items() if not action["disabled"])


def requested(kind: str, action: str, obj: dict[str, Any]) -> Verb:
    """The verb that the operator reads once the action has been carried out."""
    made = run(f"{kind}/actions/{action}/action.lua", obj)
    made = made[0]["resource"] if kind == "ModelDeployment" else made
    (words,) = [made["metadata"]["annotations"][names.verb_annotation(action)].split()]
    name = made["metadata"]["name"] if made["kind"] == "ModelRevision" else ""
    return Verb(action, name, words[-1], words[0] if len(words) > 1 else None)


def outcome(s: Snapshot, verb: Verb) -> ModelDeploymentStatus:
    return decide(replace(s, verbs=(verb,)), b.START).status


def two_served() -> ModelCluster:
    world = ModelCluster(b.spec(1))
    world.serve()
    world.edit(b.spec(2))
    world.serve()
    return world


def pinned() -> Snapshot:
    world = two_served()
    world.say("rollback", V1, "n1")
    world.serve()
    return world.snapshot()


def rolled_back() -> Snapshot:
    world = ModelCluster(b.spec(1))
    world.serve()
    world.edit(b.spec(2))
    world.verdict = "Failed"
    for _ in range(20):
        world.kindly()
        world.reconcile()
    return world.snapshot()


CHOICES: dict[str, tuple[Callable[[], Snapshot], list[str]]] = {
    "at rest": (serves, ["restart"]),
    "in a canary": (trial, ["abort", "pause", "promote", "promote-full", "restart"]),
    "paused by hand": (
        lambda: trial(paused_by_user=UserPause(since=b.ago(5), by="n1")),
        ["abort", "promote", "promote-full", "restart", "resume"],
    ),
    "preparing": (lambda: b.second("Prepare"), ["abort", "restart"]),
    "going back": (lambda: b.second("Revert"), ["restart"]),
    "failed": (rolled_back, ["restart", "retry"]),
    "pinned": (pinned, ["restart", "retry"]),
}


@pytest.mark.parametrize("situation", CHOICES)
def test_an_action_is_offered_where_the_verb_is_carried_out(situation: str) -> None:
    make, expected = CHOICES[situation]
    s = make()
    s = replace(s, status=derive_status(s, s.status, b.START))
    obj = deployment(s)
    assert offered("ModelDeployment", obj) == expected
    for action in expected:
        verb = requested("ModelDeployment", action, deployment(s))
        after = outcome(s, verb)
        assert verb.key in after.handled_verbs, (action, after.handled_verbs)


def test_what_is_offered_on_revisions_is_carried_out() -> None:
    s = trial()
    s = replace(s, status=derive_status(s, s.status, b.START))
    assert offered("ModelRevision", revision(s, V2)) == [
        "abort", "pause", "promote", "promote-full", "restart", "resume",
    ]  # fmt: skip
    for action in ("abort", "pause", "promote", "promote-full"):
        verb = requested("ModelRevision", action, revision(s, V2))
        assert verb.key in outcome(s, verb).handled_verbs, action
    served = two_served().snapshot()
    assert offered("ModelRevision", revision(served, V2)) == ["restart"]
    assert offered("ModelRevision", revision(served, V1)) == ["retry", "rollback"]
    verb = requested("ModelRevision", "rollback", revision(served, V1))
    after = outcome(served, verb)
    assert verb.key in after.handled_verbs and after.rollout is not None and after.rollout.mode == "Rollback"


# Whoever may write a status may leave out what the schema does not demand.
STATUS: dict[str, Schema] = {
    kind.kind: crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    for kind in KINDS
}
READ: tuple[str, ...] = (
    "observedGeneration",
    "conditions",
    "canary",
    "step",
    "weight",
    "rollout",
    "pinned",
    "stable",
)
READ += ("outcome", "reason", "stage", "pausedByUser", "revision", "rolledBackFrom")
CONDITIONS = ("Ready", "Reconciling", "Stalled", "Available", "Accepted", "x")


def of_form(schema: Schema, name: str = "") -> st.SearchStrategy[Any]:
    """Values that the schema allows, of what scripts read."""
    if name == "conditions":  # each of them most of the time, or scripts end at their first question
        one = of_form(schema["items"])
        return st.fixed_dictionaries({}, optional=dict.fromkeys(CONDITIONS, one)).map(
            lambda made: [condition | {"type": kind} for kind, condition in made.items()]
        )
    if name == "observedGeneration":
        return st.sampled_from([1, 1, 0])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema.get("type"):
        case "integer":
            return st.integers(0, 3)
        case "number":
            return st.floats(0, 3)
        case "boolean":
            return st.booleans()
        case "array":
            return st.lists(of_form(schema["items"]), max_size=5)
        case "object":
            required = set(schema.get("required", ()))
            fields = schema.get("properties", {})
            read = {k: of_form(v, k) for k, v in fields.items() if k in required or k in READ or not name}
            read |= {"message": of_form(fields["message"])} if "message" in fields else {}
            optional = {k: v for k, v in read.items() if k not in required}
            return st.fixed_dictionaries({k: read[k] for k in required}, optional=optional)
        case _:
            return st.text(st.characters(codec="utf-8"), max_size=3)


@pytest.mark.parametrize(
    "script", sorted(str(p.relative_to(SCRIPTS)) for p in SCRIPTS.rglob("*.lua")), ids=lambda p: p
)
@given(data=st.data())
def test_no_status_that_the_definition_allows_breaks_a_script(script: str, data: st.DataObject) -> None:
    kind = script.split("/")[0]
    obj: dict[str, Any] = {"kind": kind, "metadata": {"name": "x", "generation": 1}}
    top = {k: v for k, v in STATUS[kind]["properties"].items() if k in READ}
    obj |= data.draw(
        st.fixed_dictionaries({}, optional={"status": of_form({**STATUS[kind], "properties": top})})
    )
    made = run(script, obj)
    if script.endswith("health.lua"):
        assert made["status"] in ("Healthy", "Progressing", "Suspended", "Degraded")
        assert isinstance(made["message"], str)
    elif script.endswith("action.lua"):
        made = made[0]["resource"] if kind == "ModelDeployment" else made
        assert len(made["metadata"]["annotations"]) == 1
