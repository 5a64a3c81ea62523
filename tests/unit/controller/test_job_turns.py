"""Many models in one commit: no more Jobs at a time than the limit, in the order that they came,
and none is kept by one whose Job cannot be made.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest

from modelrollout.api import names
from modelrollout.api.v1alpha1 import FollowStatus
from modelrollout.controller.lookups import job_turns
from modelrollout.controller.lookups.job_register import Entry, JobRegister
from modelrollout.controller.shards import shard_of
from modelrollout.kube.errors import Forbidden, KubeError, Unavailable
from modelrollout.kube.kinds import JOB, LEASE, MODEL_DEPLOYMENT, ROLLOUT_POLICY, Resource
from modelrollout.kube.objects import Object
from modelrollout.rollout.desired.jobs import look_job_name
from modelrollout.rollout.snapshot import SharedPreparation
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import CONFIG, KEY, Operator
from tests.unit.controller.test_fleets import Fleet


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


class Commit(Fleet):
    """Models of different files, under a policy."""

    def __init__(self, size: int, jobs: int | None, seed: int = 0) -> None:
        super().__init__(0, seed)
        self.names = [f"m{n}" for n in range(size)]
        for n, name in enumerate(self.names):
            wire = b.spec(1 + n, pinned=True, gateway=False).wire()
            self.cluster.put(MODEL_DEPLOYMENT, {"metadata": {"name": name}, "spec": wire})
        if jobs is not None:
            policy = {"metadata": {"name": "calm"}, "spec": {"limits": {"jobs": jobs}}}
            self.cluster.put(ROLLOUT_POLICY, policy)

    @property
    def running(self) -> int:
        ended = ("Complete", "Failed")
        return sum(
            not any(c["type"] in ended for c in (job.get("status") or {}).get("conditions", []))
            for job in self.cluster.all(JOB).values()
        )

    def reasons(self) -> list[str | None]:
        return [self.rollout(name).reason for name in self.names]


@pytest.mark.parametrize("at_once", [False, True])
def test_no_more_jobs_than_the_limit_and_all_have_their_turn(at_once: bool) -> None:
    async def main() -> None:
        fleet = Commit(9, 2)
        most = 0
        for _ in range(12):
            await fleet.passes(3, at_once=at_once)
            most = max(most, fleet.running)
            fleet.end()
        assert most == 2
        assert {fleet.rollout(name).stage for name in fleet.names} == {"Provision"}
        assert len(fleet.made) == 9

    run(main())


def test_who_waits_says_for_what_and_which_place() -> None:
    async def main() -> None:
        fleet = Commit(4, 1)
        await fleet.passes(6)
        waiting = [fleet.rollout(n) for n in fleet.names if fleet.rollout(n).reason == "WaitingForJob"]
        assert fleet.running == 1
        assert sorted(r.message for r in waiting) == [
            "RolloutPolicy calm (limits.jobs) allows 1 Jobs that resolve or prepare models at a time;"
            f" number {n} in line"
            for n in (1, 2, 3)
        ]

    run(main())


def test_when_a_job_ends_those_that_wait_are_woken() -> None:
    async def main() -> None:
        fleet = Commit(3, 1)
        await fleet.passes(4)
        (worker,) = [n for n in fleet.names if fleet.rollout(n).reason != "WaitingForJob"]
        fleet.end()
        fleet.operator.woken.clear()
        await fleet.passes(1, among=[worker])
        assert {name for _, name in fleet.operator.woken} == set(fleet.names) - {worker}

    run(main())


def test_one_whose_job_is_refused_keeps_no_other_waiting_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        fleet = Commit(3, 1)
        await fleet.passes(2, among=fleet.names[:1])
        revision = str(fleet.rollout(fleet.names[0]).revision)

        def quota(verb: str, resource: Resource, name: str) -> None:
            if resource is JOB and name.startswith(revision):
                raise Forbidden(403, "Forbidden", "exceeded quota")

        fleet.cluster.before = quota
        await fleet.passes(3, among=fleet.names[:1])
        await fleet.passes(3)
        assert fleet.running == 0
        monkeypatch.setattr(job_turns, "IDLE_SECONDS", -1.0)
        await fleet.passes(3)
        assert fleet.running == 1

    run(main())


class Sharded(Commit):
    """Two replicas, each with a cache of its own, and the models between them by their shards."""

    def __init__(self, size: int, jobs: int | None, seed: int = 0, **config: Any) -> None:
        super().__init__(size, jobs, seed)
        self.cluster.requests.clear()
        self.config = CONFIG.model_copy(update={"shards": 2} | config)
        self.operators = [Operator(self.cluster, self.config) for _ in range(2)]

    def worker(self, name: str) -> Operator:
        return self.operators[shard_of((KEY[0], name), 2)]

    async def once(self, name: str) -> None:
        try:
            await self.worker(name).reconciler.reconcile((KEY[0], name))
        except KubeError as e:
            self.error = e

    def listed(self, policy: str = "calm") -> set[str]:
        lease = self.cluster.find(LEASE, names.jobs_lease(policy), "operators")
        return (
            {job for _, _, job in json.loads(lease["metadata"]["annotations"][names.ANNOTATION_JOBS])}
            if lease
            else set()
        )

    def later(self) -> None:
        """Those that wait look at the list again."""
        self.cluster.now += timedelta(seconds=6)


async def with_one_that_stands() -> tuple[Sharded, str, list[str]]:
    """Two replicas under a limit of one. The first has listed the Job of a model (its name) and
    stands still before it makes it; the names of the other's models.
    """
    fleet = Sharded(10, 1)
    first = next(name for name in fleet.names if fleet.worker(name) is fleet.operators[0])
    second = [name for name in fleet.names if fleet.worker(name) is fleet.operators[1]]
    await fleet.passes(2, among=[first])

    def stands(verb: str, resource: Resource, name: str) -> None:
        if verb in ("create", "apply") and resource is JOB:
            raise Unavailable(503, "ServiceUnavailable", "away")

    fleet.cluster.before = stands
    await fleet.passes(3, among=[first])
    return fleet, first, second


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_two_replicas_hold_a_limit_together(seed: int, at_once: bool, late: bool) -> None:
    """``late``: neither sees the other's Jobs before they end."""

    async def main() -> None:
        fleet = Sharded(7, 2, seed)
        assert {shard_of((KEY[0], name), 2) for name in fleet.names} == {0, 1}
        most = 0

        def before(verb: str, resource: Resource, name: str) -> None:
            nonlocal most
            most = max(most, fleet.running)

        fleet.cluster.before = before
        for _ in range(12):
            for operator in fleet.operators if late else ():
                operator.deaf = True
            await fleet.passes(3, at_once=at_once)
            most = max(most, fleet.running)
            for operator in fleet.operators if late else ():
                operator.hear()
            fleet.end()
            fleet.later()
        assert most == 2
        assert {fleet.rollout(name).stage for name in fleet.names} == {"Provision"}
        assert len(fleet.made) == 7
        await fleet.passes(1)
        assert not fleet.listed()

    run(main())


