"""Before GPU use begins: freezes, slots and free GPUs; and that no weight rises in a freeze."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from modelrollout.api.v1alpha1 import QueueStatus
from modelrollout.contract.results import TaskResult
from modelrollout.problem import Problem
from modelrollout.rollout.decide import decide
from modelrollout.rollout.desired.traffic import split
from modelrollout.rollout.policy.rules import Rules, combine, read
from modelrollout.rollout.snapshot import Gpus, JobState, Server, Slot, Snapshot, Verb
from modelrollout.testing import builders as b


def rules(**spec: Any) -> Rules:
    return combine([read({"metadata": {"name": "p", "uid": "u"}, "spec": spec})])


FREEZE = rules(freezeWindows=[{"start": "2026-11-22T00:00:00Z", "end": "2026-11-22T13:00:00Z"}])
BROKEN = rules(gates={"nonsense": True})
LIMITED = rules(limits={"concurrentRollouts": 2})
AFTER = b.START + timedelta(hours=2)
WAIT = b.spec(2, serving={"replicas": 2, "surge": "Wait", "resources": {"limits": {"nvidia.com/gpu": 1}}})


def done(mode: str = "Update", **facts: Any) -> Snapshot:
    result = TaskResult(
        artifact_uri="s3://artifacts/v2", artifact_digest="sha256:2", size_bytes=9, artifact_size_bytes=9
    )
    revisions = (b.revision(1, "Stable"), b.revision(2, prepared=False))
    return b.second(
        "Prepare",
        changes={"mode": mode},
        work=JobState("Succeeded", 0, result),
        **({"revisions": revisions} | facts),
    )


def waiting(
    s: Snapshot | None = None, reason: str | None = None, message: str | None = None, **facts: Any
) -> Snapshot:
    queue = QueueStatus(since=b.ago(100), gpus=2)
    return b.second(
        "Provision",
        changes={"queue": queue, "reason": reason, "message": message},
        **({"servers": {b.revision_name(1): b.ready()}} | facts),
    )


def settled(s: Snapshot, now: datetime = b.START) -> Snapshot:
    for _ in range(6):
        plan = decide(s, now)
        if plan.status == s.status:
            return s
        s = replace(s, status=plan.status)
    raise AssertionError("status does not settle")


def test_without_policies_no_model_is_queued() -> None:
    moved = b.moved(decide(done(), b.START))
    assert moved.stage == "Provision" and moved.queue is None


@pytest.mark.parametrize("held_by", [LIMITED, FREEZE, BROKEN])
def test_what_is_limited_is_queued_with_its_evidence_and_without_pods(held_by: Rules) -> None:
    s = done(rules=held_by)
    plan = decide(s, b.START)
    moved = b.moved(plan)
    assert moved.queue is not None and moved.queue.gpus == 2 and moved.artifact is not None
    after = settled(replace(s, status=plan.status, revisions=(b.revision(1, "Stable"), b.revision(2))))
    assert b.revision_name(2) not in b.children(after).servers


def test_a_rollback_is_never_queued() -> None:
    assert b.moved(decide(done("Rollback", rules=LIMITED), b.START)).queue is None


def test_in_line_it_says_its_place_and_who_is_before_it() -> None:
    s = waiting(rules=LIMITED, slots=(Slot("p", False, False, 3, 5, ("a/b", "c/d", "ml-other/x")),))
    plan = decide(replace(s, namespace="a"), b.START)
    moved = b.moved(plan)
    assert (
        moved.message == "waiting for a slot of RolloutPolicy p: 3rd of 5; held by a/b, 2 of other namespaces"
    ), "whose they are is no tenant's"
    assert "held by 3 of other namespaces" in (
        b.moved(decide(replace(s, namespace="ml"), b.START)).message or ""
    )
    assert moved.queue is not None and moved.queue.position == 3
    assert (
        b.condition(plan, "Reconciling").reason == b.condition(plan, "Provisioned").reason == "WaitingForSlot"
    )


def test_it_is_told_again_when_the_place_changes_and_not_when_only_the_crowd_grows() -> None:
    s = settled(waiting(rules=LIMITED, slots=(Slot("p", False, False, 3, 5, ("a/b",)),)))
    assert (
        decide(replace(s, slots=(Slot("p", False, False, 3, 9, ("a/b", "c/d")),)), b.START).status == s.status
    )
    moved = b.moved(decide(replace(s, slots=(Slot("p", False, False, 2, 9, ("a/b",)),)), b.START))
    assert "2nd of 9" in (moved.message or "")


def test_far_back_the_place_is_not_told() -> None:
    """A thousand who wait would all be written each time that one of them goes."""
    s = settled(waiting(rules=LIMITED, slots=(Slot("p", False, False, 300, 400, ("a/b",)),)))
    assert s.status.rollout and "more than 10 are before it" in (s.status.rollout.message or "")
    assert (
        decide(replace(s, slots=(Slot("p", False, False, 299, 399, ("a/b",)),)), b.START).status == s.status
    )


def test_with_its_slot_it_goes_on_and_its_deadline_begins() -> None:
    moved = b.moved(decide(waiting(rules=LIMITED, slots=(Slot("p", True),)), b.START))
    assert moved.queue is None and moved.stage == "Provision" and moved.since == b.ago(0)


def test_a_limit_of_which_nothing_is_known_holds() -> None:
    s = waiting(rules=LIMITED)
    assert settled(s).status.rollout == s.status.rollout


def test_waiting_for_a_slot_has_no_deadline() -> None:
    s = settled(
        waiting(rules=LIMITED, slots=(Slot("p", False, False, 1, 1, ("a/b",)),)), b.START + timedelta(days=9)
    )
    assert s.status.rollout and s.status.rollout.stage == "Provision"


def test_a_newer_spec_supersedes_what_waits() -> None:
    moved = b.moved(decide(waiting(wanted=b.spec(3), rules=LIMITED), b.START))
    assert moved.outcome == "Superseded" and moved.queue is None


class TestFreeze:
    def test_no_rollout_begins_and_it_says_until_when(self) -> None:
        s = b.snapshot(
            b.spec(2),
            b.status(1),
            revisions=(b.revision(1, "Stable"),),
            servers={b.revision_name(1): b.ready()},
            rules=FREEZE,
        )
        after = settled(s)
        plan = decide(after, b.START)
        assert after.status.rollout is None and plan.requeue_after == 600.0
        assert "until 2026-11-22 13:00 UTC" in b.condition(plan, "Frozen").message
        assert b.condition(plan, "Ready").reason == b.condition(plan, "Reconciling").reason == "Frozen"
        assert b.condition(plan, "Stalled").status == "False", "it goes on by itself"
        assert b.moved(decide(after, AFTER)).stage == "Resolve"

    def test_at_rest_nothing_is_said(self) -> None:
        s = b.snapshot(
            b.spec(1),
            b.status(1),
            revisions=(b.revision(1, "Stable"),),
            servers={b.revision_name(1): b.ready()},
            rules=FREEZE,
        )
        plan = decide(settled(s), b.START)
        assert b.rests(plan) and "Frozen" not in {c.type for c in plan.status.conditions}

    @pytest.mark.parametrize("held_by", [FREEZE, BROKEN])
    def test_a_step_that_has_passed_does_not_go_on(self, held_by: Rules) -> None:
        s = settled(b.in_canary(assessment=b.judged("Successful"), rules=held_by))
        assert s.status.rollout and s.status.rollout.step and s.status.rollout.step.weight == 5
        plan = decide(s, b.START)
        assert plan.requeue_after is not None and plan.requeue_after <= 60
        assert b.condition(plan, "Frozen").status == "True"

    def test_afterwards_it_does(self) -> None:
        s = settled(b.in_canary(assessment=b.judged("Successful"), rules=FREEZE))
        moved = b.moved(decide(s, AFTER))
        assert moved.step is not None and moved.step.weight == 25

    def test_the_last_step_is_not_promoted(self) -> None:
        last = b.in_canary(at_step=b.step(2, 50), assessment=b.judged("Successful"))
        assert b.moved(decide(last, b.START)).stage == "Promote"
        after = settled(replace(last, rules=FREEZE))
        assert after.status.rollout and after.status.rollout.stage == "Canary"

    @pytest.mark.parametrize("stage", ["Canary", "Promote"])
    def test_what_waits_for_pods_when_it_begins_does_not_rise_with_them(self, stage: str) -> None:
        """The weight was decided before; the pods come in the midst of the freeze."""
        spec = b.spec(2, replicas=4, steps=b.STEPS)
        few, all_there = (
            {b.revision_name(1): b.ready(4, 4), b.revision_name(2): Server(4, n, None, 4)} for n in (1, 4)
        )
        at = b.step(2, 50, "Shifting", previous_weight=25) if stage == "Canary" else b.step(2, 50)
        before = b.second(stage, wanted=spec, changes={"step": at}, servers=few, rules=FREEZE)
        s = replace(settled(before), servers=all_there)
        for seconds in (1, 5, 60, 600):
            s = settled(replace(s, assessment=b.judged("Successful")), b.at(seconds))
            assert dict(split(s))[b.revision_name(2)] == (25 if stage == "Canary" else 50)
        rollout = s.status.rollout
        assert rollout and rollout.step and (rollout.stage, rollout.step.phase) == ("Canary", "Observing")
        assert b.moved(decide(s, AFTER)).stage == ("Canary" if stage == "Canary" else "Promote")
        by_hand = b.second(
            stage,
            wanted=spec,
            changes={"step": at.model_copy(update={"override": "promote n1 at 2/3"})},
            servers=few,
            rules=FREEZE,
        )
        assert settled(by_hand).status.rollout == settled(replace(by_hand, rules=rules())).status.rollout, (
            "a person has said so"
        )

    @pytest.mark.parametrize("held_by", [FREEZE, BROKEN])
    def test_what_is_proven_worse_is_taken_back(self, held_by: Rules) -> None:
        assert (
            b.moved(decide(b.in_canary(assessment=b.judged("Failed"), rules=held_by), b.START)).stage
            == "Revert"
        )

    def test_a_person_may_promote_a_step_and_that_is_told(self) -> None:
        verb = Verb("promote", b.revision_name(2), "n1", "1/3")
        plan = decide(b.in_canary(assessment=b.judged("Inconclusive"), verbs=(verb,), rules=FREEZE), b.START)
        moved = b.moved(plan)
        assert moved.step is not None and (moved.step.weight, moved.step.override) == (
            25,
            "promote n1 at 1/3",
        )
        assert "FreezeOverridden" in {e.reason for e in plan.events}

    def test_abort_works(self) -> None:
        verb = Verb("abort", b.revision_name(2), "n1")
        assert b.moved(decide(b.in_canary(verbs=(verb,), rules=FREEZE), b.START)).stage == "Revert"

    def test_rollback_works_to_its_end(self) -> None:
        revisions = (b.revision(1, "Retired"), b.revision(2, "Promoted"))
        verb = Verb("rollback", b.revision_name(1), "n1")
        s = b.snapshot(
            b.spec(2),
            b.status(2),
            revisions=revisions,
            servers={b.revision_name(2): b.ready()},
            verbs=(verb,),
            rules=FREEZE,
        )
        begun = b.moved(decide(s, b.START))
        assert (begun.stage, begun.mode, begun.queue) == ("Provision", "Rollback", None)
        s = settled(
            replace(
                s, status=decide(s, b.START).status, servers={b.revision_name(n): b.ready() for n in (1, 2)}
            )
        )
        assert s.status.rollout and s.status.rollout.stage == "Promote"

    def test_retry_is_refused_with_the_reason(self) -> None:
        revisions = (b.revision(1, "Stable"), b.revision(2, "RolledBack"))
        state = b.status(1, rollout=b.rollout("Failed", 2, outcome="RolledBack", reason="AccuracyLow"))
        s = b.snapshot(
            b.spec(2),
            state,
            revisions=revisions,
            verbs=(Verb("retry", b.revision_name(2), "n1"),),
            rules=FREEZE,
        )
        assert "freezes rollouts until" in decide(s, b.START).status.handled_verbs[-1]


def test_a_limit_that_was_lowered_below_what_waits_is_told_and_what_is_asked_for_now_counts() -> None:
    plan = decide(waiting(rules=rules(limits={"gpus": 1})), b.START)
    moved = b.moved(plan)
    assert (moved.stage, moved.reason) == ("Provision", "LimitTooSmall")
    assert (
        moved.message
        and "ask for 2 GPUs, RolloutPolicy p allows 1" in moved.message
        and "limits.gpus" in moved.message
    )
    fewer = b.spec(2, replicas=1)
    again = b.moved(decide(waiting(wanted=fewer, rules=rules(limits={"gpus": 1})), b.START))
    assert again.queue is not None and again.queue.gpus == 1, "spec was edited as the message says"


class TestGpus:
    SHORT = Gpus("nvidia.com/gpu", 2, 1, 8, 3)

    def test_wait_makes_no_pods_until_enough_are_free(self) -> None:
        assert b.moved(decide(done(wanted=WAIT), b.START)).queue is not None
        plan = decide(waiting(wanted=WAIT, gpus=self.SHORT), b.START)
        moved = b.moved(plan)
        assert (
            moved.reason == "InsufficientGPU"
            and moved.queue is not None
            and moved.queue.gpu_shortage_since == b.ago(0)
        )
        assert (
            moved.message
            == "the pods of the new revision need 2 nvidia.com/gpu, 1 of 8 are free on the 3 nodes that fit"
        )
        assert b.moved(decide(waiting(wanted=WAIT, gpus=replace(self.SHORT, free=2)), b.START)).queue is None

    def test_after_its_limit_it_ends_and_stable_is_untouched(self) -> None:
        limited = b.spec(2, serving=WAIT.serving.wire(), rollout={"unscheduledDeadline": "5m"})
        s = settled(waiting(wanted=limited, gpus=self.SHORT))
        assert settled(s, b.START + timedelta(minutes=4)).status == s.status
        plan = decide(s, b.START + timedelta(minutes=5))
        ended = b.moved(plan)
        assert (ended.stage, ended.outcome, ended.reason, ended.queue) == (
            "Failed",
            "Failed",
            "InsufficientGPU",
            None,
        )
        assert plan.status.stable == b.ref(1)

    def test_where_it_may_not_be_looked_up_the_pods_are_made_and_that_is_said(self) -> None:
        plan = decide(waiting(wanted=WAIT), b.START)
        assert b.moved(plan).queue is None and [e.reason for e in plan.events] == ["CapacityUnknown"]

    def test_pending_pods_are_told_with_numbers(self) -> None:
        pending = {
            b.revision_name(1): b.ready(),
            b.revision_name(2): Server(2, 0, Problem("Unschedulable", "0/3 nodes are available"), 2),
        }
        plan = decide(b.second("Provision", servers=pending, gpus=self.SHORT), b.START)
        assert b.moved(plan).reason == "InsufficientGPU" and "0/3 nodes are available" in (
            b.moved(plan).message or ""
        )
        other = decide(b.second("Provision", servers=pending, gpus=replace(self.SHORT, free=4)), b.START)
        assert b.moved(other).reason == "Unschedulable", "enough are free: something else is in the way"

    @pytest.mark.parametrize(("deadline", "ends"), [("5s", True), ("1m", False)])
    def test_pods_that_stay_pending_end_the_rollout_after_their_own_limit(
        self, deadline: str, ends: bool
    ) -> None:
        pending = {
            b.revision_name(1): b.ready(),
            b.revision_name(2): Server(2, 0, Problem("Unschedulable", "no node fits"), 2),
        }
        s = b.second(
            "Provision", wanted=b.spec(2, rollout={"unscheduledDeadline": deadline}), servers=pending
        )
        assert (b.moved(decide(s, b.START)).stage == "Failed") is ends
