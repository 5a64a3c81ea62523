"""Everything around the operator, in one asyncio process: the Job and Deployment controllers, the
kubelets, and the gateway's controller, each as far as the operator sees it.

Nothing here takes time: what is measured is the operator, not how long models take.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from fleet.api import Api, ApiError
from fleet.objects import CONTROLLER, sha256
from modelrollout.contract.common import TASK_ENV
from modelrollout.controller.workqueue import WorkQueue, run_workers
from modelrollout.kube.kinds import (
    DEPLOYMENT,
    GATEWAY,
    GATEWAY_CLASS,
    HTTP_ROUTE,
    JOB,
    MODEL_DEPLOYMENT,
    POD,
    Resource,
)
from modelrollout.kube.objects import Object, condition, is_true
from modelrollout.testing.builders import answered, job_result
from modelrollout.testing.fake_cluster import of_job

_WORKERS = 4  # of each controller
_MISSED = (404, 409)  # the object has changed since, or is gone: its event follows
Key = tuple[Resource, str, str]


class World:
    """``run`` plays until it is cancelled; ``models`` are the ModelDeployments as last seen, by
    namespace and name.
    """

    def __init__(self, api: Api, pod_address: str) -> None:
        self._api, self._pod_address = api, pod_address
        # each controller has its own: a gateway does not wait for kubelets
        self._queues = {r: WorkQueue[Key](base=0.05, cap=2.0) for r in _PLAYED}
        self._objects: dict[Key, Object] = {}
        self._pods: dict[Key, dict[str, Object]] = {}  # of Deployments, by name
        self._done: set[str] = set()  # Jobs, by uid: what the watch has brought may be older
        self.models: dict[tuple[str, str], Object] = {}

    async def open_gateway(self, gateway_class: Object, gateway: Object) -> None:
        """The Gateway's controller programs it."""
        for resource, obj, stated in (
            (GATEWAY_CLASS, gateway_class, ("Accepted",)),
            (GATEWAY, gateway, ("Accepted", "Programmed")),
        ):
            await self._say(resource, obj, {"conditions": [_condition(t, obj) for t in stated]})

    async def run(self) -> None:
        """Raises what ends a watch."""
        async with asyncio.TaskGroup() as group:
            for resource, queue in self._queues.items():
                group.create_task(run_workers(queue, _WORKERS, self._work))
                group.create_task(self._watch(resource))
            group.create_task(self._watch_models())

    async def _watch(self, resource: Resource) -> None:
        async for type_, obj in self._api.watch(resource):
            key = (resource, obj["metadata"]["namespace"], obj["metadata"]["name"])
            if type_ == "DELETED":
                self._objects.pop(key, None)
            else:
                self._objects[key] = obj
            self._queues[resource].add(key)

    async def _watch_models(self) -> None:
        async for type_, obj in self._api.watch(MODEL_DEPLOYMENT):
            key = (obj["metadata"]["namespace"], obj["metadata"]["name"])
            if type_ == "DELETED":
                self.models.pop(key, None)
            else:
                obj["metadata"].pop("managedFields", None)
                self.models[key] = obj

    async def _work(self, key: Key) -> None:
        obj = self._objects.get(key)
        try:
            if obj is not None:
                await _PLAYED[key[0]](self, key, obj)
            elif key[0] == DEPLOYMENT:
                for pod in self._pods.pop(key, {}).values():
                    await self._api.delete(POD, pod)
        except ApiError as e:
            if e.status not in _MISSED:
                raise
            self._queues[key[0]].add_rate_limited(key)
        else:
            self._queues[key[0]].forget(key)

    async def _run_job(self, key: Key, job: Object) -> None:
        """The Job's pod runs once and leaves its result."""
        uid = job["metadata"]["uid"]
        if uid in self._done or is_true(job, "Complete") or job["spec"].get("suspend"):
            return
        name, template = job["metadata"]["name"], job["spec"]["template"]
        pod = _pod(f"{name}-{_hash(uid)}", key[1], template, of_job(job))
        begun = _now()
        with suppress(ApiError):  # of an earlier try
            await self._api.create(POD, pod)
        await self._say(JOB, job, {"active": 1, "ready": 0, "startTime": begun})
        running = _containers(template["spec"], {"running": {"startedAt": begun}})
        await self._say(POD, pod, {"phase": "Running", "startTime": begun, "containerStatuses": running})
        ended = {"exitCode": 0, "startedAt": begun, "finishedAt": _now(), "message": _result(job)}
        statuses = _containers(template["spec"], {"terminated": ended})
        await self._say(POD, pod, {"phase": "Succeeded", "containerStatuses": statuses})
        await self._say(
            JOB,
            job,
            {
                "active": 0,
                "succeeded": 1,
                "completionTime": _now(),
                "conditions": [_condition(t) for t in ("SuccessCriteriaMet", "Complete")],
            },
        )
        self._done.add(uid)

    async def _scale(self, key: Key, deployment: Object) -> None:
        """As many pods as the Deployment asks for, all of its present template, all ready."""
        spec, metadata = deployment["spec"], deployment["metadata"]
        owned = self._pods.setdefault(key, {})
        replica_set = f"{key[2]}-{_hash(json.dumps(spec['template'], sort_keys=True))}"
        wanted = [f"{replica_set}-{i:05d}" for i in range(spec["replicas"])]
        for name in owned.keys() - set(wanted):
            await self._api.delete(POD, owned.pop(name))
        new = [name for name in wanted if name not in owned]
        counts = {"observedGeneration": metadata["generation"], "replicas": len(wanted)}
        if new:
            some = len(wanted) - len(new)
            await self._say(
                DEPLOYMENT,
                deployment,
                counts
                | {"updatedReplicas": len(wanted), "unavailableReplicas": len(new)}
                | ({"readyReplicas": some, "availableReplicas": some} if some else {}),
            )
        for name in new:
            owned[name] = await self._start_pod(name, replica_set, key[1], deployment)
        full = counts | dict.fromkeys(("updatedReplicas", "readyReplicas", "availableReplicas"), len(wanted))
        if {k: deployment.get("status", {}).get(k, 0) for k in full} != full:
            await self._say(DEPLOYMENT, deployment, {**full, "unavailableReplicas": None})

    async def _start_pod(self, name: str, replica_set: str, namespace: str, deployment: Object) -> Object:
        owner = {
            "apiVersion": DEPLOYMENT.api_version,
            "kind": "ReplicaSet",
            "name": replica_set,
            "uid": deployment["metadata"]["uid"],  # there is no ReplicaSet
            "controller": True,
        }
        template = deployment["spec"]["template"]
        labels = {**template["metadata"]["labels"], "pod-template-hash": replica_set.rpartition("-")[2]}
        pod = _pod(name, namespace, template, {"labels": labels, "ownerReferences": [owner]})
        with suppress(ApiError):  # of an earlier try
            await self._api.create(POD, pod)
        begun = _now()
        await self._say(
            POD,
            pod,
            {
                "phase": "Running",
                "startTime": begun,
                "podIP": self._pod_address,
                "podIPs": [{"ip": self._pod_address}],
                "conditions": [
                    _condition(t) for t in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
                ],
                "containerStatuses": _containers(
                    template["spec"], {"running": {"startedAt": begun}}, ready=True
                ),
            },
        )
        return pod

    async def _accept(self, _: Key, route: Object) -> None:
        """The gateway takes the route as it is."""
        stated = answered(route, controller=CONTROLLER)
        parents = (route.get("status") or {}).get("parents") or [{}]
        seen = condition({"status": parents[0]}, "Accepted").get("observedGeneration")
        if seen == route["metadata"]["generation"]:
            return
        for parent in stated["parents"]:
            for c in parent["conditions"]:
                c["lastTransitionTime"] = _now()
        await self._say(HTTP_ROUTE, route, stated)

    async def _say(self, resource: Resource, obj: Object, status: Object) -> None:
        await self._api.patch(resource, obj, {"status": status}, "/status")


