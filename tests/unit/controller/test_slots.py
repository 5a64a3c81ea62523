"""Slots of RolloutPolicies: never more than the limit, whoever dies, is late, or sees old things;
fair, visible, and free without a limit.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from modelrollout.api import names
from modelrollout.api.v1alpha1 import ModelDeploymentStatus, QueueStatus
from modelrollout.controller.lookups import slots
from modelrollout.controller.lookups.policies import Policies
from modelrollout.controller.lookups.slots import SlotLeases
from modelrollout.controller.observe.observation import Observation
from modelrollout.kube import cache
from modelrollout.kube.errors import KubeError, Unavailable
from modelrollout.kube.kinds import LEASE, MODEL_DEPLOYMENT, ROLLOUT_POLICY
from modelrollout.kube.objects import Object
from modelrollout.rollout.decide import enlarge_slot
from modelrollout.rollout.policy.rules import Limit
from modelrollout.rollout.policy.slot_limits import count, waiting_replicas
from modelrollout.rollout.policy.slots import SlotRequest, TakenSlot, is_within_limit, standing
from modelrollout.rollout.snapshot import Slot
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import Cluster


class Wire:
    """The way to the API server: others get in between two requests."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __getattr__(self, verb: str) -> Any:
        async def request(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            answer = await getattr(self._cluster, verb)(*args, **kwargs)
            await asyncio.sleep(0)
            return answer

        return request


class Process:
    """One operator process, as far as slots are concerned. It sees what it has last read
    (``hear``), which may be old.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.store = cluster, cache.ObjectCache()
        self.woken: list[tuple[str, str]] = []
        policies = Policies(cluster, self.store, lambda key, _: None, lambda: cluster.now)  # type: ignore[arg-type]
        self.policies = policies
        self.slots = SlotLeases(
            Wire(cluster),  # type: ignore[arg-type]
            self.store,
            policies,
            "operators",
            lambda key, _: self.woken.append(key),
            lambda: cluster.now.timestamp(),
        )
        self.hear()

    def hear(self) -> None:
        for (resource, _, _), o in self.cluster.objects.items():
            if resource in (MODEL_DEPLOYMENT, ROLLOUT_POLICY):
                self.store.record_read(resource, o)

    def seen(self, name: str) -> Observation | None:
        o = self.store.get(MODEL_DEPLOYMENT, b.NAMESPACE, name)
        if o is None:
            return None
        status = ModelDeploymentStatus.model_validate(o["status"])
        return Observation(o, {}, b.snapshot(b.spec(2), status, rules=self.policies.rules(o)), None)

    async def one_pass(self, name: str) -> None:
        """As the reconciler does it: look, then either the guarded transition, or take, give back,
        set free.
        """
        seen = self.seen(name)
        if seen is None:
            return
        slots, rollout = tuple[Slot, ...](), seen.observed.status.rollout
        if rollout is not None and rollout.queue is not None:
            slots = await self.slots.view(seen)
            if len(slots) == len(seen.observed.rules.limits) and all(s.held for s in slots):
                admitted = seen.observed.status.model_copy(
                    update={"rollout": rollout.model_copy(update={"queue": None})}
                )
                self.store.record_write(
                    MODEL_DEPLOYMENT,
                    await self.cluster.replace_status(
                        MODEL_DEPLOYMENT, {**seen.deployment, "status": admitted.wire()}
                    ),
                    guarded=True,
                )
                return
        await self.slots.acquire_or_release(seen, slots)


def begin(cluster: Cluster, name: str, at: float, gpus: Fraction | int = 1) -> None:
    """A rollout of this ModelDeployment comes to the queue."""
    queue = QueueStatus.model_validate({"since": b.ago(-at)} | count(Fraction(gpus)))
    state = b.status(1, rollout=b.rollout("Provision", 2, queue=queue, started=b.ago(-at)))
    cluster.set_spec(MODEL_DEPLOYMENT, name, {})
    cluster.set_status(MODEL_DEPLOYMENT, name, state.wire())


def end(cluster: Cluster, name: str) -> None:
    def done(o: Object) -> None:
        o["status"]["rollout"]["stage"] = "Done"
        o["status"]["rollout"].pop("queue", None)

    cluster.change(MODEL_DEPLOYMENT, name, done)


def running(cluster: Cluster) -> dict[str, Fraction]:
    """GPUs by name of the rollouts that have been let through and are not over."""
    actual = {}
    for (resource, _, name), o in cluster.objects.items():
        rollout = (o.get("status") or {}).get("rollout") or {}
        if resource == MODEL_DEPLOYMENT and rollout.get("stage") == "Provision" and "queue" not in rollout:
            actual[name] = GPUS[name]
    return actual


GPUS = {"a": Fraction(1), "b": Fraction(2, 7), "c": Fraction(2), "d": Fraction(5, 7), "e": Fraction(3)}


def world(**limits: int) -> Cluster:
    cluster = Cluster()
    cluster.policy("p", limits=limits)
    return cluster


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


async def passes(process: Process, *order: str, times: int = 4) -> None:
    for _ in range(times):
        for name in order:
            process.hear()
            await process.one_pass(name)


def test_who_waits_longest_goes_first_and_a_freed_slot_wakes_the_next() -> None:
    cluster = world(concurrentRollouts=2)
    for i, name in enumerate("abcd"):
        begin(cluster, name, 10 - i)  # d waits longest
    process = Process(cluster)
    run(passes(process, "a", "b", "c", "d"))
    assert set(running(cluster)) == {"c", "d"}
    end(cluster, "c")
    process.hear()
    run(process.one_pass("c"))
    assert (b.NAMESPACE, "b") in process.woken
    run(passes(process, "a", "b"))
    assert set(running(cluster)) == {"b", "d"}
    assert {n for _, _, n in cluster.objects if n.startswith("modelrollout-slot")} == {
        "modelrollout-slot-p-0",
        "modelrollout-slot-p-1",
    }


def test_a_slot_says_whose_it_is_and_goes_with_its_policy() -> None:
    cluster = world(concurrentRollouts=1)
    begin(cluster, "a", 1)
    run(passes(Process(cluster), "a"))
    lease = cluster.objects[LEASE, "operators", "modelrollout-slot-p-0"]
    uid = cluster.objects[MODEL_DEPLOYMENT, b.NAMESPACE, "a"]["metadata"]["uid"]
    assert lease["spec"]["holderIdentity"] == f"{b.NAMESPACE}/a/{uid}"
    assert lease["metadata"]["ownerReferences"][0]["kind"] == "RolloutPolicy"


@pytest.mark.parametrize("how", ["over", "deleted", "another"])
def test_after_a_crash_the_slot_of_what_is_over_is_free(how: str) -> None:
    cluster = world(concurrentRollouts=1)
    begin(cluster, "a", 1)
    run(passes(Process(cluster), "a"))
    begin(cluster, "b", 2)
    if how == "deleted":
        cluster.remove(MODEL_DEPLOYMENT, "a")
    else:
        end(cluster, "a")
        if how == "another":
            begin(cluster, "a", 3)  # its next rollout does not inherit the slot of the last one
    run(passes(Process(cluster), "a", "b"))
    assert set(running(cluster)) == {"b"}


def test_a_look_at_all_slots_sets_free_what_a_crash_has_left() -> None:
    cluster = world(concurrentRollouts=1)
    begin(cluster, "a", 1)
    run(passes(Process(cluster), "a"))
    end(cluster, "a")
    begin(cluster, "b", 2)
    process = Process(cluster)
    run(process.slots.release_finished())
    assert process.woken == [(b.NAMESPACE, "b")]
    assert not cluster.objects[LEASE, "operators", "modelrollout-slot-p-0"]["spec"]


def test_a_process_that_sees_old_things_takes_no_slot_from_who_runs() -> None:
    """It remembers a's former rollout, which is over; the slot is that of the present one."""
    cluster = world(concurrentRollouts=1)
    begin(cluster, "a", 1)
    end(cluster, "a")
    begin(cluster, "b", 5)
    late = Process(cluster)
    begin(cluster, "a", 3)
    run(passes(Process(cluster), "a"))
    assert set(running(cluster)) == {"a"}
    run(late.one_pass("b"))
    run(late.slots.release_finished())
    run(late.one_pass("b"))
    assert set(running(cluster)) == {"a"}


def test_a_lowered_limit_lets_no_model_through_until_it_is_kept() -> None:
    cluster = world(concurrentRollouts=3)
    for i, name in enumerate("abc"):
        begin(cluster, name, i)
    run(passes(Process(cluster), "a", "b", "c"))
    cluster.policy("p", limits={"concurrentRollouts": 2})
    begin(cluster, "d", 9)
    end(cluster, "a")
    run(passes(Process(cluster), "a", "d"))
    assert set(running(cluster)) == {"b", "c"}
    end(cluster, "c")
    run(passes(Process(cluster), "c", "d"))
    assert set(running(cluster)) == {"b", "d"}


@pytest.mark.parametrize("how", ["going", "unreadable"])
def test_who_cannot_take_a_slot_holds_up_no_other(how: str) -> None:
    """The one at the head of the line waits for a finalizer, or has a spec that this operator
    cannot read: its passes take no slot.
    """
    cluster = world(concurrentRollouts=1)
    begin(cluster, "a", 1)
    begin(cluster, "b", 5)

    def stop(o: Object) -> None:
        if how == "going":
            o["metadata"]["deletionTimestamp"] = "2026-11-22T12:00:00Z"
        else:
            o["status"]["conditions"] = [{"type": "Ready", "status": "False", "reason": "InvalidSpec"}]

    cluster.change(MODEL_DEPLOYMENT, "a", stop)
    run(passes(Process(cluster), "b"))
    assert set(running(cluster)) == {"b"}


def test_two_policies_are_taken_in_the_order_of_their_names() -> None:
    cluster = world(concurrentRollouts=1)
    cluster.policy("q", limits={"concurrentRollouts": 1})
    begin(cluster, "a", 1)
    begin(cluster, "b", 2)
    process = Process(cluster)
    run(passes(process, "b", "a"))
    assert set(running(cluster)) == {"a"}
    assert {n for _, _, n in cluster.objects if n.startswith("modelrollout-slot")} == {
        "modelrollout-slot-p-0",
        "modelrollout-slot-q-0",
    }


def test_without_a_limit_nothing_is_asked() -> None:
    cluster = Cluster()
    cluster.policy("p", gates={"digest": True})
    begin(cluster, "a", 1)
    process = Process(cluster)
    cluster.requests.clear()
    seen = process.seen("a")
    assert seen is not None and run(process.slots.view(seen)) == ()
    run(process.slots.acquire_or_release(seen, ()))
    run(process.slots.release_finished())
    assert cluster.requests == []


def test_two_who_take_the_last_gpus_at_once_are_not_both_let_through() -> None:
    """Neither process knows of the other's rollout, and each finds a slot of its own: the list
    afterwards tells the later one that it is too many.
    """
    cluster = world(gpus=4)
    begin(cluster, "e", 1, GPUS["e"])
    one = Process(cluster)
    begin(cluster, "c", 2, GPUS["c"])
    other = Process(cluster)
    other.store.record_deletion(
        MODEL_DEPLOYMENT,
        b.NAMESPACE,
        "e",
        cluster.objects[MODEL_DEPLOYMENT, b.NAMESPACE, "e"]["metadata"]["uid"],
    )

    async def main() -> None:
        await asyncio.gather(one.one_pass("e"), other.one_pass("c"))
        assert len([o for (r, _, _), o in cluster.objects.items() if r == LEASE and o["spec"]]) == 2, (
            "both have a slot"
        )
        for _ in range(3):
            await asyncio.gather(one.one_pass("e"), other.one_pass("c"))
        assert len(running(cluster)) == 1
        assert len([o for (r, _, _), o in cluster.objects.items() if r == LEASE and o["spec"]]) == 1, (
            "the other one gave its slot back"
        )

    asyncio.run(main())


def slots_of(cluster: Cluster) -> list[dict[str, str]]:
    """What the annotations of taken slots count."""
    known = {names.ANNOTATION_GPUS: "gpus", names.ANNOTATION_EXACT_GPUS: "exact-gpus"}
    return [
        {known[k]: v for k, v in o["metadata"]["annotations"].items() if k in known}
        for (resource, _, _), o in cluster.objects.items()
        if resource == LEASE and o["spec"]
    ]


def test_seven_slices_share_one_gpu_and_the_eighth_waits() -> None:
    """As floats seven sevenths are less than one, or more."""
    cluster = world(gpus=1)
    slices = "abcdefgh"
    for i, name in enumerate(slices):
        begin(cluster, name, i, Fraction(1, 7))
    process = Process(cluster)
    run(passes(process, *slices, times=12))
    rollouts = {n: cluster.objects[MODEL_DEPLOYMENT, b.NAMESPACE, n]["status"]["rollout"] for n in slices}
    assert [n for n, rollout in rollouts.items() if "queue" in rollout] == ["h"], "the last that came"
    assert slots_of(cluster) == [{"gpus": "1", "exact-gpus": "1/7"}] * 7


def test_whole_gpus_are_written_as_ever_and_an_earlier_operators_slots_are_read() -> None:
    cluster = world(gpus=2)
    begin(cluster, "a", 1, 1)
    begin(cluster, "b", 2, Fraction(9, 7))
    process = Process(cluster)
    run(passes(process, "a", "b"))
    assert slots_of(cluster) == [{"gpus": "1"}], "9/7 more are too many"
    end(cluster, "a")
    run(passes(process, "a", "b"))
    assert slots_of(cluster) == [{"gpus": "2", "exact-gpus": "9/7"}], "an earlier operator counts no less"

    lease = cluster.objects[LEASE, "operators", "modelrollout-slot-p-0"]
    del lease["metadata"]["annotations"][names.ANNOTATION_EXACT_GPUS]
    begin(cluster, "c", 3, Fraction(5, 7))
    cluster.now += timedelta(seconds=6)
    run(passes(process, "c"))
    assert slots_of(cluster) == [{"gpus": "2"}]


class TestStanding:
    LIMIT = Limit("p", "u", 2, 4)

    def taken(self, name: str, version: int, gpus: int = 1, ended: bool = False) -> TakenSlot:
        return TakenSlot(version, SlotRequest(f"ns/{name}/u", "r", gpus), version, ended)

    def test_a_small_one_does_not_slip_past_a_large_one(self) -> None:
        queue = [SlotRequest("ns/large/u", "r", 4), SlotRequest("ns/small/u", "r", 1)]
        assert not standing(self.LIMIT, [self.taken("x", 1)], queue, queue[0]).turn
        small = standing(self.LIMIT, [self.taken("x", 1)], queue, queue[1])
        assert not small.turn and (small.position, small.waiting, small.holders) == (2, 2, ("ns/x",))

    def test_who_asks_for_more_than_the_lowered_limit_holds_up_no_other(self) -> None:
        queue = [SlotRequest("ns/huge/u", "r", 8), SlotRequest("ns/small/u", "r", 1)]
        assert not standing(self.LIMIT, [], queue, queue[0]).turn
        small = standing(self.LIMIT, [], queue, queue[1])
        assert small.turn and (small.position, small.waiting) == (1, 1)

    def test_who_took_the_last_one_later_is_over_the_limit(self) -> None:
        both = [self.taken("x", 5, 3), self.taken("y", 6, 3)]
        assert is_within_limit(self.LIMIT, both, both[0]) and not is_within_limit(self.LIMIT, both, both[1])

    def test_what_has_ended_makes_room(self) -> None:
        queue = [SlotRequest("ns/a/u", "r", 1)]
        assert standing(
            self.LIMIT, [self.taken("x", 1), self.taken("y", 2, ended=True)], queue, queue[0]
        ).turn


ACTIONS = st.one_of(
    st.tuples(st.just("pass"), st.integers(0, 2), st.sampled_from("abcde")),
    st.tuples(st.just("pass"), st.integers(0, 2), st.sampled_from("abcde")),
    st.tuples(st.just("hear"), st.integers(0, 2), st.just("")),
    st.tuples(st.just("begin"), st.just(0), st.sampled_from("abcde")),
    st.tuples(st.just("end"), st.just(0), st.sampled_from("abcde")),
    st.tuples(st.just("crash"), st.integers(0, 2), st.just("")),
    st.tuples(st.just("sweep"), st.integers(0, 2), st.just("")),
    st.tuples(st.just("tick"), st.just(0), st.just("")),
    st.tuples(st.just("die"), st.integers(0, 2), st.sampled_from("abcde")),
    st.tuples(st.just("both"), st.integers(0, 2), st.sampled_from("abcde")),
)


@pytest.mark.heavy
@settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
@given(
    limits=st.sampled_from(
        [
            {"concurrentRollouts": 1},
            {"concurrentRollouts": 2},
            {"gpus": 3},
            {"concurrentRollouts": 3, "gpus": 4},
        ]
    ),
    actions=st.lists(ACTIONS, max_size=60),
)
def test_never_more_than_the_limit(limits: dict[str, int], actions: list[tuple[str, int, str]]) -> None:
    """Three processes that see old things, die between two requests, and act between each other's
    requests.
    """

    async def main() -> None:
        cluster = world(**limits)
        processes = [Process(cluster) for _ in range(3)]
        time = 0.0
        for name in "abc":
            time += 1
            begin(cluster, name, time, GPUS[name])
        for what, which, name in actions:
            process = processes[which]
            time += 1
            alive = (MODEL_DEPLOYMENT, b.NAMESPACE, name) in cluster.objects
            over = (
                alive
                and cluster.objects[MODEL_DEPLOYMENT, b.NAMESPACE, name]["status"]["rollout"]["stage"]
                == "Done"
            )
            if what == "begin" and (not alive or over):
                begin(cluster, name, time, GPUS[name])
            elif what == "end" and alive:
                end(cluster, name)
            elif what == "hear":
                process.hear()
            elif what == "crash":
                processes[which] = Process(cluster)
            elif what == "tick":
                cluster.now += timedelta(seconds=6)
            elif what in ("pass", "sweep", "die", "both"):
                left = [2]

                def before(
                    verb: str,
                    resource: Any,
                    n: str,
                    what: str = what,
                    left: list[int] = left,
                    which: int = which,
                ) -> None:
                    left[0] -= 1
                    if what == "die" and left[0] < 0:
                        raise Unavailable(0, "ConnectionError", "killed")

                cluster.before = before
                try:
                    if what == "sweep":
                        await process.slots.release_finished()
                    elif what == "both":  # two processes at the same time, request by request
                        other = processes[(which + 1) % 3]
                        await asyncio.gather(
                            process.one_pass(name), other.one_pass("c"), return_exceptions=True
                        )
                    else:
                        await process.one_pass(name)
                except KubeError:
                    pass
                cluster.before = lambda verb, resource, n: None
                if what == "die":
                    processes[which] = Process(cluster)
            active = running(cluster)
            assert len(active) <= limits.get("concurrentRollouts", 99), active
            assert sum(active.values()) <= limits.get("gpus", 99), active
        # in the end everybody gets his turn
        process = Process(cluster)
        for _ in range(12):
            for name in list(running(cluster)):
                end(cluster, name)
            cluster.now += timedelta(seconds=6)
            for name in "abcde":
                if (MODEL_DEPLOYMENT, b.NAMESPACE, name) in cluster.objects:
                    for _ in range(3):
                        process.hear()
                        await process.one_pass(name)
            assert sum(running(cluster).values()) <= limits.get("gpus", 99)
            assert len(running(cluster)) <= limits.get("concurrentRollouts", 99)
        process.hear()
        assert not process.store.find_marked(cache.QUEUED), "a model waits for ever"

    asyncio.run(main())


class TestGrowing:
    """A rollout that holds a slot asks for more GPUs than it has."""

    def _holds(self, cluster: Cluster, name: str, at: float) -> None:
        begin(cluster, name, at)

        def let_through(o: Object) -> None:
            o["status"]["rollout"].pop("queue")
            o["status"]["rollout"]["slot"] = {"since": b.ago(0), "gpus": 1}

        o = cluster.change(MODEL_DEPLOYMENT, name, let_through)
        holder = f"{b.NAMESPACE}/{name}/{o['metadata']['uid']}"
        annotations = {
            names.ANNOTATION_ROLLOUT: o["status"]["rollout"]["started"],
            names.ANNOTATION_GPUS: "1",
        }
        metadata = {
            "name": names.slot_name("p", int(at)),
            "namespace": "operators",
            "labels": {names.LABEL_POLICY: "p"},
            "annotations": annotations,
        }
        cluster.put(LEASE, {"metadata": metadata, "spec": {"holderIdentity": holder}})

    async def _pass(self, process: Process, name: str, replicas: int) -> None:
        """Look, then what ``decide`` would do with it, else settle."""
        seen = process.seen(name)
        assert seen is not None
        s = b.snapshot(b.spec(2, replicas=replicas), seen.observed.status, rules=seen.observed.rules)
        seen = replace(seen, observed=s)
        if waiting_replicas(s):
            s = replace(s, slots=await process.slots.larger(seen))
        moved = enlarge_slot(s, b.START)
        if moved is not None:
            live = await process.cluster.replace_status(
                MODEL_DEPLOYMENT, {**seen.deployment, "status": moved.status.wire()}
            )
            process.store.record_write(MODEL_DEPLOYMENT, live, guarded=True)
            return
        await process.slots.acquire_or_release(seen, s.slots)

    def _granted(self, cluster: Cluster) -> dict[str, int]:
        return {
            i[2]: o["status"]["rollout"]["slot"]["gpus"]
            for i, o in cluster.objects.items()
            if i[0] == MODEL_DEPLOYMENT and "slot" in o["status"]["rollout"]
        }

    def test_where_there_is_room_the_slot_grows_and_then_the_pods_come(self) -> None:
        async def main() -> None:
            cluster = Cluster()
            cluster.policy("p", limits={"gpus": 4})
            self._holds(cluster, "a", 0)
            process = Process(cluster)
            for _ in range(3):
                await self._pass(process, "a", 3)
            assert self._granted(cluster) == {"a": 3}
            lease = cluster.objects[LEASE, "operators", names.slot_name("p", 0)]
            assert lease["metadata"]["annotations"][names.ANNOTATION_GPUS] == "3"

        asyncio.run(main())

    @pytest.mark.parametrize("other", ["holds the rest", "waits"])
    def test_where_there_is_none_or_another_waits_it_does_not(self, other: str) -> None:
        async def main() -> None:
            cluster = Cluster()
            cluster.policy("p", limits={"gpus": 3})
            self._holds(cluster, "a", 0)
            if other == "holds the rest":
                self._holds(cluster, "b", 1)
            else:
                begin(cluster, "b", 1)
            process = Process(cluster)
            for _ in range(3):
                await self._pass(process, "a", 3)
            assert self._granted(cluster)["a"] == 1

        asyncio.run(main())

    @given(
        order=st.lists(
            st.tuples(st.sampled_from([0, 1]), st.sampled_from(["a", "b"])), min_size=4, max_size=14
        )
    )
    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def test_two_that_grow_at_once_never_have_more_than_the_limit(self, order: list[tuple[int, str]]) -> None:
        """Two processes of which neither sees the other's writes before it reads, and requests that
        take turns.
        """

        async def main() -> None:
            cluster = Cluster()
            cluster.policy("p", limits={"gpus": 4})
            self._holds(cluster, "a", 0)
            self._holds(cluster, "b", 1)
            processes = [Process(cluster), Process(cluster)]
            for (which, name), (also, another) in zip(order[::2], order[1::2], strict=False):
                await asyncio.gather(
                    self._pass(processes[which], name, 3),
                    self._pass(processes[also], another, 3),
                    return_exceptions=True,
                )
                assert sum(self._granted(cluster).values()) <= 4
                cluster.now += timedelta(seconds=6)
                for process in processes:
                    process.hear()

        asyncio.run(main())


@pytest.mark.parametrize("gpus", ["", "-1", "two", "²", "9" * 5000])
def test_a_slot_whose_gpus_are_no_number_is_held_all_the_same(gpus: str) -> None:
    """An edit of the Lease ends no pass."""
    metadata = {"annotations": {names.ANNOTATION_ROLLOUT: b.ago(0), names.ANNOTATION_GPUS: gpus}}
    held = slots._holder({"metadata": metadata, "spec": {"holderIdentity": "ml/digits/u"}})
    assert held is not None and (held.holder, held.gpus) == ("ml/digits/u", 0)
