"""RolloutPolicies on a real API server: their own status, and slots that two processes never take
twice.
"""

from __future__ import annotations

import asyncio
import copy
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from demo.cluster import RELEASE, SYSTEM_NAMESPACE
from modelrollout.api import names
from modelrollout.api.times import stamp
from modelrollout.api.v1alpha1 import ModelDeploymentStatus, QueueStatus, RolloutStatus
from modelrollout.controller.lookups.definitions import Definitions
from modelrollout.controller.lookups.policies import Policies
from modelrollout.controller.lookups.slots import SlotLeases
from modelrollout.controller.observe.observation import Observation
from modelrollout.kube.cache import Key, ObjectCache
from modelrollout.kube.client import Kube
from modelrollout.kube.errors import AlreadyExists, Conflict, NotFound
from modelrollout.kube.kinds import DEPLOYMENT, LEASE, MODEL_DEPLOYMENT, POD, ROLLOUT_POLICY, Resource
from modelrollout.kube.objects import Object
from modelrollout.rollout.snapshot import Observed, Slot

pytestmark = pytest.mark.sandbox

ROOT = Path(__file__).parents[2]
CRD = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)
NAMESPACE = Resource("", "v1", "namespaces", "Namespace", namespaced=False)


@pytest_asyncio.fixture
async def no_operator(kube: Kube) -> AsyncIterator[None]:
    """What the demo has installed would work on the test's objects, too: it pauses meanwhile."""
    try:
        actual = await kube.get(DEPLOYMENT, SYSTEM_NAMESPACE, RELEASE)
    except NotFound:
        yield
        return
    labels = ",".join(f"{key}={value}" for key, value in actual["spec"]["selector"]["matchLabels"].items())
    await kube.merge_patch(DEPLOYMENT, SYSTEM_NAMESPACE, RELEASE, {"spec": {"replicas": 0}})
    for _ in range(300):
        if not (await kube.list(POD, SYSTEM_NAMESPACE, label_selector=labels)).items:
            break
        await asyncio.sleep(0.2)
    else:
        pytest.fail("the pods of the operator that is installed here do not end")
    yield
    await kube.merge_patch(
        DEPLOYMENT, SYSTEM_NAMESPACE, RELEASE, {"spec": {"replicas": actual["spec"]["replicas"]}}
    )


