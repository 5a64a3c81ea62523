"""Free GPUs: counted where the scheduler would put a pod, asked for once for all, and not at all
where that is not allowed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from modelrollout.config import CapacityConfig as Settings
from modelrollout.config import GpuConfig
from modelrollout.controller.lookups.capacity import (
    Capacity,
    extended_resources,
    fits,
    free_gpus,
    gpus_in_use,
)
from modelrollout.kube.client import Listing
from modelrollout.kube.errors import Forbidden
from modelrollout.kube.kinds import DEPLOYMENT, NODE, POD, Resource
from modelrollout.kube.objects import Object
from modelrollout.rollout.snapshot import Gpus
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import CONFIG, Cluster, Operator

GPU = "nvidia.com/gpu"
LOOKING = CONFIG.model_copy(update={"capacity": Settings(look_at_nodes=True)})


def node(
    name: str = "n1", gpus: int = 4, ready: bool = True, labels: dict[str, str] | None = None, **spec: Any
) -> Object:
    status = {
        "allocatable": {GPU: str(gpus), "cpu": "8"},
        "conditions": [{"type": "Ready", "status": str(ready)}],
    }
    return {"metadata": {"name": name, "labels": labels or {}}, "spec": spec, "status": status}


def pod(gpus: int = 1, on: str | None = None, phase: str = "Running", **spec: Any) -> Object:
    containers = [{"name": "triton", "resources": {"limits": {GPU: str(gpus), "cpu": "1"}}}]
    return {
        "metadata": {"name": "p"},
        "spec": {"containers": containers, "nodeName": on, **spec},
        "status": {"phase": phase},
    }


class Api:
    """Nodes and pods, and how often they were asked for."""

    def __init__(self, nodes: list[Object], pods: list[Object], allowed: bool = True) -> None:
        self.objects = {NODE: nodes, POD: pods}
        self.allowed, self.asked = allowed, 0

    async def list(self, resource: Resource, *, keep: Callable[[Object], Object]) -> Listing:
        self.asked += 1
        await asyncio.sleep(0)
        if not self.allowed:
            raise Forbidden(403, "Forbidden", "nodes is forbidden")
        return Listing(self.objects[resource], "1")


def test_allocatable_less_what_pods_on_the_node_asked_for() -> None:
    pods = [pod(2, "n1"), pod(1, "n1", "Succeeded"), pod(1, None), pod(1, "n2", "Pending")]
    gpus = free_gpus(pod()["spec"], GPU, 1, 3, [node("n1"), node("n2")], gpus_in_use(pods))
    assert gpus == Gpus(GPU, 3, 5, 8, 2)


def test_only_whole_pods_count() -> None:
    pods = [pod(3, "n1"), pod(3, "n2")]
    assert free_gpus(pod(2)["spec"], GPU, 2, 1, [node("n1"), node("n2")], gpus_in_use(pods)).free == 0


def test_init_containers_do_not_add_up_and_sidecars_do() -> None:
    ask = {"resources": {"requests": {GPU: 2}}}
    assert extended_resources({"containers": [ask], "initContainers": [ask, ask]}) == {GPU: 2}
    assert extended_resources(
        {"containers": [ask], "initContainers": [{**ask, "restartPolicy": "Always"}]}
    ) == {GPU: 4}


TAINT = [{"key": GPU, "value": "present", "effect": "NoSchedule"}]
ANY = {"tolerations": [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]}


def affinity(*expressions: dict[str, Any], key: str = "matchExpressions") -> dict[str, Any]:
    terms = {"nodeSelectorTerms": [{key: list(expressions)}]}
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}}


@pytest.mark.parametrize(
    ("on", "wants", "fitting"),
    [
        (node(), {}, True),
        (node(ready=False), {}, False),
        (node(unschedulable=True), {}, False),
        (node(labels={"gpu": "H100"}), {"nodeSelector": {"gpu": "H100"}}, True),
        (node(labels={"gpu": "A10"}), {"nodeSelector": {"gpu": "H100"}}, False),
        (node(taints=TAINT), {}, False),
        (node(taints=TAINT), ANY, True),
        (node(taints=TAINT), {"tolerations": [{"key": GPU, "value": "present"}]}, True),
        (node(taints=TAINT), {"tolerations": [{"key": GPU, "value": "other"}]}, False),
        (node(taints=TAINT), {"tolerations": [{"operator": "Exists"}]}, True),
        (node(taints=[{"key": "x", "effect": "PreferNoSchedule"}]), {}, True),
        (
            node(labels={"gpu": "H100"}),
            affinity({"key": "gpu", "operator": "In", "values": ["H100", "H200"]}),
            True,
        ),
        (node(labels={"gpu": "A10"}), affinity({"key": "gpu", "operator": "In", "values": ["H100"]}), False),
        (node(), affinity({"key": "gpu", "operator": "NotIn", "values": ["A10"]}), True),
        (node(), affinity({"key": "gpu", "operator": "Exists"}), False),
        (node(), affinity({"key": "gpu", "operator": "DoesNotExist"}), True),
        (
            node(labels={"memory": "80"}),
            affinity({"key": "memory", "operator": "Gt", "values": ["40"]}),
            True,
        ),
        (
            node(labels={"memory": "much"}),
            affinity({"key": "memory", "operator": "Gt", "values": ["40"]}),
            False,
        ),
        (
            node("n1"),
            affinity({"key": "metadata.name", "operator": "In", "values": ["n2"]}, key="matchFields"),
            False,
        ),
        (node(), affinity(), False),
    ],
)
def test_where_the_scheduler_would_put_it(on: Object, wants: dict[str, Any], fitting: bool) -> None:
    assert fits(on, wants) is fitting


def look(api: Api, times: int = 1, config: Any = LOOKING, seconds: float = 0.0) -> list[Gpus | None]:
    now = [0.0]
    capacity = Capacity(api, config, lambda: now[0])  # type: ignore[arg-type]

    async def main() -> list[Gpus | None]:
        first = await asyncio.gather(*(capacity.gpus_for(pod()["spec"], 2) for _ in range(times)))
        now[0] += seconds
        return [*first, await capacity.gpus_for(pod()["spec"], 2)]

    return asyncio.run(main())


def test_one_look_is_shared_for_some_seconds() -> None:
    api = Api([node()], [pod(1, "n1")])
    assert set(look(api, times=50, seconds=5)) == {Gpus(GPU, 2, 3, 4, 1)}
    assert api.asked == 2
    look(api := Api([node()], []), seconds=11)
    assert api.asked == 4


def test_where_it_is_not_allowed_it_is_unknown(caplog: pytest.LogCaptureFixture) -> None:
    assert look(Api([], [], allowed=False), times=3) == [None] * 4
    assert len([r for r in caplog.records if "free GPUs are unknown" in r.message]) == 1


MIG = "nvidia.com/mig-1g.5gb"


def with_more(obj: Object, **amounts: int) -> Object:
    """A node or pod with these resources, too."""
    more = {{"mig": MIG, "rdma": "rdma/hca"}[name]: str(n) for name, n in amounts.items()}
    for part in (obj["status"].get("allocatable"), *(c["resources"]["limits"] for c in containers_of(obj))):
        if part is not None:
            part.update(more)
    return obj


def containers_of(obj: Object) -> list[Object]:
    return obj["spec"].get("containers") or []


@pytest.mark.parametrize(
    ("asked", "there", "found"),
    [
        ({"mig": 2}, {"mig": 7}, Gpus(GPU, 2, 4, 4, 1)),  # enough of both
        ({"mig": 2}, {"mig": 3}, Gpus(MIG, 4, 2, 3, 1)),
        ({"mig": 2}, {}, Gpus(MIG, 4, 0, 0, 0)),
        ({"rdma": 1}, {}, Gpus("rdma/hca", 2, 0, 0, 0)),
    ],
)
def test_of_several_kinds_the_one_that_is_missing_is_said(
    asked: dict[str, int], there: dict[str, int], found: Gpus
) -> None:
    spec = with_more(pod(), **asked)["spec"]
    assert run_look(Api([with_more(node(), **there)], []), spec) == found


def test_what_the_table_says_is_no_gpu_is_not_looked_for() -> None:
    rows = LOOKING.gpus | {"rdma/hca": GpuConfig(weight=0)}
    config = LOOKING.model_copy(update={"gpus": rows})
    spec = with_more(pod(), rdma=1)["spec"]
    assert run_look(Api([node()], []), spec, config) == Gpus(GPU, 2, 4, 4, 1)


def run_look(api: Api, spec: dict[str, Any], config: Any = LOOKING) -> Gpus | None:
    """For two pods."""
    capacity = Capacity(api, config, lambda: 0.0)  # type: ignore[arg-type]
    return asyncio.run(capacity.gpus_for(spec, 2))


def test_switched_off_nothing_is_asked() -> None:
    api = Api([node()], [])
    assert look(api, config=CONFIG) == [None, None]
    assert api.asked == 0


def test_in_the_loop_pods_wait_for_gpus_and_are_made_when_there_are_enough() -> None:
    async def main() -> None:
        cluster = Cluster()
        cluster.user(b.spec(1))
        operator = Operator(cluster, LOOKING)
        await operator.live()
        assert not [r for r in cluster.requests if r == "list Node"], "no look where nothing waits"
        cluster.objects[NODE, "", "n1"] = node("n1", 1, taints=TAINT)
        serving = {"replicas": 2, "surge": "Wait", "resources": {"limits": {GPU: 1}}}
        cluster.user(b.spec(2, serving=serving))
        await operator.live(6)
        rollout = cluster.status.rollout
        assert rollout is not None and rollout.reason == "InsufficientGPU"
        assert (
            rollout.message
            == f"the pods of the new revision need 2 {GPU}, 1 of 1 are free on the 1 nodes that fit"
        )
        assert set(cluster.all(DEPLOYMENT)) == {b.revision_name(1)}
        cluster.objects[NODE, "", "n1"] = node("n1", 2, taints=TAINT)
        await operator.live(4)
        assert b.revision_name(2) in cluster.all(DEPLOYMENT)

    asyncio.run(main())
