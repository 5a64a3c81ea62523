"""An API server in memory, for what guards objects by resourceVersion; slow or away on demand, in
virtual time.
"""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from modelrollout.kube.errors import AlreadyExists, Conflict, NotFound, Unavailable
from modelrollout.kube.kinds import Resource
from modelrollout.kube.objects import Object


class FakeApi:
    """``latency`` in seconds for each way of a request, ``answer_latency`` more for the way back;
    ``down`` fails every request; ``lose_answers`` does it and fails nevertheless; ``repeats`` does
    it twice, as a client whose connection broke.
    """

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.version = 0
        self.latency = 0.0
        self.answer_latency = 0.0
        self.down = False
        self.lose_answers = False
        self.repeats = False
        self.requests: list[str] = []

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        await self._arrive("get")
        return await self._answer(self._find(resource, namespace, name))

    async def create(self, resource: Resource, obj: Object) -> Object:
        await self._arrive("create")
        key = (resource.plural, obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
        if key in self.objects:
            raise AlreadyExists(409, "AlreadyExists", key[2])
        stored = self._store(key, obj)
        if self.repeats:
            raise AlreadyExists(409, "AlreadyExists", key[2])
        return await self._answer(stored)

    async def replace(self, resource: Resource, obj: Object) -> Object:
        await self._arrive("replace")
        metadata = obj["metadata"]
        live = self._find(resource, metadata.get("namespace"), metadata["name"])
        if metadata["resourceVersion"] != live["metadata"]["resourceVersion"]:
            raise Conflict(409, "Conflict", metadata["name"])
        stored = self._store((resource.plural, metadata.get("namespace", ""), metadata["name"]), obj)
        if self.repeats:
            raise Conflict(409, "Conflict", metadata["name"])
        return await self._answer(stored)

    async def merge_patch(
        self, resource: Resource, namespace: str | None, name: str, patch: Object
    ) -> Object:
        await self._arrive("patch")
        return await self._answer(
            self._store(
                (resource.plural, namespace or "", name), {**self._find(resource, namespace, name), **patch}
            )
        )

    def _find(self, resource: Resource, namespace: str | None, name: str) -> Object:
        try:
            return self.objects[(resource.plural, namespace or "", name)]
        except KeyError:
            raise NotFound(404, "NotFound", name) from None

    def _store(self, key: tuple[str, str, str], obj: Object) -> Object:
        self.version += 1
        stored: dict[str, Any] = copy.deepcopy(obj)
        stored["metadata"]["resourceVersion"] = str(self.version)
        self.objects[key] = stored
        return stored

    async def _arrive(self, verb: str) -> None:
        self.requests.append(verb)
        await asyncio.sleep(self.latency)
        self._fail(self.down)

    async def _answer(self, obj: Object) -> Object:
        answer = copy.deepcopy(obj)
        await asyncio.sleep(self.latency + self.answer_latency)
        self._fail(self.lose_answers)
        return answer

    @staticmethod
    def _fail(fail: bool) -> None:
        if fail:
            raise Unavailable(503, "ServiceUnavailable", "away")
