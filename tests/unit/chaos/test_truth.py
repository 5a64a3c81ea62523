"""What the chaos run holds to be right."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from chaos import truth
from chaos.truth import Expected, Final
from modelrollout.api import names

Object = dict[str, Any]
OLD, NEW = "m-old", "m-new"
PROMOTED = Expected("m", "Promoted", "d-new", "d-new", 2)
ROLLED_BACK = Expected("m", "RolledBack", "d-old", "d-new", 2)


def about(name: str, version: int = 1, **labels: str) -> Object:
    return {
        "name": name,
        "resourceVersion": str(version),
        "generation": 2,
        "labels": {f"modelrollout.dev/{k}": v for k, v in labels.items()},
    }


def state(version: int = 1, **status: Any) -> Object:
    """A ModelDeployment with two steps."""
    return {
        "metadata": about("m", version),
        "spec": {"rollout": {"canary": {"steps": [{"weight": 30}, {"weight": 60}]}}},
        "status": status,
    }


def rollout(stage: str, *passed: int, index: int | None = None) -> Object:
    actual: Object = {
        "revision": NEW,
        "stage": stage,
        "history": [{"index": i, "verdict": "Successful"} for i in passed],
    }
    return actual | ({"step": {"index": index, "weight": (30, 60)[index]}} if index is not None else {})


def in_flight(version: int, stage: str, *passed: int, index: int | None = None) -> Object:
    return state(version, stable={"revision": OLD}, rollout=rollout(stage, *passed, index=index))


STABLE = state(-1, stable={"revision": OLD})


def route(version: int, kind: str = "HTTPRoute", **split: int) -> Object:
    refs = [{"name": name.replace("_", "-"), "weight": weight} for name, weight in split.items()]
    return {"kind": kind, "metadata": about("m", version), "spec": {"rules": [{"backendRefs": refs}]}}


def test_a_rollout_by_the_book_has_no_wrong_rise() -> None:
    states = [
        in_flight(1, "Canary", index=0),
        in_flight(3, "Canary", 0, index=1),
        in_flight(5, "Promote", 0, 1),
        state(7, stable={"revision": NEW}),
    ]
    routes = [
        route(0, m_old=100),
        route(2, m_old=70, m_new=30),
        route(4, m_old=40, m_new=60),
        route(6, m_new=100),
    ]
    assert truth.rises([STABLE, *states], routes, ()) == []


@pytest.mark.parametrize(
    ("before", "weight", "most"),
    [
        (in_flight(1, "Provision"), 30, 0),
        (in_flight(1, "Canary", index=0), 60, 30),
        (in_flight(1, "Canary", index=1), 60, 0),  # step 1 without a verdict on step 0
        (in_flight(1, "Promote", 0), 100, 30),
        (in_flight(1, "Failed", 0, 1), 60, 0),
        (in_flight(1, "Revert", 0, index=1), 60, 0),
    ],
)
def test_a_weight_that_nothing_allows_is_found(before: Object, weight: int, most: int) -> None:
    [rise] = truth.rises(
        [STABLE, before], [route(0, m_old=100), route(2, m_old=100 - weight, m_new=weight)], ()
    )
    assert (rise.revision, rise.weight) == (NEW, weight)
    assert f"{most} % were allowed" in rise.text


def test_who_has_taken_over_from_a_dead_stable_may_have_everything() -> None:
    taken = in_flight(1, "Canary", index=0)
    taken["status"]["rollout"]["step"] |= {"weight": 100, "override": "StableDead: stable is gone"}
    promoted = copy.deepcopy(taken) | {"metadata": about("m", 3)}
    promoted["status"]["rollout"]["stage"] = "Promote"
    routes = [route(0, m_old=100), route(2, m_new=100), route(4, m_old=100), route(5, m_new=100)]
    assert truth.rises([STABLE, taken, promoted], routes, ()) == []


def test_what_counts_is_the_state_before_the_write() -> None:
    routes = [route(0, m_old=100), route(2, m_old=70, m_new=30)]
    assert len(truth.rises([STABLE, in_flight(3, "Canary", index=0)], routes, ())) == 1
    assert truth.rises([STABLE, in_flight(1, "Canary", index=0)], routes, ()) == []


def test_an_override_lets_a_step_go_on_and_what_the_run_wrote_itself_is_left_out() -> None:
    skipped = in_flight(1, "Canary", index=1)
    skipped["status"]["rollout"]["step"]["override"] = "promote x at 1/2"
    routes = [route(0, m_old=100), route(2, m_old=40, m_new=60)]
    assert truth.rises([STABLE, skipped], routes, ()) == []
    assert truth.rises([STABLE, in_flight(1, "Provision")], routes, {"2"}) == []


def conditions(*, good: bool) -> list[Object]:
    values = {"Ready": good, "Available": True, "Reconciling": False, "Stalled": not good}
    return [{"type": t, "status": str(v), "reason": "r", "message": ""} for t, v in values.items()]


def revision(name: str, outcome: str) -> Object:
    metadata = about(name) | {"annotations": {names.ANNOTATION_OUTCOME: outcome}}
    return {
        "kind": "ModelRevision",
        "metadata": metadata,
        "spec": {"sha256": f"d-{name[2:]}"},
        "status": {"outcome": outcome},
    }


def pod(name: str, of: str) -> Object:
    return {
        "metadata": about(name, revision=of, component="server"),
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }


def final(expected: Expected) -> Final:
    """As it must be."""
    good = expected.outcome == "Promoted"
    stable = NEW if good else OLD
    status = {
        "stable": {"revision": stable},
        "rollout": {"outcome": expected.outcome, "reason": None if good else "AccuracyLow"},
        "conditions": conditions(good=good),
    }
    return Final(
        deployment=state(9, **status),
        revisions=[revision(OLD, "Retired" if good else "Stable"), revision(NEW, expected.outcome)],
        routes=[route(8, "HTTPRoute", **{stable: 100}), route(8, "GRPCRoute", **{stable: 100})],
        services=[
            {"metadata": about(stable), "spec": {}},
            {"metadata": about("m"), "spec": {"selector": {names.LABEL_REVISION: stable}}},
        ],
        deployments=[{"metadata": about(stable)}],
        pods=[pod("a", stable), pod("b", stable)],
        jobs=[{"metadata": about("j"), "status": {"conditions": [{"type": "Complete", "status": "True"}]}}],
        budgets=[
            {"metadata": about("m"), "spec": {"selector": {"matchLabels": {names.LABEL_REVISION: stable}}}}
        ],
    )


@pytest.mark.parametrize("expected", [PROMOTED, ROLLED_BACK])
def test_the_right_end_has_no_problem(expected: Expected) -> None:
    assert truth.problems(expected, final(expected)) == []


def _set(o: Any, path: str, value: Any) -> None:
    *way, last = path.split("/")
    for part in way:
        o = o[int(part)] if isinstance(o, list) else getattr(o, part) if isinstance(o, Final) else o[part]
    o[int(last) if isinstance(o, list) else last] = value


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        ("deployment/status/stable", {"revision": NEW}, "stable is"),
        ("deployment/status/rollout/outcome", "Failed", "outcome Failed"),
        ("deployment/status/rollout/reason", "ProviderUnreachable", "reason ProviderUnreachable"),
        ("deployment/status/conditions/1/status", "False", "condition Available"),
        ("revisions/1/metadata/annotations", {}, "not quarantined"),
        ("revisions/0/status/outcome", "Retired", "(stable) has outcome Retired"),
        ("routes/0/spec/rules/0/backendRefs/0/name", NEW, "expected all to m-old"),
        ("deployments/0/metadata/name", NEW, "Deployments"),
        ("services/0/metadata/name", NEW, "Services"),
        ("services/1/spec/selector", {}, "stable Service selects"),
        ("budgets/0/spec/selector/matchLabels", {names.LABEL_REVISION: NEW}, "PodDisruptionBudgets"),
        ("pods/0/metadata/labels/modelrollout.dev~revision", NEW, "pods of what is not stable"),
        ("pods/0/status/conditions/0/status", "False", "1 ready pods"),
        ("jobs/0/status", {}, "Jobs still run"),
    ],
)
def test_each_deviation_is_named(path: str, value: Any, word: str) -> None:
    seen = copy.deepcopy(final(ROLLED_BACK))
    if "~" in path:
        seen.pods[0]["metadata"]["labels"]["modelrollout.dev/revision"] = value
    else:
        _set(seen, path, value)
    assert any(word in problem for problem in truth.problems(ROLLED_BACK, seen)), truth.problems(
        ROLLED_BACK, seen
    )


def test_a_missing_revision_or_route_is_named() -> None:
    right = final(PROMOTED)
    assert "missing" in truth.problems(PROMOTED, Final(right.deployment, right.revisions[:1]))[0]
    short = Final(**{**right.__dict__, "routes": right.routes[:1]})
    assert truth.problems(PROMOTED, short) == ["1 routes, expected 2"]


def test_an_end_is_that_of_the_version_that_was_applied_last() -> None:
    done = state(1, observedGeneration=2, rollout={"stage": "Done", "outcome": "Promoted", "sha256": "d-new"})
    assert truth.ended(done, PROMOTED)
    for change in ({"stage": "Canary"}, {"sha256": "d-old"}, {"stage": "Failed", "outcome": "Superseded"}):
        other = copy.deepcopy(done)
        other["status"]["rollout"] |= change
        assert not truth.ended(other, PROMOTED)
    assert not truth.ended(state(1), PROMOTED)


def test_a_status_that_the_run_emptied_is_no_state_of_the_operator() -> None:
    states = [STABLE, in_flight(1, "Canary", index=0), state(2)]
    routes = [route(0, m_old=100), route(3, m_old=70, m_new=30)]
    assert truth.rises(states, routes, {"2"}) == []
    assert len(truth.rises(states, routes, ())) == 1
