"""Many models in one commit: no more Jobs at a time than the limit, in the order that they came,
and none is kept by one whose Job cannot be made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from modelrollout.controller.lookups import job_turns
from modelrollout.kube.errors import Forbidden
from modelrollout.kube.kinds import JOB, MODEL_DEPLOYMENT, ROLLOUT_POLICY, Resource
from modelrollout.testing import builders as b
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


def test_without_a_limit_no_job_waits() -> None:
    async def main() -> None:
        fleet = Commit(5, None)
        await fleet.passes(4)
        assert fleet.running == 5 and "WaitingForJob" not in fleet.reasons()

    run(main())
