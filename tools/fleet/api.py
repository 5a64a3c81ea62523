"""The world's own client of the API server: merge patches of status and watches, which the
operator's client does not have.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import aiohttp

from fleet import FleetError
from modelrollout.kube.kinds import Resource
from modelrollout.kube.objects import Object

_LINE_BYTES = 4 << 20
_AT_ONCE = 16


class ApiError(FleetError):
    """The API server refused; ``status`` is the HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Api:
    """An asynchronous context manager."""

    def __init__(self, server: str, trust: ssl.SSLContext) -> None:
        self._server = server
        connector = aiohttp.TCPConnector(ssl=trust, limit=0)
        self._session = aiohttp.ClientSession(connector=connector, read_bufsize=_LINE_BYTES)
        self._few = asyncio.Semaphore(_AT_ONCE)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def create(self, resource: Resource, obj: Object) -> Object:
        """What was created."""
        return await self._send("POST", resource.path(obj["metadata"].get("namespace")), obj)

    async def patch(self, resource: Resource, obj: Object, patch: Object, part: str = "") -> Object:
        """A JSON merge patch of the object, or of its ``part`` (``/status``)."""
        return await self._send("PATCH", _path(resource, obj) + part, patch)

    async def delete(self, resource: Resource, obj: Object) -> None:
        """At once; no error where it is gone."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
        try:
            await self._send("DELETE", _path(resource, obj), options)
        except ApiError as e:
            if e.status != 404:
                raise

    async def get(self, path: str) -> Object:
        """Any path."""
        return await self._send("GET", path, None)

    async def watch(self, resource: Resource) -> AsyncIterator[tuple[str, Object]]:
        """Everything of a resource from now on, as (type, object)."""
        version = "0"  # whatever the API server's cache has; Debian's etcd is too old for more
        while True:
            query = {"watch": "1", "timeoutSeconds": "3600", "resourceVersion": version}
            async with self._session.get(
                self._server + resource.path(None),
                params=query,
                timeout=aiohttp.ClientTimeout(total=None),
            ) as answer:
                if answer.status != 200:
                    raise ApiError(answer.status, await answer.text())
                async for line in answer.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        told = event["object"]
                        raise ApiError(
                            told.get("code", 0), f"watch of {resource.plural}: {told.get('message')}"
                        )
                    version = event["object"]["metadata"]["resourceVersion"]
                    yield event["type"], event["object"]

    async def _send(self, method: str, path: str, body: Object | None) -> Object:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        async with (
            self._few,
            self._session.request(
                method,
                self._server + path,
                data=None if body is None else json.dumps(body),
                headers={"Content-Type": kind},
            ) as answer,
        ):
            text = await answer.text()
            if answer.status >= 300:
                raise ApiError(answer.status, f"{method} {path}: {answer.status} {text[:500]}")
            value: dict[str, Any] = json.loads(text)
            return value


def _path(resource: Resource, obj: Object) -> str:
    return resource.path(obj["metadata"].get("namespace"), obj["metadata"]["name"])