_PLAYED: Mapping[Resource, Callable[[World, Key, Object], Awaitable[None]]] = {
    JOB: World._run_job,
    DEPLOYMENT: World._scale,
    HTTP_ROUTE: World._accept,
}


def _result(job: Object) -> str:
    """What a Job says when all went well."""
    container = job["spec"]["template"]["spec"]["containers"][0]
    task = json.loads(next(e["value"] for e in container["env"] if e["name"] == TASK_ENV))
    digest, artifact = sha256(task["source"]["uri"]), None
    if task["task"] == "prepare":
        artifact = f"{task['artifacts']['uri']}/{digest}-{task['salt']}-00000000"
    return job_result(task["task"], digest, artifact).model_dump_json(exclude_none=True)


def _pod(name: str, namespace: str, template: Object, metadata: Object) -> Object:
    """On a node, as if it had been scheduled."""
    return {
        "apiVersion": POD.api_version,
        "kind": POD.kind,
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "spec": {**template["spec"], "nodeName": "node"},
    }


def _containers(spec: Object, state: Object, *, ready: bool = False) -> list[Object]:
    about: dict[str, Any] = {"state": state, "ready": ready, "restartCount": 0, "imageID": ""}
    return [{"name": c["name"], "image": c["image"], **about} for c in spec["containers"]]


def _condition(type_: str, of: Object | None = None) -> Object:
    stated = {"type": type_, "status": "True", "lastTransitionTime": _now()}
    if of is None:
        return stated
    about = {"reason": type_, "message": "", "observedGeneration": of["metadata"]["generation"]}
    return stated | about


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _now() -> str:
    """As Kubernetes writes times."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