def test_the_configurations_limit_holds_across_replicas_too() -> None:
    async def main() -> None:
        fleet = Sharded(8, 5, max_jobs=3)
        most = 0
        for _ in range(8):
            await fleet.passes(3)
            most = max(most, fleet.running)
            fleet.end()
            fleet.later()
        assert most == 3
        assert {fleet.rollout(name).stage for name in fleet.names} == {"Provision"}

    run(main())


def test_what_a_dead_replica_has_listed_is_removed_by_the_next_that_wants_the_place() -> None:
    async def main() -> None:
        fleet = Sharded(10, 1)
        first = [name for name in fleet.names if fleet.worker(name) is fleet.operators[0]]
        second = [name for name in fleet.names if fleet.worker(name) is fleet.operators[1]]
        await fleet.passes(4, among=first[:1])
        assert fleet.running == 1 and len(fleet.listed()) == 1
        fleet.later()
        await fleet.passes(4, among=second)
        assert fleet.running == 1, "its Job runs"
        fleet.end()
        fleet.later()
        await fleet.passes(4, among=second)
        assert fleet.running == 1
        (job,) = fleet.listed()
        assert any(job.startswith(str(fleet.rollout(name).revision)) for name in second)

    run(main())


def test_a_job_that_is_about_to_be_made_keeps_its_place() -> None:
    """Listed, and its replica stands still: no other may take the place."""

    async def main() -> None:
        fleet, first, second = await with_one_that_stands()
        assert fleet.running == 0 and len(fleet.listed()) == 1
        fleet.cluster.before = lambda verb, resource, name: None
        for _ in range(4):
            fleet.later()
            await fleet.passes(2, among=second)
        assert fleet.running == 0
        await fleet.passes(2, among=[first])
        assert fleet.running == 1

    run(main())