@pytest_asyncio.fixture
async def namespace(kube: Kube, no_operator: None) -> AsyncIterator[str]:
    """A namespace on a cluster that has our definitions; those that were not there go again."""
    made = []
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        definition = yaml.safe_load(path.read_text())
        try:
            await kube.create(CRD, definition)
            made.append(definition["metadata"]["name"])
        except AlreadyExists:
            pass
    name = f"policies-{uuid.uuid4().hex[:8]}"
    await kube.create(NAMESPACE, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    for resource in (MODEL_DEPLOYMENT, ROLLOUT_POLICY):
        for _ in range(100):
            if await kube.has_kind(resource, ttl=0):
                break
            await asyncio.sleep(0.2)
    yield name
    await kube.delete(NAMESPACE, None, name)
    for definition in made:
        await kube.delete(CRD, None, definition)


class Process:
    """What one operator process has of policies and slots."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.kube, self.namespace, self.store = kube, namespace, ObjectCache()
        self.woken: list[Key] = []
        self.policies = Policies(
            kube, self.store, lambda key, _: self.woken.append(key), lambda: datetime.now(UTC)
        )
        self.slots = SlotLeases(
            kube, self.store, self.policies, namespace, lambda key, _: self.woken.append(key), time.monotonic
        )

    async def hear(self) -> None:
        for resource in (ROLLOUT_POLICY, MODEL_DEPLOYMENT):
            listing = await self.kube.list(resource, self.namespace if resource.namespaced else None)
            for o in listing.items:
                self.store.observe(resource, {"type": None, "object": o})
            listed = {(o["metadata"].get("namespace") or "", o["metadata"]["name"]) for o in listing.items}
            self.store.forget_unlisted(resource, listed, listing.resource_version)

    async def one_pass(self, name: str) -> None:
        o = self.store.get(MODEL_DEPLOYMENT, self.namespace, name)
        assert o is not None
        status = ModelDeploymentStatus.model_validate(o["status"])
        rules = self.policies.rules(o)
        slots: tuple[Slot, ...] = ()
        seen = Observation(o, {}, Observed(name, self.namespace, 1, None, status, rules=rules), None)
        if status.rollout is not None and status.rollout.queue is not None:
            slots = await self.slots.view(seen)
            if all(slot.held for slot in slots):
                through = status.model_copy(
                    update={"rollout": status.rollout.model_copy(update={"queue": None})}
                )
                self.store.record_write(
                    MODEL_DEPLOYMENT,
                    await self.kube.replace_status(MODEL_DEPLOYMENT, {**o, "status": through.wire()}),
                    guarded=True,
                )
                return
        await self.slots.acquire_or_release(seen, slots)


async def queued(kube: Kube, namespace: str, name: str, waits: float) -> Object:
    spec = {
        "model": {"uri": "s3://models/a/model.onnx"},
        "serving": {"resources": {"limits": {"nvidia.com/gpu": 1}}},
    }
    body = {
        "apiVersion": names.API_VERSION,
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
    made = await kube.create(MODEL_DEPLOYMENT, body)
    since = stamp(datetime.now(UTC) - timedelta(seconds=waits))
    rollout = RolloutStatus(
        stage="Provision", since=since, started=since, generation=1, input_hash="x", sha256="0" * 64,
        revision=f"{name}-1", number=1,
        queue=QueueStatus(since=since, gpus=2),
    )  # fmt: skip
    return await kube.replace_status(
        MODEL_DEPLOYMENT, {**made, "status": ModelDeploymentStatus(rollout=rollout).wire()}
    )


async def through(kube: Kube, namespace: str) -> set[str]:
    actual = (await kube.list(MODEL_DEPLOYMENT, namespace)).items
    return {
        o["metadata"]["name"]
        for o in actual
        if "queue" not in o["status"]["rollout"] and o["status"]["rollout"]["stage"] == "Provision"
    }


async def test_two_processes_keep_to_the_limit_and_the_policy_tells_whom_it_is_for(
    kube: Kube, namespace: str
) -> None:
    policy = f"p-{namespace}"
    spec = {"selector": {"namespaces": [namespace]}, "limits": {"concurrentRollouts": 1}}
    await kube.create(
        ROLLOUT_POLICY,
        {
            "apiVersion": names.API_VERSION,
            "kind": "RolloutPolicy",
            "metadata": {"name": policy},
            "spec": spec,
        },
    )
    try:
        for i, name in enumerate(("a", "b", "c")):
            await queued(kube, namespace, name, 100 - i)
        processes = [Process(kube, namespace), Process(kube, namespace)]
        for process in processes:
            await process.hear()
        await processes[0].policies.reconcile(policy)
        live = await kube.get(ROLLOUT_POLICY, None, policy)
        assert (live["status"]["accepted"], live["status"]["matches"]) == ("True", 3)

        for ended in ("a", "b", "c"):
            for _ in range(4):
                for process in processes:
                    await process.hear()
                await asyncio.gather(
                    *(p.one_pass(n) for p in processes for n in ("a", "b", "c")), return_exceptions=True
                )
            assert await through(kube, namespace) == {ended}, "who waits longest goes first, and alone"
            (lease,) = (
                await kube.list(LEASE, namespace, label_selector=f"{names.LABEL_POLICY}={policy}")
            ).items
            assert lease["metadata"]["name"] == names.slot_name(policy, 0)
            assert lease["spec"]["holderIdentity"].startswith(f"{namespace}/{ended}/")
            o = await kube.get(MODEL_DEPLOYMENT, namespace, ended)
            o["status"]["rollout"]["stage"] = "Done"
            await kube.replace_status(MODEL_DEPLOYMENT, o)
        for process in processes:
            await process.hear()
            await process.slots.release_finished()
        (lease,) = (await kube.list(LEASE, namespace, label_selector=f"{names.LABEL_POLICY}={policy}")).items
        assert not lease["spec"].get("holderIdentity")
        with pytest.raises(Conflict):
            await kube.replace(
                LEASE,
                {
                    **lease,
                    "metadata": {**lease["metadata"], "resourceVersion": "1"},
                    "spec": {"holderIdentity": "x/y/z"},
                },
            )
    finally:
        await kube.delete(ROLLOUT_POLICY, None, policy)
    # The garbage collector takes the slots of a policy that is gone. It learns of new kinds every
    # 30 s, and starts anew with each of them.
    for _ in range(900):
        if not (await kube.list(LEASE, namespace, label_selector=f"{names.LABEL_POLICY}={policy}")).items:
            return
        await asyncio.sleep(0.2)
    raise AssertionError("the slots outlive their policy")


async def test_a_definition_that_is_older_is_seen_and_named(kube: Kube, namespace: str) -> None:
    """As an upgrade of the operator without its definitions leaves it: the API server drops
    ``gates.bake`` from every policy in silence.
    """
    name = next((ROOT / "crds").glob("*_rolloutpolicies.yaml"))
    current = yaml.safe_load(name.read_text())
    older = copy.deepcopy(current)
    root = older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    del root["properties"]["spec"]["properties"]["gates"]["properties"]["bake"]
    definitions = Definitions(kube)
    await definitions.compare()
    assert definitions.problem(ROLLOUT_POLICY.kind) is None
    try:
        await _serve(kube, older)
        await _until_compared(definitions, outdated=True)
        problem = definitions.problem(ROLLOUT_POLICY.kind)
        assert problem is not None
        assert "drops spec.gates.bake;" in problem.message
        policy = {
            "apiVersion": names.API_VERSION,
            "kind": "RolloutPolicy",
            "metadata": {"name": namespace},
            "spec": {"selector": {"namespaces": [namespace]}, "gates": {"bake": "1h", "golden": True}},
        }
        stored = await kube.create(ROLLOUT_POLICY, policy)
        await kube.delete(ROLLOUT_POLICY, None, namespace)
        assert "bake" not in stored["spec"]["gates"]
    finally:
        await _serve(kube, current)
    await _until_compared(definitions, outdated=False)
    assert definitions.problem(ROLLOUT_POLICY.kind) is None


async def _serve(kube: Kube, definition: Object) -> None:
    while True:
        live = await kube.get(CRD, None, definition["metadata"]["name"])
        try:
            await kube.replace(
                CRD, {**live, "spec": {**live["spec"], "versions": definition["spec"]["versions"]}}
            )
            return
        except Conflict:
            continue


async def _until_compared(definitions: Definitions, *, outdated: bool) -> None:
    """The API server publishes a changed definition some seconds later."""
    for _ in range(150):
        await definitions.compare()
        if (definitions.problem(ROLLOUT_POLICY.kind) is not None) is outdated:
            return
        await asyncio.sleep(0.2)
    pytest.fail(f"the definition does not become {'older' if outdated else 'current'} for the comparison")
