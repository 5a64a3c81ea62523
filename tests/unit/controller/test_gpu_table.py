"""A table of GPUs that changes under what runs and under a rollout that waits for GPUs."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from modelrollout.config import GpuConfig
from modelrollout.kube.kinds import DEPLOYMENT, LEASE, MODEL_REVISION
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import CONFIG, Cluster, Operator

MIG = "nvidia.com/mig-1g.5gb"
OTHER = CONFIG.model_copy(
    update={"gpus": {"nvidia.com/*": GpuConfig(weight=2, toleration="example.com/gpu")}}
)


def serving(version: int) -> Any:
    return b.spec(version, serving={"replicas": 2, "resources": {"limits": {MIG: 1}}})


def test_it_makes_no_version_and_restarts_no_pod() -> None:
    async def main() -> None:
        cluster = Cluster()
        cluster.user(serving(1))
        await Operator(cluster, CONFIG).live()
        before = {kind: copy.deepcopy(cluster.all(kind)) for kind in (MODEL_REVISION, DEPLOYMENT)}
        [first] = before[MODEL_REVISION]
        assert set(before[DEPLOYMENT]) == {first}
        cluster.requests.clear()
        await Operator(cluster, OTHER).live()
        assert {kind: cluster.all(kind) for kind in before} == before
        written = [r for r in cluster.requests if r.split()[0] in ("create", "patch", "replace", "delete")]
        assert [r for r in written if LEASE.kind not in r] == []
        # the next version has what the table says then
        cluster.user(serving(2))
        await Operator(cluster, OTHER).live(6)
        templates = {n: o["spec"]["template"]["spec"] for n, o in cluster.all(MODEL_REVISION).items()}
        assert {n == first: [t["key"] for t in pod["tolerations"]] for n, pod in templates.items()} == {
            True: ["nvidia.com/gpu"],
            False: ["example.com/gpu"],
        }

    asyncio.run(main())


def test_a_rollout_that_waits_counts_by_the_present_table() -> None:
    async def main() -> None:
        cluster = Cluster()
        cluster.user(serving(1))
        await Operator(cluster, CONFIG).live()
        cluster.policy("p", limits={"gpus": 1})
        cluster.user(serving(2))
        await Operator(cluster, OTHER).live(6)
        assert "the pods of a new revision ask for 4 GPUs" in str(cluster.status.conditions)
        await Operator(cluster, CONFIG).live(6)
        rollout = cluster.status.rollout
        assert rollout is not None and rollout.number == 2
        assert rollout.slot is not None and (rollout.slot.gpus, rollout.slot.exact_gpus) == (1, "2/7")

    asyncio.run(main())
