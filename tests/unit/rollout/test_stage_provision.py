"""provision: Triton pods with the model loaded."""

from __future__ import annotations

from dataclasses import replace

from modelrollout.problem import Problem
from modelrollout.rollout.decide import decide
from modelrollout.rollout.plan import Converge
from modelrollout.rollout.policy.rules import combine, read
from modelrollout.rollout.snapshot import Server
from modelrollout.testing import builders as b

DEADLINE = {"progressDeadline": "10m"}


def pods(ready: int, problem: Problem | None = None) -> dict[str, Server]:
    return {b.revision_name(1): b.ready(), b.revision_name(2): Server(2, ready, problem, 2)}


def test_every_replica_has_to_serve_the_model_first() -> None:
    assert b.moved(decide(b.second("Provision", servers=pods(1)), b.START)).stage == "Provision"
    assert b.moved(decide(b.second("Provision", servers=pods(2)), b.START)).stage == "Canary"


def test_a_stage_in_which_nothing_is_asked_is_no_write_of_its_own() -> None:
    served = pods(2)
    limits = {"resources": {"limits": {"nvidia.com/gpu": 1}}}
    other = b.spec(2, serving={"replicas": 2, **limits, "triton": {"backend": "TorchScript"}})
    revisions = (b.revision(1, "Stable"), replace(b.revision(2), input=other.user_input()))
    down = served | {b.revision_name(1): Server(2, 0, None, 2)}
    asks = {
        "golden data": b.second("Provision", wanted=b.spec(2, golden=True), servers=served),
        "made-up inputs": b.second("Provision", wanted=other, revisions=revisions, servers=served),
        "whether stable is dead": b.second("Provision", servers=down),
    }
    entered = {what: b.moved(decide(s, b.START)) for what, s in asks.items()}
    assert {what: to.stage for what, to in entered.items()} == dict.fromkeys(asks, "Evaluate")
    to = b.moved(decide(b.second("Provision", servers=served), b.START))
    assert (to.stage, to.stages["Evaluate"]) == ("Canary", 0)


def test_servers_that_were_ready_in_a_freeze_may_fail_until_it_ends() -> None:
    window = {"start": b.ago(60), "end": b.ago(-36000)}
    frozen = combine([read({"metadata": {"name": "p"}, "spec": {"freezeWindows": [window]}})])
    s = b.second("Provision", wanted=b.spec(2, rollout=DEADLINE), rules=frozen, servers=pods(2))
    plan = decide(s, b.START)
    assert b.moved(plan).stage == "Evaluate"
    later = decide(replace(s, status=plan.status, servers=pods(1)), b.at(7200))
    assert later.status.rollout and later.status.rollout.stage == "Evaluate"
    over = decide(replace(s, status=plan.status, rules=combine([])), b.at(7201))
    assert b.moved(over).stage == "Canary"


def test_a_rollback_by_hand_goes_on_to_promote() -> None:
    s = b.second("Provision", changes={"mode": "Rollback"})
    assert b.moved(decide(s, b.START)).stage == "Promote", "what is proven stays proven"


def test_what_keeps_pods_from_starting_is_told_at_once_and_once() -> None:
    s = b.second("Provision", servers=pods(0, Problem("Unschedulable", "no node has a free GPU")))
    plan = decide(s, b.START)
    assert (
        b.condition(plan, "Provisioned").reason == b.condition(plan, "Reconciling").reason == "Unschedulable"
    )
    assert [e.reason for e in plan.events] == ["Unschedulable"]
    again = decide(
        b.snapshot(s.spec, plan.status, revisions=s.revisions, servers=s.servers, traffic=s.traffic), b.at(1)
    )
    assert isinstance(again, Converge), "nothing new, nothing written"


def test_the_problem_disappears_from_status_with_its_cause() -> None:
    s = b.second("Provision", servers=pods(1), changes={"reason": "Unschedulable", "message": "no GPU"})
    plan = decide(s, b.START)
    assert b.moved(plan).reason is None and b.condition(plan, "Provisioned").reason == "InProgress"


def test_at_the_deadline_it_fails_with_what_stood_in_the_way() -> None:
    spec = b.spec(2, rollout=DEADLINE)
    s = b.second("Provision", wanted=spec, servers=pods(0, Problem("ImagePullFailed", "no such image")))
    assert b.moved(decide(s, b.at(589))).stage == "Provision"
    to = b.moved(decide(s, b.at(591)))
    assert (to.stage, to.outcome, to.reason) == (
        "Failed",
        "Failed",
        "ImagePullFailed",
    ) and "no such image" in (to.message or "")


def test_without_a_known_cause_the_deadline_says_what_was_waited_for() -> None:
    to = b.moved(
        decide(b.second("Provision", wanted=b.spec(2, rollout=DEADLINE), servers=pods(1)), b.at(591))
    )
    assert to.reason == "ProgressDeadlineExceeded" and "1 of 2 replicas" in (to.message or "")


def test_the_next_look_is_at_the_deadline_at_the_latest() -> None:
    s = b.second("Provision", wanted=b.spec(2, rollout=DEADLINE), servers=pods(1))
    settled = b.snapshot(
        s.spec, decide(s, b.at(585)).status, revisions=s.revisions, servers=s.servers, traffic=s.traffic
    )
    assert decide(settled, b.at(585)).requeue_after == 5