def test_a_place_that_was_lost_is_no_place_though_a_look_of_before_has_it() -> None:
    """The Job ended, another replica removed it from the list and took the place, and then someone
    deleted the Job: its stage asks for it again.
    """

    async def main() -> None:
        fleet = Sharded(10, 1)
        first = next(name for name in fleet.names if fleet.worker(name) is fleet.operators[0])
        second = [name for name in fleet.names if fleet.worker(name) is fleet.operators[1]]
        await fleet.passes(4, among=[first])
        (job,) = fleet.listed()
        fleet.worker(first).deaf = True
        fleet.cluster.end_jobs()
        await fleet.passes(4, among=second)
        assert fleet.running == 1 and job not in fleet.listed()
        fleet.cluster.remove(JOB, job)
        fleet.worker(first).hear()
        await fleet.passes(3, among=[first])
        assert fleet.running == 1

    run(main())


def test_a_place_whose_job_is_refused_is_another_replicas_after_a_while() -> None:
    async def main() -> None:
        fleet = Sharded(10, 1)
        first = next(name for name in fleet.names if fleet.worker(name) is fleet.operators[0])
        second = [name for name in fleet.names if fleet.worker(name) is fleet.operators[1]]
        await fleet.passes(2, among=[first])
        revision = str(fleet.rollout(first).revision)

        def quota(verb: str, resource: Resource, name: str) -> None:
            if resource is JOB and name.startswith(revision) and verb in ("create", "apply"):
                raise Forbidden(403, "Forbidden", "exceeded quota")

        fleet.cluster.before = quota
        await fleet.passes(3, among=[first])
        assert fleet.running == 0 and len(fleet.listed()) == 1
        fleet.cluster.now += timedelta(seconds=61)
        await fleet.passes(1, among=[first])
        assert not fleet.listed()
        await fleet.passes(4, among=second)
        assert fleet.running == 1

    run(main())


def test_none_keeps_the_place_of_one_limit_while_it_waits_for_anothers() -> None:
    """Else it would keep out those before it, for whom it waits at the other limit."""

    async def main() -> None:
        fleet = Sharded(12, 1, max_jobs=1)
        first = [name for name in fleet.names if fleet.worker(name) is fleet.operators[0]]
        other = next(name for name in fleet.names if fleet.worker(name) is fleet.operators[1])
        # the configuration's place is taken by a model that the policy does not limit
        fleet.cluster.put(
            LEASE,
            {
                "metadata": {
                    "name": names.jobs_lease(""),
                    "namespace": "operators",
                    "annotations": {names.ANNOTATION_JOBS: json.dumps([[KEY[0], other, "busy"]])},
                }
            },
        )
        job: Object = {"spec": {"template": {"metadata": {}, "spec": {"containers": []}}}}
        fleet.cluster.put(JOB, {"metadata": {"name": "busy", "namespace": KEY[0]}, **job})
        await fleet.passes(4, among=first)
        assert fleet.listed("") == {"busy"} and not fleet.listed()

    run(main())


