"""What is a fight and a wrong state, on Applications and ModelDeployments as the API server has
them.
"""

from __future__ import annotations

from typing import Any

import pytest

from gitops import judge
from gitops.judge import MANAGER, Operation, Tally

Object = dict[str, Any]


def application(
    health: str | None = None,
    *,
    name: str = "models",
    overall: str | None = None,
    sync: str = "Synced",
    **status: Any,
) -> Object:
    resource: Object = {"kind": "ModelDeployment", "name": "digits"}
    if health is not None:
        resource["health"] = {"status": health}
    return {
        "metadata": {"name": name},
        "status": {
            "resources": [resource],
            "health": {"status": overall or health},
            "sync": {"status": sync},
            **status,
        },
    }


def syncing(started: str, revision: str, phase: str = "Succeeded", **sync: Any) -> Object:
    state = {"startedAt": started, "phase": phase, "operation": {"sync": {"revision": revision, **sync}}}
    return application("Healthy", operationState=state)


def deployment(version: int, replicas: int, manager: str = MANAGER, **about: Any) -> Object:
    return {
        "metadata": {
            "name": "digits",
            "resourceVersion": str(version),
            "managedFields": [
                {"manager": manager},
                {"manager": "modelrollout", "subresource": "status"},
            ],
            **about,
        },
        "spec": {"replicas": replicas},
        "status": {"seen": version},
    }


def test_one_sync_is_counted_once_in_its_last_state() -> None:
    versions = [
        application("Missing"),
        syncing("10:00", "aaa", "Running"),
        syncing("10:00", "aaa"),
        syncing("10:05", "bbb", "Running"),
        syncing("10:05", "bbb", "Failed"),
    ]
    assert [(o.revision, o.phase) for o in judge.operations(versions)] == [
        ("aaa", "Succeeded"),
        ("bbb", "Failed"),
    ]


def test_a_sync_of_each_commit_is_no_fight() -> None:
    assert judge.repeated(judge.operations([syncing("1", "aaa"), syncing("2", "bbb")])) == ([], [])


def test_a_second_sync_of_a_commit_is_a_fight_and_one_that_heals_only_if_it_changed_something() -> None:
    healed = syncing("2", "aaa", autoHealAttemptsCount=1)
    syncs = judge.operations([syncing("1", "aaa"), healed, syncing("3", "aaa"), syncing("4", "bbb")])
    assert judge.repeated(syncs) == (
        ["models: sync 3 of the one commit aaa"],
        ["models: sync 2 of the one commit aaa (to heal itself)"],
    )


def test_two_applications_may_sync_the_same_commit() -> None:
    syncs = [Operation(name, "1", "aaa", "Succeeded", False, 0, "") for name in ("a", "b")]
    assert judge.repeated(syncs) == ([], [])


def test_status_may_be_written_as_often_as_the_operator_likes() -> None:
    assert judge.rewritten([deployment(11, 1), deployment(12, 1), deployment(13, 1)], [10]) == []


def test_each_commit_may_change_spec_once() -> None:
    versions = [deployment(11, 1), deployment(15, 1), deployment(21, 2), deployment(31, 1)]
    assert judge.rewritten(versions, [10, 20, 30]) == []


def test_what_is_changed_back_is_a_fight() -> None:
    versions = [deployment(11, 1), deployment(21, 2), deployment(22, 1), deployment(23, 2)]
    assert judge.rewritten(versions, [10, 20]) == [
        "digits: change 2 of spec or metadata after commit 2",
        "digits: change 3 of spec or metadata after commit 2",
    ]


@pytest.mark.parametrize("what", ["labels", "annotations"])
def test_metadata_counts_as_spec_does(what: str) -> None:
    changed = deployment(12, 1, **{what: {"a": "b"}})
    assert len(judge.rewritten([deployment(11, 1), changed], [10])) == 1


def test_another_writer_of_spec_is_a_fight_before_it_is_changed_back() -> None:
    assert judge.rewritten([deployment(11, 1, "modelrollout")], [10]) == [
        "digits: modelrollout wrote more than status"
    ]


