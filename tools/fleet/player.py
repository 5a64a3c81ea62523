"""What plays the controllers around the one that is measured, in one asyncio process, each as far
as that one sees it.

Nothing here takes time: what is measured is the controller, not how long models take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime

from fleet.api import Api, ApiError
from modelrollout.controller.workqueue import WorkQueue, run_workers
from modelrollout.kube.kinds import Resource
from modelrollout.kube.objects import Object

_WORKERS = 4  # of each controller
_MISSED = (404, 409)  # the object has changed since, or is gone: its event follows
Key = tuple[Resource, str, str]
Play = Callable[[Key, Object], Awaitable[None]]


class Player:
    """``run`` plays until it is cancelled; ``seen`` are the objects of ``kind``, which users
    create, by namespace and name.
    """

    def __init__(self, api: Api, kind: Resource, played: Mapping[Resource, Play]) -> None:
        """``played``: what is done for each object of a kind that is new or has changed."""
        self._api, self._kind, self._played = api, kind, played
        # each controller has its own: a gateway does not wait for kubelets
        self._queues = {r: WorkQueue[Key](base=0.05, cap=2.0) for r in played}
        self._objects: dict[Key, Object] = {}
        self.seen: dict[tuple[str, str], Object] = {}

    async def begin(self, made: Mapping[Resource, Object]) -> None:
        """Before anything else runs; ``made``: what the platform team has created."""

    async def run(self) -> None:
        """Raises what ends a watch."""
        async with asyncio.TaskGroup() as group:
            for resource, queue in self._queues.items():
                group.create_task(run_workers(queue, _WORKERS, self._work))
                group.create_task(self._watch(resource))
            group.create_task(self._watch_kind())

    async def gone(self, key: Key) -> None:
        """An object that was played is not there any more."""

    async def say(self, resource: Resource, obj: Object, status: Object) -> None:
        """A merge patch of its status."""
        await self._api.patch(resource, obj, {"status": status}, "/status")

    async def _watch(self, resource: Resource) -> None:
        async for type_, obj in self._api.watch(resource):
            key = (resource, obj["metadata"]["namespace"], obj["metadata"]["name"])
            if type_ == "DELETED":
                self._objects.pop(key, None)
            else:
                self._objects[key] = obj
            self._queues[resource].add(key)

    async def _watch_kind(self) -> None:
        async for type_, obj in self._api.watch(self._kind):
            key = (obj["metadata"]["namespace"], obj["metadata"]["name"])
            if type_ == "DELETED":
                self.seen.pop(key, None)
            else:
                obj["metadata"].pop("managedFields", None)
                self.seen[key] = obj

    async def _work(self, key: Key) -> None:
        obj = self._objects.get(key)
        try:
            await (self.gone(key) if obj is None else self._played[key[0]](key, obj))
        except ApiError as e:
            if e.status not in _MISSED:
                raise
            self._queues[key[0]].add_rate_limited(key)
        else:
            self._queues[key[0]].forget(key)


def now() -> str:
    """As Kubernetes writes times."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
