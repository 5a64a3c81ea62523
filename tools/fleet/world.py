"""Everything around the operator: the Job and Deployment controllers, the kubelets, the gateway."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from fleet import servers
from fleet.api import Api, ApiError
from fleet.objects import CONTROLLER, sha256
from fleet.player import Key, Player, now
from modelrollout.contract.common import TASK_ENV
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


@asynccontextmanager
async def world(api: Api) -> AsyncIterator[Player]:
    """With the Tritons of its pods."""
    async with servers.triton() as pod_address:
        yield World(api, pod_address)


class World(Player):
    """``seen`` are the ModelDeployments."""

    def __init__(self, api: Api, pod_address: str) -> None:
        played = {JOB: self._run_job, DEPLOYMENT: self._scale, HTTP_ROUTE: self._accept}
        super().__init__(api, MODEL_DEPLOYMENT, played)
        self._pod_address = pod_address
        self._pods: dict[Key, dict[str, Object]] = {}  # of Deployments, by name
        self._done: set[str] = set()  # Jobs, by uid: what the watch has brought may be older

    async def begin(self, made: Mapping[Resource, Object]) -> None:
        """The Gateway's controller programs it."""
        for resource, stated in ((GATEWAY_CLASS, ("Accepted",)), (GATEWAY, ("Accepted", "Programmed"))):
            obj = made[resource]
            await self.say(resource, obj, {"conditions": [_condition(t, obj) for t in stated]})

    async def gone(self, key: Key) -> None:
        """So are a Deployment's pods."""
        for pod in self._pods.pop(key, {}).values():
            await self._api.delete(POD, pod)

    async def _run_job(self, key: Key, job: Object) -> None:
        """The Job's pod runs once and leaves its result."""
        uid = job["metadata"]["uid"]
        if uid in self._done or is_true(job, "Complete") or job["spec"].get("suspend"):
            return
        name, template = job["metadata"]["name"], job["spec"]["template"]
        pod = _pod(f"{name}-{_hash(uid)}", key[1], template, of_job(job))
        begun = now()
        with suppress(ApiError):  # of an earlier try
            await self._api.create(POD, pod)
        await self.say(JOB, job, {"active": 1, "ready": 0, "startTime": begun})
        running = _containers(template["spec"], {"running": {"startedAt": begun}})
        await self.say(POD, pod, {"phase": "Running", "startTime": begun, "containerStatuses": running})
        ended = {"exitCode": 0, "startedAt": begun, "finishedAt": now(), "message": _result(job)}
        statuses = _containers(template["spec"], {"terminated": ended})
        await self.say(POD, pod, {"phase": "Succeeded", "containerStatuses": statuses})
        await self.say(
            JOB,
            job,
            {
                "active": 0,
                "succeeded": 1,
                "completionTime": now(),
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
            await self.say(
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
            await self.say(DEPLOYMENT, deployment, {**full, "unavailableReplicas": None})

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
        begun = now()
        await self.say(
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
                c["lastTransitionTime"] = now()
        await self.say(HTTP_ROUTE, route, stated)


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
    stated = {"type": type_, "status": "True", "lastTransitionTime": now()}
    if of is None:
        return stated
    about = {"reason": type_, "message": "", "observedGeneration": of["metadata"]["generation"]}
    return stated | about


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]