def test_the_place_of_a_former_replica_is_set_free_by_the_next_whose_model_does_not_use_it() -> None:
    """As when another model now prepares for both, and may itself wait for this very place."""

    async def main() -> None:
        fleet, first, second = await with_one_that_stands()
        assert len(fleet.listed()) == 1
        fleet.cluster.before = lambda verb, resource, name: None
        index = fleet.operators.index(fleet.worker(first))
        fleet.operators[index] = after = Operator(fleet.cluster, fleet.config)  # it knows nothing
        sharing = SharedPreparation(by="other")
        after.lookups.shared_preparations.lookup = lambda observation: sharing  # type: ignore[method-assign]
        await fleet.passes(2, among=[first])
        assert not fleet.listed()
        fleet.later()
        await fleet.passes(4, among=second)
        assert fleet.running == 1

    run(main())


def test_a_replica_whose_shard_was_lost_in_mid_pass_leaves_the_list_alone() -> None:
    async def main() -> None:
        fleet = Sharded(3, 1)
        fleet.operators[0].leads = fleet.operators[1].leads = False
        register = JobRegister(
            fleet.cluster,  # type: ignore[arg-type]
            fleet.operators[0].store,
            "operators",
            lambda: fleet.cluster.now.timestamp(),
            lambda: leads,
        )
        entry, leads = Entry(KEY[0], "m0", "m0-job"), True
        assert await register.add("calm", 1, entry, ())
        leads = False
        await register.remove("calm", entry)
        assert not await register.add("calm", 9, entry._replace(job="late"), ())
        assert fleet.listed() == {"m0-job"}

    run(main())


def test_another_write_at_the_same_time_costs_no_place_and_keeps_none() -> None:
    async def main() -> None:
        fleet = Sharded(3, 9)
        registers = [
            JobRegister(
                fleet.cluster,  # type: ignore[arg-type]
                fleet.operators[0].store,
                "operators",
                lambda: fleet.cluster.now.timestamp(),
                lambda: True,
            )
            for _ in range(2)
        ]
        entries = [Entry(KEY[0], name, name) for name in fleet.names]
        assert await registers[0].add("calm", 9, entries[0], ())

        def meanwhile(change: Callable[[], Awaitable[object]]) -> None:
            replace = fleet.cluster.replace

            async def after_another(resource: Resource, obj: Object) -> Object:
                fleet.cluster.replace = replace  # type: ignore[method-assign]
                await change()
                return await replace(resource, obj)

            fleet.cluster.replace = after_another  # type: ignore[method-assign]

        meanwhile(lambda: registers[1].add("calm", 9, entries[1], ()))
        assert await registers[0].add("calm", 9, entries[2], ())
        assert fleet.listed() == set(fleet.names)
        meanwhile(lambda: registers[1].remove("calm", entries[1]))
        await registers[0].remove("calm", entries[2])
        assert fleet.listed() == {fleet.names[0]}

    run(main())


@pytest.mark.parametrize(
    ("answer", "kept"),
    [(Forbidden(403, "Forbidden", "may not get"), False), (Unavailable(503, "Unavailable", "away"), True)],
    ids=["not-ours", "away"],
)
def test_a_job_of_a_namespace_that_is_worked_no_more_keeps_no_place(answer: KubeError, kept: bool) -> None:
    async def main() -> None:
        fleet = Sharded(3, 1)
        register = fleet.operators[0].lookups.job_turns._register
        assert register is not None
        assert await register.add("calm", 1, Entry("gone", "m0", "theirs"), ())
        fleet.later()

        def refuse(verb: str, resource: Resource, name: str) -> None:
            if resource is JOB and name == "theirs":
                raise answer

        fleet.cluster.before = refuse
        with contextlib.suppress(Unavailable):
            await register.listed("calm")
        assert fleet.listed() == ({"theirs"} if kept else set())

    run(main())


