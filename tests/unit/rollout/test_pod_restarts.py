"""Pods that an earlier operator rendered, their restart, and servers that die: what is decided and
what is told.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelrollout.api.v1alpha1 import CrashStatus, Drain, RestartStatus
from modelrollout.problem import Problem
from modelrollout.rollout.decide import decide
from modelrollout.rollout.desired import desired
from modelrollout.rollout.plan import Converge, Plan, Wait
from modelrollout.rollout.snapshot import Crash, Gpus, Server, Snapshot, Verb
from modelrollout.testing import builders as b

V1, V2 = b.revision_name(1), b.revision_name(2)
OLD = Server(2, 2, None, 2, hardened=None, updated=2)  # as the earlier operator left it
TOO_OLD = Problem("TritonTooOld", "pod p, container triton: its image is too old")


def serves(server: Server = OLD, **facts: Any) -> Snapshot:
    changed = replace(b.revision(1, "Stable"), hardened=False)
    state = b.status(1, rollout=b.rollout("Done", 1, outcome="Stable"))
    return b.snapshot(
        b.spec(1), state, **({"revisions": (changed,), "servers": {V1: server}, "traffic": b.TAKEN} | facts)
    )


def after(s: Snapshot, now: Any = b.START, **facts: Any) -> Snapshot:
    """With the status that the next transition writes."""
    return replace(s, status=decide(s, now).status, **facts)


def row(plan: Plan | Snapshot, kind: str) -> tuple[str, str, str] | None:
    actual = next((c for c in plan.status.conditions if c.type == kind), None)
    return (actual.status, actual.reason, actual.message) if actual else None


def events(plan: Plan) -> list[tuple[str, str]]:
    return [(e.type, e.reason) for e in b.events(plan)]


def say(verb: str = "restart", nonce: str = "n1", revision: str = V1) -> tuple[Verb, ...]:
    return (Verb(verb, revision, nonce),)


def test_an_upgrade_restarts_nothing_and_says_what_is_open() -> None:
    plan = decide(serves(), b.START)
    assert desired(serves(), b.START).hardened == {}
    condition = row(plan, "Hardened")
    assert (
        condition
        and condition[:2] == ("False", "Unhardened")
        and V1 in condition[2]
        and "modelrollout restart" in condition[2]
    )
    assert ("Warning", "Unhardened") in events(plan)
    assert decide(after(serves()), b.at(60)).status == after(serves()).status, "told once"


@pytest.mark.parametrize(
    ("drain", "live", "said"),
    [
        (None, (10, 30), None),
        ({"preStop": "10s", "exitTimeout": "30s"}, (10, 30), None),
        ({"exitTimeout": "15m"}, (10, 30), "keeps exitTimeout 30s instead of 15m"),
        (
            {"preStop": "5s", "exitTimeout": "15m"},
            (10, 30),
            "preStop 10s instead of 5s and exitTimeout 30s instead of 15m",
        ),
        ({"exitTimeout": "15m"}, None, None),
    ],
)
def test_pods_keep_the_drain_that_they_were_rendered_with_and_status_says_so(
    drain: dict[str, str] | None, live: tuple[int, int] | None, said: str | None
) -> None:
    s = serves(replace(OLD, hardened="2", drain=live), revisions=(b.revision(1, "Stable"),))
    assert s.spec is not None
    wanted = None if drain is None else Drain.model_validate(drain)
    serving = s.spec.serving.model_copy(update={"drain": wanted})
    s = replace(s, spec=s.spec.model_copy(update={"serving": serving}))
    assert s.spec is not None and s.revisions[0].is_version(s.spec), "no part of the version"
    plan = decide(s, b.START)
    condition = row(plan, "DrainCurrent")
    assert plan.status.rollout is not None and plan.status.rollout.stage == "Done", "nothing begins"
    if said is None:
        assert condition is None
    else:
        assert condition is not None and condition[:2] == ("False", "DrainFrozen")
        assert said in condition[2] and V1 in condition[2] and "spec.serving.drain" in condition[2]


def test_an_earlier_version_of_the_hardening_is_renewed_by_a_restart_and_by_no_upgrade() -> None:
    earlier = replace(b.revision(1, "Stable"), outdated="1")
    live = replace(OLD, hardened="1", overlay="1")
    s = serves(live, revisions=(earlier,))
    assert desired(s, b.START).hardened == {}, "an upgrade lays nothing over it, and restarts nothing"
    assert decide(s, b.START).status.restarts == {} and row(after(s), "Hardened") is None
    said = after(after(s, verbs=say()))
    assert desired(said, b.START).hardened == {V1: None} and desired(said, b.START).restarts
    renewed = replace(said, servers={V1: replace(OLD, hardened="2", overlay="2")})
    assert desired(renewed, b.START).hardened == {V1: None}
    done = replace(s, servers={V1: replace(OLD, hardened="2", overlay="2")})
    assert desired(done, b.START).hardened == {V1: "2"}, "also when its restart is forgotten"
    gone = replace(s, servers={})
    assert desired(gone, b.START).hardened == {V1: None}, "pods that are new anyway get the latest"
    assert desired(serves(live, revisions=(b.revision(1, "Stable"),)), b.START).hardened == {}


def test_a_restart_hardens_and_what_is_hardened_stays_so() -> None:
    said = after(after(serves(), verbs=say()))
    at = said.status.restarts[V1].at
    assert desired(said, b.START).hardened.keys() == {V1} and desired(said, b.START).restarts == {V1: at}
    written = replace(
        said, servers={V1: replace(OLD, hardened="1", overlay="1", restarted=at, updated=1, replicas=3)}
    )
    assert desired(written, b.START).hardened.keys() == {V1}
    assert row(after(written), "Restarted") == (
        "False",
        "InProgress",
        f"{V1}: its pods are replaced one after the other",
    )
    done = after(written, servers={V1: replace(OLD, hardened="1", overlay="1", restarted=at)})
    ended = decide(done, b.at(5))
    assert (
        ended.status.restarts[V1].done and row(ended, "Hardened") is None and row(ended, "Restarted") is None
    )
    assert ("Normal", "Hardened") in events(ended) and desired(
        replace(done, status=ended.status), b.START
    ).hardened.keys() == {V1}
    lost = replace(done, status=ended.status.model_copy(update={"restarts": {}}))
    assert desired(lost, b.START).hardened.keys() == {V1} and desired(lost, b.START).restarts == {V1: at}, (
        "a lost status changes no pod"
    )


def test_a_restart_that_is_over_is_not_told_again_when_replicas_change() -> None:
    s = after(after(serves(replace(OLD, hardened="1", overlay="1")), verbs=say()))
    at = s.status.restarts[V1].at
    over = after(replace(s, servers={V1: replace(OLD, hardened="1", overlay="1", restarted=at)}))
    scaled = replace(
        over,
        servers={V1: replace(OLD, hardened="1", overlay="1", restarted=at, desired_replicas=5, updated=2)},
    )
    assert row(decide(scaled, b.at(60)), "Restarted") is None


def test_a_revision_that_comes_up_anew_is_hardened() -> None:
    """A rollback to what an earlier operator rendered, whose pods are long gone."""
    retained = tuple(replace(b.revision(v, o), hardened=False) for v, o in ((1, "Retired"), (2, "Stable")))
    s = b.snapshot(
        b.spec(2), b.status(2), revisions=retained, servers={V2: OLD}, traffic=b.TAKEN, verbs=say("rollback")
    )
    going = replace(s, status=decide(s, b.START).status)
    assert going.status.rollout and going.status.rollout.mode == "Rollback"
    assert desired(going, b.START).hardened.keys() == {V1}, "and what serves meanwhile stays as it is"


def test_an_edit_of_the_servers_does_not_take_it_away() -> None:
    """A user opens the servers of a revision by kubectl edit: drift is put back, and not to what
    an earlier operator rendered.
    """
    came_up = serves(replace(OLD, overlay="1"))
    assert desired(came_up, b.START).hardened == {V1: "1"}
    said = after(after(serves(), verbs=say()))
    stripped = replace(said, servers={V1: replace(OLD, restarted=said.status.restarts[V1].at)})
    assert desired(stripped, b.START).hardened == {V1: None}


def test_what_is_laid_over_a_template_does_not_change_with_the_operator() -> None:
    """The next version of it comes to pods with their next restart."""
    s = serves(replace(OLD, hardened="0", overlay="0"))
    assert desired(s, b.START).hardened == {V1: "0"}
    said = after(after(s, verbs=say()))
    assert desired(said, b.START).hardened == {V1: None}


def test_an_image_too_old_for_the_flags_leaves_the_pods_that_serve_alone() -> None:
    before = replace(OLD, restarted="2026-11-20T10:00:00.000Z")
    said = after(after(serves(before), verbs=say()))
    at = said.status.restarts[V1].at
    fell = replace(
        said, servers={V1: Server(3, 2, TOO_OLD, 2, restarted=at, hardened="1", overlay="1", updated=1)}
    )
    plan = decide(fell, b.at(8))
    assert ("Warning", "TritonTooOld") in events(plan) and plan.status.restarts[V1].triton_too_old
    changed = replace(fell, status=plan.status)
    expected = desired(changed, b.at(9))
    assert expected.hardened == {} and expected.restarts == {V1: "2026-11-20T10:00:00.000Z"}, (
        "the very template that they have"
    )
    told = after(replace(changed, servers={V1: before}), b.at(10))
    condition = row(told, "Hardened")
    assert (
        condition
        and condition[:2] == ("False", "TritonTooOld")
        and "spec.serving.triton.image" in condition[2]
        and row(told, "Restarted") is None
    )
    assert desired(told, b.at(20)).hardened == {}
    again = after(replace(told, verbs=say(nonce="n2")), b.at(30))
    assert desired(again, b.at(30)).hardened.keys() == {V1}, (
        "a person asks once more: the image may be another by now"
    )


def test_after_downtime_that_was_allowed_the_pods_of_before_come_back() -> None:
    """Their image is too old, and the only pod has ended: what served before serves again."""
    s = after(after(serves(), verbs=say("restart-allow-downtime")))
    gone = replace(
        s,
        servers={
            V1: Server(
                1, 0, TOO_OLD, 1, restarted=s.status.restarts[V1].at, hardened="1", overlay="1", updated=1
            )
        },
    )
    plan = decide(gone, b.at(8))
    assert (
        plan.status.restarts[V1].triton_too_old
        and desired(replace(gone, status=plan.status), b.at(8)).hardened == {}
    )


def test_two_restarts_at_once_go_back_to_the_pods_that_serve() -> None:
    before = replace(OLD, restarted="2026-11-20T10:00:00.000Z")
    first = after(after(serves(before), verbs=say()))
    written = replace(
        first,
        servers={
            V1: replace(before, restarted=first.status.restarts[V1].at, hardened="1", overlay="1", updated=1)
        },
    )
    second = after(replace(written, verbs=say("restart-allow-downtime", "n2")), b.at(3))
    assert second.status.restarts[V1].previous_at == "2026-11-20T10:00:00.000Z"


def test_a_record_of_pods_that_are_gone_is_forgotten() -> None:
    """A Deployment that is deleted comes up hardened, and stays so, whatever was known of its
    pods.
    """
    restored = after(serves(), servers={V1: OLD})
    old = replace(
        restored,
        status=restored.status.model_copy(
            update={"restarts": {V1: RestartStatus(at=b.ago(9), triton_too_old=True)}}
        ),
        servers={},
    )
    assert desired(old, b.START).hardened == {V1: None}
    assert decide(old, b.START).status.restarts == {}


def test_what_a_newer_operator_has_laid_over_it_is_left_alone() -> None:
    newer = serves(replace(OLD, hardened="7", overlay="7"))
    assert desired(newer, b.START).hardened == {V1: "7"} and row(decide(newer, b.START), "Hardened") is None


def test_a_restart_without_a_free_gpu_waits_with_numbers() -> None:
    s = after(after(serves(), verbs=say()))
    at, why = s.status.restarts[V1].at, Problem("Unschedulable", "0/3 nodes are available")
    stuck = replace(
        s,
        servers={V1: Server(3, 2, why, 2, restarted=at, hardened="1", overlay="1", updated=1)},
        gpus=Gpus("nvidia.com/gpu", 1, 0, 8, 1),
    )
    plan = decide(stuck, b.at(5))
    condition = row(plan, "Restarted")
    assert condition and condition[:2] == ("False", "InsufficientGPU")
    assert (
        "1 nvidia.com/gpu is needed, 0 of 8 are free" in condition[2] and "--allow-downtime" in condition[2]
    )
    assert ("Warning", "InsufficientGPU") in events(plan)
    rest = replace(stuck, status=plan.status)
    assert decide(rest, b.at(6)).requeue_after == 30.0, "it looks again by itself"
    freed = after(rest, servers={V1: replace(OLD, hardened="1", overlay="1", restarted=at)})
    assert row(decide(freed, b.at(90)), "Restarted") is None or freed.status.restarts[V1].done


# --- servers that die


DOWN = Problem("ServerCrashed", "pod p, container triton ended with code 137")


def test_a_server_of_stable_that_died_is_told_while_the_others_serve() -> None:
    well = after(serves(replace(OLD, hardened="1", overlay="1")))
    assert row(well, "ServersHealthy") == ("True", "Healthy", "")
    crash = Crash(b.ago(1), DOWN.reason, DOWN.message)
    plan = decide(
        replace(well, servers={V1: Server(2, 1, None, 2, updated=2, down=DOWN, crashes=(crash,))}), b.START
    )
    assert row(plan, "ServersHealthy") == ("False", "ServerCrashed", f"revision {V1}: {DOWN.message}")
    ready = row(plan, "Ready")
    assert ready and ready[:2] == ("True", "Stable") and "1 of 2 pods" in ready[2], "the other one serves"
    assert events(plan) == [("Warning", "ServerCrashed")], "once"
    assert plan.status.crash == CrashStatus(
        revision=V1, at=crash.at, reason=DOWN.reason, message=DOWN.message
    )
    back = replace(well, status=plan.status, servers={V1: Server(2, 2, None, 2, updated=2, crashes=(crash,))})
    again = decide(back, b.at(9))
    assert events(again) == [("Normal", "ServersHealthy")] and again.status.crash == plan.status.crash


def test_a_crash_between_two_looks_is_told_though_all_is_well_again() -> None:
    well = after(serves(replace(OLD, hardened="1", overlay="1")))
    crash = Crash(b.ago(1), DOWN.reason, DOWN.message)
    plan = decide(replace(well, servers={V1: Server(2, 2, None, 2, updated=2, crashes=(crash,))}), b.START)
    assert (
        events(plan) == [("Warning", "ServerCrashed")] and (row(plan, "ServersHealthy") or ("",))[0] == "True"
    )
    known = replace(
        well, status=plan.status, servers={V1: Server(2, 2, None, 2, updated=2, crashes=(crash,))}
    )
    assert b.events(decide(known, b.at(5))) == (), "an operator that starts anew tells no crash twice"
    forgotten = replace(known, servers={V1: Server(2, 2, None, 2, updated=2)})
    assert decide(forgotten, b.at(5)).status.crash == plan.status.crash, "the pod that knew it is gone"


def test_a_crash_of_long_ago_is_no_news() -> None:
    well = after(serves(replace(OLD, hardened="1", overlay="1")))
    old = replace(
        well,
        servers={V1: Server(2, 2, None, 2, updated=2, crashes=(Crash(b.ago(90_000), "ServerCrashed", "m"),))},
    )
    assert b.events(decide(old, b.START)) == () and decide(old, b.START).status.crash


@pytest.mark.parametrize("stage", ["Evaluate", "Canary"])
def test_what_is_on_trial_is_looked_after_too(stage: str) -> None:
    s = b.second(stage) if stage == "Evaluate" else b.in_canary()
    fell = replace(s, servers=dict(s.servers) | {V2: Server(2, 1, None, 2, down=DOWN)})
    condition = row(decide(fell, b.START), "ServersHealthy")
    assert condition and condition[0] == "False" and V2 in condition[2]


def test_a_restart_status_holds_what_it_is_given() -> None:
    assert RestartStatus.model_validate({"at": b.ago(1), "allowDowntime": True}).allow_downtime


# --- routes that are too open


def test_with_a_spec_that_cannot_be_read_routes_are_narrowed_all_the_same() -> None:
    s = after(
        replace(
            serves(), spec=None, parse_error="spec.surprise: not permitted", overly_open=("HTTPRoute digits",)
        )
    )
    plan = decide(s, b.at(5))
    assert isinstance(plan, Converge) and plan.desired.narrow and plan.desired.split == ()
    assert isinstance(decide(replace(s, overly_open=()), b.at(5)), Wait)
