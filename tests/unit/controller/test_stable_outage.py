"""A dead stable, with the whole controller: the API server is in memory, and stable's pods never
get ready again.
"""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import pytest

from modelrollout.contract.common import TASK_ENV
from modelrollout.kube.errors import Conflict
from modelrollout.kube.kinds import DEPLOYMENT, JOB, Resource
from modelrollout.kube.objects import Object
from modelrollout.rollout.snapshot import Assessment
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import Cluster, Operator

V1, V2 = b.revision_name(1), b.revision_name(2)
GOLDEN = {"analysis": {"golden": {"uri": "s3://models/golden.npz", "min": 0.9}}}


def needs_stable(job: Object) -> bool:
    """Whether a running Job sends golden data to stable, too."""
    [container] = job["spec"]["template"]["spec"]["containers"]
    task = json.loads(next(e["value"] for e in container["env"] if e["name"] == TASK_ENV))
    return bool(task.get("stable_http")) and not (job.get("status") or {}).get("conditions")


def stable_failed(job: Object) -> tuple[int, str]:
    return 1, json.dumps({"reason": "StableFailed", "message": "stable did not answer"})


class Outage:
    """Version 1 serves, dies for good, and version 2 is applied."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.takes_over()

    def takes_over(self) -> None:
        """Another operator process, which knows only what is in the cluster."""
        self.operator = Operator(self.cluster)
        self.operator.assessment = Assessment("Inconclusive", "NoMetrics", "no metric has a limit of its own")

    async def begin(self) -> None:
        traffic = {"gateway": {"name": "public"}, "http": {"hostnames": ["digits.example.com"]}}
        self.cluster.user(b.spec(1, steps=b.STEPS, traffic=traffic))
        await self.operator.live()
        assert self.cluster.weights() == {V1: 100}
        self.cluster.user(b.spec(2, steps=b.STEPS, traffic=traffic, rollout=GOLDEN))

    async def live(self, seconds: int) -> None:
        for _ in range(seconds // 4):
            await self.operator.settle()
            unanswered = any(map(needs_stable, self.cluster.all(JOB).values()))
            self.cluster.end_jobs(stable_failed if unanswered else None)
            self.cluster.start_pods()
            if self.cluster.find(DEPLOYMENT, V1) is not None:
                self.cluster.change(DEPLOYMENT, V1, lambda o: o["status"].update(availableReplicas=0))
            self.cluster.accept_routes()
            self.cluster.now += timedelta(seconds=4)
        await self.operator.settle()


def test_a_good_version_is_evaluated_alone_takes_over_and_says_so() -> None:
    async def run() -> None:
        outage = Outage()
        await outage.begin()
        await outage.live(40)
        jobs = [n for n in outage.cluster.all(JOB) if "-evaluate-" in n]
        assert outage.cluster.status.stable_down_since and len(jobs) <= 1
        await outage.live(100)
        status = outage.cluster.status
        assert status.stable and status.stable.revision == V2
        assert outage.cluster.weights() == {V2: 100}
        assert status.rollout and status.rollout.uncompared_since and status.rollout.evaluation
        assert status.rollout.evaluation.stable is None and "min 0.9" in status.rollout.evaluation.message
        assert "StableFailed" in {e.reason for e in outage.operator.events}
        told = [e.message for e in outage.operator.events if e.reason == "StableDead"]
        assert len(told) == 3 and "promoted without a comparison" in told[-1]

    asyncio.run(run())


@pytest.mark.parametrize("every", [2, 3, 5])
def test_conflicts_and_other_leaders_change_nothing_of_the_outcome(every: int) -> None:
    async def run() -> None:
        outage = Outage()
        await outage.begin()
        count = 0

        def refuse(verb: str, resource: Resource, name: str) -> None:
            nonlocal count
            count += verb == "status"
            if verb == "status" and count % every == 0:
                raise Conflict(409, "Conflict", name)

        outage.cluster.before = refuse
        for _ in range(12):
            await outage.live(16)
            outage.takes_over()
        status = outage.cluster.status
        assert status.stable and status.stable.revision == V2 and outage.cluster.weights() == {V2: 100}
        assert [e.reason for e in status.rollout.history][-1] == "StableDead" if status.rollout else False

    asyncio.run(run())


@pytest.mark.parametrize("gone", [False, True])
def test_a_watch_that_lags_makes_no_stable_dead(gone: bool) -> None:
    """Stable has come back long ago, and nothing tells the operator."""

    async def run() -> None:
        outage = Outage()
        await outage.begin()
        await outage.live(40)
        assert outage.cluster.status.stable_down_since
        outage.cluster.deaf_to(DEPLOYMENT)
        if gone:
            outage.cluster.remove(DEPLOYMENT, V1)
        else:
            outage.cluster.start_pods()
        outage.cluster.now += timedelta(seconds=100)
        await outage.operator.settle()
        status = outage.cluster.status
        assert status.rollout and bool(status.rollout.uncompared_since) is gone
        assert bool(status.stable_down_since) is gone

    asyncio.run(run())