@pytest.mark.parametrize(
    ("status", "asks"),
    [
        ({}, False),
        ({"follow": {"uri": "s3://a/m", "looking": "now"}}, True),
        ({"follow": {"uri": "s3://a/m", "looking": "then"}}, False),
        ({"follow": {"uri": "s3://a/m"}}, False),
        ({"follow": {"looking": 1}}, True),
    ],
    ids=["nothing", "looks", "another-look", "no-look", "damaged"],
)
def test_a_look_at_a_source_that_is_followed_keeps_its_place_until_its_job_is_made(
    status: Object, asks: bool
) -> None:
    async def main() -> None:
        fleet = Sharded(3, 1)
        job = look_job_name("m0", FollowStatus(uri="s3://a/m", looking="now"))
        register = fleet.operators[0].lookups.job_turns._register
        assert register is not None
        fleet.cluster.change(MODEL_DEPLOYMENT, "m0", lambda o: o.update(status=status))
        assert await register.add("calm", 1, Entry(KEY[0], "m0", job), ())
        fleet.later()
        await register.listed("calm")
        assert fleet.listed() == ({job} if asks else set())

    run(main())


def test_a_damaged_list_counts_for_nothing() -> None:
    async def main() -> None:
        fleet = Sharded(3, 1)
        register = fleet.operators[0].lookups.job_turns._register
        assert register is not None
        entry = Entry(KEY[0], "m0", "m0-job")
        for damage in ("{", "{}", "[1]", '[["a"]]', '[["", "..", "a/b"]]', "[" * 100_000):
            assert await register.add("calm", 1, entry, ())

            def edit(lease: Object, damage: str = damage) -> None:
                lease["metadata"]["annotations"][names.ANNOTATION_JOBS] = damage

            fleet.cluster.change(LEASE, names.jobs_lease("calm"), edit, "operators")
            fleet.later()
            fleet.cluster.requests.clear()
            assert not await register.listed("calm")
            assert fleet.cluster.requests == [f"get Lease {names.jobs_lease('calm')}"]

    run(main())


def test_a_model_that_is_being_deleted_keeps_no_place_however_long_that_takes() -> None:
    async def main() -> None:
        fleet = Sharded(10, 1)
        first = next(name for name in fleet.names if fleet.worker(name) is fleet.operators[0])
        second = [name for name in fleet.names if fleet.worker(name) is fleet.operators[1]]
        await fleet.passes(4, among=[first])
        (job,) = fleet.listed()
        fleet.cluster.remove(JOB, job)
        fleet.cluster.change(
            MODEL_DEPLOYMENT,
            first,
            lambda o: o["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z", finalizers=["a/b"]),
        )
        fleet.later()
        await fleet.passes(4, among=second)
        assert fleet.running == 1 and job not in fleet.listed()

    run(main())


def test_jobs_of_the_time_with_one_shard_count_though_no_list_has_them() -> None:
    async def main() -> None:
        fleet = Sharded(10, 2)
        alone = Operator(fleet.cluster)
        for _ in range(8):
            for name in fleet.names[:2]:
                await alone.reconciler.reconcile((KEY[0], name))
        assert fleet.running == 2 and not fleet.listed()
        await fleet.passes(4)
        assert fleet.running == 2
        fleet.end()
        fleet.later()
        await fleet.passes(4)
        assert fleet.running == 2

    run(main())


def test_with_one_shard_no_list_is_kept() -> None:
    async def main() -> None:
        fleet = Commit(3, 1)
        await fleet.passes(6)
        assert not any("Lease modelrollout-jobs" in request for request in fleet.cluster.requests)

    run(main())


def test_without_a_limit_no_job_waits() -> None:
    async def main() -> None:
        fleet = Commit(5, None)
        await fleet.passes(4)
        assert fleet.running == 5 and "WaitingForJob" not in fleet.reasons()

    run(main())
