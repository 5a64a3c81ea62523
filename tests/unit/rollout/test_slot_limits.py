"""What a rollout may do with its slot: as many pods as it has GPUs for, for as long as the policy
says.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from modelrollout.api.v1alpha1 import QueueStatus, Resources, SlotStatus
from modelrollout.gpus import GpuTable
from modelrollout.rollout.decide import decide
from modelrollout.rollout.desired.pods import replicas_with_traffic
from modelrollout.rollout.policy.requirements import gpus_of_pod, gpus_of_spec
from modelrollout.rollout.policy.rules import combine, read
from modelrollout.rollout.policy.slot_limits import pods_covered_by_slot
from modelrollout.rollout.snapshot import Slot, Snapshot
from modelrollout.testing import builders as b

V1, V2 = b.revision_name(1), b.revision_name(2)


def rules(**limits: Any) -> Any:
    return combine([read({"metadata": {"name": "gpu"}, "spec": {"limits": limits}})])


def holds(
    stage: str = "Canary",
    *,
    replicas: int = 3,
    gpus: int = 1,
    since: float = 60,
    limits: dict[str, Any] | None = None,
    **facts: Any,
) -> Snapshot:
    """Version 2 holds a slot of so many GPUs and asks for one for each replica."""
    changes = {"slot": SlotStatus(since=b.ago(since), gpus=gpus)} | (
        {"step": b.step()} if stage in ("Canary", "Bake", "Promote") else {}
    )
    if stage == "Bake":
        changes["step"] = b.step(3, 100)
    known = {"rules": rules(**(limits or {"gpus": 1})), "servers": {V1: b.ready(3, 3), V2: b.ready(1, 1)}}
    return b.second(
        stage,
        wanted=b.spec(2, steps=b.STEPS, replicas=replicas, rollout={"bake": "2h"}),
        changes=changes,
        **(known | facts),
    )


@pytest.mark.parametrize(
    ("written", "number"),
    [
        (2, 2), ("2", 2), ("2.0", 2), ("2000m", 2), ("1k", 1000), ("1Ki", 1024), ("1500m", 2), ("1.5", 2),
        (0, 0), ("0", 0), ("0.0", 0), ("0m", 0), ("0k", 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("kind", "weight"), [("nvidia.com/gpu", Fraction(1)), ("nvidia.com/mig-1g.10gb", Fraction(1, 7))]
)
def test_gpus_count_however_the_quantity_is_written(
    kind: str, weight: Fraction, written: int | str, number: int
) -> None:
    wanted = b.spec(2, serving={"replicas": 3, "resources": {"limits": {kind: written, "memory": "1Gi"}}})
    assert gpus_of_pod(wanted, GpuTable()) == number * weight
    assert gpus_of_spec(wanted, GpuTable()) == 3 * number * weight
    assert GpuTable().has_gpu(wanted.serving.resources.limits) is (number > 0)


@pytest.mark.parametrize("written", ["1.0", "1000m"])
def test_a_rollout_has_no_more_pods_than_its_slot_covers_however_gpus_are_written(written: str) -> None:
    s = holds()
    assert s.spec is not None
    limits = Resources(limits={"nvidia.com/gpu": written})
    rewritten = s.spec.model_copy(update={"serving": s.spec.serving.model_copy(update={"resources": limits})})
    assert pods_covered_by_slot(replace(s, spec=rewritten)) == pods_covered_by_slot(s) == 1


@pytest.mark.parametrize("stage", ["Provision", "Evaluate", "Canary", "Promote", "Bake"])
def test_replicas_beyond_the_slot_wait_and_that_is_said(stage: str) -> None:
    s = holds(stage)
    assert replicas_with_traffic(s)[V2] == 1 and replicas_with_traffic(s)[V1] == 3, (
        "what stable has is no matter of the slot"
    )
    told = b.condition(decide(s, b.START), "Limited")
    assert (told.status, told.reason) == ("True", "WaitingForSlot")
    assert told.message.startswith(
        "spec.serving.replicas: 3 ask for 3 GPUs, the slot of RolloutPolicy gpu has 1: the others wait until"
        " limits.gpus"
    )


def test_what_the_slot_counts_comes_and_without_a_limit_all() -> None:
    assert replicas_with_traffic(holds(gpus=2))[V2] == 2
    assert replicas_with_traffic(holds(limits={"concurrentRollouts": 1}))[V2] == 3
    assert not [c for c in decide(holds(gpus=3), b.START).status.conditions if c.type == "Limited"]


@pytest.mark.parametrize("stage", ["Canary", "Promote", "Bake", "Revert"])
def test_no_slot_takes_pods_away_that_carry_requests(stage: str) -> None:
    """A limit of GPUs that came after its pods, or a newer spec with more GPUs for a pod while it
    is taken back.
    """
    servers = {V1: b.ready(3, 3), V2: b.ready(3, 3)}
    assert replicas_with_traffic(holds(stage, servers=servers))[V2] == 3
    larger = b.spec(3, replicas=3, serving={"replicas": 3, "resources": {"limits": {"nvidia.com/gpu": 3}}})
    assert replicas_with_traffic(replace(holds(stage, gpus=3, servers=servers), spec=larger))[V2] == 3


def test_after_the_rollout_the_replicas_come() -> None:
    s = holds("Done", limits={"gpus": 1})
    status = s.status.model_copy(update={"stable": b.ref(2)})
    assert replicas_with_traffic(replace(s, status=status))[V2] == 3


def test_a_promotion_waits_for_the_replicas_and_says_for_what() -> None:
    rollout = b.moved(decide(holds("Promote"), b.START))
    assert rollout.stage == "Promote" and rollout.reason == "WaitingForSlot"


def test_once_the_slot_counts_more_they_come() -> None:
    grown = holds(slots=(Slot("gpu", True, gpus=3),), limits={"gpus": 4})
    rollout = b.moved(decide(grown, b.START))
    assert rollout.slot == SlotStatus(since=b.ago(60), gpus=3)
    # another one has grown, too
    late = decide(replace(grown, slots=(Slot("gpu", False, gpus=3),)), b.START).status.rollout
    assert late is not None and late.slot is not None and late.slot.gpus == 1


def test_a_limit_that_came_after_the_slot_keeps_no_replicas_from_coming() -> None:
    """It counts rollouts that begin after it was made: there is no slot of it that could grow, and
    the promotion waited for ever.
    """
    both = combine(
        [read({"metadata": {"name": name}, "spec": {"limits": {"gpus": 4}}}) for name in ("gpu", "later")]
    )
    s = replace(holds("Promote", rules=both), slots=(Slot("gpu", True, gpus=3), Slot("later", False)))
    assert b.moved(decide(s, b.START)).slot == SlotStatus(since=b.ago(60), gpus=3)
    none = decide(replace(s, slots=(Slot("gpu", False), Slot("later", False))), b.START).status.rollout
    assert none is not None and none.slot is not None and none.slot.gpus == 1


def test_what_was_asked_between_the_slot_and_the_pods_does_not_count() -> None:
    """Its Lease was taken with one GPU; then a person scaled."""
    queued = b.second(
        "Provision",
        wanted=b.spec(2, replicas=3),
        changes={"queue": QueueStatus(since=b.ago(5), gpus=3)},
        rules=rules(gpus=4),
    )
    rollout = b.moved(decide(replace(queued, slots=(Slot("gpu", True, gpus=1),)), b.START))
    assert rollout.queue is None and rollout.slot is not None and rollout.slot.gpus == 1


class TestMaxHold:
    LIMITS: dict[str, Any] = {"gpus": 4, "maxHold": "30m"}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("stage", "then"),
        [
            ("Provision", "Failed"),
            ("Evaluate", "Failed"),
            ("Canary", "Revert"),
            ("Promote", "Revert"),
            ("Bake", "Revert"),
        ],
    )
    def test_then_it_goes_back_and_gives_the_slot_up(self, stage: str, then: str) -> None:
        rollout = b.moved(decide(holds(stage, gpus=3, since=1801, limits=self.LIMITS), b.START))
        assert (rollout.stage, rollout.reason) == (then, "SlotHeldTooLong")
        assert "for longer than limits.maxHold 30m" in (rollout.message or "")
        assert (
            decide(holds(stage, gpus=3, since=1799, limits=self.LIMITS), b.START).status.rollout.stage != then
        )  # type: ignore[union-attr]

    def test_no_pause_and_no_deadline_keeps_it(self) -> None:
        spec = b.spec(
            2, rollout={"progressDeadline": "876000h", "canary": {"steps": [{"weight": 5}, {"pause": {}}]}}
        )
        paused = b.step(1, 5, "Paused")
        s = holds(since=1801, limits=self.LIMITS)
        rollout = s.status.rollout
        assert rollout is not None
        status = s.status.model_copy(
            update={"rollout": rollout.model_copy(update={"step": paused, "reason": "PauseStep"})}
        )
        assert b.moved(decide(replace(s, spec=spec, status=status), b.START)).stage == "Revert"

    def test_the_shortest_of_several_holds_and_one_that_is_about_to_end_may(self) -> None:
        both = combine(
            [
                read({"metadata": {"name": n}, "spec": {"limits": {"gpus": 4, "maxHold": d}}})
                for n, d in (("a", "1h"), ("b", "10m"))
            ]
        )
        assert "RolloutPolicy b" in (
            b.moved(decide(holds(since=601, gpus=3, rules=both), b.START)).message or ""
        )
        ready = {V1: b.ready(3, 3), V2: b.ready(3, 3)}
        promoting = decide(holds("Promote", gpus=3, since=9999, limits=self.LIMITS, servers=ready), b.START)
        assert promoting.status.rollout is not None and promoting.status.rollout.stage == "Bake"

    def test_a_rollback_holds_none(self) -> None:
        s = holds(since=1801, limits=self.LIMITS)
        assert s.status.rollout is not None
        back = s.status.model_copy(
            update={"rollout": s.status.rollout.model_copy(update={"mode": "Rollback"})}
        )
        after = decide(replace(s, status=back), b.START).status.rollout
        assert after is not None and after.stage != "Revert"
