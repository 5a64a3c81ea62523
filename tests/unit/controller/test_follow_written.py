"""follow: what the operator writes and reads as it looks at a source again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

from modelrollout.contract.common import TASK_ENV
from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import ResolveTask
from modelrollout.kube.errors import Forbidden
from modelrollout.kube.kinds import JOB, MODEL_DEPLOYMENT, Resource
from modelrollout.kube.objects import Object
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import Cluster, Operator

A, B = b.sha(1), b.sha(2)
FOLLOWED = b.spec(1, model={"uri": b.uri(1), "follow": {"every": "10m"}}, replicas=1)
PLACES = {"followUnsigned": ["s3://models/digits/"]}


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def task_of(job: Object) -> dict[str, Any]:
    container = job["spec"]["template"]["spec"]["containers"][0]
    return dict(json.loads(next(e["value"] for e in container["env"] if e["name"] == TASK_ENV)))


class World(Cluster):
    """A store at whose path ``source`` lies, and an operator that follows it."""

    def __init__(self, **policy: Any) -> None:
        super().__init__()
        self.source = A
        if policy:
            self.policy("nightly", **policy)
        self.user(FOLLOWED)
        self.operator = Operator(self)

    def result(self, job: Object) -> tuple[int, str]:
        task = task_of(job)
        if task["task"] == "resolve":
            found = TaskResult(sha256=self.source, size_bytes=1000, etag=f'"{self.source}"')
        else:
            uri = f"{task['artifacts']['uri']}/{task['sha256']}-{task['salt']}-00000000"
            found = b.job_result("prepare", task["sha256"], uri)
        return 0, found.model_dump_json(exclude_none=True)

    async def live(self, rounds: int = 12) -> None:
        """Time passes and everything goes well."""
        for _ in range(rounds):
            await self.operator.settle()
            self.end_jobs(self.result)
            self.start_pods()
            self.accept_routes()
            self.operator.assessment = b.judged("Successful")
            self.now += timedelta(seconds=4)
        await self.operator.settle()

    async def look(self) -> list[Object]:
        """Time passes until a look is due; the Jobs that run then."""
        before = set(self.all(JOB))
        self.now += timedelta(minutes=16)
        await self.operator.settle()
        return [job for name, job in self.all(JOB).items() if name not in before]

    def condition(self, kind: str) -> tuple[str, str]:
        return next((c.status, c.reason) for c in self.status.conditions if c.type == kind)

    def digest(self) -> str | None:
        follow = self.status.follow
        return follow.sha256 if follow else None


def test_new_bytes_are_rolled_out_without_a_change_of_spec() -> None:
    async def main() -> None:
        world = World(allowedSources=PLACES)
        await world.live()
        assert world.status.stable and world.status.stable.revision == b.revision_name(1)
        world.source = B
        (job,) = await world.look()
        expected = ResolveTask.model_validate(task_of(job))
        assert expected.follow and expected.known and expected.known.etag == f'"{A}"'
        assert job["spec"]["ttlSecondsAfterFinished"] == 300, "looks are many"
        await world.live(40)
        assert world.status.stable and world.status.stable.number == 2 and world.digest() == B
        deployment = world.find(MODEL_DEPLOYMENT)
        assert deployment and deployment["metadata"]["generation"] == 1
        assert "sha256" not in deployment["spec"]["model"], "the operator never writes spec"
        assert "SourceChanged" in {e.reason for e in world.operator.events}

    run(main())


def test_what_has_not_changed_costs_one_job_and_no_revision() -> None:
    async def main() -> None:
        world = World(allowedSources=PLACES)
        await world.live()
        world.requests.clear()
        (job,) = await world.look()
        await world.live(3)
        written = [r for r in world.requests if r.split()[0] not in ("get", "list")]
        name = job["metadata"]["name"]
        assert sum(r.startswith("create") for r in written) == 1 and f"create Job {name}" in written
        assert world.condition("Ready") == ("True", "Stable") and world.condition("Following")[0] == "True"

    run(main())


def test_unsigned_and_without_a_policy_nothing_is_looked_at() -> None:
    async def main() -> None:
        world = World()
        await world.live(3)
        assert not world.all(JOB) and world.condition("Stalled") == ("True", "FollowUnsigned")
        assert world.condition("Following") == ("False", "FollowUnsigned")

    run(main())


def test_a_policy_that_is_taken_away_stops_looks_and_nothing_that_serves() -> None:
    async def main() -> None:
        world = World(allowedSources=PLACES)
        await world.live()
        world.policy("nightly", allowedSources={"followUnsigned": ["s3://models/other/"]})
        world.source = B
        assert await world.look() == []
        assert world.condition("Following") == ("False", "FollowUnsigned")
        assert world.condition("Ready")[0] == "True" and world.digest() == A

    run(main())


def test_a_job_that_is_refused_stalls_nothing_and_is_tried_at_the_next_look() -> None:
    async def main() -> None:
        world = World(allowedSources=PLACES)
        await world.live()

        def refuse(verb: str, resource: Resource, name: str) -> None:
            if (verb, resource) == ("create", JOB):
                raise Forbidden(403, "Forbidden", "exceeded quota: pods")

        world.before = refuse
        seen = set()
        world.now += timedelta(minutes=16)
        for _ in range(20):
            await world.operator.settle(1)
            seen.add(world.condition("Ready")[0])
        assert seen == {"True"}
        assert world.condition("Following") == ("Unknown", "ChildRefused")
        world.before = lambda verb, resource, name: None
        world.source = B
        assert len(await world.look()) == 1
        await world.live(40)
        assert world.digest() == B and world.condition("Following")[0] == "True"

    run(main())


def test_looks_wait_for_their_turn_like_other_jobs() -> None:
    async def main() -> None:
        world = World(allowedSources=PLACES, limits={"jobs": 1})
        await world.live()
        world.put(
            MODEL_DEPLOYMENT,
            {"metadata": {"name": "other"}, "spec": b.spec(3, pinned=True, gateway=False).wire()},
        )
        for _ in range(4):
            await world.operator.reconciler.reconcile((b.NAMESPACE, "other"))
        assert [name for name in world.all(JOB) if name.startswith("other")]
        assert await world.look() == [], "one Job at a time, and another one runs"
        assert world.status.follow and world.status.follow.looking
        assert world.condition("Ready")[0] == "True"
        world.end_jobs(world.result)
        await world.operator.reconciler.reconcile((b.NAMESPACE, "other"))
        before = set(world.all(JOB))
        await world.operator.settle()
        assert len(set(world.all(JOB)) - before) == 1

    run(main())


def test_another_operator_goes_on_with_the_look_of_the_first() -> None:
    async def main() -> None:
        world = World(allowedSources=PLACES)
        await world.live()
        world.source = B
        (job,) = await world.look()
        world.operator.leads = False
        world.operator = Operator(world)
        await world.operator.settle()
        running = [n for n, j in world.all(JOB).items() if not (j.get("status") or {}).get("conditions")]
        assert running == [job["metadata"]["name"]]
        await world.live(40)
        assert world.digest() == B and world.status.stable and world.status.stable.number == 2

    run(main())
