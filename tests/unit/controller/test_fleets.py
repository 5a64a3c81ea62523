"""Many ModelDeployments of one model at once: one prepare Job, whatever becomes of it and of the
operator.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from datetime import timedelta
from typing import Any

import pytest

from modelrollout.api import names
from modelrollout.api.v1alpha1 import ModelDeploymentStatus
from modelrollout.contract.results import TaskResult
from modelrollout.kube.cache import Key, ObjectCache
from modelrollout.kube.errors import Conflict, Forbidden, KubeError, TooManyRequests
from modelrollout.kube.kinds import (
    DEPLOYMENT,
    JOB,
    LEASE,
    MODEL_DEPLOYMENT,
    MODEL_REVISION,
    ROLLOUT_POLICY,
    Resource,
)
from modelrollout.kube.objects import Object
from modelrollout.resources import server
from modelrollout.resources.jobs.prepare import prepare_task
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import CONFIG, KEY, Cluster, Operator


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


class Fleet:
    """Members in one namespace, and the operator that looks after them in any order."""

    def __init__(self, size: int, seed: int = 0, **spec: Any) -> None:
        self.cluster, self.random = Cluster(), random.Random(seed)
        self.names = [f"m{n}" for n in range(size)]
        for name in self.names:
            self.apply(name, **spec)
        self.operator = Operator(self.cluster)

    def apply(self, name: str, **spec: Any) -> None:
        wire = b.spec(1, pinned=True, gateway=False, **spec).wire()
        self.cluster.put(MODEL_DEPLOYMENT, {"metadata": {"name": name}, "spec": wire})

    async def passes(
        self, rounds: int = 6, among: Iterable[str] | None = None, at_once: bool = False
    ) -> None:
        """Some passes over each, in turns or at the same time; what fails is tried again."""
        for _ in range(rounds):
            present = [name for name in among or self.names if self.cluster.find(MODEL_DEPLOYMENT, name)]
            self.random.shuffle(present)
            if at_once:
                await asyncio.gather(*(self.once(name) for name in present))
            else:
                for name in present:
                    await self.once(name)

    async def once(self, name: str) -> None:
        try:
            await self.operator.reconciler.reconcile((KEY[0], name))
        except KubeError as e:
            self.operator.cluster.last_error = e  # type: ignore[attr-defined]

    def end(self, result: Callable[[Object], tuple[int, str]] | None = None) -> None:
        self.cluster.now += timedelta(seconds=4)
        self.cluster.end_jobs(result)

    def rollout(self, name: str) -> Any:
        live = self.cluster.find(MODEL_DEPLOYMENT, name)
        assert live
        return ModelDeploymentStatus.model_validate(live.get("status") or {}).rollout

    @property
    def made(self) -> list[str]:
        """Every prepare Job that was ever made."""
        return [r for r in self.cluster.requests if r.startswith("create Job") and "-prepare-" in r]

    def waiting(self) -> list[str]:
        return [name for name in self.names if self.rollout(name).reason == "PreparedTogether"]


@pytest.mark.heavy
@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_fifty_at_once_make_one_job(seed: int, at_once: bool) -> None:
    async def main() -> None:
        fleet = Fleet(50, seed)
        await fleet.passes(at_once=at_once)
        assert len(fleet.made) == 1 and len(fleet.waiting()) == 49
        (job,) = fleet.cluster.all(JOB)
        worker = next(name for name in fleet.names if str(fleet.rollout(name).revision) in job)
        said = fleet.rollout(fleet.waiting()[0]).message
        assert (
            said == f"ModelDeployment {worker} requests the same; its prepare Job works for both, and its"
            " result is reused here"
        )
        fleet.end()
        await fleet.passes(at_once=at_once)
        artifacts = [fleet.rollout(name).artifact for name in fleet.names]
        assert len(fleet.made) == 1 and {fleet.rollout(name).stage for name in fleet.names} == {"Provision"}
        assert len({(a.uri, a.digest) for a in artifacts}) == 1 and sum(a.reused for a in artifacts) == 49
        assert all(
            fleet.cluster.find(MODEL_REVISION, str(fleet.rollout(name).revision)) for name in fleet.names
        )

    run(main())


def test_those_who_wait_are_woken_and_need_not_look_by_themselves() -> None:
    async def main() -> None:
        fleet = Fleet(5)
        await fleet.passes()
        fleet.end()
        fleet.operator.woken.clear()
        worker = next(name for name in fleet.names if name not in fleet.waiting())
        await fleet.passes(among=[worker])
        assert {name for _, name in fleet.operator.woken} == set(fleet.names) - {worker}

    run(main())


def test_a_template_whose_loader_knows_no_warm_up_shares_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        fleet = Fleet(3)
        monkeypatch.setattr(server, "BUILDER", "4")
        await fleet.passes(among=["m0"])
        monkeypatch.setattr(server, "BUILDER", "5")
        await fleet.passes()
        assert len(fleet.made) == 2 and len(fleet.waiting()) == 1
        tasks = {job["metadata"]["labels"][names.LABEL_NAME]: job for job in fleet.cluster.all(JOB).values()}
        warmed = {name: task.warmup for name, job in tasks.items() if (task := prepare_task(job))}
        assert warmed.pop("m0") is False and list(warmed.values()) == [True]

    run(main())


def test_the_gates_verdict_ends_all_of_them_after_one_run() -> None:
    def low(job: Object) -> tuple[int, str]:
        return 12, TaskResult(
            reason="AccuracyLow", message="0.61 is below min", size_bytes=10
        ).model_dump_json(exclude_none=True)

    async def main() -> None:
        fleet = Fleet(8)
        await fleet.passes()
        fleet.end(low)
        await fleet.passes()
        ends = {
            (fleet.rollout(name).stage, fleet.rollout(name).outcome, fleet.rollout(name).reason)
            for name in fleet.names
        }
        assert ends == {("Failed", "Rejected", "AccuracyLow")} and len(fleet.made) == 1
        assert sum("did the same work)" in fleet.rollout(name).message for name in fleet.names) == 7

    run(main())


def test_who_fails_otherwise_or_is_deleted_is_followed_by_the_next() -> None:
    def missing(job: Object) -> tuple[int, str]:
        return 10, TaskResult(reason="AccessDenied", message="it is gone").model_dump_json(exclude_none=True)

    async def main() -> None:
        fleet = Fleet(5)
        await fleet.passes()
        (first,) = set(fleet.names) - set(fleet.waiting())
        fleet.end(missing)
        await fleet.passes()
        assert (
            fleet.rollout(first).reason == "AccessDenied"
            and len(fleet.made) == 2
            and len(fleet.waiting()) == 3
        )
        (second,) = set(fleet.names) - set(fleet.waiting()) - {first}
        fleet.cluster.remove(MODEL_DEPLOYMENT, second)
        await fleet.once(second)
        fleet.names.remove(second)
        await fleet.passes()
        assert len(fleet.made) == 3 and len(fleet.waiting()) == 2
        fleet.end()
        await fleet.passes()
        assert [fleet.rollout(name).stage for name in fleet.names if name != first] == [
            "Provision"
        ] * 3 and len(fleet.made) == 3

    run(main())


def test_whoever_leads_next_goes_on_with_the_job_that_is_there() -> None:
    async def main() -> None:
        fleet = Fleet(12)
        for _ in range(8):
            await fleet.passes(1, at_once=True)
            fleet.operator.leads = False
            fleet.operator = Operator(fleet.cluster)
        assert len(fleet.made) == 1
        fleet.end()
        for _ in range(8):
            await fleet.passes(1)
            fleet.operator = Operator(fleet.cluster)
        assert len(fleet.made) == 1 and {fleet.rollout(name).stage for name in fleet.names} == {"Provision"}

    run(main())


def test_who_may_make_no_job_gives_way() -> None:
    """A quota, a webhook: all others wait for nothing."""

    async def main() -> None:
        fleet = Fleet(3)
        create = fleet.cluster.create
        refused: list[str] = []

        async def but(resource: Any, obj: Object) -> Object:
            if resource == JOB and (not refused or refused[0] in obj["metadata"]["name"]):
                refused.append(obj["metadata"]["labels"][names.LABEL_NAME])
                raise Forbidden(403, "Forbidden", "exceeded quota")
            return await create(resource, obj)

        fleet.cluster.create = but  # type: ignore[method-assign]
        for _ in range(6):
            await fleet.passes(4)
            fleet.cluster.now += timedelta(seconds=10)
        assert len(fleet.made) == 1 and refused[0] in fleet.waiting()

    run(main())


def test_who_cannot_take_the_result_of_its_job_keeps_no_other_waiting() -> None:
    """Its spec became unreadable while the Job ran; or the Job is about to go and does not."""

    async def main(odd: Callable[[Fleet, str], None]) -> None:
        fleet = Fleet(4)
        await fleet.passes()
        (first,) = set(fleet.names) - set(fleet.waiting())
        odd(fleet, first)
        others = [name for name in fleet.names if name != first]

        def followed() -> int:
            return len([made for made in fleet.made if f"Job {first}-" not in made])

        await fleet.passes()
        fleet.cluster.now += timedelta(seconds=10)
        await fleet.passes()
        assert followed() == 0, "it may yet"
        fleet.cluster.now += timedelta(seconds=30)
        await fleet.passes()
        assert followed() == 1
        fleet.end()
        await fleet.passes()
        assert {fleet.rollout(name).stage for name in others} == {"Provision"} and followed() == 1

    def unreadable(fleet: Fleet, first: str) -> None:
        fleet.cluster.change(MODEL_DEPLOYMENT, first, lambda o: o["spec"]["model"].update(uri=5))
        fleet.end()

    def going(fleet: Fleet, first: str) -> None:
        (job,) = fleet.cluster.all(JOB)
        fleet.cluster.change(
            JOB, job, lambda o: o["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z")
        )

    run(main(unreadable))
    run(main(going))


def test_a_stale_read_makes_no_second_job() -> None:
    async def main() -> None:
        fleet = Fleet(6)
        replace = fleet.cluster.replace_status
        failed: set[str] = set()

        async def once_in_conflict(resource: Any, obj: Object, *args: Any) -> Object:
            if obj["metadata"]["name"] not in failed:
                failed.add(obj["metadata"]["name"])
                raise Conflict(409, "Conflict", "another was faster")
            return await replace(resource, obj, *args)

        fleet.cluster.replace_status = once_in_conflict  # type: ignore[method-assign]
        await fleet.passes(10, at_once=True)
        assert len(fleet.made) == 1 and len(fleet.waiting()) == 5

    run(main())


def test_a_strangers_job_of_that_name_is_no_work_of_a_model() -> None:
    async def main() -> None:
        fleet = Fleet(3)
        await fleet.passes(6, among=["m0"])
        revision = str(fleet.rollout("m0").revision)
        (name,) = fleet.cluster.all(JOB)
        assert fleet.cluster.find(MODEL_REVISION, revision)
        fleet.cluster.change(JOB, name, lambda o: o["metadata"].update(uid="another", ownerReferences=[]))
        await fleet.passes(6, among=["m1"])
        fleet.cluster.now += timedelta(seconds=30)
        await fleet.passes(6, among=["m1"])
        assert [made for made in fleet.made if "m1-" in made]

    run(main())


def test_other_work_does_not_wait() -> None:
    async def main() -> None:
        fleet = Fleet(2)
        fleet.apply(
            "other", serving={"resources": {"limits": {"nvidia.com/gpu": 1}}, "batching": {"maxBatchSize": 8}}
        )
        fleet.names.append("other")
        await fleet.passes()
        assert len(fleet.made) == 2 and "other" not in fleet.waiting()

    run(main())


def test_who_comes_later_has_a_job_of_its_own_that_may_take_what_is_recorded() -> None:
    """What lies at a place may be another file by then: only a Job reads it."""

    async def main() -> None:
        fleet = Fleet(1)
        await fleet.passes()
        fleet.end()
        await fleet.passes()
        fleet.cluster.now += timedelta(seconds=1)
        fleet.apply("late")
        fleet.names.append("late")
        await fleet.passes()
        assert len(fleet.made) == 2 and fleet.waiting() == []

    run(main())


def test_a_status_that_a_stranger_wrote_keeps_no_model_waiting() -> None:
    async def main() -> None:
        fleet = Fleet(3)
        await fleet.passes(2, among=["m0"])
        good = fleet.rollout("m0").wire()
        artifact = {
            "uri": "s3://a/ml/x",
            "digest": "sha256:1",
            "sizeBefore": 1,
            "sizeAfter": 1,
            "prepared": "yesterday",
        }
        odd = [
            {"stage": "Prepare"},
            "x",
            {"stage": 5, "since": [], "started": {}, "sha256": {}},
            None,
            good | {"started": "x", "stage": "Prepare"},
        ]
        odd += [
            good | {"stage": "Provision", "artifact": a}
            for a in (artifact, {**artifact, "prepared": {}}, "x", {})
        ]
        for damage in odd:
            fleet.cluster.change(MODEL_DEPLOYMENT, "m0", lambda o, d=damage: o.update(status={"rollout": d}))
            await fleet.passes(4, among=["m1", "m2"])
        assert len([name for name in fleet.made if "m0-" not in name]) == 1

    run(main())


@pytest.mark.parametrize("seed", range(3))
def test_an_api_server_that_puts_requests_off_gets_one_from_each_pass(seed: int) -> None:
    """As under a low priority level: what a pass has written stands, and the next one goes on."""

    async def main() -> None:
        fleet = Fleet(6, seed)
        passes = refused = 0
        reconcile = fleet.operator.reconciler.reconcile

        async def counted(key: Key) -> float | None:
            nonlocal passes
            passes += 1
            return await reconcile(key)

        def busy(verb: str, resource: Resource, name: str) -> None:
            nonlocal refused
            if fleet.random.random() < 0.5:
                refused += 1
                raise TooManyRequests(429, "TooManyRequests", "try again later", 1.0)

        fleet.operator.reconciler.reconcile = counted  # type: ignore[method-assign]
        fleet.cluster.before = busy
        await fleet.passes(30)
        fleet.end()
        await fleet.passes(30)
        assert 10 < refused <= passes
        assert len(set(fleet.made)) == 1, "asked for again where it was refused, and only there"
        assert {fleet.rollout(name).stage for name in fleet.names} == {"Provision"}
        assert len(fleet.cluster.all(MODEL_REVISION)) == len(fleet.cluster.all(DEPLOYMENT)) == 6

    run(main())


def test_those_that_are_deleted_all_at_once_leave_nothing_and_cost_little() -> None:
    async def main() -> None:
        fleet = Fleet(0)
        fleet.names = [f"m{n}" for n in range(30)]
        for name in fleet.names:
            http = {"hostnames": [f"{name}.example.com"]}
            fleet.apply(name, traffic={"gateway": {"name": "public"}, "http": http})
        await fleet.passes(4)
        assert len(fleet.cluster.all(LEASE)) == 30
        begun = len(fleet.cluster.requests)
        for name in fleet.names:
            fleet.cluster.remove(MODEL_DEPLOYMENT, name)
        for name in fleet.names:
            await fleet.once(name)
        each = Counter(request.rpartition(" ")[0] for request in fleet.cluster.requests[begun:])
        # whether the name is still its own, and still wanted, is read: another may have it by now
        assert each == {"get Lease": 30, "get ModelDeployment": 30, "delete Lease": 30}
        for name in fleet.names:
            await fleet.once(name)
        assert len(fleet.cluster.requests) == begun + 90
        assert not fleet.cluster.all(LEASE) and not fleet.operator.store.all(JOB)

    run(main())


def test_no_pass_looks_at_all_objects_of_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the cost of a pass grows with the number of models. Of policies there are a few."""
    scanned: set[str] = set()
    scan = ObjectCache.all

    def watched(self: ObjectCache, resource: Resource) -> list[Object]:
        scanned.add(resource.kind)
        return scan(self, resource)

    async def main() -> None:
        cluster = Cluster()
        cluster.policy("few-jobs", limits={"jobs": 1})
        cluster.user(b.spec(1))
        operator = Operator(cluster, CONFIG.model_copy(update={"max_jobs": 2}))
        monkeypatch.setattr(ObjectCache, "all", watched)
        await operator.live()
        assert cluster.status.phase == "Stable" and operator.lookups.hostnames.known().claims.all()
        cluster.user(b.spec(2))
        await operator.live()
        assert cluster.status.phase == "Canary"

    run(main())
    assert scanned == {ROLLOUT_POLICY.kind}