@pytest.mark.parametrize(
    ("shown", "expected", "right"),
    [
        (["Missing", "Progressing", "Healthy"], "(Missing )?Progressing Healthy", True),
        (["Healthy", "Progressing", "Healthy"], "Healthy Progressing Healthy", True),
        (["Healthy", "Degraded", "Progressing", "Healthy"], "Healthy Progressing Healthy", False),
        (["Healthy"], "Healthy Progressing Healthy", False),
        ([], "Healthy", False),
    ],
)
def test_healths_are_held_against_what_the_moment_calls_for(
    shown: list[str], expected: str, right: bool
) -> None:
    assert (judge.unlike(shown, expected) is None) is right


def test_healths_are_each_change_and_nothing_before_the_first() -> None:
    versions = [application(), *map(application, ["Healthy", "Healthy", "Progressing", "Healthy"])]
    assert judge.healths(versions) == ["Healthy", "Progressing", "Healthy"]
    assert judge.healths([{"metadata": {"name": "models"}}]) == []


def test_nothing_differs_where_all_is_as_it_must_be() -> None:
    policy = {"kind": "RolloutPolicy", "name": "p", "health": {"status": "Healthy"}}
    shown = application("Suspended")
    shown["status"]["resources"].append(policy)
    assert judge.differing(shown, "Suspended", True) == []
    assert judge.differing(application("Healthy", sync="Unknown"), "Healthy", False) == []


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        (application("Healthy"), "the ModelDeployment is shown as Healthy, not Degraded"),
        (application("Degraded", overall="Healthy"), "the Application is Healthy, not Degraded"),
        (application("Degraded", sync="OutOfSync"), "OutOfSync, and Synced was expected"),
    ],
)
def test_what_differs_is_named(shown: Object, told: str) -> None:
    assert any(told in line for line in judge.differing(shown, "Degraded", True))


def test_a_policy_that_is_not_healthy_is_named() -> None:
    shown = application("Healthy")
    shown["status"]["resources"].append(
        {"kind": "RolloutPolicy", "name": "p", "health": {"status": "Degraded"}}
    )
    assert judge.differing(shown, "Healthy", True) == ["models: RolloutPolicy p is shown as Degraded"]


def test_what_was_refused_is_found_wherever_argo_cd_says_it() -> None:
    refused = ".spec.serving.replica: field not declared in schema"
    assert refused in judge.complaint(application(conditions=[{"message": refused}]))
    assert refused in judge.complaint(application(operationState={"phase": "Failed", "message": refused}))
    results = {"resources": [{"status": "SyncFailed", "message": refused}]}
    assert refused in judge.complaint(application(operationState={"phase": "Running", "syncResult": results}))
    assert (
        judge.complaint(application(operationState={"phase": "Succeeded", "message": "synced"})).strip() == ""
    )


def test_rollouts_that_wait_for_a_slot_are_not_at_once() -> None:
    def rollout(name: str, **state: Any) -> Object:
        return {"metadata": {"name": name}, "status": {"rollout": state}}

    slot = {"slot": {"since": "now"}}
    versions = [
        rollout("a", stage="Canary", **slot),
        rollout("b", stage="Provision", queue={"position": 1}),
        rollout("a", stage="Done", **slot),
        rollout("b", stage="Provision", **slot),
        rollout("c", stage="Provision", **slot),
    ]
    assert judge.at_once(versions) == 2


def test_the_last_line_and_what_makes_a_run_right() -> None:
    tally = Tally(commits=21, syncs=98, sent=7000)
    assert str(tally) == "gitops: 21 commits, 98 syncs, 0 fights, 0 wrong states, 0 failed requests of 7000"
    assert tally.is_right
    assert not Tally(sent=7000, fights=["x"]).is_right and not Tally(sent=7000, wrong=["x"]).is_right
    assert not Tally(sent=7000, failed=1).is_right
    assert not Tally().is_right, "without a request nothing shows that none fails"


def test_what_was_seen_is_told_in_words_also_of_what_has_no_status_yet() -> None:
    told = judge.words_of_application(application("Healthy", conditions=[{"message": "two\nlines"}]))
    assert told == ["Synced None", "None", "Healthy (model Healthy)", "two lines"]
    assert judge.words_of_application({"metadata": {"name": "models"}})[0] == "None None"
    ready = {"type": "Ready", "status": "True", "reason": "Stable"}
    seen = deployment(1, 1, generation=2)
    seen["status"] = {"observedGeneration": 1, "phase": "Stable", "conditions": [ready]}
    assert judge.words_of_deployment(seen) == ["generation 2, seen 1", "Stable", "Ready True Stable"]
